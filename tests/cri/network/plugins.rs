//! Debian's plugins, in hosts made of network namespaces.
//!
//! ```text
//! pods -- bridge -- node's namespace -- cable -- outside: knows no way back to the pods
//!   10.210.0.0/16      10.210.0.1      192.0.2.1     192.0.2.2
//!   fd00:210::/64      fd00:210::1     2001:db8::1   2001:db8::2
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use podwright_tests::skip::skip;
use podwright_tests::snapshot::links;
use podwright_tests::{
    Deadline, NetworkNamespace, Node, NodeOptions, Outcome, Pod, PodBuilder, deadline, seconds, v1,
};
use serde_json::json;

/// Where Debian has its plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A node whose pods real plugins attach; None: this machine has none.
pub(super) fn node(test: &str, plugins: &serde_json::Value) -> Result<Option<Node>> {
    if !Path::new(PLUGINS).join("bridge").is_file() {
        skip(test, "no containernetworking-plugins here");
        return Ok(None);
    }
    if !Path::new("/usr/sbin/iptables").exists() {
        skip(test, "no iptables here, which the plugins need");
        return Ok(None);
    }
    let options = NodeOptions {
        own_network: true,
        network: vec![
            format!("cni_bin_dirs = [{PLUGINS:?}]"),
            "default = \"none\"".to_owned(),
            format!("plugin_timeout_seconds = {}", seconds(60).as_secs()),
        ],
        ..Default::default()
    };
    let node = Node::with(&options)?;
    let plugins = plugins.to_string().replace("@IPAM@", &node.path().join("ipam").to_string_lossy());
    let list = format!(r#"{{"cniVersion":"1.0.0","name":"pods","plugins":{plugins}}}"#);
    fs::write(node.cni().join("10-pods.conflist"), list)?;
    Ok(Some(node))
}

fn bridge(ranges: &serde_json::Value) -> serde_json::Value {
    json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": "@IPAM@", "ranges": ranges,
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    })
}

pub(super) fn dual_stack() -> serde_json::Value {
    bridge(&json!([[{ "subnet": "10.210.0.0/16" }], [{ "subnet": "fd00:210::/64" }]]))
}

pub(super) fn portmap() -> serde_json::Value {
    json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } })
}

pub(super) fn addresses(pod: &Pod) -> Result<(String, String)> {
    let network = pod.status()?.network.context("no network status")?;
    Ok((network.ip, network.additional_ips.first().context("no second address")?.ip.clone()))
}

/// A container that answers on a port with a word.
pub(super) fn serve(pod: &Pod, port: u16, word: &str) -> Outcome {
    let script = format!(
        "mkdir -p /www; echo {word} >/www/index.html; echo up; exec httpd -f -p '[::]:{port}' -h /www"
    );
    pod.sh(&script).start()?.wait_for_log_line("up")?;
    Ok(())
}

/// What a server answers to a process in a namespace. It may not listen yet: it is asked again until the deadline.
pub(super) fn fetch(from: &NetworkNamespace, address: &str) -> Result<String> {
    let to: SocketAddr = address.parse().with_context(|| address.to_owned())?;
    let deadline = Deadline::in_seconds(20);
    from.run(|| {
        loop {
            match ask(to) {
                Err(error) if deadline.left().is_none() => return Err(error.into()),
                Err(_) => {}
                Ok(text) => return Ok(text.lines().last().unwrap_or_default().to_owned()),
            }
        }
    })
}

pub(super) fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, seconds(3))?;
    stream.set_read_timeout(Some(seconds(3)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn rules(node: &Node) -> Result<String> {
    let namespace = node.namespace()?;
    Ok(namespace.stdout("iptables-save", &[])? + &namespace.stdout("ip6tables-save", &[])?)
}

/// Counters and times change; rules must not.
fn without_counters(rules: &str) -> BTreeSet<String> {
    rules
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn pods_reach_pods_the_node_and_outside_and_are_reached_by_host_ports() -> Outcome {
    let test = "pods_reach_pods_the_node_and_outside_and_are_reached_by_host_ports";
    let chain = json!([dual_stack(), portmap(), { "type": "firewall" }, { "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" } }]);
    let Some(node) = node(test, &chain)? else { return Ok(()) };
    let (inside, outside) = (node.namespace()?, NetworkNamespace::new()?);
    inside.connect(("up0", "192.0.2.1/24"), &outside, ("eth0", "192.0.2.2/24"))?;
    inside.ip(&["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"])?;
    outside.ip(&["addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad"])?;

    let server = PodBuilder::new(&node, "server")
        .own_network()
        .with(|config| {
            let port = |protocol: v1::Protocol, container_port, host_port, host_ip: &str| v1::PortMapping {
                protocol: protocol.into(),
                container_port,
                host_port,
                host_ip: host_ip.to_owned(),
            };
            config.port_mappings = vec![
                port(v1::Protocol::Tcp, 80, 8080, ""),
                port(v1::Protocol::Tcp, 80, 8081, "192.0.2.1"),
                port(v1::Protocol::Udp, 53, 5353, ""),
                port(v1::Protocol::Sctp, 99, 9999, ""),
            ];
        })
        .run(&node)?;
    let client = PodBuilder::new(&node, "client").own_network().run(&node)?;
    let (v4, v6) = addresses(&server)?;
    assert!(v4.starts_with("10.210.") && v6.starts_with("fd00:210::"), "{v4} {v6}");
    serve(&server, 80, "hello")?;
    // It listens by then.
    assert_eq!(fetch(inside, &format!("{v4}:80"))?, "hello");

    // From pod to pod, to the node, and to who knows no way back: masqueraded.
    let script = format!(
        "ip -o addr show dev eth0; cat /proc/sys/net/ipv4/conf/eth0/log_martians
         for to in {v4} 10.210.0.1 192.0.2.2; do ping -c1 -W5 $to >/dev/null && echo reached $to; done
         for to in {v6} fd00:210::1 2001:db8::2; do ping6 -c1 -W5 $to >/dev/null && echo reached $to; done
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {v4} 80"
    );
    let output = client.sh(&script).output()?;
    for wanted in [&v4, "10.210.0.1", "192.0.2.2", &v6, "fd00:210::1", "2001:db8::2"] {
        assert!(output.contains(&format!("reached {wanted}\n")), "{wanted}: {output}");
    }
    assert!(output.contains("\n1\n"), "the tuning plugin has set it: {output}");
    assert!(output.ends_with("hello\n"), "{output}");

    // To the pod: from the node by its address, from outside and from the node itself by host ports.
    assert_eq!(fetch(inside, &format!("[{v6}]:80"))?, "hello");
    assert_eq!(fetch(&outside, "192.0.2.1:8080")?, "hello");
    assert_eq!(fetch(&outside, "[2001:db8::1]:8080")?, "hello");
    assert_eq!(fetch(&outside, "192.0.2.1:8081")?, "hello");
    assert_eq!(fetch(inside, "127.0.0.1:8080")?, "hello");
    let rules = rules(&node)?;
    for wanted in ["-p udp", "-p sctp", "--dport 5353", "--dport 9999"] {
        assert!(rules.contains(wanted), "{wanted} is not in {rules}");
    }

    // The daemon's death changes nothing of it.
    node.kill9()?;
    assert_eq!(fetch(&outside, "192.0.2.1:8080")?, "hello");
    node.launch()?;
    let client = node.client()?;
    let network = client.pod(&server.id)?.network.context("no network status")?;
    assert_eq!((&network.ip, &network.additional_ips[0].ip), (&v4, &v6));
    client.remove_pod(&server.id)?;
    assert!(!self::rules(&node)?.contains(&v4), "{}", self::rules(&node)?);
    Ok(())
}

#[test]
fn a_bandwidth_is_kept() -> Outcome {
    let chain = json!([dual_stack(), { "type": "bandwidth", "capabilities": { "bandwidth": true } }]);
    let Some(node) = node("a_bandwidth_is_kept", &chain)? else { return Ok(()) };
    let builder = PodBuilder::new(&node, "slow").own_network().with(|config| {
        config.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "8M".to_owned());
    });
    let pod = match builder.run(&node) {
        Err(error) if format!("{error:#}").contains("qdisc") => {
            skip("a_bandwidth_is_kept", "this kernel has no token bucket filter (sch_tbf)");
            return Ok(());
        }
        other => other?,
    };
    let shown = node.namespace()?.stdout("tc", &["qdisc", "show"])?;
    assert!(shown.contains("tbf") && shown.contains("8Mbit"), "{shown}");
    pod.remove()?;
    Ok(())
}

#[test]
fn a_range_that_is_full_says_so_and_leaves_nothing() -> Outcome {
    let range = json!([[{ "subnet": "10.211.0.0/29" }]]);
    let Some(node) =
        node("a_range_that_is_full_says_so_and_leaves_nothing", &json!([bridge(&range), portmap()]))?
    else {
        return Ok(());
    };
    let mut pods = Vec::new();
    let error = loop {
        match PodBuilder::new(&node, &format!("pod{}", pods.len())).own_network().run(&node) {
            Ok(pod) => pods.push(pod),
            Err(error) => break format!("{error:#}"),
        }
    };
    assert_eq!(pods.len(), 5, "a /29 has five beside its gateway: {error}");
    assert!(error.contains("plugin bridge (ADD)") && error.contains("no IP addresses available"), "{error}");
    let before = links(node.namespace()?.pid())?;
    assert_eq!(before.len(), 2 + pods.len(), "lo, cni0 and one each: {before:?}");
    pods[0].remove()?;
    PodBuilder::new(&node, "next").own_network().run(&node)?;
    Ok(())
}

#[test]
fn many_pods_leave_no_address_link_rule_or_file() -> Outcome {
    let workers = deadline::rounds(8, 2);
    let chain = json!([dual_stack(), portmap(), { "type": "firewall" }]);
    let Some(node) = node("many_pods_leave_no_address_link_rule_or_file", &chain)? else { return Ok(()) };
    // The whole number by hand: each costs some twenty processes.
    let given = std::env::var("PODWRIGHT_TEST_PODS").ok().and_then(|text| text.parse().ok());
    let count: usize = given.unwrap_or(deadline::rounds(24, 4));
    let life = |number: usize| -> Outcome {
        let pod = PodBuilder::new(&node, &format!("many{number}"))
            .own_network()
            .with(|config| {
                config.port_mappings = vec![v1::PortMapping {
                    container_port: 80,
                    host_port: i32::try_from(20_000 + number).unwrap_or_default(),
                    ..Default::default()
                }];
            })
            .run(&node)?;
        let (v4, _) = addresses(&pod)?;
        ensure!(v4.starts_with("10.210."), "{v4}");
        Ok(pod.remove()?)
    };
    life(0)?;
    let lasting = |node: &Node| -> Result<_> {
        let leases: BTreeSet<_> = fs::read_dir(node.path().join("ipam/pods"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        Ok((links(node.namespace()?.pid())?, without_counters(&rules(node)?), leases))
    };
    let mut before = lasting(&node)?;
    std::thread::scope(|scope| -> Outcome {
        let worker = |worker: usize| move || (worker + 1..=count).step_by(workers).try_for_each(life);
        let workers: Vec<_> = (0..workers).map(|number| scope.spawn(worker(number))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
    })?;
    let mut after = lasting(&node)?;
    // host-local remembers in a file which address it gave out last.
    for leases in [&mut before.2, &mut after.2] {
        leases.retain(|name| !name.starts_with("last_reserved_ip") && name != "lock");
        ensure!(leases.is_empty(), "leases: {leases:?}");
    }
    assert_eq!(before, after);
    assert_eq!(fs::read_dir(node.path().join("state/pods"))?.count(), 0);
    assert_eq!(fs::read_dir(node.path().join("run/pods"))?.count(), 0);
    Ok(())
}
