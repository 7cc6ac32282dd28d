//! What the container may not write or not see: read-only and masked paths (runtime-spec `config-linux.md#masked-paths`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::{Surroundings, open_directory};
use crate::mounts::{self, New};
use crate::plan::options::{attr, superblock};
use crate::plan::{NamespaceKind, Plan, PropagationKind};
use crate::{Failure, Step};

/// After the pivot: `readonlyPaths`, `maskedPaths`, the root's own read-only flag and propagation, in this order: what is masked
/// may lie in what is read-only.
pub(crate) fn finish(plan: &Plan, _around: &Surroundings<'_>) -> Result<(), Failure> {
    let own = plan.namespaces.contains(NamespaceKind::Mount);
    if !own && !plan.rootfs.readonly {
        return Ok(());
    }
    let root = open_directory(Path::new("/")).map_err(|errno| Failure::at(Step::Rootfs, errno, "/"))?;
    let root = root.as_fd();
    for path in &plan.readonly_paths {
        read_only(root, path).map_err(|errno| Failure::at(Step::MaskPath, errno, path))?;
    }
    mask(root, plan)?;
    if plan.rootfs.readonly {
        mounts::make_read_only(root, false)
            .map_err(|errno| Failure::at(Step::Rootfs, errno, "/").with_message("read-only"))?;
    }
    if let Some(asked) = plan.rootfs.propagation.filter(|_| own)
        && matches!(asked.kind, PropagationKind::Shared | PropagationKind::Unbindable)
    {
        mounts::propagate(root, &[asked])
            .map_err(|errno| Failure::at(Step::Rootfs, errno, "/").with_message("propagation"))?;
    }
    Ok(())
}

/// The path as it is, if there is anything.
fn existing(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    match mounts::handle(root, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A read-only clone of the path over itself, with what is mounted below.
fn read_only(root: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    let Some(point) = existing(root, path)? else { return Ok(()) };
    let clone = mounts::clone_fd(point.as_fd(), true)?;
    mounts::make_read_only(clone.as_fd(), true)?;
    mounts::move_to(clone.as_fd(), point.as_fd())
}

fn mask(root: BorrowedFd<'_>, plan: &Plan) -> Result<(), Failure> {
    let mut null = None;
    let mut empty = None;
    for path in &plan.masked_paths {
        let failed = |errno| Failure::at(Step::MaskPath, errno, path);
        let Some(point) = existing(root, path).map_err(failed)? else { continue };
        let stat = fstat(&point).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            mask_directory(point.as_fd(), &mut empty, plan).map_err(failed)?;
        } else {
            let null = match &null {
                Some(null) => null,
                None => null.insert(open_null(root)?),
            };
            let clone = mounts::clone_fd(null.as_fd(), false).map_err(failed)?;
            mounts::move_to(clone.as_fd(), point.as_fd()).map_err(failed)?;
        }
    }
    Ok(())
}

/// The container's /dev/null, proven to be it: a file of the image's author in its place would show what it should hide.
fn open_null(root: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let failed = |errno| Failure::at(Step::MaskPath, errno, "/dev/null");
    let null = mounts::handle(root, Path::new("/dev/null")).map_err(failed)?;
    let stat = fstat(&null).map_err(failed)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if device { Ok(null) } else { Err(failed(Errno::NODEV).with_message("is not the null device")) }
}

/// An empty directory over `point`. One filesystem serves all of them: the first is the mount itself, and, being attached, what
/// the others are cloned from.
fn mask_directory(point: BorrowedFd<'_>, empty: &mut Option<OwnedFd>, plan: &Plan) -> Result<(), Errno> {
    if let Some(first) = empty {
        let clone = mounts::clone_fd(first.as_fd(), false)?;
        return mounts::move_to(clone.as_fd(), point);
    }
    let first = make_empty(plan.mount_label.as_deref())?;
    mounts::move_to(first.as_fd(), point)?;
    *empty = Some(first);
    Ok(())
}

/// An empty tmpfs that can never hold anything.
fn make_empty(label: Option<&str>) -> Result<OwnedFd, Errno> {
    let option = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    let options = [option("nr_blocks", "1"), option("nr_inodes", "1")];
    let new = New {
        fstype: "tmpfs",
        source: Some("tmpfs"),
        options: &options,
        mode: Some(0o755),
        superblock_flags: superblock::RDONLY,
        attributes: attr::RDONLY,
        label,
    };
    mounts::make(&new).map_err(|refusal| refusal.errno)
}
