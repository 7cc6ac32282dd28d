//! Attributes of a process that need privileges to set: resource limits, scheduling, keyring.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::plan::{self, Rlimit};
use crate::procfs::Procfs;
use crate::{Failure, Step, lsm, sys};

/// Resource limits, scheduler and I/O priority of the caller.
pub(crate) fn attributes(process: &plan::Process) -> Result<(), Failure> {
    let failure = |errno, what: &str| Failure::os(Step::ProcessAttributes, errno).with_message(what);
    for limit in &process.rlimits {
        rlimit(*limit)?;
    }
    if let Some(scheduler) = &process.scheduler {
        sys::sched_setattr(scheduler).map_err(|errno| failure(errno, "unable to set the scheduler"))?;
    }
    if let Some((class, priority)) = process.io_priority {
        sys::ioprio_set(class, priority).map_err(|errno| failure(errno, "unable to set the I/O priority"))?;
    }
    Ok(())
}

/// The CPUs the caller may run on, from a list such as `0-3,5`.
pub(crate) fn affinity(list: &str) -> Result<(), Failure> {
    let cpus = plan::number_list(list)
        .map_err(|problem| Failure::because(Step::ProcessAttributes, format!("CPU affinity: {problem}")))?;
    sys::sched_setaffinity(&cpus).map_err(|errno| {
        Failure::os(Step::ProcessAttributes, errno).with_message(format!("CPU affinity {list}"))
    })
}

/// All CPUs of the caller's cgroup: what the runtime itself was bound to is nobody else's business.
pub(crate) fn reset_affinity() {
    if let Err(errno) = sys::reset_affinity() {
        tracing::warn!(%errno, "the process keeps the runtime's CPU affinity");
    }
}

/// A session keyring of its own for the caller, so that it holds no key of whoever started the runtime.
///
/// Where the kernel has no keyrings, denies them (as the seccomp profile of a container around this one may) or the user's quota is
/// used up, the container runs all the same, with a warning.
pub(crate) fn session_keyring(label: Option<&str>) -> Result<(), Failure> {
    if let Some(label) = label {
        lsm::set_selinux_keyring(Procfs::open()?.as_fd(), label)?;
    }
    match sys::join_new_session_keyring() {
        Err(errno @ (Errno::NOSYS | Errno::PERM | Errno::DQUOT)) => {
            tracing::warn!(%errno, "the container gets no session keyring of its own");
            Ok(())
        }
        joined => joined.map_err(|errno| {
            Failure::os(Step::ProcessAttributes, errno).with_message("unable to join a new session keyring")
        }),
    }
}

/// Without CAP_SYS_RESOURCE no hard limit can be raised: it stays where it is, with a warning.
fn rlimit(wanted: Rlimit) -> Result<(), Failure> {
    let failure = |errno| {
        let limit = format!("resource limit {}", wanted.resource);
        Failure::os(Step::ProcessAttributes, errno).with_message(limit)
    };
    match sys::prlimit(0, wanted) {
        Err(Errno::PERM) => {
            let current = sys::current_rlimit(wanted.resource).map_err(failure)?;
            let clamped = clamp(wanted, current.hard);
            tracing::warn!(
                resource = wanted.resource,
                wanted = wanted.hard,
                hard = clamped.hard,
                "the hard limit may not be raised"
            );
            sys::prlimit(0, clamped).map_err(failure)
        }
        set => set.map_err(failure),
    }
}

fn clamp(wanted: Rlimit, hard: u64) -> Rlimit {
    let hard = wanted.hard.min(hard);
    Rlimit { resource: wanted.resource, soft: wanted.soft.min(hard), hard }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_clamped_to_what_the_caller_has() {
        let wanted = Rlimit { resource: 7, soft: 4096, hard: u64::MAX };
        assert_eq!(clamp(wanted, 1024), Rlimit { resource: 7, soft: 1024, hard: 1024 });
        assert_eq!(clamp(wanted, 8192), Rlimit { resource: 7, soft: 4096, hard: 8192 });
    }

    #[test]
    fn affinity_is_the_threads_own() {
        let own = rustix::thread::sched_getaffinity(None).unwrap();
        let first = (0..1024).find(|cpu| own.is_set(*cpu)).unwrap();
        std::thread::spawn(move || {
            // The kernel ignores CPUs that it does not have.
            affinity(&format!("{first},5000")).unwrap();
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert!(now.is_set(first));
            assert_eq!(now.count(), 1);
            assert_eq!(affinity("5000").unwrap_err().errno(), Some(Errno::INVAL));
            assert!(affinity("x").is_err());
        })
        .join()
        .unwrap();
    }
}
