//! The built-in network, where nobody has configured anything: the same hosts as in [`super::plugins`].

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podwright_tests::skip::skip;
use podwright_tests::snapshot::links;
use podwright_tests::stub_plugin::StubPlugins;
use podwright_tests::{HostSnapshot, NetworkNamespace, Node, NodeOptions, Outcome, PodBuilder, v1};
use rustix::process::Signal;

use super::plugins::{addresses, fetch, serve};
use super::until_network;

/// A node of that kind; None: this system has no nft to look with, or its kernel no bridges.
pub(super) fn node(test: &str, bridge: &str) -> Result<Option<Node>> {
    if Command::new("nft").arg("--version").output().is_err() {
        skip(test, "no nft: apt-get install nftables (make deps does)");
        return Ok(None);
    }
    let options = NodeOptions {
        own_network: true,
        network: vec!["default = \"bridge\"".to_owned(), bridge.to_owned()],
        ..Default::default()
    };
    let node = Node::with(&options)?;
    let probe = node.namespace()?.output("ip", &["link", "add", "probe", "type", "bridge"])?;
    if !probe.status.success() {
        skip(test, "this kernel has no bridges");
        return Ok(None);
    }
    node.namespace()?.ip(&["link", "del", "probe"])?;
    Ok(Some(node))
}

pub(super) const DUAL: &str = "bridge.ipv4 = \"10.220.0.0/16\"\nbridge.ipv6 = \"fd00:220::/64\"";

fn ruleset(node: &Node) -> Result<String> {
    node.namespace()?.stdout("nft", &["list", "ruleset"])
}

#[test]
fn a_fresh_node_has_a_network_at_once() -> Outcome {
    let Some(node) = node("a_fresh_node_has_a_network_at_once", DUAL)? else { return Ok(()) };
    until_network(&node, true, "built-in bridge")?;
    let (inside, outside) = (node.namespace()?, NetworkNamespace::new()?);
    inside.connect(("up0", "192.0.2.1/24"), &outside, ("eth0", "192.0.2.2/24"))?;
    inside.ip(&["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"])?;
    outside.ip(&["addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad"])?;
    let port = |protocol: v1::Protocol, container_port, host_port, host_ip: &str| v1::PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: host_ip.to_owned(),
    };
    let server = PodBuilder::new(&node, "server")
        .own_network()
        .with(|config| {
            config.port_mappings = vec![
                port(v1::Protocol::Tcp, 80, 8080, ""),
                port(v1::Protocol::Tcp, 80, 8081, "192.0.2.1"),
                port(v1::Protocol::Udp, 53, 5353, ""),
                port(v1::Protocol::Sctp, 99, 9999, "2001:db8::1"),
            ];
        })
        .run(&node)?;
    let client = PodBuilder::new(&node, "client").own_network().run(&node)?;
    let (v4, v6) = addresses(&server)?;
    assert_eq!((v4.as_str(), v6.as_str()), ("10.220.0.2", "fd00:220::2"));
    serve(&server, 80, "hello")?;
    // It listens by then.
    assert_eq!(fetch(inside, "10.220.0.2:80")?, "hello");
    let script = format!(
        "for to in {v4} 10.220.0.1 192.0.2.2; do ping -c1 -W5 $to >/dev/null && echo reached $to; done
         for to in {v6} fd00:220::1 2001:db8::2; do ping6 -c1 -W5 $to >/dev/null && echo reached $to; done
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {v4} 80 | tail -1
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 10.220.0.1 8080 | tail -1"
    );
    let output = client.sh(&script).output()?;
    for wanted in [&v4, "10.220.0.1", "192.0.2.2", &v6, "fd00:220::1", "2001:db8::2"] {
        assert!(output.contains(&format!("reached {wanted}\n")), "{wanted}: {output}");
    }
    assert!(output.ends_with("hello\nhello\n"), "from pod to pod, also by the host port: {output}");
    for url in ["10.220.0.2:80", "[fd00:220::2]:80", "127.0.0.1:8080", "192.0.2.1:8081"] {
        assert_eq!(fetch(inside, url).context(url)?, "hello");
    }
    for url in ["192.0.2.1:8080", "[2001:db8::1]:8080", "192.0.2.1:8081"] {
        assert_eq!(fetch(&outside, url).context(url)?, "hello");
    }
    // What listens on the host's own loopback is no pod's business.
    let raw =
        client.sh("ip route add 127.9.9.9 via 10.220.0.1 2>&1; ping -c1 -W1 127.9.9.9 >/dev/null; true");
    raw.output()?;
    let rules = ruleset(&node)?;
    for wanted in ["table inet podwright0", "masquerade", "5353", "9999", "ip daddr 127.0.0.0/8", "drop"] {
        assert!(rules.contains(wanted), "{wanted} is not in {rules}");
    }

    // A dead daemon changes nothing; the next makes the rules anew, from what is recorded.
    node.kill9()?;
    assert_eq!(fetch(&outside, "192.0.2.1:8080")?, "hello");
    node.launch()?;
    let third = PodBuilder::new(&node, "third").own_network().run(&node)?;
    assert_eq!(addresses(&third)?.0, "10.220.0.4", "leases are remembered");
    assert_eq!(fetch(&outside, "192.0.2.1:8080")?, "hello");
    let network = node.client()?.pod(&server.id)?.network.context("no network status")?;
    assert_eq!(network.ip, v4);
    node.client()?.remove_pod(&server.id)?;
    let rules = ruleset(&node)?;
    assert!(!rules.contains("8080") && !rules.contains("10.220.0.2"), "{rules}");
    Ok(())
}

#[test]
fn statistics_tell_what_went_through() -> Outcome {
    let Some(node) = node("statistics_tell_what_went_through", DUAL)? else { return Ok(()) };
    let pod = PodBuilder::new(&node, "traffic").own_network().run(&node)?;
    pod.sh("ping -c3 -s 1000 -W5 10.220.0.1").output()?;
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = node.client()?.pod_sandbox_stats(request)?.stats.context("no stats")?;
    let network = stats.linux.context("no linux")?.network.context("no network")?;
    let eth0 = network.default_interface.clone().context("no default interface")?;
    let value = |value: &Option<v1::UInt64Value>| value.as_ref().map_or(0, |value| value.value);
    assert_eq!(eth0.name, "eth0");
    assert!(value(&eth0.rx_bytes) >= 3000 && value(&eth0.tx_bytes) >= 3000, "{eth0:?}");
    assert!(network.interfaces.iter().all(|link| link.name != "lo" && link.name != "eth0"), "{network:?}");
    let listed = node.client()?.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest { filter: None })?;
    assert!(listed.stats[0].linux.as_ref().is_some_and(|linux| linux.network.is_some()));
    Ok(())
}

#[test]
fn many_pods_leave_nothing_and_a_full_range_says_so() -> Outcome {
    let test = "many_pods_leave_nothing_and_a_full_range_says_so";
    let Some(node) = node(test, "bridge.ipv4 = \"10.221.0.0/28\"")? else { return Ok(()) };
    let run = |name: &str| PodBuilder::new(&node, name).own_network().run(&node);
    run("warm")?.remove()?;
    let before = (HostSnapshot::take(&node)?, ruleset(&node)?);
    std::thread::scope(|scope| -> Outcome {
        let worker = |worker: usize| {
            move || -> Outcome {
                (0..6).try_for_each(|turn| Ok(run(&format!("many{worker}-{turn}"))?.remove()?))
            }
        };
        let workers: Vec<_> = (0..8).map(|number| scope.spawn(worker(number))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
    })?;
    before.0.assert_same(&HostSnapshot::take(&node)?)?;
    assert_eq!(before.1, ruleset(&node)?);

    let pods: Vec<_> = (0..13).map(|number| run(&format!("full{number}"))).collect::<Result<_>>()?;
    let distinct: BTreeSet<String> =
        pods.iter().map(|pod| Ok(pod.status()?.network.context("no network")?.ip)).collect::<Result<_>>()?;
    assert_eq!(distinct.len(), 13);
    let error = format!("{:#}", run("over").unwrap_err());
    assert!(error.contains("no address is free in 10.221.0.0/28"), "{error}");
    pods[5].remove()?;
    run("fits")?;
    Ok(())
}

#[test]
fn interrupted_attachments_and_lost_namespaces_leave_nothing() -> Outcome {
    let test = "interrupted_attachments_and_lost_namespaces_leave_nothing";
    let Some(node) = node(test, "bridge.ipv4 = \"10.222.0.0/24\"")? else { return Ok(()) };
    PodBuilder::new(&node, "warm").own_network().run(&node)?.remove()?;
    let before = links(node.namespace()?.pid())?;
    // Killed at some moment of it; each time another.
    for turn in 0..8_u64 {
        let config = PodBuilder::new(&node, &format!("killed{turn}")).own_network().config;
        fs::create_dir_all(&config.log_directory)?;
        node.client()?.abandon_run_pod_sandbox(config, std::time::Duration::from_micros(turn * 1500));
        node.kill9()?;
        node.launch()?;
        node.remove_all_pods()?;
    }
    let pod = PodBuilder::new(&node, "gone").own_network().run(&node)?;
    let netns = node.path().join("run/pods").join(&pod.id).join("netns");
    rustix::mount::unmount(&netns, rustix::mount::UnmountFlags::DETACH)?;
    node.client()?.remove_pod(&pod.id)?;
    super::stubs::until(&node.path().join("state/pods"), || {
        Ok(fs::read_dir(node.path().join("state/pods"))?.next().is_none())
    })?;
    assert_eq!(links(node.namespace()?.pid())?, before);
    Ok(())
}

#[test]
fn cni_is_used_from_the_moment_it_is_configured() -> Outcome {
    let Some(node) = node("cni_is_used_from_the_moment_it_is_configured", DUAL)? else { return Ok(()) };
    let old = PodBuilder::new(&node, "old").own_network().run(&node)?;
    let stubs = StubPlugins::install(&node, "1.0.0")?;
    stubs.configure(&node, "1.0.0")?;
    let new = PodBuilder::new(&node, "new").own_network().run(&node)?;
    assert_eq!(new.status()?.network.context("no network")?.ip, "10.99.0.5");
    until_network(&node, true, "")?;
    old.remove()?;
    assert!(stubs.calls("DEL").is_empty(), "what made it undoes it");
    let left = links(node.namespace()?.pid())?;
    assert!(!left.iter().any(|link| link.starts_with("pw")), "{left:?}");
    fs::remove_file(node.cni().join("10-stubs.conflist"))?;
    new.remove()?;
    assert_eq!(stubs.calls("DEL").len(), 2);
    // Plugins without a configuration: it is waited for, unless one says otherwise.
    until_network(&node, false, "plugins are installed, so one is waited for")?;
    let text = fs::read_to_string(node.config_file())?;
    fs::write(node.config_file(), text.replace("default = \"bridge\"", "default = \"bridge_always\""))?;
    node.signal(Signal::HUP)?;
    until_network(&node, true, "built-in bridge")?;
    let beside = PodBuilder::new(&node, "beside").own_network().run(&node)?;
    assert!(beside.status()?.network.context("no network")?.ip.starts_with("10.220.0."));
    Ok(())
}

/// As a daemon leaves it that is killed between the two steps that it takes.
#[test]
fn a_bridge_that_was_half_made_is_finished() -> Outcome {
    let Some(node) = node("a_bridge_that_was_half_made_is_finished", DUAL)? else { return Ok(()) };
    let inside = node.namespace()?;
    PodBuilder::new(&node, "before").own_network().run(&node)?.remove()?;
    node.kill9()?;
    inside.ip(&["link", "set", "podwright0", "alias", ""])?;
    node.launch()?;
    PodBuilder::new(&node, "after").own_network().run(&node)?;
    let shown = inside.ip(&["link", "show", "podwright0"])?;
    ensure!(shown.contains(&format!("alias podwright {}", node.path().join("state").display())), "{shown}");
    Ok(())
}

#[test]
fn a_bridge_has_one_daemon() -> Outcome {
    let Some(node) = node("a_bridge_has_one_daemon", DUAL)? else { return Ok(()) };
    let inside = node.namespace()?;
    inside.ip(&["link", "add", "podwright0", "type", "bridge"])?;
    inside.ip(&["link", "set", "podwright0", "alias", "podwright /some/other/state"])?;
    let error = format!("{:#}", PodBuilder::new(&node, "theirs").own_network().run(&node).unwrap_err());
    ensure!(error.contains("the link podwright0 belongs to podwright /some/other/state"), "{error}");
    inside.ip(&["link", "del", "podwright0"])?;
    let pod = PodBuilder::new(&node, "ours").own_network().run(&node)?;
    // Taken away under it, it is made again for the next.
    inside.ip(&["link", "del", "podwright0"])?;
    PodBuilder::new(&node, "again").own_network().run(&node)?;
    pod.remove()?;
    Ok(())
}
