//! The container's root filesystem, from the host's tree to `/` (pivot_root(2), mount_namespaces(7)).
//!
//! Runs in init, in its new mount namespace, in this order:
//!
//! | step | why here |
//! |---|---|
//! | [`Root::prepare`] | first: nothing mounted later may propagate to the host |
//! | [`Root::mount_all`] | while the host's tree is still there to bind from |
//! | [`Root::make_devices`] | once /dev is mounted |
//! | [`Root::console`] | once the container's devpts is mounted; needs the host's /proc |
//! | [`Root::pivot`] | when nothing of the host's tree is needed any more |
//! | [`finish`] | last: it takes away what the steps before needed, by the paths that the container sees |
//!
//! Architecture invariant: a path is looked up once. What comes after goes by descriptor, and what the image names is
//! only looked up below the root.

mod console;
mod devices;
mod guard;
mod pivot;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use guard::finish;

use crate::handshake::End;
use crate::mounts::{self, Place, Sources};
use crate::plan::{MountSource, NamespaceKind, Plan, Propagation, PropagationKind};
use crate::sys::{self, Attributes};
use crate::{Failure, Step};

/// The container's root, before it is `/`.
#[derive(Debug)]
pub(crate) struct Root {
    /// The root of the mount that becomes `/`.
    dir: OwnedFd,
    /// Bind sources that the engine opened; see [`Root::with_sources`].
    sources: Sources,
    /// Mounts that become read-only when everything in them is in place, with their container paths.
    late: RefCell<Vec<(OwnedFd, PathBuf)>>,
}

/// What init is surrounded by, as far as mounting depends on it.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The container's cgroup.
    pub(crate) cgroup: &'a crate::cgroup::Cgroup,
    /// Init is in a user namespace that is not the host's: no device nodes, and some attributes of the host's mounts are locked.
    pub(crate) user_namespace: bool,
    /// Init is in a cgroup namespace whose root is its cgroup.
    pub(crate) cgroup_namespace: bool,
    /// The engine, as far as init can ask it for what needs the host's privileges.
    pub(crate) link: Option<&'a End>,
}

impl Root {
    /// Cuts the mount namespace off from the host's as the plan says, and puts the root in place: the detached mount on the plan's path, or a
    /// clone of what is there on itself.
    ///
    /// A container without a mount namespace mounts in the host's, as with runc, and what it mounts stays there when it is gone: only
    /// who made the root knows who else uses it. All of it is below a mount of the root on itself, which is private; the propagation of
    /// nothing else of the host's is touched. Without anything to mount there is not even that.
    pub(crate) fn prepare(plan: &Plan, detached: Option<BorrowedFd<'_>>) -> Result<Self, Failure> {
        let path = &plan.rootfs.path;
        let failed = |errno| Failure::at(Step::Rootfs, errno, path);
        let own = plan.namespaces.contains(NamespaceKind::Mount);
        if !own && plan.mounts.is_empty() && !plan.rootfs.readonly {
            return Ok(Self::at(open_directory(path).map_err(failed)?));
        }
        let asked = plan.rootfs.propagation.filter(|_| own);
        if own {
            cut_off(asked)
                .map_err(|errno| Failure::at(Step::Rootfs, errno, "/").with_message("propagation"))?;
        }
        let point = match open_directory(path) {
            // Only the host's root may walk there. A mount on `/` hides nothing before it is entered: look-ups begin below it.
            Err(Errno::ACCESS) if detached.is_some() => open_directory(Path::new("/")),
            opened => opened,
        };
        let point = point.map_err(failed)?;
        if asked.is_some_and(|asked| asked.kind == PropagationKind::Shared) {
            make_parent_private(point.as_fd()).map_err(failed)?;
        }
        let dir = match detached {
            Some(mount) => {
                let dir = mount.try_clone_to_owned();
                dir.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?
            }
            None => mounts::clone_fd(point.as_fd(), true).map_err(failed)?,
        };
        let private = Attributes { propagation: libc::MS_PRIVATE, recursive: !own, ..Attributes::default() };
        if asked.is_none_or(|asked| asked.kind != PropagationKind::Slave) {
            sys::mount_setattr(dir.as_fd(), &private).map_err(failed)?;
        }
        mounts::move_to(dir.as_fd(), point.as_fd()).map_err(failed)?;
        if !own {
            // Below a shared mount it has just become shared itself.
            sys::mount_setattr(dir.as_fd(), &private).map_err(failed)?;
        }
        Ok(Self::at(dir))
    }

    fn at(dir: OwnedFd) -> Self {
        Self { dir, sources: Sources::default(), late: RefCell::default() }
    }

    /// Takes bind mounts from what the engine opened for them where it did; see [`Sources::open`].
    #[must_use]
    pub(crate) fn with_sources(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    /// The root's own directory.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The plan's mounts, in order.
    pub(crate) fn mount_all(&self, plan: &Plan, around: &Surroundings<'_>) -> Result<(), Failure> {
        if plan.mounts.is_empty() {
            return Ok(());
        }
        let _umask = Umask::cleared();
        let place = Place { root: self.dir(), plan, around };
        for (index, mount) in plan.mounts.iter().enumerate() {
            if matches!(mount.source, MountSource::Remount { .. }) {
                // Whether it is to be read-only is said anew.
                self.late.borrow_mut().retain(|(_, path)| *path != mount.destination);
            }
            if let Some(fd) = mounts::mount(&place, (index, mount), self.sources.of(index))? {
                self.late.borrow_mut().push((fd, mount.destination.clone()));
            }
        }
        Ok(())
    }

    /// Whether /dev is a host directory, with which nothing is to be done but what its owner did.
    fn foreign_dev(plan: &Plan) -> bool {
        plan.mounts.iter().any(|mount| {
            matches!(mount.source, MountSource::Bind { .. }) && mount.destination == Path::new("/dev")
        })
    }
}

/// Sets the propagation of the whole tree, the default being that host mounts still arrive and none leave.
fn cut_off(asked: Option<Propagation>) -> Result<(), Errno> {
    let change = match asked {
        // Nothing can be cloned from an unbindable mount; it becomes so at the end, see `finish`.
        None | Some(Propagation { kind: PropagationKind::Unbindable, .. }) => {
            Propagation { kind: PropagationKind::Slave, recursive: true }
        }
        Some(asked) => asked,
    };
    let root = open_directory(Path::new("/"))?;
    mounts::propagate(root.as_fd(), &[change])
}

/// The mount that `point` is in becomes private, so that what is mounted there reaches nobody. Which one it is shows by trying: only
/// the root of a mount can be changed.
fn make_parent_private(point: BorrowedFd<'_>) -> Result<(), Errno> {
    let private = Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() };
    let mut at = point.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    loop {
        match sys::mount_setattr(at.as_fd(), &private) {
            Err(Errno::INVAL) => {}
            other => return other,
        }
        let above = rustix::fs::openat(&at, c"..", DIRECTORY, Mode::empty())?;
        let (here, there) = (rustix::fs::fstat(&at)?, rustix::fs::fstat(&above)?);
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) {
            return Err(Errno::INVAL);
        }
        at = above;
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())
}

/// The file creation mask out of the way, for as long as this lives.
struct Umask(Mode);

impl Umask {
    fn cleared() -> Self {
        Self(rustix::process::umask(Mode::empty()))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}
