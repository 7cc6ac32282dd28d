//! A seccomp agent: decides the system calls with `SCMP_ACT_NOTIFY` (runtime-spec `config-linux.md#containerprocessstate`).

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use anyhow::Result;
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::Deadline;
use crate::descriptor::receive;

/// An agent that lets everything through, for one process. How many calls it was asked about.
#[must_use]
pub fn agent(listener: UnixListener) -> JoinHandle<Result<usize>> {
    std::thread::spawn(move || answer(&receive(&listener)?))
}

fn answer(notifications: &OwnedFd) -> Result<usize> {
    let deadline = Deadline::in_seconds(60);
    let mut asked = 0;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(notifications.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&deadline.timespec())) {
            Ok(0) => anyhow::bail!("nothing ended or asked in time; {asked} calls so far"),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = fds[0].revents();
        if events.contains(PollFlags::HUP) {
            return Ok(asked);
        }
        if !events.contains(PollFlags::IN) {
            continue;
        }
        // Who asked may be dead by now: then neither goes anywhere.
        if let Ok(request) = ScmpNotifReq::receive(notifications.as_raw_fd()) {
            asked += 1;
            let go_on = ScmpNotifResp::new_continue(request.id, ScmpNotifRespFlags::empty());
            let _ = go_on.respond(notifications.as_raw_fd());
        }
    }
}
