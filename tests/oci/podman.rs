//! Debian's podman with wright in runc's place.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use anyhow::Result;
use podwright_tests::oci::Ran;
use podwright_tests::{Deadline, Outcome, binaries, process, root, skip, temporary};

/// A podman with storage, state and a root filesystem of its own.
struct Podman {
    directory: tempfile::TempDir,
    /// In every container's name.
    name: String,
}

impl Podman {
    /// None: there is no podman here, which has been said.
    fn new(test: &str) -> Result<Option<Self>> {
        let found =
            Command::new("podman").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            skip::skip(test, "no podman: apt-get install podman (make deps does)");
            return Ok(None);
        }
        // Short: the paths of conmon's sockets are below it.
        let directory = temporary::directory_in("/tmp".as_ref())?;
        root::populate(&directory.path().join("root"))?;
        // Its defaults raise hard limits, which not everyone may.
        let configuration = "[containers]\ndefault_ulimits=[\"nofile=1024:4096\",\"nproc=4096:4096\"]\npids_limit=0\n\
                             [engine]\nevents_logger=\"file\"\n";
        fs::write(directory.path().join("containers.conf"), configuration)?;
        let name = directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Self { directory, name }))
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        command.args([
            "--root",
            &self.path("storage"),
            "--runroot",
            &self.path("run"),
            "--tmpdir",
            &self.path("tmp"),
        ]);
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.arg("--runtime").arg(binaries::find("wright")?).args(arguments);
        command.stdin(Stdio::null());
        Ok(command)
    }

    fn run(&self, arguments: &[&str]) -> Result<Ran> {
        Ok(self.command(arguments)?.output()?.into())
    }

    /// `podman run FLAGS --rootfs ROOT COMMAND`.
    fn container(&self, flags: &[&str], command: &[&str]) -> Result<Ran> {
        let root = self.path("root");
        // Where podman's own would be everybody's, and stay.
        let parent = format!("/{}", self.name);
        let mut arguments = vec!["run", "--network", "none", "--cgroup-parent", &parent];
        arguments.extend(flags);
        arguments.extend(["--rootfs", &root]);
        arguments.extend(command);
        self.run(&arguments)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        // What conmon starts when a container or an exec has ended, `podman container cleanup`, writes into the directory yet.
        let directory = self.directory.path().to_string_lossy().into_owned();
        let ended = process::wait_all_gone(&directory, Deadline::in_seconds(60));
        if let Err(error) = ended {
            assert!(std::thread::panicking(), "{error:#}");
        }
        // vfs keeps mounts for its containers' shm.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = self.directory.path().to_string_lossy().into_owned();
        for target in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| path.starts_with(&ours))
        {
            let _ = Command::new("umount").arg("--lazy").arg(target).status();
        }
        // Also where a host has no such hierarchy: there podman makes plain directories, with files.
        let places = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for place in places.chain(["/sys/fs/cgroup".into()]) {
            for cgroup in [place.join(&self.name).join("conmon"), place.join(&self.name)] {
                let _ = fs::remove_dir(&cgroup).or_else(|_| fs::remove_dir_all(cgroup));
            }
        }
    }
}

#[test]
fn run_passes_output_and_exit_codes() -> Outcome {
    let Some(podman) = Podman::new("oci::podman::run_passes_output_and_exit_codes")? else { return Ok(()) };
    let ran = podman.container(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (7, "out\n"), "{ran:?}");
    assert!(ran.stderr.contains("err"), "{ran:?}");
    assert_eq!(podman.container(&["--rm"], &["/no/such/program"])?.code, 127, "not found");
    assert_eq!(podman.container(&["--rm"], &["/etc"])?.code, 126, "not executable");
    let ran =
        podman.container(&["--rm", "--read-only"], &["sh", "-c", "touch /x; touch /tmp/y && echo wrote"])?;
    assert_eq!(ran.stdout, "wrote\n", "{ran:?}");
    let ran = podman.container(
        &["--rm", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"],
        &["echo", "limited"],
    )?;
    assert_eq!(ran.ok()?, "limited\n");
    Ok(())
}

#[test]
fn a_container_lives_through_podmans_verbs() -> Outcome {
    let Some(podman) = Podman::new("oci::podman::a_container_lives_through_podmans_verbs")? else {
        return Ok(());
    };
    let name = podman.name.as_str();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while true; do sleep 0.05; done";
    podman.container(&["--detach", "--name", name], &["sh", "-c", script])?.ok()?;
    let ran = podman.run(&["exec", name, "sh", "-c", "echo inside; exit 3"])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "inside\n"), "{ran:?}");
    assert_eq!(
        podman.run(&["exec", "--user", "1000", "--env", "A=b", name, "sh", "-c", "id -u; echo $A"])?.ok()?,
        "1000\nb\n"
    );
    assert!(podman.run(&["ps"])?.ok()?.contains(name));
    let usage = podman.run(&["stats", "--no-stream", "--format", "{{.PIDs}}", name])?.ok()?;
    assert!(usage.trim().parse::<u32>().is_ok_and(|count| count >= 1), "{usage}");
    assert!(podman.run(&["top", name])?.ok()?.contains("PID"));
    podman.run(&["pause", name])?.ok()?;
    let status = podman.run(&["ps", "--all", "--format", "{{.Status}}"])?.ok()?;
    assert!(status.contains("Paused"), "{status}");
    podman.run(&["unpause", name])?.ok()?;
    podman.run(&["stop", "--time", "20", name])?.ok()?;
    let code = podman.run(&["inspect", "--format", "{{.State.ExitCode}}", name])?.ok()?;
    assert_eq!(code, "5\n");
    assert_eq!(podman.run(&["logs", name])?.ok()?, "up\nbye\n");
    podman.run(&["rm", name])?.ok()?;
    Ok(())
}

#[test]
fn a_running_container_is_changed_signalled_restarted_and_removed() -> Outcome {
    let test = "oci::podman::a_running_container_is_changed_signalled_restarted_and_removed";
    let Some(podman) = Podman::new(test)? else { return Ok(()) };
    let name = podman.name.as_str();
    let script = "trap 'echo usr1' USR1; echo up; while true; do sleep 0.05; done";
    podman.container(&["--detach", "--name", name, "--memory", "64m"], &["sh", "-c", script])?.ok()?;
    let ran = podman.run(&["exec", "--tty", name, "sh", "-c", "test -t 0 && echo terminal"])?;
    assert_eq!(ran.stdout.trim_end(), "terminal", "{ran:?}");
    podman.run(&["exec", "--detach", name, "touch", "/tmp/detached"])?.ok()?;
    podman.run(&["exec", name, "sh", "-c", "until test -e /tmp/detached; do sleep 0.05; done"])?.ok()?;
    podman.run(&["container", "update", "--memory", "96m", name])?.ok()?;
    let group = podman.run(&["inspect", "--format", "{{.State.CgroupPath}}", name])?.ok()?;
    let files = ["/sys/fs/cgroup/memory{}/memory.limit_in_bytes", "/sys/fs/cgroup{}/memory.max"];
    let limit = files.iter().find_map(|file| fs::read_to_string(file.replace("{}", group.trim())).ok());
    assert_eq!(limit.as_deref().map(str::trim), Some("100663296"), "{group}");
    podman.run(&["kill", "--signal", "USR1", name])?.ok()?;
    podman.run(&["restart", "--time", "0", name])?.ok()?;
    assert_eq!(podman.run(&["inspect", "--format", "{{.State.Status}}", name])?.ok()?, "running\n");
    podman.run(&["rm", "--force", "--time", "0", name])?.ok()?;
    assert_eq!(podman.run(&["ps", "--all", "--quiet"])?.ok()?, "");
    Ok(())
}

#[test]
fn a_terminal_and_a_health_check_work() -> Outcome {
    let test = "oci::podman::a_terminal_and_a_health_check_work";
    let Some(podman) = Podman::new(test)? else { return Ok(()) };
    let ran = podman.container(&["--rm", "--tty"], &["sh", "-c", "test -t 1 && echo tty"])?;
    assert_eq!(ran.stdout.trim_end(), "tty", "{ran:?}");
    let name = podman.name.as_str();
    let flags =
        ["--detach", "--name", name, "--health-cmd", "test -e /tmp/healthy", "--health-interval", "disable"];
    podman.container(&flags, &["sleep", "100000"])?.ok()?;
    assert_eq!(podman.run(&["healthcheck", "run", name])?.code, 1);
    podman.run(&["exec", name, "touch", "/tmp/healthy"])?.ok()?;
    let healthy = podman.run(&["healthcheck", "run", name])?;
    assert_eq!(healthy.code, 0, "{healthy:?}");
    Ok(())
}

#[test]
fn a_user_namespace_maps_root() -> Outcome {
    let Some(podman) = Podman::new("oci::podman::a_user_namespace_maps_root")? else { return Ok(()) };
    // Its root may look at the directories above, and need not make a mount point in those it does not own.
    fs::set_permissions(podman.directory.path(), fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(podman.directory.path().join("root/run/secrets"))?;
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"] {
        fs::write(podman.directory.path().join("root").join(name), "")?;
    }
    let ran = podman
        .container(&["--rm", "--uidmap", "0:100000:65536"], &["sh", "-c", "id -u; cat /proc/self/uid_map"])?;
    let text = ran.ok()?;
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"]);
    let ran = podman.container(&["--rm", "--userns", "host"], &["readlink", "/proc/self/ns/user"])?;
    let own = fs::read_link("/proc/self/ns/user")?;
    assert_eq!(ran.ok()?.trim(), own.to_string_lossy());
    Ok(())
}
