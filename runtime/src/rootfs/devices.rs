//! What /dev has beside its mounts: device nodes, and links (runtime-spec `config-linux.md#default-devices`, `runtime-linux.md#dev-symbolic-links`).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::{Root, Surroundings, Umask};
use crate::mounts::resolve::{self, Kind, Links};
use crate::mounts::{clone_path, move_to};
use crate::plan::{DeviceKind, DeviceNode, Plan};
use crate::{Failure, Step};

/// Links below /dev: (name, target).
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

impl Root {
    /// Makes the plan's device nodes and the links that belong to /dev. A /dev that is a host directory stays as it is.
    pub(crate) fn make_devices(&self, plan: &Plan, around: &Surroundings<'_>) -> Result<(), Failure> {
        if Self::foreign_dev(plan) {
            return Ok(());
        }
        let _umask = Umask::cleared();
        let dev = Path::new("/dev");
        let dev = resolve::point(self.dir(), dev, Kind::Directory, Links::Follow)
            .map_err(|errno| Failure::at(Step::Device, errno, dev))?
            .fd;
        for device in &plan.devices {
            let failed = |errno| Failure::at(Step::Device, errno, &device.path);
            if device.path == Path::new("/dev/ptmx") {
                continue;
            }
            let elsewhere;
            let (directory, name) = if let Some(name) = in_dev(&device.path) {
                (dev.as_fd(), name)
            } else {
                let (parent, name) = resolve::parent(self.dir(), &device.path).map_err(failed)?;
                elsewhere = parent;
                (elsewhere.as_fd(), name)
            };
            make(directory, name, device, around.user_namespace)?;
        }
        for (name, target) in LINKS {
            match rustix::fs::symlinkat(target, &dev, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failure::at(Step::Device, errno, Path::new("/dev").join(name))),
            }
        }
        link_ptmx(&dev).map_err(|errno| Failure::at(Step::Device, errno, "/dev/ptmx"))
    }
}

/// The name of a device directly below /dev.
fn in_dev(path: &Path) -> Option<&OsStr> {
    (path.parent() == Some(Path::new("/dev"))).then(|| path.file_name()).flatten()
}

fn make(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    device: &DeviceNode,
    user_namespace: bool,
) -> Result<(), Failure> {
    let failed = |errno| Failure::at(Step::Device, errno, &device.path);
    if user_namespace && device.kind != DeviceKind::Fifo {
        return bind(directory, name, device);
    }
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(directory, name, kind(device), Mode::from_raw_mode(device.mode), number) {
        Ok(()) => {}
        Err(Errno::PERM) if device.kind != DeviceKind::Fifo => return bind(directory, name, device),
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if is_device(&there, device) {
                return Ok(());
            }
            return Err(failed(Errno::EXIST).with_message("another file has the device's name"));
        }
        Err(errno) => return Err(failed(errno)),
    }
    if (device.uid, device.gid) != (0, 0) {
        own(directory, name, device).map_err(failed)?;
    }
    Ok(())
}

/// Gives a new node its owner, and its mode again where a set-id bit was lost over it.
fn own(directory: BorrowedFd<'_>, name: &OsStr, device: &DeviceNode) -> Result<(), Errno> {
    let node = rustix::fs::openat(directory, name, HANDLE, Mode::empty())?;
    if !is_device(&rustix::fs::fstat(&node)?, device) {
        return Err(Errno::EXIST);
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(&node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Shows the host's node of the device, by its own path or else by the kernel's name for it: see [`host_node`].
fn bind(directory: BorrowedFd<'_>, name: &OsStr, device: &DeviceNode) -> Result<(), Failure> {
    let failed = |errno| Failure::at(Step::Device, errno, &device.path);
    let host = match (host_node(&device.path, device), kernel_name(device)) {
        (Err(_), Some(path)) => host_node(&path, device),
        (found, _) => found,
    };
    let host = host.map_err(|errno| failed(errno).with_message("the host's node of the device"))?;
    let point = match make_point(directory, name) {
        Err(Errno::EXIST) => rustix::fs::openat(directory, name, HANDLE, Mode::empty()),
        made => made,
    };
    let point = point.map_err(failed)?;
    let there = rustix::fs::fstat(&point).map_err(failed)?;
    if is_device(&there, device) {
        return Ok(());
    }
    if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
        return Err(failed(Errno::EXIST).with_message("another file has the device's name"));
    }
    move_to(host.as_fd(), point.as_fd()).map_err(failed)
}

/// A clone of the host's node at `path`, proven to be the device the plan means.
fn host_node(path: &Path, device: &DeviceNode) -> Result<OwnedFd, Errno> {
    let host = clone_path(path, false)?;
    if is_device(&rustix::fs::fstat(&host)?, device) { Ok(host) } else { Err(Errno::NXIO) }
}

/// Where the host's /dev has the device, whose path in the container may be another: sysfs tells it (sysfs(5), /sys/dev). None: the
/// kernel has no name for it.
fn kernel_name(device: &DeviceNode) -> Option<PathBuf> {
    let kind = if device.kind == DeviceKind::Block { "block" } else { "char" };
    let facts = format!("/sys/dev/{kind}/{}:{}/uevent", device.major, device.minor);
    let facts = std::fs::read_to_string(facts).ok()?;
    let name = facts.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

fn make_point(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o000))
}

fn kind(device: &DeviceNode) -> FileType {
    match device.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    }
}

fn is_device(stat: &Stat, device: &DeviceNode) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind(device)
        && (device.kind == DeviceKind::Fifo
            || stat.st_rdev == rustix::fs::makedev(device.major, device.minor))
}

/// /dev/ptmx is the container's own devpts's, whatever the image has there.
fn link_ptmx(dev: &OwnedFd) -> Result<(), Errno> {
    match rustix::fs::symlinkat("pts/ptmx", dev, "ptmx") {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    rustix::fs::unlinkat(dev, "ptmx", AtFlags::empty())?;
    rustix::fs::symlinkat("pts/ptmx", dev, "ptmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_children_are_made_in_dev_itself() {
        assert_eq!(in_dev(Path::new("/dev/null")), Some(OsStr::new("null")));
        assert_eq!(in_dev(Path::new("/dev/net/tun")), None);
        assert_eq!(in_dev(Path::new("/other")), None);
    }

    #[test]
    fn a_device_is_its_type_and_number() {
        let null = DeviceNode {
            path: "/dev/null".into(),
            kind: DeviceKind::Char,
            major: 1,
            minor: 3,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        let stat = rustix::fs::stat("/dev/null").unwrap();
        assert!(is_device(&stat, &null));
        assert!(!is_device(&stat, &DeviceNode { minor: 5, ..null.clone() }));
        assert!(!is_device(&rustix::fs::stat("/").unwrap(), &null));
        assert_eq!(kernel_name(&null).as_deref(), Some(Path::new("/dev/null")));
        assert!(host_node(Path::new("/dev/null"), &null).is_ok());
        assert_eq!(host_node(Path::new("/dev/zero"), &null).unwrap_err(), Errno::NXIO);
    }
}
