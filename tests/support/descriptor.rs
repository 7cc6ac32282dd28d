//! Descriptors that come over a unix socket (unix(7), `SCM_RIGHTS`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context as _, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::{Deadline, watch};

/// The descriptor that the next connection brings with its first message.
pub fn receive(listener: &UnixListener) -> Result<OwnedFd> {
    watch::readable(listener.as_fd(), Deadline::in_seconds(20))?;
    let (socket, _) = listener.accept()?;
    watch::readable(socket.as_fd(), Deadline::in_seconds(20))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(&socket, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .context("a descriptor")
}
