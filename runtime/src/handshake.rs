//! What a new process and its parent say to each other, over one socketpair, from clone3 to the start gate.
//!
//! ```text
//! parent                                          child (init, or an exec'd process)
//! clone3 (into the v2 cgroup, new namespaces)
//!                                                 joins its v1 cgroups; joins namespaces by path
//!                     <-- Born{} + pidfd ---       only from an intermediate, which exits then
//! writes oom_score_adj
//!                     <-- Place ----------        only where it cannot join its cgroup itself (systemd's scope)
//!                     --- Go ------------>
//!                     <-- Map ------------        only with a new user namespace
//! writes uid_map, gid_map
//!                     --- Go ------------>
//!                     <-- NetDevices -----        only with network devices of the host to move
//! moves them, with their addresses
//!                     --- Go ------------>
//!                                                 mounts, devices
//!                     <-- MapOwners + mount --    only in a user namespace, for an idmapped mount of an earlier mount's
//! maps its owners
//!                     --- Go ------------>
//!                     <-- BeforePivot ----        only with hooks
//! prestart and createRuntime hooks
//!                     --- Go{pid} ------->
//!                                                 createContainer hooks, pivot_root, credentials, …
//!                     <-- RaiseLimits ----        only in a user namespace, with limits above the engine's
//!                     --- Go ------------>
//!                     <-- Listener -------        only with a seccomp filter that has one, after it is loaded
//! takes it by pidfd_getfd, and to the seccomp agent
//!                     --- Go ------------>
//!                     <-- Attributes -----        only from an exec'd process: nothing else holds it until its score is written
//!                     --- Go ------------>
//!                     <-- Ready + console         init: waits at its gate from here on
//! writes down that there is a container
//!                     --- Go ------------>        only with a gate on disk: nobody else would end an init that nobody knows of
//!                                                 an exec'd process executes; end of file = it did
//!                     <-- Warning{text} --        at any time; logged, not answered
//!                     <-- Failed{failure}         at any time instead, as its last word
//! ```
//!
//! A packet is a [`FromChild`] or [`FromParent`] as JSON. A child that dies without a word is a failure too: its end
//! closes, and its wait status says how. A parent that dies makes the child's next wait end, and the child exits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::monitor::wire::{self, Packet, WireError};
use crate::{Failure, Step};

/// The longest packet of a child: a failure with its path and message.
const MAX_PACKET_BYTES: usize = 64 << 10;
/// What is said of a child that says nothing.
pub(crate) const LATE: &str = "the new process did not answer in time";
/// The longest answer of a parent.
const MAX_ANSWER_BYTES: usize = 256;

/// What a child tells its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromChild {
    /// The intermediate has cloned init: its pid in the parent's PID namespace; its pidfd is passed along.
    Born {
        /// Init's pid.
        pid: i32,
    },
    /// Move me into my cgroup: I cannot do it myself.
    Place,
    /// Write my id maps.
    Map,
    /// Move the plan's network devices into my network namespace.
    NetDevices,
    /// Map the owners of the mount that is passed along: in a user namespace I may not.
    MapOwners {
        /// Its number among the plan's mounts.
        mount: usize,
    },
    /// Run the hooks that are due before pivot_root.
    BeforePivot,
    /// Tell me when my oom_score_adj and resctrl group are set: I have no gate to wait at.
    Attributes,
    /// Raise my hard limits as far as the plan wants them higher: in a user namespace I may not.
    RaiseLimits,
    /// Take my seccomp listener.
    Listener {
        /// Its number among my descriptors.
        fd: i32,
    },
    /// Something was clamped or left out. Not a question, and never returned by [`End::next`].
    Warning(String),
    /// Everything is prepared. The console's master is passed along where there is one.
    Ready,
    /// It went wrong.
    Failed(Failure),
}

/// What a parent tells its child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromParent {
    /// Done: go on.
    Go {
        /// The child's pid in the parent's PID namespace, for hooks.
        pid: i32,
    },
}

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct End(OwnedFd);

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Both ends: the parent's, the child's. Close-on-exec.
pub(crate) fn pair() -> Result<(End, End), Failure> {
    let (parent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Failure::os(Step::Handshake, errno))?;
    Ok((End(parent), End(child)))
}

impl End {
    /// The parent's next packet from its child, by `deadline`. None: the child's end is closed.
    pub(crate) fn next(&self, deadline: Instant) -> Result<Option<Packet<FromChild>>, Failure> {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        loop {
            if !readable_by(self.0.as_fd(), deadline).map_err(|errno| Failure::os(Step::Handshake, errno))? {
                return Err(Failure::because(Step::Handshake, LATE));
            }
            match wire::receive(self.0.as_fd(), &mut buffer).map_err(broken)? {
                Some(Packet { message: FromChild::Warning(text), .. }) => tracing::warn!("{text}"),
                packet => return Ok(packet),
            }
        }
    }

    /// Another descriptor of the same end.
    pub(crate) fn share(&self) -> Result<Self, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 3).map(Self)
    }

    /// The parent lets its child go on.
    pub(crate) fn go(&self, pid: i32) -> Result<(), Failure> {
        wire::send(self.0.as_fd(), &FromParent::Go { pid }, &[]).map_err(broken)
    }

    /// The child asks, and waits until its parent has done it. Returns its pid as the parent sees it.
    pub(crate) fn ask(&self, question: &FromChild) -> Result<i32, Failure> {
        self.ask_about(question, &[])
    }

    /// As [`ask`](Self::ask), about these descriptors.
    pub(crate) fn ask_about(&self, question: &FromChild, fds: &[BorrowedFd<'_>]) -> Result<i32, Failure> {
        self.tell(question, fds)?;
        self.wait()
    }

    /// The child waits until it may go on.
    pub(crate) fn wait(&self) -> Result<i32, Failure> {
        let answer: Option<Packet<FromParent>> =
            wire::receive(self.0.as_fd(), &mut [0; MAX_ANSWER_BYTES]).map_err(broken)?;
        match answer {
            Some(Packet { message: FromParent::Go { pid }, .. }) => Ok(pid),
            None => Err(Failure::because(Step::Handshake, "the parent has gone away")),
        }
    }

    /// The child tells its parent.
    pub(crate) fn tell(&self, message: &FromChild, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        wire::send(self.0.as_fd(), message, fds).map_err(broken)
    }
}

/// Waits until `fd` can be read or its other end is closed. False: the deadline came first.
pub(crate) fn readable_by(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn broken(error: WireError) -> Failure {
    match error {
        WireError::Send(errno) | WireError::Receive(errno) => Failure::os(Step::Handshake, errno),
        other => Failure::because(Step::Handshake, other.to_string()),
    }
}
