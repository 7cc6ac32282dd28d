//! The container's root becomes `/`, and the host's tree is gone.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::{Root, open_directory};
use crate::mounts::{self, New};
use crate::plan::{NamespaceKind, Plan, Propagation, PropagationKind};
use crate::{Failure, Step};

impl Root {
    /// Makes the root `/` and the working directory. Mounts that were left writable for the steps before become read-only first.
    pub(crate) fn pivot(self, plan: &Plan) -> Result<(), Failure> {
        for (mount, path) in self.late.borrow().iter() {
            mounts::make_read_only(mount.as_fd(), false)
                .map_err(|errno| Failure::at(Step::Mount, errno, path).with_message("read-only"))?;
        }
        let entered = if !plan.namespaces.contains(NamespaceKind::Mount) {
            fchdir(&self.dir).and_then(|()| chroot(c".")).and_then(|()| chdir(c"/"))
        } else if plan.rootfs.no_pivot {
            move_root(self.dir(), &plan.rootfs.path)
        } else {
            swap_roots(self.dir())
        };
        entered.map_err(|errno| Failure::at(Step::PivotRoot, errno, &plan.rootfs.path))
    }
}

/// pivot_root(2) without a directory for the old root: it ends up mounted over the new one, and is unmounted from there.
fn swap_roots(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let old = open_directory(Path::new("/"))?;
    fchdir(root)?;
    pivot_root(c".", c".")?;
    // Where the tree is shared with the host (rootfsPropagation), unmounting must not reach it.
    mounts::propagate(old.as_fd(), &[SLAVE])?;
    fchdir(&old)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")
}

const SLAVE: Propagation = Propagation { kind: PropagationKind::Slave, recursive: true };

/// For a host whose root cannot be pivoted (an initramfs): the root is moved over `/`. The host's tree stays mounted below, so its complete
/// procfs and sysfs are taken away: they would let the container mount new ones without what masks them.
fn move_root(root: BorrowedFd<'_>, rootfs: &Path) -> Result<(), Errno> {
    let host = open_directory(Path::new("/"))?;
    mounts::propagate(host.as_fd(), &[SLAVE])?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    for point in complete_views(&mountinfo, rootfs) {
        match rustix::mount::unmount(&point, UnmountFlags::DETACH) {
            // Locked into a user namespace's tree: covered instead.
            Err(Errno::INVAL | Errno::PERM) => cover(&point)?,
            // It was below another one.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    fchdir(root)?;
    mounts::move_to(root, host.as_fd())?;
    chroot(c".")?;
    chdir(c"/")
}

fn cover(point: &str) -> Result<(), Errno> {
    let empty = mounts::make(&New { fstype: "tmpfs", ..New::default() }).map_err(|refusal| refusal.errno)?;
    let point = open_directory(Path::new(point))?;
    mounts::move_to(empty.as_fd(), point.as_fd())
}

/// The mount points outside of `rootfs` of whole procfs and sysfs mounts, from mountinfo (proc_pid_mountinfo(5)).
fn complete_views(mountinfo: &str, rootfs: &Path) -> Vec<String> {
    let view = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(3);
        let (root, point) = (head.next()?, head.next()?);
        let whole = root == "/" && matches!(tail.split(' ').next()?, "proc" | "sysfs");
        (whole && !Path::new(point).starts_with(rootfs)).then(|| point.replace("\\040", " "))
    };
    mountinfo.lines().filter_map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_views_outside_of_the_root_are_found() {
        let mountinfo = "\
22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
23 27 0:21 / /proc rw shared:12 - proc proc rw
24 27 0:21 /sys /mnt/x rw - proc proc rw
90 27 0:99 / /run/c/rootfs/proc rw - proc proc rw
25 27 0:5 / /dev rw - devtmpfs udev rw
";
        assert_eq!(complete_views(mountinfo, Path::new("/run/c/rootfs")), ["/sys", "/proc"]);
    }
}
