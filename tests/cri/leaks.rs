//! The host is as it was, however many pods came and went.

use podwright_tests::{HostSnapshot, Node, Outcome, PodBuilder};

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
