//! The container's pseudo-terminal: allocated in its own devpts and shown at /dev/console (pts(4), `runtime-spec config.md#process`).
//!
//! The image's author may have put anything at these paths. So the multiplexer is first a handle, proven to be devpts's, and only
//! then opened; and /dev/console is mounted on as the file it is, never through a link.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Root;
use crate::mounts::resolve::{self, Links};
use crate::mounts::{clone_fd, move_to};
use crate::plan::Plan;
use crate::sys;
use crate::{Failure, Step};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: u64 = 0x1cd1;

impl Root {
    /// Allocates a pseudo-terminal and shows its peer at /dev/console; (master, peer), close-on-exec both and no process's
    /// controlling terminal yet. Without a devpts of the container's own, the host's gives it.
    pub(crate) fn console(&self, plan: &Plan) -> Result<(OwnedFd, OwnedFd), Failure> {
        let failed = |path: &'static str| move |errno| Failure::at(Step::Console, errno, path);
        let master = match self.own_multiplexer().map_err(failed("/dev/pts/ptmx"))? {
            Some(master) => master,
            None => rustix::fs::open("/dev/ptmx", TERMINAL, Mode::empty()).map_err(failed("/dev/ptmx"))?,
        };
        sys::unlock_pty(master.as_fd()).map_err(failed("/dev/pts/ptmx"))?;
        let peer = sys::pty_peer(master.as_fd()).map_err(failed("/dev/pts/ptmx"))?;
        // A host's /dev has its own console, and mounting over it may be seen by others.
        if !Self::foreign_dev(plan) {
            self.show(peer.as_fd()).map_err(failed("/dev/console"))?;
        }
        Ok((master, peer))
    }

    /// The multiplexer of the container's own devpts, opened; None: it has none.
    fn own_multiplexer(&self) -> Result<Option<OwnedFd>, Errno> {
        let path = Path::new("/dev/pts/ptmx");
        let handle = match resolve::open(self.dir(), path, OFlags::PATH, Links::Follow) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        if !is_multiplexer(handle.as_fd())? {
            return Ok(None);
        }
        // The host's /proc is still here, so the link is the kernel's own.
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        rustix::fs::open(path, TERMINAL, Mode::empty()).map(Some)
    }

    fn show(&self, peer: BorrowedFd<'_>) -> Result<(), Errno> {
        let (dev, name) = resolve::parent(self.dir(), Path::new("/dev/console"))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let point = match rustix::fs::openat(&dev, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&dev, name, flags, Mode::from_raw_mode(0o600))?
            }
            other => other?,
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&point)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
        move_to(clone_fd(peer, false)?.as_fd(), point.as_fd())
    }
}

const TERMINAL: OFlags = OFlags::RDWR.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Character device 5:2 on a devpts.
fn is_multiplexer(handle: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(handle)?;
    let fs = rustix::fs::fstatfs(handle)?;
    Ok(u64::try_from(fs.f_type) == Ok(DEVPTS_MAGIC)
        && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(5, 2))
}
