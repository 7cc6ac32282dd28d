//! A monitor dies: its pod is ended and said to be, and nothing runs on unseen.

use std::fs;

use anyhow::Context as _;
use podwright_tests::streaming::{Streaming, V5};
use podwright_tests::{Deadline, HostSnapshot, Node, Outcome, PodBuilder, process, v1, watch};
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
fn execs_behind_a_broken_connection_keep_their_results() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let pod = PodBuilder::new(&node, "broken").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).mount(&data, "/data", false).start()?;
    let script = "echo said; touch /data/$0; while [ ! -e /data/go-$0 ]; do sleep 0.05; done; exit 7";
    let request = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-c", script, "streamed"].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let streamed = Streaming::open(&pod.client.exec(request)?.url, Some(V5))?;
    let client = node.client()?;
    let (monitor, daemon) = (node.monitor_of(&pod.id)?, node.daemon_pid()?);
    let result = std::thread::scope(|scope| -> anyhow::Result<_> {
        let started = |name: &str| watch::file(&data.join(name), Deadline::in_seconds(30));
        let go = |name: &str| fs::write(data.join(format!("go-{name}")), "");
        let run = |name: &'static str| {
            let (client, id) = (&client, container.id.clone());
            scope.spawn(move || client.exec_in(&id, &["/bin/sh", "-c", script, name], 0))
        };
        let (later, meanwhile) = (run("later"), run("meanwhile"));
        for name in ["streamed", "later", "meanwhile"] {
            started(name)?;
        }
        // One ends while nobody can be told, the others when they can again.
        process::signal(daemon, Signal::STOP)?;
        process::break_connections(monitor)?;
        let inside = node.pod_processes()?;
        let ending = inside.iter().find(|process| process.command.ends_with(" meanwhile"));
        let ending = ending.context("the process that ends meanwhile")?.pid;
        go("meanwhile")?;
        process::wait_gone(ending, Deadline::in_seconds(20))?;
        process::signal(daemon, Signal::CONT)?;
        let meanwhile = meanwhile.join().expect("the call does not panic")?;
        for name in ["later", "streamed"] {
            go(name)?;
        }
        Ok([meanwhile, later.join().expect("the call does not panic")?])
    });
    for output in result? {
        assert_eq!((output.code, output.stdout.as_str()), (7, "said\n"));
    }
    let streamed = streamed.finish()?;
    assert_eq!((streamed.code()?, streamed.stdout.as_str()), (7, "said\n"));
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
