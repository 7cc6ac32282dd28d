//! The daemon dies, or is restarted: pods do not notice, and the next daemon knows everything.

use std::fs;

use podwright_tests::pod::parse_log;
use podwright_tests::{Deadline, HostSnapshot, Node, Outcome, PodBuilder, process, seconds, v1, watch};

/// A script that writes numbered lines until `/stop` appears, and then exits with 23.
const WRITER: &str =
    "n=0; while [ ! -e /data/stop ]; do n=$((n+1)); echo line $n; done; echo last $n; exit 23";

fn lines_from_one(texts: &[String]) -> usize {
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(*text, format!("line {}", index + 1), "a line is missing or twice");
    }
    texts.len()
}

#[test]
fn kill_9_while_a_container_writes_loses_no_line_and_no_exit() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let pod = PodBuilder::new(&node, "writer").run(&node)?;
    let container = pod.sh(WRITER).mount(&data, "/data", false).start()?;
    container.wait_for_log_line("line 500")?;
    let pid = container.pid()?;
    node.kill9()?;

    // It goes on writing into its log while nobody serves.
    let written = parse_log(&fs::read(&container.log)?).len();
    watch::content(&container.log, Deadline::in_seconds(20), |bytes| {
        (parse_log(bytes).len() > written + 100).then_some(())
    })?;
    // It exits in the gap.
    fs::write(data.join("stop"), "")?;
    process::wait_gone(pid, Deadline::in_seconds(20))?;
    let record = pod.container_records(&container.id).join("exit.json");
    watch::content(&record, Deadline::in_seconds(20), |bytes| (!bytes.is_empty()).then_some(()))?;

    node.launch()?;
    let client = node.client()?;
    let status = client.container(&container.id)?;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (23, "Error"));
    assert!(status.started_at > 0 && status.finished_at > status.started_at, "{status:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    assert!(u128::try_from(status.finished_at)? < now);

    let lines = container.log_lines()?;
    let (last, rest) = lines.split_last().unwrap();
    let count = lines_from_one(&rest.iter().map(|line| line.text.clone()).collect::<Vec<_>>());
    assert_eq!(last.text, format!("last {count}"));
    Ok(())
}

#[test]
fn more_ends_than_fit_into_a_monitors_answer_are_all_known_to_the_next_daemon() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "failures").run(&node)?;
    let lives = pod.command(&["sleep", "1000"]).name("lives").start()?;
    // Each failure tells the program's path, of almost as many bytes as a path can have.
    let program = "/no".repeat(1300);
    let mut failed = Vec::new();
    for number in 0..40 {
        let container = pod.command(&[&program]).name(&format!("failed-{number}")).create()?;
        assert!(container.start().is_err());
        failed.push(container);
    }
    node.kill9()?;
    node.launch()?;
    let client = node.client()?;
    assert_eq!(
        client.container(&lives.id)?.state(),
        v1::ContainerState::ContainerRunning,
        "{}",
        node.log_tail()
    );
    for container in &failed {
        let status = client.container(&container.id)?;
        assert_eq!(status.exit_code, 127, "{status:?}");
        assert!(status.message.contains(&program), "{status:?}");
    }
    Ok(())
}

#[test]
fn an_oom_kill_in_the_gap_keeps_its_reason() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let pod = PodBuilder::new(&node, "oom").run(&node)?;
    let container = pod
        .sh("echo up; while [ ! -e /data/go ]; do sleep 0.05; done; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}")
        .mount(&data, "/data", false)
        .resources(|resources| {
            resources.memory_limit_in_bytes = 24 << 20;
            resources.memory_swap_limit_in_bytes = 24 << 20;
        })
        .start()?;
    container.wait_for_log_line("up")?;
    let pid = container.pid()?;
    node.kill9()?;
    fs::write(data.join("go"), "")?;
    process::wait_gone(pid, Deadline::in_seconds(30))?;
    node.launch()?;
    let status = node.client()?.wait_for_exit(&container.id, Deadline::in_seconds(10))?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    Ok(())
}

#[test]
fn running_pods_can_be_worked_with_after_a_restart() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "restart").own_network().label("app", "x").run(&node)?;
    let container =
        pod.sh("trap 'echo bye; exit 4' TERM; echo up; while true; do sleep 0.05; done").start()?;
    let made = pod.command(&["echo", "made before"]).create()?;
    container.wait_for_log_line("up")?;
    let (before, pid) = (container.status()?, container.pid()?);
    node.restart()?;

    let client = node.client()?;
    let status = client.pod(&pod.id)?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(status.labels["app"], "x");
    let after = client.container(&container.id)?;
    assert_eq!(after, before, "nothing of the status changed");
    assert_eq!(process::read(pid).map(|process| process.pid), Some(pid), "the same process");
    assert_eq!(client.exec_in(&container.id, &["echo", "inside"], 0)?.stdout, "inside\n");
    client.start(&made.id)?;
    assert_eq!(client.wait_for_exit(&made.id, Deadline::in_seconds(20))?.exit_code, 0);
    assert_eq!(made.log_lines()?[0].text, "made before");
    // A log can be reopened and the container stopped, by a daemon that never started it.
    let old = container.log.with_extension("1");
    fs::rename(&container.log, &old)?;
    client.reopen_container_log(v1::ReopenContainerLogRequest { container_id: container.id.clone() })?;
    client.stop(&container.id, 30)?;
    assert_eq!(client.container(&container.id)?.exit_code, 4);
    assert_eq!(container.log_lines()?.last().map(|line| line.text.clone()), Some("bye".to_owned()));
    Ok(())
}

#[test]
fn a_pod_removed_by_the_next_daemon_leaves_nothing() -> Outcome {
    let node = Node::start()?;
    let warm = PodBuilder::new(&node, "warm").own_network().run(&node)?;
    warm.sh("true").run()?;
    warm.remove()?;
    let before = HostSnapshot::take(&node)?;
    let parent = format!("/{}/kubepods/pod1", node.unique());
    let pod = PodBuilder::new(&node, "left")
        .own_network()
        .linux(|linux| linux.cgroup_parent = parent)
        .run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    node.kill9()?;
    node.launch()?;
    let client = node.client()?;
    client.stop(&container.id, 0)?;
    client.stop_pod(&pod.id)?;
    client.remove_pod(&pod.id)?;
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn kill_9_at_any_moment_of_a_pods_making_leaves_nothing_half_made() -> Outcome {
    let node = Node::start()?;
    let warm = PodBuilder::new(&node, "warm").own_network().run(&node)?;
    warm.sh("true").run()?;
    warm.remove()?;
    let before = HostSnapshot::take(&node)?;
    for number in 0..8_u64 {
        let config = PodBuilder::new(&node, &format!("half{number}")).own_network().config;
        fs::create_dir_all(&config.log_directory)?;
        let client = node.client()?;
        client.abandon_run_pod_sandbox(config, std::time::Duration::from_micros(500 * number));
        node.kill9()?;
        node.launch()?;
        for pod in node.client()?.pods()? {
            // Whatever is listed can be used or removed like any other.
            node.client()?.stop_pod(&pod.id)?;
            node.client()?.remove_pod(&pod.id)?;
        }
        before.assert_same(&HostSnapshot::take(&node)?)?;
    }
    Ok(())
}

/// What a process does that the daemon had forked when it was killed, and that was not quick to execute its program.
#[test]
fn a_lock_that_a_dead_daemons_child_still_holds_is_waited_for() -> Outcome {
    let node = Node::start()?;
    node.kill9()?;
    let lock = fs::File::open(node.path().join("state/lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    std::thread::scope(|scope| -> Outcome {
        let launching = scope.spawn(|| node.launch());
        watch::content(&node.daemon_log(), Deadline::in_seconds(20), |bytes| {
            String::from_utf8_lossy(bytes).contains("it is waited for").then_some(())
        })?;
        drop(lock);
        launching.join().unwrap_or_else(|_| anyhow::bail!("the launch panicked"))
    })
}

#[test]
fn a_half_made_pod_goes_although_its_monitor_is_slow_to_answer() -> Outcome {
    let node = Node::start()?;
    PodBuilder::new(&node, "warm").own_network().run(&node)?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let parent = format!("/{}/kubepods/half", node.unique());
    let pod = PodBuilder::new(&node, "half")
        .own_network()
        .linux(|linux| linux.cgroup_parent = parent)
        .run(&node)?;
    let monitor = node.monitor_of(&pod.id)?;
    node.kill9()?;
    let record = node.pod_state(&pod.id).join("sandbox.json");
    let text = fs::read_to_string(&record)?;
    let creating = text.replace("\"ready\"", "\"creating\"");
    anyhow::ensure!(creating != text, "{text}");
    fs::write(&record, creating)?;
    process::signal(monitor, rustix::process::Signal::STOP)?;
    node.launch()?;
    assert!(node.client()?.pods()?.is_empty(), "nobody was ever told its id");
    assert!(record.exists(), "it is not forgotten");
    process::signal(monitor, rustix::process::Signal::CONT)?;
    process::wait_gone(monitor, Deadline::in_seconds(20))?;
    let (pods, deadline) = (node.path().join("state/pods"), Deadline::in_seconds(20));
    let changes = watch::DirectoryWatch::new(&pods)?;
    while fs::read_dir(&pods)?.next().is_some() {
        changes.next(deadline)?;
    }
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn an_exec_goes_on_without_the_daemon() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let pod = PodBuilder::new(&node, "exec").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).mount(&data, "/data", false).start()?;
    let client = node.client()?;
    let script =
        "trap '' PIPE; touch /data/began; while [ ! -e /data/go ]; do sleep 0.05; done; touch /data/done";
    std::thread::scope(|scope| -> Outcome {
        let waiting = scope.spawn(|| client.exec_in(&container.id, &["/bin/sh", "-c", script], 0));
        watch::file(&data.join("began"), Deadline::in_seconds(20))?;
        node.kill9()?;
        assert!(waiting.join().unwrap().is_err(), "the caller is told");
        Ok(())
    })?;
    node.launch()?;
    fs::write(data.join("go"), "")?;
    watch::file(&data.join("done"), Deadline::in_seconds(20))
}

#[test]
fn an_exec_with_a_limit_ends_although_its_daemon_is_dead() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let pod = PodBuilder::new(&node, "limit").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).mount(&data, "/data", false).start()?;
    let client = node.client()?;
    let script = "(trap '' HUP; exec sleep 2000) & touch /data/began; exec sleep 3000";
    let limit = i64::try_from(seconds(10).as_secs())?;
    std::thread::scope(|scope| -> Outcome {
        let waiting = scope.spawn(|| client.exec_in(&container.id, &["/bin/sh", "-c", script], limit));
        watch::file(&data.join("began"), Deadline::in_seconds(20))?;
        node.kill9()?;
        assert!(waiting.join().unwrap().is_err(), "the caller is told");
        Ok(())
    })?;
    let of_it = |command: &str| command.contains("sleep 2000") || command.contains("sleep 3000");
    for process in node.pod_processes()?.iter().filter(|process| of_it(&process.command)) {
        process::wait_gone(process.pid, Deadline::in_seconds(30))?;
    }
    node.launch()?;
    let left = node.client()?.exec_in(&container.id, &["ps"], 0)?.stdout;
    assert!(!of_it(&left), "{left}");
    Ok(())
}

#[test]
fn restarts_do_not_add_up() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "many").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    node.restart()?;
    let before = HostSnapshot::take(&node)?;
    let monitor = node.monitor_of(&pod.id)?;
    let descriptors = monitors_descriptors(&node, &container.id, monitor)?;
    for round in 0..5 {
        if round % 2 == 0 {
            node.kill9()?;
        } else {
            node.terminate()?;
        }
        node.launch()?;
        assert_eq!(node.client()?.exec_in(&container.id, &["true"], 0)?.code, 0);
    }
    before.assert_same(&HostSnapshot::take(&node)?)?;
    assert_eq!(
        monitors_descriptors(&node, &container.id, monitor)?,
        descriptors,
        "the monitor's descriptors"
    );
    Ok(())
}

/// What a monitor has open once it has done with all that was before: its one thread answers one request after the other, and an update
/// that changes nothing leaves nothing to be done afterwards.
fn monitors_descriptors(node: &Node, container: &str, monitor: u32) -> anyhow::Result<Vec<(String, usize)>> {
    node.client()?.update_container_resources(v1::UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(v1::LinuxContainerResources::default()),
        ..Default::default()
    })?;
    podwright_tests::snapshot::descriptors(monitor)
}
