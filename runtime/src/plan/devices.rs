//! Device nodes: those every container has, and the spec's. See the runtime-spec's `config-linux.md#default-devices`.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType};

use super::error::{PlanError, absolute};
use super::{DeviceKind, DeviceNode};

/// The runtime-spec's default devices that are nodes: (name below /dev, major, minor). /dev/ptmx and /dev/console are made by the
/// engine, since they are not nodes of their own.
const DEFAULTS: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("random", 1, 8), ("full", 1, 7), ("tty", 5, 0), ("zero", 1, 5), ("urandom", 1, 9)];

/// The default devices, without those the spec defines itself, and then the spec's.
pub(super) fn from_spec(linux: Option<&Linux>) -> Result<Vec<DeviceNode>, PlanError> {
    let spec = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let mut own = Vec::with_capacity(spec.len());
    for (index, device) in spec.iter().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        absolute(|| field("path"), device.path())?;
        if device.path().components().any(|part| part == Component::ParentDir) {
            return Err(PlanError::invalid(
                field("path"),
                format!("{} contains \"..\"", device.path().display()),
            ));
        }
        if device.path() == Path::new("/") {
            return Err(PlanError::invalid(field("path"), "is the root"));
        }
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => {
                return Err(PlanError::invalid(
                    field("type"),
                    "\"a\" is no type of a node: one of c, b, u, p",
                ));
            }
        };
        let number = |name: &str, value: i64| match kind {
            DeviceKind::Fifo => Ok(0),
            _ => u32::try_from(value)
                .map_err(|_| PlanError::invalid(field(name), format!("{value} is no device number"))),
        };
        own.push(DeviceNode {
            path: device.path().clone(),
            kind,
            major: number("major", device.major())?,
            minor: number("minor", device.minor())?,
            // Tools written in Go may leave the file type in.
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    let mut devices: Vec<DeviceNode> = DEFAULTS
        .iter()
        .map(|(name, major, minor)| DeviceNode {
            path: PathBuf::from("/dev").join(name),
            kind: DeviceKind::Char,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .filter(|default| own.iter().all(|device| device.path != default.path))
        .collect();
    devices.append(&mut own);
    Ok(devices)
}
