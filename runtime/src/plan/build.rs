//! [`Plan::from_spec`]: the spec's topics put together, and the rules that span more than one of them.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{Linux, Spec};
use serde_json::{Map, Value};

use super::error::{PlanError, no_nul};
use super::options::attr;
use super::{
    Mount, MountSource, NamespaceKind, Namespaces, Plan, Process, attributes, devices, lifecycle, mounts,
    namespaces, process, sysctls,
};

/// The longest hostname and domainname. See sethostname(2).
const MAX_HOSTNAME_BYTES: usize = 64;

/// The longest name of a network device, without its NUL. See netdevice(7).
const MAX_DEVICE_NAME_BYTES: usize = 15;

impl Plan {
    /// Resolves a spec. `raw` is the same spec as JSON, and `bundle` the absolute path relative paths in it start from.
    pub fn from_spec(spec: &Spec, raw: &Value, bundle: &Path) -> Result<Self, PlanError> {
        let linux = spec.linux().as_ref();
        let raw_linux = raw.get("linux");
        let mut warnings = Vec::new();
        let namespaces = namespaces::from_spec(linux, &mut warnings)?;
        let process = match spec.process() {
            Some(process) => Some(Process::from_spec(process, raw.get("process").unwrap_or(&Value::Null))?),
            None => None,
        };
        Ok(Self {
            rootfs: mounts::rootfs(spec, bundle)?,
            mounts: mounts::from_spec(spec, &namespaces, bundle, &mut warnings)?,
            devices: devices::from_spec(linux)?,
            masked_paths: mounts::guarded_paths(
                "linux.maskedPaths",
                linux.and_then(|linux| linux.masked_paths().as_deref()),
                &namespaces,
            )?,
            readonly_paths: mounts::guarded_paths(
                "linux.readonlyPaths",
                linux.and_then(|linux| linux.readonly_paths().as_deref()),
                &namespaces,
            )?,
            hostname: host_name("hostname", spec.hostname().as_deref(), &namespaces)?,
            domainname: host_name("domainname", spec.domainname().as_deref(), &namespaces)?,
            sysctls: sysctls::from_spec(object(raw_linux, "sysctl"), &namespaces)?,
            net_devices: net_devices(object(raw_linux, "netDevices"), &namespaces)?,
            process,
            cgroups_path: cgroups_path(linux)?,
            resources: linux.and_then(|linux| linux.resources().clone()),
            hooks: lifecycle::from_spec(spec.hooks().as_ref())?,
            mount_label: process::label(
                "linux.mountLabel",
                linux.and_then(|linux| linux.mount_label().as_deref()),
            )?,
            personality: linux
                .and_then(|linux| linux.personality().as_ref())
                .map(|personality| attributes::personality(personality, &mut warnings)),
            intel_rdt: intel_rdt(linux)?,
            memory_policy: raw_linux
                .and_then(|linux| linux.get("memoryPolicy"))
                .map(attributes::memory_policy)
                .transpose()?,
            new_keyring: true,
            annotations: annotations(spec)?,
            oci_version: spec.version().clone(),
            namespaces,
            warnings,
        })
    }
}

impl Plan {
    /// To whom, as the host counts, the container's cgroup is to belong: its process's user, if it has a cgroup namespace of its own and its
    /// cgroups are mounted writable (the runtime-spec's `config-linux.md#cgroup-ownership`). None: it stays the engine's.
    pub(crate) fn cgroup_owner(&self) -> Option<u32> {
        let writable = |mount: &Mount| {
            matches!(mount.source, MountSource::Cgroup)
                && mount.destination == Path::new("/sys/fs/cgroup")
                && mount.attr_set & attr::RDONLY == 0
        };
        if !self.namespaces.is_new(NamespaceKind::Cgroup) || !self.mounts.iter().any(writable) {
            return None;
        }
        let uid = self.process.as_ref().map_or(0, |process| process.uid);
        if !self.namespaces.contains(NamespaceKind::User) {
            return Some(uid);
        }
        self.namespaces.uid_maps.iter().find_map(|map| {
            let place = uid.checked_sub(map.container_id).filter(|place| *place < map.length)?;
            Some(map.host_id + place)
        })
    }
}

/// A JSON object below `linux`, whose keys are in the document's order.
fn object<'a>(linux: Option<&'a Value>, key: &str) -> Option<&'a Map<String, Value>> {
    linux?.get(key)?.as_object()
}

fn host_name(field: &str, name: Option<&str>, namespaces: &Namespaces) -> Result<Option<String>, PlanError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    if name.len() > MAX_HOSTNAME_BYTES {
        return Err(PlanError::invalid(field, format!("longer than {MAX_HOSTNAME_BYTES} bytes")));
    }
    if name.contains(char::is_control) {
        return Err(PlanError::invalid(field, "contains control characters"));
    }
    if !namespaces.contains(NamespaceKind::Uts) {
        return Err(PlanError::conflict(
            field,
            format!("unable to set {field} without a private UTS namespace"),
        ));
    }
    Ok(Some(name.to_owned()))
}

fn net_devices(
    devices: Option<&Map<String, Value>>,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, PlanError> {
    let mut moved: Vec<(String, String)> = Vec::new();
    for (name, device) in devices.into_iter().flatten() {
        let field = format!("linux.netDevices.{name}");
        if !namespaces.contains(NamespaceKind::Network) {
            return Err(PlanError::conflict(field, "unable to move network devices without a NET namespace"));
        }
        let inside =
            device.get("name").and_then(Value::as_str).filter(|inside| !inside.is_empty()).unwrap_or(name);
        // A template, such as `eth%d`, is the kernel's to complete.
        for (name, sound) in
            [(name.as_str(), device_name(name)), (inside, device_name(&inside.replacen("%d", "0", 1)))]
        {
            if !sound {
                return Err(PlanError::invalid(field, format!("invalid network device name {name:?}")));
            }
        }
        if !inside.contains('%') && moved.iter().any(|(_, other)| other == inside) {
            return Err(PlanError::invalid(field, format!("two devices would be called {inside:?}")));
        }
        moved.push((name.clone(), inside.to_owned()));
    }
    Ok(moved)
}

/// Whether the kernel takes it for a device. A `%` is never a part of a name: it makes a template.
fn device_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_DEVICE_NAME_BYTES
        && !name.contains(|c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
}

/// The cgroup path as written, refused where it could leave its parent.
fn cgroups_path(linux: Option<&Linux>) -> Result<Option<String>, PlanError> {
    let field = "linux.cgroupsPath";
    let Some(path) = linux.and_then(|linux| linux.cgroups_path().as_ref()) else { return Ok(None) };
    let Some(path) = path.to_str() else {
        return Err(PlanError::invalid(field, "not UTF-8"));
    };
    if path.is_empty() {
        return Ok(None);
    }
    if path.split(['/', ':']).any(|part| part == "..") {
        return Err(PlanError::invalid(field, format!("{path} contains \"..\"")));
    }
    if path.contains(char::is_control) {
        return Err(PlanError::invalid(field, "contains control characters"));
    }
    Ok(Some(path.to_owned()))
}

fn intel_rdt(linux: Option<&Linux>) -> Result<Option<oci_spec::runtime::LinuxIntelRdt>, PlanError> {
    let Some(rdt) = linux.and_then(|linux| linux.intel_rdt().as_ref()) else { return Ok(None) };
    if let Some(id) = rdt.clos_id() {
        // A lone "/" is the default class.
        if matches!(id.as_str(), "." | "..") || id.len() > 1 && id.contains('/') || id.contains('\0') {
            return Err(PlanError::invalid(
                "linux.intelRdt.closID",
                format!("invalid intelRdt.ClosID {id:?}"),
            ));
        }
    }
    Ok(Some(rdt.clone()))
}

fn annotations(spec: &Spec) -> Result<BTreeMap<String, String>, PlanError> {
    let mut checked = BTreeMap::new();
    for (key, value) in spec.annotations().iter().flatten() {
        if key.is_empty() {
            return Err(PlanError::invalid("annotations", "an empty key"));
        }
        no_nul(|| format!("annotations.{key}"), key)?;
        checked.insert(key.clone(), value.clone());
    }
    Ok(checked)
}
