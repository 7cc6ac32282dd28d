//! The host is as it was, however many pods came and went.

use podwright_tests::deadline::rounds;
use podwright_tests::{Deadline, HostSnapshot, Node, Outcome, PodBuilder, process, v1};

/// How many pods: a hundred, a tenth of it where everything takes ten times as long.
fn count() -> usize {
    if podwright_tests::deadline::slowness() > 1 { 10 } else { 100 }
}

fn one(node: &Node, number: usize) -> Outcome {
    let mut builder = PodBuilder::new(node, &format!("leak{number}"));
    if number.is_multiple_of(2) {
        builder = builder.own_network();
    }
    if number.is_multiple_of(5) {
        builder = builder.shared_pids();
    }
    let parent = format!("/{}/kubepods{number}/pod", node.unique());
    let pod = builder.linux(|linux| linux.cgroup_parent = parent).run(node)?;
    assert_eq!(pod.sh("echo hello").output()?, "hello\n");
    let container = pod.command(&["sleep", "1000"]).start()?;
    assert_eq!(container.exec("echo exec")?.stdout, "exec\n");
    container.stop(0)?;
    container.remove()?;
    pod.stop()?;
    pod.remove()?;
    Ok(())
}

#[test]
fn a_hundred_pods_leave_nothing() -> Outcome {
    let node = Node::start()?;
    // What is made once and kept (the runtime's own cgroup, a compiled profile) is there before.
    for number in 0..4 {
        one(&node, number)?;
    }
    let before = HostSnapshot::take(&node)?;
    for number in 4..4 + count() {
        one(&node, number)?;
    }
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn pods_at_once_leave_nothing() -> Outcome {
    let node = Node::start()?;
    one(&node, 0)?;
    one(&node, 1)?;
    let before = HostSnapshot::take(&node)?;
    let each = count() / 5;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=4_usize)
            .map(|worker| {
                let node = &node;
                scope.spawn(move || (0..each).try_for_each(|number| one(node, worker * 1000 + number)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap())
    })?;
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn ten_thousand_cheap_calls_leave_the_daemon_flat() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "flat").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let rounds = count() * 20;
    let memory = || -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let call = |times: usize| -> Outcome {
        for _ in 0..times {
            pod.client.containers()?;
            pod.client.pods()?;
            container.status()?;
            pod.client.container("0123456789").unwrap_err();
            pod.status()?;
        }
        Ok(())
    };
    call(rounds / 4)?;
    let (before, memory_before) = (HostSnapshot::take(&node)?, memory()?);
    call(rounds)?;
    before.assert_same(&HostSnapshot::take(&node)?)?;
    let grown = memory()?.saturating_sub(memory_before);
    assert!(grown < 2048, "grown by {grown} KiB");
    Ok(())
}

/// Memory that is resident, in KiB, threads and descriptors of a process.
fn weight(pid: u32) -> anyhow::Result<(u64, usize, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
    Ok((line.trim().trim_end_matches(" kB").parse()?, count("task")?, count("fd")?))
}

#[test]
fn thousands_of_execs_leave_daemon_and_monitor_flat() -> Outcome {
    // CVE-2022-31030, CVE-2025-64329: memory, threads and descriptors that each exec leaves a little of.
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "execs").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let exec = |times: usize| -> Outcome {
        for number in 0..times {
            // Most end well; some fail, and some leave a child that holds their output.
            let command: &[&str] = match number % 10 {
                0 => &["/no/such/program"],
                1 => &["sh", "-c", "sleep 0.1 & exit 3"],
                _ => &["true"],
            };
            let _ = pod.client.exec_in(&container.id, command, 10);
        }
        Ok(())
    };
    let (daemon, monitor) = (node.daemon_pid()?, node.monitor_of(&pod.id)?);
    // Once what was left has ended, whether or not it had executed its program when it was seen, and the monitor, which answers one
    // request after the other, has answered one more.
    let settled = || -> Outcome {
        for child in node.pod_processes()?.into_iter().filter(|process| process.command.contains("sleep 0.1"))
        {
            process::wait_gone(child.pid, Deadline::in_seconds(20))?;
        }
        pod.client.update_container_resources(v1::UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(v1::LinuxContainerResources::default()),
            ..Default::default()
        })?;
        Ok(())
    };
    exec(count())?;
    settled()?;
    let (host, of_daemon, of_monitor) = (HostSnapshot::take(&node)?, weight(daemon)?, weight(monitor)?);
    exec(count() * rounds(20, 6))?;
    settled()?;
    let (mut now_daemon, now_monitor) = (weight(daemon)?, weight(monitor)?);
    assert!(now_monitor.0 <= of_monitor.0 + 128, "the monitor grew: {of_monitor:?}, {now_monitor:?}");
    assert_eq!(
        (of_monitor.1, of_monitor.2),
        (now_monitor.1, now_monitor.2),
        "threads and descriptors of the monitor"
    );
    assert!(now_daemon.0 <= of_daemon.0 + 2048, "the daemon grew: {of_daemon:?}, {now_daemon:?}");
    // Threads that were needed at once on a busy machine go when they have had nothing to do for some seconds.
    let deadline = Deadline::in_seconds(60);
    while now_daemon.1 > of_daemon.1 + 2 {
        assert!(deadline.left().is_some(), "threads of the daemon: {of_daemon:?}, {now_daemon:?}");
        pod.client.version(v1::VersionRequest::default())?;
        now_daemon = weight(daemon)?;
    }
    host.assert_same(&HostSnapshot::take(&node)?)
}
