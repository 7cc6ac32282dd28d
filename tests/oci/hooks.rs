//! Lifecycle hooks at their six points.

use std::fs;

use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, process, seconds};
use serde_json::{Value, json};

/// A hook that appends its name, and the status it is told, to a file.
fn recorder(bundle: &Bundle, point: &str) -> Value {
    let file = bundle.path().join("hooks");
    let script = format!(
        "state=$(cat); status=${{state#*status\\\":\\\"}}; echo {point} ${{status%%\\\"*}} >> {}",
        file.display()
    );
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

#[test]
fn every_point_comes_in_its_turn() -> Outcome {
    let bundle = Bundle::new("sleep 0.1")?;
    let points = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let inside =
        json!({"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/start-container"], "env": ["PATH=/bin"]});
    bundle.edit(|spec| {
        for point in points {
            spec["hooks"][point] = json!([recorder(&bundle, point)]);
        }
        spec["hooks"]["startContainer"] = json!([inside]);
    })?;
    bundle.wright(&["run", &bundle.id])?.ok()?;
    let order = fs::read_to_string(bundle.path().join("hooks"))?;
    assert_eq!(
        order,
        "prestart creating\ncreateRuntime creating\ncreateContainer creating\npoststart running\npoststop stopped\n"
    );
    let state: Value = serde_json::from_slice(&fs::read(bundle.path().join("rootfs/tmp/start-container"))?)?;
    assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("created")));
    Ok(())
}

#[test]
fn a_hook_that_fails_ends_the_creation() -> Outcome {
    let bundle = Bundle::new("true")?;
    for point in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
        bundle.edit(|spec| {
            let fine = json!({"path": "/bin/true"});
            let broken = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo it broke >&2; exit 9"]});
            spec["hooks"] = json!({point: [fine, broken]});
        })?;
        let ran = bundle.wright(&["run", &bundle.id])?;
        let words = format!("error running {point} hook #1:");
        assert!(
            ran.code == 1 && ran.stderr.contains(&words) && ran.stderr.contains("it broke"),
            "{point}: {ran:?}"
        );
        assert!(!bundle.state_root().join(&bundle.id).exists(), "{point}");
        assert!(podwright_tests::snapshot::cgroups(&bundle.id).is_empty(), "{point}");
    }
    Ok(())
}

#[test]
fn a_poststart_hook_that_fails_stops_the_container() -> Outcome {
    let bundle = Bundle::new("sleep 1000; true")?;
    let after = bundle.path().join("after");
    bundle.edit(|spec| {
        let late = json!({"path": "/bin/sh", "args": ["sh", "-c", format!(": > {}", after.display())]});
        spec["hooks"] = json!({"poststart": [{"path": "/bin/false"}, late]});
    })?;
    bundle.create()?.ok()?;
    let pid = bundle.pid()?;
    let started = bundle.wright(&["start", &bundle.id])?;
    assert!(started.code == 1 && started.stderr.contains("error running poststart hook #0:"), "{started:?}");
    process::wait_gone(pid, Deadline::in_seconds(5))?;
    assert_eq!(bundle.status()?, "stopped");
    assert!(!after.exists(), "the hooks after it do not run");
    bundle.wright(&["delete", &bundle.id])?.ok()?;
    Ok(())
}

#[test]
fn a_hook_past_its_timeout_is_killed() -> Outcome {
    let bundle = Bundle::new("true")?;
    let pid_file = bundle.path().join("hook.pid");
    let script = format!("echo $$ > {}; sleep 5555", pid_file.display());
    // Enough for it to have said who it is.
    let timeout = seconds(3).as_secs();
    bundle.edit(|spec| {
        spec["hooks"]["createRuntime"] = json!([
            {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"], "timeout": timeout}
        ]);
    })?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    assert!(ran.code == 1 && ran.stderr.contains("timeout"), "{ran:?}");
    let pid: u32 = fs::read_to_string(pid_file)?.trim().parse()?;
    process::wait_gone(pid, Deadline::in_seconds(5))
}

#[test]
fn hooks_get_no_environment_and_no_descriptor_of_ours() -> Outcome {
    let bundle = Bundle::new("true")?;
    let file = bundle.path().join("seen");
    let script =
        format!("{{ tr '\\0' '\\n' < /proc/self/environ; ls /proc/self/fd; pwd; }} > {}", file.display());
    bundle.edit(|spec| {
        spec["hooks"]["createRuntime"] = json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}]);
    })?;
    let mut command = bundle.command(&["run", &bundle.id])?;
    command.env("SECRET", "1").output()?;
    let seen = fs::read_to_string(file)?;
    assert!(!seen.contains("SECRET"), "{seen}");
    assert!(seen.trim_end().ends_with(&*bundle.path().canonicalize()?.to_string_lossy()), "{seen}");
    let descriptors: Vec<u32> = seen.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(descriptors.iter().all(|fd| *fd <= 3), "{seen}");
    Ok(())
}
