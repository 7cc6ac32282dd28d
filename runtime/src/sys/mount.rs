//! mount_setattr(2), which rustix does not have.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

/// What [`mount_setattr`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE` or `MS_UNBINDABLE`; 0: as it is.
    pub(crate) propagation: u64,
    /// Map owners by this user namespace (`MOUNT_ATTR_IDMAP`).
    pub(crate) idmap: Option<BorrowedFd<'a>>,
    /// The mounts below too.
    pub(crate) recursive: bool,
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C, align(8))]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// mount_setattr(2) on the mount whose root `mount` is.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attributes: &Attributes<'_>) -> Result<(), Errno> {
    let mut raw = MountAttr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    if let Some(idmap) = attributes.idmap {
        raw.attr_set |= MOUNT_ATTR_IDMAP;
        raw.userns_fd = u64::from(idmap.as_raw_fd().unsigned_abs());
    }
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant C string, `raw` a valid mount_attr of the size given, and both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}
