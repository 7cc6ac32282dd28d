//! execve(2), and the signal state a program expects to start with.

use std::ffi::{CStr, CString};
use std::ptr;

use rustix::io::Errno;

use super::last_errno;

/// execve(2). Returns only when it failed.
pub(crate) fn execve(program: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>()
    };
    let (arg_pointers, env_pointers) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and, as the strings they point to, outlive the call.
    unsafe { libc::execve(program.as_ptr(), arg_pointers.as_ptr(), env_pointers.as_ptr()) };
    last_errno()
}

/// Every signal at its default action and none blocked. Ignored signals outlive clone3(2) and execve(2), and Rust
/// programs ignore SIGPIPE.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGSYS {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: SIG_DFL installs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    // SAFETY: an all-zero sigset_t is a valid, empty set, on Linux as sigemptyset(3) makes it.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: reads the set above; a null pointer means that the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut()) };
}

/// Children of this process are reaped by the kernel (SIGCHLD ignored, sigaction(2)).
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN installs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
