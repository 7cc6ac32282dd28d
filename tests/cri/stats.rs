//! Statistics of containers and pods.

use podwright_tests::pod::labels;
use podwright_tests::{Node, Outcome, PodBuilder, v1};
use tonic::Code;

#[test]
fn a_container_has_cpu_memory_and_what_it_wrote() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stats").run(&node)?;
    let container = pod
        .sh("head -c 3000000 /dev/zero >/written; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; sleep 1000")
        .with(|config| config.labels = labels(&[("app", "x")]))
        .start()?;
    container.wait_for_log_line("up")?;
    let request = v1::ContainerStatsRequest { container_id: container.id.clone() };
    let stats = pod.client.container_stats(request)?.stats.unwrap();
    let attributes = stats.attributes.unwrap();
    assert_eq!((attributes.id.as_str(), attributes.labels["app"].as_str()), (container.id.as_str(), "x"));
    let cpu = stats.cpu.unwrap();
    assert!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.unwrap().value > 1_000_000);
    let memory = stats.memory.unwrap();
    assert!(memory.working_set_bytes.unwrap().value > 10_000);
    assert!(memory.usage_bytes.unwrap().value > 10_000);
    let layer = stats.writable_layer.unwrap();
    assert!(layer.used_bytes.unwrap().value >= 3_000_000);
    assert!(layer.inodes_used.unwrap().value >= 1);
    Ok(())
}

#[test]
fn lists_hold_what_runs_and_are_filtered() -> Outcome {
    let node = Node::start()?;
    let one = PodBuilder::new(&node, "one").run(&node)?;
    let two = PodBuilder::new(&node, "two").run(&node)?;
    let first = one.command(&["sleep", "1000"]).start()?;
    let second = two.command(&["sleep", "1000"]).start()?;
    let list = |filter: Option<v1::ContainerStatsFilter>| -> anyhow::Result<Vec<String>> {
        let stats = one.client.list_container_stats(v1::ListContainerStatsRequest { filter })?.stats;
        let mut ids: Vec<_> = stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
        ids.sort();
        Ok(ids)
    };
    let mut both = vec![first.id.clone(), second.id.clone()];
    both.sort();
    assert_eq!(list(None)?, both);
    let of_pod = v1::ContainerStatsFilter { pod_sandbox_id: two.id.clone(), ..Default::default() };
    assert_eq!(list(Some(of_pod))?, std::slice::from_ref(&second.id));
    let by_id = v1::ContainerStatsFilter { id: first.id.clone(), ..Default::default() };
    assert_eq!(list(Some(by_id))?, std::slice::from_ref(&first.id));
    let unknown = v1::ContainerStatsRequest { container_id: "0123456789".to_owned() };
    assert_eq!(one.client.container_stats(unknown).unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[test]
fn a_pod_has_statistics_of_its_own() -> Outcome {
    let node = Node::start()?;
    let parent = format!("/{}/pods/p", node.unique());
    let pod = PodBuilder::new(&node, "pod").linux(|linux| linux.cgroup_parent = parent).run(&node)?;
    pod.command(&["sleep", "1000"]).start()?;
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = pod.client.pod_sandbox_stats(request)?.stats.unwrap();
    assert_eq!(stats.attributes.unwrap().id, pod.id);
    let linux = stats.linux.unwrap();
    assert_eq!(linux.containers.len(), 1);
    assert!(linux.memory.is_some_and(|memory| memory.usage_bytes.is_some()));
    let all = pod.client.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest { filter: None })?.stats;
    assert_eq!(all.len(), 1);
    Ok(())
}
