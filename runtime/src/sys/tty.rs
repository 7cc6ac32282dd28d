//! The two pseudo-terminal calls that work by descriptor alone (ioctl_tty(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::last_errno;

/// Unlocks the peer of a pseudo-terminal's master (`TIOCSPTLCK`).
pub(crate) fn unlock_pty(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the ioctl reads one int that outlives the call.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) } < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// Opens the peer of a pseudo-terminal's master without looking up a path (`TIOCGPTPEER`); close-on-exec, and not
/// yet the controlling terminal.
pub(crate) fn pty_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes the flags by value and returns a new descriptor.
    let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if peer < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}
