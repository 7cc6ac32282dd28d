//! Directory trees that show other owners than they have on disk (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
//!
//! The root of a container in a user namespace: an overlay cannot be idmapped, so its lower layer is, before the overlay is
//! made. On disk root's files stay root's; through the clone they are the user namespace's root's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::mounts::{clone_fd, user_namespace};
use crate::plan::IdMap;
use crate::sys::{self, Attributes};
use crate::{Failure, Step};

/// A detached clone of `tree`, without what is mounted below it, whose owners are mapped as `user_namespace` maps them.
///
/// # Errors
/// `EINVAL`: the tree's filesystem does not support idmapped mounts; the failure says so. `EPERM`: the user namespace is the host's.
pub fn clone_mapped(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let failed = |errno| Failure::os(Step::Rootfs, errno);
    let clone = clone_fd(tree, false).map_err(failed)?;
    let attributes = Attributes { idmap: Some(user_namespace), ..Attributes::default() };
    sys::mount_setattr(clone.as_fd(), &attributes).map_err(|errno| match errno {
        Errno::INVAL => failed(errno).with_message("its filesystem does not support idmapped mounts"),
        _ => failed(errno).with_message("idmap"),
    })?;
    Ok(clone)
}

/// Tries on the directory `path` what a pod's user namespace needs: to make one, and to map the owners of a tree by it. For a
/// process with one thread.
pub fn try_on(path: &Path) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Failure::at(Step::Rootfs, errno, path))?;
    let map = [IdMap { container_id: 0, host_id: 65_536, length: 65_536 }];
    let namespace = user_namespace(&map, &map).map_err(|errno| Failure::os(Step::UserMapping, errno))?;
    clone_mapped(tree.as_fd(), namespace.as_fd()).map(drop)
}
