//! A connection exercised by a script of arbitrary bytes: whatever peer and user do, in any order, the bounds hold and
//! what is sent is proper SPDY. Property tests and the fuzz target (`cri/fuzz`) run it.

use std::collections::HashMap;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

use super::ResetStatus;
use super::connection::{Connection, GoAwayStatus};
use super::frame::{Decoder, Frame, SETTING_INITIAL_WINDOW};
use super::headers::{Deflater, Headers, Inflater};
use super::limits::{
    MAX_ANSWER_BYTES, MAX_CONTROL_FRAME_BYTES, MAX_STREAMS, MAX_UNACCEPTED, RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
};

/// No script is fed in pieces longer than this.
const MAX_PIECE_BYTES: usize = 1 << 16;

/// The script: what is left of it. Past its end everything is zero.
struct Script<'script>(&'script [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes([0; 4].map(|_: u8| self.byte()))
    }

    fn bytes(&mut self) -> Bytes {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Bytes::copy_from_slice(bytes)
    }
}

/// What the peer has seen of a stream.
#[derive(Default)]
struct Seen {
    replied: bool,
    over: bool,
}

/// The peer: what it sends, and what it makes of what it gets.
#[derive(Default)]
struct Peer {
    deflater: Deflater,
    next: u32,
    decoder: Decoder,
    inflater: Inflater,
    input: BytesMut,
    seen: HashMap<u32, Seen>,
    gone: bool,
}

impl Peer {
    /// One frame, or something that is none.
    fn send(&mut self, kind: u8, script: &mut Script<'_>, wire: &mut BytesMut) {
        let flags = script.byte();
        let stream = u32::from(script.byte());
        let frame = match kind {
            0 => return wire.extend_from_slice(&script.bytes()),
            1 => {
                self.next += 2;
                let mut block = BytesMut::new();
                let headers: Headers = [("streamtype", "stdin"), ("port", "80")].into_iter().collect();
                self.deflater.put(&headers, &mut block);
                // An id that comes a second time ends the connection, which is of interest now and then only.
                let stream = if flags == 0xff { stream } else { self.next - 1 };
                let (fin, unidirectional) = (flags & 1 != 0, flags & 2 != 0);
                Frame::SynStream { stream, fin, unidirectional, block: block.freeze() }
            }
            2 => {
                // Much with little script.
                let chunk = script.bytes().repeat(1 + usize::from(flags & 0x7f));
                Frame::Data { stream, fin: flags & 0x80 != 0, chunk: chunk.into() }
            }
            3 => Frame::Reset { stream, status: u32::from(flags) },
            4 => Frame::WindowUpdate { stream, delta: script.number() },
            5 => Frame::Settings(vec![(SETTING_INITIAL_WINDOW, script.number())]),
            6 => Frame::Ping(script.number()),
            7 => Frame::GoAway { last: stream, status: 0 },
            8 => Frame::Headers { stream, fin: flags & 1 != 0, block: script.bytes() },
            _ => Frame::SynReply { stream, fin: flags & 1 != 0, block: script.bytes() },
        };
        frame.encode(wire);
    }

    /// Checks what was sent to it.
    fn receive(&mut self, output: &BytesMut) {
        assert!(output.is_empty() || !self.gone, "something was sent after GOAWAY");
        self.input.extend_from_slice(output);
        while let Some(frame) = self.decoder.next(&mut self.input).expect("we send frames") {
            match frame {
                Frame::SynReply { stream, fin, block } => {
                    let block = self.inflater.block(&block).expect("we send blocks");
                    assert_eq!(Headers::parse(&block), Ok(Headers::default()));
                    let seen = self.seen.entry(stream).or_default();
                    assert!(!seen.replied, "a stream is answered once");
                    seen.replied = true;
                    seen.over |= fin;
                }
                Frame::Data { stream, fin, .. } => {
                    let seen = self.seen.entry(stream).or_default();
                    assert!(seen.replied && !seen.over, "data where none may be");
                    seen.over = fin;
                }
                Frame::Reset { stream, .. } => self.seen.entry(stream).or_default().over = true,
                Frame::GoAway { .. } => self.gone = true,
                Frame::Ping(id) => assert_eq!(id % 2, 1),
                Frame::WindowUpdate { delta, .. } => assert_ne!(delta, 0),
                Frame::Settings(_) => {}
                Frame::SynStream { .. } | Frame::Headers { .. } => panic!("a server sends no {frame:?}"),
            }
        }
        assert!(self.input.is_empty(), "half a frame was sent");
    }
}

/// Runs an input of the fuzz target: its first byte chooses between [`receive`] and [`exercise`].
pub fn input(input: &[u8]) {
    match input.split_first() {
        Some((first, bytes)) if first % 2 == 1 => receive(bytes),
        Some((_, script)) => exercise(script),
        None => {}
    }
}

/// Runs a script.
///
/// # Panics
///
/// When something does not hold.
pub fn exercise(script: &[u8]) {
    let mut script = Script(script);
    let (mut peer, mut connection) = (Peer::default(), Connection::new());
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let (mut unanswered, mut accepted) = (Vec::new(), Vec::new());
    let context = Context::from_waker(Waker::noop());
    while !script.0.is_empty() {
        let action = script.byte();
        if action < 0xa0 {
            peer.send(action % 10, &mut script, &mut input);
            input.truncate(MAX_PIECE_BYTES + MAX_CONTROL_FRAME_BYTES);
        } else {
            user(action, &mut script, &mut connection, &context, &mut unanswered, &mut accepted);
        }
        while connection.wants_input() {
            match decoder.next(&mut input).map_err(Into::into) {
                Ok(Some(frame)) => {
                    if connection.frame(frame).is_err() {
                        connection.close(GoAwayStatus::ProtocolError);
                    }
                }
                Ok(None) => break,
                Err::<_, super::connection::ProtocolError>(_) => {
                    connection.close(GoAwayStatus::ProtocolError);
                    input.clear();
                    break;
                }
            }
        }
        // The largest data frame of a peer, in the largest piece of it, can come on top of a limit.
        let slack = MAX_PIECE_BYTES + MAX_CONTROL_FRAME_BYTES;
        let load = connection.load();
        assert!(load.received < RECEIVE_BUFFER_BYTES + slack);
        assert!(load.answers < MAX_ANSWER_BYTES + slack);
        assert!(load.data < SEND_BUFFER_BYTES + MAX_ANSWER_BYTES + MAX_STREAMS * 24);
        assert!(load.streams <= MAX_STREAMS && load.unaccepted <= MAX_UNACCEPTED);
        if action % 4 == 0 {
            let mut output = BytesMut::new();
            connection.take_output(&mut output);
            peer.receive(&output);
        }
    }
}

/// Something that a user of the session does.
fn user(
    action: u8,
    script: &mut Script<'_>,
    connection: &mut Connection,
    context: &Context<'_>,
    unanswered: &mut Vec<u32>,
    accepted: &mut Vec<u32>,
) {
    let (pick, size) = (usize::from(script.byte()), 1 + usize::from(script.byte()) * 300);
    let take = |ids: &mut Vec<u32>| if ids.is_empty() { 0 } else { ids.swap_remove(pick % ids.len()) };
    let id = accepted.get(pick.checked_rem(accepted.len()).unwrap_or(0)).copied().unwrap_or(0);
    match action {
        0..0xb0 => {
            if let Poll::Ready(Some((id, _))) = connection.poll_accept(context) {
                unanswered.push(id);
            }
        }
        0xb0..0xb8 => {
            let id = take(unanswered);
            connection.accept(id);
            accepted.push(id);
        }
        0xb8..0xbc => {
            let id = take(unanswered);
            connection.reset(id, ResetStatus::RefusedStream);
            connection.drop_reader(id);
            connection.drop_writer(id);
        }
        0xbc..0xd0 => {
            let mut room = vec![0; size];
            let _ = connection.poll_read(id, context, &mut ReadBuf::new(&mut room));
        }
        0xd0..0xf0 => {
            if let Poll::Ready(Ok(count)) = connection.poll_write(id, context, &vec![0; size]) {
                assert!((1..=size).contains(&count));
            }
        }
        0xf0..0xf4 => connection.finish(id),
        0xf4..0xf8 => {
            // Both halves go, one after the other.
            let id = take(accepted);
            connection.drop_reader(id);
            connection.drop_writer(id);
        }
        0xf8..0xfc => connection.drop_reader(id),
        0xfc..0xff => connection.reset(id, ResetStatus::Cancel),
        0xff => {
            if pick == 0 {
                connection.close(GoAwayStatus::Ok);
            }
        }
    }
}

/// Feeds bytes of a peer, as they are, to a user who reads all streams to their ends.
///
/// # Panics
///
/// When what is sent is not SPDY.
pub fn receive(bytes: &[u8]) {
    let (mut decoder, mut input, mut connection) =
        (Decoder::default(), BytesMut::from(bytes), Connection::new());
    let context = Context::from_waker(Waker::noop());
    let (mut peer, mut streams) = (Peer::default(), Vec::new());
    while let Ok(Some(frame)) = decoder.next(&mut input) {
        if connection.frame(frame).is_err() {
            connection.close(GoAwayStatus::ProtocolError);
        }
        while let Poll::Ready(Some((id, _))) = connection.poll_accept(&context) {
            connection.accept(id);
            streams.push(id);
        }
        for id in &streams {
            let mut room = [0; 1024];
            let mut into = ReadBuf::new(&mut room);
            while connection.poll_read(*id, &context, &mut into).is_ready() && !into.filled().is_empty() {
                into.clear();
            }
        }
        let mut output = BytesMut::new();
        connection.take_output(&mut output);
        peer.receive(&output);
    }
}
