//! All mounts of the spec in order: kernel filesystems, the pod's own files, the request's mounts.
//!
//! A request that mounts over one of the first two replaces it; one that mounts over /dev replaces everything
//! below /dev too. Binds are ordered by depth, so that none hides another.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::inputs::{CgroupVersion, ContainerInputs};
use super::mounts::{self, Propagation};
use super::namespaces::{Shared, Userns};
use crate::error::Error;

/// The mounts of the spec.
pub(super) fn to_oci(inputs: &ContainerInputs<'_>) -> Result<Vec<Mount>, Error> {
    let requested: Vec<&Path> = inputs.container.mounts.iter().map(|m| m.destination.as_path()).collect();
    let replaced = |mount: &Mount| {
        let destination = mount.destination();
        requested.contains(&destination.as_path())
            || (requested.contains(&Path::new("/dev")) && destination.starts_with("/dev"))
    };

    let mut all: Vec<Mount> = kernel_filesystems(inputs).into_iter().filter(|m| !replaced(m)).collect();
    let mut binds: Vec<Mount> = pod_files(inputs).into_iter().filter(|m| !replaced(m)).collect();
    binds.extend(mounts::to_oci(inputs)?);
    binds.sort_by_key(|mount| mount.destination().components().count());
    all.append(&mut binds);
    Ok(all)
}

/// `rootfsPropagation`: the root has to propagate wherever a mount in it does. None: private.
pub(super) fn root_propagation(inputs: &ContainerInputs<'_>) -> Option<String> {
    let asked = |wanted: Propagation| inputs.container.mounts.iter().any(|m| m.propagation == wanted);
    if asked(Propagation::Bidirectional) {
        Some("rshared".to_owned())
    } else if asked(Propagation::HostToContainer) {
        Some("rslave".to_owned())
    } else {
        None
    }
}

/// One mount of a type with options.
pub(super) fn filesystem(destination: &Path, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

/// What every container has: proc, dev, sys and what lies below them.
fn kernel_filesystems(inputs: &ContainerInputs<'_>) -> Vec<Mount> {
    let new = |destination: &str, kind: &str, options: &[&str]| {
        filesystem(Path::new(destination), kind, Path::new(kind), options)
    };
    let access = if inputs.container.security.privileged { "rw" } else { "ro" };
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // Group 5 is tty everywhere; where it is not mapped, devpts refuses it.
    if !matches!(inputs.pod.namespaces.userns, Userns::Mapped { gids, .. } if gids.length <= 5) {
        pts.push("gid=5");
    }
    vec![
        new("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        new("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        new("/dev/pts", "devpts", &pts),
        new("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sysfs(inputs, access),
        new("/sys/fs/cgroup", "cgroup", &cgroup_options(inputs, access)),
    ]
}

/// Sysfs. The one of the host's network cannot be mounted from another user namespace, only bound.
fn sysfs(inputs: &ContainerInputs<'_>, access: &str) -> Mount {
    let options = ["nosuid", "noexec", "nodev"];
    let namespaces = &inputs.pod.namespaces;
    if namespaces.host_network() && namespaces.userns != Userns::None {
        let bind = ["rbind", "rro", "nosuid", "noexec", "nodev"];
        return filesystem(Path::new("/sys"), "bind", Path::new("/sys"), &bind);
    }
    let options = [options.as_slice(), &[access]].concat();
    filesystem(Path::new("/sys"), "sysfs", Path::new("sysfs"), &options)
}

/// The container's cgroups.
fn cgroup_options<'a>(inputs: &ContainerInputs<'a>, access: &'a str) -> Vec<&'a str> {
    // Of v1 there is no delegation that would be safe.
    let writable = inputs.handler().cgroup_writable && inputs.host.cgroup == CgroupVersion::V2;
    let mut options = vec!["nosuid", "noexec", "nodev", "relatime", if writable { "rw" } else { access }];
    // Without a cgroup namespace these belong to the host's one superblock and would be taken from it.
    if inputs.host.cgroup == CgroupVersion::V2 && inputs.container.security.privileged {
        options.extend(inputs.host.cgroup2_options.iter().map(String::as_str));
    }
    options
}

/// Shared memory and the three files of /etc that the pod's containers have in common.
fn pod_files(inputs: &ContainerInputs<'_>) -> Vec<Mount> {
    let paths = inputs.paths;
    let mut mounts = vec![shared_memory(inputs)];
    let access = if inputs.container.security.readonly_rootfs { "ro" } else { "rw" };
    let files = [
        ("/etc/hostname", &paths.hostname),
        ("/etc/hosts", &paths.hosts),
        ("/etc/resolv.conf", &paths.resolv_conf),
    ];
    for (destination, source) in files {
        let Some(source) = source else { continue };
        // They belong to the pod's root, whoever that is on the host.
        mounts.push(filesystem(Path::new(destination), "bind", source, &["rbind", "rprivate", access]));
    }
    mounts
}

/// /dev/shm: the pod's, or the host's with the host's IPC namespace.
fn shared_memory(inputs: &ContainerInputs<'_>) -> Mount {
    let destination = Path::new("/dev/shm");
    let host = || PathBuf::from("/dev/shm");
    match (&inputs.paths.shm, inputs.pod.namespaces.ipc) {
        (_, Shared::Node) => filesystem(destination, "bind", &host(), &["rbind", "rprivate", "rw"]),
        // The flags are those the pod's tmpfs is mounted with: from a user namespace they cannot be taken away.
        (Some(shm), Shared::Pod) => {
            let options = ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"];
            filesystem(destination, "bind", shm, &options)
        }
        (None, Shared::Pod) => {
            let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
            filesystem(destination, "tmpfs", Path::new("shm"), &options)
        }
    }
}
