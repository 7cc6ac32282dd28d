//! Ports of a pod, reached from outside: a connection to its loopback for each that a client wants.
//!
//! A socket belongs for ever to the network namespace it was made in, so a thread makes it there (see
//! [`runtime::netns::tcp_socket`]) and everything else is done here. The loopback of IPv4 is tried first, then that of IPv6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tracing::debug_span;

use super::request::PortForward;
use super::spdy::Options;
use super::{forward_spdy, forward_websocket, websocket};
use crate::check;
use crate::daemon::{Daemon, blocking};
use crate::error::Error;

/// How long a program may take to accept: what listens and does not accept has a queue that fills.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// One read.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// A pod whose ports are wanted.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Its id, for messages.
    pod: Arc<str>,
    /// Where its network namespace is pinned. None: it has the host's.
    netns: Option<PathBuf>,
}

/// The pod's network as it is now.
///
/// # Errors
/// `NOT_FOUND`, or `FAILED_PRECONDITION` where it is not ready.
pub(super) fn target(daemon: &Daemon, id: &str) -> Result<Target, Error> {
    let pod = daemon.store.pod(check::id("pod_sandbox_id", id)?)?;
    let view = pod.view();
    if !view.ready {
        return Err(Error::FailedPrecondition {
            what: "pod sandbox",
            id: view.record.id.clone(),
            reason: "is not ready".into(),
        });
    }
    let netns = (!view.pod.namespaces.host_network()).then(|| daemon.directories(&view.record.id).netns());
    Ok(Target { pod: view.record.id.as_str().into(), netns })
}

/// Forwards until the client leaves, is silent for as long as `idle`, or all is done.
pub(super) async fn run(
    daemon: &Daemon,
    pod: &str,
    ports: &[u16],
    protocol: PortForward,
    upgraded: Upgraded,
    idle: Option<Duration>,
) {
    // It was there when the URL was given out; if it is gone now, so are its ports.
    let target = match target(daemon, pod) {
        Ok(target) => target,
        Err(error) => {
            tracing::info!(pod, error = error.sentence(), "ports cannot be forwarded");
            return;
        }
    };
    match protocol {
        PortForward::WebSocket { base64 } => {
            forward_websocket::run(websocket::accept(upgraded, idle).await, base64, ports, &target).await;
        }
        PortForward::Spdy => forward_spdy::run(TokioIo::new(upgraded), Options { idle }, &target).await,
        PortForward::Tunnel => {
            let tunnel = forward_spdy::Tunnel::new(websocket::accept(upgraded, idle).await);
            forward_spdy::run(tunnel, Options { idle }, &target).await;
        }
    }
}

impl Target {
    /// The pod's id.
    pub(super) fn id(&self) -> &str {
        &self.pod
    }

    /// Connects to a port on the pod's loopback.
    ///
    /// # Errors
    /// What the first attempt said; a sentence for the client.
    pub(super) async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let mut first = None;
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            match tokio::time::timeout(CONNECT_DEADLINE, self.connect_to((ip, port).into())).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => first = first.or(Some(error.to_string())),
                Err(_) => first = first.or(Some(format!("nothing was accepted within {CONNECT_DEADLINE:?}"))),
            }
        }
        let cause = first.unwrap_or_default();
        Err(format!("error forwarding port {port} to pod {}: connect to localhost:{port}: {cause}", self.pod))
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let (netns, v6) = (self.netns.clone(), address.is_ipv6());
        let make = move || {
            runtime::netns::tcp_socket(netns.as_deref(), v6)
                .map_err(|failure| Error::internal("make a socket in the pod", failure))
        };
        let socket = blocking(debug_span!("pod_socket"), make).await;
        let socket = socket.map_err(|error| io::Error::other(error.sentence()))?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
