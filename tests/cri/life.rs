//! How a container is asked to stop, what is told of its end, and what a RuntimeClass handler decides.

use std::fs;

use anyhow::Context as _;
use podwright_tests::{
    BusyboxRoot, Container, Deadline, Node, NodeOptions, Outcome, PodBuilder, Wire, pod, skip, snapshot, v1,
};
use prost::Message as _;
use serde_json::json;
use tonic::Code;

/// Fields of the contract that the binding is too old for, and numbers of its enumeration Signal.
const CONFIG_STOP_SIGNAL: u32 = 18;
const STATUS_STOP_SIGNAL: u32 = 19;
const SIGINT: u64 = 10;
const SIGTERM: u64 = 23;
const SIGUSR1: u64 = 29;

/// The stop signal as ContainerStatus tells it.
fn told_signal(container: &Container<'_>, client: &podwright_tests::Client) -> anyhow::Result<Option<u64>> {
    let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
    let answer = client.raw("/runtime.v1.RuntimeService/ContainerStatus", request.encode_to_vec())?;
    answer.number(&[1, STATUS_STOP_SIGNAL])
}

/// Says which signals came, and ends with the one that was asked for.
const LISTENER: &str = "trap 'echo got TERM; exit 1' TERM; trap 'echo got INT; exit 2' INT; \
                        trap 'echo got USR1; exit 3' USR1; echo up; while true; do sleep 0.05; done";

#[test]
fn the_stop_signal_is_the_requests_then_the_images_then_term() -> Outcome {
    let node = Node::start()?;
    BusyboxRoot::with_sidecar(&node.roots(), "polite", &json!({ "StopSignal": "SIGINT" }))?;
    let pod = PodBuilder::new(&node, "signals").run(&node)?;
    let asked = |signal| Wire::default().varint(CONFIG_STOP_SIGNAL, signal);
    let cases = [
        ("busybox", Wire::default(), SIGTERM, 1),
        ("polite", Wire::default(), SIGINT, 2),
        ("polite", asked(SIGUSR1), SIGUSR1, 3),
    ];
    for (image, newer, signal, code) in cases {
        let container = pod.sh(LISTENER).image(image).create_with(&newer)?;
        assert_eq!(told_signal(&container, &pod.client)?, Some(signal), "{image}");
        container.start()?;
        container.wait_for_log_line("up")?;
        container.stop(600)?;
        assert_eq!(container.status()?.exit_code, code, "{image}: {:?}", container.log_lines()?);
        assert_eq!(told_signal(&container, &pod.client)?, Some(signal), "of an exited one too");
    }
    let error = pod.sh(LISTENER).create_with(&asked(1000)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert!(error.message().contains("stop_signal"), "{error:?}");
    Ok(())
}

#[test]
fn a_second_stop_waits_and_does_not_signal_again() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "again").run(&node)?;
    let script =
        "trap 'echo got TERM' TERM; trap 'echo told; exit 0' USR1; echo up; while true; do sleep 0.05; done";
    let container = pod.sh(script).start()?;
    container.wait_for_log_line("up")?;
    let first = {
        let client = node.client()?;
        let id = container.id.clone();
        std::thread::spawn(move || client.stop(&id, 600))
    };
    container.wait_for_log_line("got TERM")?;
    let second = {
        let client = node.client()?;
        let id = container.id.clone();
        std::thread::spawn(move || client.stop(&id, 600))
    };
    // A call that is answered after the second stop was received: a signal of that would have come.
    container.exec("sleep 0.3; kill -USR1 1")?;
    first.join().expect("the first stop")?;
    second.join().expect("the second stop")?;
    let lines = container.log_lines()?;
    assert_eq!(lines.iter().filter(|line| line.text == "got TERM").count(), 1, "{lines:?}");
    assert_eq!(container.status()?.exit_code, 0);
    Ok(())
}

#[test]
fn a_shorter_grace_period_ends_a_stop_that_waits() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "shorter").run(&node)?;
    let container = pod.sh("trap '' TERM; echo up; while true; do sleep 0.05; done").start()?;
    container.wait_for_log_line("up")?;
    let patient = {
        let client = node.client()?;
        let id = container.id.clone();
        std::thread::spawn(move || client.stop(&id, 600))
    };
    let deadline = Deadline::in_seconds(30);
    container.stop(0)?;
    patient.join().expect("the patient stop")?;
    assert!(deadline.left().is_some());
    assert_eq!(container.status()?.exit_code, 137);
    Ok(())
}

#[test]
fn an_end_has_its_reason_message_and_times() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "ends").run(&node)?;
    let (status, _) = pod.sh("exit 3").run()?;
    assert_eq!((status.exit_code, status.reason.as_str(), status.message.as_str()), (3, "Error", ""));
    // Nanoseconds since the epoch: in this century, and not rounded to more than they are, three times over.
    assert!(status.created_at > 1_000_000_000_000_000_000, "{status:?}");
    assert!([status.created_at, status.started_at, status.finished_at].iter().any(|t| t % 1_000_000 != 0));

    let missing = pod.command(&["/no/such"]).create()?;
    missing.start().unwrap_err();
    let status = missing.status()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (127, "ContainerCannotRun"), "{status:?}");
    assert!(status.message.contains("/no/such"), "{status:?}");
    assert_eq!(status.started_at, 0, "it never ran");
    assert!(status.finished_at >= status.created_at, "{status:?}");

    // Killed before it was started, by its removal from below.
    let created = pod.command(&["true"]).create()?;
    podwright_tests::process::signal(created.pid()?, rustix::process::Signal::KILL)?;
    let status = created.wait()?;
    assert_eq!((status.exit_code, status.started_at), (137, 0), "{status:?}");
    let error = created.start().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    Ok(())
}

#[test]
fn restarts_are_attempts_of_one_name() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "restarts").run(&node)?;
    for attempt in 0..3 {
        let (status, _) = pod
            .sh(&format!("exit {attempt}"))
            .name("main")
            .with(|config| {
                config.metadata.get_or_insert_default().attempt = attempt;
                config.log_path = format!("main/{attempt}.log");
            })
            .run()?;
        assert_eq!(status.metadata.context("metadata")?.attempt, attempt);
        assert!(status.log_path.ends_with(&format!("main/{attempt}.log")), "{}", status.log_path);
    }
    let mut attempts: Vec<_> = pod
        .client
        .containers()?
        .into_iter()
        .filter(|container| container.pod_sandbox_id == pod.id)
        .filter_map(|container| container.metadata.map(|metadata| (metadata.name, metadata.attempt)))
        .collect();
    attempts.sort();
    assert_eq!(attempts, [0, 1, 2].map(|attempt| ("main".to_owned(), attempt)));
    Ok(())
}

const HANDLERS: &str = r#"
[runtime.handlers.hooked]
pod_annotations = ["example.com/*"]
container_annotations = ["*.device", "exact"]
log_part_bytes = 64
[runtime.handlers.nodevices]
privileged_without_host_devices = true
[runtime.handlers.accessonly]
privileged_without_host_devices = true
privileged_without_host_devices_all_devices_allowed = true
cgroup_writable = true
"#;

fn handlers() -> anyhow::Result<Node> {
    Node::with(&NodeOptions { extra_config: HANDLERS.to_owned(), ..Default::default() })
}

/// The annotations of a container's spec.
fn spec_annotations(pod: &podwright_tests::Pod) -> anyhow::Result<serde_json::Value> {
    let container = pod
        .command(&["true"])
        .with(|config| {
            config.annotations = pod::labels(&[("gpu.device", "c"), ("exact", "c"), ("exactly", "c")]);
        })
        .create()?;
    assert_eq!(container.status()?.annotations.len(), 3, "all are told");
    let info: serde_json::Value = serde_json::from_str(&pod.client.container_info(&container.id)?["info"])?;
    Ok(info["runtimeSpec"]["annotations"].clone())
}

#[test]
fn a_handler_is_known_by_its_name() -> Outcome {
    let node = handlers()?;
    let client = node.client()?;
    let status = client.status(v1::StatusRequest::default())?;
    let names: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "accessonly", "hooked", "nodevices"]);
    assert!(status.runtime_handlers.iter().all(|handler| handler.features.is_some()));

    let pod = PodBuilder::new(&node, "hooked").handler("hooked").run(&node)?;
    assert_eq!(pod.status()?.runtime_handler, "hooked");
    assert_eq!(client.pods()?[0].runtime_handler, "hooked");
    let (_, lines) = pod.sh("head -c 100 /dev/zero | tr '\\0' x; echo").run()?;
    assert_eq!(lines.iter().map(|line| line.tag.as_str()).collect::<Vec<_>>(), ["P", "F"], "log_part_bytes");
    let error = client
        .run_pod_sandbox(v1::RunPodSandboxRequest {
            config: Some(PodBuilder::new(&node, "kata").config),
            runtime_handler: "kata".to_owned(),
        })
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert!(error.message().contains("runtime.handlers"), "it says what to do: {error:?}");
    Ok(())
}

#[test]
fn annotations_are_told_and_pass_only_where_the_handler_says_so() -> Outcome {
    let node = handlers()?;
    let builder = |name: &str| {
        PodBuilder::new(&node, name)
            .with(|config| config.annotations = pod::labels(&[("example.com/a", "p"), ("other", "p")]))
    };
    let plain = builder("plain").run(&node)?;
    assert_eq!(plain.status()?.annotations.len(), 2);
    let annotations = spec_annotations(&plain)?;
    for key in ["example.com/a", "other", "gpu.device", "exact"] {
        assert!(annotations[key].is_null(), "{key}: {annotations}");
    }
    let hooked = builder("hooked").handler("hooked").run(&node)?;
    let annotations = spec_annotations(&hooked)?;
    for (key, value) in [("example.com/a", "p"), ("gpu.device", "c"), ("exact", "c")] {
        assert_eq!(annotations[key], value, "{annotations}");
    }
    assert!(annotations["other"].is_null() && annotations["exactly"].is_null(), "{annotations}");
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], hooked.id.as_str());
    Ok(())
}

#[test]
fn a_privileged_container_has_the_devices_of_its_handler() -> Outcome {
    let node = handlers()?;
    let nodes = |handler: &str| -> anyhow::Result<(usize, String)> {
        let pod = PodBuilder::new(&node, &format!("p{handler}"))
            .handler(handler)
            .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
            .run(&node)?;
        // Memory's device 1:1 is none of those that every container may use.
        let output = pod
            .sh("find /dev -type c -o -type b | wc -l; mknod /tmp/mem c 1 1; (: </tmp/mem) 2>&1 | grep -c permitted")
            .security(|security| security.privileged = true)
            .run()?
            .1;
        let text = |n: usize| output.get(n).map(|line| line.text.clone()).unwrap_or_default();
        Ok((text(0).parse()?, text(1)))
    };
    let (all, _) = nodes("")?;
    let (without, denied) = nodes("nodevices")?;
    let (access, _) = nodes("accessonly")?;
    let beyond = fs::read_dir("/dev")?.flatten().filter(|entry| is_device(&entry.path())).count() > 7;
    assert!(!beyond || all > without, "{all} {without}");
    assert_eq!(without, access);
    assert_eq!(denied, "1", "without the devices, without the access");
    Ok(())
}

fn is_device(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() || metadata.file_type().is_block_device())
}

#[test]
fn cgroups_can_be_made_below_where_the_handler_says_so() -> Outcome {
    if !snapshot::unified() {
        skip::skip("cgroups_can_be_made_below_where_the_handler_says_so", "cgroup v1 has no delegation");
        return Ok(());
    }
    let node = handlers()?;
    let script = "mkdir /sys/fs/cgroup/below 2>/dev/null && echo made || echo refused";
    let plain = PodBuilder::new(&node, "plain").run(&node)?;
    assert_eq!(plain.sh(script).output()?, "refused\n");
    let writable = PodBuilder::new(&node, "writable").handler("accessonly").run(&node)?;
    assert_eq!(writable.sh(script).output()?, "made\n");
    Ok(())
}
