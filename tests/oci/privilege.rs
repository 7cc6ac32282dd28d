//! What a container gets of its caller, and what a request may not say: nothing is inherited, no number wraps, no path
//! climbs, and what is refused leaves nothing behind.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, ensure};
use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, binaries, process, snapshot};
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use serde_json::{Value, json};

use crate::start;

const FOREVER: &str = "echo up; sleep 100000";

#[test]
fn no_capability_of_the_caller_is_inherited() -> Outcome {
    // CVE-2022-24769: a caller with inheritable capabilities. They are a thread's, and this one is the test's own.
    let bundle = Bundle::new("grep -E 'CapInh|CapAmb' /proc/self/status; echo up; sleep 100000")?;
    let inherited = CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN;
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| -> Outcome {
            let own = capabilities(None)?;
            set_capabilities(None, CapabilitySets { inheritable: inherited, ..own })?;
            ensure!(capabilities(None)?.inheritable == inherited);
            start(&bundle)?;
            let none = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
            let out = bundle.stdout()?;
            ensure!(out.starts_with(none), "{out}");
            let exec = ["exec", &bundle.id, "grep", "-E", "CapInh|CapAmb", "/proc/self/status"];
            let out = bundle.wright(&exec)?.ok()?;
            ensure!(out == none, "in exec: {out}");
            let exec = [
                "exec",
                "--cap",
                "CAP_CHOWN",
                &bundle.id,
                "grep",
                "-E",
                "CapInh|CapAmb",
                "/proc/self/status",
            ];
            let out = bundle.wright(&exec)?.ok()?;
            ensure!(out == none, "in exec with a capability: {out}");
            Ok(())
        });
        caller.join().map_err(|_| anyhow::anyhow!("the caller's thread failed"))?
    })
}

#[test]
fn an_exec_keeps_what_confines_its_container() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    bundle.edit(|spec| {
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["process"]["oomScoreAdj"] = json!(432);
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}]);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]
        });
    })?;
    start(&bundle)?;
    let script = "grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; \
                  mkdir /tmp/x 2>/dev/null || echo no mkdir";
    let wanted = "NoNewPrivs:\t1\n432\n111\n222\nno mkdir\n";
    assert_eq!(bundle.wright(&["exec", &bundle.id, "sh", "-c", script])?.ok()?, wanted);
    // A process of its own that says nothing of these is confined as well.
    let file = bundle.path().join("process.json");
    let own =
        json!({"cwd": "/", "args": ["sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    fs::write(&file, own.to_string())?;
    let ran = bundle.wright(&["exec", "--process", &file.to_string_lossy(), &bundle.id])?.ok()?;
    assert_eq!(ran, wanted);
    Ok(())
}

#[test]
fn an_exec_has_its_score_before_it_runs() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    bundle.edit(|spec| {
        spec["process"]["oomScoreAdj"] = json!(432);
        // An exec'd process that has nothing else to ask its parent for is the quickest.
        spec["process"]["rlimits"] = json!([]);
    })?;
    start(&bundle)?;
    for number in 0..50 {
        let score = bundle.wright(&["exec", &bundle.id, "cat", "/proc/self/oom_score_adj"])?.ok()?;
        ensure!(score == "432\n", "exec {number}: {score}");
    }
    Ok(())
}

#[test]
fn an_exec_has_a_session_keyring_of_its_own() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    bundle.edit(|spec| spec["linux"]["maskedPaths"] = json!([]))?;
    start(&bundle)?;
    // /proc/keys lists what its reader may see. The keyrings are root's, so another user sees only those that it possesses: those
    // of its own session. The first field is the serial number.
    let keyrings = || -> anyhow::Result<Vec<String>> {
        let exec = ["exec", "--user", "54321", &bundle.id, "grep", "keyring .*_ses", "/proc/keys"];
        let out = bundle.wright(&exec)?.ok()?;
        Ok(out.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    };
    let (first, second) = (keyrings()?, keyrings()?);
    assert!(!first.is_empty() && !second.is_empty(), "{first:?} {second:?}");
    assert!(first.iter().all(|serial| !second.contains(serial)), "{first:?} {second:?}");
    Ok(())
}

#[test]
fn no_descriptor_of_the_caller_reaches_an_exec() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let wright = binaries::find("wright")?;
    let command = format!("{} --root {}", wright.display(), bundle.state_root().display());
    let script = format!("exec 7</ 9</dev/null; exec {command} exec {} ls /proc/self/fd", bundle.id);
    let output = Command::new("sh").arg("-c").arg(script).current_dir(bundle.path()).output()?;
    // The last is the directory that ls reads.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n1\n2\n3\n", "{output:?}");
    Ok(())
}

/// Every part of a spec that a request can get wrong, and what the refusal names.
fn wrong() -> Vec<(&'static str, Value, &'static str)> {
    let big = 4_294_967_296_u64;
    vec![
        ("/process/user/uid", json!(big), "process.user.uid"),
        ("/process/user/gid", json!(big), "process.user.gid"),
        ("/process/user/gid", json!(-1), "process.user.gid"),
        ("/process/user/additionalGids", json!([1, big]), "process.user.additionalGids"),
        ("/process/user/umask", json!(big), "process.user.umask"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        ("/process/rlimits", json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "process.rlimits"),
        ("/process/args", json!(["a\0b"]), "process.args"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/cwd", json!("/etc/passwd/x"), ""),
        ("/process/args", json!(["/no/such/program"]), ""),
        (
            "/linux/devices",
            json!([{"path": "/dev/../../x", "type": "c", "major": 1, "minor": 3}]),
            "linux.devices",
        ),
        ("/linux/devices", json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]), "linux.devices"),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": big}]),
            "linux.devices",
        ),
        ("/linux/cgroupsPath", json!("/a/../../b"), "linux.cgroupsPath"),
        ("/linux/cgroupsPath", json!("../b"), "linux.cgroupsPath"),
        ("/linux/sysctl", json!({"kernel.core_pattern": "|/x"}), "kernel.core_pattern"),
        ("/linux/sysctl", json!({"net/../kernel/panic": "1"}), "net/../kernel/panic"),
        ("/linux/sysctl", json!({"net.ipv4.no_such_thing": "1"}), "no_such_thing"),
        ("/linux/resources/cpu", json!({"cpus": "4000"}), "cpuset.cpus"),
        ("/linux/resources/cpu", json!({"cpus": "x"}), "cpus"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_FLY"}), "SCMP_ACT_FLY"),
        ("/hooks", json!({"createRuntime": [{"path": "/bin/false"}]}), "createRuntime"),
        ("/hooks", json!({"createRuntime": [{"path": "relative"}]}), "hooks"),
        (
            "/mounts",
            json!([{"destination": "/x", "type": "none", "source": "/no/such", "options": ["bind"]}]),
            "/no/such",
        ),
        ("/mounts", json!([{"destination": "/x", "type": "nofs", "source": "x"}]), ""),
        ("/root/path", json!("no-such-root"), ""),
    ]
}

#[test]
fn a_refused_container_is_named_and_leaves_nothing() -> Outcome {
    let bundle = Bundle::new("true")?;
    for (pointer, value, words) in wrong() {
        let what = format!("{pointer} = {value}");
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        let mut before = Value::Null;
        bundle.edit(|spec| {
            before = spec.clone();
            if let Some(parent) = if parent.is_empty() { Some(spec) } else { spec.pointer_mut(parent) } {
                parent[key] = value;
            }
        })?;
        let ran = bundle.wright(&["run", &bundle.id])?;
        ensure!(ran.code == 1 && ran.stderr.contains(words), "{what}: {ran:?}");
        ensure!(snapshot::cgroups(&bundle.id).is_empty(), "{what}: a cgroup is left");
        ensure!(!bundle.state_root().join(&bundle.id).exists(), "{what}: a record is left");
        let processes = process::belonging_to(&bundle.id)?;
        ensure!(processes.is_empty(), "{what}: {processes:?}");
        bundle.edit(|spec| *spec = before)?;
    }
    bundle.wright(&["run", &bundle.id])?.ok()?;
    Ok(())
}

#[test]
fn an_id_that_is_a_path_is_refused() -> Outcome {
    let bundle = Bundle::new("true")?;
    for id in ["../x", "a/b", ".", "..", "", "a\nb", "a b"] {
        for verb in [
            &["run", id][..],
            &["create", id],
            &["delete", "--force", id],
            &["state", id],
            &["kill", id, "KILL"],
        ] {
            let ran = bundle.wright(verb)?;
            ensure!(ran.code != 0, "{verb:?}: {ran:?}");
        }
    }
    let left: Vec<_> =
        fs::read_dir(bundle.path())?.filter_map(Result::ok).map(|entry| entry.file_name()).collect();
    ensure!(
        left.iter().all(|name| ["rootfs", "config.json", "state"].iter().any(|known| name == known)),
        "{left:?}"
    );
    Ok(())
}

#[test]
fn a_container_that_does_not_run_can_still_be_ended() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    let halt: [fn(&Bundle) -> Outcome; 2] = [
        |bundle| bundle.wright(&["pause", &bundle.id])?.ok().map(drop),
        |bundle| process::signal(bundle.pid()?, Signal::STOP),
    ];
    for halt in halt {
        start(&bundle)?;
        halt(&bundle)?;
        let pid = bundle.pid()?;
        bundle.wright(&["delete", "--force", &bundle.id])?.ok()?;
        process::wait_gone(pid, Deadline::in_seconds(20)).context("the container lives on")?;
        start(&bundle)?;
        halt(&bundle)?;
        let pid = bundle.pid()?;
        bundle.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
        if bundle.status()? == "paused" {
            bundle.wright(&["resume", &bundle.id])?.ok()?;
        }
        process::wait_gone(pid, Deadline::in_seconds(20)).context("the killed container lives on")?;
        bundle.wright(&["delete", &bundle.id])?.ok()?;
    }
    Ok(())
}

#[test]
fn a_low_oom_score_is_set_where_it_may_be() -> Outcome {
    let bundle = Bundle::new(&format!("cat /proc/self/oom_score_adj > /tmp/score; {FOREVER}"))?;
    bundle.edit(|spec| spec["process"]["oomScoreAdj"] = json!(-999))?;
    start(&bundle)?;
    let may = capabilities(None)?.effective.contains(CapabilitySet::SYS_RESOURCE);
    let first: i32 = fs::read_to_string(bundle.path().join("rootfs/tmp/score"))?.trim().parse()?;
    // Without CAP_SYS_RESOURCE a score cannot be lowered: then it stays, and the container runs all the same.
    let right = |score| if may { score == -999 } else { score > -999 };
    ensure!(right(first), "{first}");
    Ok(())
}
