//! The start gate: what a created container waits at until it is started.
//!
//! Init holds one end of a stream socket, close-on-exec. Who starts it writes one byte; init goes on to execute its
//! program, and what happens then is told by the socket itself:
//!
//! ```text
//! starter                init
//!   | 1 byte               |
//!   |--------------------->|  startContainer hooks, seccomp, execve
//!   |       end of file    |
//!   |<---------------------|  executed: the program runs
//!   |   or one Failure     |
//!   |<---------------------|  and init exits
//! ```
//!
//! The monitor lives as long as its containers and keeps its end ([`Gate::Connected`]). `wright create` exits, so its containers
//! listen at a path of their state directory instead ([`Gate::Listening`]) and `wright start` connects there.

use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, send, socket_with, socketpair,
};

use crate::handshake::readable_by;
use crate::{Failure, Step};

/// The most bytes of a failure that is read from a gate.
const MAX_FAILURE_BYTES: u64 = 16 * 1024;

/// Init's side of its start gate.
#[derive(Debug)]
pub enum Gate {
    /// The other end is held by a process that lives on.
    Connected(OwnedFd),
    /// A listening socket.
    Listening(OwnedFd),
}

impl Gate {
    /// A gate listening at `path`.
    ///
    /// # Errors
    /// [`Step::State`] where the socket cannot be made there.
    pub fn listen(path: &Path) -> Result<Self, Failure> {
        let at = |errno| Failure::at(Step::State, errno, path);
        let address = address(path)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(at)?;
        bind(&socket, &address).map_err(at)?;
        listen(&socket, 1).map_err(at)?;
        Ok(Self::Listening(socket))
    }

    /// Waits, in init, until somebody opens the gate, or has asked it to end, be it before this is called.
    pub(crate) fn wait(&self, held: HeldSignals) -> Result<Passage, Errno> {
        // A filter that is in force already may not let them be had.
        let signals = Signals::collect(held).ok();
        loop {
            if let Some(signal) = readable_or_signal(self.as_fd(), signals.as_ref()) {
                return Ok(Passage::Signal(signal));
            }
            let peer = match self {
                Self::Connected(socket) => socket.try_clone().map_err(|_| Errno::MFILE)?,
                Self::Listening(socket) => match accept_with(socket, SocketFlags::CLOEXEC) {
                    Ok(peer) => peer,
                    Err(Errno::INTR | Errno::CONNABORTED) => continue,
                    Err(errno) => return Err(errno),
                },
            };
            if let Some(signal) = readable_or_signal(peer.as_fd(), signals.as_ref()) {
                return Ok(Passage::Signal(signal));
            }
            let mut byte = [0];
            match recv(&peer, &mut byte, RecvFlags::empty()) {
                Ok((1, _)) => return Ok(Passage::Open(peer)),
                // Who connects and leaves has opened nothing.
                Ok(_) | Err(Errno::CONNRESET) if matches!(self, Self::Listening(_)) => {}
                Ok(_) => return Ok(Passage::Abandoned),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// How init's wait ended.
#[derive(Debug)]
pub(crate) enum Passage {
    /// The gate is open. The outcome is told on this socket.
    Open(OwnedFd),
    /// Its keeper is gone, and nobody can open it any more.
    Abandoned,
    /// A signal that asks a program to end has come. PID 1 of a namespace has no default action for any: without this a container that
    /// was never started could only be killed.
    Signal(i32),
}

/// The signals that ask a program to end, held back for as long as this lives. The kernel drops those that come to PID 1 of a namespace
/// at any other time.
pub(crate) struct HeldSignals {
    before: Option<SigSet>,
}

impl HeldSignals {
    /// To be called before anybody is told of init, who could then signal it.
    pub(crate) fn hold() -> Self {
        Self { before: Self::ending().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok() }
    }

    fn ending() -> SigSet {
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect()
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The mask is one that this thread has had.
            let _ = before.thread_set_mask();
        }
    }
}

/// Those signals as they come.
struct Signals {
    fd: SignalFd,
    _held: HeldSignals,
}

impl Signals {
    fn collect(held: HeldSignals) -> nix::Result<Self> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { fd: SignalFd::with_flags(&HeldSignals::ending(), flags)?, _held: held })
    }
}

/// Waits until `fd` can be read. What is returned instead is a signal that has come.
fn readable_or_signal(fd: BorrowedFd<'_>, signals: Option<&Signals>) -> Option<i32> {
    let signals = signals?;
    loop {
        let mut ready =
            [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(&signals.fd, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            // Then it is read without: as before, only that no signal is seen.
            Err(_) => return None,
            Ok(_) => {}
        }
        match signals.fd.read_signal() {
            Ok(Some(info)) => return i32::try_from(info.ssi_signo).ok(),
            _ if !ready[0].revents().is_empty() => return None,
            _ => {}
        }
    }
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Connected(socket) | Self::Listening(socket) => socket.as_fd(),
        }
    }
}

/// The starter's side of a start gate.
#[derive(Debug)]
pub struct StartGate(UnixStream);

impl StartGate {
    /// A gate between two processes that both live on: the starter's side, and what init is given.
    ///
    /// # Errors
    /// [`Step::Handshake`] where no socketpair can be had.
    pub fn pair() -> Result<(Self, Gate), Failure> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Failure::os(Step::Handshake, errno))?;
        Ok((Self(ours.into()), Gate::Connected(theirs)))
    }

    /// Connects to the gate that listens at `path`.
    ///
    /// # Errors
    /// [`Step::State`]; `ENOENT` or `ECONNREFUSED` where no container waits there.
    pub fn connect(path: &Path) -> Result<Self, Failure> {
        let at = |errno| Failure::at(Step::State, errno, path);
        let address = address(path)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(at)?;
        connect(&socket, &address).map_err(at)?;
        Ok(Self(socket.into()))
    }

    /// Opens the gate. What becomes of it, [`outcome`](Self::outcome) or [`wait`](Self::wait) tells.
    ///
    /// # Errors
    /// [`Step::Handshake`] where init is not there any more.
    pub fn open(&self) -> Result<(), Failure> {
        send(&self.0, &[1], SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|errno| Failure::os(Step::Handshake, errno))
    }

    /// To be polled for input: readable when there is an outcome.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What became of an opened gate, once its descriptor is readable. Does not wait for longer than it takes init
    /// to write what it has begun to.
    ///
    /// # Errors
    /// The failure that kept the program from being executed.
    pub fn outcome(&self) -> Result<(), Failure> {
        let mut text = Vec::new();
        match (&self.0).take(MAX_FAILURE_BYTES).read_to_end(&mut text) {
            Ok(_) => {}
            // Init was killed with our byte unread: it never executed anything.
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Err(
                    Failure::os(Step::Handshake, errno).with_message("init has died at its start gate")
                );
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        Err(serde_json::from_slice(&text)
            .unwrap_or_else(|_| Failure::because(Step::Handshake, "init's last word is not a failure")))
    }

    /// Waits for the outcome of an opened gate.
    ///
    /// # Errors
    /// As [`outcome`](Self::outcome), or [`Step::Handshake`] at the deadline.
    pub fn wait(&self, deadline: Instant) -> Result<(), Failure> {
        match readable_by(self.as_fd(), deadline) {
            Ok(true) => self.outcome(),
            Ok(false) => Err(Failure::because(Step::Handshake, "init did not execute its program in time")),
            Err(errno) => Err(Failure::os(Step::Handshake, errno)),
        }
    }
}

/// Tells the starter, from init, why the program is not executed. Best effort: the starter may be gone.
pub(crate) fn tell(peer: BorrowedFd<'_>, failure: &Failure) {
    if let Ok(text) = serde_json::to_vec(failure) {
        let _ = send(peer, &text, SendFlags::NOSIGNAL);
    }
}

/// The address of a socket at `path`: at most 107 bytes, unix(7).
fn address(path: &Path) -> Result<SocketAddrUnix, Failure> {
    SocketAddrUnix::new(path).map_err(|errno| Failure::at(Step::State, errno, path))
}
