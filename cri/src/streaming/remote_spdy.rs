//! Exec and attach over SPDY: `channel.k8s.io` (v1) to v5.channel.k8s.io.
//!
//! The client opens a stream each for `error`, `stdin`, `stdout`, `stderr` and `resize` (v3 and later, with a terminal), named by the header
//! `streamtype`. A stream is half-closed by its FIN, so nothing else is needed for the end of input.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::{self, Client, HEAD_BYTES, Input, Output};
use super::sizes::{Size, SizeReader};
use super::spdy::{Closed, Options, ResetStatus, Session, Stream, WriteHalf};
use super::status::Outcome;
use super::tickets::Streams;

/// How long a client may take to open its streams, as with kubelet.
const STREAMS_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client may take to read the status.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// One read of what the client types.
const READ_BYTES: usize = 64 * 1024;

/// What the versions differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// There is a stream for the size of a terminal.
    pub(super) resize: bool,
    /// The status is JSON.
    pub(super) json_status: bool,
}

/// The connection of exec or attach beside its streams.
#[derive(Debug)]
pub(super) struct Connection {
    error: WriteHalf,
    json_status: bool,
    closed: Closed,
    finish: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

/// The streams by their types.
#[derive(Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Waits until the client has opened its streams. None: it has not, in time.
pub(super) async fn open(
    upgraded: Upgraded,
    format: Format,
    streams: Streams,
    options: Options,
) -> Option<Client> {
    let mut session = Session::start(TokioIo::new(upgraded), options);
    let mut opened = Opened::default();
    let waited = timeout(STREAMS_DEADLINE, opened.wait(&mut session, format, streams)).await;
    let Some(error) = opened.error.take().filter(|_| matches!(waited, Ok(true))) else {
        tracing::debug!("the client did not open its streams");
        session.close().await;
        return None;
    };
    let closed = session.closed();
    let (finish, finished) = oneshot::channel();
    let keeper = tokio::spawn(keep(session, finished));
    let (sizes_sender, sizes) = watch::channel(None);
    match opened.resize {
        Some(resize) => drop(tokio::spawn(read_sizes(resize, sizes_sender))),
        None => drop(sizes_sender),
    }
    // What a client sends on a stream of output is discarded.
    let writer = |stream: Stream| stream.into_split().1;
    Some(Client {
        stdin: opened.stdin.map(Input::Spdy),
        stdout: opened.stdout.map(writer).map(Output::Spdy),
        stderr: opened.stderr.map(writer).map(Output::Spdy),
        sizes,
        connection: client::Connection::Spdy(Connection {
            error: writer(error),
            json_status: format.json_status,
            closed,
            finish,
            keeper,
        }),
    })
}

impl Opened {
    /// True once all are there that the request asks for; false when the client leaves before.
    async fn wait(&mut self, session: &mut Session, format: Format, streams: Streams) -> bool {
        while !self.complete(format, streams) {
            let Some(incoming) = session.accept().await else { return false };
            let wanted = match incoming.headers().get("streamtype") {
                Some("error") => Some(&mut self.error),
                Some("stdin") if streams.stdin => Some(&mut self.stdin),
                Some("stdout") if streams.stdout => Some(&mut self.stdout),
                Some("stderr") if streams.stderr => Some(&mut self.stderr),
                Some("resize") if streams.tty && format.resize => Some(&mut self.resize),
                _ => None,
            };
            match wanted {
                Some(place @ None) => *place = Some(incoming.accept()),
                _ => incoming.refuse(ResetStatus::RefusedStream),
            }
        }
        true
    }

    fn complete(&self, format: Format, streams: Streams) -> bool {
        let there = |wanted: bool, stream: &Option<Stream>| !wanted || stream.is_some();
        self.error.is_some()
            && there(streams.stdin, &self.stdin)
            && there(streams.stdout, &self.stdout)
            && there(streams.stderr, &self.stderr)
            && there(streams.tty && format.resize, &self.resize)
    }
}

/// Holds the session until it is finished or over. Streams beyond those that are needed are refused.
async fn keep(mut session: Session, mut finished: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            incoming = session.accept() => match incoming {
                Some(incoming) => incoming.refuse(ResetStatus::RefusedStream),
                None => break,
            },
            _ = &mut finished => return session.close().await,
        }
    }
    // The client opens no more streams; those it has go on.
    let mut closed = session.closed();
    tokio::select! {
        () = closed.wait() => {}
        _ = finished => session.close().await,
    }
}

async fn read_sizes(mut stream: Stream, sizes: watch::Sender<Option<Size>>) {
    let (mut reader, mut bytes) = (SizeReader::default(), BytesMut::with_capacity(1024));
    while !matches!(stream.read_buf(&mut bytes).await, Ok(0) | Err(_)) {
        if let Some(size) = reader.feed(&bytes) {
            sizes.send_replace(Some(size));
        }
        bytes.clear();
    }
}

/// See [`Input::read`]. The stream is kept whole: a client takes the end of the other direction for the end of its input.
pub(super) async fn read(stream: &mut Stream) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(READ_BYTES);
    match stream.read_buf(&mut bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(bytes.freeze()),
    }
}

/// See [`Output::send`].
pub(super) async fn send(stream: &mut WriteHalf, buffer: &mut BytesMut) -> io::Result<()> {
    let sent = stream.write_all(&buffer[HEAD_BYTES..]).await;
    buffer.clear();
    sent
}

impl Connection {
    /// See [`client::Connection::gone`].
    pub(super) fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.closed.clone();
        async move { closed.wait().await }
    }

    /// See [`client::Connection::finish`].
    pub(super) async fn finish(mut self, outcome: &Outcome) {
        if let Some(text) = outcome.encode(self.json_status) {
            let told = timeout(STATUS_DEADLINE, self.error.write_all(text.as_bytes())).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::debug!("the client does not learn how it ended");
            }
        }
        drop(self.error);
        // Gone already where the client is.
        let _ = self.finish.send(());
        let _ = self.keeper.await;
    }
}
