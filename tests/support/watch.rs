//! Waiting for files: inotify(7) and poll(2), never a sleep.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::Deadline;

/// Blocks until `fd` can be read, or fails at the deadline.
pub fn readable(fd: BorrowedFd<'_>, deadline: Deadline) -> Result<()> {
    loop {
        let mut set = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut set, Some(&deadline.timespec())) {
            Ok(0) => bail!("nothing came before the deadline"),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// Watches one directory for names that appear or change.
#[derive(Debug)]
pub struct DirectoryWatch {
    fd: OwnedFd,
    path: PathBuf,
}

impl DirectoryWatch {
    /// Starts to watch `path`, which exists.
    pub fn new(path: &Path) -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        inotify::add_watch(&fd, path, events).with_context(|| format!("watch {}", path.display()))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Blocks until something happened in the directory and returns the names it happened to.
    pub fn next(&self, deadline: Deadline) -> Result<Vec<OsString>> {
        readable(self.fd.as_fd(), deadline)
            .with_context(|| format!("waiting for a change in {}", self.path.display()))?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut names = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    debug_assert!(
                        !event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                        "queue of inotify overflowed"
                    );
                    if let Some(name) = event.file_name() {
                        names.push(OsString::from_vec(name.to_bytes().to_vec()));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(names),
                Err(error) => return Err(error).context("read inotify"),
            }
            if reader.is_buffer_empty() {
                return Ok(names);
            }
        }
    }
}

/// Blocks until `path` exists. Its directory must exist already.
pub fn file(path: &Path, deadline: Deadline) -> Result<()> {
    let watch = DirectoryWatch::new(path.parent().context("a path with a directory")?)?;
    while !path.exists() {
        watch.next(deadline).with_context(|| format!("{} did not appear", path.display()))?;
    }
    Ok(())
}

/// Blocks until `wanted` accepts the content of the file and returns what it made of it. A file that
/// does not exist yet counts as empty; its directory must exist.
pub fn content<T>(path: &Path, deadline: Deadline, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
    let watch = DirectoryWatch::new(path.parent().context("a path with a directory")?)?;
    loop {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        if let Some(found) = wanted(&bytes) {
            return Ok(found);
        }
        watch.next(deadline).with_context(|| {
            format!(
                "{} never held what was waited for; it holds: {:?}",
                path.display(),
                String::from_utf8_lossy(&bytes)
            )
        })?;
    }
}
