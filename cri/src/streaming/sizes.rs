//! Terminal sizes as clients send them: JSON objects one after another, cut anywhere.

use serde::Deserialize;

/// The most bytes of an object that is not complete.
const MAX_PARTIAL_BYTES: usize = 1024;

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Size {
    /// Columns.
    #[serde(rename = "Width", alias = "width")]
    pub(super) width: u16,
    /// Rows.
    #[serde(rename = "Height", alias = "height")]
    pub(super) height: u16,
}

/// Puts the objects together.
#[derive(Debug, Default)]
pub(super) struct SizeReader {
    partial: Vec<u8>,
}

impl SizeReader {
    /// Takes what has arrived; the last size that is complete now. What is no size is dropped.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Size> {
        self.partial.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.partial).into_iter();
        let mut last = None;
        let consumed = loop {
            match sizes.next() {
                Some(Ok(size)) => last = Some(size),
                None => break sizes.byte_offset(),
                Some(Err(error)) if error.is_eof() => break sizes.byte_offset(),
                Some(Err(_)) => break self.partial.len(),
            }
        };
        self.partial.drain(..consumed);
        if self.partial.len() > MAX_PARTIAL_BYTES {
            self.partial.clear();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_put_together_and_the_last_counts() {
        let mut reader = SizeReader::default();
        let size = |width, height| Some(Size { width, height });
        assert_eq!(reader.feed(br#"{"Width":80,"Height":24}"#), size(80, 24));
        assert_eq!(reader.feed(b"\n{\"Width\":1,\"Height\":2}\n{\"Width\":3,"), size(1, 2));
        assert_eq!(reader.feed(b"\"Height\":4}"), size(3, 4));
        assert_eq!(reader.feed(br#"{"width":5,"height":6}"#), size(5, 6));
    }

    #[test]
    fn what_is_no_size_is_dropped_and_does_not_pile_up() {
        let mut reader = SizeReader::default();
        assert_eq!(reader.feed(br#"{"Width":99999,"Height":24}"#), None);
        assert_eq!(reader.feed(b"}}} not json"), None);
        assert_eq!(reader.feed(br#"{"Width":"#), None);
        for _ in 0..100 {
            assert_eq!(reader.feed(&[b' '; 1000]), None);
            assert!(reader.partial.len() <= MAX_PARTIAL_BYTES);
        }
        assert_eq!(reader.feed(br#"{"Width":7,"Height":8}"#), Some(Size { width: 7, height: 8 }));
    }
}
