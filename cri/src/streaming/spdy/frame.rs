//! Frames and their bytes (SPDY/3.1, 2.2 and 2.6). Pure: bytes in, frames out, and back.
//!
//! ```text
//! control |1| version 15 | type 16 |   data |0|  stream id 31  |
//!         |flags 8|   length 24    |        |flags 8| length 24|
//!         |         payload        |        |      payload     |
//! ```
//!
//! A control frame is read whole, and so has a largest length. A data frame may announce 16 MiB; it is handed on in
//! the pieces in which it comes, so its length costs nothing.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use thiserror::Error;

use super::limits::{MAX_CONTROL_FRAME_BYTES, MAX_SETTINGS};

/// The version in each control frame; 3.1 does not change it.
const VERSION: u16 = 3;

/// The head of every frame, in bytes.
pub(super) const HEAD_BYTES: usize = 8;

/// Tells control frames from data frames, in the first 32 bits; it is no part of a stream's id.
const CONTROL_BIT: u32 = 1 << 31;
const CONTROL_BIT_OF_UPPER: u16 = 1 << 15;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

/// The setting that changes the window of all streams, in bytes.
pub(super) const SETTING_INITIAL_WINDOW: u32 = 7;

/// The setting that says how many streams the peer may have open.
pub(super) const SETTING_MAX_STREAMS: u32 = 4;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// A frame that cannot be taken; the connection cannot go on after it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// A control frame of another version.
    #[error("a control frame has version {0}, not {VERSION}")]
    Version(u16),
    /// A control frame longer than [`MAX_CONTROL_FRAME_BYTES`].
    #[error("a control frame of type {kind} has {length} bytes, more than {MAX_CONTROL_FRAME_BYTES}")]
    TooLong {
        /// Its type.
        kind: u16,
        /// The length in its head.
        length: usize,
    },
    /// A control frame whose length does not suit its type.
    #[error("a control frame of type {0} is malformed")]
    Malformed(u16),
    /// A frame about stream 0, which does not exist.
    #[error("a frame of type {0} names stream 0")]
    StreamZero(u16),
    /// A data frame for stream 0.
    #[error("a data frame names stream 0")]
    DataForZero,
}

/// A frame. Streams are their ids; blocks are compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The new stream.
        stream: u32,
        /// The sender sends nothing on it.
        fin: bool,
        /// The receiver sends nothing on it.
        unidirectional: bool,
        /// Its name/value block.
        block: Bytes,
    },
    /// Accepts a stream.
    SynReply {
        /// The accepted stream.
        stream: u32,
        /// The sender sends nothing on it.
        fin: bool,
        /// The answer's name/value block.
        block: Bytes,
    },
    /// Ends a stream in both directions.
    Reset {
        /// The stream.
        stream: u32,
        /// Why: see [`ResetStatus`](super::ResetStatus).
        status: u32,
    },
    /// Settings, by id; flags are not kept.
    Settings(Vec<(u32, u32)>),
    /// Asks for the same frame back, or is the answer.
    Ping(u32),
    /// The sender accepts no more streams.
    GoAway {
        /// The last stream the sender has taken.
        last: u32,
        /// 0, or 1 for a protocol error, or 2 for an internal one.
        status: u32,
    },
    /// More pairs for a stream.
    Headers {
        /// The stream.
        stream: u32,
        /// The sender sends nothing after it.
        fin: bool,
        /// The name/value block.
        block: Bytes,
    },
    /// Allows the receiver to send more.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        stream: u32,
        /// How much more, in bytes.
        delta: u32,
    },
    /// Bytes of a stream: a whole frame, or a piece of one.
    Data {
        /// The stream.
        stream: u32,
        /// The sender sends nothing after it. Only the last piece of a frame has it.
        fin: bool,
        /// The bytes.
        chunk: Bytes,
    },
}

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::SynStream { stream, fin, unidirectional, block } => {
                let flags = flag(*fin, FLAG_FIN) | flag(*unidirectional, FLAG_UNIDIRECTIONAL);
                control_head(out, kind::SYN_STREAM, flags, 10 + block.len());
                out.put_u32(*stream);
                // No associated stream; priority 0; no credential slot.
                out.put_slice(&[0; 6]);
                out.put_slice(block);
            }
            Self::SynReply { stream, fin, block } => put_block(out, kind::SYN_REPLY, *stream, *fin, block),
            Self::Headers { stream, fin, block } => put_block(out, kind::HEADERS, *stream, *fin, block),
            Self::Reset { stream, status } => put_pair(out, kind::RST_STREAM, *stream, *status),
            Self::GoAway { last, status } => put_pair(out, kind::GOAWAY, *last, *status),
            Self::WindowUpdate { stream, delta } => put_pair(out, kind::WINDOW_UPDATE, *stream, *delta),
            Self::Ping(id) => {
                control_head(out, kind::PING, 0, 4);
                out.put_u32(*id);
            }
            Self::Settings(settings) => {
                control_head(out, kind::SETTINGS, 0, 4 + 8 * settings.len());
                out.put_u32(u32::try_from(settings.len()).unwrap_or(u32::MAX));
                for (id, value) in settings {
                    out.put_u32(id & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Self::Data { stream, fin, chunk } => {
                put_data_head(out, *stream, *fin, chunk.len());
                out.put_slice(chunk);
            }
        }
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn flags_and_length(flags: u8, length: usize) -> u32 {
    debug_assert!(length < 1 << 24, "a frame's length has 24 bits");
    u32::from(flags) << 24 | u32::try_from(length & 0x00ff_ffff).unwrap_or(0)
}

fn control_head(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(flags_and_length(flags, length));
}

fn put_pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control_head(out, kind, 0, 8);
    out.put_u32(first);
    out.put_u32(second);
}

fn put_block(out: &mut BytesMut, kind: u16, stream: u32, fin: bool, block: &[u8]) {
    control_head(out, kind, flag(fin, FLAG_FIN), 4 + block.len());
    out.put_u32(stream);
    out.put_slice(block);
}

/// Appends the head of a data frame; its payload, fewer than 2^24 bytes, must follow.
pub(super) fn put_data_head(out: &mut BytesMut, stream: u32, fin: bool, length: usize) {
    out.put_u32(stream);
    out.put_u32(flags_and_length(flag(fin, FLAG_FIN), length));
}

/// What of a frame is still to come after its head was read.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    Head,
    /// The payload of a data frame.
    Data { stream: u32, fin: bool, left: usize },
    /// The payload of a frame that is of no interest.
    Skip(usize),
}

/// Makes frames of bytes, in whatever pieces they come.
#[derive(Debug, Default)]
pub struct Decoder {
    rest: Rest,
}

impl Decoder {
    /// Takes the next frame, or piece of a data frame, off the front of `input`; None when more bytes are needed.
    /// Control frames of unknown types are passed over (2.2.1). Input that is left over is never longer than a head
    /// and [`MAX_CONTROL_FRAME_BYTES`].
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            match &mut self.rest {
                Rest::Head => match self.head(input)? {
                    Step::More => return Ok(None),
                    Step::Frame(frame) => return Ok(Some(frame)),
                    Step::Rest => {}
                },
                Rest::Skip(left) => {
                    let here = (*left).min(input.len());
                    input.advance(here);
                    *left -= here;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.rest = Rest::Head;
                }
                Rest::Data { stream, fin, left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let here = (*left).min(input.len());
                    *left -= here;
                    let last = *left == 0;
                    let frame = Frame::Data {
                        stream: *stream,
                        fin: *fin && last,
                        chunk: input.split_to(here).freeze(),
                    };
                    if last {
                        self.rest = Rest::Head;
                    }
                    return Ok(Some(frame));
                }
            }
        }
    }

    /// Reads a head, and the rest of it too when it is that of a control frame.
    fn head(&mut self, input: &mut BytesMut) -> Result<Step, FrameError> {
        let Some(mut head) = input.get(..HEAD_BYTES) else { return Ok(Step::More) };
        let (upper, kind) = (head.get_u16(), head.get_u16());
        let (flags, length) = (head.get_u8(), usize::from(head.get_u8()) << 16 | usize::from(head.get_u16()));
        if upper & CONTROL_BIT_OF_UPPER == 0 {
            return self.data_head(input, u32::from(upper) << 16 | u32::from(kind), flags, length);
        }
        let version = upper & !CONTROL_BIT_OF_UPPER;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if !matches!(kind, kind::SYN_STREAM..=kind::SETTINGS | kind::PING..=kind::WINDOW_UPDATE) {
            input.advance(HEAD_BYTES);
            self.rest = Rest::Skip(length);
            return Ok(Step::Rest);
        }
        if length > MAX_CONTROL_FRAME_BYTES {
            return Err(FrameError::TooLong { kind, length });
        }
        if input.len() < HEAD_BYTES + length {
            return Ok(Step::More);
        }
        input.advance(HEAD_BYTES);
        control_frame(kind, flags, input.split_to(length).freeze()).map(Step::Frame)
    }

    fn data_head(
        &mut self,
        input: &mut BytesMut,
        stream: u32,
        flags: u8,
        length: usize,
    ) -> Result<Step, FrameError> {
        if stream == 0 {
            return Err(FrameError::DataForZero);
        }
        input.advance(HEAD_BYTES);
        let fin = flags & FLAG_FIN != 0;
        if length == 0 {
            return Ok(Step::Frame(Frame::Data { stream, fin, chunk: Bytes::new() }));
        }
        self.rest = Rest::Data { stream, fin, left: length };
        Ok(Step::Rest)
    }
}

/// What came of a head.
enum Step {
    /// More bytes are needed.
    More,
    /// A frame.
    Frame(Frame),
    /// The decoder's state says what comes next.
    Rest,
}

/// Reads the whole payload of a control frame of a known type.
fn control_frame(kind: u16, flags: u8, mut payload: Bytes) -> Result<Frame, FrameError> {
    let malformed = FrameError::Malformed(kind);
    let fin = flags & FLAG_FIN != 0;
    let first = payload.try_get_u32().map_err(|_| malformed)?;
    let stream = first & !CONTROL_BIT;
    let about_stream = !matches!(kind, kind::SETTINGS | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE);
    if about_stream && stream == 0 {
        return Err(FrameError::StreamZero(kind));
    }
    let frame = match kind {
        kind::SYN_STREAM => {
            // The associated stream, the priority and the credential slot say nothing to us.
            payload.try_copy_to_slice(&mut [0; 6]).map_err(|_| malformed)?;
            let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
            return Ok(Frame::SynStream { stream, fin, unidirectional, block: payload });
        }
        kind::SYN_REPLY => return Ok(Frame::SynReply { stream, fin, block: payload }),
        kind::HEADERS => return Ok(Frame::Headers { stream, fin, block: payload }),
        kind::SETTINGS => return settings(first, payload).ok_or(malformed),
        kind::PING => Frame::Ping(first),
        _ => {
            let second = payload.try_get_u32().map_err(|_| malformed)?;
            match kind {
                kind::RST_STREAM => Frame::Reset { stream, status: second },
                kind::GOAWAY => Frame::GoAway { last: stream, status: second },
                _ => Frame::WindowUpdate { stream, delta: second & !CONTROL_BIT },
            }
        }
    };
    if payload.is_empty() { Ok(frame) } else { Err(malformed) }
}

fn settings(count: u32, mut payload: Bytes) -> Option<Frame> {
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_SETTINGS)?;
    if payload.len() != 8 * count {
        return None;
    }
    let mut settings = Vec::with_capacity(count);
    for _ in 0..count {
        settings.push((payload.get_u32() & 0x00ff_ffff, payload.get_u32()));
    }
    Some(Frame::Settings(settings))
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
