//! Whole ranges of descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;

use super::{check, last_errno};

/// Closes the descriptors `first..=last`. For a process that will not use what it knew about them any more.
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    range(first.unsigned_abs(), last.unsigned_abs(), 0)
}

/// Marks every descriptor from `first` on close-on-exec, those not opened yet excepted.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn range(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: takes no pointers. Descriptors that are closed belong to a process about to exec or exit: callers
    // keep out of the range all they still use.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Lets a descriptor live on over execve(2).
pub(crate) fn inherit_on_exec(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: sets a flag of a descriptor that is borrowed for the call.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } < 0 { Err(last_errno()) } else { Ok(()) }
}
