//! A mount's attributes and propagation (mount_setattr(2)), by the descriptor of its root.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::plan::options::attr;
use crate::plan::{Mount, Propagation, PropagationKind};
use crate::sys::{self, Attributes};

/// What a bind mount that names any attribute does not keep of its source.
const REPLACED: u64 = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NOSYMFOLLOW;

/// Gives a fresh clone of a host mount the attributes the plan asks for.
///
/// With none named it stays as its source is. With any named it has those and no others, as `mount --bind -o` would have
/// it, access times excepted. In a user namespace some of the source's are locked: they are kept then, and only
/// clearing one by name (`rw`, `suid`, …) is refused, because the result would not be what was asked for.
pub(super) fn apply_to_clone(clone: BorrowedFd<'_>, mount: &Mount) -> Result<(), Errno> {
    if let Some((set, clear)) = replacing(mount) {
        // Symbolic links are the one thing a user namespace does not lock.
        let links = attr::NOSYMFOLLOW & clear;
        let asked =
            Attributes { set: mount.attr_set, clear: mount.attr_clear | links, ..Attributes::default() };
        match sys::mount_setattr(clone, &Attributes { set, clear, ..Attributes::default() }) {
            Err(Errno::PERM) if (set, clear) != (asked.set, asked.clear) => {
                sys::mount_setattr(clone, &asked)?;
            }
            other => other?,
        }
    }
    apply_recursive(clone, mount)
}

/// The attributes for the mounts below too (`rro`, `rnosuid`, …).
pub(super) fn apply_recursive(fd: BorrowedFd<'_>, mount: &Mount) -> Result<(), Errno> {
    if mount.attr_set_recursive | mount.attr_clear_recursive == 0 {
        return Ok(());
    }
    let attributes = Attributes {
        set: mount.attr_set_recursive,
        clear: mount.attr_clear_recursive,
        recursive: true,
        ..Attributes::default()
    };
    sys::mount_setattr(fd, &attributes)
}

/// (set, clear) of a clone; None: nothing was asked for.
fn replacing(mount: &Mount) -> Option<(u64, u64)> {
    if mount.attr_set | mount.attr_clear == 0 {
        return None;
    }
    Some((mount.attr_set, mount.attr_clear | REPLACED & !mount.attr_set))
}

/// Propagation changes, in order.
pub(crate) fn propagate(fd: BorrowedFd<'_>, changes: &[Propagation]) -> Result<(), Errno> {
    for change in changes {
        let attributes = Attributes {
            propagation: flag(change.kind),
            recursive: change.recursive,
            ..Attributes::default()
        };
        sys::mount_setattr(fd, &attributes)?;
    }
    Ok(())
}

/// Makes the mount itself read-only; with `recursive`, those below it too.
pub(crate) fn make_read_only(fd: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    sys::mount_setattr(fd, &Attributes { set: attr::RDONLY, recursive, ..Attributes::default() })
}

fn flag(kind: PropagationKind) -> u64 {
    match kind {
        PropagationKind::Private => libc::MS_PRIVATE,
        PropagationKind::Shared => libc::MS_SHARED,
        PropagationKind::Slave => libc::MS_SLAVE,
        PropagationKind::Unbindable => libc::MS_UNBINDABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::MountSource;

    fn bind(attr_set: u64, attr_clear: u64) -> Mount {
        Mount {
            destination: "/x".into(),
            source: MountSource::Bind { path: "/y".into(), recursive: true },
            attr_set,
            attr_clear,
            attr_set_recursive: 0,
            attr_clear_recursive: 0,
            propagation: Vec::new(),
            tmpcopyup: false,
            idmap: None,
            attr_explicit: false,
        }
    }

    #[test]
    fn a_bind_that_names_nothing_stays_as_its_source() {
        assert_eq!(replacing(&bind(0, 0)), None);
    }

    #[test]
    fn a_bind_that_names_something_has_that_and_nothing_else() {
        assert_eq!(replacing(&bind(attr::RDONLY, 0)), Some((attr::RDONLY, REPLACED & !attr::RDONLY)));
        assert_eq!(replacing(&bind(0, attr::RDONLY)), Some((0, REPLACED)));
        let (set, clear) = replacing(&bind(attr::NOATIME, attr::ATIME)).unwrap();
        assert_eq!((set, clear), (attr::NOATIME, attr::ATIME | REPLACED));
    }
}
