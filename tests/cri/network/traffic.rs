//! What host ports carry, and pods with a user namespace: the same on the built-in network as by Debian's plugins. The hosts are those of
//! [`super::plugins`].

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use podwright_tests::skip::skip;
use podwright_tests::{Deadline, NetworkNamespace, Node, Outcome, Pod, PodBuilder, seconds, v1};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use super::plugins::{addresses, fetch, serve};
use super::{builtin, plugins};

/// The node's addresses on the cable to the outside.
const NODE: [&str; 2] = ["192.0.2.1", "[2001:db8::1]"];

/// A node with its gateway's addresses, of each kind that this machine can have.
fn nodes(test: &str) -> Result<Vec<(Node, [&'static str; 2])>> {
    let built_in = builtin::node(test, builtin::DUAL)?.map(|node| (node, ["10.220.0.1", "fd00:220::1"]));
    let chain = json!([plugins::dual_stack(), plugins::portmap()]);
    let by_plugins = plugins::node(test, &chain)?.map(|node| (node, ["10.210.0.1", "fd00:210::1"]));
    Ok(built_in.into_iter().chain(by_plugins).collect())
}

/// The outside of a node.
fn outside(node: &Node) -> Result<NetworkNamespace> {
    let (inside, outside) = (node.namespace()?, NetworkNamespace::new()?);
    inside.connect(("up0", "192.0.2.1/24"), &outside, ("eth0", "192.0.2.2/24"))?;
    inside.ip(&["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"])?;
    outside.ip(&["addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad"])?;
    Ok(outside)
}

fn netns(node: &Node, pod: &Pod) -> PathBuf {
    node.path().join("run/pods").join(&pod.id).join("netns")
}

/// Runs `work` in a pod's network namespace.
fn within<T: Send>(netns: PathBuf, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        let namespace = File::open(netns)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(inside).join());
    done.unwrap_or_else(|_| bail!("the thread in the pod panicked"))
}

fn port(protocol: v1::Protocol, container_port: i32, host_port: i32) -> v1::PortMapping {
    v1::PortMapping { protocol: protocol.into(), container_port, host_port, ..Default::default() }
}

#[test]
fn a_pod_reaches_itself_by_its_host_port() -> Outcome {
    for (node, gateway) in nodes("a_pod_reaches_itself_by_its_host_port")? {
        let _outside = outside(&node)?;
        let pod = PodBuilder::new(&node, "hairpin")
            .own_network()
            .with(|config| config.port_mappings = vec![port(v1::Protocol::Tcp, 80, 8080)])
            .run(&node)?;
        serve(&pod, 80, "myself")?;
        let (v4, v6) = addresses(&pod)?;
        // It listens by then.
        assert_eq!(fetch(node.namespace()?, &format!("{v4}:80"))?, "myself");
        let own = [format!("{v4}:80"), format!("[{v6}]:80")];
        let by_the_node = NODE.map(|node| format!("{node}:8080"));
        let by_the_gateway = [format!("{}:8080", gateway[0]), format!("[{}]:8080", gateway[1])];
        let (path, deadline) = (netns(&node, &pod), Deadline::in_seconds(30));
        within(path, || {
            for url in own.iter().chain(&by_the_node).chain(&by_the_gateway) {
                let to: SocketAddr = url.parse()?;
                while let Err(error) = plugins::ask(to) {
                    ensure!(deadline.left().is_some(), "{url}: {error}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Sends a word until an answer comes.
fn asked(from: &NetworkNamespace, to: &str) -> Result<String> {
    let to: SocketAddr = to.parse()?;
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let deadline = Deadline::in_seconds(30);
    from.run(|| {
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(seconds(1)))?;
        let mut answer = [0; 64];
        loop {
            let _ = socket.send(b"word");
            match socket.recv(&mut answer) {
                Ok(length) => return Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
                Err(error) => ensure!(deadline.left().is_some(), "{to}: {error}"),
            }
        }
    })
}

#[test]
fn host_ports_carry_udp_in_both_families() -> Outcome {
    for (node, _) in nodes("host_ports_carry_udp_in_both_families")? {
        let outside = outside(&node)?;
        let pod = PodBuilder::new(&node, "udp")
            .own_network()
            .with(|config| config.port_mappings = vec![port(v1::Protocol::Udp, 53, 5353)])
            .run(&node)?;
        // Of both families, as Linux has it by default.
        let socket = within(netns(&node, &pod), || Ok(UdpSocket::bind("[::]:53")?))?;
        socket.set_read_timeout(Some(seconds(1)))?;
        let over = AtomicBool::new(false);
        let answers = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut word = [0; 64];
                while !over.load(Ordering::Relaxed) {
                    if let Ok((length, peer)) = socket.recv_from(&mut word) {
                        let _ = socket.send_to(&[&word[..length], b" back"].concat(), peer);
                    }
                }
            });
            let answers: Result<Vec<String>> =
                NODE.iter().map(|node| asked(&outside, &format!("{node}:5353"))).collect();
            over.store(true, Ordering::Relaxed);
            answers
        })?;
        assert_eq!(answers, ["word back", "word back"]);
    }
    Ok(())
}

fn sctp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let sctp = std::num::NonZeroU32::new(132).map(Protocol::from_raw);
    rustix::net::socket(family, SocketType::STREAM, sctp)
}

#[test]
fn host_ports_carry_sctp() -> Outcome {
    let test = "host_ports_carry_sctp";
    if let Err(error) = sctp("127.0.0.1:0".parse()?) {
        skip(test, &format!("this kernel has no SCTP: {error}"));
        return Ok(());
    }
    for (node, _) in nodes(test)? {
        let outside = outside(&node)?;
        let pod = PodBuilder::new(&node, "sctp")
            .own_network()
            .with(|config| config.port_mappings = vec![port(v1::Protocol::Sctp, 99, 9999)])
            .run(&node)?;
        for (any, node_address) in ["0.0.0.0:99", "[::]:99"].iter().zip(NODE) {
            let any: SocketAddr = any.parse()?;
            let listening = within(netns(&node, &pod), || {
                let socket = sctp(any)?;
                rustix::net::bind(&socket, &any)?;
                rustix::net::listen(&socket, 4)?;
                Ok(socket)
            })?;
            let to: SocketAddr = format!("{node_address}:9999").parse()?;
            let mut client = outside.run(|| {
                let socket = sctp(to)?;
                rustix::net::connect(&socket, &to).with_context(|| to.to_string())?;
                Ok(File::from(socket))
            })?;
            client.write_all(b"word")?;
            let mut server = File::from(rustix::net::accept(&listening)?);
            let mut word = [0; 4];
            server.read_exact(&mut word)?;
            server.write_all(b"back")?;
            client.read_exact(&mut word)?;
            assert_eq!(&word, b"back", "{to}");
        }
    }
    Ok(())
}

#[test]
fn a_pod_with_a_user_namespace_has_its_network() -> Outcome {
    let test = "a_pod_with_a_user_namespace_has_its_network";
    for (node, [gateway4, gateway6]) in nodes(test)? {
        let status = node.client()?.status(v1::StatusRequest::default())?;
        let handler = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
        let features = handler.and_then(|handler| handler.features);
        if !features.is_some_and(|features| features.user_namespaces) {
            skip(test, "the filesystem of the temporary directory does not support idmapped mounts");
            return Ok(());
        }
        let outside = outside(&node)?;
        let mapping = || vec![v1::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 }];
        let pod = PodBuilder::new(&node, "mapped")
            .own_network()
            .namespaces(|options| {
                options.userns_options = Some(v1::UserNamespace {
                    mode: v1::NamespaceMode::Pod as i32,
                    uids: mapping(),
                    gids: mapping(),
                });
            })
            .linux(|linux| {
                linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "70".to_owned());
            })
            .with(|config| config.port_mappings = vec![port(v1::Protocol::Tcp, 80, 8080)])
            .run(&node)?;
        let (v4, v6) = addresses(&pod)?;
        serve(&pod, 80, "mapped")?;
        for url in NODE.map(|node| format!("{node}:8080")) {
            assert_eq!(fetch(&outside, &url).context(url)?, "mapped");
        }
        let script = format!(
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip -o addr show dev eth0
             ping -c1 -W5 {gateway4} >/dev/null && echo raw4; ping6 -c1 -W5 {gateway6} >/dev/null && echo raw6
             ip link add mine type dummy 2>/dev/null; echo 60 >/proc/sys/net/ipv4/ip_default_ttl 2>/dev/null; true"
        );
        let output = pod.sh(&script).output()?;
        assert!(output.starts_with("70\n"), "{output}");
        for wanted in [&format!(" {v4}/"), &format!(" {v6}/"), "\nraw4\n", "\nraw6\n"] {
            assert!(output.contains(wanted), "{wanted}: {output}");
        }
        let path = netns(&node, &pod);
        pod.remove()?;
        assert_eq!(std::fs::metadata(path).map_err(|error| error.kind()).err(), Some(ErrorKind::NotFound));
        let left = podwright_tests::snapshot::links(node.namespace()?.pid())?;
        assert!(!left.iter().any(|link| link.starts_with("pw") || link.starts_with("veth")), "{left:?}");
    }
    Ok(())
}
