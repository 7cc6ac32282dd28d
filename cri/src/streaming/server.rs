//! Listening, TLS, HTTP up to the upgrade, and the bounds of all that.
//!
//! ```text
//! accept --TLS, headers: HANDSHAKE_DEADLINE; at most MAX_HANDSHAKES--> 404 / 400 / 101 --upgraded: at most MAX_SESSIONS--> session
//! ```
//!
//! A client that says nothing loses its connection at the deadline; when all places are taken the next ones wait in the kernel's queue.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::Instrument as _;

use super::request::{self, Refusal, Upgrade};
use super::tickets::{Ticket, Urls};
use super::tls::Tls;
use super::{attach, client, exec, forward};
use crate::config::Streaming;
use crate::daemon::Daemon;
use crate::error::Error;

/// The most connections that are not upgraded yet.
const MAX_HANDSHAKES: usize = 1024;

/// The most upgraded connections.
const MAX_SESSIONS: usize = 1024;

/// How long a client may take from its connection to the end of its headers.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// The most that a request's line and headers may have, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// How long a silent peer is not asked whether it is there, and how long each of these questions waits: as with containerd.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// After how many of them without an answer it is gone.
const KEEPALIVE_PROBES: u32 = 9;

/// How long nothing is accepted after a failure to: descriptors have run out, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening server.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    urls: Arc<Urls>,
    idle: Option<Duration>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("urls", &self.urls).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens as the configuration says.
    pub async fn bind(config: &Streaming) -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            Error::internal(format!("listen for streaming on {}", config.address), error)
        };
        let tls = Tls::load(config)?.map(Arc::new);
        let listener = TcpListener::bind(&config.address).await.map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let urls = Urls::new(base(scheme, &config.host, listener.local_addr().map_err(failed)?));
        let idle =
            (config.idle_timeout_seconds > 0).then(|| Duration::from_secs(config.idle_timeout_seconds));
        Ok(Self { listener, tls, urls: Arc::new(urls), idle })
    }

    /// Where its URLs are made.
    pub fn urls(&self) -> Arc<Urls> {
        self.urls.clone()
    }

    /// Serves until `shutdown` is true. Sessions go on for as long as the daemon does.
    pub async fn run(self, daemon: Arc<Daemon>, mut shutdown: watch::Receiver<bool>) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let sessions = Arc::new(Semaphore::new(MAX_SESSIONS));
        let shared = Arc::new(Shared { daemon, urls: self.urls, sessions, idle: self.idle });
        loop {
            let accept = async {
                // Never closed, so there is always a place at some time.
                let place = handshakes.clone().acquire_owned().await.ok();
                (self.listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accept => accepted,
                _ = shutdown.wait_for(|ending| *ending) => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let greeting = greet(shared.clone(), self.tls.clone(), stream, peer);
                    tokio::spawn(async move {
                        greeting.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a streaming connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// What every connection needs.
#[derive(Debug)]
struct Shared {
    daemon: Arc<Daemon>,
    urls: Arc<Urls>,
    sessions: Arc<Semaphore>,
    /// How long a session may be silent; None: for ever.
    idle: Option<Duration>,
}

/// The beginning of every URL. A server that listens everywhere is named by its loopback address: kubelet is on the same node.
fn base(scheme: &str, host: &str, bound: SocketAddr) -> String {
    if !host.is_empty() {
        let bracketed = host.parse::<std::net::Ipv6Addr>().is_ok();
        let host = if bracketed { format!("[{host}]") } else { host.to_owned() };
        return format!("{scheme}://{host}:{}", bound.port());
    }
    let reached = match bound {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        bound => bound,
    };
    format!("{scheme}://{reached}")
}

/// Takes a connection up to its upgrade or its end.
async fn greet(shared: Arc<Shared>, tls: Option<Arc<Tls>>, stream: TcpStream, peer: SocketAddr) {
    // Keystrokes are not to wait for more of them.
    if let Err(error) = stream.set_nodelay(true).and_then(|()| Ok(keep_alive(&stream)?)) {
        tracing::debug!(%error, %peer, "a streaming connection's options");
    }
    let Some(tls) = tls else { return serve(shared, stream, peer).await };
    match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => serve(shared, stream, peer).await,
        Ok(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// Has the kernel find out a peer that is gone without a word.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_socket_keepalive(stream, true)
}

async fn serve<T>(shared: Arc<Shared>, stream: T, peer: SocketAddr)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, request)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_DEADLINE)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "a streaming connection ended");
    }
}

/// Answers a request, and has its session begin where it is upgraded.
fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Response<String> {
    // Taken first, so that a URL is not used up for nothing.
    let Ok(place) = shared.sessions.clone().try_acquire_owned() else { return Refusal::busy().response() };
    let method = request.method();
    let found = (method == Method::GET || method == Method::POST)
        .then(|| shared.urls.redeem(request.uri().path()))
        .flatten();
    let Some(ticket) = found else { return Refusal::not_found().response() };
    let (daemon, idle) = (shared.daemon.clone(), shared.idle);
    let response = match ticket {
        Ticket::Exec { container, command, streams } => {
            request::remote_command(request.headers()).map(|upgrade| {
                let (protocol, span) = (upgrade.protocol, tracing::debug_span!("exec_session", container));
                begin(&mut request, &upgrade, span, async move |upgraded| {
                    let Some(client) = client::open(upgraded, protocol, streams, idle).await else { return };
                    let gone = client.connection.gone();
                    hold(place, gone, exec::run(&daemon, &container, command, streams, client)).await;
                })
            })
        }
        Ticket::Attach { container, streams } => request::remote_command(request.headers()).map(|upgrade| {
            let (protocol, span) = (upgrade.protocol, tracing::debug_span!("attach_session", container));
            begin(&mut request, &upgrade, span, async move |upgraded| {
                let _place = place;
                let Some(client) = client::open(upgraded, protocol, streams, idle).await else { return };
                attach::run(&daemon, &container, streams, client).await;
            })
        }),
        Ticket::PortForward { pod, ports } => {
            request::port_forward(request.headers(), ports.len()).map(|upgrade| {
                let (protocol, span) = (upgrade.protocol, tracing::debug_span!("port_forward_session", pod));
                begin(&mut request, &upgrade, span, async move |upgraded| {
                    let _place = place;
                    forward::run(&daemon, &pod, &ports, protocol, upgraded, idle).await;
                })
            })
        }
    };
    response.unwrap_or_else(Refusal::response)
}

/// Answers with the upgrade, after which `session` has the connection.
fn begin<P, F: Future<Output = ()> + Send>(
    request: &mut Request<Incoming>,
    upgrade: &Upgrade<P>,
    span: tracing::Span,
    session: impl FnOnce(Upgraded) -> F + Send + 'static,
) -> Response<String> {
    let upgrading = hyper::upgrade::on(request);
    let session = async move {
        match upgrading.await {
            Ok(upgraded) => session(upgraded).await,
            Err(error) => tracing::debug!(%error, "the client left before its connection was upgraded"),
        }
    };
    tokio::spawn(session.instrument(span));
    upgrade.response()
}

/// Gives the place up when the client is gone; the session may have to see its process end after that.
async fn hold(
    place: OwnedSemaphorePermit,
    gone: impl Future<Output = ()>,
    session: impl Future<Output = ()>,
) {
    let mut session = pin!(session);
    tokio::select! {
        () = &mut session => return,
        () = gone => drop(place),
    }
    session.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_that_can_be_reached() {
        let base = |host: &str, bound: &str| base("http", host, bound.parse().unwrap());
        assert_eq!(base("", "127.0.0.1:40"), "http://127.0.0.1:40");
        assert_eq!(base("", "0.0.0.0:40"), "http://127.0.0.1:40");
        assert_eq!(base("", "[::]:40"), "http://[::1]:40");
        assert_eq!(base("node.example", "0.0.0.0:40"), "http://node.example:40");
        assert_eq!(base("fd00::7", "[::]:40"), "http://[fd00::7]:40");
    }
}
