//! The container's own view of its cgroups (cgroups(7), cgroup_namespaces(7)).
//!
//! | host | with a cgroup namespace | without |
//! |---|---|---|
//! | v2 | a cgroup2 mount, whose root is the container's cgroup | a bind of the container's cgroup directory |
//! | v1, hybrid | a tmpfs with a cgroup mount per hierarchy | a tmpfs with a bind per hierarchy |
//! | either, but the container has no cgroup (rootless) | its own view all the same | an empty read-only tmpfs |
//!
//! Where the kernel refuses the mount (a user namespace without power over the cgroup namespace), the bind takes its place: both show the
//! same. Controllers that share a hierarchy (`cpu,cpuacct`) are found by their own names through links.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::resolve::{Kind, Point};
use super::{
    New, Place, attach, attributes, clone_path, failed, guard_proc, make, make_read_only, mount_point,
    move_to, tell,
};
use crate::Failure;
use crate::cgroup::RecordedDirectory;
use crate::plan::Mount;
use crate::plan::options::attr;

/// What every part of a v1 view has.
const SAFE: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;

pub(super) fn mount(place: &Place<'_>, mount: &Mount) -> Result<(), Failure> {
    let directories = place.around.cgroup.record().directories;
    let point = mount_point(place, mount, Kind::Directory)?;
    guard_proc(mount, &point, None)?;
    let v1: Vec<_> = directories.iter().filter(|directory| !directory.hierarchy.is_empty()).collect();
    if v1.is_empty() {
        let own = directories.first().map(|directory| directory.path.as_path());
        let fd = unified(place, mount, own)?;
        return attach(mount, fd.as_fd(), &point);
    }
    split(place, mount, &point, &v1)
}

fn unified(place: &Place<'_>, mount: &Mount, own: Option<&Path>) -> Result<OwnedFd, Failure> {
    if place.around.cgroup_namespace {
        let new =
            New { fstype: "cgroup2", source: Some("cgroup"), attributes: mount.attr_set, ..New::default() };
        match make(&new) {
            Err(refusal) if !stands_in(refusal.errno) => return Err(tell(mount, refusal)),
            Err(_) => {}
            Ok(fd) => return Ok(fd),
        }
    }
    let Some(own) = own else { return nothing(place, mount) };
    let clone = clone_path(own, true).map_err(failed(mount))?;
    attributes::apply_to_clone(clone.as_fd(), mount).map_err(failed(mount))?;
    Ok(clone)
}

/// A plain user's container may be in no cgroup of its own: then the host's are nothing for it to see.
fn nothing(place: &Place<'_>, mount: &Mount) -> Result<OwnedFd, Failure> {
    let new = New {
        fstype: "tmpfs",
        source: Some("tmpfs"),
        mode: Some(0o755),
        attributes: SAFE | attr::RDONLY | mount.attr_set,
        label: place.plan.mount_label.as_deref(),
        ..New::default()
    };
    make(&new).map_err(|refusal| tell(mount, refusal))
}

/// Whether a bind may stand in for a mount that failed so.
fn stands_in(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::BUSY | Errno::NODEV | Errno::INVAL)
}

fn split(place: &Place<'_>, mount: &Mount, point: &Point, v1: &[&RecordedDirectory]) -> Result<(), Failure> {
    let new = New {
        fstype: "tmpfs",
        source: Some("tmpfs"),
        mode: Some(0o755),
        attributes: SAFE | mount.attr_set & !attr::RDONLY,
        label: place.plan.mount_label.as_deref(),
        ..New::default()
    };
    let top = make(&new).map_err(|refusal| tell(mount, refusal))?;
    // Before Linux 6.15 nothing can be mounted inside a mount that is not attached itself.
    attach(mount, top.as_fd(), point)?;
    for directory in v1 {
        hierarchy(place, mount, &top, directory).map_err(|errno| {
            failed(mount)(errno).with_message(format!("cgroup hierarchy {}", directory.hierarchy))
        })?;
    }
    if mount.attr_set & attr::RDONLY != 0 {
        make_read_only(top.as_fd(), false).map_err(failed(mount))?;
    }
    Ok(())
}

fn hierarchy(
    place: &Place<'_>,
    mount: &Mount,
    top: &OwnedFd,
    directory: &RecordedDirectory,
) -> Result<(), Errno> {
    let name = directory_name(&directory.hierarchy);
    rustix::fs::mkdirat(top, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let point = rustix::fs::openat(top, name, flags, Mode::empty())?;
    let attributes = SAFE | mount.attr_set;
    let own = if place.around.cgroup_namespace { own_root(&directory.hierarchy, attributes) } else { None };
    let fd = if let Some(fd) = own {
        fd
    } else {
        let clone = clone_path(&directory.path, true)?;
        let mount = Mount { attr_set: attributes, ..mount.clone() };
        attributes::apply_to_clone(clone.as_fd(), &mount)?;
        clone
    };
    move_to(fd.as_fd(), point.as_fd())?;
    for alias in aliases(&directory.hierarchy) {
        match rustix::fs::symlinkat(name, top, alias) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The hierarchy as this cgroup namespace sees it; None: the kernel does not allow it.
fn own_root(label: &str, attributes: u64) -> Option<OwnedFd> {
    let options: Vec<_> = label
        .split(',')
        .map(|part| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part.to_owned(), None),
        })
        .collect();
    let new =
        New { fstype: "cgroup", source: Some("cgroup"), options: &options, attributes, ..New::default() };
    make(&new).ok()
}

/// For a container without a cgroup namespace: where in its view, and which cgroup directories are bound there.
pub(crate) fn binds(mount: &Mount, directories: &[RecordedDirectory]) -> Vec<(PathBuf, PathBuf)> {
    let v1 = |directory: &&RecordedDirectory| !directory.hierarchy.is_empty();
    if !directories.iter().any(|directory| v1(&directory)) {
        let own = directories.first().map(|directory| (mount.destination.clone(), directory.path.clone()));
        return own.into_iter().collect();
    }
    let bind = |directory: &RecordedDirectory| {
        (mount.destination.join(directory_name(&directory.hierarchy)), directory.path.clone())
    };
    directories.iter().filter(v1).map(bind).collect()
}

/// `name=systemd` is found at `systemd`, `cpu,cpuacct` by that name.
fn directory_name(label: &str) -> &str {
    label.strip_prefix("name=").unwrap_or(label)
}

/// The single names of controllers that share a hierarchy.
fn aliases(label: &str) -> impl Iterator<Item = &str> {
    label.split(',').filter(move |_| label.contains(',')).map(directory_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_the_names_tools_look_for() {
        assert_eq!(directory_name("name=systemd"), "systemd");
        assert_eq!(directory_name("cpu,cpuacct"), "cpu,cpuacct");
        assert_eq!(aliases("memory").count(), 0);
        assert_eq!(aliases("cpu,cpuacct").collect::<Vec<_>>(), ["cpu", "cpuacct"]);
    }
}
