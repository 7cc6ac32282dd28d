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

    /// Waits, in init, until somebody opens the gate. Returns the socket that the outcome is told on.
    /// None: its keeper is gone, and nobody can open it any more.
    pub(crate) fn wait(&self) -> Result<Option<OwnedFd>, Errno> {
        loop {
            let peer = match self {
                Self::Connected(socket) => socket.try_clone().map_err(|_| Errno::MFILE)?,
                Self::Listening(socket) => match accept_with(socket, SocketFlags::CLOEXEC) {
                    Ok(peer) => peer,
                    Err(Errno::INTR | Errno::CONNABORTED) => continue,
                    Err(errno) => return Err(errno),
                },
            };
            let mut byte = [0];
            match recv(&peer, &mut byte, RecvFlags::empty()) {
                Ok((1, _)) => return Ok(Some(peer)),
                // Who connects and leaves has opened nothing.
                Ok(_) | Err(Errno::CONNRESET) if matches!(self, Self::Listening(_)) => {}
                Ok(_) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
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
