//! Out-of-memory kills: how many there were, and a descriptor that says when there is one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};
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

/// The count of the cgroup above a container's, which has that of its children in it, and goes on when they are gone.
#[derive(Debug)]
pub struct OomAbove {
    events: OwnedFd,
    /// The count when this was made.
    before: u64,
}

impl OomAbove {
    /// Processes killed since this was made. 0 also where nobody can tell any more.
    pub fn kills(&self) -> u64 {
        count(&self.events).unwrap_or(0).saturating_sub(self.before)
    }
}

fn count(events: &OwnedFd) -> Option<u64> {
    // Six short lines.
    let mut buffer = [0_u8; 512];
    let length = rustix::io::pread(events, &mut buffer, 0).ok()?;
    keyed(std::str::from_utf8(&buffer[..length]).ok()?, "oom_kill")
}

impl Cgroup {
    /// A second way to learn of kills in a scope of version 2: systemd removes it as soon as it is empty, maybe before anybody has
    /// read its count.
    pub fn oom_above(&self) -> Option<OomAbove> {
        let dir = self.v2.as_ref().filter(|_| self.scope.is_some() && !self.is_v1())?;
        let path = dir.path.parent()?.join("memory.events");
        let events = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let before = count(&events)?;
        Some(OomAbove { events, before })
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_above_are_counted_from_when_it_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.events");
        let told = |kills| format!("low 0\nhigh 0\nmax 41\noom 7\noom_kill {kills}\noom_group_kill 9\n");
        std::fs::write(&path, told(3)).unwrap();
        let events = OwnedFd::from(std::fs::File::open(&path).unwrap());
        let above = OomAbove { before: count(&events).unwrap(), events };
        assert_eq!(above.kills(), 0);
        std::fs::write(&path, told(5)).unwrap();
        assert_eq!(above.kills(), 2);
        std::fs::write(&path, "").unwrap();
        assert_eq!(above.kills(), 0, "nobody can tell");
    }
}
