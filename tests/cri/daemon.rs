//! The daemon as a service: configuration, signals, locks.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use podwright_tests::oci::Ran;
use podwright_tests::skip::skip;
use podwright_tests::{
    Client, Deadline, Node, NodeOptions, Outcome, PodBuilder, binaries, process, temporary, v1, watch,
};
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
    let directory = temporary::directory()?;
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
    let directory = temporary::directory()?;
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

/// Whether another user, who is in the group 65534 only, may write to the node's socket.
fn others_may_connect(node: &Node) -> anyhow::Result<bool> {
    let status = Command::new("/bin/busybox")
        .args(["test", "-w"])
        .arg(node.socket())
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::null())
        .status()?;
    Ok(status.success())
}

#[test]
fn only_its_own_user_and_the_configured_group_may_connect() -> Outcome {
    let node = Node::start()?;
    // What is above the socket is the test's, and closed to others by itself.
    fs::set_permissions(node.path(), fs::Permissions::from_mode(0o711))?;
    assert_eq!(fs::metadata(node.socket())?.mode() & 0o777, 0o600);
    assert!(!others_may_connect(&node)?, "another user can write to the socket");
    fs::write(node.path().join("config.toml.d/10-group.toml"), "[server]\ngroup = \"65534\"\n")?;
    node.restart()?;
    let socket = fs::metadata(node.socket())?;
    assert_eq!((socket.mode() & 0o777, socket.gid()), (0o660, 65534));
    assert!(others_may_connect(&node)?, "the group cannot write to the socket");
    Ok(())
}

/// As systemd starts it with podwrightd.socket: the listener is descriptor 3, and stays when the daemon ends.
#[test]
fn a_socket_that_was_bound_by_somebody_else_is_served() -> Outcome {
    let node = Node::start()?;
    node.terminate()?;
    let path = node.path().join("run/inherited.sock");
    let listener = UnixListener::bind(&path)?;
    let mut daemon = Command::new("/bin/busybox")
        .args(["sh", "-c"])
        .arg("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --config \"$1\" 3<&0 0</dev/null")
        .arg(binaries::find("podwrightd")?)
        .arg(node.config_file())
        .stdin(OwnedFd::from(listener.try_clone()?))
        .stderr(Stdio::null())
        .spawn()?;
    // The connection waits in the listener until the daemon takes it.
    let version = Client::connect(&path)?.version(v1::VersionRequest::default());
    process::signal(daemon.id(), Signal::TERM)?;
    process::wait_gone(daemon.id(), Deadline::in_seconds(20))?;
    assert!(daemon.wait()?.success());
    assert_eq!(version?.runtime_name, "podwright");
    assert!(path.exists(), "it is not the daemon's to remove");
    node.launch()
}

/// The steps of a pod's life in the daemon and in its monitor, as lines of one log.
#[test]
fn a_step_in_the_monitor_is_found_from_its_rpc() -> Outcome {
    let options = NodeOptions {
        extra_config: "[log]\nlevel = \"debug\"\nformat = \"json\"\n".to_owned(),
        ..Default::default()
    };
    let node = Node::with(&options)?;
    let pod = PodBuilder::new(&node, "traced").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    container.exec("true")?;
    container.stop(0)?;
    pod.remove()?;
    let log = fs::read_to_string(node.daemon_log())?;
    let lines: Vec<serde_json::Value> =
        log.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("every line is JSON")?;

    // The daemon's end of a request is a span below the RPC's.
    let trace_of = |rpc: &str, step: &str| -> anyhow::Result<String> {
        let asked = lines.iter().find(|line| {
            let within = |name: &str, key: &str, value: &str| {
                let spans = line["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
                spans.iter().any(|span| span["name"] == name && (key.is_empty() || span[key] == value))
            };
            line["span"]["name"] == "monitor_request"
                && line["time.busy"].is_string()
                && within("rpc", "path", &format!("/runtime.v1.RuntimeService/{rpc}"))
                && within(step, "", "")
        });
        let asked = asked.with_context(|| format!("no {step} below {rpc} in the log:\n{log}"))?;
        Ok(asked["span"]["trace"].as_str().context("it has a trace")?.to_owned())
    };
    for (rpc, step, span) in [
        ("RunPodSandbox", "pause_start", "pause_start"),
        ("CreateContainer", "clone_init", "container_create"),
        ("StartContainer", "start_container", "monitor_request"),
        ("ExecSync", "exec_sync", "exec"),
        ("StopContainer", "stop_container", "monitor_request"),
    ] {
        let trace = trace_of(rpc, step)?;
        let told = lines.iter().find(|line| line["trace"] == trace.as_str() && line["span"] == span);
        let told =
            told.with_context(|| format!("{span} of {rpc} (trace {trace}) is not in the log:\n{log}"))?;
        assert!(told["us"].is_u64(), "it has its duration: {told}");
    }
    Ok(())
}
