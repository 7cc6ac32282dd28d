//! The streams of exec and attach as the client sees them, whatever carries them.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use tokio::sync::{mpsc, watch};

use super::request::RemoteCommand;
use super::sizes::Size;
use super::spdy::{Options, Stream, WriteHalf};
use super::status::Outcome;
use super::tickets::Streams;
use super::{remote_spdy, websocket};

/// How much room a buffer has in front of what is sent.
pub(super) const HEAD_BYTES: usize = 1;

/// A client that is connected.
#[derive(Debug)]
pub(super) struct Client {
    /// What it types. None: it did not ask for it; so with the others.
    pub(super) stdin: Option<Input>,
    /// Where stdout goes.
    pub(super) stdout: Option<Output>,
    /// Where stderr goes.
    pub(super) stderr: Option<Output>,
    /// The newest size of its terminal; None: it has told none yet. Its sender goes with the client.
    pub(super) sizes: watch::Receiver<Option<Size>>,
    /// The rest of it.
    pub(super) connection: Connection,
}

/// What a client sends.
#[derive(Debug)]
pub(super) enum Input {
    /// Messages of the channel.
    WebSocket(mpsc::Receiver<Bytes>),
    /// A stream.
    Spdy(Stream),
}

/// Where output goes. Dropping it says that no more will come, where the protocol has a word for that.
#[derive(Debug)]
pub(super) enum Output {
    /// A channel.
    WebSocket(websocket::Channel),
    /// A stream.
    Spdy(WriteHalf),
}

/// A connection, to be told how the session ended.
#[derive(Debug)]
pub(super) enum Connection {
    /// Channels in messages.
    WebSocket(websocket::Connection),
    /// Streams.
    Spdy(remote_spdy::Connection),
}

/// The client at the other end of an upgraded connection, which may be silent for as long as `idle`. None: it has left already.
pub(super) async fn open(
    upgraded: Upgraded,
    protocol: RemoteCommand,
    streams: Streams,
    idle: Option<Duration>,
) -> Option<Client> {
    match protocol {
        RemoteCommand::WebSocket(format) => {
            Some(websocket::open(websocket::accept(upgraded, idle).await, format, streams))
        }
        RemoteCommand::Spdy(format) => remote_spdy::open(upgraded, format, streams, Options { idle }).await,
    }
}

impl Client {
    /// Tells that the session stands, where the protocol can. A client that has left is found out by what follows.
    pub(super) async fn ready(&mut self) {
        let told = match (self.stdout.as_mut().or(self.stderr.as_mut()), &mut self.connection) {
            (Some(Output::WebSocket(channel)), _) => channel.ready().await,
            (None, Connection::WebSocket(connection)) => connection.ready().await,
            // The answers to its streams have told it.
            (_, Connection::Spdy(_)) | (Some(Output::Spdy(_)), _) => Ok(()),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "the client left before its session began");
        }
    }
}

impl Input {
    /// What has arrived. None: no more will, whether the client said so or is gone.
    pub(super) async fn read(&mut self) -> Option<Bytes> {
        match self {
            Self::WebSocket(messages) => messages.recv().await,
            Self::Spdy(stream) => remote_spdy::read(stream).await,
        }
    }
}

impl Output {
    /// Sends what is in `buffer` behind its [`HEAD_BYTES`] first, which are for the protocol, and empties it.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn send(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        match self {
            Self::WebSocket(channel) => channel.send(buffer).await,
            Self::Spdy(stream) => remote_spdy::send(stream, buffer).await,
        }
    }
}

impl Connection {
    /// Returns when the client is gone.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let (websocket, spdy) = match self {
            Self::WebSocket(connection) => (Some(connection.gone()), None),
            Self::Spdy(connection) => (None, Some(connection.gone())),
        };
        async move {
            if let Some(gone) = websocket {
                gone.await;
            }
            if let Some(gone) = spdy {
                gone.await;
            }
        }
    }

    /// Tells how it ended and closes the connection once the client has that, or at a deadline.
    pub(super) async fn finish(self, outcome: &Outcome) {
        match self {
            Self::WebSocket(connection) => connection.finish(outcome).await,
            Self::Spdy(connection) => connection.finish(outcome).await,
        }
    }
}
