//! The root of one container: an entry's tree as the lower layer of an overlay, with a writable layer of its own
//! (Documentation/filesystems/overlayfs.rst, fsopen(2), fsmount(2)).
//!
//! ```text
//! entry's tree (a handle)  ──lowerdir──┐
//! <container dir>/upper    ──upperdir──┼── fsopen("overlay") ── fsmount ── descriptor of a detached mount
//! <container dir>/work     ──workdir───┘
//! ```
//!
//! The mount is never attached to the host's tree: it travels as a descriptor to init, which moves it into its own mount
//! namespace, and it ends with that namespace. The directories are given as `/proc/self/fd/N`, so no path is used twice
//! and the entry that was resolved is the entry that is mounted. Nothing is ever written to the lower layer: that is what
//! an overlay is; a container whose root is read-only gets one too, so that mount points can be made in it.
//!
//! For a container in a user namespace the tree is a detached clone with mapped owners. Before Linux 6.15 overlayfs takes no layer that is
//! attached nowhere: there a short-lived thread attaches the clone in a mount namespace of its own and makes the overlay from there
//! ([`mount_detached`]). The overlay keeps what it was made of; the thread's namespace goes with the thread.
//!
//! `volatile` (5.10) leaves out every sync of the upper filesystem, which makes unmounting ten times faster; a writable
//! layer is worth nothing after a power loss, because its container is gone. `index`, `metacopy` and `nfs_export` are
//! turned off whatever the kernel's defaults: they would tie the upper layer to inodes of a lower tree that may be switched,
//! and `metacopy` would leave file contents below. A kernel that does not know one of the options mounts without it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags};

use crate::beneath;
use crate::tree;

/// The writable layer below a container's directory.
pub const UPPER: &str = "upper";
/// Overlayfs's own directory beside it.
pub const WORK: &str = "work";

/// How a root is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayOptions<'a> {
    /// Leave out syncs of the writable layer.
    pub volatile: bool,
    /// The SELinux label of all files in it. None: those that they have. Refused where SELinux is off.
    pub context: Option<&'a str>,
}

impl Default for OverlayOptions<'_> {
    /// Volatile: a writable layer does not outlive its container.
    fn default() -> Self {
        Self { volatile: true, context: None }
    }
}

/// A container's root, mounted and attached nowhere. Dropping it, and every copy of the descriptor, unmounts it.
#[derive(Debug)]
pub struct RootMount {
    /// The detached mount; for `move_mount(2)` with an empty path, or as a directory to resolve in.
    pub mount: OwnedFd,
    /// The writable layer.
    pub upper: PathBuf,
}

/// Why a root could not be mounted or removed.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The container's directory is not there.
    #[error("cannot open the container directory {path}")]
    ContainerDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A directory of the writable layer could not be made or given the root's owner and mode.
    #[error("cannot make {path}")]
    Layer {
        /// The directory.
        path: PathBuf,
        /// Why: EEXIST is a layer of an earlier attempt; see [`discard`].
        #[source]
        source: Errno,
    },
    /// The entry's tree cannot be looked at.
    #[error("cannot read the root filesystem directory")]
    Lower(#[source] Errno),
    /// The kernel has no overlayfs, or this process may not use it.
    #[error("cannot open an overlay filesystem (modprobe overlay; it needs CAP_SYS_ADMIN)")]
    Open(#[source] Errno),
    /// The kernel refused the overlay.
    #[error("cannot mount the overlay at {step}{}", log_text(.log))]
    Mount {
        /// The call or option it failed at.
        step: &'static str,
        /// What the kernel logged about it; empty where nothing.
        log: String,
        /// The errno.
        #[source]
        source: Errno,
    },
    /// Something below the container's directory could not be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

fn log_text(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(" ({log})") }
}

/// Makes a fresh writable layer in `container_dir` and mounts it over `lower`. On failure what was made is removed again.
///
/// # Errors
/// [`RootError`]; a layer that is there already is an error too: a container's root is mounted once.
pub fn mount_overlay(
    lower: BorrowedFd<'_>,
    container_dir: &Path,
    options: OverlayOptions<'_>,
) -> Result<RootMount, RootError> {
    let dir = open_container_dir(container_dir)?;
    // Made by us or not at all: a failure below must not take away somebody else's layer.
    let upper = make_layer(dir.as_fd(), container_dir, UPPER)?;
    let mounted = make_layer(dir.as_fd(), container_dir, WORK)
        .and_then(|work| {
            take_after(lower, upper.as_fd(), &container_dir.join(UPPER))?;
            // Not found out by trying: a refused mount leaves its mark in the work directory.
            if kernel() < DETACHED_LAYERS && is_detached(lower) {
                mount_detached(lower, container_dir, options)
            } else {
                mount(lower, upper.as_fd(), work.as_fd(), options)
            }
        })
        .map(|mount| RootMount { mount, upper: container_dir.join(UPPER) });
    if mounted.is_err() {
        // The first failure is the one to tell; what is left is removed with the container.
        let _ = remove(dir.as_fd(), container_dir, UPPER);
        let _ = remove(dir.as_fd(), container_dir, WORK);
    }
    mounted
}

/// Removes a container's writable layer, whatever the container left in it. The mount must be gone. Idempotent.
pub fn discard(container_dir: &Path) -> Result<(), RootError> {
    let dir = match open_container_dir(container_dir) {
        Err(RootError::ContainerDir { source: Errno::NOENT, .. }) => return Ok(()),
        other => other?,
    };
    remove(dir.as_fd(), container_dir, UPPER)?;
    remove(dir.as_fd(), container_dir, WORK)
}

/// Removes the directory `path` and everything below it (a container's or a pod's own directory), surviving whatever a
/// container left there: names of any bytes, any depth, immutable files. Follows no link. Idempotent.
pub fn remove_dir(path: &Path) -> Result<(), RootError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(RootError::Remove { path: path.to_owned(), source: Errno::INVAL });
    };
    let dir = match open_container_dir(parent) {
        Err(RootError::ContainerDir { source: Errno::NOENT, .. }) => return Ok(()),
        other => other?,
    };
    tree::remove(dir.as_fd(), name)
        .map_err(|failure| RootError::Remove { path: path.to_owned(), source: failure.errno })
}

fn open_container_dir(path: &Path) -> Result<OwnedFd, RootError> {
    beneath::open_trusted_dir(path)
        .map_err(|source| RootError::ContainerDir { path: path.to_owned(), source })
}

fn make_layer(dir: BorrowedFd<'_>, container_dir: &Path, name: &str) -> Result<OwnedFd, RootError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::mkdirat(dir, name, Mode::RWXU)
        .and_then(|()| rustix::fs::openat(dir, name, flags, Mode::empty()))
        .map_err(|source| RootError::Layer { path: container_dir.join(name), source })
}

/// The root directory of an overlay is that of its upper layer: owner and mode must be those of the entry's.
fn take_after(lower: BorrowedFd<'_>, upper: BorrowedFd<'_>, path: &Path) -> Result<(), RootError> {
    let stat = rustix::fs::fstat(lower).map_err(RootError::Lower)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(upper, Some(uid), Some(gid))
        // After chown, which would take set-id bits away.
        .and_then(|()| rustix::fs::fchmod(upper, Mode::from_raw_mode(stat.st_mode)))
        .map_err(|source| RootError::Layer { path: path.to_owned(), source })
}

fn mount(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    options: OverlayOptions<'_>,
) -> Result<OwnedFd, RootError> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(RootError::Open)?;
    let failed = |step, source| RootError::Mount { step, log: kernel_log(fs.as_fd()), source };
    let by_fd = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let set = |key: &'static str, value: &str| {
        rustix::mount::fsconfig_set_string(&fs, key, value).map_err(|source| failed(key, source))
    };
    // What /proc/mounts shows as the device; `overlay` is what containers expect to see there.
    set("source", "overlay")?;
    set("lowerdir", &by_fd(lower))?;
    set("upperdir", &by_fd(upper))?;
    set("workdir", &by_fd(work))?;
    for key in ["index", "metacopy", "nfs_export"] {
        optional(rustix::mount::fsconfig_set_string(&fs, key, "off"))
            .map_err(|source| failed(key, source))?;
    }
    if let Some(label) = options.context {
        set("context", label)?;
    }
    if options.volatile {
        optional(rustix::mount::fsconfig_set_flag(&fs, "volatile"))
            .map_err(|source| failed("volatile", source))?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(|source| failed("create", source))?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|source| failed("fsmount", source))
}

/// The kernel from which on a layer need not be attached anywhere: major and minor.
const DETACHED_LAYERS: (u32, u32) = (6, 15);

/// This kernel: major and minor.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether what `lower` shows is attached nowhere: mountinfo has no line of its mount then (proc_pid_mountinfo(5)). On doubt it is
/// not, and the overlay's own failure is told.
fn is_detached(lower: BorrowedFd<'_>) -> bool {
    let flags = AtFlags::EMPTY_PATH;
    let Ok(stat) = rustix::fs::statx(lower, c"", flags, StatxFlags::MNT_ID) else { return false };
    let Ok(mountinfo) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let id = stat.stx_mnt_id.to_string();
    stat.stx_mask & StatxFlags::MNT_ID.bits() != 0
        && !mountinfo.lines().any(|line| line.split(' ').next() == Some(&id))
}

/// As [`mount`], for a lower layer that is attached nowhere on a kernel that cannot have such a one.
fn mount_detached(
    lower: BorrowedFd<'_>,
    container_dir: &Path,
    options: OverlayOptions<'_>,
) -> Result<OwnedFd, RootError> {
    let thread = std::thread::Builder::new().name("idmap".to_owned()).stack_size(256 << 10);
    let failed = |step, source| RootError::Mount { step, log: String::new(), source };
    std::thread::scope(|scope| {
        let thread = thread
            .spawn_scoped(scope, || mount_from_inside(lower, container_dir, options))
            .map_err(|error| failed("thread", Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        thread.join().unwrap_or_else(|_| Err(failed("thread", Errno::IO)))
    })
}

/// In the thread: the lower layer is attached over the container's own directory, whose layers were opened before, and no mount of
/// it leaves this namespace.
fn mount_from_inside(
    lower: BorrowedFd<'_>,
    container_dir: &Path,
    options: OverlayOptions<'_>,
) -> Result<OwnedFd, RootError> {
    let failed = |step| move |source| RootError::Mount { step, log: String::new(), source };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|errno| failed("unshare")(Errno::from_raw_os_error(errno as i32)))?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).map_err(failed("private"))?;
    // Descriptors from outside are of the old namespace's mounts, and overlayfs takes layers of its caller's only.
    let dir = open_container_dir(container_dir)?;
    let layer = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, name, flags, Mode::empty())
            .map_err(|source| RootError::Layer { path: container_dir.join(name), source })
    };
    let (upper, work) = (layer(UPPER)?, layer(WORK)?);
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(lower, c"", &dir, c"", flags).map_err(failed("attach"))?;
    mount(lower, upper.as_fd(), work.as_fd(), options)
}

/// An option this kernel was built without is left out.
fn optional(set: Result<(), Errno>) -> Result<(), Errno> {
    match set {
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// What the kernel logged in the filesystem context: `e overlay: …`, one message per read.
fn kernel_log(fs: BorrowedFd<'_>) -> String {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(fs, &mut buffer) {
        messages.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
        if messages.len() == 16 {
            break;
        }
    }
    messages.join("; ")
}

fn remove(dir: BorrowedFd<'_>, container_dir: &Path, name: &str) -> Result<(), RootError> {
    tree::remove(dir, OsStr::new(name)).map_err(|failure| RootError::Remove {
        path: container_dir.join(OsStr::from_bytes(&failure.path)),
        source: failure.errno,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use rustix::mount::OpenTreeFlags;

    #[test]
    fn a_layer_that_is_attached_nowhere_is_mounted_on_older_kernels_too() {
        let temp = tempfile::tempdir().unwrap();
        let (lower, container) = (temp.path().join("lower"), temp.path().join("container"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::create_dir(&container).unwrap();
        std::fs::write(lower.join("file"), "entry").unwrap();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = match rustix::mount::open_tree(CWD, &lower, flags) {
            Ok(clone) => clone,
            Err(errno) => return println!("skip: no mounts here: {errno}"),
        };
        let attached = rustix::fs::open(&lower, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(is_detached(clone.as_fd()) && !is_detached(attached.as_fd()));

        let dir = open_container_dir(&container).unwrap();
        make_layer(dir.as_fd(), &container, UPPER).unwrap();
        make_layer(dir.as_fd(), &container, WORK).unwrap();
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = mount_detached(clone.as_fd(), &container, OverlayOptions::default()).unwrap();
        drop(clone);
        let read = |name: &str| {
            let file =
                rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            std::io::read_to_string(std::fs::File::from(file)).unwrap()
        };
        assert_eq!(read("file"), "entry");
        rustix::fs::mkdirat(&root, "made", Mode::RWXU).unwrap();
        assert!(container.join(UPPER).join("made").is_dir());
        assert!(!lower.join("made").exists());
        let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here =
            |text: &str| text.lines().filter(|line| line.contains(&*temp.path().to_string_lossy())).count();
        assert_eq!((here(&before), here(&after)), (0, 0), "nothing of it is seen on the host");
    }
}
