//! The daemon dies while it takes a checkpoint: the next one takes away what was made of it, and the container goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use podwright_tests::{
    Container, Deadline, HostSnapshot, Node, NodeOptions, Outcome, PodBuilder, pod, process, snapshot,
    temporary, v1, watch,
};

/// The file that freezes a container, and what to write into it.
fn freezer(container: &Container<'_>) -> Result<(PathBuf, &'static str)> {
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    let (line, mount, file, frozen) = if snapshot::unified() {
        ("0::", "/sys/fs/cgroup", "cgroup.freeze", "1")
    } else {
        (":freezer:", "/sys/fs/cgroup/freezer", "freezer.state", "FROZEN")
    };
    let path = cgroups.lines().find_map(|found| Some(found.split_once(line)?.1)).context("its cgroup")?;
    Ok((PathBuf::from(format!("{mount}{path}/{file}")), frozen))
}

#[test]
fn kill_9_in_the_middle_of_a_checkpoint_leaves_nothing_of_it() -> Outcome {
    // A criu that never gets anywhere, so that the daemon dies in the middle.
    let directory = temporary::directory()?;
    let (criu, mark) = (directory.path().join("criu"), directory.path().join("started"));
    fs::write(
        &criu,
        format!("#!/bin/sh\necho $$ >{0}.new\nmv {0}.new {0}\nexec sleep 100000\n", mark.display()),
    )?;
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap_or_default());
    let environment = vec![("PATH".to_owned(), path)];
    let node = Node::with(&NodeOptions { environment, ..NodeOptions::default() })?;
    let archives = node.path().join("archives");
    fs::create_dir(&archives)?;
    fs::write(archives.join("other.tar"), "an archive of before")?;
    let pod = PodBuilder::new(&node, "interrupted").run(&node)?;
    let container = pod.sh("while true; do echo round; sleep 0.1; done").start()?;
    container.wait_for_log_line("round")?;
    let snapshot = || -> Result<HostSnapshot> {
        let mut snapshot = HostSnapshot::take(&node)?;
        // Those of the container's loop come and go.
        // By its arguments: busybox's shell starts it as `exe`, and it is called `sleep` a moment later.
        snapshot.processes.retain(|process| !process.ends_with(": sleep 0.1"));
        Ok(snapshot)
    };
    let before = snapshot()?;
    let (freeze, frozen) = freezer(&container)?;

    let client = node.client()?;
    std::thread::scope(|scope| -> Outcome {
        let request = v1::CheckpointContainerRequest {
            container_id: container.id.clone(),
            location: archives.join("x.tar").to_string_lossy().into_owned(),
            timeout: 600,
        };
        let call = scope.spawn(|| client.checkpoint_container(request));
        watch::file(&mark, Deadline::in_seconds(30))?;
        node.kill9()?;
        anyhow::ensure!(call.join().is_ok_and(|reply| reply.is_err()), "a dead daemon answered");
        Ok(())
    })?;
    let work = pod.container_records(&container.id).join("checkpoint");
    assert!(work.exists() && fs::read_dir(&archives)?.count() == 2, "it died in the middle");
    // criu freezes the container, and this one has died too.
    let criu: u32 = fs::read_to_string(&mark)?.trim().parse()?;
    process::signal(criu, rustix::process::Signal::KILL)?;
    process::wait_gone(criu, Deadline::in_seconds(20))?;
    fs::write(&freeze, frozen)?;

    node.launch()?;
    assert!(!work.exists());
    assert_eq!(fs::read_dir(&archives)?.count(), 1);
    assert!(archives.join("other.tar").exists());
    let lines = container.log_lines()?.len();
    watch::content(&container.log, Deadline::in_seconds(20), |bytes| {
        (pod::parse_log(bytes).len() > lines + 1).then_some(())
    })?;
    before.assert_same(&snapshot()?)
}
