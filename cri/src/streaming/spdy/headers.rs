//! Name/value blocks: their encoding (SPDY/3.1, 2.6.10) and their compression.
//!
//! ```text
//! +--------------------+
//! | number of pairs 32 |
//! +--------------------+   zlib, one stream for all blocks of a direction, flushed after each
//! | length 32 | name   |   -------------------------------------------------------------------> payload of a frame
//! | length 32 | value  |
//! | ...                |
//! +--------------------+
//! ```
//!
//! Blocks are read with the history of all blocks before them, so every block must pass [`Inflater`], wanted or not.
//! Blocks are written as *stored* blocks of deflate (RFC 1951, 3.2.4), which refer to nothing before them: what a
//! server answers is a dozen bytes, and a compressor would keep a quarter of a megabyte for it on each connection.

use bytes::{BufMut as _, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use thiserror::Error;

use super::dictionary::{DICTIONARY_ID, dictionary};
use super::limits::{MAX_HEADER_BLOCK_BYTES, MAX_HEADERS};

/// Why a block is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The zlib stream is damaged, ended, or asks for another dictionary. Nothing after it can be read.
    #[error("the compressed name/value block is damaged")]
    Zlib,
    /// The block is longer than [`MAX_HEADER_BLOCK_BYTES`]. The rest of it was not decompressed, so nothing after it
    /// can be read.
    #[error("the name/value block is longer than {MAX_HEADER_BLOCK_BYTES} bytes")]
    TooLong,
    /// Lengths and content of the block disagree, or there are more pairs than [`MAX_HEADERS`].
    #[error("the name/value block is malformed")]
    Malformed,
    /// A name is empty, has upper case, occurs twice, or is no UTF-8, nor its value. Only this block is bad.
    #[error("a name or value is not allowed")]
    Invalid,
}

/// Name/value pairs, in the order they came. Names are in lower case and occur once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of `name`, which is given in lower case; the first one where the pair has several.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(candidate, _)| candidate == name)?;
        value.split('\0').next()
    }

    /// All pairs. A pair of several values has them in one text, separated by NUL.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Reads a block that is no longer compressed.
    pub(super) fn parse(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = usize::try_from(take_u32(&mut block)?).map_err(|_| HeaderError::Malformed)?;
        if count > MAX_HEADERS {
            return Err(HeaderError::Malformed);
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(count);
        let mut valid = true;
        for _ in 0..count {
            let (name, value) = (take_text(&mut block)?, take_text(&mut block)?);
            match (std::str::from_utf8(name), std::str::from_utf8(value)) {
                (Ok(name), Ok(value)) if is_name(name) && pairs.iter().all(|(other, _)| other != name) => {
                    pairs.push((name.to_owned(), value.to_owned()));
                }
                _ => valid = false,
            }
        }
        if !block.is_empty() {
            return Err(HeaderError::Malformed);
        }
        if valid { Ok(Self(pairs)) } else { Err(HeaderError::Invalid) }
    }

    /// The block, not yet compressed.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = Vec::new();
        put_length(&mut block, self.0.len());
        for (name, value) in &self.0 {
            put_length(&mut block, name.len());
            block.extend(name.as_bytes());
            put_length(&mut block, value.len());
            block.extend(value.as_bytes());
        }
        block
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter.is_ascii_uppercase() || letter == '\0')
}

fn put_length(block: &mut Vec<u8>, length: usize) {
    block.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

fn take_u32(block: &mut &[u8]) -> Result<u32, HeaderError> {
    let (number, rest) = block.split_first_chunk().ok_or(HeaderError::Malformed)?;
    *block = rest;
    Ok(u32::from_be_bytes(*number))
}

fn take_text<'block>(block: &mut &'block [u8]) -> Result<&'block [u8], HeaderError> {
    let length = usize::try_from(take_u32(block)?).map_err(|_| HeaderError::Malformed)?;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *block = rest;
    Ok(text)
}

/// Decompresses the blocks of one direction, in their order.
#[derive(Debug, Default)]
pub(super) struct Inflater {
    /// Made with the first block: a connection without streams needs none.
    zlib: Option<Decompress>,
    /// A block went wrong; the state after it is unknown.
    broken: bool,
}

impl Inflater {
    /// Decompresses the payload of one frame to one block.
    pub(super) fn block(&mut self, payload: &[u8]) -> Result<Vec<u8>, HeaderError> {
        if self.broken {
            return Err(HeaderError::Zlib);
        }
        let block = self.inflate(payload);
        self.broken = block.is_err();
        block
    }

    fn inflate(&mut self, mut payload: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let zlib = self.zlib.get_or_insert_with(|| Decompress::new(true));
        let mut block = Vec::with_capacity(256);
        loop {
            let before = zlib.total_in();
            let result = zlib.decompress_vec(payload, &mut block, FlushDecompress::Sync);
            let read = usize::try_from(zlib.total_in() - before).map_err(|_| HeaderError::Zlib)?;
            payload = payload.get(read..).ok_or(HeaderError::Zlib)?;
            match result {
                // It asks once, at the head of the first block.
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    zlib.set_dictionary(&dictionary()).map_err(|_| HeaderError::Zlib)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(HeaderError::Zlib),
                Ok(Status::Ok | Status::BufError) if block.len() < block.capacity() => {
                    // Room was left, so there was nothing more to be had from the payload.
                    return if payload.is_empty() { Ok(block) } else { Err(HeaderError::Zlib) };
                }
                Ok(Status::Ok | Status::BufError) => {
                    if block.len() > MAX_HEADER_BLOCK_BYTES {
                        return Err(HeaderError::TooLong);
                    }
                    // One byte more than allowed tells a block that is too long from one that just fits.
                    let more = block.len().min(MAX_HEADER_BLOCK_BYTES + 1 - block.len());
                    block.reserve_exact(more);
                }
            }
        }
    }
}

/// Compresses the blocks of one direction, in their order.
#[derive(Debug, Default)]
pub(super) struct Deflater {
    started: bool,
}

impl Deflater {
    /// Appends the payload of a frame with these pairs.
    pub(super) fn put(&mut self, headers: &Headers, out: &mut BytesMut) {
        if !self.started {
            self.started = true;
            // CMF: deflate with a window of 32 KiB. FLG: FDICT. Both together are a multiple of 31 as they are.
            out.put_u16(0x7820);
            out.put_u32(DICTIONARY_ID);
        }
        for part in headers.encode().chunks(usize::from(u16::MAX)) {
            put_stored(part, out);
        }
        // What zlib's Z_SYNC_FLUSH appends: Go's inflate hands out nothing of a stored block before the next one begins.
        put_stored(&[], out);
    }
}

/// Appends a stored block of deflate that is not the last.
fn put_stored(part: &[u8], out: &mut BytesMut) {
    let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.put_slice(part);
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// What a client does: a real compressor, primed with the dictionary, flushed after each block.
    struct Client(Compress);

    impl Client {
        fn new(level: u32) -> Self {
            let mut zlib = Compress::new(Compression::new(level), true);
            zlib.set_dictionary(&dictionary()).unwrap();
            Self(zlib)
        }

        fn payload(&mut self, block: &[u8]) -> Vec<u8> {
            let mut payload = Vec::with_capacity(block.len() + 1024);
            self.0.compress_vec(block, &mut payload, FlushCompress::Sync).unwrap();
            payload
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().copied().collect()
    }

    #[test]
    fn blocks_are_read_with_the_history_of_those_before() {
        let (mut client, mut inflater) = (Client::new(9), Inflater::default());
        let wanted = headers(&[("streamtype", "stdin"), ("port", "8080"), ("requestid", "1")]);
        let first = client.payload(&wanted.encode());
        let second = client.payload(&wanted.encode());
        assert!(second.len() < first.len() / 2, "the second refers to the first");
        for payload in [first, second] {
            assert_eq!(Headers::parse(&inflater.block(&payload).unwrap()).unwrap(), wanted);
        }
    }

    #[test]
    fn a_stream_without_the_dictionary_is_read_too() {
        let mut zlib = Client(Compress::new(Compression::new(6), true));
        let payload = zlib.payload(&headers(&[("a", "b")]).encode());
        assert_eq!(Inflater::default().block(&payload).unwrap(), headers(&[("a", "b")]).encode());
    }

    #[test]
    fn another_dictionary_is_refused() {
        let mut zlib = Compress::new(Compression::new(6), true);
        zlib.set_dictionary(b"something else").unwrap();
        let payload = Client(zlib).payload(&headers(&[("a", "b")]).encode());
        assert_eq!(Inflater::default().block(&payload), Err(HeaderError::Zlib));
    }

    #[test]
    fn a_bomb_ends_at_the_limit_and_breaks_the_direction() {
        let mut client = Client::new(9);
        let bomb = client.payload(&vec![0; 16 << 20]);
        assert!(bomb.len() < 20_000, "{}", bomb.len());
        let mut inflater = Inflater::default();
        assert_eq!(inflater.block(&bomb), Err(HeaderError::TooLong));
        assert_eq!(inflater.block(&bomb), Err(HeaderError::Zlib));
    }

    #[test]
    fn a_block_just_within_the_limit_is_read() {
        for (length, fits) in [(MAX_HEADER_BLOCK_BYTES, true), (MAX_HEADER_BLOCK_BYTES + 1, false)] {
            let block = vec![b'x'; length];
            let read = Inflater::default().block(&Client::new(9).payload(&block));
            assert_eq!(read.is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn an_ended_stream_and_trailing_bytes_are_damage() {
        let mut zlib = Client::new(9);
        let mut payload = Vec::with_capacity(1024);
        zlib.0.compress_vec(&headers(&[]).encode(), &mut payload, FlushCompress::Finish).unwrap();
        assert_eq!(Inflater::default().block(&payload), Err(HeaderError::Zlib));
    }

    #[test]
    fn pairs_that_are_not_allowed_are_told_from_malformed_ones() {
        let parse = |pairs: &[(&str, &str)]| Headers::parse(&headers(pairs).encode());
        assert_eq!(parse(&[("", "x")]), Err(HeaderError::Invalid));
        assert_eq!(parse(&[("Port", "x")]), Err(HeaderError::Invalid));
        assert_eq!(parse(&[("a", "x"), ("a", "y")]), Err(HeaderError::Invalid));
        let many: Vec<_> = (0..=MAX_HEADERS).map(|number| (number.to_string(), "")).collect();
        assert_eq!(
            Headers::parse(&many.into_iter().collect::<Headers>().encode()),
            Err(HeaderError::Malformed)
        );
        let mut block = headers(&[("a", "b")]).encode();
        assert_eq!(Headers::parse(&block[..block.len() - 1]), Err(HeaderError::Malformed));
        block.push(0);
        assert_eq!(Headers::parse(&block), Err(HeaderError::Malformed));
        assert_eq!(Headers::parse(&[0xff; 12]), Err(HeaderError::Malformed));
    }

    #[test]
    fn the_first_of_several_values_is_got() {
        let several = headers(&[("accept", "one\0two")]);
        assert_eq!(several.get("accept"), Some("one"));
        assert_eq!(several.get("other"), None);
    }

    #[test]
    fn every_block_ends_as_a_flush_does() {
        let mut deflater = Deflater::default();
        for _ in 0..2 {
            let mut payload = BytesMut::new();
            deflater.put(&Headers::default(), &mut payload);
            assert!(payload.ends_with(&[0, 0, 0, 0xff, 0xff]), "moby/spdystream reads on for ever otherwise");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_is_read_back(blocks in prop::collection::vec(
            prop::collection::btree_map("[a-z:-]{1,20}", "\\PC{0,40}", 0..8), 1..5,
        )) {
            let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
            for block in blocks {
                let wanted: Headers = block.into_iter().collect();
                let mut payload = BytesMut::new();
                deflater.put(&wanted, &mut payload);
                prop_assert_eq!(Headers::parse(&inflater.block(&payload).unwrap()).unwrap(), wanted);
            }
        }

        #[test]
        fn arbitrary_payloads_never_panic(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4)) {
            let mut inflater = Inflater::default();
            for payload in payloads {
                if let Ok(block) = inflater.block(&payload) {
                    prop_assert!(block.len() <= MAX_HEADER_BLOCK_BYTES);
                    let _ = Headers::parse(&block);
                }
                let _ = Headers::parse(&payload);
            }
        }
    }
}
