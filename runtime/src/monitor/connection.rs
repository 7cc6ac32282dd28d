//! A daemon's connection: requests read whole, answers queued within a bound.
//!
//! A daemon that stops reading must not make the monitor hoard messages or wait: once [`MAX_QUEUED_BYTES`] wait, the
//! connection is closed, and the daemon learns all that it missed from the next one's hello.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::poll::Watched;
use super::protocol::{Message, Request};
use super::wire::{self, Packet, WireError};

/// The most bytes that wait for a daemon to read them.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;

/// The most requests of one connection that are not answered yet.
const MAX_UNANSWERED: usize = 1024;

/// Why a connection is to be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The peer broke the protocol, or the socket failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer does not read.
    #[error("the daemon does not read: {MAX_QUEUED_BYTES} bytes wait for it")]
    NotReading,
    /// The peer asks without waiting for answers.
    #[error("more than {MAX_UNANSWERED} requests wait for their answer")]
    TooManyRequests,
    /// The poll loop cannot wait for it.
    #[error("wait for the connection")]
    Poll(#[source] Errno),
}

/// What a connection has to read.
#[derive(Debug)]
pub(crate) enum Received {
    /// A request and its descriptors.
    Request(Request, Vec<OwnedFd>),
    /// Nothing, for now.
    Nothing,
    /// The daemon has closed it.
    End,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Watched,
    /// Encoded messages the socket did not take yet, each with its descriptors.
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    queued_bytes: usize,
    unanswered: usize,
    /// Hello was said and answered: events are wanted, and other requests allowed.
    pub(crate) greeted: bool,
}

impl Connection {
    /// Over an accepted, non-blocking socket.
    pub(crate) fn new(socket: Watched) -> Self {
        Self { socket, queue: VecDeque::new(), queued_bytes: 0, unanswered: 0, greeted: false }
    }

    /// What has come.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, ConnectionError> {
        match wire::receive::<Request>(self.socket.as_fd(), buffer) {
            Ok(None) => Ok(Received::End),
            Ok(Some(Packet { message, fds })) => {
                self.unanswered += 1;
                if self.unanswered > MAX_UNANSWERED {
                    return Err(ConnectionError::TooManyRequests);
                }
                Ok(Received::Request(message, fds))
            }
            Err(WireError::WouldBlock) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a message, or queues it behind others.
    pub(crate) fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<(), ConnectionError> {
        if matches!(message, Message::Reply { .. }) {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        let bytes = wire::encode(message)?;
        if self.queued_bytes + bytes.len() > MAX_QUEUED_BYTES {
            return Err(ConnectionError::NotReading);
        }
        self.queued_bytes += bytes.len();
        self.queue.push_back((bytes, fds));
        self.flush()
    }

    /// Sends what is queued, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        while let Some((bytes, fds)) = self.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
            match wire::send_bytes(self.socket.as_fd(), bytes, &fds) {
                Ok(()) => {
                    self.queued_bytes -= bytes.len();
                    self.queue.pop_front();
                }
                Err(WireError::WouldBlock) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let flags = if self.queue.is_empty() { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
        self.socket.set(Some(flags)).map_err(ConnectionError::Poll)
    }

    /// Whether the daemon has been sent everything.
    pub(crate) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::super::poll::{Kind, Poll, Token};
    use super::super::protocol::Event;
    use super::*;

    #[test]
    fn a_daemon_that_does_not_read_is_not_hoarded_for() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let poll = Poll::new().unwrap();
        let token = Token::new(Kind::Connection, 1);
        let mut connection = Connection::new(poll.watch(ours, token, Some(EventFlags::IN)).unwrap());
        let message = Message::Event(Event::Oom { container: "c".repeat(1000) });
        let mut sent = 0;
        let error = loop {
            match connection.send(&message, Vec::new()) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnectionError::NotReading));
        assert!(sent < 3000 && !connection.is_flushed());
        // What was accepted before arrives in order and whole once the daemon reads.
        let mut buffer = wire::buffer();
        let mut received = 0;
        while received < sent {
            match wire::receive::<Message>(theirs.as_fd(), &mut buffer) {
                Ok(Some(packet)) => {
                    assert_eq!(packet.message, message);
                    received += 1;
                }
                Err(WireError::WouldBlock) => connection.flush().unwrap(),
                other => panic!("{other:?}"),
            }
        }
        connection.flush().unwrap();
        assert!(connection.is_flushed());
    }
}
