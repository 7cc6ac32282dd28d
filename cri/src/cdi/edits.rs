//! A CDI file's `containerEdits`, made to a runtime-spec.

use std::path::Path;

use oci_spec::runtime::{
    Hook as SpecHook, Hooks, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt,
    LinuxNetDevice, Mount as SpecMount, Spec,
};

use super::format::{DeviceNode, Edits, Hook, IntelRdt, Mount};
use crate::host;
use crate::translate::{Access, DeviceKind};

/// How long a hook may take that the file sets no timeout for: the pod's monitor waits for it.
const HOOK_TIMEOUT_SECONDS: i64 = 30;

/// Makes the edits. What is there already under the same name (variable, device path, mount point) is replaced. The error says,
/// for people, which edit cannot be made.
pub(super) fn apply(spec: &mut Spec, edits: &Edits) -> Result<(), String> {
    process(spec, edits);
    for node in &edits.device_nodes {
        device(spec, node)?;
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for edit in &edits.mounts {
        mounts.retain(|known| known.destination() != &edit.container_path);
        mounts.push(mount(edit));
    }
    spec.set_mounts(Some(mounts));
    if !edits.hooks.is_empty() {
        let mut hooks = spec.hooks().clone().unwrap_or_default();
        edits.hooks.iter().for_each(|edit| hook(&mut hooks, edit));
        spec.set_hooks(Some(hooks));
    }
    for edit in &edits.net_devices {
        let mut device = LinuxNetDevice::default();
        device.set_name(Some(edit.name.clone()));
        let linux = linux(spec);
        let mut devices = linux.net_devices().clone().unwrap_or_default();
        devices.insert(edit.host_interface_name.clone(), device);
        linux.set_net_devices(Some(devices));
    }
    if let Some(edit) = &edits.intel_rdt {
        linux(spec).set_intel_rdt(Some(rdt(edit)));
    }
    Ok(())
}

fn linux(spec: &mut Spec) -> &mut Linux {
    if spec.linux().is_none() {
        spec.set_linux(Some(Linux::default()));
    }
    spec.linux_mut().as_mut().expect("it was just set")
}

/// Environment and groups.
fn process(spec: &mut Spec, edits: &Edits) {
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    for entry in &edits.env {
        let name = |entry: &str| entry.split_once('=').map_or(entry.len(), |(name, _)| name.len());
        let head = &entry[..name(entry)];
        match env.iter_mut().find(|known| &known[..name(known)] == head) {
            Some(known) => known.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    process.set_env(Some(env));
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

/// A node, and the rule that lets it be used. What the edit does not say is what the host's node is; the owner is the container's.
fn device(spec: &mut Spec, node: &DeviceNode) -> Result<(), String> {
    let on_host = node.host_path.as_ref().unwrap_or(&node.path);
    let complete =
        node.r#type.as_deref().is_some_and(|kind| kind == "p" || (!kind.is_empty() && node.major.is_some()));
    let found = if complete { None } else { Some(on_the_host(on_host, &node.path)?) };
    let kind = match (node.r#type.as_deref(), &found) {
        (Some("b"), _) => LinuxDeviceType::B,
        (Some("c" | "u"), _) => LinuxDeviceType::C,
        (Some("p"), _) => LinuxDeviceType::P,
        (_, Some(found)) if found.kind == DeviceKind::Block => LinuxDeviceType::B,
        _ => LinuxDeviceType::C,
    };
    let number = |given: Option<i64>, found: Option<u32>| given.or(found.map(i64::from)).unwrap_or(0);
    let major = number(node.major, found.as_ref().map(|found| found.major));
    let minor = number(node.minor, found.as_ref().map(|found| found.minor));
    let owner = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = owner.unwrap_or_default();

    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(node.file_mode.or(found.map(|found| found.mode)).map(|mode| mode & 0o7777))
        .set_uid(Some(node.uid.unwrap_or(uid)))
        .set_gid(Some(node.gid.unwrap_or(gid)));
    let linux = linux(spec);
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| known.path() != &node.path);
    devices.push(device);
    linux.set_devices(Some(devices));

    let access = match node.permissions.as_deref() {
        None | Some("") => "rwm",
        Some("none") => return Ok(()),
        Some(access) => access,
    };
    if kind != LinuxDeviceType::P {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(Some(major))
            .set_minor(Some(minor))
            .set_access(Some(access.to_owned()));
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    Ok(())
}

/// The host's node that a path leads to.
fn on_the_host(path: &Path, inside: &Path) -> Result<crate::translate::DeviceNode, String> {
    let real = std::fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
    host::node(&real, inside, Access::ALL).ok_or_else(|| format!("{} is not a device node", path.display()))
}

/// A mount; one without a type, or with the type `bind`, is a bind.
fn mount(edit: &Mount) -> SpecMount {
    let kind = edit.r#type.clone().filter(|kind| !kind.is_empty());
    let mut options = edit.options.clone();
    let binds = options.iter().any(|option| option == "bind" || option == "rbind");
    if !binds && kind.as_deref().is_none_or(|kind| kind == "bind") {
        options.push("rbind".to_owned());
    }
    let mut mount = SpecMount::default();
    mount
        .set_destination(edit.container_path.clone())
        .set_source(Some(edit.host_path.clone()))
        .set_typ(Some(kind.unwrap_or_else(|| "bind".to_owned())))
        .set_options(Some(options));
    mount
}

fn hook(hooks: &mut Hooks, edit: &Hook) {
    let mut hook = SpecHook::default();
    hook.set_path(edit.path.clone())
        .set_args((!edit.args.is_empty()).then(|| edit.args.clone()))
        .set_env((!edit.env.is_empty()).then(|| edit.env.clone()))
        .set_timeout(Some(edit.timeout.unwrap_or(HOOK_TIMEOUT_SECONDS)));
    let with = |known: &Option<Vec<SpecHook>>| {
        let mut all = known.clone().unwrap_or_default();
        all.push(hook);
        Some(all)
    };
    match edit.point.as_str() {
        #[allow(deprecated, reason = "files of vendors use it")]
        "prestart" => hooks.set_prestart(with(hooks.prestart())),
        "createRuntime" => hooks.set_create_runtime(with(hooks.create_runtime())),
        "createContainer" => hooks.set_create_container(with(hooks.create_container())),
        "startContainer" => hooks.set_start_container(with(hooks.start_container())),
        "poststart" => hooks.set_poststart(with(hooks.poststart())),
        _ => hooks.set_poststop(with(hooks.poststop())),
    };
}

fn rdt(edit: &IntelRdt) -> LinuxIntelRdt {
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(edit.clos_id.clone())
        .set_l3_cache_schema(edit.l3_cache_schema.clone())
        .set_mem_bw_schema(edit.mem_bw_schema.clone())
        .set_schemata(edit.schemata.clone())
        .set_enable_monitoring(edit.enable_monitoring.or(edit.enable_cmt).or(edit.enable_mbm));
    rdt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_replace_what_has_the_same_name() {
        let mut spec = Spec::default();
        let node = |permissions: Option<&str>| DeviceNode {
            path: "/dev/mine".into(),
            host_path: Some("/dev/null".into()),
            permissions: permissions.map(str::to_owned),
            ..DeviceNode::default()
        };
        let mount = |kind: Option<&str>, options: &[&str]| Mount {
            host_path: "/lib".into(),
            container_path: "/opt/lib".into(),
            r#type: kind.map(str::to_owned),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let first = Edits {
            env: vec!["PATH=/vendor".into(), "NEW=1".into()],
            device_nodes: vec![node(Some("r"))],
            mounts: vec![mount(None, &["ro"])],
            additional_gids: vec![0, 44, 44],
            ..Edits::default()
        };
        apply(&mut spec, &first).unwrap();
        let second = Edits {
            env: vec!["NEW=2".into()],
            device_nodes: vec![node(Some("none"))],
            mounts: vec![mount(Some("tmpfs"), &[])],
            ..Edits::default()
        };
        apply(&mut spec, &second).unwrap();
        let process = spec.process().as_ref().unwrap();
        let env = process.env().clone().unwrap();
        assert!(env.contains(&"PATH=/vendor".into()) && env.contains(&"NEW=2".into()), "{env:?}");
        assert_eq!(env.iter().filter(|entry| entry.starts_with("NEW=")).count(), 1);
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[44][..]));
        let linux = spec.linux().as_ref().unwrap();
        let devices = linux.devices().as_ref().unwrap();
        let mine: Vec<_> = devices.iter().filter(|device| device.path() == Path::new("/dev/mine")).collect();
        assert_eq!(mine.len(), 1);
        assert_eq!((mine[0].major(), mine[0].minor(), mine[0].typ()), (1, 3, LinuxDeviceType::C));
        let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
        let access: Vec<_> =
            rules.iter().filter(|rule| rule.major() == Some(1)).map(|rule| rule.access().clone()).collect();
        assert_eq!(access, [Some("r".to_owned())], "none is no rule");
        let mounts = spec.mounts().as_ref().unwrap();
        let last = mounts.last().unwrap();
        assert_eq!((last.typ().as_deref(), last.options().as_deref()), (Some("tmpfs"), Some(&[][..])));
        assert_eq!(mounts.iter().filter(|mount| mount.destination() == Path::new("/opt/lib")).count(), 1);
    }

    #[test]
    fn a_device_that_the_host_lacks_is_named() {
        let node = DeviceNode { path: "/dev/no-such-device".into(), ..DeviceNode::default() };
        let edits = Edits { device_nodes: vec![node], ..Edits::default() };
        let error = apply(&mut Spec::default(), &edits).unwrap_err();
        assert!(error.contains("/dev/no-such-device"), "{error}");
    }
}
