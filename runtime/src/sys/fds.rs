//! Whole ranges of descriptors.

use std::os::fd::RawFd;

use rustix::io::Errno;

use super::check;

/// Closes the descriptors `first..=last`. For a process that will not use what it knew about them any more.
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: takes no pointers. The descriptors that are closed belong to a process about to exec or exit: callers
    // keep out of the range all they still use.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, first.unsigned_abs(), last.unsigned_abs(), 0) };
    check(closed).map(drop)
}
