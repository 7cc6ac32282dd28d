//! A streaming session of the daemon's: exec or attach over WebSocket (`v5.channel.k8s.io`), between this program's stdio and a container.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::terminal::{self, Raw};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Typed one after the other they leave a container to itself, as docker's do.
const DETACH: [u8; 2] = [0x10, 0x11];

/// A connection to a streaming URL.
pub(crate) type Socket = WebSocketStream<TcpStream>;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The other side has ended, a command with this code.
    Code(i32),
    /// The person has left it.
    Detached,
    /// A signal that asks this program to end.
    Signalled(i32),
}

/// Which of this program's streams the session has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// What is typed goes there.
    pub(crate) stdin: bool,
    /// It has a terminal: ours becomes raw and tells its size.
    pub(crate) tty: bool,
}

/// Connects to a URL that the daemon gave out.
pub(crate) async fn connect(url: &str, protocol: &'static str) -> Result<Socket> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!(
            "the daemon's streaming server speaks TLS (streaming.tls_cert), which this program does not: use kubectl, or \
             crictl with --tls-ca; or leave streaming.tls_cert empty, if only this node's kubelet connects"
        );
    };
    let address = rest.split('/').next().unwrap_or_default();
    let stream = TcpStream::connect(address).await;
    let stream = stream.with_context(|| format!("connect to the daemon's streaming server at {address}"))?;
    stream.set_nodelay(true)?;
    let mut request = url.replacen("http", "ws", 1).into_client_request()?;
    let value = tungstenite::http::HeaderValue::from_static(protocol);
    request.headers_mut().insert("Sec-WebSocket-Protocol", value);
    let (socket, _) =
        tokio_tungstenite::client_async(request, stream).await.context("open a streaming session")?;
    Ok(socket)
}

/// Waits until the daemon has told that the session stands.
pub(crate) async fn ready(socket: &mut Socket) -> Result<()> {
    match socket.next().await {
        Some(Ok(message)) if message.clone().into_data().len() <= 1 => Ok(()),
        Some(Ok(message)) => bail!("{}", failure(&message.into_data()[1..])),
        Some(Err(error)) => Err(error.into()),
        None => bail!("the daemon has closed the session"),
    }
}

/// Carries this program's stdio until the session ends.
pub(crate) async fn carry(socket: Socket, wanted: Wanted) -> Result<Ended> {
    let raw = if wanted.tty && wanted.stdin { Raw::enter()? } else { None };
    let (mut sink, stream) = socket.split();
    let typed = wanted.stdin.then(read_stdin);
    let ended = tokio::select! {
        ended = print(stream) => ended,
        ended = send(&mut sink, typed, wanted) => ended,
        signal = told_to_end() => signal.map(Ended::Signalled),
    };
    drop(raw);
    ended
}

/// Prints what comes, and reads the status at the end.
async fn print(mut stream: SplitStream<Socket>) -> Result<Ended> {
    let mut status = Vec::new();
    while let Some(message) = stream.next().await {
        let payload = match message {
            Ok(Message::Close(_)) => break,
            Ok(message) => message.into_data(),
            Err(_) if !status.is_empty() => break,
            Err(error) => return Err(error).context("the streaming session broke"),
        };
        let Some((&channel, data)) = payload.split_first() else { continue };
        match channel {
            STDOUT => {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(data)?;
                stdout.flush()?;
            }
            STDERR => std::io::stderr().write_all(data)?,
            ERROR => status.extend_from_slice(data),
            _ => {}
        }
    }
    outcome(&status)
}

/// What the status says.
fn outcome(status: &[u8]) -> Result<Ended> {
    let value: Value = serde_json::from_slice(status).unwrap_or_default();
    if value["status"] == "Success" {
        return Ok(Ended::Code(0));
    }
    let causes = value["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        Some(code) => Ok(Ended::Code(code)),
        None => bail!("{}", failure(status)),
    }
}

fn failure(status: &[u8]) -> String {
    let value: Value = serde_json::from_slice(status).unwrap_or_default();
    let cause = value["details"]["causes"][0]["message"].as_str().or(value["message"].as_str());
    cause.unwrap_or("the session ended without saying how").to_owned()
}

/// Sends what is typed and the terminal's size. Ends only if the person leaves.
async fn send(
    sink: &mut SplitSink<Socket, Message>,
    mut typed: Option<mpsc::Receiver<Vec<u8>>>,
    wanted: Wanted,
) -> Result<Ended> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut held = false;
    if wanted.tty {
        send_size(sink).await?;
    }
    loop {
        let bytes = tokio::select! {
            bytes = receive(&mut typed) => bytes,
            _ = resized.recv(), if wanted.tty => {
                send_size(sink).await?;
                continue;
            }
        };
        let Some(bytes) = bytes else {
            typed = None;
            message(sink, CLOSE, &[STDIN]).await?;
            continue;
        };
        if !wanted.tty {
            message(sink, STDIN, &bytes).await?;
            continue;
        }
        let (bytes, left) = without_detach(&bytes, &mut held);
        if !bytes.is_empty() {
            message(sink, STDIN, &bytes).await?;
        }
        if left {
            return Ok(Ended::Detached);
        }
    }
}

/// What is to be sent of what was typed, and whether the person leaves. `held`: the first of the keys was the last that was typed.
fn without_detach(typed: &[u8], held: &mut bool) -> (Vec<u8>, bool) {
    let mut sent = Vec::with_capacity(typed.len() + 1);
    for &byte in typed {
        if std::mem::take(held) {
            if byte == DETACH[1] {
                return (sent, true);
            }
            sent.push(DETACH[0]);
        }
        if byte == DETACH[0] {
            *held = true;
        } else {
            sent.push(byte);
        }
    }
    (sent, false)
}

async fn send_size(sink: &mut SplitSink<Socket, Message>) -> Result<()> {
    let Some((width, height)) = terminal::size() else { return Ok(()) };
    let size = json!({"Width": width, "Height": height}).to_string();
    message(sink, RESIZE, size.as_bytes()).await
}

async fn message(sink: &mut SplitSink<Socket, Message>, channel: u8, data: &[u8]) -> Result<()> {
    let payload = [&[channel], data].concat();
    match sink.send(Message::Binary(payload.into())).await {
        // What came before the end is still to be read.
        Err(_) => std::future::pending().await,
        Ok(()) => Ok(()),
    }
}

async fn receive(typed: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads stdin in a thread, which waits in read(2) when this program ends: the runtime's own would be waited for.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// The signal that asks for the end.
async fn told_to_end() -> Result<i32> {
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    Ok(tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_seen_across_reads_and_nothing_else_is_lost() {
        let mut held = false;
        assert_eq!(without_detach(b"ab\x10c", &mut held), (b"ab\x10c".to_vec(), false));
        assert_eq!(without_detach(b"x\x10", &mut held), (b"x".to_vec(), false));
        assert_eq!(without_detach(b"\x10y", &mut held), (b"\x10\x10y".to_vec(), false));
        assert_eq!(without_detach(b"z\x10\x11more", &mut held), (b"z".to_vec(), true));
    }

    #[test]
    fn a_status_is_a_code_or_a_sentence() {
        let code = br#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(outcome(code).unwrap(), Ended::Code(7));
        assert_eq!(outcome(br#"{"status":"Success"}"#).unwrap(), Ended::Code(0));
        let failed = br#"{"status":"Failure","message":"m","details":{"causes":[{"message":"why"}]}}"#;
        assert_eq!(outcome(failed).unwrap_err().to_string(), "why");
        assert!(outcome(b"").is_err());
    }
}
