//! Port-forward in WebSocket messages: `v4.channel.k8s.io` with two channels for each port of the request, or a SPDY connection whose
//! bytes are the messages' (see [`Tunnel`]).
//!
//! The n-th port has the channels 2n for data and 2n + 1 for what went wrong; the first message on each is the port's number, two bytes
//! with the lower first. A channel has no end of its own but the connection's, so a port is over when the pod says no more.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::SplitStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::HEAD_BYTES;
use super::forward::{READ_BYTES, Target};
use super::websocket::{self, Channel, Format, Sink, Socket};

/// The most ports of one connection: channels are numbered in a byte.
pub(super) const MAX_PORTS: usize = 100;

/// Forwards the ports until the pod has closed all of them or the client leaves.
pub(super) async fn run(socket: Socket, base64: bool, ports: &[u16], target: &Target) {
    let (sink, stream) = socket.split();
    let sink = Sink::new(sink);
    let mut forwards = JoinSet::new();
    let mut senders = Vec::new();
    let mut number = 0;
    for &port in ports {
        // One message waits while another is written.
        let (sender, typed) = mpsc::channel(1);
        senders.push(sender);
        let data = Channel::new(sink.clone(), number, base64);
        let error = Channel::new(sink.clone(), number + 1, base64);
        number += 2;
        forwards.spawn(forward(target.clone(), port, data, error, typed));
    }
    let format = Format { base64, half_close: false, json_status: false };
    let reader = tokio::spawn(read(stream, format, senders));
    let abort = reader.abort_handle();
    let mut reader = reader;
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => websocket::close(&sink, reader).await,
        _ = &mut reader => {}
    }
    abort.abort();
}

/// Hands out what the client sends until it closes the connection or breaks the protocol.
async fn read(mut stream: SplitStream<Socket>, format: Format, senders: Vec<mpsc::Sender<Bytes>>) {
    while let Some(payload) = websocket::next(&mut stream).await {
        let Some((channel, data)) = websocket::decode(&payload, format) else { return };
        // Nothing is to be said on the channels of errors.
        let port = (channel % 2 == 0).then(|| senders.get(usize::from(channel / 2))).flatten();
        if let Some(port) = port {
            let _ = port.send(data).await;
        }
    }
}

/// One port.
async fn forward(
    target: Target,
    port: u16,
    mut data: Channel,
    mut error: Channel,
    typed: mpsc::Receiver<Bytes>,
) {
    let carried = async {
        data.send(&mut message(&port.to_le_bytes())).await?;
        error.send(&mut message(&port.to_le_bytes())).await?;
        match target.connect(port).await {
            Ok(stream) => carry(stream, &mut data, typed).await,
            Err(sentence) => {
                tracing::info!(pod = target.id(), port, error = sentence, "a port cannot be forwarded");
                error.send(&mut message(sentence.as_bytes())).await
            }
        }
    };
    if let Err(error) = carried.await {
        tracing::debug!(port, %error, "a forwarded connection broke");
    }
}

async fn carry(
    mut stream: tokio::net::TcpStream,
    data: &mut Channel,
    mut typed: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = stream.split();
    let up = async {
        while let Some(bytes) = typed.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.clear();
            buffer.put_bytes(0, HEAD_BYTES);
            buffer.reserve(READ_BYTES);
            if from_pod.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            data.send(&mut buffer).await?;
        }
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

fn message(bytes: &[u8]) -> BytesMut {
    let mut message = BytesMut::zeroed(HEAD_BYTES);
    message.extend_from_slice(bytes);
    message
}
