//! What `std::process::Command` lacks for a child that is to inherit exactly what it needs.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};

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

/// Keeps these descriptors open in the child, under the numbers they have here. After [`inherit_stdio_only`].
pub(crate) fn inherit(command: &mut Command, fds: &[BorrowedFd<'_>]) {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let keep = move || {
        for number in &numbers {
            // SAFETY: fcntl with F_SETFD takes integers and changes a flag of the child's own descriptor table.
            if unsafe { libc::fcntl(*number, libc::F_SETFD, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing, as is required between fork and exec. A descriptor that
    // was closed meanwhile fails with EBADF.
    unsafe { command.pre_exec(keep) };
}

/// Gives the child a mount namespace of its own, to which the host's mounts still come and which none leave, and in it the
/// directory `source`, with what is mounted below, mounted on `target`.
pub(crate) fn mount_for_itself(command: &mut Command, source: &Path, target: &Path) -> Result<(), Errno> {
    let source = CString::new(source.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let target = CString::new(target.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let mount = move || {
        super::unshare(libc::CLONE_NEWNS)?;
        mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        mount_bind_recursive(source.as_c_str(), target.as_c_str())?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only, on C strings made before, and allocates nothing, as is required between fork
    // and exec.
    unsafe { command.pre_exec(mount) };
    Ok(())
}
