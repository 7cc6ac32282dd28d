//! A peer by hand against the state of a connection.

use std::io;
use std::task::Poll;

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::super::exercise;
use super::super::frame::Decoder;
use super::super::limits::{MAX_CONTROL_FRAME_BYTES, MAX_DATA_FRAME_BYTES};
use super::*;

/// A connection and the peer's compressor.
struct Pair {
    connection: Connection,
    deflater: Deflater,
}

impl Pair {
    fn new() -> Self {
        Self { connection: Connection::new(), deflater: Deflater::default() }
    }

    fn syn(&mut self, stream: u32) -> Frame {
        let mut block = BytesMut::new();
        self.deflater.put(&[("streamtype", "stdin")].into_iter().collect(), &mut block);
        Frame::SynStream { stream, fin: false, unidirectional: false, block: block.freeze() }
    }

    fn send(&mut self, frame: Frame) {
        self.connection.frame(frame).unwrap();
    }

    /// A stream opened, accepted and answered.
    fn open(&mut self, stream: u32) {
        let syn = self.syn(stream);
        self.send(syn);
        let Poll::Ready(Some((id, headers))) = self.connection.poll_accept(&noop()) else {
            panic!("no stream")
        };
        assert_eq!((id, headers.get("streamtype")), (stream, Some("stdin")));
        self.connection.accept(id);
        self.output();
    }

    fn data(&mut self, stream: u32, bytes: &'static [u8], fin: bool) {
        self.send(Frame::Data { stream, fin, chunk: Bytes::from_static(bytes) });
    }

    /// All that is to be sent.
    fn output(&mut self) -> Vec<Frame> {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        loop {
            let mut output = BytesMut::new();
            self.connection.take_output(&mut output);
            if output.is_empty() {
                return frames;
            }
            while let Some(frame) = decoder.next(&mut output).unwrap() {
                frames.push(frame);
            }
        }
    }

    fn read(&mut self, stream: u32) -> Poll<io::Result<Vec<u8>>> {
        let mut room = vec![0; 1 << 20];
        let mut into = ReadBuf::new(&mut room);
        let read = self.connection.poll_read(stream, &noop(), &mut into);
        let bytes = into.filled().to_vec();
        read.map_ok(|()| bytes)
    }

    fn write(&mut self, stream: u32, count: usize) -> Poll<Result<usize, io::ErrorKind>> {
        self.connection.poll_write(stream, &noop(), &vec![7; count]).map_err(|error| error.kind())
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn reset(stream: u32, status: ResetStatus) -> Frame {
    Frame::Reset { stream, status: status as u32 }
}

fn fin(stream: u32) -> Frame {
    Frame::Data { stream, fin: true, chunk: Bytes::new() }
}

/// The bytes of read data, or the kind of the error.
fn kind(read: Poll<io::Result<Vec<u8>>>) -> Option<Result<Vec<u8>, io::ErrorKind>> {
    match read {
        Poll::Pending => None,
        Poll::Ready(read) => Some(read.map_err(|error| error.kind())),
    }
}

#[test]
fn nothing_is_said_before_the_peer_has_spoken() {
    let mut pair = Pair::new();
    assert!(pair.output().is_empty());
    pair.send(Frame::Ping(1));
    let frames = pair.output();
    assert!(matches!(
        &frames[..],
        [Frame::Settings(_), Frame::WindowUpdate { stream: 0, .. }, Frame::Ping(1)]
    ));
    pair.send(Frame::Ping(3));
    pair.send(Frame::Ping(4));
    assert_eq!(pair.output(), [Frame::Ping(3)], "an even ping is an answer");
}

#[test]
fn a_stream_lives_from_syn_to_fin_of_both() {
    let mut pair = Pair::new();
    pair.open(1);
    assert_eq!(kind(pair.read(1)), None);
    pair.data(1, b"in", false);
    assert_eq!(kind(pair.read(1)), Some(Ok(b"in".to_vec())));
    pair.data(1, b"put", true);
    assert_eq!(kind(pair.read(1)), Some(Ok(b"put".to_vec())));
    assert_eq!(kind(pair.read(1)), Some(Ok(vec![])));
    assert_eq!(pair.write(1, 3), Poll::Ready(Ok(3)), "the other direction is open yet");
    pair.connection.finish(1);
    assert_eq!(pair.write(1, 3), Poll::Ready(Err(io::ErrorKind::BrokenPipe)));
    let chunk = Bytes::from_static(&[7; 3]);
    assert_eq!(pair.output(), [Frame::Data { stream: 1, fin: false, chunk }, fin(1)]);
    pair.connection.drop_writer(1);
    assert_eq!(pair.connection.load().streams, 1, "it can be read yet");
    pair.connection.drop_reader(1);
    assert_eq!(pair.connection.load().streams, 0);
    assert!(pair.output().is_empty(), "FIN is sent once");
}

#[test]
fn data_that_come_before_the_answer_are_kept() {
    let mut pair = Pair::new();
    let syn = pair.syn(1);
    pair.send(syn);
    pair.data(1, b"early", true);
    assert!(pair.connection.poll_accept(&noop()).is_ready());
    pair.connection.accept(1);
    assert_eq!(kind(pair.read(1)), Some(Ok(b"early".to_vec())));
}

#[test]
fn a_reset_ends_both_directions_in_every_state() {
    for accepted in [false, true] {
        for finished in [false, true] {
            let mut pair = Pair::new();
            let syn = pair.syn(1);
            pair.send(syn);
            let incoming = pair.connection.poll_accept(&noop());
            assert!(incoming.is_ready());
            if accepted {
                pair.connection.accept(1);
            }
            if finished {
                pair.connection.finish(1);
            }
            pair.data(1, b"lost", false);
            pair.output();
            pair.send(reset(1, ResetStatus::Cancel));
            assert_eq!(kind(pair.read(1)), Some(Err(io::ErrorKind::ConnectionReset)));
            assert_eq!(pair.write(1, 1), Poll::Ready(Err(io::ErrorKind::BrokenPipe)));
            assert_eq!(pair.connection.load().received, 0);
            pair.connection.accept(1);
            pair.connection.reset(1, ResetStatus::Cancel);
            pair.connection.drop_reader(1);
            pair.connection.drop_writer(1);
            assert_eq!(pair.connection.load().streams, 0);
            assert!(pair.output().is_empty(), "a reset is not answered");
            pair.data(1, b"late", false);
            pair.send(reset(1, ResetStatus::Cancel));
            assert!(pair.output().is_empty(), "nor is what was on its way");
        }
    }
}

#[test]
fn our_reset_comes_after_what_was_written() {
    let mut pair = Pair::new();
    pair.open(1);
    assert_eq!(pair.write(1, 1), Poll::Ready(Ok(1)));
    pair.connection.reset(1, ResetStatus::InternalError);
    let frames = pair.output();
    assert!(matches!(&frames[..], [Frame::Data { .. }, Frame::Reset { status: 6, .. }]), "{frames:?}");
}

#[test]
fn data_after_fin_and_for_streams_that_never_were_is_answered_with_reset() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.data(1, b"", true);
    pair.data(1, b"more", false);
    pair.data(99, b"what", false);
    pair.data(2, b"what", false);
    assert_eq!(
        pair.output(),
        [
            reset(1, ResetStatus::StreamAlreadyClosed),
            reset(99, ResetStatus::InvalidStream),
            reset(2, ResetStatus::InvalidStream)
        ]
    );
}

#[test]
fn ids_must_be_odd_and_rise() {
    for (first, second) in [(1, 1), (3, 1), (1, 2)] {
        let mut pair = Pair::new();
        pair.open(first);
        let syn = pair.syn(second);
        assert!(matches!(pair.connection.frame(syn), Err(ProtocolError::StreamId(id)) if id == second));
    }
}

#[test]
fn a_name_that_is_not_allowed_ends_its_stream_only() {
    let mut pair = Pair::new();
    let mut block = BytesMut::new();
    pair.deflater.put(&[("Upper", "case")].into_iter().collect(), &mut block);
    pair.send(Frame::SynStream { stream: 1, fin: false, unidirectional: false, block: block.freeze() });
    assert!(pair.output().contains(&reset(1, ResetStatus::ProtocolError)));
    pair.open(3);
}

#[test]
fn blocks_of_no_interest_are_part_of_the_history() {
    let mut pair = Pair::new();
    pair.open(1);
    let Frame::SynStream { block, .. } = pair.syn(0) else { unreachable!() };
    pair.send(Frame::Headers { stream: 1, fin: true, block });
    assert_eq!(kind(pair.read(1)), Some(Ok(vec![])), "HEADERS may carry FIN");
    let bad = Bytes::from_static(b"\xff\xff");
    assert!(pair.connection.frame(Frame::Headers { stream: 1, fin: false, block: bad }).is_err());
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut pair = Pair::new();
    let limit = u32::try_from(MAX_STREAMS).unwrap();
    for number in 0..limit {
        pair.open(2 * number + 1);
    }
    let syn = pair.syn(2 * limit + 1);
    pair.send(syn);
    assert_eq!(pair.output(), [reset(2 * limit + 1, ResetStatus::RefusedStream)]);
    pair.send(reset(1, ResetStatus::Cancel));
    pair.connection.drop_reader(1);
    pair.connection.drop_writer(1);
    pair.open(2 * limit + 3);
}

#[test]
fn input_is_not_wanted_while_nobody_accepts_or_reads_or_listens() {
    let mut pair = Pair::new();
    for number in 0..u32::try_from(MAX_UNACCEPTED).unwrap() {
        assert!(pair.connection.wants_input());
        let syn = pair.syn(2 * number + 1);
        pair.send(syn);
    }
    assert!(!pair.connection.wants_input());
    assert!(pair.connection.poll_accept(&noop()).is_ready());
    assert!(pair.connection.wants_input());

    let chunk = Bytes::from(vec![1; RECEIVE_BUFFER_BYTES]);
    pair.send(Frame::Data { stream: 1, fin: false, chunk });
    assert!(!pair.connection.wants_input());
    assert!(pair.read(1).is_ready());
    assert!(pair.connection.wants_input());

    while pair.connection.wants_input() {
        pair.send(Frame::Ping(1));
    }
    assert!(pair.connection.load().answers < MAX_ANSWER_BYTES + MAX_CONTROL_FRAME_BYTES);
    pair.output();
    assert!(pair.connection.wants_input());
}

#[test]
fn refusals_that_nobody_takes_stop_the_input_too() {
    let mut pair = Pair::new();
    for stream in (1..).step_by(2) {
        if !pair.connection.wants_input() {
            break;
        }
        let syn = pair.syn(stream);
        pair.send(syn);
        assert!(pair.connection.poll_accept(&noop()).is_ready());
        pair.connection.reset(stream, ResetStatus::RefusedStream);
        pair.connection.drop_reader(stream);
        pair.connection.drop_writer(stream);
        assert!(pair.connection.load().data <= SEND_BUFFER_BYTES + MAX_ANSWER_BYTES);
    }
}

#[test]
fn writers_wait_for_room_and_are_let_in_again() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.open(3);
    let mut written = 0;
    while let Poll::Ready(Ok(count)) = pair.write(1, 1 << 20) {
        assert!(count <= MAX_DATA_FRAME_BYTES);
        written += count;
    }
    assert!(written <= SEND_BUFFER_BYTES, "frames' heads count too");
    assert_eq!(pair.write(3, 1), Poll::Pending);
    assert_eq!(pair.connection.blocked, [1, 3]);
    let mut output = BytesMut::new();
    pair.connection.take_output(&mut output);
    assert!(pair.connection.blocked.is_empty());
    assert_eq!(pair.write(3, 1), Poll::Ready(Ok(1)));
}

#[test]
fn windows_bind_once_the_peer_has_shown_that_it_has_some() {
    let mut pair = Pair::new();
    pair.open(1);
    let more = usize::try_from(INITIAL_WINDOW_BYTES).unwrap() + 10;
    for count in [more - 10, 10] {
        assert_eq!(pair.write(1, count), Poll::Ready(Ok(count)), "it may not know windows");
    }
    pair.send(Frame::WindowUpdate { stream: 1, delta: 11 });
    assert_eq!(pair.write(1, 5), Poll::Pending, "the connection's window is overdrawn by 10");
    pair.send(Frame::WindowUpdate { stream: 0, delta: 12 });
    assert_eq!(pair.write(1, 5), Poll::Ready(Ok(1)), "the stream's has one byte left");
    pair.send(Frame::Settings(vec![(SETTING_INITIAL_WINDOW, INITIAL_WINDOW_BYTES + 7)]));
    assert_eq!(pair.write(1, 5), Poll::Ready(Ok(1)), "and the connection's one more");
    assert_eq!(pair.write(1, 5), Poll::Pending);
    pair.send(Frame::WindowUpdate { stream: 0, delta: 1000 });
    assert_eq!(pair.write(1, 50), Poll::Ready(Ok(6)));
}

#[test]
fn a_window_that_grows_too_large_is_an_error_of_its_owner() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.open(3);
    pair.send(Frame::WindowUpdate { stream: 1, delta: 0x7fff_ffff });
    assert_eq!(pair.output(), [reset(1, ResetStatus::FlowControlError)]);
    assert!(pair.connection.frame(Frame::WindowUpdate { stream: 0, delta: 0x7fff_ffff }).is_err());
}

#[test]
fn our_windows_are_announced_as_bytes_are_read_or_dropped() {
    let mut pair = Pair::new();
    pair.open(1);
    let chunk = || Bytes::from(vec![1; 40_000]);
    pair.send(Frame::Data { stream: 1, fin: false, chunk: chunk() });
    assert!(pair.output().is_empty(), "not before they are read");
    assert!(pair.read(1).is_ready());
    let both =
        [Frame::WindowUpdate { stream: 0, delta: 40_000 }, Frame::WindowUpdate { stream: 1, delta: 40_000 }];
    assert_eq!(pair.output(), both);
    pair.connection.drop_reader(1);
    pair.send(Frame::Data { stream: 1, fin: false, chunk: chunk() });
    assert_eq!(pair.output(), both, "what nobody reads does not stop the peer");
    pair.send(fin(1));
    pair.connection.drop_writer(1);
    assert_eq!(pair.output(), [fin(1)]);
    pair.send(Frame::Data { stream: 1, fin: false, chunk: chunk() });
    assert_eq!(pair.output(), both[..1], "nor what comes late");
}

#[test]
fn goaway_ends_the_streams_to_come_and_ours_is_the_last_frame() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.open(3);
    pair.send(Frame::GoAway { last: 0, status: 0 });
    assert!(matches!(pair.connection.poll_accept(&noop()), Poll::Ready(None)));
    let syn = pair.syn(5);
    pair.send(syn);
    assert_eq!(pair.output(), [reset(5, ResetStatus::RefusedStream)]);
    assert_eq!(pair.write(1, 1), Poll::Ready(Ok(1)), "open streams go on");
    pair.connection.finish(3);
    pair.connection.close(GoAwayStatus::Ok);
    pair.connection.close(GoAwayStatus::ProtocolError);
    let frames = pair.output();
    assert!(matches!(frames[0], Frame::Data { stream: 1, fin: false, .. }));
    assert_eq!(frames[1..], [fin(3), reset(1, ResetStatus::Cancel), Frame::GoAway { last: 5, status: 0 }]);
    assert_eq!(pair.write(1, 1), Poll::Ready(Err(io::ErrorKind::BrokenPipe)));
    pair.send(Frame::Ping(1));
    assert!(pair.output().is_empty());
}

#[test]
fn what_was_received_can_be_read_after_the_end() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.data(1, b"last words", false);
    pair.connection.end();
    assert_eq!(kind(pair.read(1)), Some(Ok(b"last words".to_vec())));
    assert_eq!(kind(pair.read(1)), Some(Err(io::ErrorKind::ConnectionReset)));
    assert_eq!(pair.write(1, 1), Poll::Ready(Err(io::ErrorKind::BrokenPipe)));
}

/// What the fuzzer has found to be of interest, and whatever once went wrong.
#[test]
fn the_corpus_of_the_fuzzer_holds() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/spdy");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 100, "{} files in {corpus}", files.len());
    for file in files {
        exercise::input(&std::fs::read(file).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn bounds_hold_whatever_both_ends_do(script in prop::collection::vec(any::<u8>(), 0..4000)) {
        exercise::exercise(&script);
    }

    #[test]
    fn a_peer_may_send_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        exercise::receive(&bytes);
    }
}
