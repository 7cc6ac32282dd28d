//! A procfs that nobody else can redirect.
//!
//! Labels, sysctls and the OOM score are set by writes below /proc. Whoever can mount over a part of /proc can turn such a write
//! into one of another file: a label that is never set, a sysctl of the host's (CVE-2025-52881). So the writes go through a
//! mount that is in no mount namespace, on which nothing can be mounted; and each file is opened beneath it without crossing a
//! mount or following a magic link, and proven to be procfs's before a byte is written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::{Failure, Step};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: u64 = 0x9fa0;
/// `PROC_ROOT_INO` of linux/proc_ns.h.
const PROC_ROOT_INODE: u64 = 1;

/// The root of a procfs. Its processes are those of the PID namespace of whoever opened it.
#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// The safest that the caller may have: a new mount; or a copy of the one at /proc without what is mounted over parts of it; or,
    /// without the privilege to mount, /proc itself, where writes then refuse what was mounted over.
    pub(crate) fn open() -> Result<Self, Failure> {
        let failure = |errno| Failure::at(Step::Rootfs, errno, "/proc");
        let root = new_mount().or_else(|_| copy_of_proc()).or_else(|_| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open("/proc", flags, Mode::empty())
        });
        let root = root.map_err(failure)?;
        require_procfs(root.as_fd()).map_err(|errno| failure(errno).with_message("is not a procfs"))?;
        let inode = rustix::fs::fstat(&root).map_err(failure)?.st_ino;
        if inode != PROC_ROOT_INODE {
            return Err(failure(Errno::XDEV).with_message("is not the root of a procfs"));
        }
        Ok(Self(root))
    }

    /// Writes `value`, in one write(2), to the file at `path`, such as `sys/net/core/somaxconn` or `self/oom_score_adj`.
    pub(crate) fn write(&self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let file = self.open_file(path, OFlags::WRONLY)?;
        match rustix::io::write(&file, value)? {
            written if written == value.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// Reads the start, up to 4096 bytes, of the file at `path`.
    #[cfg(test)]
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let file = self.open_file(path, OFlags::RDONLY)?;
        let mut start = vec![0; 4096];
        let length = rustix::io::read(&file, &mut start)?;
        start.truncate(length);
        Ok(start)
    }

    fn open_file(&self, path: &str, access: OFlags) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve)?;
        require_procfs(file.as_fd())?;
        Ok(file)
    }
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A mount of its own, attached nowhere. The kernel allows it to who may mount a procfs that reveals no more than the one there is.
fn new_mount() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A copy of the mount at /proc alone, attached nowhere.
fn copy_of_proc() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let copy = rustix::mount::open_tree(CWD, "/proc", flags)?;
    require_procfs(copy.as_fd())?;
    Ok(copy)
}

fn require_procfs(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let fs = rustix::fs::fstatfs(fd)?;
    if u64::try_from(fs.f_type) == Ok(PROC_MAGIC) { Ok(()) } else { Err(Errno::XDEV) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_written_beneath_it() {
        let proc = Procfs::open().unwrap();
        let name = proc.read("thread-self/comm").unwrap();
        proc.write("thread-self/comm", b"renamed").unwrap();
        assert_eq!(proc.read("thread-self/comm").unwrap(), b"renamed\n");
        proc.write("thread-self/comm", &name).unwrap();
    }

    #[test]
    fn nothing_outside_of_it_is_reached() {
        let proc = Procfs::open().unwrap();
        assert_eq!(proc.read("../etc/passwd").unwrap_err(), Errno::XDEV);
        assert_eq!(proc.read("/etc/passwd").unwrap_err(), Errno::XDEV);
        assert_eq!(proc.read("self/root/etc/passwd").unwrap_err(), Errno::LOOP);
        assert_eq!(proc.read("self/exe").unwrap_err(), Errno::LOOP);
        assert_eq!(proc.read("no-such-file").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn what_is_no_procfs_is_refused() {
        let elsewhere = rustix::fs::open("/tmp", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(require_procfs(elsewhere.as_fd()).unwrap_err(), Errno::XDEV);
        let proc = Procfs(elsewhere);
        let name = format!("podwright-procfs-{}", std::process::id());
        std::fs::write(format!("/tmp/{name}"), "").unwrap();
        assert_eq!(proc.write(&name, b"x").unwrap_err(), Errno::XDEV);
        assert_eq!(std::fs::read(format!("/tmp/{name}")).unwrap(), b"");
        std::fs::remove_file(format!("/tmp/{name}")).unwrap();
    }
}
