//! The state of a connection: frames in, streams, frames out. No I/O; what must wait leaves its waker.
//!
//! ```text
//!            frame()                                     poll_accept()
//! driver ------------------> unaccepted ------------------------------------> Incoming
//!                            each stream: receive buffer ----- poll_read() --> ReadHalf
//!        take_output()
//! driver <------------------ answers, then data <------------- poll_write() -- WriteHalf
//! ```
//!
//! The driver's side is here, the session's in [`calls`].
//!
//! A stream is two directions, each open until its FIN; RST_STREAM ends both. It is forgotten when both are over and
//! nobody holds a half of it.
//!
//! **Windows.** Ours are announced as bytes are read. A peer that sends more is not punished, because Kubernetes' client
//! (moby/spdystream) knows no windows at all; instead nothing is read from the connection while too much waits to be
//! read. For the same reason the peer's windows bind only once it has shown that it has some, by a WINDOW_UPDATE or by
//! its SETTINGS: a client that never opens a window would else get 64 KiB and no more.

mod calls;

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use super::ResetStatus;
use super::frame::{Frame, FrameError, SETTING_INITIAL_WINDOW, SETTING_MAX_STREAMS};
use super::headers::{Deflater, HeaderError, Headers, Inflater};
use super::limits::{
    INITIAL_WINDOW_BYTES, MAX_ANSWER_BYTES, MAX_STREAMS, MAX_UNACCEPTED, RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
};

/// No window may grow beyond it (2.6.8).
const MAX_WINDOW_BYTES: i64 = 0x7fff_ffff;

/// A window is announced when so many bytes of it were read.
const ANNOUNCE_BYTES: u32 = INITIAL_WINDOW_BYTES / 2;

/// What a peer may not do on any stream; the connection ends.
#[derive(Debug, Error)]
pub(super) enum ProtocolError {
    /// Not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A name/value block after which no other can be read.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// A new stream whose id is even or not above those before.
    #[error("a client may not open stream {0} now")]
    StreamId(u32),
    /// The connection's window grew beyond 2^31 - 1.
    #[error("the window of the connection grew too large")]
    Window,
}

/// Why a connection says GOAWAY (2.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum GoAwayStatus {
    Ok = 0,
    ProtocolError = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The peer opens no more streams.
    PeerGoesAway,
    /// We said GOAWAY: what is queued is sent, nothing else happens.
    Closing,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Open,
    Finished,
    Reset,
}

#[derive(Debug)]
struct Stream {
    receive: Direction,
    /// Received, not yet read.
    buffer: BytesMut,
    /// Read, not yet announced.
    unannounced: u32,
    reader: Option<Waker>,
    /// Whether the read half exists, or can still come to exist.
    has_reader: bool,

    send: Direction,
    /// What the peer still takes, in bytes; below 0 when more was sent before it showed its windows.
    window: i64,
    writer: Option<Waker>,
    has_writer: bool,
}

impl Stream {
    fn is_done(&self) -> bool {
        !self.has_reader
            && !self.has_writer
            && self.receive != Direction::Open
            && self.send != Direction::Open
    }

    fn wake(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Connection {
    phase: Phase,
    streams: HashMap<u32, Stream>,
    unaccepted: VecDeque<(u32, Headers)>,
    /// The last stream the peer opened; 0 before the first.
    last: u32,
    inflater: Inflater,
    deflater: Deflater,
    greeted: bool,

    /// Bytes in all receive buffers together.
    received: usize,
    unannounced: u32,

    peer_has_windows: bool,
    window: i64,
    initial_window: i64,

    /// Encoded frames of a bounded number of bytes each; they pass before `data`.
    answers: BytesMut,
    data: BytesMut,
    /// Streams whose writers wait for room, the longest waiting first.
    blocked: VecDeque<u32>,

    driver: Option<Waker>,
    acceptor: Option<Waker>,
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn leave(waker: &mut Option<Waker>, context: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(context.waker()),
        None => *waker = Some(context.waker().clone()),
    }
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Open,
            streams: HashMap::new(),
            unaccepted: VecDeque::new(),
            last: 0,
            inflater: Inflater::default(),
            deflater: Deflater::default(),
            greeted: false,
            received: 0,
            unannounced: 0,
            peer_has_windows: false,
            window: i64::from(INITIAL_WINDOW_BYTES),
            initial_window: i64::from(INITIAL_WINDOW_BYTES),
            answers: BytesMut::new(),
            data: BytesMut::new(),
            blocked: VecDeque::new(),
            driver: None,
            acceptor: None,
        }
    }

    /// Leaves the driver's waker: it is woken when there is output, or input is wanted again.
    pub(super) fn register_driver(&mut self, context: &Context<'_>) {
        leave(&mut self.driver, context);
    }

    /// Whether the next frame may be given to [`Self::frame`]. What a frame can add to each queue is bounded, so this
    /// bounds the queues.
    pub(super) fn wants_input(&self) -> bool {
        self.unaccepted.len() < MAX_UNACCEPTED
            && self.received < RECEIVE_BUFFER_BYTES
            && self.answers.len() < MAX_ANSWER_BYTES
            && self.data.len() < SEND_BUFFER_BYTES + MAX_ANSWER_BYTES
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Over)
    }

    /// Takes what is to be sent next, and lets writers in that waited for room.
    pub(super) fn take_output(&mut self, output: &mut BytesMut) {
        debug_assert!(output.is_empty());
        if self.answers.is_empty() && self.data.is_empty() {
            // An idle connection keeps no buffers.
            (self.answers, self.data, *output) = Default::default();
        } else if self.answers.is_empty() {
            std::mem::swap(&mut self.data, output);
        } else {
            std::mem::swap(&mut self.answers, output);
        }
        if self.data.len() < SEND_BUFFER_BYTES {
            for stream in self.blocked.drain(..) {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    wake(&mut stream.writer);
                }
            }
        }
    }

    /// Acts on a frame of the peer.
    pub(super) fn frame(&mut self, frame: Frame) -> Result<(), ProtocolError> {
        if self.is_closing() {
            return Ok(());
        }
        self.greet();
        match frame {
            Frame::SynStream { stream, fin, unidirectional, block } => {
                self.syn_stream(stream, fin, unidirectional, &block)?;
            }
            // We open no streams, so none of these is an answer; their blocks are part of the compression's history.
            Frame::SynReply { block, .. } => {
                self.inflater.block(&block)?;
            }
            Frame::Headers { stream, fin, block } => {
                self.inflater.block(&block)?;
                if fin {
                    self.data(stream, true, &Bytes::new());
                }
            }
            Frame::Data { stream, fin, chunk } => self.data(stream, fin, &chunk),
            Frame::Reset { stream, .. } => self.end_stream(stream),
            Frame::Settings(settings) => self.settings(&settings),
            // The peer's own pings are odd; an even one would answer one of ours, and we send none.
            Frame::Ping(id) if id % 2 == 1 => self.answer(&Frame::Ping(id)),
            Frame::Ping(_) => {}
            Frame::GoAway { .. } => {
                self.phase = Phase::PeerGoesAway;
                wake(&mut self.acceptor);
            }
            Frame::WindowUpdate { stream, delta } => self.window_update(stream, delta)?,
        }
        Ok(())
    }

    /// Everything is over: whoever waits gets to know.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Over;
        self.break_streams();
        self.answers = BytesMut::new();
        self.data = BytesMut::new();
    }

    /// Resets what is not finished, and makes GOAWAY the last thing that is sent.
    pub(super) fn close(&mut self, status: GoAwayStatus) {
        if self.is_closing() {
            return;
        }
        let unfinished = self.streams.iter().filter(|(_, stream)| stream.send == Direction::Open);
        let unfinished: Vec<_> = unfinished.map(|(id, _)| *id).collect();
        for stream in unfinished {
            self.reset(stream, ResetStatus::Cancel);
        }
        Frame::GoAway { last: self.last, status: status as u32 }.encode(&mut self.data);
        self.phase = Phase::Closing;
        self.break_streams();
        wake(&mut self.driver);
    }

    fn break_streams(&mut self) {
        self.unaccepted.clear();
        wake(&mut self.acceptor);
        self.streams.values_mut().for_each(Stream::wake);
    }

    /// Says what we are, once, and not before the peer has said something: see [`Session::start`](super::Session::start).
    fn greet(&mut self) {
        if !std::mem::replace(&mut self.greeted, true) {
            let max_streams = u32::try_from(MAX_STREAMS).unwrap_or(u32::MAX);
            self.answer(&Frame::Settings(vec![(SETTING_MAX_STREAMS, max_streams)]));
            let delta = u32::try_from(RECEIVE_BUFFER_BYTES).unwrap_or(u32::MAX) - INITIAL_WINDOW_BYTES;
            self.answer(&Frame::WindowUpdate { stream: 0, delta });
        }
    }

    fn answer(&mut self, frame: &Frame) {
        if !self.is_closing() {
            frame.encode(&mut self.answers);
            wake(&mut self.driver);
        }
    }

    fn syn_stream(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        block: &[u8],
    ) -> Result<(), ProtocolError> {
        let block = self.inflater.block(block)?;
        if id.is_multiple_of(2) || id <= self.last {
            return Err(ProtocolError::StreamId(id));
        }
        self.last = id;
        let headers = match Headers::parse(&block) {
            Ok(headers) => headers,
            Err(HeaderError::Invalid) => {
                self.send_reset(id, ResetStatus::ProtocolError);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if self.streams.len() >= MAX_STREAMS || self.phase == Phase::PeerGoesAway {
            self.send_reset(id, ResetStatus::RefusedStream);
            return Ok(());
        }
        let direction = |over| if over { Direction::Finished } else { Direction::Open };
        let stream = Stream {
            receive: direction(fin),
            buffer: BytesMut::new(),
            unannounced: 0,
            reader: None,
            has_reader: true,
            send: direction(unidirectional),
            window: self.initial_window,
            writer: None,
            has_writer: true,
        };
        self.streams.insert(id, stream);
        self.unaccepted.push_back((id, headers));
        wake(&mut self.acceptor);
        Ok(())
    }

    fn data(&mut self, id: u32, fin: bool, chunk: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else {
            self.consume(None, chunk.len());
            // Bytes may be on their way on a stream that is over already.
            if id > self.last || id.is_multiple_of(2) {
                self.send_reset(id, ResetStatus::InvalidStream);
            }
            return;
        };
        match stream.receive {
            Direction::Open if stream.has_reader => {
                stream.buffer.extend_from_slice(chunk);
                self.received += chunk.len();
                wake(&mut stream.reader);
            }
            Direction::Open => self.consume(Some(id), chunk.len()),
            Direction::Finished => {
                self.consume(None, chunk.len());
                self.send_reset(id, ResetStatus::StreamAlreadyClosed);
                return self.end_stream(id);
            }
            Direction::Reset => self.consume(None, chunk.len()),
        }
        if fin && let Some(stream) = self.streams.get_mut(&id) {
            if stream.receive == Direction::Open {
                stream.receive = Direction::Finished;
            }
            wake(&mut stream.reader);
            self.forget_if_done(id);
        }
    }

    fn settings(&mut self, settings: &[(u32, u32)]) {
        for (_, value) in settings.iter().filter(|(setting, _)| *setting == SETTING_INITIAL_WINDOW) {
            self.peer_has_windows = true;
            let window = i64::from(*value).min(MAX_WINDOW_BYTES);
            let change = window - self.initial_window;
            self.initial_window = window;
            for stream in self.streams.values_mut() {
                // A stream whose window would grow too large is not worth an error of its own.
                stream.window = (stream.window + change).min(MAX_WINDOW_BYTES);
                wake(&mut stream.writer);
            }
        }
    }

    fn window_update(&mut self, id: u32, delta: u32) -> Result<(), ProtocolError> {
        self.peer_has_windows = true;
        if id == 0 {
            self.window += i64::from(delta);
            self.streams.values_mut().for_each(|stream| wake(&mut stream.writer));
            return if self.window > MAX_WINDOW_BYTES { Err(ProtocolError::Window) } else { Ok(()) };
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.window += i64::from(delta);
            wake(&mut stream.writer);
            if stream.window > MAX_WINDOW_BYTES {
                self.reset(id, ResetStatus::FlowControlError);
            }
        }
        Ok(())
    }

    /// Bytes were read, or dropped: their room is the peer's again.
    fn consume(&mut self, id: Option<u32>, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.unannounced += count;
        if self.unannounced >= ANNOUNCE_BYTES {
            let delta = std::mem::take(&mut self.unannounced);
            self.answer(&Frame::WindowUpdate { stream: 0, delta });
        }
        let Some((id, stream)) = id.and_then(|id| Some((id, self.streams.get_mut(&id)?))) else { return };
        stream.unannounced += count;
        if stream.receive == Direction::Open && stream.unannounced >= ANNOUNCE_BYTES {
            let delta = std::mem::take(&mut stream.unannounced);
            self.answer(&Frame::WindowUpdate { stream: id, delta });
        }
    }

    fn send_reset(&mut self, id: u32, status: ResetStatus) {
        if !self.is_closing() {
            Frame::Reset { stream: id, status: status as u32 }.encode(&mut self.data);
            wake(&mut self.driver);
        }
    }

    /// Ends both directions without telling the peer, and drops what was received.
    fn end_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.receive = Direction::Reset;
        stream.send = Direction::Reset;
        stream.wake();
        let dropped = std::mem::take(&mut stream.buffer).len();
        self.release(dropped);
        self.consume(None, dropped);
        self.forget_if_done(id);
    }

    /// Makes room in the receive buffers.
    fn release(&mut self, count: usize) {
        let was_full = self.received >= RECEIVE_BUFFER_BYTES;
        self.received -= count;
        if was_full && self.received < RECEIVE_BUFFER_BYTES {
            wake(&mut self.driver);
        }
    }

    fn forget_if_done(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(Stream::is_done) {
            self.streams.remove(&id);
        }
    }
}

/// How much a connection holds just now.
#[cfg(any(test, fuzzing))]
#[derive(Debug)]
pub(super) struct Load {
    pub(super) received: usize,
    pub(super) answers: usize,
    pub(super) data: usize,
    pub(super) streams: usize,
    pub(super) unaccepted: usize,
}

#[cfg(any(test, fuzzing))]
impl Connection {
    pub(super) fn load(&self) -> Load {
        let received = self.streams.values().map(|stream| stream.buffer.len()).sum();
        assert_eq!(received, self.received, "the receive buffers are counted right");
        Load {
            received,
            answers: self.answers.len(),
            data: self.data.len(),
            streams: self.streams.len(),
            unaccepted: self.unaccepted.len(),
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
