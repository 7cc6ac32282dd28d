//! criu as a child of ours: started, asked, listened to, seen off (criu's `swrk` mode).
//!
//! ```text
//! we                              criu
//! Request Dump|Restore|…     ->
//!                            <-   Response Notify(script, pid), for some with a descriptor
//! Request Notify(success)    ->                                      … as often as criu has something to tell
//!                            <-   Response Dump|Restore|…: the end
//! socket closed              ->   exits
//! ```
//!
//! A notification that is answered with a failure makes criu undo what it did and let the processes go on. That is how a dump ends
//! that takes too long; only a criu that does not notice is killed.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::progress::{LOOK_EVERY, Progress, STILL_FOR};
use super::rpc::{Kind, Notify, Request, Response};
use crate::handshake::readable_by;
use crate::{Failure, Step, sys};

/// The program, found on PATH.
pub(super) const PROGRAM: &str = "criu";

/// The longest message of criu's, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// How long criu may take to undo what it did, or to exit, before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// The most descriptors that come with one message.
const MAX_FDS: usize = 4;

/// How criu is started.
#[derive(Debug, Default)]
pub(super) struct Setup<'a> {
    /// Descriptors that criu gets besides its stdio, under the numbers they have here.
    pub(super) keep: Vec<BorrowedFd<'a>>,
    /// Our stdio becomes criu's, for what is restored; else it has none.
    pub(super) stdio: bool,
    /// A directory and where it is mounted, in a mount namespace of criu's own: the host's is left as it is.
    pub(super) root: Option<(&'a Path, &'a Path)>,
}

/// A criu that waits for requests, or is at one. Dropping it ends it.
pub(super) struct Criu {
    child: Child,
    /// None once it is told that nothing more comes.
    socket: Option<OwnedFd>,
}

/// How long criu is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// For ever.
    Endless,
    /// Until then. Past it the next notification is refused, and a criu that has none for some seconds is killed.
    Until(Instant),
    /// For as long as it, or a process that it makes, does something; see [`super::progress`].
    WhileItMoves,
}

/// What is done about a notification, given the descriptors that came with it.
pub(super) type Notified<'a> = &'a mut dyn FnMut(&Notify, Vec<OwnedFd>) -> Result<(), Failure>;

fn broken(errno: Errno) -> Failure {
    Failure::at(Step::Checkpoint, errno, PROGRAM).with_message("the conversation with criu")
}

impl Criu {
    /// Starts it.
    pub(super) fn start(setup: &Setup<'_>) -> Result<Self, Failure> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(broken)?;
        let mut command = Command::new(PROGRAM);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        if !setup.stdio {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        sys::command::inherit_stdio_only(&mut command);
        let mut keep = setup.keep.clone();
        keep.push(theirs.as_fd());
        sys::command::inherit(&mut command, &keep);
        if let Some((source, target)) = setup.root {
            sys::command::mount_for_itself(&mut command, source, target)
                .map_err(|errno| Failure::at(Step::Checkpoint, errno, source))?;
        }
        let child = command.spawn().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let failure = Failure::at(Step::Checkpoint, errno, PROGRAM);
            match errno {
                Errno::NOENT => failure.with_message("criu, which checkpoints need, is not on the PATH"),
                _ => failure.with_message("start criu"),
            }
        })?;
        Ok(Self { child, socket: Some(ours) })
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for something and answers its notifications until it is done. A failure is criu's, a notification's, or that of `patience`.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        patience: Patience,
        notified: Notified<'_>,
    ) -> Result<Response, Failure> {
        self.send(request)?;
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let mut refused: Option<Failure> = None;
        let deadline = if let Patience::Until(deadline) = patience { Some(deadline) } else { None };
        let mut progress = (patience == Patience::WhileItMoves).then(Progress::begin);
        let mut until = deadline;
        loop {
            if refused.is_none() && progress.is_some() {
                until = Some(Instant::now() + LOOK_EVERY);
            }
            let Some((response, fds)) = self.receive(&mut buffer, until)? else {
                if let Some(progress) = progress.as_mut().filter(|_| refused.is_none()) {
                    if progress.goes_on() {
                        continue;
                    }
                    let _ = self.child.kill();
                    let message = format!("criu did nothing for {} s and was killed", STILL_FOR.as_secs());
                    return Err(too_late().with_message(message));
                }
                if refused.is_some() {
                    let _ = self.child.kill();
                    return Err(too_late().with_message("criu did not end in time and was killed"));
                }
                refused = Some(too_late());
                until = Some(Instant::now() + GRACE);
                continue;
            };
            if response.kind != Kind::Notify as i32 {
                return refused.map_or(Ok(response), Err);
            }
            if refused.is_none() {
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                let notify = response.notify.unwrap_or_default();
                let outcome = if late { Err(too_late()) } else { notified(&notify, fds) };
                refused = outcome.err();
                if refused.is_some() {
                    until = Some(Instant::now() + GRACE);
                }
            }
            let answer = Request {
                kind: Kind::Notify as i32,
                notify_success: Some(refused.is_none()),
                ..Request::default()
            };
            self.send(&answer)?;
        }
    }

    fn send(&self, request: &Request) -> Result<(), Failure> {
        let socket = self.socket.as_ref().ok_or_else(|| broken(Errno::PIPE))?;
        match rustix::net::send(socket, &request.encode_to_vec(), SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(errno) => Err(broken(errno)),
        }
    }

    /// The next message. None: the time is over.
    fn receive(
        &mut self,
        buffer: &mut [u8],
        until: Option<Instant>,
    ) -> Result<Option<(Response, Vec<OwnedFd>)>, Failure> {
        let socket = self.socket.as_ref().ok_or_else(|| broken(Errno::PIPE))?;
        if let Some(until) = until
            && !readable_by(socket.as_fd(), until).map_err(broken)?
        {
            return Ok(None);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut iov = [IoSliceMut::new(buffer)];
            match recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                other => break other.map_err(broken)?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                fds.extend(passed);
            }
        }
        if received.bytes == 0 {
            let how = self.end().map_or_else(|| "ended".to_owned(), |status| status.to_string());
            let message = format!("criu ended without an answer ({how})");
            return Err(Failure::because(Step::Checkpoint, message));
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(broken(Errno::MSGSIZE));
        }
        let response = Response::decode(&buffer[..received.bytes])
            .map_err(|error| broken(Errno::PROTO).with_message(error.to_string()))?;
        Ok(Some((response, fds)))
    }

    /// Lets it go, and waits until it has. None: how it ended cannot be said.
    pub(super) fn end(&mut self) -> Option<ExitStatus> {
        self.socket = None;
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty());
        let exited = pidfd.and_then(|pidfd| readable_by(pidfd.as_fd(), Instant::now() + GRACE));
        if exited != Ok(true) {
            let _ = self.child.kill();
        }
        self.child.wait().ok()
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.end();
        }
    }
}

fn too_late() -> Failure {
    Failure::os(Step::Checkpoint, Errno::TIMEDOUT).with_message("not done in time")
}

/// The `controllers:path` lines of a process's /proc/PID/cgroup, taken apart; v2's controllers are the empty string. See cgroups(7).
pub(super) fn cgroups_of(pid: u32) -> Result<Vec<(String, String)>, Failure> {
    let path = format!("/proc/{pid}/cgroup");
    let mut text = String::new();
    std::fs::File::open(&path).and_then(|mut file| file.read_to_string(&mut text)).map_err(|error| {
        Failure::at(Step::Cgroup, Errno::from_io_error(&error).unwrap_or(Errno::IO), &path)
    })?;
    let line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some((controllers.to_owned(), path.to_owned()))
    };
    Ok(text.lines().filter_map(line).collect())
}
