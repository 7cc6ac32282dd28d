//! What `std::process::Command` lacks for a child that must inherit nothing but its stdio.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes every descriptor from 3 on close at the child's exec, whatever flags it was opened with.
pub(crate) fn inherit_stdio_only(command: &mut Command) {
    let close = || {
        // SAFETY: close_range takes three integers; with CLOSE_RANGE_CLOEXEC it closes nothing before the exec.
        let result =
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call and allocates nothing, as is required between fork and exec.
    unsafe { command.pre_exec(close) };
}
