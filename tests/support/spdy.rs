//! A SPDY/3.1 client of the daemon's streaming URLs, written for tests: it can do everything right, and everything wrong. It
//! shares no line with the daemon's own SPDY. Its headers are compressed without the protocol's dictionary, which a receiver must
//! take as well; kubectl uses the dictionary.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compress, Compression, FlushCompress};

use crate::seconds;

/// The newest remote command protocol.
pub const V5: &str = "v5.channel.k8s.io";

/// The numbers of frame types.
#[allow(missing_docs, reason = "their names are the specification's")]
pub mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const RST_STREAM: u16 = 3;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A stream is accepted.
    Reply(u32),
    /// Bytes of a stream, and whether they are its last.
    Data(u32, Vec<u8>, bool),
    /// A stream is reset, with this status.
    Reset(u32, u32),
    /// The answer to a ping.
    Ping(u32),
    /// The connection ends, with this status.
    GoAway(u32),
    /// A control frame of another type.
    Other(u16),
}

/// What came on the streams of a session until its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Bytes, by stream.
    pub data: BTreeMap<u32, Vec<u8>>,
    /// Streams that were reset, and why.
    pub resets: BTreeMap<u32, u32>,
    /// The status of GOAWAY; None: there was none.
    pub goaway: Option<u32>,
}

impl Ended {
    /// What came on a stream, as text.
    pub fn text(&self, stream: u32) -> String {
        String::from_utf8_lossy(self.data.get(&stream).map_or(&[][..], Vec::as_slice)).into_owned()
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Spdy {
    socket: TcpStream,
    zlib: Compress,
    next: u32,
    /// What came while something else was waited for.
    early: Vec<Frame>,
}

/// The streams of an exec or attach.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// Tells how it ended.
    pub error: u32,
    /// None where none was asked for; so with the others.
    pub stdin: Option<u32>,
    /// What the process writes.
    pub stdout: u32,
    /// What it writes to stderr.
    pub stderr: Option<u32>,
}

impl Spdy {
    /// Asks for an upgrade. `Err` holds the status line and the body of another answer.
    pub fn open(url: &str, protocols: &[&str]) -> Result<Self> {
        let rest = url.strip_prefix("http://").with_context(|| format!("no http URL: {url}"))?;
        let (authority, path) = rest.split_once('/').context("a URL with a path")?;
        let mut socket = TcpStream::connect(authority)?;
        socket.set_read_timeout(Some(seconds(60)))?;
        socket.set_write_timeout(Some(seconds(60)))?;
        let mut head = format!(
            "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n"
        );
        for protocol in protocols {
            head = head + "X-Stream-Protocol-Version: " + protocol + "\r\n";
        }
        socket.write_all((head + "\r\n").as_bytes())?;
        // A byte at a time: what follows the head is SPDY.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).with_context(|| String::from_utf8_lossy(&answer).into_owned())?;
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            // The server closes after it.
            let _ = socket.read_to_end(&mut answer);
            bail!("{}", String::from_utf8_lossy(&answer));
        }
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        ensure!(answer.contains("upgrade: spdy/3.1\r\n"), "{answer}");
        if let Some(protocol) = protocols.first() {
            ensure!(answer.contains(&format!("x-stream-protocol-version: {protocol}\r\n")), "{answer}");
        }
        Ok(Self { socket, zlib: Compress::new(Compression::default(), true), next: 1, early: Vec::new() })
    }

    /// Opens the streams of an exec or attach, as kubectl does: one after the other.
    pub fn streams(&mut self, stdin: bool, stderr: bool) -> Result<Streams> {
        Ok(Streams {
            error: self.stream(&[("streamtype", "error")])?,
            stdin: stdin.then(|| self.stream(&[("streamtype", "stdin")])).transpose()?,
            stdout: self.stream(&[("streamtype", "stdout")])?,
            stderr: stderr.then(|| self.stream(&[("streamtype", "stderr")])).transpose()?,
        })
    }

    /// Opens a stream and waits for the answer.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let stream = self.syn(headers)?;
        loop {
            match self.frame()? {
                Some(Frame::Reply(replied)) if replied == stream => return Ok(stream),
                Some(Frame::Reset(reset, status)) if reset == stream => {
                    bail!("stream {stream} was refused with status {status}")
                }
                Some(frame) => self.early.push(frame),
                None => bail!("the connection ended"),
            }
        }
    }

    /// Opens a stream and does not wait.
    pub fn syn(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let stream = self.next;
        self.next += 2;
        let mut payload = [stream.to_be_bytes(), [0; 4]].concat();
        payload.extend([0; 2]);
        payload.extend(self.block(headers)?);
        self.control(kind::SYN_STREAM, 0, &payload)?;
        Ok(stream)
    }

    /// A compressed name/value block.
    pub fn block(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>> {
        let mut block = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(u32::try_from(text.len())?.to_be_bytes());
            block.extend(text.as_bytes());
        }
        self.compress(&block)
    }

    /// Compresses anything as a block would be.
    pub fn compress(&mut self, block: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(block.len() + 1024);
        self.zlib.compress_vec(block, &mut out, FlushCompress::Sync)?;
        Ok(out)
    }

    /// Sends bytes on a stream.
    pub fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) -> Result<()> {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.extend((u32::from(fin) << 24 | u32::try_from(bytes.len())?).to_be_bytes());
        frame.extend(bytes);
        self.raw(&frame)
    }

    /// Sends a control frame.
    pub fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<()> {
        let mut frame = [0x8003_u16.to_be_bytes(), kind.to_be_bytes()].concat();
        frame.extend((u32::from(flags) << 24 | u32::try_from(payload.len())?).to_be_bytes());
        frame.extend(payload);
        self.raw(&frame)
    }

    /// Sends a control frame whose payload is two numbers.
    pub fn pair(&mut self, kind: u16, first: u32, second: u32) -> Result<()> {
        self.control(kind, 0, &[first.to_be_bytes(), second.to_be_bytes()].concat())
    }

    /// Resets a stream: CANCEL.
    pub fn reset(&mut self, stream: u32) -> Result<()> {
        self.pair(kind::RST_STREAM, stream, 5)
    }

    /// Sends any bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The next frame; None at the end of the connection.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        if self.early.is_empty() { self.frame() } else { Ok(Some(self.early.remove(0))) }
    }

    fn frame(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.socket.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("nothing came from the daemon"),
        }
        let (first, second) = (number(&head, 0), number(&head, 4));
        let mut payload = vec![0; usize::try_from(second & 0x00ff_ffff)?];
        self.socket.read_exact(&mut payload)?;
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data(first, payload, second >> 24 & 1 != 0)));
        }
        let number = |at: usize| number(&payload, at);
        Ok(Some(match u16::try_from(first & 0xffff)? {
            2 => Frame::Reply(number(0)),
            kind::RST_STREAM => Frame::Reset(number(0), number(4)),
            kind::PING => Frame::Ping(number(0)),
            kind::GOAWAY => Frame::GoAway(number(4)),
            other => Frame::Other(other),
        }))
    }

    /// Waits until a stream has sent at least this many bytes, and returns them.
    pub fn read(&mut self, stream: u32, count: usize) -> Result<Vec<u8>> {
        let mut read = Vec::new();
        while read.len() < count {
            match self.next_frame()?.with_context(|| format!("ended after {} bytes", read.len()))? {
                Frame::Data(from, bytes, _) if from == stream => read.extend(bytes),
                Frame::Reset(from, status) if from == stream => bail!("reset with status {status}"),
                _ => {}
            }
        }
        Ok(read)
    }

    /// Sends a ping and waits for its answer.
    pub fn ping(&mut self) -> Result<()> {
        self.control(kind::PING, 0, &1_u32.to_be_bytes())?;
        while self.next_frame()?.context("the connection ended")? != Frame::Ping(1) {}
        Ok(())
    }

    /// Reads until the daemon closes the connection.
    pub fn finish(mut self) -> Result<Ended> {
        let mut ended = Ended::default();
        while let Some(frame) = self.next_frame()? {
            match frame {
                Frame::Data(stream, bytes, _) => ended.data.entry(stream).or_default().extend(bytes),
                Frame::Reset(stream, status) => drop(ended.resets.insert(stream, status)),
                Frame::GoAway(status) => ended.goaway = Some(status),
                Frame::Reply(_) | Frame::Ping(_) | Frame::Other(_) => {}
            }
        }
        Ok(ended)
    }
}

/// The number at a place; 0 beyond the end.
fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_be_bytes)
}
