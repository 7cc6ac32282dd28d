//! A client of the daemon's streaming URLs over WebSocket: channels as kubectl and browsers use them. Blocking, like the CRI client.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::runtime::Runtime;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::{Deadline, seconds};

/// Numbers of the channels.
#[allow(missing_docs, reason = "their names say it")]
pub mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    pub const CLOSE: u8 = 255;
}

/// The newest subprotocol.
pub const V5: &str = "v5.channel.k8s.io";

/// An open session.
#[derive(Debug)]
pub struct Streaming {
    tokio: Runtime,
    socket: WebSocketStream<tokio::net::TcpStream>,
    /// What has arrived and was not taken, by channel.
    arrived: BTreeMap<u8, Vec<u8>>,
    /// The server has closed.
    ended: bool,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What came on the channel of stdout and was not taken before.
    pub stdout: String,
    /// The same of stderr.
    pub stderr: String,
    /// The error channel.
    pub status: String,
}

impl Ended {
    /// The exit code that the status tells (v4 and later).
    pub fn code(&self) -> Result<i32> {
        let status: serde_json::Value =
            serde_json::from_str(&self.status).with_context(|| format!("status {:?}", self.status))?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let causes = status["details"]["causes"].as_array().context("causes")?;
        let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode");
        let code = cause.and_then(|cause| cause["message"].as_str()).with_context(|| status.to_string())?;
        Ok(code.parse()?)
    }
}

impl Streaming {
    /// Connects, offering one subprotocol or none.
    pub fn open(url: &str, protocol: Option<&str>) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let address = address(url)?;
        let mut request = url.replacen("http", "ws", 1).into_client_request()?;
        if let Some(protocol) = protocol {
            request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse()?);
        }
        let (socket, response) = tokio.block_on(async {
            let stream = tokio::net::TcpStream::connect(&address).await?;
            let opened = tokio_tungstenite::client_async(request, stream).await;
            opened.map_err(|error| match error {
                tungstenite::Error::Http(response) => {
                    let body = response.body().clone().unwrap_or_default();
                    anyhow::anyhow!("{}: {}", response.status(), String::from_utf8_lossy(&body))
                }
                other => other.into(),
            })
        })?;
        let chosen =
            response.headers().get("Sec-WebSocket-Protocol").map(|value| value.to_str()).transpose()?;
        ensure!(chosen == protocol, "the server chose {chosen:?}");
        Ok(Self { tokio, socket, arrived: BTreeMap::new(), ended: false })
    }

    /// Leaves without a word but TCP's FIN, and waits until the server has closed the connection too.
    pub fn hang_up(self) -> Result<()> {
        let mut stream = self.socket.into_inner().into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(seconds(30)))?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut left = Vec::new();
        stream.read_to_end(&mut left).context("the daemon keeps the connection")?;
        Ok(())
    }

    /// Leaves by TCP's RST.
    pub fn reset(self) -> Result<()> {
        let stream = self.socket.into_inner().into_std()?;
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    }

    /// Sends data on a channel.
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let mut message = vec![channel];
        message.extend_from_slice(data);
        self.send_message(Message::Binary(message.into()))
    }

    /// Sends any message.
    pub fn send_message(&mut self, message: Message) -> Result<()> {
        let sent =
            self.tokio.block_on(async { tokio::time::timeout(seconds(30), self.socket.send(message)).await });
        Ok(sent.context("the daemon does not read")??)
    }

    /// Sends while it receives, as a client has to that sends much.
    pub fn pour(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let (mut sink, mut stream) = (&mut self.socket).split();
        let arrived = &mut self.arrived;
        self.tokio.block_on(async {
            let sending = async {
                for chunk in data.chunks(32 * 1024) {
                    sink.send(Message::Binary([&[channel], chunk].concat().into())).await?;
                }
                Ok::<_, anyhow::Error>(())
            };
            tokio::pin!(sending);
            loop {
                tokio::select! {
                    sent = &mut sending => return sent,
                    message = stream.next() => keep(arrived, message.context("ended early")??),
                }
            }
        })
    }

    /// Says that no more input will come (v5).
    pub fn close_stdin(&mut self) -> Result<()> {
        self.send(channel::CLOSE, &[channel::STDIN])
    }

    /// Tells the size of the terminal.
    pub fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        self.send(channel::RESIZE, format!(r#"{{"Width":{width},"Height":{height}}}"#).as_bytes())
    }

    /// Takes the next message. False: the server has closed.
    fn receive(&mut self, deadline: Deadline) -> Result<bool> {
        let left = deadline.left().unwrap_or_default();
        let message = self.tokio.block_on(async { tokio::time::timeout(left, self.socket.next()).await });
        let message = message.with_context(|| format!("nothing came any more; before: {:?}", self.text()))?;
        match message {
            Some(Ok(Message::Close(_))) | None => self.ended = true,
            Some(message) => keep(&mut self.arrived, message?),
        }
        Ok(!self.ended)
    }

    fn text(&self) -> Vec<(u8, String)> {
        self.arrived
            .iter()
            .map(|(channel, bytes)| (*channel, String::from_utf8_lossy(bytes).into_owned()))
            .collect()
    }

    /// Blocks until the daemon has told that the session stands.
    pub fn ready(&mut self) -> Result<()> {
        let deadline = Deadline::in_seconds(30);
        while self.arrived.is_empty() {
            ensure!(self.receive(deadline)?, "the session ended before it stood");
        }
        Ok(())
    }

    /// Blocks until so much has come on a channel that `enough` says so; takes all of it.
    pub fn read_until(&mut self, channel: u8, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let deadline = Deadline::in_seconds(30);
        loop {
            if self.arrived.get(&channel).is_some_and(|bytes| enough(bytes)) {
                return Ok(self.arrived.remove(&channel).unwrap_or_default());
            }
            if self.ended || !self.receive(deadline)? {
                bail!("the session ended before that; it said {:?}", self.text());
            }
        }
    }

    /// Blocks until so many bytes have come on a channel, and takes those.
    pub fn read_exactly(&mut self, channel: u8, count: usize) -> Result<Vec<u8>> {
        let mut bytes = self.read_until(channel, |bytes| bytes.len() >= count)?;
        let rest = bytes.split_off(count);
        if !rest.is_empty() {
            self.arrived.insert(channel, rest);
        }
        Ok(bytes)
    }

    /// Blocks until a text has come on a channel.
    pub fn read_text(&mut self, channel: u8, text: &str) -> Result<String> {
        let bytes =
            self.read_until(channel, |bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Blocks until the server has closed; what came that nobody took.
    pub fn finish(mut self) -> Result<Ended> {
        let deadline = Deadline::in_seconds(60);
        while !self.ended {
            self.receive(deadline)?;
        }
        let mut text = |channel| {
            String::from_utf8_lossy(&self.arrived.remove(&channel).unwrap_or_default()).into_owned()
        };
        Ok(Ended {
            stdout: text(channel::STDOUT),
            stderr: text(channel::STDERR),
            status: text(channel::ERROR),
        })
    }
}

fn keep(arrived: &mut BTreeMap<u8, Vec<u8>>, message: Message) {
    let bytes = match message {
        Message::Binary(bytes) => bytes.to_vec(),
        Message::Text(text) => text.as_bytes().to_vec(),
        _ => return,
    };
    if let Some((channel, data)) = bytes.split_first() {
        arrived.entry(*channel).or_default().extend_from_slice(data);
    }
}

/// Host and port of a URL.
pub fn address(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http"))?;
    let (address, _) = rest.split_once('/').context("a path")?;
    Ok(address.to_owned())
}

/// Sends a request as it stands and reads the answer up to the end of the connection.
pub fn raw_request(address: &str, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(seconds(60).max(Duration::from_secs(60))))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // The daemon may close without having read everything.
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}
