//! Attributes of a process that have a system call each.

use std::ptr;

use rustix::io::Errno;

use super::{check, last_errno};
use crate::plan::{Rlimit, Scheduler};

/// Sets a resource limit of `pid`, 0 being the caller (prlimit(2)).
pub(crate) fn prlimit(pid: i32, limit: Rlimit) -> Result<(), Errno> {
    let new = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: reads a valid rlimit64; a null pointer means that the old limit is not wanted.
    if unsafe { libc::prlimit64(pid, limit.resource, &raw const new, ptr::null_mut()) } < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// The caller's limit of a resource (prlimit(2)).
pub(crate) fn current_rlimit(resource: u32) -> Result<Rlimit, Errno> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a valid rlimit64; a null pointer means that nothing is changed.
    if unsafe { libc::prlimit64(0, resource, ptr::null(), &raw mut old) } < 0 {
        return Err(last_errno());
    }
    Ok(Rlimit { resource, soft: old.rlim_cur, hard: old.rlim_max })
}

/// sched_setaffinity(2) for the caller, with as long a mask as the numbers need.
pub(crate) fn sched_setaffinity(cpus: &[u32]) -> Result<(), Errno> {
    const WORD_BITS: usize = u64::BITS as usize;
    let last = cpus.iter().copied().max().map_or(0, |cpu| cpu as usize);
    let mut mask = vec![0_u64; last / WORD_BITS + 1];
    for &cpu in cpus {
        mask[cpu as usize / WORD_BITS] |= 1 << (cpu as usize % WORD_BITS);
    }
    // SAFETY: the mask has the number of bytes given and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask[..]), mask.as_ptr()) })
        .map(drop)
}

/// sched_setaffinity(2) for the caller: every CPU, of which the kernel takes those of its cpuset.
pub(crate) fn reset_affinity() -> Result<(), Errno> {
    // NR_CPUS is 8192 at most.
    let mask = [u64::MAX; 8192 / u64::BITS as usize];
    // SAFETY: the mask has the number of bytes given and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) })
        .map(drop)
}

/// Gives the caller a new anonymous session keyring in place of the inherited one (keyctl(2)).
pub(crate) fn join_new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) };
    check(joined).map(drop)
}

/// personality(2).
pub(crate) fn personality(domain: u32) -> Result<(), Errno> {
    // SAFETY: takes no pointers.
    if unsafe { libc::personality(libc::c_ulong::from(domain)) } < 0 { Err(last_errno()) } else { Ok(()) }
}

/// ioprio_set(2) for the caller alone.
pub(crate) fn ioprio_set(class: u32, priority: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    let value = (class << IOPRIO_CLASS_SHIFT) | priority;
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// `struct sched_attr` of linux/sched/types.h, its first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// sched_setattr(2) for the caller.
pub(crate) fn sched_setattr(scheduler: &Scheduler) -> Result<(), Errno> {
    let raw = SchedAttr {
        size: u32::try_from(size_of::<SchedAttr>()).unwrap_or(0),
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: `raw` is a valid sched_attr that tells its own size and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) }).map(drop)
}

/// set_mempolicy(2) for the caller. No nodes: a null mask, as the `default` and `local` modes want it.
pub(crate) fn set_mempolicy(mode: i32, nodes: &[u32]) -> Result<(), Errno> {
    const WORD_BITS: usize = u64::BITS as usize;
    let last = nodes.iter().copied().max().map_or(0, |node| node as usize);
    let mut mask = vec![0_u64; last / WORD_BITS + 1];
    for &node in nodes {
        mask[node as usize / WORD_BITS] |= 1 << (node as usize % WORD_BITS);
    }
    let (pointer, bits) =
        if nodes.is_empty() { (ptr::null(), 0) } else { (mask.as_ptr(), mask.len() * WORD_BITS + 1) };
    // SAFETY: the mask has the number of bits given (the kernel's count is one more than it reads), or is null with none.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) }).map(drop)
}
