//! Attach clients: copies of a container's output to whoever watches, and what they type to its stdin.
//!
//! A client is never waited for. What its descriptor does not take at once is kept up to [`MAX_BUFFERED_BYTES`]; a client that
//! falls further behind is dropped, and the log goes on. See [`stdio`](super::stdio) for the other side.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::log_format::Stream;
use super::poll::{Kind, Poll, Token, Watched};

/// The most clients of one container.
pub(crate) const MAX_CLIENTS: usize = 16;

/// The most output that waits for one client to read it.
const MAX_BUFFERED_BYTES: usize = 256 * 1024;

/// A descriptor that output is copied to without ever waiting for it.
#[derive(Debug)]
pub(crate) struct Sink {
    fd: Watched,
    pending: Vec<u8>,
    /// How much of `pending` has been written.
    written: usize,
}

/// Why a sink is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkEnd {
    /// The other end is closed, or broken.
    Closed,
    /// It reads too slowly.
    Slow,
}

impl Sink {
    /// Makes `fd` non-blocking and waits for its other end to go away.
    pub(crate) fn new(poll: &Poll, fd: OwnedFd, token: Token) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: poll.watch(fd, token, Some(EventFlags::empty()))?, pending: Vec::new(), written: 0 })
    }

    /// Copies `chunk` to it; keeps at most [`MAX_BUFFERED_BYTES`] that it does not take.
    fn push(&mut self, mut chunk: &[u8]) -> Result<(), SinkEnd> {
        if self.pending.is_empty() {
            chunk = &chunk[self.write(chunk)?..];
        }
        if chunk.is_empty() {
            return Ok(());
        }
        if self.pending.len() - self.written + chunk.len() > MAX_BUFFERED_BYTES {
            return Err(SinkEnd::Slow);
        }
        self.pending.extend_from_slice(chunk);
        self.fd.set(Some(EventFlags::OUT)).map_err(|_| SinkEnd::Closed)
    }

    /// Writes what waits, as far as it is taken.
    pub(crate) fn flush(&mut self) -> Result<(), SinkEnd> {
        let pending = std::mem::take(&mut self.pending);
        let written = self.write(&pending[self.written..]).map(|count| self.written + count)?;
        if written < pending.len() {
            (self.pending, self.written) = (pending, written);
            return Ok(());
        }
        self.written = 0;
        self.fd.set(Some(EventFlags::empty())).map_err(|_| SinkEnd::Closed)
    }

    /// Whether all was taken.
    pub(crate) fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, SinkEnd> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &bytes[written..])) {
                Ok(0) => return Err(SinkEnd::Closed),
                Ok(count) => written += count,
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(SinkEnd::Closed),
            }
        }
        Ok(written)
    }
}

/// One attached client.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its number within its container; part of its tokens.
    pub(crate) number: u16,
    /// What the daemon calls it.
    pub(crate) name: String,
    /// What it types.
    pub(crate) input: Option<Watched>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    /// The container's output has ended: it goes once it has read all.
    ending: bool,
}

/// The descriptors of a client to be.
#[derive(Debug, Default)]
pub(crate) struct ClientFds {
    /// What it types.
    pub(crate) stdin: Option<OwnedFd>,
    /// Where stdout is copied to.
    pub(crate) stdout: Option<OwnedFd>,
    /// Where stderr is copied to.
    pub(crate) stderr: Option<OwnedFd>,
}

impl Client {
    /// A client of the container with the number `owner`.
    pub(crate) fn new(
        poll: &Poll,
        owner: u32,
        number: u16,
        name: String,
        fds: ClientFds,
    ) -> Result<Self, Errno> {
        let token = |kind| Token { kind, owner, sub: number };
        let sink = |fd: Option<OwnedFd>, kind| fd.map(|fd| Sink::new(poll, fd, token(kind))).transpose();
        let input = match fds.stdin {
            Some(fd) => {
                rustix::io::ioctl_fionbio(&fd, true)?;
                Some(poll.watch(fd, token(Kind::ClientInput), Some(EventFlags::IN))?)
            }
            None => None,
        };
        Ok(Self {
            number,
            name,
            input,
            stdout: sink(fds.stdout, Kind::ClientStdout)?,
            stderr: sink(fds.stderr, Kind::ClientStderr)?,
            ending: false,
        })
    }

    fn sink(&mut self, stream: Stream) -> &mut Option<Sink> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Copies output to it. An error: the client is to be dropped.
    pub(crate) fn push(&mut self, stream: Stream, chunk: &[u8]) -> Result<(), SinkEnd> {
        match self.sink(stream) {
            Some(sink) => sink.push(chunk),
            None => Ok(()),
        }
    }

    /// Its descriptor for `stream` is ready, or `closed` by the other end. An error: the client is to be dropped.
    pub(crate) fn ready(&mut self, stream: Stream, closed: bool) -> Result<(), SinkEnd> {
        match self.sink(stream) {
            Some(_) if closed => Err(SinkEnd::Closed),
            Some(sink) => sink.flush(),
            None => Ok(()),
        }
    }

    /// No more output will come.
    pub(crate) fn end(&mut self) {
        self.ending = true;
        self.input = None;
    }

    /// Whether it can go: no more will come and all was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ending && [&self.stdout, &self.stderr].into_iter().flatten().all(Sink::is_flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_client_is_told_apart_from_a_gone_one() {
        let poll = Poll::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let fds = ClientFds { stdout: Some(write), ..ClientFds::default() };
        let mut client = Client::new(&poll, 1, 1, "a".into(), fds).unwrap();
        let chunk = [b'x'; 4096];
        let mut pushed = 0;
        let end = loop {
            match client.push(Stream::Stdout, &chunk) {
                Ok(()) => pushed += chunk.len(),
                Err(end) => break end,
            }
        };
        assert_eq!(end, SinkEnd::Slow);
        assert!((MAX_BUFFERED_BYTES..=MAX_BUFFERED_BYTES + 64 * 1024).contains(&pushed));
        let mut total = 0;
        let mut buffer = vec![0; 65536];
        while total < pushed {
            total += rustix::io::read(&read, &mut buffer).unwrap();
            client.ready(Stream::Stdout, false).unwrap();
        }
        client.end();
        assert!(client.has_ended());
        drop(read);
        assert_eq!(client.push(Stream::Stdout, b"x"), Err(SinkEnd::Closed));
    }
}
