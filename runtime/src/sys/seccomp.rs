//! seccomp(2): loading a filter.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::seccomp::Instruction;

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Puts the calling thread under the filter. `listens`: the flags ask for a notification descriptor, which is returned.
pub(crate) fn set_filter(
    instructions: &[Instruction],
    flags: u32,
    listens: bool,
) -> Result<Option<OwnedFd>, Errno> {
    let length = u16::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?;
    let program = Program { length, instructions: instructions.as_ptr() };
    // SAFETY: `program` has the layout of `struct sock_fprog`, and points to `length` instructions of the layout of
    // `struct sock_filter`; the kernel copies them before it returns and keeps no reference.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    if !listens {
        return Ok(None);
    }
    let fd = RawFd::try_from(result).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: with SECCOMP_FILTER_FLAG_NEW_LISTENER the result is a new descriptor (close-on-exec) that nobody else has.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}
