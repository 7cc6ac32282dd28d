//! What tools and people have come to rely on in runc, one habit a test. Most were found by runc's own test suite.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use podwright_tests::oci::{Bundle, Ran};
use podwright_tests::{Deadline, Outcome, binaries, process, skip, watch};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::start;

/// A bundle whose container runs until it is killed, started.
fn sleeping() -> anyhow::Result<Bundle> {
    let bundle = Bundle::new("echo up; exec sleep 100000")?;
    start(&bundle)?;
    Ok(bundle)
}

fn run(script: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<Ran> {
    let bundle = Bundle::new(script)?;
    bundle.edit(change)?;
    bundle.wright(&["run", &bundle.id])
}

#[test]
fn lines_of_a_relayed_terminal_end_as_they_were_written() -> Outcome {
    let bundle = Bundle::new("test -t 1 && printf 'a\\nb\\n'")?;
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    assert_eq!(bundle.wright(&["run", &bundle.id])?.ok()?, "a\nb\n");
    let bundle = sleeping()?;
    let ran = bundle.wright(&["exec", "--tty", &bundle.id, "printf", "a\\nb\\n"])?;
    assert_eq!(ran.ok()?, "a\nb\n");
    Ok(())
}

#[test]
fn debug_says_what_is_done() -> Outcome {
    let bundle = Bundle::new("true")?;
    let ran = bundle.wright(&["--debug", "run", &bundle.id])?;
    assert!(ran.code == 0 && ran.stderr.contains("level=debug"), "{ran:?}");
    let ran = bundle.wright(&["--debug", "--log", "log", "run", &bundle.id])?;
    assert!(ran.code == 0 && !ran.stderr.contains("level=debug"), "{ran:?}");
    assert!(fs::read_to_string(bundle.path().join("log"))?.contains("level=debug"));
    Ok(())
}

#[test]
fn the_runtimes_cpu_affinity_is_not_the_containers() -> Outcome {
    let cpus = fs::read_to_string("/proc/self/status")?;
    let own = cpus.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap_or_default();
    if !own.contains(['-', ',']) {
        skip::skip("oci::compat::the_runtimes_cpu_affinity_is_not_the_containers", "one CPU only");
        return Ok(());
    }
    let bundle = Bundle::new("grep Cpus_allowed_list /proc/self/status")?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(binaries::find("wright")?).arg("--root").arg(bundle.state_root());
    command.args(["run", &bundle.id]).current_dir(bundle.path());
    assert_eq!(Ran::from(command.output()?).ok()?.trim(), own);
    Ok(())
}

#[test]
fn exec_adds_an_inheritable_capability_to_the_ambient_ones() -> Outcome {
    let bundle = Bundle::new("echo up; exec sleep 100000")?;
    bundle.edit(|spec| {
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_SYSLOG"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
            "inheritable": ["CAP_SYSLOG"]
        });
    })?;
    start(&bundle)?;
    let exec =
        |cap: &str| bundle.wright(&["exec", "--cap", cap, &bundle.id, "grep", "CapAmb", "/proc/self/status"]);
    assert!(exec("CAP_SYSLOG")?.ok()?.contains("0000000400000000"));
    assert!(exec("CAP_CHOWN")?.ok()?.contains("0000000000000000"));
    Ok(())
}

#[test]
fn an_ambient_capability_that_cannot_be_had_is_named() -> Outcome {
    let ran = run("true", |spec| {
        spec["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
        spec["process"]["capabilities"]["ambient"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    })?;
    assert!(ran.code == 0 && ran.stderr.contains("can't raise ambient capability CAP_CHOWN: "), "{ran:?}");
    Ok(())
}

#[test]
fn a_process_may_be_described_through_a_pipe() -> Outcome {
    let bundle = sleeping()?;
    let process = json!({"args": ["echo", "piped"], "cwd": "/", "env": ["PATH=/bin"]});
    let mut command = bundle.command(&["exec", "--process", "/proc/self/fd/0", &bundle.id])?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(process.to_string().as_bytes())?;
    }
    assert_eq!(Ran::from(child.wait_with_output()?).ok()?, "piped\n");
    Ok(())
}

#[test]
fn a_path_masked_twice_is_mounted_over_once() -> Outcome {
    let ran = run("grep -c ' /etc/passwd ' /proc/self/mounts", |spec| {
        spec["linux"]["maskedPaths"] = json!(["/etc/passwd", "/etc/passwd"]);
    })?;
    assert_eq!(ran.ok()?, "1\n");
    Ok(())
}

#[test]
fn start_container_hooks_have_the_containers_environment_unless_given_one() -> Outcome {
    let ran = run("true", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
        spec["hooks"] = json!({"startContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", "test $ONE = two && test -n $HOME"]},
            {"path": "/bin/sh", "args": ["sh", "-c", "test -z $ONE"], "env": []},
        ]});
    })?;
    assert_eq!(ran.code, 0, "{ran:?}");
    Ok(())
}

#[test]
fn start_container_hooks_are_under_the_containers_filter() -> Outcome {
    let ran = run("true", |spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}]
        });
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/mkdir", "args": ["mkdir", "/dev/shm/x"]}]});
    })?;
    let words = ["error running startContainer hook", "signal: bad system call"];
    assert!(ran.code == 1 && words.iter().all(|words| ran.stderr.contains(words)), "{ran:?}");
    Ok(())
}

#[test]
fn create_container_hooks_start_in_the_containers_root() -> Outcome {
    let bundle = Bundle::new("cat /made-by-hook")?;
    bundle.edit(|spec| {
        spec["hooks"] = json!({"createContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", "echo here >made-by-hook"], "env": ["PATH=/usr/bin:/bin"]
        }]});
    })?;
    assert_eq!(bundle.wright(&["run", &bundle.id])?.ok()?, "here\n");
    Ok(())
}

#[test]
fn a_filters_listener_may_watch_what_making_the_container_takes() -> Outcome {
    let bundle = Bundle::new("true")?;
    let path = bundle.path().join("agent.sock");
    let agent = UnixListener::bind(&path)?;
    bundle.edit(|spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "told",
            "syscalls": [{
                "names": ["execve", "openat", "open", "read", "close", "fcntl"], "action": "SCMP_ACT_NOTIFY"
            }]
        });
    })?;
    // Nobody answers yet: it must not have to wait for that.
    bundle.create()?.ok()?;
    watch::readable(agent.as_fd(), Deadline::in_seconds(20))?;
    let mut text = [0; 4096];
    let length = agent.accept()?.0.read(&mut text)?;
    let told: Value = serde_json::from_slice(&text[..length])?;
    assert_eq!((&told["metadata"], &told["state"]["id"]), (&json!("told"), &json!(bundle.id)));
    Ok(())
}

#[test]
fn exec_makes_no_working_directory() -> Outcome {
    let bundle = sleeping()?;
    let ran = bundle.wright(&["exec", "--cwd", "/not/there", &bundle.id, "true"])?;
    assert!(ran.code == 255 && ran.stderr.contains("chdir"), "{ran:?}");
    assert!(!bundle.path().join("rootfs/not").exists());
    Ok(())
}

#[test]
fn signal_0_asks_and_all_is_content_with_none() -> Outcome {
    let bundle = sleeping()?;
    bundle.wright(&["kill", &bundle.id, "0"])?.ok()?;
    let pid = bundle.pid()?;
    bundle.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    let ran = bundle.wright(&["kill", &bundle.id, "0"])?;
    assert!(ran.code == 1 && ran.stderr.contains("container not running"), "{ran:?}");
    bundle.wright(&["kill", "--all", &bundle.id, "0"])?.ok()?;
    Ok(())
}

#[test]
fn a_root_that_was_named_must_be_there_to_be_listed() -> Outcome {
    let bundle = Bundle::new("true")?;
    let missing = bundle.path().join("missing").to_string_lossy().into_owned();
    let ran: Ran =
        Command::new(binaries::find("wright")?).args(["--root", &missing, "list"]).output()?.into();
    assert_eq!(ran.code, 1, "{ran:?}");
    Ok(())
}

#[test]
fn sub_cgroups_may_be_the_containers_own_and_must_exist() -> Outcome {
    let bundle = sleeping()?;
    let exec = |cgroup: &str| bundle.wright(&["exec", "--cgroup", cgroup, &bundle.id, "true"]);
    exec("/")?.ok()?;
    let ran = exec("nonexistent")?;
    assert!(ran.code == 255 && ran.stderr.contains(" adding pid "), "{ran:?}");
    assert!(ran.stderr.contains("no such file or directory"), "{ran:?}");
    assert!(exec("..")?.stderr.contains("bad sub cgroup path"));
    assert!(exec("nonsense:/")?.stderr.contains("unknown controller "));
    Ok(())
}

#[test]
fn a_created_container_ends_when_asked_to() -> Outcome {
    for signal in ["TERM", "INT", "HUP", "QUIT"] {
        let bundle = Bundle::new("true")?;
        assert_eq!(bundle.create()?.code, 0);
        let pid = bundle.pid()?;
        bundle.wright(&["kill", &bundle.id, signal])?.ok()?;
        process::wait_gone(pid, Deadline::in_seconds(20))?;
        assert_eq!(bundle.status()?, "stopped", "{signal}");
    }
    Ok(())
}

#[test]
fn a_program_that_cannot_be_executed_says_so_itself() -> Outcome {
    let bundle = Bundle::new("true")?;
    let program = bundle.path().join("rootfs/run.sh");
    fs::write(&program, "#!/no/such/interpreter\n")?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    bundle.edit(|spec| spec["process"]["args"] = json!(["/run.sh"]))?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    assert_eq!((ran.code, ran.stderr.as_str()), (255, "exec /run.sh: no such file or directory\n"));
    Ok(())
}

#[test]
fn access_times_of_a_bind_mount_change_only_as_a_whole() -> Outcome {
    let script = "while read -r source target kind options rest; do \
                  case $target in /m/*) echo ${target#/m/} $options;; esac; done </proc/self/mounts";
    let cases = [
        ("kept", &["bind", "rw"][..], "noatime"),
        ("named", &["bind", "atime"], "noatime"),
        ("relatime", &["bind", "relatime"], "relatime"),
        ("nodiratime", &["bind", "nodiratime"], "nodiratime,relatime"),
        ("noatime", &["bind", "noatime", "nodiratime"], "noatime,nodiratime"),
    ];
    let ran = run(script, |spec| {
        let Some(mounts) = spec["mounts"].as_array_mut() else { return };
        mounts.push(json!({
            "destination": "/source", "type": "tmpfs", "source": "tmpfs", "options": ["noatime"]
        }));
        for (name, options, _) in cases {
            // The source is one of the container's own mounts, as the host sees it.
            mounts.push(json!({
                "destination": format!("/m/{name}"), "source": "rootfs/source", "options": options
            }));
        }
    })?;
    let text = ran.ok()?;
    for (name, _, expected) in cases {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        assert!(line.contains(expected), "{name}: {text}");
    }
    Ok(())
}

#[test]
fn a_mounts_destination_may_be_written_as_the_host_sees_it() -> Outcome {
    let bundle = Bundle::new("cat /final/x")?;
    let root = bundle.path().join("rootfs");
    fs::create_dir(bundle.path().join("data"))?;
    fs::write(bundle.path().join("data/x"), "here")?;
    bundle.edit(|spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({"destination": "/mnt", "source": "data", "options": ["bind"]}));
            mounts.push(
                json!({"destination": root.join("final"), "source": root.join("mnt"), "options": ["rbind"]}),
            );
        }
    })?;
    assert_eq!(bundle.wright(&["run", &bundle.id])?.ok()?, "here");
    Ok(())
}

#[test]
fn a_swap_limit_is_changed_without_naming_the_memory_limit() -> Outcome {
    let test = "oci::compat::a_swap_limit_is_changed_without_naming_the_memory_limit";
    let bundle = Bundle::new("echo up; exec sleep 100000")?;
    bundle
        .edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 64 << 20}))?;
    start(&bundle)?;
    let Some((file, both)) =
        podwright_tests::snapshot::cgroups(&bundle.id).into_iter().find_map(|directory| {
            let v1 = directory.join("memory.memsw.limit_in_bytes");
            let v2 = directory.join("memory.swap.max");
            v1.exists().then_some((v1, true)).or_else(|| v2.exists().then_some((v2, false)))
        })
    else {
        skip::skip(test, "this kernel does not account swap");
        return Ok(());
    };
    let limit = || anyhow::Ok(fs::read_to_string(&file)?.trim().parse::<u64>()?);
    let memory = if both { 0 } else { 32 << 20 };
    bundle.wright(&["update", "--memory-swap", &(96_u64 << 20).to_string(), &bundle.id])?.ok()?;
    assert_eq!(limit()?, (96 << 20) - memory);
    bundle.wright(&["update", "--memory", &(48_u64 << 20).to_string(), &bundle.id])?.ok()?;
    assert_eq!(limit()?, (96 << 20) - if both { 0 } else { 48 << 20 });
    let _ = process::signal(bundle.pid()?, Signal::KILL);
    Ok(())
}
