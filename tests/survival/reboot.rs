//! The machine was restarted: records of another boot are told as ended, and can be removed.

use std::fs;
use std::path::Path;

use podwright_tests::{Deadline, Node, Outcome, PodBuilder, process, v1};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

/// Replaces this boot's id with another one in every record below a directory.
fn forget_boot(directory: &Path, boot: &str) -> Outcome {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            forget_boot(&path, boot)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read_to_string(&path)?;
            fs::write(&path, text.replace(boot, "00000000-0000-0000-0000-000000000000"))?;
        }
    }
    Ok(())
}

#[test]
fn pods_of_another_boot_are_not_ready_and_their_containers_exited() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "boot").own_network().run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let ended = pod.sh("exit 3").start()?;
    ended.wait()?;

    // What a restart of the machine does: every process and every mount is gone, and so is /run.
    node.kill9()?;
    let pods = node.pod_processes()?;
    for process in pods.iter().filter(|process| process.name.starts_with("podwright")) {
        process::signal(process.pid, Signal::KILL)?;
    }
    for process in &pods {
        let _ = process::signal(process.pid, Signal::KILL);
        process::wait_gone(process.pid, Deadline::in_seconds(20))?;
    }
    let run = node.path().join("run");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(target).starts_with(&run) {
            unmount(target, UnmountFlags::DETACH)?;
        }
    }
    fs::remove_dir_all(&run)?;
    fs::create_dir(&run)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    forget_boot(&node.path().join("state"), boot.trim())?;

    node.launch()?;
    let client = node.client()?;
    assert_eq!(client.pod(&pod.id)?.state(), v1::PodSandboxState::SandboxNotready);
    let status = client.container(&container.id)?;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert!(status.exit_code != 0 && status.finished_at >= status.started_at, "{status:?}");
    assert_eq!(client.container(&ended.id)?.exit_code, 3, "what had ended keeps its code");
    client.stop_pod(&pod.id)?;
    client.remove_pod(&pod.id)?;
    assert!(client.pods()?.is_empty());
    // The name is free again.
    PodBuilder { config: pod.config.clone(), handler: String::new() }.run(&node)?;
    Ok(())
}
