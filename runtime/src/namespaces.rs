//! Namespaces: which are made, which are joined, by whom and when (namespaces(7), user_namespaces(7)).
//!
//! | Kind | New | Joined by path |
//! |---|---|---|
//! | user | in clone3, first; the parent writes its maps | by an intermediate, last, see below |
//! | ipc, uts, network, mount | in clone3 | by the child, first of all |
//! | pid | in clone3 | by the parent just for the clone3: it takes effect on children only |
//! | time | by the child: execve enters it (Linux 6.1), so its offsets can still be written | by the child |
//! | cgroup | by the child, once it is in its cgroup, which becomes the namespace's root | by the child |
//!
//! **The intermediate.** A container in a user namespace that exists already must be cloned *from inside* it, or its new PID and
//! mount namespaces belong to the host's and it may not mount its own proc. So a short-lived process joins everything
//! and clones init with `CLONE_PARENT`, which makes init the engine's own child. It is also what a new user namespace needs that is combined
//! with joined ones: the new one has no power over those.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Uid};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_thread_res_gid, set_thread_res_uid,
};

use crate::plan::{NamespaceKind, Namespaces};
use crate::sys;
use crate::{Failure, Step};

impl NamespaceKind {
    /// Its `CLONE_NEW*` flag.
    pub fn flag(self) -> u32 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Network => libc::CLONE_NEWNET,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => 0x80,
            Self::Mount => libc::CLONE_NEWNS,
        };
        flag.unsigned_abs()
    }

    /// Its file below /proc/PID/ns.
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Network => "net",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
            Self::Mount => "mnt",
        }
    }
}

/// An open namespace to join.
#[derive(Debug)]
pub(crate) struct Join {
    /// What it is.
    pub(crate) kind: NamespaceKind,
    /// The open namespace file.
    pub(crate) file: OwnedFd,
    /// As the plan names it.
    pub(crate) path: String,
}

/// How a process gets into its namespaces; see the module's table.
#[derive(Debug)]
pub(crate) struct Route {
    /// `CLONE_NEW*` flags of the clone3 that makes it.
    pub(crate) cloned: u64,
    /// What it joins first of all, or the intermediate for it.
    pub(crate) joined: Vec<Join>,
    /// Entered by the parent for the time of the clone3.
    pub(crate) pid: Option<Join>,
    /// Whether an intermediate does the joining and the clone3.
    pub(crate) intermediate: bool,
    /// A process all of whose namespaces of these kinds are joined at once: its pidfd, `CLONE_NEW*` flags.
    pub(crate) beside: Option<(OwnedFd, u32)>,
}

impl Route {
    /// For a process that makes and joins nothing on its way.
    pub(crate) fn direct() -> Self {
        Self { cloned: 0, joined: Vec::new(), pid: None, intermediate: false, beside: None }
    }

    /// For a process that comes into the namespaces of another, all by its own user namespace's privileges: what a plain user has over
    /// his containers. The PID namespace too can only be joined from inside that, so an intermediate clones the process.
    pub(crate) fn beside(pidfd: OwnedFd, flags: u32) -> Self {
        Self { intermediate: true, beside: Some((pidfd, flags)), ..Self::direct() }
    }

    /// Opens what is to be joined, and decides who does what.
    pub(crate) fn open(namespaces: &Namespaces) -> Result<Self, Failure> {
        let mut joined = Vec::with_capacity(namespaces.join.len());
        for (kind, path) in &namespaces.join {
            joined.push(Join::open(*kind, path)?);
        }
        let by_child = [NamespaceKind::Cgroup, NamespaceKind::Time];
        let cloned = namespaces
            .new
            .iter()
            .filter(|kind| !by_child.contains(kind))
            .fold(0, |flags, kind| flags | u64::from(kind.flag()));
        let others = joined.iter().any(|join| !matches!(join.kind, NamespaceKind::User | NamespaceKind::Pid));
        let intermediate = namespaces.joined(NamespaceKind::User).is_some()
            || namespaces.is_new(NamespaceKind::User) && others;
        let pid = if intermediate {
            None
        } else {
            let place = joined.iter().position(|join| join.kind == NamespaceKind::Pid);
            place.map(|place| joined.remove(place))
        };
        Ok(Self { cloned, joined, pid, intermediate, beside: None })
    }

    /// Joins all of [`joined`](Self::joined), as the child or as the intermediate for it. The user namespace comes last, so that
    /// namespaces of the host can be joined by the host's privileges; what only the user namespace's privileges open
    /// (an unprivileged caller) is tried again after it.
    pub(crate) fn join(&self) -> Result<(), Failure> {
        if let Some((pidfd, flags)) = &self.beside {
            return enter(pidfd.as_fd(), *flags).map_err(|errno| {
                Failure::os(Step::Namespace, errno).with_message("join the container's namespaces")
            });
        }
        let user = self.joined.iter().find(|join| join.kind == NamespaceKind::User);
        let mut later = Vec::new();
        for join in self.joined.iter().filter(|join| join.kind != NamespaceKind::User) {
            match join.enter() {
                Err(Errno::PERM) if user.is_some() => later.push(join),
                entered => entered.map_err(|errno| join.failure(errno))?,
            }
        }
        for join in user.into_iter().chain(later) {
            join.enter().map_err(|errno| join.failure(errno))?;
        }
        Ok(())
    }
}

impl Join {
    /// Opens the namespace file at `path` and checks that it is one of this kind.
    pub(crate) fn open(kind: NamespaceKind, path: &Path) -> Result<Self, Failure> {
        let failure = |errno| Failure::at(Step::Namespace, errno, path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failure)?;
        match sys::namespace_type(file.as_fd()) {
            Ok(found) if found.unsigned_abs() == kind.flag() => {}
            Ok(_) => {
                return Err(
                    failure(Errno::INVAL).with_message(format!("is not a {} namespace", kind.proc_name()))
                );
            }
            Err(_) => return Err(failure(Errno::INVAL).with_message("is not a namespace")),
        }
        Ok(Self { kind, file, path: path.to_string_lossy().into_owned() })
    }

    fn enter(&self) -> Result<(), Errno> {
        enter(self.file.as_fd(), self.kind.flag())
    }

    fn failure(&self, errno: Errno) -> Failure {
        Failure::at(Step::Namespace, errno, &self.path)
            .with_message(format!("join the {} namespace", self.kind.proc_name()))
    }
}

/// setns(2): `target` is a namespace file, or a pidfd whose process's namespaces of all kinds in `flags` are joined at once.
pub(crate) fn enter(target: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    move_into_thread_name_spaces(target, ThreadNameSpaceType::from_bits_retain(flags))
}

/// In a user namespace whose maps are written: becomes its root, so that what is made belongs to it. A namespace that maps no root
/// keeps us as who we are, with all capabilities in it all the same.
pub(crate) fn become_root() -> Result<(), Failure> {
    let failed =
        |errno| Failure::os(Step::UserMapping, errno).with_message("become root of the user namespace");
    let tolerate = |result: Result<(), Errno>| match result {
        Err(Errno::INVAL) | Ok(()) => Ok(()),
        Err(errno) => Err(failed(errno)),
    };
    tolerate(set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))?;
    tolerate(set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
}

/// For as long as this lives, children of this process are born in another PID namespace.
///
/// Restored at once after the clone3: making any further namespace in between would be EINVAL, and so would every
/// later child of the engine be in the wrong place.
#[derive(Debug)]
pub(crate) struct BornInside {
    own: OwnedFd,
}

impl BornInside {
    /// Enters the PID namespace of `target` (a namespace file or a pidfd) for children.
    pub(crate) fn enter(target: BorrowedFd<'_>) -> Result<Self, Errno> {
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        enter(target, NamespaceKind::Pid.flag())?;
        Ok(Self { own })
    }
}

impl Drop for BornInside {
    fn drop(&mut self) {
        // Going back to one's own active PID namespace needs no privilege that entering another did not need.
        if let Err(errno) = enter(self.own.as_fd(), NamespaceKind::Pid.flag()) {
            tracing::error!(%errno, "children of this process stay in a container's PID namespace");
        }
    }
}

/// Every kind, as a mask for [`enter`] with a pidfd.
pub(crate) const EVERY_KIND: [NamespaceKind; 8] = [
    NamespaceKind::User,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Network,
    NamespaceKind::Pid,
    NamespaceKind::Cgroup,
    NamespaceKind::Time,
    NamespaceKind::Mount,
];

/// The kinds in which process `pid` differs from the caller, as flags. For callers that may not simply join all: joining a
/// namespace one is in already takes privileges over it.
pub(crate) fn differing(pid: i32) -> Result<u32, Errno> {
    let mut flags = 0;
    for kind in EVERY_KIND {
        let name = kind.proc_name();
        let theirs = rustix::fs::stat(format!("/proc/{pid}/ns/{name}"))?;
        let ours = rustix::fs::stat(format!("/proc/self/ns/{name}"))?;
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) {
            flags |= kind.flag();
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intermediate_is_used_only_where_a_user_namespace_asks_for_it() {
        let own = |kind: NamespaceKind| (kind, Path::new("/proc/self/ns").join(kind.proc_name()));
        let plain = Namespaces {
            new: vec![NamespaceKind::Mount, NamespaceKind::Cgroup],
            join: vec![own(NamespaceKind::Network), own(NamespaceKind::Pid)],
            ..Namespaces::default()
        };
        let route = Route::open(&plain).unwrap();
        assert!(!route.intermediate);
        assert_eq!(route.cloned, u64::from(NamespaceKind::Mount.flag()));
        assert_eq!(route.pid.unwrap().kind, NamespaceKind::Pid);
        assert_eq!(route.joined.len(), 1);

        let mapped =
            Namespaces { new: vec![NamespaceKind::User, NamespaceKind::Pid], ..Namespaces::default() };
        assert!(!Route::open(&mapped).unwrap().intermediate);
        let mixed = Namespaces { join: vec![own(NamespaceKind::Network)], ..mapped };
        assert!(Route::open(&mixed).unwrap().intermediate);
        let inside = Namespaces { join: vec![own(NamespaceKind::User)], ..Namespaces::default() };
        assert!(Route::open(&inside).unwrap().intermediate);
    }

    #[test]
    fn a_path_that_is_no_namespace_is_refused_by_name() {
        let failure = Join::open(NamespaceKind::Network, Path::new("/proc/self/ns/uts")).unwrap_err();
        assert!(failure.to_string().contains("/proc/self/ns/uts: is not a net namespace"), "{failure}");
        assert!(Join::open(NamespaceKind::Network, Path::new("/dev/null")).is_err());
    }
}
