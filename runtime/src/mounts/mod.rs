//! The spec's mounts, one at a time, inside a root that is still somewhere below the host's (runtime-spec `config.md#mounts`).
//!
//! Every mount is made detached, finished, and attached last, by descriptor at both ends:
//!
//! ```text
//! source        open_tree(CLONE) | fsopen + fsconfig + fsmount     one look-up on the host, or none
//! attributes    mount_setattr on the detached mount                nobody has seen it without them
//! mount point   openat2(RESOLVE_IN_ROOT), made where missing       one look-up in the root
//! attach        move_mount(source fd, mount point fd)
//! propagation   mount_setattr on the same descriptor
//! ```

mod attributes;
mod bind;
mod cgroup;
mod copy_up;
mod filesystem;
mod idmap;
pub(crate) mod resolve;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;

pub(crate) use attributes::{make_read_only, propagate};
pub(crate) use bind::{Maps, Sources, clone_fd, clone_path};
pub(crate) use cgroup::binds as cgroup_binds;
pub(crate) use filesystem::{New, Refused, make};
pub(crate) use idmap::user_namespace;

use crate::handshake::FromChild;
use crate::plan::options::{attr, superblock};
use crate::plan::{Mount, MountIdmap, MountSource, NamespaceKind, Plan};
use crate::rootfs::Surroundings;
use crate::{Failure, Step};
use resolve::{Kind, Links, Point};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: u64 = 0x9fa0;

/// Files of procfs that may be mounted over: those that lxcfs emulates for containers.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Where and for whom mounts are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The container's root.
    pub(crate) root: BorrowedFd<'a>,
    /// The whole plan.
    pub(crate) plan: &'a Plan,
    /// Its surroundings.
    pub(crate) around: &'a Surroundings<'a>,
}

/// Mounts the plan's mount of this number. `source` is the engine's clone of a bind source, for when only the engine could make it. Returns
/// the mount if it has to become read-only later, once everything in it is in place.
pub(crate) fn mount(
    place: &Place<'_>,
    (index, mount): (usize, &Mount),
    source: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, Failure> {
    if mount.destination == Path::new("/") {
        return Err(refused(mount, "would cover the container's root"));
    }
    match &mount.source {
        MountSource::Bind { path, recursive } => {
            // Its owners can be mapped by the engine only.
            if let (Some(clone), Some(_)) = (source, &mount.idmap) {
                return bind(place, mount, clone).map(|()| None);
            }
            // One's own clone comes first: what is locked in this user namespace stays locked in it.
            let below = path.strip_prefix(&place.plan.rootfs.path);
            let clone = match (bind::clone_source(path, *recursive, &mount.destination), source, below) {
                (Err(failure), Some(clone), _) if failure.errno() == Some(Errno::ACCESS) => {
                    return bind(place, mount, clone).map(|()| None);
                }
                (Err(failure), None, Ok(path)) if failure.errno() == Some(Errno::ACCESS) => {
                    bind::clone_below_root(place.root, path, *recursive, &mount.destination)?
                }
                (clone, ..) => clone?,
            };
            if let Some(map) = &mount.idmap {
                map_owners(place, (index, mount), map, clone.as_fd())?;
            }
            bind(place, mount, clone.as_fd()).map(|()| None)
        }
        MountSource::Cgroup => cgroup::mount(place, mount).map(|()| None),
        MountSource::Remount { options, superblock_flags } => {
            remount(place, mount, options, *superblock_flags).map(|()| None)
        }
        MountSource::Filesystem { fstype, .. } if matches!(fstype.as_str(), "proc" | "sysfs") => {
            kernel_view(place, mount).map(|()| None)
        }
        MountSource::Filesystem { .. } => new_filesystem(place, mount),
    }
}

/// Changes what an earlier mount, or the root's author, has mounted at the destination.
fn remount(
    place: &Place<'_>,
    mount: &Mount,
    options: &[(String, Option<String>)],
    superblock_flags: u64,
) -> Result<(), Failure> {
    let nothing = || refused(mount, "remount: nothing is mounted there");
    let there = handle(place.root, &mount.destination).map_err(failed(mount))?;
    // Neither is a link of the image's the way to change its root, of which others decide.
    if mount_id(there.as_fd()).map_err(failed(mount))? == mount_id(place.root).map_err(failed(mount))? {
        return Err(nothing());
    }
    if !options.is_empty() || superblock_flags != 0 {
        filesystem::reconfigure(there.as_fd(), options, superblock_flags).map_err(|it| tell(mount, it))?;
    }
    attributes::apply_to_clone(there.as_fd(), mount).map_err(|errno| match errno {
        Errno::INVAL => nothing(),
        _ => failed(mount)(errno).with_message("remount"),
    })?;
    propagate(there.as_fd(), &mount.propagation)
        .map_err(|errno| failed(mount)(errno).with_message("propagation"))
}

/// Maps the owners of a clone that is of an earlier mount of this container, or whose container has no user namespace. In a user namespace
/// the engine must do it: it takes privileges over the filesystem.
fn map_owners(
    place: &Place<'_>,
    (index, mount): (usize, &Mount),
    map: &MountIdmap,
    clone: BorrowedFd<'_>,
) -> Result<(), Failure> {
    match place.around.link.filter(|_| place.around.user_namespace) {
        Some(engine) => engine.ask_about(&FromChild::MapOwners { mount: index }, &[clone]).map(drop),
        None => bind::map_owners(clone, map, place.plan, &mut Maps::default(), &mount.destination),
    }
}

/// A failure of `mount`.
fn failed(mount: &Mount) -> impl Fn(Errno) -> Failure {
    |errno| Failure::at(Step::Mount, errno, &mount.destination)
}

/// A refusal of `mount` by us.
fn refused(mount: &Mount, message: impl Into<String>) -> Failure {
    Failure::at(Step::Mount, Errno::INVAL, &mount.destination).with_message(message)
}

fn bind(place: &Place<'_>, mount: &Mount, clone: BorrowedFd<'_>) -> Result<(), Failure> {
    attributes::apply_to_clone(clone, mount).map_err(failed(mount))?;
    let kind = if is_directory(clone) { Kind::Directory } else { Kind::File };
    let point = mount_point(place, mount, kind)?;
    guard_proc(mount, &point, Some(clone))?;
    attach(mount, clone, &point)
}

/// A proc or sysfs: mounted on the very directory the path names, because much that keeps a container inside depends on `/proc`
/// being the kernel's own.
fn kernel_view(place: &Place<'_>, mount: &Mount) -> Result<(), Failure> {
    let MountSource::Filesystem { fstype, source, options, superblock_flags } = &mount.source else {
        return Ok(());
    };
    let ordinary = || refused(mount, format!("filesystem {fstype:?} must be mounted on ordinary directory"));
    let point = match resolve::point(place.root, &mount.destination, Kind::Directory, Links::Refuse) {
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(ordinary()),
        other => other.map_err(failed(mount))?,
    };
    if !is_directory(point.fd.as_fd()) {
        return Err(ordinary());
    }
    guard_proc(mount, &point, None)?;
    let new = New {
        fstype,
        source: source.as_deref(),
        options,
        superblock_flags: superblock_of_view(*superblock_flags),
        attributes: mount.attr_set,
        ..New::default()
    };
    let fd = make_or_bind(place, mount, &new)?;
    attach(mount, fd.as_fd(), &point)
}

/// Everyone who mounts the same sysfs or procfs instance shares its superblock: read-only is for the mount alone.
fn superblock_of_view(flags: u64) -> u64 {
    flags & !superblock::RDONLY
}

/// Makes a filesystem of the kernel's; where this user namespace may not, because the namespace it shows is the host's, binds the
/// host's own view, which is the same one.
fn make_or_bind(place: &Place<'_>, mount: &Mount, new: &New<'_>) -> Result<OwnedFd, Failure> {
    let refusal = match make(new) {
        Ok(fd) => return Ok(fd),
        Err(refusal) => refusal,
    };
    let host = match new.fstype {
        "sysfs" => Some(("/sys", NamespaceKind::Network)),
        "proc" => Some(("/proc", NamespaceKind::Pid)),
        "mqueue" => Some(("/dev/mqueue", NamespaceKind::Ipc)),
        _ => None,
    };
    match host {
        Some((path, kind))
            if refusal.errno == Errno::PERM
                && place.around.user_namespace
                && !place.plan.namespaces.contains(kind) =>
        {
            let clone = clone_path(Path::new(path), true).map_err(failed(mount))?;
            attributes::apply_to_clone(clone.as_fd(), mount).map_err(failed(mount))?;
            Ok(clone)
        }
        _ => Err(tell(mount, refusal)),
    }
}

/// A refused filesystem as the failure of `mount`.
fn tell(mount: &Mount, refusal: Refused) -> Failure {
    let failure = failed(mount)(refusal.errno);
    match refusal.message {
        Some(message) => failure.with_message(message),
        None => failure,
    }
}

fn new_filesystem(place: &Place<'_>, mount: &Mount) -> Result<Option<OwnedFd>, Failure> {
    let MountSource::Filesystem { fstype, source, options, superblock_flags } = &mount.source else {
        return Ok(None);
    };
    let point = mount_point(place, mount, Kind::Directory)?;
    guard_proc(mount, &point, None)?;
    let tmpfs = fstype == "tmpfs";
    let mut new = New {
        fstype,
        source: source.as_deref(),
        options,
        superblock_flags: *superblock_flags,
        attributes: mount.attr_set,
        label: place.plan.mount_label.as_deref().filter(|_| fstype != "mqueue"),
        mode: None,
    };
    if tmpfs && point.existed {
        let stat = fstat(&point.fd).map_err(failed(mount))?;
        new.mode = Some(stat.st_mode & 0o7777);
    }
    if fstype == "mqueue" {
        new.superblock_flags = superblock_of_view(new.superblock_flags);
    }
    // Mount points and device nodes are made in these, so read-only has to wait.
    let later = (tmpfs || mount.destination == Path::new("/dev")) && mount.attr_set & attr::RDONLY != 0;
    if later {
        new.superblock_flags &= !superblock::RDONLY;
        new.attributes &= !attr::RDONLY;
    }
    let fd = make_or_bind(place, mount, &new)?;
    if mount.tmpcopyup && point.existed {
        copy_up::copy_tree(point.fd.as_fd(), fd.as_fd())
            .map_err(|errno| failed(mount)(errno).with_message("tmpcopyup"))?;
    }
    attach(mount, fd.as_fd(), &point)?;
    if let ("mqueue", Some(label)) = (fstype.as_str(), &place.plan.mount_label) {
        set_label(fd.as_fd(), label).map_err(failed(mount))?;
    }
    Ok(later.then_some(fd))
}

/// The SELinux label of a mount's root, for a filesystem that takes none when it is mounted.
fn set_label(fd: BorrowedFd<'_>, label: &str) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::setxattr(path, "security.selinux", label.as_bytes(), rustix::fs::XattrFlags::empty())
}

fn mount_point(place: &Place<'_>, mount: &Mount, kind: Kind) -> Result<Point, Failure> {
    resolve::point(place.root, &mount.destination, kind, Links::Follow)
        .map_err(|errno| failed(mount)(errno).with_message("mount point"))
}

/// Nothing but a procfs comes over `/proc`, and nothing but single well-known files into it: what is written there
/// for the container must reach the kernel.
fn guard_proc(mount: &Mount, point: &Point, clone: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let is_proc = |fd| fstatfs(fd).map(|fs| u64::try_from(fs.f_type) == Ok(PROC_MAGIC));
    if mount.destination == Path::new("/proc") {
        let procfs = match (&mount.source, clone) {
            (MountSource::Filesystem { fstype, .. }, _) => fstype == "proc",
            (_, Some(clone)) => is_proc(clone).map_err(failed(mount))?,
            _ => false,
        };
        return if procfs {
            Ok(())
        } else {
            Err(refused(mount, "cannot be mounted because it is not of type proc"))
        };
    }
    if PROC_FILES.iter().any(|file| mount.destination == Path::new(file)) {
        return Ok(());
    }
    let inside =
        mount.destination.starts_with("/proc") || is_proc(point.fd.as_fd()).map_err(failed(mount))?;
    if inside { Err(refused(mount, "cannot be mounted because it is inside /proc")) } else { Ok(()) }
}

/// Attaches a finished mount, and then sets what only an attached one shows.
fn attach(mount: &Mount, fd: BorrowedFd<'_>, point: &Point) -> Result<(), Failure> {
    move_to(fd, point.fd.as_fd()).map_err(|errno| {
        match (is_directory(fd), is_directory(point.fd.as_fd())) {
            // The kernel says EINVAL to this; ENOTDIR is what mount(2) says.
            (true, false) => {
                failed(mount)(Errno::NOTDIR).with_message("a directory cannot be mounted on a file")
            }
            (false, true) => {
                failed(mount)(Errno::NOTDIR).with_message("a file cannot be mounted on a directory")
            }
            _ => failed(mount)(errno),
        }
    })?;
    if !matches!(mount.source, MountSource::Bind { .. }) {
        attributes::apply_recursive(fd, mount).map_err(failed(mount))?;
    }
    propagate(fd, &mount.propagation).map_err(|errno| failed(mount)(errno).with_message("propagation"))
}

/// The number of the mount that an open file is in.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map(|statx| statx.stx_mnt_id)
}

fn is_directory(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// move_mount(2) of the mount whose root `fd` is onto `point`, whatever its kind.
pub(crate) fn move_to(fd: BorrowedFd<'_>, point: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(fd, c"", point, c"", flags)
}

/// A handle on an existing path in `root`.
pub(crate) fn handle(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    resolve::open(root, path, OFlags::PATH, Links::Follow)
}
