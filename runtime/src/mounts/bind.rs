//! Bind mounts: a detached clone of a host mount (open_tree(2)), finished before it is attached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::idmap;
use crate::plan::{MountIdmap, MountSource, NamespaceKind, Plan, PropagationKind};
use crate::sys::{self, Attributes};
use crate::{Failure, Step};

/// A detached clone of what is at host path `path`, by one look-up.
pub(crate) fn clone_path(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(CWD, path, flags(recursive))
}

/// A detached clone of what an open file of this mount namespace shows.
pub(crate) fn clone_fd(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(fd, c"", flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)
}

fn flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Bind sources that were opened on the host's side, by the plan's mounts; see [`Sources::open`].
#[derive(Debug, Default)]
pub(crate) struct Sources(Vec<Option<OwnedFd>>);

impl Sources {
    /// Clones the sources that an init in a user namespace could not: one whose path only the host's root may walk, and an idmapped one,
    /// whose filesystem belongs to the host's user namespace. Call it in the engine, before the clone3 of
    /// init, which inherits the descriptors (all close-on-exec). Without a user namespace of the container's there
    /// is nothing to do.
    pub(crate) fn open(plan: &Plan, maps: &mut Maps) -> Result<Self, Failure> {
        if !plan.namespaces.contains(NamespaceKind::User) || !plan.namespaces.contains(NamespaceKind::Mount) {
            return Ok(Self::default());
        }
        let mut clones = Vec::with_capacity(plan.mounts.len());
        for mount in &plan.mounts {
            clones.push(match &mount.source {
                // An earlier mount of the container's may cover it, which only init sees; see `clone_below_root`.
                MountSource::Bind { path, .. }
                    if mount.idmap.is_some() && path.starts_with(&plan.rootfs.path) =>
                {
                    None
                }
                MountSource::Bind { path, recursive } => {
                    let failure = |errno| Failure::at(Step::Mount, errno, &mount.destination);
                    let clone = match clone_source(path, *recursive, &mount.destination) {
                        // A plain user's engine may not, or the path is one of an earlier mount's: init can do what can be done.
                        Err(failure) if matches!(failure.errno(), Some(Errno::PERM | Errno::NOENT)) => {
                            clones.push(None);
                            continue;
                        }
                        clone => clone?,
                    };
                    leave_peers(clone.as_fd(), plan).map_err(failure)?;
                    if let Some(map) = &mount.idmap {
                        map_owners(clone.as_fd(), map, plan, maps, &mount.destination)?;
                    }
                    Some(clone)
                }
                _ => None,
            });
        }
        Ok(Self(clones))
    }

    /// The clone for the plan's mount number `index`.
    pub(crate) fn of(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.0.get(index)?.as_ref().map(AsFd::as_fd)
    }
}

/// A clone made in the container's mount namespace would be a slave of the host's; so is this one, unless the container's
/// mounts are to be seen by the host.
fn leave_peers(clone: BorrowedFd<'_>, plan: &Plan) -> Result<(), Errno> {
    if plan.rootfs.propagation.is_some_and(|propagation| propagation.kind == PropagationKind::Shared) {
        return Ok(());
    }
    let propagation = libc::MS_SLAVE;
    sys::mount_setattr(clone, &Attributes { propagation, recursive: true, ..Attributes::default() })
}

/// The clone of a spec's source, whose absence is told by the source's name.
pub(super) fn clone_source(path: &Path, recursive: bool, destination: &Path) -> Result<OwnedFd, Failure> {
    clone_path(path, recursive).map_err(|errno| {
        let message = format!("bind source {}", path.display());
        Failure::at(Step::Mount, errno, destination).with_message(message)
    })
}

/// In init: the clone of a source below the container's root, for when the way there on the host is the host root's only.
pub(super) fn clone_below_root(
    root: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
    destination: &Path,
) -> Result<OwnedFd, Failure> {
    let clone = super::handle(root, path).and_then(|source| clone_fd(source.as_fd(), recursive));
    clone.map_err(|errno| {
        let message = format!("bind source {} of the container's root", path.display());
        Failure::at(Step::Mount, errno, destination).with_message(message)
    })
}

/// The user namespaces that mounts of one container have taken their mappings from. kubelet gives all of a pod's mounts the same.
#[derive(Debug, Default)]
pub(crate) struct Maps(Vec<(MountIdmap, OwnedFd)>);

impl Maps {
    /// In the engine: maps the owners of init's clone for the plan's mount of this number.
    pub(crate) fn map_mount(
        &mut self,
        number: usize,
        clone: BorrowedFd<'_>,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let mount = plan.mounts.get(number);
        match mount.and_then(|mount| mount.idmap.as_ref().map(|map| (map, &mount.destination))) {
            Some((map, destination)) => map_owners(clone, map, plan, self, destination),
            None => Err(Failure::because(Step::Handshake, "a mount that is not idmapped was passed")),
        }
    }

    /// The one for `map`.
    fn namespace(&mut self, map: &MountIdmap, plan: &Plan) -> Result<BorrowedFd<'_>, Errno> {
        let same =
            |(known, _): &(MountIdmap, _)| known.uid_maps == map.uid_maps && known.gid_maps == map.gid_maps;
        let known = self.0.iter().position(same);
        let place = known.unwrap_or(self.0.len());
        if known.is_none() {
            self.0.push((map.clone(), namespace_of(map, plan)?));
        }
        Ok(self.0[place].1.as_fd())
    }
}

/// Maps the owners of a detached clone.
pub(super) fn map_owners(
    clone: BorrowedFd<'_>,
    map: &MountIdmap,
    plan: &Plan,
    maps: &mut Maps,
    destination: &Path,
) -> Result<(), Failure> {
    let namespace = maps.namespace(map, plan).map_err(|errno| {
        Failure::at(Step::Mount, errno, destination).with_message("user namespace of an idmapped mount")
    })?;
    let attributes = Attributes { idmap: Some(namespace), recursive: map.recursive, ..Attributes::default() };
    sys::mount_setattr(clone, &attributes).map_err(|errno| {
        let failure = Failure::at(Step::Mount, errno, destination);
        match errno {
            Errno::INVAL => failure.with_message("the source's filesystem does not support idmapped mounts"),
            _ => failure.with_message("idmap"),
        }
    })
}

fn namespace_of(map: &MountIdmap, plan: &Plan) -> Result<OwnedFd, Errno> {
    let own = map.uid_maps.is_empty() && map.gid_maps.is_empty();
    match plan.namespaces.joined(NamespaceKind::User) {
        // No process has to be made for a mapping that a namespace has already.
        Some(path) if own || idmap::has_maps(path, &map.uid_maps, &map.gid_maps) => {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        }
        // The container's own is not there yet; one with the same maps says the same.
        None if own => idmap::user_namespace(&plan.namespaces.uid_maps, &plan.namespaces.gid_maps),
        _ => idmap::user_namespace(&map.uid_maps, &map.gid_maps),
    }
}
