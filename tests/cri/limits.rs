//! Cgroup limits, on whichever version of cgroups the host has.

use std::fs;

use anyhow::Context as _;
use podwright_tests::{Container, HostSnapshot, Node, Outcome, PodBuilder, Wire, skip, snapshot, v1};
use tonic::Code;

/// The content of a container's cgroup file: `v1` is `hierarchy/file`, `v2` a file. `up` is how many cgroups above.
fn limit_above(container: &Container<'_>, up: usize, v1: &str, v2: &str) -> anyhow::Result<String> {
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    let above = |path: &str| {
        std::path::Path::new(path).ancestors().nth(up).map(|path| path.to_string_lossy().into_owned())
    };
    let (hierarchy, file) = v1.split_once('/').unwrap_or_default();
    let own = cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok())
        .find_map(|[names, path]: [&str; 2]| {
            names.split(',').any(|name| name == hierarchy && !name.is_empty()).then(|| path.to_owned())
        });
    let path = if let Some(own) = own {
        format!("/sys/fs/cgroup/{hierarchy}{}/{file}", above(&own).context("a parent")?)
    } else {
        // A controller that no hierarchy of version 1 has is that of version 2, on a hybrid host too.
        let own =
            cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("a cgroup of version 2")?;
        let mount = if snapshot::unified() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" };
        format!("{mount}{}/{v2}", above(own).context("a parent")?)
    };
    Ok(fs::read_to_string(&path).map_err(|error| anyhow::anyhow!("{path}: {error}"))?.trim().to_owned())
}

/// The content of the container's own cgroup file.
fn limit(container: &Container<'_>, v1: &str, v2: &str) -> anyhow::Result<String> {
    limit_above(container, 0, v1, v2)
}

fn update(
    container: &Container<'_>,
    linux: v1::LinuxContainerResources,
) -> v1::UpdateContainerResourcesRequest {
    v1::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(linux),
        ..Default::default()
    }
}

fn told(container: &Container<'_>) -> anyhow::Result<v1::LinuxContainerResources> {
    container.status()?.resources.and_then(|resources| resources.linux).context("resources are told")
}

#[test]
fn limits_are_in_the_kernels_files_and_can_be_changed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "limits").run(&node)?;
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
    assert_eq!(limit(&container, "memory/memory.limit_in_bytes", "memory.max")?, (64 << 20).to_string());
    if snapshot::unified() {
        assert_eq!(limit(&container, "cpu/x", "cpu.max")?, "20000 100000");
        assert_eq!(limit(&container, "cpuset/x", "cpuset.cpus")?, "0");
    } else {
        assert_eq!(limit(&container, "cpu/cpu.cfs_quota_us", "")?, "20000");
        assert_eq!(limit(&container, "cpu/cpu.shares", "")?, "512");
        assert_eq!(limit(&container, "cpuset/cpuset.cpus", "")?, "0");
    }
    pod.client.update_container_resources(v1::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        }),
        ..Default::default()
    })?;
    assert_eq!(limit(&container, "memory/memory.limit_in_bytes", "memory.max")?, (128 << 20).to_string());
    let quota = limit(&container, "cpu/cpu.cfs_quota_us", "cpu.max")?;
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    let told = container.status()?.resources.and_then(|resources| resources.linux).unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota), (128 << 20, 50_000));
    Ok(())
}

#[test]
fn too_much_memory_is_oom_killed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "oom").run(&node)?;
    let (status, _) = pod
        .sh("echo start; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}")
        .resources(|resources| {
            resources.memory_limit_in_bytes = 24 << 20;
            resources.memory_swap_limit_in_bytes = 24 << 20;
        })
        .run()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    Ok(())
}

#[test]
fn a_huge_page_limit_of_zero_is_no_error_anywhere() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "huge").run(&node)?;
    pod.command(&["true"])
        .resources(|resources| {
            resources.hugepage_limits = vec![
                v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 0 },
                v1::HugepageLimit { page_size: "1GB".to_owned(), limit: 0 },
            ];
        })
        .output()?;
    Ok(())
}

#[test]
fn an_oom_score_that_may_not_be_set_is_clamped() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "score").run(&node)?;
    let high = pod
        .command(&["cat", "/proc/self/oom_score_adj"])
        .resources(|resources| resources.oom_score_adj = 1000);
    assert_eq!(high.output()?, "1000\n");
    let low = pod
        .command(&["cat", "/proc/self/oom_score_adj"])
        .resources(|resources| resources.oom_score_adj = -997);
    let low: i32 = low.output()?.trim().parse()?;
    assert!((-997..=0).contains(&low), "{low}");
    Ok(())
}

#[test]
fn a_resize_raises_memory_above_the_old_sum_with_swap() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "resize").run(&node)?;
    let container = pod
        .command(&["sleep", "1000"])
        .resources(|resources| {
            resources.memory_limit_in_bytes = 32 << 20;
            resources.memory_swap_limit_in_bytes = 32 << 20;
        })
        .start()?;
    let memory = |bytes| v1::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    for bytes in [96 << 20, 48 << 20] {
        pod.client.update_container_resources(update(&container, memory(bytes)))?;
        assert_eq!(limit(&container, "memory/memory.limit_in_bytes", "memory.max")?, bytes.to_string());
        if snapshot::unified() {
            assert_eq!(limit(&container, "", "memory.swap.max")?, "0");
        } else {
            assert_eq!(limit(&container, "memory/memory.memsw.limit_in_bytes", "")?, bytes.to_string());
        }
        assert_eq!(told(&container)?.memory_limit_in_bytes, bytes);
    }
    Ok(())
}

#[test]
fn a_refused_update_changes_nothing() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "refused").run(&node)?;
    let container =
        pod.command(&["sleep", "1000"]).resources(|resources| resources.cpu_shares = 512).start()?;
    let shares = || limit(&container, "cpu/cpu.shares", "cpu.weight");
    let before = (shares()?, told(&container)?);
    // The shares come first, and could be written; there are not so many CPUs.
    let absurd = v1::LinuxContainerResources {
        cpu_shares: 1024,
        cpuset_cpus: "1000-1001".to_owned(),
        ..Default::default()
    };
    let error = pod.client.update_container_resources(update(&container, absurd)).unwrap_err();
    assert!(matches!(error.code(), Code::InvalidArgument | Code::FailedPrecondition), "{error:?}");
    assert_eq!((shares()?, told(&container)?), before);
    Ok(())
}

/// cgroup v1 refuses by itself; v2 would kill the container.
#[test]
fn memory_that_is_in_use_is_not_taken_away() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "shrink").run(&node)?;
    let memory = |bytes| v1::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    let container = pod
        .sh("head -c 20000000 /dev/zero >/dev/shm/kept; echo full; exec sleep 1000")
        .resources(|resources| resources.memory_limit_in_bytes = 64 << 20)
        .start()?;
    container.wait_for_log_line("full")?;
    for bytes in [4096, 8 << 20] {
        let error = pod.client.update_container_resources(update(&container, memory(bytes))).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        assert!(error.message().contains("usage"), "{error:?}");
        assert_eq!(limit(&container, "memory/memory.limit_in_bytes", "memory.max")?, (64 << 20).to_string());
        assert_eq!(told(&container)?.memory_limit_in_bytes, 64 << 20);
    }
    pod.client.update_container_resources(update(&container, memory(40 << 20)))?;
    assert_eq!(limit(&container, "memory/memory.limit_in_bytes", "memory.max")?, (40 << 20).to_string());
    assert_eq!(container.status()?.state(), v1::ContainerState::ContainerRunning);
    Ok(())
}

#[test]
fn an_update_reaches_a_created_container_and_is_told_of_an_exited_one() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "states").run(&node)?;
    let container = pod.command(&["true"]).create()?;
    let memory = |bytes| v1::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    pod.client.update_container_resources(update(&container, memory(40 << 20)))?;
    assert_eq!(limit(&container, "memory/memory.limit_in_bytes", "memory.max")?, (40 << 20).to_string());
    container.start()?;
    container.wait()?;
    pod.client.update_container_resources(update(&container, memory(50 << 20)))?;
    assert_eq!(told(&container)?.memory_limit_in_bytes, 50 << 20);
    let unknown = v1::UpdateContainerResourcesRequest {
        container_id: "0123456789".to_owned(),
        linux: Some(memory(1 << 30)),
        ..Default::default()
    };
    assert_eq!(pod.client.update_container_resources(unknown).unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[test]
fn a_pods_own_limits_are_those_of_its_cgroup() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "podlimits")
        .linux(|linux| {
            linux.resources = Some(v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                memory_limit_in_bytes: 128 << 20,
                ..Default::default()
            });
            linux.overhead =
                Some(v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
        })
        .run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let memory = || limit_above(&container, 1, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory()?, (144 << 20).to_string(), "the sum and the overhead");
    let quota = limit_above(&container, 1, "cpu/cpu.cfs_quota_us", "cpu.max")?;
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");

    // UpdatePodSandboxResources is younger than the binding: pod_sandbox_id = 1, overhead = 2, resources = 3.
    let resources = |bytes| Wire::default().varint(4, bytes);
    let request = Wire::default().bytes(1, pod.id.as_bytes()).message(3, &resources(256 << 20));
    pod.client.raw("/runtime.v1.RuntimeService/UpdatePodSandboxResources", request.0)?;
    assert_eq!(memory()?, (272_u64 << 20).to_string());
    let info: serde_json::Value = serde_json::from_str(&pod.client.pod_info(&pod.id)?["info"])?;
    assert_eq!(info["config"]["linux"]["resources"]["memory_limit_in_bytes"], 256 << 20);
    assert_eq!(info["config"]["linux"]["resources"]["cpu_quota"], 50_000);

    let bad = Wire::default().bytes(1, pod.id.as_bytes()).message(3, &resources(1));
    let error = pod.client.raw("/runtime.v1.RuntimeService/UpdatePodSandboxResources", bad.0).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert_eq!(memory()?, (272_u64 << 20).to_string());
    Ok(())
}

#[test]
fn a_pod_whose_limits_cannot_be_set_leaves_nothing() -> Outcome {
    let node = Node::start()?;
    PodBuilder::new(&node, "warm").run(&node)?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let config = PodBuilder::new(&node, "absurd").linux(|linux| {
        linux.resources =
            Some(v1::LinuxContainerResources { cpuset_cpus: "1000-1001".to_owned(), ..Default::default() });
    });
    let error = node.client()?.run_pod(&config.config).unwrap_err();
    assert!(matches!(error.code(), Code::InvalidArgument | Code::FailedPrecondition), "{error:?}");
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn a_child_killed_for_memory_makes_a_failed_container_oom_killed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "oomchild").run(&node)?;
    let hungry = "head -c 200000000 /dev/zero | tr '\\0' x | (x=$(cat); echo ${#x})";
    let limit = |resources: &mut v1::LinuxContainerResources| {
        resources.memory_limit_in_bytes = 24 << 20;
        resources.memory_swap_limit_in_bytes = 24 << 20;
    };
    // The shell is in its child's scores, and small: the child goes.
    let failing = format!("(echo 1000 >/proc/self/oom_score_adj; {hungry}); exit 137");
    let (status, _) = pod.sh(&failing).resources(limit).run()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    let coping = format!("(echo 1000 >/proc/self/oom_score_adj; {hungry}); exit 0");
    let (status, _) = pod.sh(&coping).resources(limit).run()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{status:?}");
    Ok(())
}

#[test]
fn files_of_cgroup_v2_are_written_as_given() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "unified").run(&node)?;
    let unified = |pairs: &[(&str, &str)]| {
        let map = podwright_tests::pod::labels(pairs);
        move |resources: &mut v1::LinuxContainerResources| resources.unified = map
    };
    if !snapshot::unified() {
        let error = pod.command(&["true"]).resources(unified(&[("memory.high", "1")])).create().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains("cgroup v1"), "{error:?}");
        return Ok(());
    }
    let given = [("memory.high", "33554432"), ("pids.max", "77"), ("memory.swap.max", "1048576")];
    let container = pod
        .command(&["sleep", "1000"])
        .resources(|resources| resources.memory_limit_in_bytes = 64 << 20)
        .resources(unified(&given))
        .start()?;
    // memory.swap.max is how kubelet says LimitedSwap: it has the last word over the 0 of a memory limit.
    for (file, value) in given {
        assert_eq!(limit(&container, "", file)?, value);
    }
    let later = v1::LinuxContainerResources {
        unified: podwright_tests::pod::labels(&[("memory.high", "max")]),
        ..Default::default()
    };
    pod.client.update_container_resources(update(&container, later))?;
    assert_eq!(limit(&container, "", "memory.high")?, "max");
    assert_eq!(told(&container)?.unified["pids.max"], "77");
    let error = pod.command(&["true"]).resources(unified(&[("no.such_file", "1")])).create().unwrap_err();
    assert!(error.message().contains("no.such_file"), "{error:?}");
    Ok(())
}

#[test]
fn a_group_kill_takes_the_whole_container() -> Outcome {
    let node = Node::start()?;
    if !snapshot::unified() {
        skip::skip("a_group_kill_takes_the_whole_container", "memory.oom.group is of cgroup v2");
        return Ok(());
    }
    let pod = PodBuilder::new(&node, "group").run(&node)?;
    // What kubelet sends unless singleProcessOOMKill is set. Init would outlive its child by far.
    let (status, _) = pod
        .sh("(echo 1000 >/proc/self/oom_score_adj; x=$(head -c 200000000 /dev/zero | tr '\\0' x)) & sleep 1000")
        .resources(|resources| {
            resources.memory_limit_in_bytes = 24 << 20;
            resources.unified = podwright_tests::pod::labels(&[("memory.oom.group", "1")]);
        })
        .run()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    Ok(())
}

#[test]
fn huge_pages_are_limited_where_the_host_has_the_controller() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "hugepages").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).resources(|resources| {
        resources.hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }];
    });
    match container.start() {
        Ok(container) => {
            assert_eq!(
                limit(&container, "hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")?,
                (4 << 20).to_string()
            );
            assert_eq!(told(&container)?.hugepage_limits.len(), 1);
        }
        Err(error) => {
            let refusal = error.chain().map(ToString::to_string).collect::<String>();
            assert!(refusal.contains("no hugetlb cgroup for pages of 2MB"), "{refusal}");
            let reason = "this host has no hugetlb controller for pages of 2MB: only the refusal was seen";
            skip::skip("huge_pages_are_limited_where_the_host_has_the_controller", reason);
        }
    }
    Ok(())
}

/// One page: the kernel kills init before it is ready.
#[test]
fn a_limit_too_low_to_make_the_container_says_that_memory_ran_out() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "tiny").run(&node)?;
    let before = HostSnapshot::take(&node)?;
    let tiny = pod.command(&["true"]).with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.resources.get_or_insert_default().memory_limit_in_bytes = 4096;
    });
    let error = tiny.create().unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(error.message().contains("memory"), "{error:?}");
    before.assert_same(&HostSnapshot::take(&node)?)
}
