//! A container's life through the verbs of the command line.

use std::fs;
use std::process::Stdio;

use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, process, snapshot, watch};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};

/// Blocks until the created container wrote this line.
fn wait_for_output(bundle: &Bundle, line: &str) -> Outcome {
    watch::content(&bundle.path().join("stdout"), Deadline::in_seconds(20), |bytes| {
        String::from_utf8_lossy(bytes).lines().any(|written| written == line).then_some(())
    })
}

#[test]
fn spec_is_what_tools_expect() -> Outcome {
    let bundle = Bundle::new("true")?;
    let fresh = bundle.path().join("fresh");
    fs::create_dir(&fresh)?;
    bundle.command(&["spec"])?.current_dir(&fresh).status()?;
    let spec: Value = serde_json::from_slice(&fs::read(fresh.join("config.json"))?)?;
    assert_eq!(spec["process"]["args"], serde_json::json!(["sh"]));
    assert_eq!(spec["process"]["terminal"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["root"], serde_json::json!({ "path": "rootfs", "readonly": true }));
    assert_eq!(spec["mounts"].as_array().map(Vec::len), Some(7));
    // runc adds a cgroup namespace where there is only version 2.
    let namespaces = if snapshot::unified() { 6 } else { 5 };
    assert_eq!(spec["linux"]["namespaces"].as_array().map(Vec::len), Some(namespaces));
    assert_eq!(spec["linux"]["readonlyPaths"].as_array().map(Vec::len), Some(5));
    let again = bundle.command(&["spec"])?.current_dir(&fresh).output()?;
    assert!(!again.status.success(), "an existing config.json is not overwritten");
    Ok(())
}

#[test]
fn run_passes_output_and_exit_code() -> Outcome {
    let bundle = Bundle::new("echo out; echo err >&2; exit 7")?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));
    assert_ne!(bundle.wright(&["state", &bundle.id])?.code, 0, "it is gone after the run");
    Ok(())
}

#[test]
fn create_start_state_kill_delete() -> Outcome {
    let bundle = Bundle::new("trap 'echo bye; exit 5' TERM; echo up; while true; do sleep 0.05; done")?;
    let created = bundle.create()?;
    assert_eq!(created.code, 0, "{created:?}");
    let state = bundle.state()?;
    assert_eq!((&state["id"], &state["status"]), (&bundle.id.as_str().into(), &"created".into()));
    let keys: Vec<_> = ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"].into();
    assert!(keys.iter().all(|key| state.get(key).is_some()), "{state}");
    assert_eq!(bundle.stdout()?, "", "nothing runs before start");

    bundle.wright(&["start", &bundle.id])?.ok()?;
    wait_for_output(&bundle, "up")?;
    assert_eq!(bundle.status()?, "running");
    let pid = bundle.pid()?;
    let twice = bundle.wright(&["start", &bundle.id])?;
    assert!(
        twice.code != 0 && twice.stderr.contains("cannot start an already running container"),
        "{twice:?}"
    );
    let early = bundle.wright(&["delete", &bundle.id])?;
    assert!(early.code != 0 && early.stderr.contains("that is not stopped: running"), "{early:?}");

    bundle.wright(&["kill", &bundle.id, "TERM"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    assert_eq!(bundle.stdout()?, "up\nbye\n");
    assert_eq!(bundle.status()?, "stopped");
    assert_eq!(bundle.state()?["pid"], 0);
    bundle.wright(&["delete", &bundle.id])?.ok()?;
    let gone = bundle.wright(&["state", &bundle.id])?;
    assert!(gone.code != 0 && gone.stderr.contains("container does not exist"), "{gone:?}");
    bundle.wright(&["delete", "--force", &bundle.id])?.ok()?;
    Ok(())
}

/// Whatever kills a creation before it is on disk, no process stays that nobody knows of.
#[test]
fn a_creation_that_is_killed_leaves_what_a_forced_delete_takes_away() -> Outcome {
    let bundle = Bundle::new("sleep 1000; true")?;
    let init = bundle.path().join("init");
    let script = format!("sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' > {}; kill -9 $PPID", init.display());
    bundle.edit(|spec| {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]});
        spec["hooks"] = json!({"createRuntime": [hook]});
    })?;
    assert_eq!(bundle.create()?.code, -1, "it is killed");
    process::wait_gone(fs::read_to_string(&init)?.trim().parse()?, Deadline::in_seconds(5))?;
    assert!(bundle.state_root().join(&bundle.id).exists() && !snapshot::cgroups(&bundle.id).is_empty());
    bundle.wright(&["delete", "--force", &bundle.id])?.ok()?;
    assert!(!bundle.state_root().join(&bundle.id).exists());
    assert!(snapshot::cgroups(&bundle.id).is_empty());
    Ok(())
}

/// The creation is killed when its container is ready, while it tells somebody of it who does not listen.
#[test]
fn a_created_container_ends_with_a_creation_that_was_not_finished() -> Outcome {
    let bundle = Bundle::new("sleep 1000; true")?;
    let path = bundle.path().join("pidfd.sock");
    let kind = (AddressFamily::UNIX, SocketType::STREAM);
    let listener = rustix::net::socket(kind.0, kind.1, None)?;
    let address = SocketAddrUnix::new(&path)?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, 0)?;
    // The one connection that it queues.
    let first = rustix::net::socket(kind.0, kind.1, None)?;
    rustix::net::connect(&first, &address)?;
    let socket = path.to_string_lossy();
    let mut command = bundle.command(&["create", "--pidfd-socket", &socket, &bundle.id])?;
    let directory = bundle.state_root().join(&bundle.id);
    fs::create_dir(bundle.state_root())?;
    let mut creation = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    watch::file(&directory, Deadline::in_seconds(20))?;
    watch::file(&directory.join("state.json"), Deadline::in_seconds(20))?;
    let pid = bundle.pid()?;
    assert!(creation.try_wait()?.is_none(), "nobody takes its connection");
    creation.kill()?;
    creation.wait()?;
    process::wait_gone(pid, Deadline::in_seconds(5))?;
    assert_eq!(bundle.status()?, "stopped");
    bundle.wright(&["delete", &bundle.id])?.ok()?;
    Ok(())
}

#[test]
fn exec_runs_inside_with_output_and_exit_code() -> Outcome {
    // A shell would become the last of its commands.
    let bundle = Bundle::new("echo up; sleep 1000; true")?;
    bundle.create()?.ok()?;
    bundle.wright(&["start", &bundle.id])?.ok()?;
    wait_for_output(&bundle, "up")?;
    let ran = bundle.wright(&["exec", &bundle.id, "sh", "-c", "echo $0 $(cat /proc/1/comm); exit 3"])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "sh sh\n"), "{ran:?}");
    let ran = bundle.wright(&[
        "exec",
        "--env",
        "A=b",
        "--cwd",
        "/tmp",
        "--user",
        "1000:1000",
        &bundle.id,
        "sh",
        "-c",
        "echo $A $PWD $(id -u)",
    ])?;
    assert_eq!(ran.ok()?, "b /tmp 1000\n");
    let missing = bundle.wright(&["exec", &bundle.id, "/no/such/program"])?;
    assert!(missing.code == 255 && missing.stderr.contains("/no/such/program"), "{missing:?}");
    bundle.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
    Ok(())
}

#[test]
fn list_shows_what_is_there() -> Outcome {
    let bundle = Bundle::new("sleep 1000")?;
    std::fs::create_dir(bundle.state_root())?;
    assert_eq!(bundle.wright(&["list", "-q"])?.ok()?, "");
    bundle.create()?.ok()?;
    let table = bundle.wright(&["list"])?.ok()?;
    let head: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(head, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert_eq!(bundle.wright(&["list", "-q"])?.ok()?, format!("{}\n", bundle.id));
    let json: Value = serde_json::from_str(&bundle.wright(&["list", "-f", "json"])?.ok()?)?;
    assert_eq!((&json[0]["id"], &json[0]["status"]), (&bundle.id.as_str().into(), &"created".into()));
    Ok(())
}

#[test]
fn an_id_in_use_and_a_bad_id_are_refused() -> Outcome {
    let bundle = Bundle::new("sleep 1000")?;
    bundle.create()?.ok()?;
    let twice = bundle.create()?;
    assert!(twice.code == 1 && twice.stderr.contains("container with given ID already exists"), "{twice:?}");
    for id in ["../x", "a/b", "", ".."] {
        let refused = bundle.wright(&["create", id])?;
        assert!(
            refused.code != 0 && refused.stderr.contains("invalid container ID format"),
            "{id:?}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_missing_program_fails_create_and_leaves_nothing() -> Outcome {
    let bundle = Bundle::new("true")?;
    bundle.edit(|spec| spec["process"]["args"] = serde_json::json!(["/run.sh"]))?;
    let failed = bundle.wright(&["run", &bundle.id])?;
    assert!(failed.code != 0, "{failed:?}");
    assert!(failed.stderr.contains("exec /run.sh: no such file or directory"), "{failed:?}");
    assert!(podwright_tests::snapshot::cgroups(&bundle.id).is_empty());
    assert!(!bundle.state_root().join(&bundle.id).exists());
    Ok(())
}

#[test]
fn kill_all_reaches_every_process() -> Outcome {
    let bundle = Bundle::new("trap '' TERM; (trap '' TERM; sleep 4444) & echo up; wait")?;
    bundle.create()?.ok()?;
    bundle.wright(&["start", &bundle.id])?.ok()?;
    wait_for_output(&bundle, "up")?;
    let pid = bundle.pid()?;
    bundle.wright(&["kill", "--all", &bundle.id, "KILL"])?.ok()?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    let left: Vec<_> = process::belonging_to(&bundle.id)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn pause_and_resume() -> Outcome {
    let bundle = Bundle::new("echo up; sleep 1000")?;
    bundle.create()?.ok()?;
    bundle.wright(&["start", &bundle.id])?.ok()?;
    wait_for_output(&bundle, "up")?;
    bundle.wright(&["pause", &bundle.id])?.ok()?;
    assert_eq!(bundle.status()?, "paused");
    let refused = bundle.wright(&["exec", &bundle.id, "true"])?;
    assert!(refused.code != 0 && refused.stderr.contains("cannot exec in a paused container"), "{refused:?}");
    bundle.wright(&["resume", &bundle.id])?.ok()?;
    assert_eq!(bundle.status()?, "running");
    assert_eq!(bundle.wright(&["exec", &bundle.id, "true"])?.code, 0);
    bundle.wright(&["kill", &bundle.id, "KILL"])?.ok()?;
    Ok(())
}
