//! Waiting for what a cgroup does, by events and with a deadline.
//!
//! v2 announces changes of `cgroup.events` as `POLLPRI` (cgroup-v2.rst, "cgroup.events"). v1 announces nothing, so
//! there the processes themselves are watched through pidfds.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::Failure;

use super::files::{Dir, keyed};

/// `cgroup.events` of one v2 cgroup.
pub(super) struct Events {
    fd: OwnedFd,
}

impl Events {
    pub(super) fn open(dir: &Dir) -> Result<Self, Errno> {
        Ok(Self { fd: dir.open_file("cgroup.events", OFlags::RDONLY)? })
    }

    /// Whether `key` is 1 now. Reading is what arms the next notification.
    pub(super) fn is_set(&self, key: &str) -> Result<bool, Errno> {
        let mut text = [0_u8; 128];
        let read = rustix::io::pread(&self.fd, &mut text, 0)?;
        let text = std::str::from_utf8(&text[..read]).map_err(|_| Errno::ILSEQ)?;
        Ok(keyed(text, key) == Some(1))
    }

    /// Waits until `key` has the value. False: the deadline came first. A cgroup that is gone is empty and not frozen.
    pub(super) fn wait(&self, key: &str, value: bool, deadline: Instant) -> Result<bool, Errno> {
        loop {
            match self.is_set(key) {
                Ok(now) if now == value => return Ok(true),
                Ok(_) => {}
                Err(Errno::NODEV | Errno::NOENT) => return Ok(!value),
                Err(errno) => return Err(errno),
            }
            if !ready(&self.fd, PollFlags::PRI, deadline)? {
                return Ok(false);
            }
        }
    }
}

/// Waits until every process of `pids` has exited. False: the deadline came first.
pub(super) fn exited(pids: &[u32], deadline: Instant) -> Result<bool, Failure> {
    for pid in pids {
        let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else { continue };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                let gone = ready(&pidfd, PollFlags::IN, deadline);
                if !gone.map_err(|errno| Failure::os(crate::Step::Cgroup, errno))? {
                    return Ok(false);
                }
            }
            Err(Errno::SRCH) => {}
            Err(errno) => return Err(Failure::os(crate::Step::Cgroup, errno)),
        }
    }
    Ok(true)
}

/// poll(2) on one descriptor. False: the deadline came first.
fn ready(fd: impl AsFd, wanted: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&fd, wanted)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
