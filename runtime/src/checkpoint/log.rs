//! What criu's log says about a failure: a code tells nothing that a person could mend.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the log's end is looked through, in bytes.
const TAIL_BYTES: u64 = 256 << 10;

/// The most error lines that are quoted: the first error is what went wrong, the last what became of it.
const LINES_MAX: usize = 4;

/// The most of one line that is quoted, in bytes.
const LINE_BYTES_MAX: usize = 400;

/// The last error lines of a log, without their times, joined. None: it has none, or cannot be read.
pub(super) fn last_errors(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    errors_of(&String::from_utf8_lossy(&tail))
}

fn errors_of(text: &str) -> Option<String> {
    let errors: Vec<&str> = text.lines().filter_map(error_of).collect();
    let first = errors.len().saturating_sub(LINES_MAX);
    let quoted = errors[first..].join("; ");
    (!quoted.is_empty()).then_some(quoted)
}

/// `(00.001234)      7: Error (criu/mount.c:1234): mnt: …` without what is before the word.
fn error_of(line: &str) -> Option<&str> {
    let start = line.find("Error (")?;
    let mut end = line.len().min(start + LINE_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    Some(line[start..end].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_errors_are_quoted() {
        let log = "(00.1) Dumping\n(00.2)  7: Error (a.c:1): one\n(00.3) Error (a.c:2): two\nWarn  (b.c:1): x\n\
                   (00.4) Error (a.c:3): three\n(00.5) Error (a.c:4): four\n(00.6) Error (a.c:5): five\n";
        assert_eq!(
            errors_of(log).unwrap(),
            "Error (a.c:2): two; Error (a.c:3): three; Error (a.c:4): four; Error (a.c:5): five"
        );
        assert_eq!(errors_of("(00.1) fine\n"), None);
        let endless = format!("Error (x): {}", "ü".repeat(1000));
        assert!(errors_of(&endless).unwrap().len() <= LINE_BYTES_MAX);
    }
}
