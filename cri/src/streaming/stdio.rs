//! The daemon's ends of a process's stdin, stdout and stderr: pipes, or the master of its terminal for all of them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{HEAD_BYTES, Input, Output};
use super::sizes::Size;

/// One read: a full pipe.
const READ_BYTES: usize = 64 * 1024;

/// How long output is read after the process has exited while something else holds its pipes open.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

/// Where output comes from: the read end of a pipe, or a terminal.
#[derive(Debug)]
pub(super) struct Source(pipe::Receiver);

/// Where input goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// The write end of a pipe.
    Pipe(pipe::Sender),
    /// A terminal.
    Terminal(Terminal),
}

/// A terminal's master, to be written to. Clones are the same one; the terminal hangs up when they and its [`Source`] are dropped.
#[derive(Debug, Clone)]
pub(super) struct Terminal(Arc<pipe::Sender>);

impl Terminal {
    /// Takes over a master: what is read from it, and the rest. tokio's types for pipes only wait for it.
    pub(super) fn new(master: OwnedFd) -> io::Result<(Source, Self)> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let source = Source(pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?);
        Ok((source, Self(Arc::new(pipe::Sender::from_owned_fd_unchecked(master)?))))
    }

    /// Sets its size.
    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(&*self.0, size)?)
    }
}

/// A pipe for output: the end that is read here, and the one for whoever writes.
pub(super) fn output_pipe() -> io::Result<(Source, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((Source(pipe::Receiver::from_owned_fd(read)?), write))
}

/// A pipe for input: the end that is written here, and the one for whoever reads.
pub(super) fn input_pipe() -> io::Result<(Sink, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((Sink::Pipe(pipe::Sender::from_owned_fd(write)?), read))
}

impl Source {
    /// Appends what is there to `buffer`; 0 at the end.
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        buffer.reserve(READ_BYTES);
        loop {
            // Not by AsyncRead: it takes a short read for the last one, which is true of pipes and not of terminals.
            self.0.readable().await?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A terminal that nobody has open on the other side any more.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                read => return read,
            }
        }
    }

    /// How much can be read at once.
    fn pending(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.0).unwrap_or(0)
    }
}

impl Sink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let pipe = match self {
            Self::Pipe(pipe) => pipe,
            Self::Terminal(Terminal(master)) => &**master,
        };
        let mut left = bytes;
        while !left.is_empty() {
            pipe.writable().await?;
            match pipe.try_write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Hands on output until it ends. Once `exited` is true what the process has written is handed on too, but nothing that
/// others who hold the pipe write later than [`DRAIN_DEADLINE`]. A client that is gone loses the rest; the process never notices.
pub(super) async fn hand_on(
    source: Option<Source>,
    mut output: Option<Output>,
    mut exited: watch::Receiver<bool>,
) {
    let Some(mut source) = source else { return };
    let mut buffer = BytesMut::new();
    let mut until: Option<Instant> = None;
    let mut owed = 0;
    loop {
        buffer.clear();
        // Room for the head that a protocol needs, so that nothing is moved to make it.
        buffer.put_bytes(0, HEAD_BYTES);
        // What is there is read before anything else is looked at, however late it is.
        let count = tokio::select! {
            biased;
            count = source.read(&mut buffer) => count,
            _ = exited.wait_for(|exited| *exited), if until.is_none() => {
                until = Some(Instant::now() + DRAIN_DEADLINE);
                owed = source.pending();
                continue;
            }
            () = at(until) => break,
        };
        let Ok(count @ 1..) = count else { break };
        if let Some(open) = &mut output
            && let Err(error) = open.send(&mut buffer).await
        {
            tracing::debug!(%error, "the client is gone: output is dropped");
            output = None;
        }
        owed = owed.saturating_sub(count as u64);
        // Something else may write for ever.
        if owed == 0 && until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
    }
}

/// Hands on output until it ends, whatever else does.
pub(super) async fn pass_on(source: Option<Source>, output: Option<Output>) {
    let (_open, never) = watch::channel(false);
    hand_on(source, output, never).await;
}

/// Where `wanted`, our end of a new pipe; the other end goes to `fds`.
pub(super) fn ours<T>(
    wanted: bool,
    pipe: fn() -> io::Result<(T, OwnedFd)>,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Option<T>> {
    if !wanted {
        return Ok(None);
    }
    let (ours, theirs) = pipe()?;
    fds.push(theirs);
    Ok(Some(ours))
}

/// Types what the client sends, until it says that no more will come or is gone; a pipe is closed then, a terminal stays.
pub(super) async fn type_in(input: Option<Input>, sink: Option<Sink>) {
    let (Some(mut input), Some(mut sink)) = (input, sink) else { return };
    while let Some(typed) = input.read().await {
        if let Err(error) = sink.write(&typed).await {
            // Nobody reads it any more. The client may go on: its other streams must not wait for this one.
            tracing::debug!(%error, "input is dropped");
            drop(sink);
            while input.read().await.is_some() {}
            return;
        }
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
