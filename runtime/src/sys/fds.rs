//! Whole ranges of descriptors.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Takes over a descriptor that this process was given at its exec. It must be writable. Those that the process opened itself are
/// close-on-exec and are refused; of stdio, which others here use by number, the result is a copy.
pub(crate) fn adopt_writable(number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: fcntl with F_GETFD and F_GETFL takes integers and changes nothing.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    let flags = check(flags.into())?;
    // SAFETY: as above.
    let mode = check(unsafe { libc::fcntl(number, libc::F_GETFL) }.into())?;
    if mode & libc::c_long::from(libc::O_ACCMODE) == libc::c_long::from(libc::O_RDONLY) {
        return Err(Errno::BADF);
    }
    if number <= 2 {
        // SAFETY: the descriptor is open, as fcntl has just said, and borrowed for one call.
        let stdio = unsafe { BorrowedFd::borrow_raw(number) };
        return rustix::io::fcntl_dupfd_cloexec(stdio, 3);
    }
    if flags & libc::c_long::from(libc::FD_CLOEXEC) != 0 {
        return Err(Errno::BUSY);
    }
    // SAFETY: it is open, and nobody here owns it: every descriptor that this process opens is close-on-exec.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}
