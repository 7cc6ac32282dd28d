//! What of a container is not its own, and so is not in the images: bind mounts, and namespaces that it joined.
//!
//! criu wants each such mount named. Dumping, its place in the container is given a name; restoring, that name is given a host path.
//! The name is the place as the spec writes it, so that restoring needs no look into a container that is not there yet:
//!
//! | mount | name in the images | restored from |
//! |---|---|---|
//! | a bind of the spec | its destination | its source |
//! | one that came along with a recursive bind | the same, and the rest of its path | the same |
//! | a cgroup hierarchy bound into a v1 view | destination and hierarchy | the new container's cgroup |
//! | a masked file | `/dev/null` | the host's null device |
//! | a device bound where nodes cannot be made | its path | the host's |

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

use super::rpc::{ExternalMount, InheritFd, JoinNamespace};
use crate::cgroup::Cgroup;
use crate::mounts;
use crate::mounts::resolve::{self, Links};
use crate::plan::{Mount, MountSource, NamespaceKind, Plan};
use crate::{Failure, Step};

/// The name of what hides a masked file.
const NULL: &str = "/dev/null";

/// The mounts of a running container that are not dumped.
pub(super) fn dumped_mounts(plan: &Plan, pid: i32, cgroup: &Cgroup) -> Result<Vec<ExternalMount>, Failure> {
    let path = format!("/proc/{pid}/root");
    let root = open_directory(Path::new(&path)).map_err(|errno| failed(errno, Path::new(&path)))?;
    let table = mountinfo(Path::new(&format!("/proc/{pid}/mountinfo")))?;
    let places: Vec<Option<PathBuf>> = plan
        .mounts
        .iter()
        .map(|mount| match mount.source {
            // It is an earlier mount's place.
            MountSource::Remount { .. } => Ok(None),
            _ => place(root.as_fd(), &mount.destination),
        })
        .collect::<Result<_, _>>()?;
    let mut external = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        match (&mount.source, &places[index]) {
            (MountSource::Bind { recursive, .. }, Some(place)) => {
                let came_along =
                    |below: &&Path| *recursive && owner(&places, &place.join(below)) == Some(index);
                for below in below(&table, place).filter(came_along) {
                    let place = place.join(below);
                    if !is_guarded(plan, &place) {
                        external.push(pair(&place, &mount.destination.join(below))?);
                    }
                }
                external.push(pair(place, &mount.destination)?);
            }
            (MountSource::Cgroup, _) => {
                for (destination, _) in cgroup_binds(plan, mount, cgroup) {
                    if let Some(place) = self::place(root.as_fd(), &destination)? {
                        external.push(pair(&place, &destination)?);
                    }
                }
            }
            _ => {}
        }
    }
    for path in &plan.masked_paths {
        let hidden = match resolve::open(root.as_fd(), path, OFlags::PATH, Links::Follow) {
            Ok(hidden) => hidden,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(failed(errno, path)),
        };
        let kind = fstat(&hidden).map_err(|errno| failed(errno, path))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::Directory {
            external.push(pair(&path_of(&hidden).map_err(|errno| failed(errno, path))?, Path::new(NULL))?);
        }
    }
    for device in bound_devices(plan) {
        external.push(pair(device, device)?);
    }
    Ok(last_of_each(external))
}

/// The mount that `point` belongs to: the one that is nearest above it, and the last of those on one place.
fn owner(places: &[Option<PathBuf>], point: &Path) -> Option<usize> {
    let depth = |place: &Path| point.starts_with(place).then(|| place.components().count());
    let known =
        places.iter().enumerate().filter_map(|(index, place)| Some((depth(place.as_deref()?)?, index)));
    known.max().map(|(_, index)| index)
}

/// Masked and read-only paths are mounts of the container's own.
fn is_guarded(plan: &Plan, point: &Path) -> bool {
    plan.masked_paths.iter().chain(&plan.readonly_paths).any(|path| path == point)
}

/// Where what is not in the images comes from.
pub(super) fn restored_mounts(plan: &Plan, cgroup: &Cgroup) -> Result<Vec<ExternalMount>, Failure> {
    let table = mountinfo(Path::new("/proc/self/mountinfo"))?;
    let mut external = Vec::new();
    for mount in &plan.mounts {
        match &mount.source {
            MountSource::Bind { path, recursive } => {
                if mount.idmap.is_some() {
                    let message = "criu cannot restore an idmapped mount";
                    return Err(Failure::at(Step::Checkpoint, Errno::OPNOTSUPP, &mount.destination)
                        .with_message(message));
                }
                if *recursive {
                    let real = std::fs::canonicalize(path)
                        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO), path))?;
                    for below in below(&table, &real) {
                        external.push(pair(&mount.destination.join(below), &real.join(below))?);
                    }
                }
                external.push(pair(&mount.destination, path)?);
            }
            MountSource::Cgroup => {
                for (destination, source) in cgroup_binds(plan, mount, cgroup) {
                    external.push(pair(&destination, &source)?);
                }
            }
            MountSource::Filesystem { .. } | MountSource::Remount { .. } => {}
        }
    }
    external.push(pair(Path::new(NULL), Path::new(NULL))?);
    for device in bound_devices(plan) {
        external.push(pair(device, device)?);
    }
    Ok(last_of_each(external))
}

/// Makes the mount points that the root lacks, as creating the container did. Nothing has to be made in filesystems that
/// criu fills; in a bind it is made in the source.
pub(super) fn make_mount_points(plan: &Plan) -> Result<(), Failure> {
    for (index, mount) in plan.mounts.iter().enumerate() {
        let (tree, inside) = match holder(&plan.mounts[..index], &mount.destination) {
            None => (plan.rootfs.path.as_path(), mount.destination.clone()),
            Some(outer) => match (&outer.source, mount.destination.strip_prefix(&outer.destination)) {
                (MountSource::Bind { path, .. }, Ok(inside)) => (path.as_path(), Path::new("/").join(inside)),
                _ => continue,
            },
        };
        let kind = match &mount.source {
            MountSource::Bind { path, .. } if !path.is_dir() => resolve::Kind::File,
            _ => resolve::Kind::Directory,
        };
        let root = open_directory(tree).map_err(|errno| failed(errno, tree))?;
        match resolve::point(root.as_fd(), &inside, kind, Links::Follow) {
            // A read-only source has what it needs, or criu will say what it lacks.
            Ok(_) | Err(Errno::ROFS) => {}
            Err(errno) => return Err(failed(errno, &mount.destination).with_message("mount point")),
        }
    }
    Ok(())
}

/// The last of the mounts so far that `destination` is in. A remount is none, and needs no mount point.
fn holder<'a>(mounts: &'a [Mount], destination: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .rev()
        .filter(|mount| !matches!(mount.source, MountSource::Remount { .. }))
        .find(|mount| destination != mount.destination && destination.starts_with(&mount.destination))
}

/// The cgroup directories that are bound into a view of the cgroups, and where: see [`mounts::cgroup_binds`].
fn cgroup_binds(plan: &Plan, mount: &Mount, cgroup: &Cgroup) -> Vec<(PathBuf, PathBuf)> {
    if plan.namespaces.contains(NamespaceKind::Cgroup) {
        return Vec::new();
    }
    mounts::cgroup_binds(mount, &cgroup.record().directories)
}

/// In a user namespace no node can be made: the host's are bound.
fn bound_devices(plan: &Plan) -> impl Iterator<Item = &Path> {
    let bound = plan.namespaces.contains(NamespaceKind::User);
    plan.devices.iter().filter(move |_| bound).map(|device| device.path.as_path())
}

/// The namespaces of other owners that a container is in, as criu's `--external` names them.
pub(super) fn dumped_namespaces(plan: &Plan, pid: i32) -> Result<Vec<String>, Failure> {
    let mut external = Vec::new();
    for (kind, _) in &plan.namespaces.join {
        if let Some(name) = name_of(*kind) {
            let path = format!("/proc/{pid}/ns/{}", kind.proc_name());
            let stat = rustix::fs::stat(&path).map_err(|errno| Failure::at(Step::Namespace, errno, &path))?;
            external.push(format!("{}[{}]:{name}", kind.proc_name(), stat.st_ino));
        }
    }
    Ok(external)
}

/// How what is restored comes into the namespaces that it joins.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// Open namespaces that criu is given.
    pub(super) open: Vec<OwnedFd>,
    /// What they stand for.
    pub(super) inherit: Vec<InheritFd>,
    /// Those that criu joins by their paths.
    pub(super) join: Vec<JoinNamespace>,
}

/// The namespaces that the plan joins.
pub(super) fn restored_namespaces(plan: &Plan) -> Result<Joined, Failure> {
    let mut joined = Joined::default();
    for (kind, path) in &plan.namespaces.join {
        let failed = |errno| Failure::at(Step::Namespace, errno, path);
        match (kind, name_of(*kind)) {
            (_, Some(name)) => {
                let open = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                let open = open.map_err(|errno| {
                    failed(errno).with_message("a namespace that was joined must exist for restoring")
                })?;
                joined.inherit.push(InheritFd { key: name.to_owned(), fd: open.as_raw_fd() });
                joined.open.push(open);
            }
            (NamespaceKind::Cgroup, _) => {
                return Err(failed(Errno::OPNOTSUPP).with_message("criu cannot join a cgroup namespace"));
            }
            _ => joined
                .join
                .push(JoinNamespace { kind: kind.proc_name().to_owned(), path: text(path)?.to_owned() }),
        }
    }
    Ok(joined)
}

/// The name that stands for a joined namespace in the images, where criu takes one from outside. It is runc's name, so that images can be
/// exchanged.
fn name_of(kind: NamespaceKind) -> Option<&'static str> {
    match kind {
        NamespaceKind::Network => Some("extRootNetNS"),
        NamespaceKind::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// The real place of a destination in the container: links are followed as its mounting did. None: it is not there any more.
fn place(root: BorrowedFd<'_>, destination: &Path) -> Result<Option<PathBuf>, Failure> {
    match resolve::open(root, destination, OFlags::PATH, Links::Follow) {
        Ok(fd) => path_of(&fd).map(Some).map_err(|errno| failed(errno, destination)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(failed(errno, destination)),
    }
}

/// The path of an open file as its own mount namespace has it: the container's root is the root of that.
fn path_of(fd: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The mount points of a mountinfo file (proc_pid_mountinfo(5)).
fn mountinfo(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let text = std::fs::read(path)
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO), path))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount_point).collect())
}

fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
}

/// Space, tab, newline and backslash are three octal digits there.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

/// The paths, relative to `place`, of the mount points below it.
fn below<'a>(table: &'a [PathBuf], place: &Path) -> impl Iterator<Item = &'a Path> {
    table
        .iter()
        .filter_map(move |point| point.strip_prefix(place).ok())
        .filter(|rest| !rest.as_os_str().is_empty())
}

/// A later mount on the same place hides an earlier one; criu knows one name for it.
fn last_of_each(mut external: Vec<ExternalMount>) -> Vec<ExternalMount> {
    let mut seen = std::collections::HashSet::new();
    external.reverse();
    external.retain(|mount| seen.insert(mount.key.clone()));
    external.reverse();
    external
}

fn pair(key: &Path, value: &Path) -> Result<ExternalMount, Failure> {
    let key = text(key)?;
    // criu reads `mnt[KEY]:VALUE`.
    if key.contains(']') {
        return Err(failed(Errno::INVAL, Path::new(key)).with_message("criu takes no ] in a mount's path"));
    }
    Ok(ExternalMount { key: key.to_owned(), value: text(value)?.to_owned() })
}

/// criu's messages are text.
fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| failed(Errno::ILSEQ, path).with_message("is not UTF-8"))
}

fn failed(errno: Errno, path: &Path) -> Failure {
    Failure::at(Step::Checkpoint, errno, path)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are() {
        let line = br"36 35 98:0 /mnt1 /mnt\040a\134b rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line).unwrap(), Path::new(r"/mnt a\b"));
        assert_eq!(mount_point(b""), None);
        assert_eq!(unescape(br"a\04"), br"a\04");
    }

    #[test]
    fn what_is_below_a_place_is_named_relatively() {
        let table = ["/", "/a", "/a/b", "/a/b/c", "/ab"].map(PathBuf::from);
        let below: Vec<_> = below(&table, Path::new("/a")).collect();
        assert_eq!(below, [Path::new("b"), Path::new("b/c")]);
    }

    #[test]
    fn a_mount_point_belongs_to_the_nearest_mount() {
        let places: Vec<_> =
            ["/a", "/a/b", "/c", "/a"].iter().map(|place| Some(PathBuf::from(place))).collect();
        assert_eq!(owner(&places, Path::new("/a/x")), Some(3));
        assert_eq!(owner(&places, Path::new("/a/b/x")), Some(1));
        assert_eq!(owner(&places, Path::new("/d")), None);
    }

    #[test]
    fn one_place_has_one_name() {
        let one = |key: &str, value: &str| ExternalMount { key: key.into(), value: value.into() };
        let kept = last_of_each(vec![one("/a", "1"), one("/b", "2"), one("/a", "3")]);
        assert_eq!(kept, [one("/b", "2"), one("/a", "3")]);
        assert!(pair(Path::new("/a]b"), Path::new("/x")).is_err());
    }
}
