//! Port-forward over SPDY: `portforward.k8s.io`, on a connection of its own or in WebSocket messages.
//!
//! For each connection the client opens two streams, `error` and `data`, with the headers `port` and `requestid`, which pairs them.
//! What goes wrong is told on the first of them, in words; without a word both end.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy_bidirectional_with_sizes};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::{self, Message};

use super::forward::{READ_BYTES, Target};
use super::spdy::{Incoming, Options, ResetStatus, Session, Stream};
use super::websocket::Socket;

/// How long one stream of a pair waits for the other, as with kubelet.
const PAIR_DEADLINE: Duration = Duration::from_secs(30);

/// One stream of a pair that waits for the other.
struct Half {
    port: u16,
    is_error: bool,
    stream: Stream,
    until: Instant,
}

/// Forwards connections until the client leaves.
pub(super) async fn run<T>(io: T, options: Options, target: &Target)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut session = Session::start(io, options);
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let oldest = halves.values().map(|half| half.until).min();
        let next = async {
            match oldest {
                Some(until) => timeout_at(until, session.accept()).await,
                None => Ok(session.accept().await),
            }
        };
        tokio::select! {
            incoming = next => match incoming {
                Ok(Some(incoming)) => {
                    if let Some((port, data, error)) = pair(&mut halves, incoming) {
                        forwards.spawn(forward(target.clone(), port, data, error));
                    }
                }
                Ok(None) => break,
                Err(_) => halves.retain(|_, half| half.until > Instant::now()),
            },
            Some(_) = forwards.join_next() => {}
        }
    }
    // Connections of a client that is gone are of no use; dropping them closes them.
    forwards.shutdown().await;
    session.close().await;
}

/// Takes a stream; port, data and error when it completes a pair. Streams that are no good are reset.
fn pair(halves: &mut HashMap<String, Half>, incoming: Incoming) -> Option<(u16, Stream, Stream)> {
    let headers = incoming.headers();
    let is_error = match headers.get("streamtype") {
        Some("error") => true,
        Some("data") => false,
        _ => return None,
    };
    let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0)?;
    let request = match headers.get("requestid") {
        Some(request) => request.to_owned(),
        // The oldest clients have no such header, and open the two one after the other.
        None if is_error => incoming.id().to_string(),
        None => incoming.id().saturating_sub(2).to_string(),
    };
    match halves.remove(&request) {
        Some(other) if other.port == port && other.is_error != is_error => {
            let stream = incoming.accept();
            Some(if is_error { (port, other.stream, stream) } else { (port, stream, other.stream) })
        }
        Some(_) => {
            incoming.refuse(ResetStatus::ProtocolError);
            None
        }
        None => {
            let half =
                Half { port, is_error, stream: incoming.accept(), until: Instant::now() + PAIR_DEADLINE };
            halves.insert(request, half);
            None
        }
    }
}

/// One connection.
async fn forward(target: Target, port: u16, mut data: Stream, mut error: Stream) {
    match target.connect(port).await {
        Ok(mut stream) => {
            // The client tells an error by what is written on its stream, so its end may come at once.
            drop(error);
            let carried = copy_bidirectional_with_sizes(&mut data, &mut stream, READ_BYTES, READ_BYTES).await;
            if let Err(error) = carried {
                tracing::debug!(port, %error, "a forwarded connection broke");
                data.reset(ResetStatus::Cancel);
            }
        }
        Err(sentence) => {
            tracing::info!(pod = target.id(), port, error = sentence, "a port cannot be forwarded");
            let _ = error.write_all(sentence.as_bytes()).await;
        }
    }
}

/// Bytes in WebSocket messages.
pub(super) struct Tunnel {
    socket: Socket,
    /// Of the last message, what is not read yet.
    read: Bytes,
}

impl Tunnel {
    /// All messages of `socket`, one after the other.
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, read: Bytes::new() }
    }
}

fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.read = bytes,
                Some(Ok(_)) => {}
                Some(Err(tungstenite::Error::ConnectionClosed)) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let count = into.remaining().min(self.read.len());
        into.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(io_error)?;
        let bytes = &bytes[..bytes.len().min(READ_BYTES)];
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context).map_err(io_error)
    }
}
