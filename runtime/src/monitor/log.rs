//! A container's log file: encoded lines appended to it, and what happens when the disk does not take them.
//!
//! A line is never lost while its container exists. What the disk refuses stays in `unwritten`, the caller stops reading the
//! container's output (which then waits in its pipes, and the container with it) and tries again at growing
//! intervals, see [`RETRY_FIRST`]. Only when the container is deleted with a disk still full are lines given
//! up, with their number of bytes in the monitor's own log.
//!
//! The file is opened without following a link at its last component and must be regular: a FIFO or a device in
//! its place would hang or redirect the monitor.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::log_format::{Encoder, Stream, Timestamp};
use crate::{Failure, Step};

/// The wait before the first retry of a refused write; each further one doubles it.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);

/// The longest wait between retries.
pub(crate) const RETRY_LAST: Duration = Duration::from_secs(5);

/// Whether the disk takes what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// All that was encoded is written.
    Open,
    /// The disk refused some of it: no more output is to be read until [`Log::retry`] says `Open`.
    Blocked(Errno),
}

/// A container's log.
#[derive(Debug)]
pub(crate) struct Log {
    /// None: output is dropped.
    target: Option<Target>,
    stdout: Encoder,
    stderr: Encoder,
    /// Whole encoded lines, not all of which are on disk. Empty: nothing waits.
    unwritten: Vec<u8>,
    /// How much of `unwritten` the disk has taken.
    taken: usize,
}

#[derive(Debug)]
struct Target {
    path: PathBuf,
    file: OwnedFd,
}

impl Log {
    /// Opens or makes the file at `path`; None: a log that drops everything. `part_bytes` as for [`Encoder::new`].
    pub(crate) fn open(path: Option<&Path>, part_bytes: usize) -> Result<Self, Failure> {
        let target = match path {
            Some(path) => Some(Target { path: path.to_owned(), file: open_file(path)? }),
            None => None,
        };
        Ok(Self {
            target,
            stdout: Encoder::new(Stream::Stdout, part_bytes),
            stderr: Encoder::new(Stream::Stderr, part_bytes),
            unwritten: Vec::new(),
            taken: 0,
        })
    }

    /// Takes the file away again if nothing was ever written to it: its container could not be created.
    pub(crate) fn discard(self) {
        let Some(Target { path, file }) = self.target else { return };
        if rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_size == 0) {
            // It was made for nothing; that it stays does no harm.
            let _ = rustix::fs::unlink(&path);
        }
    }

    /// Whether output has somewhere to go; without, it need not be encoded.
    pub(crate) fn is_kept(&self) -> bool {
        self.target.is_some()
    }

    /// Whether the disk refused lines that are still to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Logs a chunk of output. `scratch` is any buffer, used and left empty.
    pub(crate) fn write(&mut self, stream: Stream, chunk: &[u8], now_ns: i64, scratch: &mut Vec<u8>) -> Flow {
        scratch.clear();
        self.encoder(stream).encode(chunk, &Timestamp::from_ns(now_ns), scratch);
        self.append(scratch)
    }

    /// Logs the begun line of `stream`: it has ended, or its container has.
    pub(crate) fn flush(&mut self, stream: Stream, now_ns: i64, scratch: &mut Vec<u8>) -> Flow {
        scratch.clear();
        self.encoder(stream).flush(&Timestamp::from_ns(now_ns), scratch);
        self.append(scratch)
    }

    /// Tries again to write what the disk refused.
    pub(crate) fn retry(&mut self) -> Flow {
        let Some(target) = &self.target else { return Flow::Open };
        while self.taken < self.unwritten.len() {
            match write_some(target, &self.unwritten[self.taken..]) {
                Ok(count) => self.taken += count,
                Err(errno) => return Flow::Blocked(errno),
            }
        }
        self.unwritten = Vec::new();
        self.taken = 0;
        Flow::Open
    }

    /// Opens the path again, after a rotation has moved the file away. When this returns, the new file exists and the
    /// old one does not change any more.
    ///
    /// # Errors
    /// The path cannot be opened: the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<(), Failure> {
        let Some(target) = &mut self.target else { return Ok(()) };
        let file = open_file(&target.path)?;
        // A line that the old file has only the head of is repeated whole in the new one: a reader of both misses nothing.
        let whole = self.unwritten[..self.taken].iter().rposition(|byte| *byte == b'\n');
        self.taken = whole.map_or(0, |newline| newline + 1);
        target.file = file;
        Ok(())
    }

    /// Gives up what the disk never took, in bytes.
    pub(crate) fn give_up(&mut self) -> usize {
        let lost = self.unwritten.len() - self.taken;
        self.unwritten = Vec::new();
        self.taken = 0;
        lost
    }

    fn encoder(&mut self, stream: Stream) -> &mut Encoder {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Writes `lines` behind what waits already.
    fn append(&mut self, lines: &mut Vec<u8>) -> Flow {
        let Some(target) = &self.target else {
            lines.clear();
            return Flow::Open;
        };
        if self.is_blocked() {
            self.unwritten.append(lines);
            return self.retry();
        }
        let mut taken = 0;
        while taken < lines.len() {
            match write_some(target, &lines[taken..]) {
                Ok(count) => taken += count,
                Err(errno) => {
                    // The written part is kept too: a reopen may have to begin a cut line again.
                    self.unwritten.append(lines);
                    self.taken = taken;
                    return Flow::Blocked(errno);
                }
            }
        }
        lines.clear();
        Flow::Open
    }
}

fn write_some(target: &Target, bytes: &[u8]) -> Result<usize, Errno> {
    match rustix::io::retry_on_intr(|| rustix::io::write(&target.file, bytes)) {
        Ok(0) => Err(Errno::NOSPC),
        other => other,
    }
}

fn open_file(path: &Path) -> Result<OwnedFd, Failure> {
    // NONBLOCK: opening a FIFO must not wait for its reader; on a regular file it means nothing.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let file = rustix::fs::open(path, flags, mode).map_err(|errno| {
        let failure = Failure::at(Step::Log, errno, path);
        match errno {
            Errno::LOOP => failure.with_message("a symbolic link is in the log file's place"),
            Errno::NXIO => failure.with_message("not a regular file"),
            _ => failure,
        }
    })?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| Failure::at(Step::Log, errno, path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Failure::at(Step::Log, Errno::INVAL, path).with_message("not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    #[test]
    fn a_log_survives_rotation_without_losing_or_moving_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut log = Log::open(Some(&path), 0).unwrap();
        let mut scratch = Vec::new();
        assert_eq!(log.write(Stream::Stdout, b"one\ntw", 0, &mut scratch), Flow::Open);
        std::fs::rename(&path, &old).unwrap();
        assert_eq!(log.write(Stream::Stderr, b"err\n", 0, &mut scratch), Flow::Open);
        log.reopen().unwrap();
        assert!(path.exists());
        assert_eq!(log.write(Stream::Stdout, b"o\nend", 0, &mut scratch), Flow::Open);
        assert_eq!(log.flush(Stream::Stdout, 0, &mut scratch), Flow::Open);
        assert_eq!(contents(&old), ["stdout F one", "stderr F err"]);
        assert_eq!(contents(&path), ["stdout F two", "stdout P end"]);
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for (path, words) in [
            (fifo.as_path(), "not a regular file"),
            (link.as_path(), "a symbolic link"),
            (Path::new("/dev/null"), "not a regular file"),
        ] {
            let failure = Log::open(Some(path), 0).unwrap_err();
            assert_eq!(failure.step, Step::Log);
            assert!(failure.to_string().contains(words), "{failure}");
        }
        let failure = Log::open(Some(&dir.path().join("no/such")), 0).unwrap_err();
        assert_eq!(failure.errno(), Some(Errno::NOENT));
    }

    #[test]
    fn a_full_disk_keeps_lines_and_a_reopen_repeats_the_cut_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(Some(&path), 0).unwrap();
        let mut scratch = Vec::new();
        // /dev/full in the file's place: every write is refused as on a full disk.
        log.target.as_mut().unwrap().file =
            rustix::fs::open("/dev/full", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(log.write(Stream::Stdout, b"one\n", 0, &mut scratch), Flow::Blocked(Errno::NOSPC));
        assert_eq!(log.write(Stream::Stdout, b"two\n", 0, &mut scratch), Flow::Blocked(Errno::NOSPC));
        assert!(log.is_blocked());
        // As if the disk had taken the first line and the head of the second.
        log.taken = 50;
        log.reopen().unwrap();
        assert_eq!(log.retry(), Flow::Open);
        assert_eq!(contents(&path), ["stdout F two"]);
        assert!(!log.is_blocked());
    }

    #[test]
    fn without_a_path_output_is_dropped() {
        let mut log = Log::open(None, 0).unwrap();
        assert_eq!(log.write(Stream::Stdout, b"x\n", 0, &mut Vec::new()), Flow::Open);
        assert!(!log.is_kept());
        log.reopen().unwrap();
    }
}
