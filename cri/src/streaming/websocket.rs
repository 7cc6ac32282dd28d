//! Channels in WebSocket messages: `channel.k8s.io` and its later versions.
//!
//! The first byte of a message is the number of its channel, the rest is data; in the `base64` forms the number is a digit and
//! the data is encoded. [`CLOSE`] (v5) says that the client sends no more on the channel named by the one byte after it.
//! The first message of the server is empty: it tells that the session stands.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::client::{self, Client, HEAD_BYTES, Input, Output};
use super::idle::IdleLimit;
use super::sizes::{Size, SizeReader};
use super::status::Outcome;
use super::tickets::Streams;

/// The longest message of a client. Clients that hand over a file at once send long ones.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// What is read from a connection at once.
const READ_BYTES: usize = 64 * 1024;

/// How long a client may take to read the status and to close.
const FINISH_DEADLINE: Duration = Duration::from_secs(10);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5: the client's half-close.
const CLOSE: u8 = 255;

/// What the versions differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// Channel and data are text.
    pub(super) base64: bool,
    /// [`CLOSE`] has a meaning.
    pub(super) half_close: bool,
    /// The status is JSON.
    pub(super) json_status: bool,
}

/// An upgraded connection that speaks WebSocket.
pub(super) type Socket = WebSocketStream<IdleLimit<TokioIo<Upgraded>>>;

/// What is written to, shared by all channels. Empty once the client is gone: the connection is closed then, whoever holds this.
#[derive(Debug, Clone)]
pub(super) struct Sink(Arc<Mutex<Option<SplitSink<Socket, Message>>>>);

/// A channel that is written to.
#[derive(Debug)]
pub(super) struct Channel {
    sink: Sink,
    number: u8,
    base64: bool,
}

/// The connection of exec or attach beside its channels.
#[derive(Debug)]
pub(super) struct Connection {
    error: Channel,
    json_status: bool,
    /// Reads and hands out until the client has closed.
    reader: JoinHandle<()>,
    ended: watch::Receiver<bool>,
}

/// Begins to speak WebSocket, with a client that may be silent for so long.
pub(super) async fn accept(upgraded: Upgraded, idle: Option<Duration>) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let io = IdleLimit::new(TokioIo::new(upgraded), idle);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Opens the channels of exec or attach.
pub(super) fn open(socket: Socket, format: Format, streams: Streams) -> Client {
    let (sink, stream) = socket.split();
    let sink = Sink::new(sink);
    let channel = |number| Channel::new(sink.clone(), number, format.base64);
    let output = |wanted: bool, number| wanted.then(|| channel(number));
    let (stdout, stderr) = (output(streams.stdout, STDOUT), output(streams.stderr, STDERR));
    let error = channel(ERROR);
    // One message waits while another is written: what a process does not read, its client does not send.
    let (stdin_sender, stdin) = streams.stdin.then(|| mpsc::channel(1)).unzip();
    let (sizes_sender, sizes) = watch::channel(None);
    let (ended_sender, ended) = watch::channel(false);
    let connection = sink.clone();
    let reader = tokio::spawn(async move {
        read(stream, format, stdin_sender, sizes_sender).await;
        ended_sender.send_replace(true);
        // What runs may be silent for ever, and would keep half a connection open to nobody.
        connection.let_go().await;
    });
    Client {
        stdin: stdin.map(Input::WebSocket),
        stdout: stdout.map(Output::WebSocket),
        stderr: stderr.map(Output::WebSocket),
        sizes,
        connection: client::Connection::WebSocket(Connection {
            error,
            json_status: format.json_status,
            reader,
            ended,
        }),
    }
}

/// Hands out what the client sends until it closes the connection or breaks the protocol.
async fn read(
    mut stream: SplitStream<Socket>,
    format: Format,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    sizes: watch::Sender<Option<Size>>,
) {
    let mut partial_size = SizeReader::default();
    while let Some(payload) = next(&mut stream).await {
        let Some((channel, data)) = decode(&payload, format) else {
            tracing::debug!("a message that is no base64: the connection is closed");
            return;
        };
        match channel {
            STDIN => {
                // Without a reader it is dropped: nobody waits for it.
                if let Some(stdin) = &stdin {
                    let _ = stdin.send(data).await;
                }
            }
            RESIZE => {
                if let Some(size) = partial_size.feed(&data) {
                    sizes.send_replace(Some(size));
                }
            }
            CLOSE if format.half_close && data.as_ref() == [STDIN] => stdin = None,
            _ => {}
        }
    }
}

/// What the next message holds. None: the client has closed the connection, or broken the protocol.
pub(super) async fn next(stream: &mut SplitStream<Socket>) -> Option<Bytes> {
    loop {
        match stream.next().await?.ok()? {
            Message::Binary(payload) => return Some(payload),
            Message::Text(text) => return Some(text.into()),
            // The answers to these are sent by the library; a close is followed by the end.
            Message::Close(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

/// Says that all was said, and waits until the client, whose messages `reader` reads, has closed too: with something unread in it, a
/// closed socket would take back what was sent. Not longer than [`FINISH_DEADLINE`].
pub(super) async fn close(sink: &Sink, reader: JoinHandle<()>) {
    let abort = reader.abort_handle();
    let close = async {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(frame))).await?;
        let _ = reader.await;
        io::Result::Ok(())
    };
    match tokio::time::timeout(FINISH_DEADLINE, close).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the client left before the end"),
        Err(_) => tracing::debug!("the client does not close: its connection is closed"),
    }
    abort.abort();
}

/// The channel and the data of a message; an empty one is of a channel that does not exist. None: not of the format.
pub(super) fn decode(payload: &Bytes, format: Format) -> Option<(u8, Bytes)> {
    const NONE: u8 = CLOSE - 1;
    let Some(&first) = payload.first() else { return Some((NONE, Bytes::new())) };
    if !format.base64 {
        return Some((first, payload.slice(1..)));
    }
    let data = BASE64.decode(&payload[1..]).ok()?;
    Some((first.checked_sub(b'0')?, data.into()))
}

impl Channel {
    /// The channel with this number of a connection.
    pub(super) fn new(sink: Sink, number: u8, base64: bool) -> Self {
        Self { sink, number, base64 }
    }

    /// Sends the first message.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        self.send(&mut BytesMut::zeroed(HEAD_BYTES)).await
    }

    /// Sends one message: what is in `buffer` behind its head. Empties the buffer, whose memory is used again once it is sent.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn send(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        let message = if self.base64 {
            let mut text = String::from(char::from(b'0'.saturating_add(self.number)));
            BASE64.encode_string(&buffer[HEAD_BYTES..], &mut text);
            buffer.clear();
            Message::Text(text.into())
        } else {
            buffer[0] = self.number;
            Message::Binary(buffer.split().freeze())
        };
        self.sink.send(message).await
    }
}

impl Sink {
    pub(super) fn new(sink: SplitSink<Socket, Message>) -> Self {
        Self(Arc::new(Mutex::new(Some(sink))))
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        match &mut *self.0.lock().await {
            Some(sink) => sink.send(message).await.map_err(io_error),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Closes the connection, whose other half is dropped.
    async fn let_go(&self) {
        *self.0.lock().await = None;
    }
}

impl Connection {
    /// See [`client::Connection::gone`].
    pub(super) fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            // An error is the end of the reader as well.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Sends the first message where there is no channel of output for it.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        self.error.ready().await
    }

    /// See [`client::Connection::finish`].
    pub(super) async fn finish(mut self, outcome: &Outcome) {
        if let Some(text) = outcome.encode(self.json_status) {
            let mut buffer = BytesMut::zeroed(HEAD_BYTES);
            buffer.extend_from_slice(text.as_bytes());
            let told = tokio::time::timeout(FINISH_DEADLINE, self.error.send(&mut buffer)).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::debug!("the client does not learn how it ended");
                self.reader.abort();
                return;
            }
        }
        close(&self.error.sink, self.reader).await;
    }
}

fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let format = |base64| Format { base64, half_close: true, json_status: true };
        let of = |bytes: &'static [u8], base64| decode(&Bytes::from_static(bytes), format(base64));
        let some = |channel, data: &'static [u8]| Some((channel, Bytes::from_static(data)));
        assert_eq!(of(b"\0abc", false), some(STDIN, b"abc"));
        assert_eq!(of(b"\xff\0", false), some(CLOSE, b"\0"));
        assert_eq!(of(b"0YWJj", true), some(STDIN, b"abc"));
        assert_eq!(of(b"4", true), some(RESIZE, b""));
        assert_eq!(of(b"0*", true), None);
        assert_eq!(of(b"\0YWJj", true), None);
        for base64 in [false, true] {
            let (channel, _) = of(b"", base64).unwrap();
            assert!(![STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE].contains(&channel));
        }
    }
}
