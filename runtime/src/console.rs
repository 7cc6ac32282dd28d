//! The pseudo-terminal of a process exec'd into a container: from the container's own devpts, so that it can be opened there by name
//! (pty(7)). Init's is made before its root is entered, see [`crate::rootfs`].
//!
//! What is at /dev/pts was the image's or the spec's choice, and by now also the container's. Nothing is opened before it is proven to be
//! what it has to be, and the peer is opened by its master's descriptor, not by a name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};

use crate::sys;
use crate::{Failure, Step};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    /// The engine's end.
    pub(crate) master: OwnedFd,
    /// The process's end, which becomes its controlling terminal.
    pub(crate) peer: OwnedFd,
}

/// Whether a terminal's lines end in CR LF, which is what a new one does.
pub(crate) fn end_lines(master: BorrowedFd<'_>, crlf: bool) -> Result<(), Failure> {
    if crlf {
        return Ok(());
    }
    tcgetattr(master)
        .and_then(|mut settings| {
            settings.output_modes.remove(OutputModes::ONLCR);
            tcsetattr(master, OptionalActions::Now, &settings)
        })
        .map_err(|errno| Failure::os(Step::Console, errno).with_message("set the terminal's line ends"))
}

/// Allocates one from /dev/pts of the caller's root.
pub(crate) fn allocate() -> Result<Pty, Failure> {
    const PTMX: &str = "/dev/pts/ptmx";
    let failure = |errno| Failure::at(Step::Console, errno, PTMX);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::NO_MAGICLINKS | ResolveFlags::IN_ROOT;
    // Opened without effect first: whatever is there, such as a FIFO, would otherwise be waited for.
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failure)?;
    let handle = rustix::fs::openat2(
        &root,
        PTMX,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
    .map_err(failure)?;
    let fs = rustix::fs::fstatfs(&handle).map_err(failure)?;
    if u64::try_from(fs.f_type) != Ok(DEVPTS_MAGIC) {
        return Err(failure(Errno::NODEV).with_message("is not in a devpts filesystem"));
    }
    let master = rustix::fs::openat2(&root, PTMX, flags, Mode::empty(), resolve).map_err(failure)?;
    let (before, after) =
        (rustix::fs::fstat(&handle).map_err(failure)?, rustix::fs::fstat(&master).map_err(failure)?);
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
        return Err(failure(Errno::NODEV).with_message("changed while it was opened"));
    }
    sys::unlock_pty(master.as_fd()).map_err(failure)?;
    let peer = sys::pty_peer(master.as_fd()).map_err(failure)?;
    Ok(Pty { master, peer })
}
