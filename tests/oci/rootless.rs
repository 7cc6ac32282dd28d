//! `wright` for a plain user: no capability, no group, nothing of his but the bundle and a runtime directory.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use podwright_tests::oci::{Bundle, Ran};
use podwright_tests::{Deadline, Outcome, binaries, process, root, skip, snapshot, watch};
use serde_json::{Value, json};

/// The user `nobody`, of whom nothing on a machine should depend.
const USER: u32 = 65534;
/// The first of the ids that are granted to him where a test does so.
const GRANTED: u32 = 2_000_000;

/// A bundle that belongs to a plain user, with a configuration of `wright spec --rootless`.
struct Rootless(Bundle);

impl Rootless {
    fn new(script: &str) -> Result<Self> {
        let bundle = Bundle::new("true")?;
        let path = bundle.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("xdg"))?;
        // Where the build is, other users may not come.
        let wright = binaries::find("wright")?;
        root::apart(|| Ok(fs::copy(wright, path.join("wright"))?))?;
        fs::remove_file(path.join("config.json"))?;
        give_directories(path)?;
        let rootless = Self(bundle);
        rootless.wright(&["spec", "--rootless"])?.ok()?;
        chown(rootless.0.path().join("config.json"), Some(0), Some(0))?;
        rootless.0.edit(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
            spec["root"]["readonly"] = json!(false);
        })?;
        Ok(rootless)
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("wright")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", self.0.path().join("xdg")).uid(USER).gid(USER);
        command
    }

    fn wright(&self, arguments: &[&str]) -> Result<Ran> {
        Ok(self.command(arguments).output().context("run wright")?.into())
    }

    fn id(&self) -> &str {
        &self.0.id
    }

    /// Creates and starts the container and waits until it has written `up`.
    fn start(&self) -> Outcome {
        let out = fs::File::create(self.0.path().join("stdout"))?;
        let err = fs::File::create(self.0.path().join("stderr"))?;
        let status = self.command(&["create", self.id()]).stdout(out).stderr(err).status()?;
        anyhow::ensure!(status.success(), "create: {}", self.0.stderr()?);
        self.wright(&["start", self.id()])?.ok()?;
        watch::content(&self.0.path().join("stdout"), Deadline::in_seconds(20), |bytes| {
            bytes.starts_with(b"up\n").then_some(())
        })
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.wright(&["delete", "--force", &self.0.id]);
    }
}

/// The directories of a tree, not its files: those are hard links, maybe of files that others use.
fn give_directories(path: &Path) -> Result<()> {
    chown(path, Some(USER), Some(USER))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give_directories(&entry.path())?;
        }
    }
    Ok(())
}

#[test]
fn a_container_runs_with_the_users_own_id_alone() -> Outcome {
    let rootless = Rootless::new("id -u; cat /proc/self/uid_map; touch /written && echo wrote; exit 3")?;
    let ran = rootless.wright(&["run", rootless.id()])?;
    let words: Vec<_> = ran.stdout.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", &USER.to_string(), "1", "wrote"], "{ran:?}");
    assert_eq!(ran.code, 3, "{ran:?}");
    Ok(())
}

#[test]
fn every_verb_works_on_it() -> Outcome {
    let rootless = Rootless::new("trap 'exit 0' TERM; echo up; while true; do sleep 0.05; done")?;
    rootless.start()?;
    let id = rootless.id();
    assert!(rootless.0.path().join("xdg/wright").join(id).is_dir(), "state is in $XDG_RUNTIME_DIR");
    let state: Value = serde_json::from_str(&rootless.wright(&["state", id])?.ok()?)?;
    assert_eq!((&state["status"], &state["owner"]), (&json!("running"), &json!("nobody")));
    assert_eq!(rootless.wright(&["list", "-q"])?.ok()?, format!("{id}\n"));
    let pids: Vec<u32> = serde_json::from_str(&rootless.wright(&["ps", "-f", "json", id])?.ok()?)?;
    assert!(pids.iter().any(|pid| json!(pid) == state["pid"]), "{pids:?}");
    let ran = rootless.wright(&["exec", id, "sh", "-c", "id -u; readlink /proc/self/ns/pid; exit 7"])?;
    let inside = fs::read_link(format!("/proc/{}/ns/pid", state["pid"]))?;
    assert_eq!((ran.code, ran.stdout), (7, format!("0\n{}\n", inside.display())));
    let ran = rootless.wright(&["exec", "--tty", id, "sh", "-c", "test -t 1 && echo terminal"])?;
    assert_eq!(ran.ok()?, "terminal\n");
    assert!(rootless.wright(&["events", "--stats", id])?.ok()?.contains("\"type\":\"stats\""));
    rootless.wright(&["kill", id, "TERM"])?.ok()?;
    let pid = state["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("pid")?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    rootless.wright(&["delete", id])?.ok()?;
    assert_eq!(rootless.wright(&["list", "-q"])?.ok()?, "");
    Ok(())
}

#[test]
fn what_a_user_may_not_have_is_clamped_or_told() -> Outcome {
    let rootless = Rootless::new("cat /proc/self/oom_score_adj; ls /sys/fs/cgroup; echo done")?;
    rootless.0.edit(|spec| {
        spec["process"]["oomScoreAdj"] = json!(-999);
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 1 << 30}]);
    })?;
    let ran = rootless.wright(&["run", rootless.id()])?;
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    assert!(ran.code == 0 && ran.stdout.starts_with(&own) && ran.stdout.ends_with("done\n"), "{ran:?}");
    for warning in ["oom_score_adj", "hard limit"] {
        assert!(ran.stderr.contains(warning), "{ran:?}");
    }
    // A limit that nobody would keep is not taken.
    rootless.0.edit(|spec| spec["linux"]["resources"] = json!({"memory": {"limit": 100 << 20}}))?;
    let ran = rootless.wright(&["run", rootless.id()])?;
    let words = "cannot set memory limit: container could not join or create cgroup";
    assert!(ran.code == 1 && ran.stderr.contains(words), "{ran:?}");
    Ok(())
}

#[test]
fn granted_ids_are_mapped_by_newuidmap() -> Outcome {
    let test = "oci::rootless::granted_ids_are_mapped_by_newuidmap";
    let has = |path: &str| Path::new(path).exists();
    if !has("/usr/bin/newuidmap") || !has("/usr/bin/setpriv") || !has("/etc/subuid") || !has("/etc/subgid") {
        skip::skip(test, "no newuidmap: apt-get install uidmap (make deps does)");
        return Ok(());
    }
    let rootless =
        Rootless::new("id -u; id -G; cat /proc/self/uid_map; chown 5 /data && ls -ln / | grep data")?;
    rootless.0.edit(|spec| {
        for maps in ["uidMappings", "gidMappings"] {
            if let Some(maps) = spec["linux"][maps].as_array_mut() {
                maps.push(json!({"containerID": 1, "hostID": GRANTED, "size": 1000}));
            }
        }
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [9]});
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_CHOWN"]);
        }
    })?;
    fs::create_dir(rootless.0.path().join("rootfs/data"))?;
    chown(rootless.0.path().join("rootfs/data"), Some(USER), Some(USER))?;
    // The grants are in a file that only this process's mount namespace shows in its place.
    fs::write(rootless.0.path().join("grants"), format!("{USER}:{GRANTED}:1000\n"))?;
    let script = "mount --bind grants /etc/subuid && mount --bind grants /etc/subgid && \
                  exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", script, &USER.to_string()]).arg(rootless.program());
    command.args(["run", rootless.id()]).current_dir(rootless.0.path()).stdin(Stdio::null());
    command.env("XDG_RUNTIME_DIR", rootless.0.path().join("xdg"));
    let output = Ran::from(command.output()?).ok()?;
    let words: Vec<_> = output.split_ascii_whitespace().collect();
    let (user, granted) = (USER.to_string(), GRANTED.to_string());
    assert_eq!(words[..9], ["0", "0", "9", "0", &user, "1", "1", &granted, "1000"], "{output}");
    assert_eq!(words[11], "5", "{output}");
    Ok(())
}

#[test]
fn a_delegated_cgroup_is_used() -> Outcome {
    let test = "oci::rootless::a_delegated_cgroup_is_used";
    if !snapshot::unified() {
        skip::skip(test, "cgroup v1 hierarchies cannot be delegated; the virtual machine tests it");
        return Ok(());
    }
    let rootless = Rootless::new("cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max")?;
    // cgroups(7), "Cgroups delegation": the directory and these files belong to the user, who runs inside.
    let delegated = PathBuf::from("/sys/fs/cgroup").join(format!("{}-delegated", rootless.id()));
    fs::create_dir_all(delegated.join("own"))?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids")?;
    for place in [delegated.clone(), delegated.join("own")] {
        chown(&place, Some(USER), Some(USER))?;
        for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(place.join(file), Some(USER), Some(USER))?;
        }
    }
    let path = format!("/{}-delegated/container", rootless.id());
    rootless.0.edit(|spec| {
        spec["linux"]["cgroupsPath"] = json!(path);
        spec["linux"]["resources"] = json!({"pids": {"limit": 33}});
    })?;
    let ran = run_inside(&rootless, &delegated.join("own"))?;
    for place in [delegated.join("container"), delegated.join("own"), delegated] {
        let _ = fs::remove_dir(place);
    }
    assert_eq!(ran.ok()?, "0::/\n33\n");
    Ok(())
}

/// Runs the container from a cgroup that root has put the user into: he himself may only move within what is his.
fn run_inside(rootless: &Rootless, cgroup: &Path) -> Result<Ran> {
    let mut command = Command::new("sh");
    command.args(["-ec", "read go; exec \"$@\" </dev/null", "sh"]).arg(rootless.program());
    command.args(["run", rootless.id()]).current_dir(rootless.0.path()).uid(USER).gid(USER);
    command.env("XDG_RUNTIME_DIR", rootless.0.path().join("xdg"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let moved = fs::write(cgroup.join("cgroup.procs"), child.id().to_string());
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(b"go\n")?;
    }
    let ran = child.wait_with_output()?.into();
    moved?;
    Ok(ran)
}
