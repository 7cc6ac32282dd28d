//! The CRI log format, as an encoder from what a container writes to lines of its log file. Pure.
//!
//! ```text
//! 2026-11-24T00:35:43.123456789Z stdout F a whole line
//! 2026-11-24T00:35:43.123456789Z stderr P the first 16384 bytes of a longer one, or a tail without newline
//! ```
//!
//! The fields are the time the line was read (RFC 3339 in UTC, always nine digits), the stream, `F` for a line that
//! ended in a newline or `P` for a part of one, and the bytes exactly as they were written: carriage returns,
//! NULs and invalid UTF-8 too. Readers (kubelet, crictl, ours) drop the newline after a `P` part, so joining
//! the parts gives back the container's output byte for byte; that is why a tail without a newline is a `P`.
//!
//! Specified by Kubernetes' CRI logging design; the part length is the one its users know from containerd.

use memchr::memchr;

/// The longest content of one log line where nothing else is configured.
pub const DEFAULT_PART_BYTES: usize = 16 * 1024;

/// The smallest part length accepted: smaller ones would write more header than content.
pub const MIN_PART_BYTES: usize = 64;

/// Which output of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, and everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The stream's field, with the spaces around it.
    fn field(self) -> &'static [u8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// A time as the log's first field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp([u8; Self::BYTES]);

impl Timestamp {
    /// Length of the field: `2026-11-24T00:35:43.123456789Z`.
    const BYTES: usize = 30;

    /// The field for a time in nanoseconds since the epoch; all that an `i64` can hold have four-digit years.
    pub fn from_ns(ns: i64) -> Self {
        const NS_PER_S: i64 = 1_000_000_000;
        let (seconds, nanos) = (ns.div_euclid(NS_PER_S), ns.rem_euclid(NS_PER_S));
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_date(days);
        let mut field = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut field[0..4], year);
        digits(&mut field[5..7], month);
        digits(&mut field[8..10], day);
        digits(&mut field[11..13], of_day / 3600);
        digits(&mut field[14..16], of_day / 60 % 60);
        digits(&mut field[17..19], of_day % 60);
        digits(&mut field[20..29], nanos);
        Self(field)
    }

    /// The field's text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Writes `value` in decimal, zero-padded, over the whole of `field`.
fn digits(field: &mut [u8], mut value: i64) {
    for place in field.iter_mut().rev() {
        *place = b"0123456789"[usize::try_from(value % 10).unwrap_or(0)];
        value /= 10;
    }
}

/// (year, month, day) of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
///
/// Counts in 400-year eras that begin on 1 March, so that the leap day is the last of its year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    const DAYS_FROM_ERA_START_TO_EPOCH: i64 = 719_468;
    let shifted = days + DAYS_FROM_ERA_START_TO_EPOCH;
    let (era, of_era) = (shifted.div_euclid(DAYS_PER_ERA), shifted.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * months_from_march + 2) / 5 + 1;
    let month = if months_from_march < 10 { months_from_march + 3 } else { months_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Turns one stream's bytes, in chunks of any size, into log lines.
#[derive(Debug)]
pub struct Encoder {
    stream: Stream,
    part_bytes: usize,
    /// The begun line: at most `part_bytes`, without newline.
    tail: Vec<u8>,
}

impl Encoder {
    /// An encoder for `stream` whose lines hold at most `part_bytes` of content (0: [`DEFAULT_PART_BYTES`]).
    pub fn new(stream: Stream, part_bytes: usize) -> Self {
        let part_bytes = match part_bytes {
            0 => DEFAULT_PART_BYTES,
            some => some.max(MIN_PART_BYTES),
        };
        Self { stream, part_bytes, tail: Vec::new() }
    }

    /// Appends to `out` every line that `chunk` completes, and every part that is full. The rest is kept for the
    /// next chunk, so a line of exactly the part length is still one `F` line.
    pub fn encode(&mut self, mut chunk: &[u8], now: &Timestamp, out: &mut Vec<u8>) {
        while let Some(end) = memchr(b'\n', chunk) {
            self.line(&chunk[..end], now, out);
            chunk = &chunk[end + 1..];
        }
        // What follows the last newline begins a line. A part is cut only when a byte follows it.
        while self.tail.len() + chunk.len() > self.part_bytes {
            let (head, rest) = chunk.split_at(self.part_bytes - self.tail.len());
            self.emit(b'P', head, now, out);
            chunk = rest;
        }
        self.tail.extend_from_slice(chunk);
    }

    /// Appends the begun line, if there is one, as a part: the stream has ended, or its container has.
    pub fn flush(&mut self, now: &Timestamp, out: &mut Vec<u8>) {
        if !self.tail.is_empty() {
            self.emit(b'P', &[], now, out);
        }
        self.tail = Vec::new();
    }

    /// A whole line: what was kept of it, then `rest`.
    fn line(&mut self, mut rest: &[u8], now: &Timestamp, out: &mut Vec<u8>) {
        while self.tail.len() + rest.len() > self.part_bytes {
            let (head, after) = rest.split_at(self.part_bytes - self.tail.len());
            self.emit(b'P', head, now, out);
            rest = after;
        }
        self.emit(b'F', rest, now, out);
    }

    /// One log line of the kept tail and `content`.
    fn emit(&mut self, tag: u8, content: &[u8], now: &Timestamp, out: &mut Vec<u8>) {
        out.reserve(Timestamp::BYTES + 11 + self.tail.len() + content.len());
        out.extend_from_slice(now.as_bytes());
        out.extend_from_slice(self.stream.field());
        out.extend_from_slice(&[tag, b' ']);
        out.extend_from_slice(&self.tail);
        out.extend_from_slice(content);
        out.push(b'\n');
        self.tail.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_795_480_543_000_000_042;

    fn encode_all(chunks: &[Vec<u8>], part_bytes: usize) -> Vec<u8> {
        let (mut encoder, now, mut out) =
            (Encoder::new(Stream::Stdout, part_bytes), Timestamp::from_ns(NOW), Vec::new());
        for chunk in chunks {
            encoder.encode(chunk, &now, &mut out);
        }
        encoder.flush(&now, &mut out);
        out
    }

    /// What a reader of the log gives back: an independent decoder of the format.
    fn decode(log: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            assert_eq!(fields.next().unwrap().len(), 30);
            assert_eq!(fields.next().unwrap(), b"stdout");
            let tag = fields.next().unwrap();
            let content = fields.next().unwrap();
            match tag {
                b"F" => output.extend_from_slice(content),
                b"P" => output.extend_from_slice(content.strip_suffix(b"\n").unwrap()),
                other => panic!("tag {other:?}"),
            }
        }
        output
    }

    #[test]
    fn timestamps_have_nine_digits_in_utc() {
        let text = |ns| String::from_utf8(Timestamp::from_ns(ns).0.to_vec()).unwrap();
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_827_696_000_000_007), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(text(i64::MAX), "2262-04-11T23:47:16.854775807Z");
    }

    #[test]
    fn a_line_is_full_and_a_tail_is_a_part() {
        let log = encode_all(&[b"one\ntw".to_vec(), b"o\r\n\nend".to_vec()], 0);
        let time = "2026-11-24T00:35:43.000000042Z";
        let expected =
            format!("{time} stdout F one\n{time} stdout F two\r\n{time} stdout F \n{time} stdout P end\n");
        assert_eq!(String::from_utf8(log).unwrap(), expected);
    }

    #[test]
    fn a_line_of_exactly_the_part_length_is_one_line() {
        let tags = |len: usize| -> Vec<u8> {
            let mut line = vec![b'x'; len];
            line.push(b'\n');
            let log = encode_all(&[line], 0);
            log.split_inclusive(|b| *b == b'\n').map(|line| line[38]).collect()
        };
        assert_eq!(tags(16_384), b"F");
        assert_eq!(tags(16_385), b"PF");
        assert_eq!(tags(32_768), b"PF");
        assert_eq!(tags(32_769), b"PPF");
    }

    proptest! {
        // Long inputs matter more here than many.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_reader_gets_every_byte_back(
            chunks in prop::collection::vec(
                prop::collection::vec(prop_oneof![3 => Just(b'\n'), 40 => any::<u8>()], 0..400), 0..20),
            part in MIN_PART_BYTES..200,
        ) {
            prop_assert_eq!(decode(&encode_all(&chunks, part)), chunks.concat());
        }

        #[test]
        fn the_log_does_not_depend_on_how_output_was_chunked(
            output in prop::collection::vec(prop_oneof![1 => Just(b'\n'), 9 => Just(b'x')], 0..2000),
            cuts in prop::collection::vec(1usize..300, 1..50),
        ) {
            let mut chunks = Vec::new();
            let mut rest = &output[..];
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                chunks.push(head.to_vec());
                rest = tail;
            }
            chunks.push(rest.to_vec());
            prop_assert_eq!(encode_all(&chunks, 64), encode_all(std::slice::from_ref(&output), 64));
        }

        #[test]
        fn no_content_is_longer_than_the_part_length(
            output in prop::collection::vec(prop_oneof![1 => Just(b'\n'), 99 => any::<u8>()], 0..3000),
        ) {
            for line in encode_all(&[output], 100).split(|byte| *byte == b'\n') {
                prop_assert!(line.len() <= 30 + 8 + 2 + 100);
            }
        }

        #[test]
        fn dates_agree_with_the_time_crate(ns in any::<i64>()) {
            let format = time::macros::format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
            let expected =
                time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).unwrap().format(&format).unwrap();
            let timestamp = Timestamp::from_ns(ns);
            prop_assert_eq!(timestamp.as_bytes(), expected.as_bytes());
        }
    }
}
