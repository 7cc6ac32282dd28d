//! CDI specification files: the Container Device Interface's SPEC.md, versions 0.3.0 to 1.1.0, as JSON or YAML.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// The versions of the format that are understood: (major, minor), from and to.
const VERSIONS: std::ops::RangeInclusive<(u32, u32)> = (0, 3)..=(1, 1);

/// One file: devices of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    /// Such as `1.0.0`.
    pub(super) cdi_version: String,
    /// `vendor/class`.
    pub(super) kind: String,
    /// For people.
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// At least one.
    pub(super) devices: Vec<Device>,
    /// Made once to a container that gets any of the devices.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// One device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    /// Unique within the kind.
    pub(super) name: String,
    /// For people.
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// Made to a container that gets it.
    pub(super) container_edits: Edits,
}

/// Changes of a runtime-spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Edits {
    /// `NAME=value`
    pub(super) env: Vec<String>,
    /// Nodes, and the access to them.
    pub(super) device_nodes: Vec<DeviceNode>,
    /// Network interfaces that move into the container's network namespace.
    pub(super) net_devices: Vec<NetDevice>,
    /// Mounts.
    pub(super) mounts: Vec<Mount>,
    /// Lifecycle hooks.
    pub(super) hooks: Vec<Hook>,
    /// Supplementary groups of the process; 0 is left out.
    pub(super) additional_gids: Vec<u32>,
    /// Resource director.
    pub(super) intel_rdt: Option<IntelRdt>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: PathBuf,
    /// On the host; None: the same.
    pub(super) host_path: Option<PathBuf>,
    /// `c`, `b`, `u` or `p`; None: what the host's is.
    pub(super) r#type: Option<String>,
    /// None: what the host's is.
    pub(super) major: Option<i64>,
    /// None: what the host's is.
    pub(super) minor: Option<i64>,
    /// None: what the host's is.
    pub(super) file_mode: Option<u32>,
    /// Some of `r`, `w` and `m`, or `none`; empty and None: all.
    pub(super) permissions: Option<String>,
    /// None: the container's user.
    pub(super) uid: Option<u32>,
    /// None: the container's group.
    pub(super) gid: Option<u32>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    /// On the host.
    pub(super) host_interface_name: String,
    /// In the container.
    pub(super) name: String,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    /// On the host.
    pub(super) host_path: PathBuf,
    /// In the container.
    pub(super) container_path: PathBuf,
    /// None: a bind mount.
    pub(super) r#type: Option<String>,
    /// As mount(8) writes them.
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// A hook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    /// The runtime-spec's name of the point, such as `createContainer`.
    #[serde(rename = "hookName")]
    pub(super) point: String,
    /// The program: absolute.
    pub(super) path: PathBuf,
    /// With the program's own name.
    #[serde(default)]
    pub(super) args: Vec<String>,
    /// `NAME=value`
    #[serde(default)]
    pub(super) env: Vec<String>,
    /// Seconds; None: no limit of its own.
    pub(super) timeout: Option<i64>,
}

/// Resource director.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IntelRdt {
    /// Class of service.
    #[serde(rename = "closID")]
    pub(super) clos_id: Option<String>,
    /// Of the L3 cache.
    #[serde(rename = "l3CacheSchema")]
    pub(super) l3_cache_schema: Option<String>,
    /// Of memory bandwidth.
    #[serde(rename = "memBwSchema")]
    pub(super) mem_bw_schema: Option<String>,
    /// The whole schemata file, a line each.
    pub(super) schemata: Option<Vec<String>>,
    /// Monitoring group of the container.
    #[serde(rename = "enableMonitoring")]
    pub(super) enable_monitoring: Option<bool>,
    /// Cache monitoring, of versions before 1.1.0.
    #[serde(rename = "enableCMT")]
    pub(super) enable_cmt: Option<bool>,
    /// Bandwidth monitoring, of versions before 1.1.0.
    #[serde(rename = "enableMBM")]
    pub(super) enable_mbm: Option<bool>,
}

/// Parses and checks one file. `yaml` by its name. The error says, for people, what is wrong.
pub(super) fn parse(text: &str, yaml: bool) -> Result<File, String> {
    let file: File = if yaml {
        serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?
    } else {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    };
    let mut numbers = file.cdi_version.trim_start_matches('v').split('.').map(|part| part.parse().ok());
    let version = match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => return Err(format!("cdiVersion {:?} is no version", file.cdi_version)),
    };
    if !VERSIONS.contains(&version) {
        return Err(format!("cdiVersion {} is not supported: 0.3.0 to 1.1.0 are", file.cdi_version));
    }
    let (vendor, class) = file.kind.split_once('/').unwrap_or_default();
    if !is_vendor(vendor) || !is_class(class) {
        return Err(format!("kind {:?} is not of the form vendor/class", file.kind));
    }
    if file.devices.is_empty() {
        return Err("it has no devices".to_owned());
    }
    let mut names = std::collections::BTreeSet::new();
    for device in &file.devices {
        if !is_device(&device.name) {
            return Err(format!("{:?} is not the name of a device", device.name));
        }
        if !names.insert(&device.name) {
            return Err(format!("device {} is there twice", device.name));
        }
        if device.container_edits == Edits::default() {
            return Err(format!("device {} has no containerEdits", device.name));
        }
        check(&device.container_edits).map_err(|reason| format!("device {}: {reason}", device.name))?;
    }
    check(&file.container_edits)?;
    Ok(file)
}

/// Whether `vendor/class=name` is well formed; gives its parts.
pub(super) fn qualified(name: &str) -> Option<(&str, &str, &str)> {
    let (kind, device) = name.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    (is_vendor(vendor) && is_class(class) && is_device(device)).then_some((vendor, class, device))
}

fn is_vendor(text: &str) -> bool {
    word(text, "_-.") && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn is_class(text: &str) -> bool {
    word(text, "_-") && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn is_device(text: &str) -> bool {
    word(text, "_-.:") && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Letters, digits and `others` between; ends with a letter or digit.
fn word(text: &str, others: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// What the types cannot say.
fn check(edits: &Edits) -> Result<(), String> {
    for env in &edits.env {
        if env.split_once('=').is_none_or(|(name, _)| name.is_empty()) || env.contains('\0') {
            return Err(format!("env {env:?} is not of the form NAME=value"));
        }
    }
    for node in &edits.device_nodes {
        for path in std::iter::once(&node.path).chain(&node.host_path) {
            absolute("deviceNodes", path)?;
        }
        let permissions = node.permissions.as_deref().unwrap_or_default();
        if permissions != "none" && !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(format!("permissions {permissions:?} are not some of r, w, m"));
        }
        if node.r#type.as_deref().is_some_and(|kind| !matches!(kind, "" | "b" | "c" | "u" | "p")) {
            return Err(format!("{}: no such type of device", node.path.display()));
        }
    }
    for mount in &edits.mounts {
        absolute("mounts.containerPath", &mount.container_path)?;
    }
    for hook in &edits.hooks {
        absolute("hooks.path", &hook.path)?;
        if !HOOKS.contains(&hook.point.as_str()) {
            return Err(format!("there is no hook {:?}", hook.point));
        }
    }
    for device in &edits.net_devices {
        if device.host_interface_name.is_empty() || device.name.is_empty() {
            return Err("netDevices need a hostInterfaceName and a name".to_owned());
        }
    }
    Ok(())
}

/// The points at which hooks run, by the runtime-spec's names.
pub(super) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Paths of a file are used as they are: one with `..` means somewhere else than it says.
fn absolute(field: &str, path: &std::path::Path) -> Result<(), String> {
    let up = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && !up {
        return Ok(());
    }
    Err(format!("{field}: {} is not an absolute path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"cdiVersion": "0.6.0", "kind": "example.com/net",
        "devices": [{"name": "0", "containerEdits": {"env": ["A=b"]}}]}"#;

    #[test]
    fn json_and_yaml_say_the_same() {
        let yaml = "cdiVersion: 0.6.0\nkind: example.com/net\ndevices:\n- name: \"0\"\n  containerEdits:\n    env:\n    - A=b\n";
        let file = parse(SMALL, false).unwrap();
        assert_eq!(file.devices[0].container_edits.env, ["A=b"]);
        assert_eq!(parse(yaml, true).unwrap(), file);
    }

    #[test]
    fn what_is_not_in_the_specification_is_refused() {
        for (from, to, said) in [
            ("0.6.0", "2.0.0", "not supported"),
            ("0.6.0", "new", "no version"),
            ("example.com/net", "net", "vendor/class"),
            ("example.com/net", "1.com/net", "vendor/class"),
            ("\"name\": \"0\"", "\"name\": \"../0\"", "not the name of a device"),
            ("\"env\": [\"A=b\"]", "\"env\": [\"A\"]", "NAME=value"),
            ("\"env\": [\"A=b\"]", "\"environment\": [\"A=b\"]", "unknown field"),
            ("\"env\": [\"A=b\"]", "", "no containerEdits"),
            ("\"env\": [\"A=b\"]", "\"deviceNodes\": [{\"path\": \"dev/x\"}]", "absolute"),
            (
                "\"env\": [\"A=b\"]",
                "\"deviceNodes\": [{\"path\": \"/dev/x\", \"permissions\": \"x\"}]",
                "r, w, m",
            ),
            ("\"env\": [\"A=b\"]", "\"hooks\": [{\"hookName\": \"x\", \"path\": \"/x\"}]", "no hook"),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error = parse(&SMALL.replace(from, to), false).unwrap_err();
            assert!(error.contains(said), "{to}: {error}");
        }
    }

    #[test]
    fn names_have_three_parts() {
        assert_eq!(qualified("vendor.com/gpu=0"), Some(("vendor.com", "gpu", "0")));
        assert_eq!(qualified("v/c=GPU-1:2.x_y"), Some(("v", "c", "GPU-1:2.x_y")));
        for bad in ["gpu0", "vendor.com/gpu", "vendor.com/gpu=", "v/c=../x", "v/c/d=x", "/c=x", "v/c=a b"] {
            assert_eq!(qualified(bad), None, "{bad}");
        }
    }
}
