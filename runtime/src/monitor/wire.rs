//! Packets on the monitor's socket: one JSON message and its descriptors, sent and received whole.
//!
//! Both ends use these functions: the monitor from its poll loop, the daemon from under its async reactor.
//! They follow the socket's own blocking mode and never wait twice. `SOCK_SEQPACKET` keeps the borders of
//! messages, so there is no framing; what makes a packet unsafe to use is refused here, in one place:
//!
//! | A peer that … | is answered with |
//! |---|---|
//! | sends more than [`MAX_MESSAGE_BYTES`] | [`WireError::Truncated`]; the rest was dropped by the kernel |
//! | passes more than [`MAX_MESSAGE_FDS`] descriptors | [`WireError::Truncated`] or [`WireError::TooManyFds`]; all of them closed |
//! | sends what is not JSON of the expected shape | [`WireError::Malformed`] |
//! | closes its end | `Ok(None)` |
//!
//! After an error other than [`WireError::WouldBlock`] the connection is to be closed: the peer does not speak
//! the protocol. Every received descriptor is close-on-exec from the moment it exists. See unix(7), recvmsg(2).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::{MAX_MESSAGE_BYTES, MAX_MESSAGE_FDS};

/// Why a packet was not sent or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket is non-blocking and not ready: wait for it and try again.
    #[error("the monitor's socket is not ready")]
    WouldBlock,
    /// The message to send is longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is longer than the protocol's {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    /// More than [`MAX_MESSAGE_FDS`] descriptors.
    #[error("{0} descriptors on one message, at most {MAX_MESSAGE_FDS} are allowed")]
    TooManyFds(usize),
    /// The peer sent a packet larger than the protocol allows, in bytes or in descriptors.
    #[error("the peer's packet exceeds the protocol's limits")]
    Truncated,
    /// The peer's packet is not a message of this protocol.
    #[error("the peer's packet is not a message of this protocol")]
    Malformed(#[source] serde_json::Error),
    /// The message cannot be written as JSON.
    #[error("encode a message")]
    Encode(#[source] serde_json::Error),
    /// sendmsg(2) failed.
    #[error("send to the monitor's socket")]
    Send(#[source] Errno),
    /// recvmsg(2) failed.
    #[error("receive from the monitor's socket")]
    Receive(#[source] Errno),
}

impl From<WireError> for io::Error {
    /// Keeps `WouldBlock` recognisable, as readiness-driven reactors need it.
    fn from(error: WireError) -> Self {
        match error {
            WireError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            WireError::Send(errno) | WireError::Receive(errno) => errno.into(),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// A received packet.
#[derive(Debug)]
pub struct Packet<T> {
    /// The message.
    pub message: T,
    /// The descriptors that came with it, in the sender's order; close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// A buffer that holds the longest packet. One per receiver is enough; untouched pages of it cost nothing.
pub fn buffer() -> Vec<u8> {
    vec![0; MAX_MESSAGE_BYTES]
}

/// Writes `message` as the bytes of one packet.
///
/// # Errors
/// [`WireError::TooLong`] for a message that no peer would accept.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(message).map_err(WireError::Encode)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(WireError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Sends one packet of already encoded bytes, whole or not at all. A peer that is gone is an error, never a signal.
///
/// # Errors
/// [`WireError::WouldBlock`] where a non-blocking socket's queue is full.
pub fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(WireError::TooLong(bytes.len()));
    }
    if fds.len() > MAX_MESSAGE_FDS {
        return Err(WireError::TooManyFds(fds.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        debug_assert!(fits, "the space was made for MAX_MESSAGE_FDS");
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(WireError::WouldBlock),
            Err(errno) => return Err(WireError::Send(errno)),
        }
    }
}

/// Encodes and sends `message` with `fds`, as [`send_bytes`].
///
/// # Errors
/// As [`encode`] and [`send_bytes`].
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    send_bytes(socket, &encode(message)?, fds)
}

/// Receives one packet. `buffer` is from [`buffer`]. None: the peer has closed its end.
///
/// # Errors
/// [`WireError::WouldBlock`] where a non-blocking socket has nothing; any other: close the connection.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<Option<Packet<T>>, WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut iov = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(WireError::WouldBlock),
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(WireError::Receive(errno)),
        }
    };
    // Taken out first, so that they are closed whatever follows.
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(WireError::Truncated);
    }
    if fds.len() > MAX_MESSAGE_FDS {
        return Err(WireError::TooManyFds(fds.len()));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..received.bytes]).map_err(WireError::Malformed)?;
    Ok(Some(Packet { message, fds }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::FdFlags;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::super::protocol::{Op, Request};
    use super::*;

    fn pair(flags: SocketFlags) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None).unwrap()
    }

    fn request(id: u64) -> Request {
        Request { id, trace: None, op: Op::StopSandbox }
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = pair(SocketFlags::empty());
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(a.as_fd(), &request(1), &[read.as_fd(), write.as_fd()]).unwrap();
        send(a.as_fd(), &request(2), &[]).unwrap();
        let mut buffer = buffer();
        let packet: Packet<Request> = receive(b.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(packet.message, request(1));
        assert_eq!(packet.fds.len(), 2);
        for fd in &packet.fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
        }
        rustix::io::write(&packet.fds[1], b"x").unwrap();
        let mut byte = [0; 1];
        rustix::io::read(&read, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let packet: Packet<Request> = receive(b.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!((packet.message, packet.fds.len()), (request(2), 0));
    }

    #[test]
    fn the_longest_message_passes_and_a_longer_one_does_not() {
        let (a, b) = pair(SocketFlags::empty());
        let mut text = "\"".to_owned() + &"x".repeat(MAX_MESSAGE_BYTES - 2) + "\"";
        send_bytes(a.as_fd(), text.as_bytes(), &[]).unwrap();
        let mut buffer = buffer();
        let packet: Packet<String> = receive(b.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(packet.message.len(), MAX_MESSAGE_BYTES - 2);
        text.push(' ');
        assert!(matches!(send_bytes(a.as_fd(), text.as_bytes(), &[]), Err(WireError::TooLong(_))));
        rustix::net::send(&a, text.as_bytes(), SendFlags::empty()).unwrap();
        assert!(matches!(receive::<String>(b.as_fd(), &mut buffer), Err(WireError::Truncated)));
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (a, b) = pair(SocketFlags::empty());
        let (read, write) = rustix::pipe::pipe().unwrap();
        let many = vec![write.as_fd(); 40];
        assert!(matches!(send(a.as_fd(), &request(1), &many), Err(WireError::TooManyFds(40))));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let bytes = encode(&request(1)).unwrap();
        rustix::net::sendmsg(&a, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
        let mut buffer = buffer();
        assert!(matches!(
            receive::<Request>(b.as_fd(), &mut buffer),
            Err(WireError::Truncated | WireError::TooManyFds(_))
        ));
        // Had any of the received write ends stayed open, the pipe would not be at its end now.
        drop((a, b, many));
        drop(write);
        assert_eq!(rustix::io::read(&read, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn an_unready_socket_a_closed_peer_and_noise_are_told_apart() {
        let (a, b) = pair(SocketFlags::NONBLOCK);
        let mut buffer = buffer();
        assert!(matches!(receive::<Request>(b.as_fd(), &mut buffer), Err(WireError::WouldBlock)));
        send_bytes(a.as_fd(), b"{\"id\":1}", &[]).unwrap();
        assert!(matches!(receive::<Request>(b.as_fd(), &mut buffer), Err(WireError::Malformed(_))));
        let big = vec![b' '; MAX_MESSAGE_BYTES];
        let full = (0..16).find_map(|_| send_bytes(a.as_fd(), &big, &[]).err());
        assert!(matches!(full, Some(WireError::WouldBlock)));
        drop(a);
        while !matches!(receive::<Request>(b.as_fd(), &mut buffer), Ok(None)) {}
        assert!(matches!(send(b.as_fd(), &request(1), &[]), Err(WireError::Send(Errno::PIPE))));
    }
}
