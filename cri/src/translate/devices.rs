//! Devices: what the request names, the nodes they turn out to be, and the rules of the device cgroup.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::inputs::ContainerInputs;
use super::pod::PrivilegedDevices;
use crate::cdi;
use crate::check;
use crate::error::Error;
use crate::v1;

/// One device of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// In the container: absolute.
    pub container_path: PathBuf,
    /// On the host: absolute. A node, a link to one, or a directory of nodes.
    pub host_path: PathBuf,
    /// What the container may do with it.
    pub access: Access,
}

/// What a container may do with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `m`: make further nodes of the same device.
    pub mknod: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };
}

impl std::fmt::Display for Access {
    /// As the device cgroup reads it: `rwm`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (allowed, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            if allowed {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// A device node as found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where the container has it.
    pub path: PathBuf,
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What the container may do with it.
    pub access: Access,
}

/// The two kinds of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// `c`
    Char,
    /// `b`
    Block,
}

impl DeviceKind {
    fn to_oci(self) -> LinuxDeviceType {
        match self {
            Self::Char => LinuxDeviceType::C,
            Self::Block => LinuxDeviceType::B,
        }
    }
}

/// Nodes that the engine makes in every container, so that the host's list must not bring them again.
const OF_EVERY_CONTAINER: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/console",
];
/// Below these lie filesystems of the container's own.
const OF_THEIR_OWN: &[&str] = &["/dev/pts", "/dev/shm", "/dev/mqueue"];

/// What every container may use: (kind, major, minor, access); None: any.
const ALLOWED: &[(DeviceKind, Option<u32>, Option<u32>, &str)] = &[
    // Making a node is harmless where opening it is not allowed.
    (DeviceKind::Char, None, None, "m"),
    (DeviceKind::Block, None, None, "m"),
    (DeviceKind::Char, Some(1), Some(3), "rwm"), // null
    (DeviceKind::Char, Some(1), Some(5), "rwm"), // zero
    (DeviceKind::Char, Some(1), Some(7), "rwm"), // full
    (DeviceKind::Char, Some(1), Some(8), "rwm"), // random
    (DeviceKind::Char, Some(1), Some(9), "rwm"), // urandom
    (DeviceKind::Char, Some(5), Some(0), "rwm"), // tty
    (DeviceKind::Char, Some(5), Some(1), "rwm"), // console
    (DeviceKind::Char, Some(5), Some(2), "rwm"), // ptmx
    (DeviceKind::Char, Some(136), None, "rwm"),  // pts/*
];

/// Parses `devices`.
pub(super) fn parse(field: &str, devices: Vec<v1::Device>) -> Result<Vec<DeviceRequest>, Error> {
    let one = |(i, device): (usize, v1::Device)| {
        let field = format!("{field}[{i}]");
        let host_path = check::absolute_path(&format!("{field}.host_path"), &device.host_path)?;
        let container_path = match device.container_path.as_str() {
            "" => host_path.clone(),
            path => check::absolute_path(&format!("{field}.container_path"), path)?,
        };
        if container_path == Path::new("/") || host_path == Path::new("/") {
            return Err(Error::invalid(field, "the root is not a device"));
        }
        let access = parse_access(&format!("{field}.permissions"), &device.permissions)?;
        Ok(DeviceRequest { container_path, host_path, access })
    };
    check::list(field, devices)?.into_iter().enumerate().map(one).collect()
}

/// Some of `r`, `w` and `m`, each once; empty: all of them.
fn parse_access(field: &str, text: &str) -> Result<Access, Error> {
    if text.is_empty() {
        return Ok(Access::ALL);
    }
    let mut access = Access { read: false, write: false, mknod: false };
    for letter in text.chars() {
        let flag = match letter {
            'r' => &mut access.read,
            'w' => &mut access.write,
            'm' => &mut access.mknod,
            _ => return Err(Error::invalid(field, format!("{} is not some of r, w, m", check::shown(text)))),
        };
        if std::mem::replace(flag, true) {
            return Err(Error::invalid(field, format!("{letter} is given twice")));
        }
    }
    Ok(access)
}

/// Parses `CDI_devices` and the annotations that ask for the same: names such as `vendor.com/class=name`, each once.
pub(super) fn parse_cdi(
    field: &str,
    devices: Vec<v1::CdiDevice>,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = Vec::new();
    for (i, device) in check::list(field, devices)?.into_iter().enumerate() {
        names.push(cdi::name_of(&format!("{field}[{i}].name"), &device.name)?);
    }
    names.extend(cdi::annotated(annotations)?);
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// The nodes of the spec: the request's and, for a privileged container, all of the host's.
pub(super) fn nodes(inputs: &ContainerInputs<'_>) -> Vec<LinuxDevice> {
    let mut nodes: Vec<&DeviceNode> = inputs.devices.iter().collect();
    let all = inputs.handler().privileged_devices == PrivilegedDevices::Nodes;
    if inputs.container.security.privileged && all {
        let own = |path: &Path| {
            OF_EVERY_CONTAINER.iter().any(|node| path == Path::new(node))
                || OF_THEIR_OWN.iter().any(|directory| path.starts_with(directory))
        };
        let requested = |path: &Path| inputs.devices.iter().any(|device| device.path == path);
        nodes.extend(inputs.host.devices.iter().filter(|node| !own(&node.path) && !requested(&node.path)));
    }
    nodes.into_iter().map(node).collect()
}

/// The rules of the device cgroup: nothing, then what every container may, then the request's; or everything.
pub(super) fn rules(inputs: &ContainerInputs<'_>) -> Vec<LinuxDeviceCgroup> {
    let restricted = inputs.handler().privileged_devices == PrivilegedDevices::None;
    if inputs.container.security.privileged && !restricted {
        return vec![rule(true, None, None, None, "rwm")];
    }
    let mut rules = vec![rule(false, None, None, None, "rwm")];
    for (kind, major, minor, access) in ALLOWED {
        rules.push(rule(true, Some(*kind), *major, *minor, access));
    }
    for device in inputs.devices {
        let access = device.access.to_string();
        rules.push(rule(true, Some(device.kind), Some(device.major), Some(device.minor), &access));
    }
    rules
}

/// One node of the spec.
fn node(node: &DeviceNode) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(node.kind.to_oci())
        .set_major(node.major.into())
        .set_minor(node.minor.into())
        .set_file_mode(Some(node.mode & 0o7777))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

/// One rule of the spec. None: any.
fn rule(
    allow: bool,
    kind: Option<DeviceKind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(kind.map(DeviceKind::to_oci))
        .set_major(major.map(i64::from))
        .set_minor(minor.map(i64::from))
        .set_access(Some(access.to_owned()));
    rule
}
