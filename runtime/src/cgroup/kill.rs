//! Killing everything in a cgroup and below, however fast it forks.

use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{Failure, Step};

use super::wait::{Events, exited};
use super::{Cgroup, Controller};

impl Cgroup {
    /// SIGKILLs every process in it and below, frozen or not, and waits until none is left.
    pub fn kill_all(&self, deadline: Instant) -> Result<(), Failure> {
        self.send_kill(deadline)?;
        if self.wait_empty(deadline)? {
            return Ok(());
        }
        let left = self.pids(true).unwrap_or_default().len();
        Err(Failure::because(Step::Signal, format!("{left} process(es) of the cgroup outlived SIGKILL")))
    }

    /// As [`kill_all`](Self::kill_all) without waiting for the exits where v2 kills (elsewhere killing is waiting).
    pub fn send_kill(&self, deadline: Instant) -> Result<(), Failure> {
        if let Some(dir) = &self.v2 {
            match dir.write("cgroup.kill", "1") {
                // Killed first, so that nothing frozen by v1 runs a single instruction more.
                Ok(()) => return self.thaw_v1(),
                Err(Errno::NODEV) => return Ok(()),
                // systemd takes an empty scope away by itself: then nothing is left to kill, or to thaw.
                Err(Errno::NOENT) if matches!(Events::open(dir), Err(Errno::NOENT | Errno::NODEV)) => {
                    return Ok(());
                }
                // Kernels before 5.14, and threaded cgroups.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(dir.failed(errno, "cgroup.kill")),
            }
        }
        self.kill_one_by_one(deadline)
    }

    /// Waits until no process is left in it and below. False: the deadline came first.
    pub fn wait_empty(&self, deadline: Instant) -> Result<bool, Failure> {
        if let Some(dir) = &self.v2 {
            return match Events::open(dir) {
                Ok(events) => events
                    .wait("populated", false, deadline)
                    .map_err(|errno| dir.failed(errno, "cgroup.events")),
                Err(Errno::NOENT | Errno::NODEV) => Ok(true),
                Err(errno) => Err(dir.failed(errno, "cgroup.events")),
            };
        }
        loop {
            let pids = self.pids(true)?;
            if pids.is_empty() {
                return Ok(true);
            }
            if !exited(&pids, deadline)? {
                return Ok(false);
            }
        }
    }

    fn thaw_v1(&self) -> Result<(), Failure> {
        match self.of_v1(Controller::Freezer).filter(|dir| dir.owned) {
            Some(dir) => match dir.write("freezer.state", "THAWED") {
                Err(errno) if !matches!(errno, Errno::NOENT | Errno::NODEV) => {
                    Err(dir.failed(errno, "freezer.state"))
                }
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// v1: frozen, nothing can fork while the list is read; the kill is delivered at the thaw. A freeze that does not
    /// complete costs another round, in which what was forked meanwhile is found.
    fn kill_one_by_one(&self, deadline: Instant) -> Result<(), Failure> {
        loop {
            let freezing = Instant::now() + (deadline.saturating_duration_since(Instant::now()) / 4);
            // Without a freezer, or with a freeze that fails, killing still makes progress: every round has fewer to fork.
            let _ = self.freeze(freezing);
            let pids = self.pids(true)?;
            let killed = pids.iter().try_for_each(|pid| kill(*pid));
            self.thaw()?;
            killed?;
            if pids.is_empty() || !exited(&pids, deadline)? {
                return Ok(());
            }
        }
    }
}

/// By pidfd: a number that was read from the cgroup may belong to another process by now only if the first one was reaped
/// between the read and the open, while frozen nothing is.
fn kill(pid: u32) -> Result<(), Failure> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let sent = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| pidfd_send_signal(pidfd, Signal::KILL));
    match sent {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(Failure::os(Step::Signal, errno)),
    }
}
