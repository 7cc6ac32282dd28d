//! Out-of-memory kills: how many there were, and a descriptor that says when there is one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::{Failure, Step};

use super::files::{Dir, failure, keyed};
use super::{Cgroup, Controller};

/// Readable when something in the memory cgroup ran out. Not every wake-up is a kill: compare [`Cgroup::oom_kill_count`].
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
}

impl OomWatch {
    /// Takes the pending notices, so that the descriptor is not readable any more. False: there was none.
    pub fn drain(&self) -> Result<bool, Failure> {
        let mut buffer = [0_u8; 1024];
        let mut any = false;
        loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(any),
                Ok(_) => any = true,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Failure::os(Step::Cgroup, errno)),
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Cgroup {
    /// Processes killed for want of memory, in this cgroup and below. None: the host cannot tell (no memory controller, or v1 before 4.13).
    pub fn oom_kill_count(&self) -> Option<u64> {
        if let Some(dir) = self.of_v1(Controller::Memory) {
            return keyed(&dir.read("memory.oom_control").ok()?, "oom_kill");
        }
        let dir = self.v2.as_ref()?;
        keyed(&dir.read("memory.events").ok()?, "oom_kill")
    }

    /// A descriptor to poll for [`OomWatch::drain`]. None: the host has no memory controller.
    pub fn oom_watch(&self) -> Result<Option<OomWatch>, Failure> {
        if let Some(dir) = self.of_v1(Controller::Memory) {
            return watch_v1(dir).map(Some);
        }
        match self.v2.as_ref().filter(|dir| dir.has(Controller::Memory)) {
            // Beside v1 it may not be enabled for this cgroup.
            Some(dir) if self.is_v1() && dir.read("memory.events") == Err(Errno::NOENT) => Ok(None),
            Some(dir) => watch_v2(dir).map(Some),
            None => Ok(None),
        }
    }
}

/// cgroup-v1/memory.rst, section 9: an eventfd is registered for `memory.oom_control`. It also fires when the cgroup is removed.
fn watch_v1(dir: &Dir) -> Result<OomWatch, Failure> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| Failure::os(Step::Cgroup, errno))?;
    let control = dir
        .open_file("memory.oom_control", OFlags::RDONLY)
        .map_err(|errno| dir.failed(errno, "memory.oom_control"))?;
    let raw = |fd: &OwnedFd| std::os::fd::AsRawFd::as_raw_fd(fd);
    dir.set("cgroup.event_control", &format!("{} {}", raw(&fd), raw(&control)))?;
    Ok(OomWatch { fd })
}

/// Any change of `memory.events` is announced as a modification.
fn watch_v2(dir: &Dir) -> Result<OomWatch, Failure> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|errno| Failure::os(Step::Cgroup, errno))?;
    let path = dir.path.join("memory.events");
    inotify::add_watch(&fd, &path, inotify::WatchFlags::MODIFY)
        .map_err(|errno| failure(&path, &errno.into()))?;
    Ok(OomWatch { fd })
}
