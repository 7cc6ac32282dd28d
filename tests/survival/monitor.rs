//! A monitor dies: its pod is ended and said to be, and nothing runs on unseen.

use podwright_tests::{Deadline, HostSnapshot, Node, Outcome, PodBuilder, process, v1};
use rustix::process::Signal;

#[test]
fn a_lost_monitor_ends_its_pod() -> Outcome {
    let node = Node::start()?;
    PodBuilder::new(&node, "warm").run(&node)?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let other = PodBuilder::new(&node, "other").run(&node)?;
    let bystander = other.command(&["sleep", "1000"]).start()?;
    let pod = PodBuilder::new(&node, "lost").run(&node)?;
    let container = pod.sh("trap '' TERM; sleep 1000 & wait").start()?;
    let exited = pod.sh("exit 3").start()?;
    exited.wait()?;
    let pid = container.pid()?;

    process::signal(node.monitor_of(&pod.id)?, Signal::KILL)?;
    let status = container.wait()?;
    // Nobody was there to see the code; what is told must not look like success.
    assert_ne!(status.exit_code, 0, "{status:?}");
    assert_eq!(status.reason, "MonitorLost", "{status:?}");
    assert!(status.finished_at >= status.started_at, "{status:?}");
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    pod.client.wait_for_pod_state(&pod.id, v1::PodSandboxState::SandboxNotready, Deadline::in_seconds(20))?;
    assert_eq!(exited.status()?.exit_code, 3, "what had ended keeps its code");
    assert_eq!(bystander.state()?, v1::ContainerState::ContainerRunning, "other pods do not notice");
    let left: Vec<_> = podwright_tests::snapshot::cgroups(&container.id)
        .into_iter()
        .filter(|cgroup| {
            std::fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");

    pod.stop()?;
    pod.remove()?;
    other.remove()?;
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn a_monitor_lost_while_no_daemon_runs_is_found_by_the_next() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "lost").run(&node)?;
    let container = pod.sh("trap '' TERM HUP; sleep 1000 & wait").start()?;
    let (pid, monitor) = (container.pid()?, node.monitor_of(&pod.id)?);
    node.kill9()?;
    process::signal(monitor, Signal::KILL)?;
    process::wait_gone(monitor, Deadline::in_seconds(10))?;
    node.launch()?;
    let status = node.client()?.wait_for_exit(&container.id, Deadline::in_seconds(20))?;
    assert_eq!(status.reason, "MonitorLost", "{status:?}");
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    assert_eq!(node.client()?.pod(&pod.id)?.state(), v1::PodSandboxState::SandboxNotready);
    Ok(())
}

#[test]
fn a_broken_connection_is_made_again_and_costs_no_pod() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "broken").run(&node)?;
    let container = pod.sh("trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait; done").start()?;
    container.wait_for_log_line("up")?;
    let monitor = node.monitor_of(&pod.id)?;

    process::break_connections(monitor)?;
    // The stop signal waits for the new connection, and comes.
    container.stop(60)?;
    assert_eq!(container.status()?.exit_code, 5, "{:?}", container.status()?);
    assert_eq!(pod.status()?.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(node.monitor_of(&pod.id)?, monitor);
    assert_eq!(pod.sh("echo again").output()?, "again\n");

    process::break_connections(monitor)?;
    pod.stop()?;
    process::wait_gone(monitor, Deadline::in_seconds(20))?;
    pod.remove()?;
    Ok(())
}

#[test]
fn an_exit_behind_a_broken_connection_is_told() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "broken").run(&node)?;
    let container = pod.sh("trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait; done").start()?;
    container.wait_for_log_line("up")?;
    let pid = container.pid()?;
    let daemon = node.daemon_pid()?;
    process::signal(daemon, Signal::STOP)?;
    process::break_connections(node.monitor_of(&pod.id)?)?;
    process::signal(pid, Signal::TERM)?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    process::signal(daemon, Signal::CONT)?;
    let status = container.wait()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"), "{status:?}");
    Ok(())
}

#[test]
fn a_pause_that_dies_makes_the_pod_not_ready() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "pause").run(&node)?;
    let info: serde_json::Value = serde_json::from_str(&pod.client.pod_info(&pod.id)?["info"])?;
    let pause = u32::try_from(info["pid"].as_u64().unwrap())?;
    process::signal(pause, Signal::KILL)?;
    pod.client.wait_for_pod_state(&pod.id, v1::PodSandboxState::SandboxNotready, Deadline::in_seconds(20))?;
    Ok(())
}

#[test]
fn the_monitor_has_one_thread_and_dies_of_no_common_signal() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "thread").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let monitor = node.monitor_of(&pod.id)?;
    let threads = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).map(Iterator::count);
    assert_eq!(threads(monitor)?, 1);
    for signal in [Signal::HUP, Signal::INT, Signal::PIPE, Signal::TERM] {
        process::signal(monitor, signal)?;
    }
    assert_eq!(container.exec("echo alive")?.stdout, "alive\n");
    assert_eq!(threads(monitor)?, 1);
    Ok(())
}
