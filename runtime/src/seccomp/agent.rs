//! A filter's listener on its way to who decides the system calls: the runtime-spec's seccomp agent
//! (`config-linux.md#containerprocessstate`).
//!
//! The agent listens at a unix socket. It gets one message, the container process state as JSON, and the listener as its `SCM_RIGHTS`.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};
use serde::Serialize;

use super::Listener;
use crate::state::State;
use crate::{Failure, Step};

/// How long an agent may take to make room for one more connection, or for the message: a monitor waits meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);

/// The runtime-spec's container process state.
#[derive(Serialize)]
struct ProcessState<'a> {
    #[serde(rename = "ociVersion")]
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    metadata: &'a str,
    state: &'a State<'a>,
}

/// Hands `fd`, the listener of process `pid`, which is the container's init or exec'd into it, to the agent. `container` is the container's
/// state.
pub(crate) fn pass(
    listener: &Listener,
    fd: BorrowedFd<'_>,
    pid: i32,
    container: &State<'_>,
) -> Result<(), Failure> {
    let state = ProcessState {
        oci_version: container.oci_version,
        fds: ["seccompFd"],
        pid,
        metadata: listener.metadata.as_deref().unwrap_or_default(),
        state: container,
    };
    let text = serde_json::to_vec(&state);
    let text = text.map_err(|error| Failure::because(Step::Seccomp, error.to_string()))?;
    send(listener, fd, &text).map_err(|errno| {
        let message = "linux.seccomp.listenerPath: failed to connect with seccomp agent";
        Failure::at(Step::Seccomp, errno, &listener.path).with_message(message)
    })
}

fn send(listener: &Listener, fd: BorrowedFd<'_>, text: &[u8]) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(&listener.path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // It holds for connect(2) too, which waits while the agent's backlog is full.
    set_socket_timeout(&socket, Timeout::Send, Some(DEADLINE))?;
    connect(&socket, &address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    // The buffer is made for exactly one descriptor.
    control.push(SendAncillaryMessage::ScmRights(&fds));
    match sendmsg(&socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)? {
        sent if sent == text.len() => Ok(()),
        _ => Err(Errno::MSGSIZE),
    }
}
