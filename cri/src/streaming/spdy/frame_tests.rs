//! Frames there and back, in any pieces, and what is no frame.

use proptest::prelude::*;

use super::*;

fn decode_all(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
    decode_pieces([bytes])
}

/// Decodes what comes in pieces, and joins the pieces of each data frame.
fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Frame>, FrameError> {
    let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    let mut open = false;
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(frame) = decoder.next(&mut input)? {
            match (frames.last_mut(), &frame) {
                (Some(Frame::Data { fin, chunk, .. }), Frame::Data { fin: last, chunk: more, .. })
                    if open =>
                {
                    *fin |= last;
                    *chunk = [chunk.as_ref(), more].concat().into();
                }
                _ => frames.push(frame),
            }
            open = matches!(decoder.rest, Rest::Data { .. });
        }
        assert!(input.len() < HEAD_BYTES + MAX_CONTROL_FRAME_BYTES);
    }
    Ok(frames)
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = || 1..=0x7fff_ffff_u32;
    let block = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    prop_oneof![
        (id(), any::<bool>(), any::<bool>(), block()).prop_map(|(stream, fin, unidirectional, block)| {
            Frame::SynStream { stream, fin, unidirectional, block }
        }),
        (id(), any::<bool>(), block()).prop_map(|(stream, fin, block)| Frame::SynReply {
            stream,
            fin,
            block
        }),
        (id(), any::<bool>(), block()).prop_map(|(stream, fin, block)| Frame::Headers { stream, fin, block }),
        (id(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
        prop::collection::vec((0..1_u32 << 24, any::<u32>()), 0..MAX_SETTINGS).prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (0..=0x7fff_ffff_u32, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (0..=0x7fff_ffff_u32, 0..=0x7fff_ffff_u32)
            .prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        (id(), any::<bool>(), block()).prop_map(|(stream, fin, chunk)| Frame::Data { stream, fin, chunk }),
    ]
}

proptest! {
    #[test]
    fn frames_are_read_as_they_were_written_whatever_the_pieces(
        frames in prop::collection::vec(frame(), 0..12),
        sizes in prop::collection::vec(1_usize..60, 1..20),
    ) {
        let mut bytes = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut bytes);
        }
        prop_assert_eq!(&decode_all(&bytes).unwrap(), &frames);
        let (mut pieces, mut rest) = (Vec::new(), bytes.as_ref());
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(&decode_pieces(pieces).unwrap(), &frames);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = decode_all(&bytes);
    }

    #[test]
    fn arbitrary_payloads_of_known_types_never_panic(kind in 0_u16..12, flags in any::<u8>(),
        payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = BytesMut::new();
        control_head(&mut bytes, kind, flags, payload.len());
        bytes.extend_from_slice(&payload);
        let _ = decode_all(&bytes);
    }
}

#[test]
fn a_control_frame_that_is_too_long_is_refused_by_its_head() {
    let mut bytes = BytesMut::new();
    control_head(&mut bytes, kind::SYN_STREAM, 0, MAX_CONTROL_FRAME_BYTES + 1);
    let length = MAX_CONTROL_FRAME_BYTES + 1;
    assert_eq!(decode_all(&bytes), Err(FrameError::TooLong { kind: kind::SYN_STREAM, length }));
}

#[test]
fn unknown_control_frames_are_passed_over_at_any_length() {
    let mut bytes = BytesMut::new();
    for unknown in [0, 5, 10, 0xffff] {
        control_head(&mut bytes, unknown, 0, 100_000);
        bytes.put_bytes(7, 100_000);
    }
    Frame::Ping(1).encode(&mut bytes);
    let pieces: Vec<_> = bytes.chunks(1000).collect();
    assert_eq!(decode_pieces(pieces), Ok(vec![Frame::Ping(1)]));
}

#[test]
fn another_version_and_stream_zero_are_refused() {
    assert_eq!(decode_all(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]), Err(FrameError::Version(2)));
    assert_eq!(
        decode_all(b"GET / HTTP/1.1\r\n\r\n").map(|frames| frames.len()),
        Ok(1),
        "a data frame's head"
    );
    assert_eq!(decode_all(&[0, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::DataForZero));
    let mut bytes = BytesMut::new();
    put_pair(&mut bytes, kind::RST_STREAM, 0, 1);
    assert_eq!(decode_all(&bytes), Err(FrameError::StreamZero(kind::RST_STREAM)));
}

#[test]
fn lengths_that_do_not_suit_their_type_are_refused() {
    for (kind, length) in [
        (kind::SYN_STREAM, 9),
        (kind::SYN_REPLY, 3),
        (kind::RST_STREAM, 7),
        (kind::RST_STREAM, 12),
        (kind::SETTINGS, 5),
        (kind::PING, 3),
        (kind::PING, 8),
        (kind::GOAWAY, 4),
        (kind::WINDOW_UPDATE, 9),
    ] {
        let mut bytes = BytesMut::new();
        control_head(&mut bytes, kind, 0, length);
        bytes.put_bytes(1, length);
        assert_eq!(decode_all(&bytes), Err(FrameError::Malformed(kind)), "type {kind}, {length} bytes");
    }
}

#[test]
fn settings_that_count_more_than_they_have_are_refused() {
    for count in [2, 65, u32::MAX] {
        let mut bytes = BytesMut::new();
        control_head(&mut bytes, kind::SETTINGS, 0, 12);
        bytes.put_u32(count);
        bytes.put_u64(0);
        assert_eq!(decode_all(&bytes), Err(FrameError::Malformed(kind::SETTINGS)), "{count}");
    }
}
