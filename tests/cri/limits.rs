//! Cgroup limits, on whichever version of cgroups the host has.

use std::fs;

use anyhow::Context as _;
use podwright_tests::{Container, Node, Outcome, PodBuilder, snapshot, v1};

/// The content of a container's cgroup file: `v1` is `hierarchy/file`, `v2` a file.
fn limit(container: &Container<'_>, v1: &str, v2: &str) -> anyhow::Result<String> {
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    let (hierarchy, file) = v1.split_once('/').context("hierarchy/file")?;
    let path = if snapshot::unified() {
        let own =
            cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("a cgroup of version 2")?;
        format!("/sys/fs/cgroup{own}/{v2}")
    } else {
        let own = cgroups
            .lines()
            .filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok())
            .find_map(|[names, path]: [&str; 2]| {
                names.split(',').any(|name| name == hierarchy).then(|| path.to_owned())
            })
            .with_context(|| format!("no hierarchy {hierarchy} in {cgroups}"))?;
        format!("/sys/fs/cgroup/{hierarchy}{own}/{file}")
    };
    Ok(fs::read_to_string(&path).map_err(|error| anyhow::anyhow!("{path}: {error}"))?.trim().to_owned())
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
