//! The daemon as a service: configuration, signals, locks.

use std::fs;
use std::process::{Command, Stdio};

use podwright_tests::oci::Ran;
use podwright_tests::skip::skip;
use podwright_tests::{Deadline, Node, Outcome, PodBuilder, binaries, process, v1, watch};
use rustix::process::Signal;

fn podwrightd(arguments: &[&str]) -> anyhow::Result<Ran> {
    let program = binaries::find("podwrightd")?;
    Ok(Command::new(program).args(arguments).stdin(Stdio::null()).output()?.into())
}

#[test]
fn check_reads_the_configuration_and_starts_nothing() -> Outcome {
    let node = Node::start()?;
    let good = podwrightd(&["--config", node.config_file().to_str().unwrap(), "--check"])?;
    assert_eq!(good.code, 0, "{good:?}");
    let bad = node.path().join("bad.toml");
    fs::write(&bad, "[server]\nsokcet = \"/x\"\n")?;
    let refused = podwrightd(&["--config", bad.to_str().unwrap(), "--check"])?;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("sokcet") && refused.stderr.contains("bad.toml"), "{refused:?}");
    Ok(())
}

#[test]
fn the_example_configuration_is_valid() -> Outcome {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("config.toml");
    fs::write(&file, include_str!("../../manifests/config.toml"))?;
    podwrightd(&["--config", file.to_str().unwrap(), "--check"])?.ok()?;
    Ok(())
}

#[test]
fn the_units_are_valid() -> Outcome {
    let found = Command::new("systemd-analyze").arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip("daemon::the_units_are_valid", "systemd-analyze is not installed");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let units = [
        ("podwrightd.service", include_str!("../../manifests/podwrightd.service")),
        ("podwrightd.socket", include_str!("../../manifests/podwrightd.socket")),
    ];
    for (name, text) in units {
        let programs = binaries::find("podwrightd")?.parent().unwrap().to_string_lossy().into_owned();
        fs::write(directory.path().join(name), text.replace("@PREFIX@/bin", &programs))?;
    }
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(directory.path().join("podwrightd.service"))
        .output()?;
    Ran::from(verified).ok()?;
    Ok(())
}

#[test]
fn one_daemon_per_directory() -> Outcome {
    let node = Node::start()?;
    let text = fs::read_to_string(node.config_file())?.replace("podwright.sock", "second.sock");
    let second = node.path().join("second.toml");
    fs::write(&second, text)?;
    let refused = podwrightd(&["--config", second.to_str().unwrap()])?;
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(
        refused.stderr.contains(&node.path().join("state").to_string_lossy().into_owned()),
        "{refused:?}"
    );
    node.client()?.version(v1::VersionRequest::default())?;
    Ok(())
}

#[test]
fn a_hangup_reloads_roots_and_aliases() -> Outcome {
    let node = Node::start()?;
    let pull = |reference: &str| -> anyhow::Result<bool> {
        let image = Some(v1::ImageSpec { image: reference.to_owned(), ..Default::default() });
        Ok(node.client()?.pull_image(v1::PullImageRequest { image, ..Default::default() }).is_ok())
    };
    assert!(!pull("example.com/web:1")?);
    fs::write(
        node.path().join("config.toml.d/50-web.toml"),
        "[rootfs.aliases]\n\"example.com/web:1\" = \"busybox\"\n",
    )?;
    let state = node.path().join("run/podwrightd.json");
    node.signal(Signal::HUP)?;
    watch::content(&state, Deadline::in_seconds(10), |bytes| {
        let state: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        (state["reloads"].as_u64()? > 0).then_some(())
    })?;
    assert!(pull("example.com/web:1")?);
    // What cannot be read is refused, and what was in force stays in force.
    fs::write(node.path().join("config.toml.d/60-bad.toml"), "not toml at all [")?;
    node.signal(Signal::HUP)?;
    watch::content(&state, Deadline::in_seconds(10), |bytes| {
        let state: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        state["reload_error"].as_str().filter(|error| error.contains("60-bad")).map(drop)
    })?;
    assert!(pull("example.com/web:1")?);
    fs::remove_file(node.path().join("config.toml.d/60-bad.toml"))?;
    Ok(())
}

#[test]
fn sigterm_ends_the_daemon_and_not_the_pods() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stays").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let pid = container.pid()?;
    let status = node.terminate()?;
    assert!(status.success(), "{status}");
    assert!(process::read(pid).is_some(), "the container goes on");
    node.launch()?;
    let client = node.client()?;
    assert_eq!(client.container(&container.id)?.state(), v1::ContainerState::ContainerRunning);
    Ok(())
}

#[test]
fn a_corrupt_record_is_set_aside() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "good").run(&node)?;
    let broken = "f".repeat(64);
    node.terminate()?;
    fs::create_dir(node.pod_state(&broken))?;
    fs::write(node.pod_state(&broken).join("sandbox.json"), "{ half a rec")?;
    node.launch()?;
    let ids: Vec<_> = node.client()?.pods()?.into_iter().map(|pod| pod.id).collect();
    assert_eq!(ids, std::slice::from_ref(&pod.id));
    assert!(node.log_tail().contains(&broken), "the log says which:\n{}", node.log_tail());
    Ok(())
}

#[test]
fn only_its_own_user_may_connect() -> Outcome {
    let node = Node::start()?;
    let denied = Command::new("/bin/busybox")
        .args(["su", "nobody", "-s", "/bin/sh", "-c"])
        .arg(format!("test -w {}", node.socket().display()))
        .stdin(Stdio::null())
        .status()?;
    assert!(!denied.success(), "another user can write to the socket");
    Ok(())
}
