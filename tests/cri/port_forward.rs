//! `PortForward` over WebSocket, to servers in the pod's own network namespace.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use podwright_tests::streaming::Streaming;
use podwright_tests::{Node, Outcome, Pod, PodBuilder, v1};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic::Code;

const V4: Option<&str> = Some("v4.channel.k8s.io");

fn url(pod: &Pod, ports: &[u16]) -> anyhow::Result<String> {
    let port = ports.iter().map(|port| i32::from(*port)).collect();
    Ok(pod.client.port_forward(v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port })?.url)
}

/// Listens inside the pod; each connection is served by `serve` in a thread.
pub(super) fn serve(
    node: &Node,
    pod: &Pod,
    address: &'static str,
    serve: fn(TcpStream),
) -> anyhow::Result<u16> {
    let netns = node.path().join("run/pods").join(&pod.id).join("netns");
    let listener = std::thread::spawn(move || -> anyhow::Result<TcpListener> {
        let netns = std::fs::File::open(netns)?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network))?;
        Ok(TcpListener::bind(address)?)
    });
    let listener = listener.join().expect("the thread does not panic")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(port)
}

pub(super) fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

fn greet(mut stream: TcpStream) {
    let _ = stream.write_all(b"hello\n");
}

fn opened(pod: &Pod, ports: &[u16]) -> anyhow::Result<Streaming> {
    let mut stream = Streaming::open(&url(pod, ports)?, V4)?;
    for (number, port) in (0_u8..).zip(ports) {
        for channel in [2 * number, 2 * number + 1] {
            assert_eq!(stream.read_exactly(channel, 2)?, port.to_le_bytes());
        }
    }
    Ok(stream)
}

#[test]
fn bytes_go_both_ways_over_either_loopback() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "forward").own_network().run(&node)?;
    let ports = [serve(&node, &pod, "127.0.0.1:0", echo)?, serve(&node, &pod, "[::1]:0", echo)?];
    let mut stream = opened(&pod, &ports)?;
    let data: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 251) as u8).collect();
    for channel in [0, 2] {
        stream.pour(channel, &data)?;
        assert!(stream.read_exactly(channel, data.len())? == data);
    }
    Ok(())
}

#[test]
fn the_session_ends_when_the_pod_has_said_all() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "ends").own_network().run(&node)?;
    let port = serve(&node, &pod, "127.0.0.1:0", greet)?;
    let mut stream = opened(&pod, &[port])?;
    assert_eq!(stream.read_exactly(0, 6)?, b"hello\n");
    stream.finish()?;
    Ok(())
}

#[test]
fn a_port_where_nobody_listens_is_told_on_its_error_channel() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "nobody").own_network().run(&node)?;
    // It listens on the host, and there only.
    let host = TcpListener::bind("127.0.0.1:0")?;
    let port = host.local_addr()?.port();
    let mut stream = opened(&pod, &[port])?;
    let error = stream.read_text(1, "refused")?;
    assert!(error.contains(&format!("port {port}")) && error.contains(&pod.id), "{error}");
    stream.finish()?;
    Ok(())
}

#[test]
fn a_pod_of_the_hosts_network_forwards_the_hosts_ports() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "host").run(&node)?;
    let host = TcpListener::bind("127.0.0.1:0")?;
    let port = host.local_addr()?.port();
    std::thread::spawn(move || host.accept().map(|(stream, _)| greet(stream)));
    let mut stream = opened(&pod, &[port])?;
    assert_eq!(stream.read_exactly(0, 6)?, b"hello\n");
    Ok(())
}

#[test]
fn what_cannot_be_forwarded_is_an_error_of_the_call_or_of_the_request() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "refused").own_network().run(&node)?;
    let call = |pod_sandbox_id: &str, port: &[i32]| {
        let request =
            v1::PortForwardRequest { pod_sandbox_id: pod_sandbox_id.to_owned(), port: port.to_vec() };
        pod.client.port_forward(request)
    };
    assert_eq!(call("0123456789", &[]).unwrap_err().code(), Code::NotFound);
    for port in [0, -1, 65536] {
        assert_eq!(call(&pod.id, &[port]).unwrap_err().code(), Code::InvalidArgument, "{port}");
    }
    let refused = Streaming::open(&url(&pod, &[])?, V4).unwrap_err();
    assert!(refused.to_string().starts_with("400"), "{refused:?}");
    pod.stop()?;
    assert_eq!(call(&pod.id, &[80]).unwrap_err().code(), Code::FailedPrecondition);
    Ok(())
}
