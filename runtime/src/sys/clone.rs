//! clone3(2) that goes on in the child as fork(2) would, and what belongs to it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{check, last_errno};

/// The arguments of [`clone3`].
#[derive(Debug, Default)]
pub(crate) struct Clone3<'a> {
    /// `CLONE_NEW*` flags.
    pub(crate) namespaces: u64,
    /// Give the child to the caller's own parent (`CLONE_PARENT`).
    pub(crate) sibling: bool,
    /// Start it in this cgroup v2 directory (`CLONE_INTO_CGROUP`).
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// On which side of a [`clone3`] the caller is.
#[derive(Debug)]
pub(crate) enum Forked {
    /// In the new process.
    Child,
    /// In the process that called.
    Parent {
        /// The child's pid in the caller's PID namespace.
        pid: i32,
        /// The child's pidfd, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// `struct clone_args` of linux/sched.h, up to `cgroup` (Linux 5.7).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Proves that this process has one thread, in one cheap call: unshare(2) of the address space is EINVAL otherwise,
/// and changes nothing for a process that shares it with nobody.
fn require_single_thread() -> Result<(), Errno> {
    // SAFETY: takes no pointers; CLONE_VM asks for what already is so, or fails.
    match check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_VM) }) {
        Ok(_) => Ok(()),
        Err(_) => Err(Errno::BUSY),
    }
}

/// clone3(2) without `CLONE_VM`: both sides go on from here, each with its own copy of everything, handled signals
/// back at their defaults in the child. EBUSY when the caller has more than one thread.
pub(crate) fn clone3(arguments: &Clone3<'_>) -> Result<Forked, Errno> {
    require_single_thread()?;
    let mut pidfd: RawFd = -1;
    let mut raw = CloneArgs {
        flags: CLONE_PIDFD | CLONE_CLEAR_SIGHAND | arguments.namespaces,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if arguments.sibling {
        // The kernel copies the caller's own exit signal then, and refuses another.
        raw.flags |= CLONE_PARENT;
        raw.exit_signal = 0;
    }
    if let Some(cgroup) = arguments.cgroup {
        raw.flags |= CLONE_INTO_CGROUP;
        raw.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `raw` is a valid clone_args of the size given, and `pidfd` outlives the call. Without CLONE_VM the child
    // runs on a copy of this stack; since this is the only thread (checked above), no lock of libc or of ours
    // is held by one that the child does not have.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of::<CloneArgs>()) };
    match check(result)? {
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel has just stored a new descriptor there, and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: i32::try_from(pid).unwrap_or(-1), pidfd })
        }
    }
}

/// unshare(2) of namespaces (`CLONE_NEW*` only).
pub(crate) fn unshare(namespaces: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes no pointers; namespace flags do not touch memory or descriptors.
    if unsafe { libc::unshare(namespaces) } == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The `CLONE_NEW*` flag of an open namespace file (`NS_GET_NSTYPE`, ioctl_ns(2)).
pub(crate) fn namespace_type(namespace: BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this ioctl takes no argument; on a descriptor of another kind it is ENOTTY.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(last_errno()) } else { Ok(kind) }
}

/// _exit(2): ends a cloned child without running what its parent registered for its own exit.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: never returns, takes no pointers.
    unsafe { libc::_exit(status) }
}
