//! Further processes in a container, by flags and by process.json.

use std::fs;
use std::io::Write as _;

use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, process, snapshot, watch};
use serde_json::json;

use crate::start;

const FOREVER: &str = "echo up; sleep 100000";

#[test]
fn flags_make_another_process() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let id = bundle.id.as_str();
    let exec = |flags: &[&str], script: &str| {
        let mut arguments = vec!["exec"];
        arguments.extend(flags);
        arguments.extend([id, "sh", "-c", script]);
        bundle.wright(&arguments)
    };
    let groups =
        exec(&["--user", "7:8", "--additional-gids", "9", "-g", "10"], "id -u; id -g; id -G")?.ok()?;
    assert_eq!(groups, "7\n8\n8 9 10\n");
    assert_eq!(exec(&["-e", "A=1", "--env", "B=2 3"], "echo $A $B")?.ok()?, "1 2 3\n");
    assert_eq!(exec(&["--cwd", "/etc"], "pwd")?.ok()?, "/etc\n");
    assert_eq!(exec(&["--no-new-privs"], "grep NoNewPrivs /proc/self/status")?.ok()?, "NoNewPrivs:\t1\n");
    let effective = exec(&["--cap", "CAP_SYS_NICE"], "grep CapEff /proc/self/status")?.ok()?;
    let bits = u64::from_str_radix(effective.trim_start_matches("CapEff:").trim(), 16)?;
    assert_eq!(bits & (1 << 23), 1 << 23, "{effective}");
    let unknown = exec(&["--cap", "CAP_FLY"], "grep CapEff /proc/self/status")?;
    assert!(
        unknown.stderr.contains("ignoring unknown or unavailable capabilities: [CAP_FLY]"),
        "{unknown:?}"
    );
    assert_eq!(unknown.ok()?, exec(&[], "grep CapEff /proc/self/status")?.ok()?);
    let inheritable = exec(&["--cap", "CAP_SYS_NICE"], "grep -E 'CapInh|CapAmb' /proc/self/status")?.ok()?;
    assert!(inheritable.lines().all(|line| line.ends_with("0000000000000000")), "{inheritable}");
    Ok(())
}

#[test]
fn impossible_execs_exit_with_255() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    for (flags, words) in [
        (&["--user", "4294967296"][..], "bad uid"),
        (&["--user", "-1"], "bad uid"),
        (&["--user", "0:4294967296"], "bad gid"),
        (&["--additional-gids", "4294967296"], "bad additional gid"),
        (&["--cwd", "relative"], "process.cwd"),
        (&["--cwd", "/proc/self/fd/7"], ""),
        (&["--cgroup", "../x"], "bad sub cgroup path"),
        (&["--cgroup", "/no-such-cgroup"], ""),
    ] {
        let mut arguments = vec!["exec"];
        arguments.extend(flags);
        arguments.extend([bundle.id.as_str(), "true"]);
        let ran = bundle.wright(&arguments)?;
        assert!(ran.code == 255 && ran.stderr.contains(words), "{flags:?}: {ran:?}");
    }
    if !snapshot::unified() {
        let ran = bundle.wright(&["exec", "--cgroup", "nothing:x", &bundle.id, "true"])?;
        assert!(ran.code == 255 && ran.stderr.contains("unknown controller "), "{ran:?}");
    }
    let ran = bundle.wright(&["exec", &bundle.id])?;
    assert!(ran.code == 255 && ran.stderr.contains("exec args cannot be empty"), "{ran:?}");
    let ran = bundle.wright(&["exec", &bundle.id, "not-executable"])?;
    assert!(ran.code == 255 && ran.stderr.contains("permission denied"), "{ran:?}");
    let ran = bundle.wright(&["exec", &bundle.id, "no-such-program"])?;
    assert!(ran.code == 255 && ran.stderr.contains("executable file not found in $PATH"), "{ran:?}");
    let pid = bundle.pid()?;
    bundle.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    let ran = bundle.wright(&["exec", &bundle.id, "true"])?;
    assert!(ran.code == 255 && ran.stderr.contains("stopped container"), "{ran:?}");
    Ok(())
}

#[test]
fn a_process_json_is_taken_as_it_is() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let path = bundle.path().join("process.json");
    let process = json!({
        "terminal": false, "cwd": "/tmp", "args": ["sh", "-c", "id -u; pwd; umask; ulimit -n; echo $X"],
        "env": ["PATH=/bin", "X=y"], "user": {"uid": 5, "gid": 6, "umask": 63},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]
    });
    fs::write(&path, process.to_string())?;
    let ran = bundle.wright(&["exec", "--process", &path.to_string_lossy(), &bundle.id])?;
    assert_eq!(ran.ok()?, "5\n/tmp\n0077\n77\ny\n");
    fs::write(
        &path,
        json!({"cwd": "/", "args": ["true"], "user": {"uid": 4_294_967_296_u64, "gid": 0}}).to_string(),
    )?;
    let ran = bundle.wright(&["exec", "-p", &path.to_string_lossy(), &bundle.id])?;
    assert!(ran.code == 255 && ran.stderr.contains("user.uid"), "{ran:?}");
    Ok(())
}

#[test]
fn a_detached_exec_leaves_its_pid() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let file = bundle.path().join("exec.pid");
    let out = fs::File::create(bundle.path().join("exec.out"))?;
    let name = file.to_string_lossy().into_owned();
    let status = bundle
        .command(&["exec", "--detach", "--pid-file", &name, &bundle.id, "sh", "-c", "echo here; sleep 4242"])?
        .stdout(out)
        .stderr(std::process::Stdio::null())
        .status()?;
    assert!(status.success());
    let pid: u32 = fs::read_to_string(&file)?.parse()?;
    watch::content(&bundle.path().join("exec.out"), Deadline::in_seconds(20), |bytes| {
        (bytes == b"here\n").then_some(())
    })?;
    let read = process::read(pid);
    assert!(read.is_some_and(|process| process.cgroups.contains(&bundle.id)), "in the container's cgroup");
    let listed = bundle.wright(&["ps", "--format", "json", &bundle.id])?.ok()?;
    let listed: Vec<u32> = serde_json::from_str(&listed)?;
    assert!(listed.contains(&pid) && listed.contains(&bundle.pid()?), "{listed:?}");
    Ok(())
}

#[test]
fn preserved_descriptors_arrive_and_no_others() -> Outcome {
    let bundle = Bundle::new("ls /proc/self/fd; cat <&3")?;
    let file = bundle.path().join("extra");
    fs::File::create(&file)?.write_all(b"extra\n")?;
    // A shell passes descriptors on without close-on-exec, as the tools that use the flag do.
    let wright = podwright_tests::binaries::find("wright")?;
    let script = format!(
        "exec 3<{} 9</dev/null; exec {} --root {} run --preserve-fds 1 {}",
        file.display(),
        wright.display(),
        bundle.state_root().display(),
        bundle.id
    );
    let output =
        std::process::Command::new("sh").arg("-c").arg(script).current_dir(bundle.path()).output()?;
    let stdout = String::from_utf8(output.stdout)?;
    // Besides the standard streams and the extra one, ls sees the directory it reads.
    assert_eq!(stdout, "0\n1\n2\n3\n4\nextra\n", "{}", String::from_utf8_lossy(&output.stderr));
    let ran = bundle.wright(&["run", "--preserve-fds", "3", &bundle.id])?;
    assert!(ran.code == 1 && ran.stderr.contains("unable to stat preserved-fd"), "{ran:?}");
    Ok(())
}

#[test]
fn an_exec_may_go_to_a_cgroup_below() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    start(&bundle)?;
    let mut made = Vec::new();
    for cgroup in snapshot::cgroups(&bundle.id) {
        let below = cgroup.join("below");
        fs::create_dir(&below)?;
        // A new cpuset of version 1 is empty, and takes no process until it is filled.
        if !snapshot::unified()
            && let Ok(cpus) = fs::read_to_string(cgroup.join("cpuset.cpus"))
        {
            fs::write(below.join("cpuset.cpus"), cpus)?;
            fs::write(below.join("cpuset.mems"), fs::read_to_string(cgroup.join("cpuset.mems"))?)?;
        }
        made.push(below);
    }
    let ran = bundle.wright(&["exec", "--cgroup", "below", &bundle.id, "cat", "/proc/self/cgroup"])?.ok()?;
    // With version 2 alone there is a cgroup namespace, and its one line does not name the container.
    let ours: Vec<_> = ran.lines().filter(|line| snapshot::unified() || line.contains(&bundle.id)).collect();
    assert!(!ours.is_empty() && ours.iter().all(|line| line.ends_with("/below")), "{ran}");
    if !snapshot::unified() {
        let ran = bundle
            .wright(&["exec", "--cgroup", "pids:below", &bundle.id, "cat", "/proc/self/cgroup"])?
            .ok()?;
        assert!(ran.lines().any(|line| line.contains(":pids:") && line.ends_with("/below")), "{ran}");
        assert!(ran.lines().any(|line| line.contains(":memory:") && line.ends_with(&bundle.id)), "{ran}");
    }
    Ok(())
}
