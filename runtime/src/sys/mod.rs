//! System calls that no safe binding offers: each wrapped once, with its own reason for being sound.
//!
//! This is the only place of the workspace with `unsafe`. A function here is one call; what it is *for* stands where
//! it is used. Calls that rustix offers safely are used from rustix directly.
#![allow(unsafe_code)]

mod attributes;
pub(crate) mod bpf;
mod clone;
pub(crate) mod command;
mod exec;
mod fds;
pub(crate) mod memory;
mod mount;
pub(crate) mod seccomp;
pub(crate) mod signal;
mod tty;

pub(crate) use attributes::{
    current_rlimit, ioprio_set, join_new_session_keyring, personality, prlimit, reset_affinity,
    sched_setaffinity, sched_setattr, set_mempolicy,
};
pub(crate) use clone::{Clone3, Forked, clone3, exit_now, namespace_type, unshare};
pub(crate) use exec::{execve, ignore_children, reset_signals};
pub(crate) use fds::{adopt_writable, close_range};
pub(crate) use mount::{Attributes, mount_setattr};
pub(crate) use tty::{pty_peer, unlock_pty};

use rustix::io::Errno;

/// The result of a raw system call as libc reports it.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// errno(3) of the call that has just failed.
fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
