//! The life of a sandbox.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::time::Duration;

use podwright_tests::pod::labels;
use podwright_tests::{HostSnapshot, Node, Outcome, PodBuilder, snapshot, v1};
use tonic::Code;

#[test]
fn a_pod_is_ready_stopped_and_gone() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "life").label("app", "x").run(&node)?;
    let status = pod.status()?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert!(status.created_at > 1_600_000_000_000_000_000, "nanoseconds: {}", status.created_at);
    assert_eq!(status.labels, labels(&[("app", "x")]));
    assert_eq!(pod.client.pods()?.len(), 1);

    pod.stop()?;
    assert_eq!(pod.status()?.state(), v1::PodSandboxState::SandboxNotready);
    assert!(node.pod_processes()?.is_empty(), "a stopped pod has no process: {:?}", node.pod_processes()?);
    pod.remove()?;
    assert_eq!(pod.status().unwrap_err().code(), Code::NotFound);
    assert!(pod.client.pods()?.is_empty());
    assert!(!node.pod_state(&pod.id).exists());
    Ok(())
}

#[test]
fn stop_and_remove_may_be_said_again_and_of_what_is_not_there() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "again").run(&node)?;
    pod.stop()?;
    pod.stop()?;
    pod.remove()?;
    pod.remove()?;
    pod.stop()?;
    let client = node.client()?;
    client.stop_pod("0123456789abcdef")?;
    client.remove_pod("0123456789abcdef")?;
    Ok(())
}

#[test]
fn removing_a_running_pod_ends_all_of_it() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "busy").run(&node)?;
    let container = pod.sh("trap '' TERM; echo up; sleep 1000").start()?;
    container.wait_for_log_line("up")?;
    let id = container.id.clone();
    pod.remove()?;
    assert_eq!(pod.client.container(&id).unwrap_err().code(), Code::NotFound);
    assert!(node.pod_processes()?.is_empty(), "{:?}", node.pod_processes()?);
    Ok(())
}

#[test]
fn lists_are_filtered_by_id_state_and_label() -> Outcome {
    let node = Node::start()?;
    let one = PodBuilder::new(&node, "one").label("app", "x").label("tier", "a").run(&node)?;
    let two = PodBuilder::new(&node, "two").label("app", "x").label("tier", "b").run(&node)?;
    two.stop()?;
    let client = node.client()?;
    let list = |filter: v1::PodSandboxFilter| -> anyhow::Result<Vec<String>> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let mut ids: Vec<_> = client.list_pod_sandbox(request)?.items.into_iter().map(|pod| pod.id).collect();
        ids.sort();
        Ok(ids)
    };
    let mut both = vec![one.id.clone(), two.id.clone()];
    both.sort();
    let by_label =
        |pairs: &[(&str, &str)]| v1::PodSandboxFilter { label_selector: labels(pairs), ..Default::default() };
    assert_eq!(list(by_label(&[("app", "x")]))?, both);
    assert_eq!(list(by_label(&[("app", "x"), ("tier", "b")]))?, std::slice::from_ref(&two.id));
    assert_eq!(list(by_label(&[("app", "y")]))?, [""; 0]);
    let by_state = |state: v1::PodSandboxState| v1::PodSandboxFilter {
        state: Some(v1::PodSandboxStateValue { state: state as i32 }),
        ..Default::default()
    };
    assert_eq!(list(by_state(v1::PodSandboxState::SandboxReady))?, std::slice::from_ref(&one.id));
    assert_eq!(list(by_state(v1::PodSandboxState::SandboxNotready))?, std::slice::from_ref(&two.id));
    assert_eq!(
        list(v1::PodSandboxFilter { id: one.id.clone(), ..Default::default() })?,
        std::slice::from_ref(&one.id)
    );
    assert_eq!(list(v1::PodSandboxFilter { id: one.id[..12].to_owned(), ..Default::default() })?, [one.id]);
    Ok(())
}

#[test]
fn a_name_in_use_is_refused_and_another_attempt_is_not() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "name").run(&node)?;
    let error = pod.client.run_pod(&pod.config).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("name") && error.message().contains(&pod.id), "{}", error.message());
    let second = PodBuilder { config: pod.config.clone(), handler: String::new() }
        .with(|config| config.metadata.as_mut().unwrap().attempt = 1);
    second.run(&node)?;
    pod.remove()?;
    PodBuilder { config: pod.config.clone(), handler: String::new() }.run(&node)?;
    Ok(())
}

#[test]
fn a_retry_after_the_client_gave_up_gets_the_pod() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let mut joined = 0;
    for number in 0..10 {
        let config = PodBuilder::new(&node, &format!("retry{number}")).own_network().config;
        fs::create_dir_all(&config.log_directory)?;
        if client.abandon_run_pod_sandbox(config.clone(), Duration::from_micros(300 * number)) {
            continue;
        }
        match client.run_pod(&config) {
            Ok(_) => joined += 1,
            // The answer was on its way when it was given up: then the id has been told.
            Err(error) => assert_eq!(error.code(), Code::AlreadyExists, "{error:?}"),
        }
        let named = client.pods()?.into_iter().filter(|pod| pod.metadata == config.metadata).count();
        assert_eq!(named, 1, "one pod of that name");
    }
    assert!(joined > 0, "no call was slow enough to be given up before it was answered");
    Ok(())
}

#[test]
fn equal_requests_at_once_make_one_pod() -> Outcome {
    let node = Node::start()?;
    let config = PodBuilder::new(&node, "twins").own_network().config;
    fs::create_dir_all(&config.log_directory)?;
    let clients: Vec<_> = (0..4).map(|_| node.client()).collect::<Result<_, _>>()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients.iter().map(|client| scope.spawn(|| client.run_pod(&config))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(node.client()?.pods()?.len(), 1);
    for result in &results {
        // Those that came after the first had answered are told that the name is in use.
        assert!(result.as_ref().err().is_none_or(|error| error.code() == Code::AlreadyExists), "{result:?}");
    }
    assert!(results.iter().any(Result::is_ok));
    Ok(())
}

#[test]
fn a_network_of_its_own_has_loopback_and_nothing_else() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "net").own_network().run(&node)?;
    let script =
        "ls /sys/class/net; cat /sys/class/net/lo/operstate; ping -c1 -W20 127.0.0.1 >/dev/null && echo pong";
    let output = pod.sh(script).output()?;
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some("lo"), "{output}");
    assert!(output.ends_with("pong\n"), "{output}");
    let namespace = pod.sh("readlink /proc/self/ns/net").output()?;
    assert_ne!(namespace.trim(), fs::read_link("/proc/self/ns/net")?.to_str().unwrap());
    assert_eq!(pod.sh("readlink /proc/self/ns/net").output()?, namespace, "both containers are in the pod's");
    Ok(())
}

#[test]
fn the_hosts_network_is_the_hosts() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "hostnet").run(&node)?;
    let namespace = pod.sh("readlink /proc/self/ns/net").output()?;
    assert_eq!(namespace.trim(), fs::read_link("/proc/self/ns/net")?.to_str().unwrap());
    Ok(())
}

#[test]
fn hostname_hosts_and_resolver_come_from_the_request() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "names")
        .own_network()
        .with(|config| {
            config.hostname = "web-0".to_owned();
            config.dns_config = Some(v1::DnsConfig {
                servers: vec!["10.0.0.10".to_owned()],
                searches: vec!["svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            });
        })
        .run(&node)?;
    let output = pod.sh("hostname; cat /etc/hostname; cat /etc/resolv.conf; cat /etc/hosts").output()?;
    assert!(output.starts_with("web-0\nweb-0\n"), "{output}");
    for wanted in ["nameserver 10.0.0.10", "search svc.cluster.local", "options ndots:5", "127.0.0.1"] {
        assert!(output.contains(wanted), "{wanted} is not in {output}");
    }
    Ok(())
}

#[test]
fn processes_are_shared_only_where_asked_for() -> Outcome {
    let node = Node::start()?;
    let alone = PodBuilder::new(&node, "alone").run(&node)?;
    assert_eq!(alone.sh("echo $$").output()?, "1\n");
    let shared = PodBuilder::new(&node, "shared").shared_pids().run(&node)?;
    let sleeper = shared.command(&["sleep", "1234"]).start()?;
    let output = shared.sh("echo $$; ps -o args").output()?;
    assert!(!output.starts_with("1\n"), "process 1 is the pause: {output}");
    assert!(output.contains("sleep 1234"), "the neighbour is seen: {output}");
    sleeper.stop(0)?;
    Ok(())
}

#[test]
fn shared_memory_and_ipc_are_the_pods() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "ipc").run(&node)?;
    pod.sh("echo from-one >/dev/shm/note").output()?;
    assert_eq!(pod.sh("cat /dev/shm/note").output()?, "from-one\n");
    let one = pod.sh("readlink /proc/self/ns/ipc").output()?;
    assert_eq!(pod.sh("readlink /proc/self/ns/ipc").output()?, one);
    assert_ne!(one.trim(), fs::read_link("/proc/self/ns/ipc")?.to_str().unwrap());
    Ok(())
}

#[test]
fn sysctls_of_the_pods_namespaces_are_set() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "sysctl")
        .own_network()
        .linux(|linux| {
            linux.sysctls =
                labels(&[("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.msgmax", "4096")]);
        })
        .run(&node)?;
    let output =
        pod.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax").output()?;
    assert_eq!(output, "80\n4096\n");
    Ok(())
}

#[test]
fn a_cgroup_parent_is_used_and_goes_with_the_pod() -> Outcome {
    let node = Node::start()?;
    let parent = format!("/{}/kubepods/besteffort/pod1", node.unique());
    let pod =
        PodBuilder::new(&node, "parent").linux(|linux| linux.cgroup_parent = parent.clone()).run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
    assert!(cgroups.contains(&format!("{parent}/{}", container.id)), "{cgroups}");
    pod.stop()?;
    pod.remove()?;
    assert_no_parent_is_left(&node);
    Ok(())
}

fn assert_no_parent_is_left(node: &Node) {
    let mut left = snapshot::cgroups(node.unique());
    left.retain(|path| path.to_string_lossy().contains("kubepods"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_parent_that_two_pods_shared_goes_with_the_last() -> Outcome {
    let node = Node::start()?;
    let run = |name: &str| {
        let parent = format!("/{}/kubepods/{name}", node.unique());
        PodBuilder::new(&node, name).linux(|linux| linux.cgroup_parent = parent).run(&node)
    };
    let (first, second) = (run("first")?, run("second")?);
    let container = second.command(&["sleep", "1000"]).start()?;
    first.remove()?;
    assert_eq!(container.exec("echo on")?.stdout, "on\n");
    second.remove()?;
    assert_no_parent_is_left(&node);
    Ok(())
}

#[test]
fn a_failed_pod_leaves_nothing() -> Outcome {
    let node = Node::start()?;
    PodBuilder::new(&node, "warm").run(&node)?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let config = PodBuilder::new(&node, "fails")
        .own_network()
        .linux(|linux| linux.sysctls = labels(&[("net.ipv4.no_such_parameter", "1")]))
        .config;
    let error = node.client()?.run_pod(&config).unwrap_err();
    assert!(error.message().contains("no_such_parameter"), "{}", error.message());
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn records_are_private() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "private").run(&node)?;
    for path in [node.path().join("state"), node.path().join("run"), node.pod_state(&pod.id)] {
        // The node's own directories were made by the test; what is below them by the daemon.
        let mode = fs::metadata(&path)?.st_mode() & 0o077;
        assert!(
            mode == 0 || path == node.path().join("state") || path == node.path().join("run"),
            "{path:?}"
        );
    }
    assert_eq!(fs::metadata(node.socket())?.st_mode() & 0o777, 0o600);
    Ok(())
}
