//! podwrightd with `driver = "systemd"`: pods are slices, as kubelet makes them, and containers scopes in them.

use anyhow::ensure;
use podwright_tests::{Deadline, Node, NodeOptions, Outcome, PodBuilder, process, v1};
use rustix::process::Signal;

use crate::{cgroup_file, present, property, systemctl};

fn node() -> anyhow::Result<Node> {
    Node::with(&NodeOptions { systemd: true, ..Default::default() })
}

/// The scope that a process is in.
fn unit_of(pid: u32) -> anyhow::Result<String> {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(cgroups.trim().rsplit('/').next().unwrap_or_default().to_owned())
}

/// A slice as kubelet's: below others by its name.
struct Slice(String);

impl Slice {
    fn new(node: &Node) -> Self {
        let name = node.unique().replace('-', "");
        Self(format!("kubepods-burstable-pod{name}.slice"))
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = systemctl(&["stop", &self.0]);
    }
}

#[test]
fn a_container_is_a_scope_in_its_pods_slice() -> Outcome {
    if !present("daemon::a_container_is_a_scope_in_its_pods_slice") {
        return Ok(());
    }
    let node = node()?;
    let slice = Slice::new(&node);
    let config = node.client()?.runtime_config(v1::RuntimeConfigRequest {})?;
    assert_eq!(config.linux.map(|linux| linux.cgroup_driver()), Some(v1::CgroupDriver::Systemd));
    // The parent is a path of slices, as kubelet gives it.
    let parent = format!("/kubepods.slice/kubepods-burstable.slice/{}", slice.0);
    let pod = PodBuilder::new(&node, "slice").linux(|linux| linux.cgroup_parent = parent).run(&node)?;
    let container = pod
        .command(&["sleep", "1000"])
        .resources(|resources| {
            resources.memory_limit_in_bytes = 64 << 20;
            resources.cpu_quota = 20_000;
            resources.cpu_period = 100_000;
            resources.cpu_shares = 512;
            resources.cpuset_cpus = "0".to_owned();
        })
        .start()?;
    let unit = unit_of(container.pid()?)?;
    ensure!(unit == format!("podwright-{}.scope", container.id), "{unit}");
    assert_eq!(property(&unit, "Slice")?, slice.0);
    assert_eq!(property(&unit, "MemoryMax")?, (64 << 20).to_string());
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec")?, "200ms");
    assert_eq!(property(&unit, "AllowedCPUs")?, "0");
    assert_eq!(cgroup_file(&unit, "memory.max")?, (64 << 20).to_string());
    assert_eq!(container.exec("cat /proc/self/cgroup")?.stdout, "0::/\n");
    pod.client.update_container_resources(v1::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(v1::LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() }),
        ..Default::default()
    })?;
    assert_eq!(property(&unit, "MemoryMax")?, (128 << 20).to_string());
    assert_eq!(cgroup_file(&unit, "memory.max")?, (128 << 20).to_string());
    let stats =
        pod.client.container_stats(v1::ContainerStatsRequest { container_id: container.id.clone() })?;
    ensure!(stats.stats.and_then(|stats| stats.memory).is_some(), "no memory statistics");
    container.stop(0)?;
    container.remove()?;
    assert_eq!(property(&unit, "LoadState")?, "not-found");
    Ok(())
}

#[test]
fn an_oom_kill_is_known_although_the_scope_vanishes() -> Outcome {
    if !present("daemon::an_oom_kill_is_known_although_the_scope_vanishes") {
        return Ok(());
    }
    let node = node()?;
    let slice = Slice::new(&node);
    for _ in 0..3 {
        let pod = PodBuilder::new(&node, "oom")
            .linux(|linux| linux.cgroup_parent.clone_from(&slice.0))
            .run(&node)?;
        let (status, _) = pod
            .sh("exec tail /dev/zero")
            .resources(|resources| {
                resources.memory_limit_in_bytes = 24 << 20;
                resources.memory_swap_limit_in_bytes = 24 << 20;
            })
            .run()?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
        pod.remove()?;
    }
    Ok(())
}

/// As it would be on a node so busy that the monitor comes to it last.
#[test]
fn an_oom_kill_is_known_to_a_monitor_that_comes_too_late() -> Outcome {
    if !present("daemon::an_oom_kill_is_known_to_a_monitor_that_comes_too_late") {
        return Ok(());
    }
    let node = node()?;
    let slice = Slice::new(&node);
    let data = node.path().join("data");
    std::fs::create_dir(&data)?;
    let pod =
        PodBuilder::new(&node, "late").linux(|linux| linux.cgroup_parent.clone_from(&slice.0)).run(&node)?;
    for (go, reason) in [("grow", "OOMKilled"), ("killed", "Error")] {
        let container = pod
            .sh("until [ -e /data/grow ]; do sleep 0.1; done; exec tail /dev/zero")
            .mount(&data, "/data", false)
            .resources(|resources| {
                resources.memory_limit_in_bytes = 24 << 20;
                resources.memory_swap_limit_in_bytes = 24 << 20;
            })
            .start()?;
        let (pid, monitor) = (container.pid()?, node.monitor_of(&pod.id)?);
        let unit = unit_of(pid)?;
        let cgroup = format!("/sys/fs/cgroup{}", property(&unit, "ControlGroup")?);
        process::signal(monitor, Signal::STOP)?;
        if go == "grow" {
            std::fs::write(data.join(go), "")?;
        } else {
            // Another container of the pod ran out of memory before; this one did not.
            process::signal(pid, Signal::KILL)?;
        }
        process::wait_gone(pid, Deadline::in_seconds(60))?;
        // Comes back when the scope is gone; it may be already.
        let _ = systemctl(&["stop", &unit]);
        ensure!(!std::path::Path::new(&cgroup).exists(), "{cgroup} is still there");
        process::signal(monitor, Signal::CONT)?;
        let status = container.wait()?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, reason), "{status:?}");
        container.remove()?;
        let _ = std::fs::remove_file(data.join(go));
    }
    Ok(())
}

#[test]
fn pods_of_a_slice_survive_the_daemon() -> Outcome {
    if !present("daemon::pods_of_a_slice_survive_the_daemon") {
        return Ok(());
    }
    let node = node()?;
    let slice = Slice::new(&node);
    let pod =
        PodBuilder::new(&node, "stays").linux(|linux| linux.cgroup_parent.clone_from(&slice.0)).run(&node)?;
    let container = pod.sh("trap 'exit 9' TERM; echo up; while true; do sleep 0.1; done").start()?;
    container.wait_for_log_line("up")?;
    node.kill9()?;
    systemctl(&["daemon-reload"])?;
    node.launch()?;
    let client = node.client()?;
    assert_eq!(client.container(&container.id)?.state(), v1::ContainerState::ContainerRunning);
    client.stop(&container.id, 10)?;
    assert_eq!(client.container(&container.id)?.exit_code, 9);
    Ok(())
}

#[test]
fn a_parent_that_is_no_slice_is_refused() -> Outcome {
    if !present("daemon::a_parent_that_is_no_slice_is_refused") {
        return Ok(());
    }
    let node = node()?;
    let client = node.client()?;
    for parent in ["/kubepods/burstable/pod1", "a.slice/../b.slice", "-.slice/x", "a--b.slice"] {
        let config =
            PodBuilder::new(&node, "bad").linux(|linux| linux.cgroup_parent = parent.to_owned()).config;
        let error = client.run_pod(&config).unwrap_err();
        ensure!(
            error.code() == tonic::Code::InvalidArgument && error.message().contains("cgroup_parent"),
            "{parent}: {error:?}"
        );
    }
    Ok(())
}

#[test]
fn a_pod_without_a_parent_is_in_the_systems_slice() -> Outcome {
    if !present("daemon::a_pod_without_a_parent_is_in_the_systems_slice") {
        return Ok(());
    }
    let node = node()?;
    let pod = PodBuilder::new(&node, "orphan").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let unit = unit_of(container.pid()?)?;
    assert_eq!(property(&unit, "Slice")?, "system.slice");
    pod.remove()?;
    assert_eq!(property(&unit, "LoadState")?, "not-found");
    Ok(())
}
