//! Whole specs: what is accepted comes out resolved, what is refused names its field, and nothing panics.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::spec;

/// The smallest spec that makes a plan, with `patch` merged over it.
fn plan(patch: Value) -> Result<Plan, String> {
    let mut document = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["sh"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}]}
    });
    merge(&mut document, patch);
    let loaded = spec::parse(document.to_string().as_bytes()).map_err(|error| {
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    })?;
    Plan::from_spec(&loaded.spec, &loaded.raw, Path::new("/bundle")).map_err(|error| error.to_string())
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn refused(patch: Value, message: &str) {
    let error = plan(patch).unwrap_err();
    assert!(error.contains(message), "{error:?} does not contain {message:?}");
}

#[test]
fn the_root_is_taken_from_the_bundle() {
    assert_eq!(plan(json!({})).unwrap().rootfs.path, PathBuf::from("/bundle/rootfs"));
    assert_eq!(plan(json!({"root": {"path": "/srv/root"}})).unwrap().rootfs.path, PathBuf::from("/srv/root"));
    refused(json!({"root": null}), "root: must be specified");
    refused(
        json!({"linux": {"rootfsPropagation": "sideways"}}),
        "rootfsPropagation=sideways is not supported",
    );
}

#[test]
fn namespaces_are_ordered_and_unique() {
    let namespaces = json!([
        {"type": "mount"}, {"type": "network", "path": "/proc/7/ns/net"}, {"type": "pid", "path": ""}, {"type": "user", "path": "/proc/7/ns/user"}
    ]);
    let plan = plan(json!({"linux": {"namespaces": namespaces}})).unwrap();
    assert_eq!(plan.namespaces.new, [NamespaceKind::Pid, NamespaceKind::Mount]);
    let joined: Vec<_> = plan.namespaces.join.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(joined, [NamespaceKind::User, NamespaceKind::Network]);
    refused(json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}), "duplicated ns");
    refused(json!({"linux": {"namespaces": [{"type": "pid", "path": "x"}]}}), "linux.namespaces[0].path");
    refused(json!({"linux": {"namespaces": [{"type": "hyper"}]}}), "linux.namespaces[0].type");
}

#[test]
fn user_namespaces_need_sound_maps() {
    let user = |maps: Value| json!({"linux": {"namespaces": [{"type": "user"}], "uidMappings": maps, "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}});
    assert!(plan(user(json!([{"containerID": 0, "hostID": 1000, "size": 10}, {"containerID": 10, "hostID": 0, "size": 1}]))).is_ok());
    refused(user(json!([])), "linux.uidMappings: user namespaces enabled, but no mappings");
    refused(user(json!([{"containerID": 0, "hostID": 1, "size": 0}])), "linux.uidMappings[0]: size is 0");
    refused(
        user(json!([{"containerID": 0, "hostID": 4_294_967_295_u32, "size": 2}])),
        "beyond the largest id",
    );
    refused(
        user(json!([{"containerID": 0, "hostID": 0, "size": 5}, {"containerID": 4, "hostID": 9, "size": 1}])),
        "overlaps",
    );
    refused(
        json!({"linux": {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}}),
        "user namespace isn't enabled",
    );
}

#[test]
fn names_of_the_host_need_a_uts_namespace() {
    assert_eq!(plan(json!({"hostname": "box"})).unwrap().hostname.as_deref(), Some("box"));
    refused(
        json!({"hostname": "box", "linux": {"namespaces": []}}),
        "unable to set hostname without a private UTS",
    );
    refused(json!({"domainname": "x\ny"}), "domainname: contains control characters");
    refused(json!({"hostname": "x".repeat(65)}), "longer than 64");
}

#[test]
fn processes_are_checked() {
    refused(json!({"process": {"args": []}}), "process.args: args must not be empty");
    refused(json!({"process": {"cwd": "tmp"}}), "Cwd must be an absolute path");
    refused(json!({"process": {"cwd": ""}}), "Cwd property must not be empty");
    refused(json!({"process": {"env": ["=x"]}}), "process.env[0]");
    refused(json!({"process": {"env": ["A=b", "x\u{0}"]}}), "process.env[1]: contains a NUL byte");
    refused(json!({"process": {"user": {"uid": 4_294_967_296_u64}}}), "process.user.uid");
    refused(json!({"process": {"user": {"uid": -1}}}), "process.user.uid");
    refused(
        json!({"process": {"user": {"additionalGids": [1, 4_294_967_295_u32]}}}),
        "process.user.additionalGids[1]",
    );
    refused(
        json!({"process": {"rlimits": [{"type": "RLIMIT_FUN", "soft": 1, "hard": 1}]}}),
        "process.rlimits[0].type",
    );
    refused(
        json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]}}),
        "soft 2 is above hard 1",
    );
    refused(json!({"process": {"oomScoreAdj": 1001}}), "process.oomScoreAdj");
    refused(
        json!({"process": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}}),
        "invalid ioPriority.Priority",
    );
    refused(
        json!({"process": {"scheduler": {"policy": "SCHED_BATCH", "priority": 3}}}),
        "process.scheduler.priority",
    );
    refused(json!({"process": {"execCPUAffinity": {"initial": "3-1"}}}), "process.execCPUAffinity.initial");
}

#[test]
fn a_cgroup_that_is_mounted_writable_belongs_to_the_process() {
    let owner = |options: Value, namespaces: Value, maps: Value| {
        let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options});
        let linux = json!({"namespaces": namespaces, "uidMappings": maps, "gidMappings": maps});
        let user = json!({"uid": 7, "gid": 7});
        let patch = json!({"mounts": [mount], "linux": linux, "process": {"user": user}});
        plan(patch).unwrap().cgroup_owner()
    };
    let (cgroup, mapped) = (json!([{"type": "cgroup"}]), json!([{"type": "cgroup"}, {"type": "user"}]));
    let maps = json!([{"containerID": 5, "hostID": 1000, "size": 3}]);
    assert_eq!(owner(json!(["nosuid"]), cgroup.clone(), json!([])), Some(7));
    assert_eq!(owner(json!(["ro"]), cgroup, json!([])), None);
    assert_eq!(owner(json!([]), json!([{"type": "mount"}]), json!([])), None);
    assert_eq!(owner(json!(["rw"]), mapped.clone(), maps), Some(1002));
    let others = json!([{"containerID": 0, "hostID": 1000, "size": 7}]);
    assert_eq!(owner(json!(["rw"]), mapped, others), None, "nobody on the host");
}

#[test]
fn the_size_of_no_terminal_is_ignored() {
    for terminal in [json!(false), json!(null)] {
        let size = json!({"height": 1_000_000, "width": 80});
        let plan = plan(json!({"process": {"terminal": terminal, "consoleSize": size}})).unwrap();
        assert_eq!(plan.process.unwrap().console_size, None);
    }
}

#[test]
fn variables_have_a_name_and_a_value() {
    refused(json!({"process": {"env": ["A=1", "B"]}}), "missing '='");
    refused(json!({"process": {"env": ["A=1", ""]}}), "process.env[1]");
    refused(json!({"process": {"env": ["=1"]}}), "name cannot be empty");
    assert!(plan(json!({"process": {"env": ["A=", "B=C=D"]}})).is_ok());
}

#[test]
fn a_process_comes_out_as_numbers() {
    let process = plan(json!({"process": {
        "terminal": true, "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 7, "gid": 8, "umask": 18, "additionalGids": [9]},
        "capabilities": {"bounding": ["CAP_KILL"], "ambient": []},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    }}));
    let process = process.unwrap().process.unwrap();
    let scheduler = Scheduler { policy: 3, flags: 1, nice: 5, ..Scheduler::default() };
    assert_eq!(process.scheduler, Some(scheduler));
    assert_eq!((process.uid, process.gid, process.umask), (7, 8, Some(18)));
    assert_eq!(process.console_size, Some((80, 24)));
    assert_eq!(process.capabilities, Capabilities { bounding: 1 << 5, ..Capabilities::default() });
    assert_eq!(process.rlimits, [Rlimit { resource: 7, soft: 1, hard: 2 }]);
    assert_eq!(process.io_priority, Some((3, 0)));
}

#[test]
fn mounts_are_resolved() {
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "hidepid=2"]},
        {"destination": "data/../data/x", "type": "none", "source": "here", "options": ["rbind", "ro", "rslave", "rnosuid"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro", "size=1m"]}
    ]);
    let plan = plan(json!({"mounts": mounts})).unwrap();
    assert_eq!(plan.mounts[1].destination, PathBuf::from("/data/x"));
    let MountSource::Bind { path, recursive } = &plan.mounts[1].source else { panic!("a bind") };
    assert_eq!((path.as_path(), *recursive), (Path::new("/bundle/here"), true));
    assert_eq!(plan.mounts[1].attr_set, options::attr::RDONLY);
    assert_eq!(plan.mounts[1].attr_set_recursive, options::attr::NOSUID);
    assert!(matches!(plan.mounts[2].source, MountSource::Cgroup));
    assert!(plan.mounts[3].tmpcopyup);
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
}

#[test]
fn impossible_mounts_are_refused() {
    let mount = |mount: Value| json!({"mounts": [mount]});
    refused(
        mount(json!({"destination": "/x", "source": "/y", "options": ["bind", "size=3"]})),
        "filesystem-specific options",
    );
    refused(mount(json!({"destination": "/x", "options": ["bind"]})), "mounts[0].source: must be specified");
    refused(mount(json!({"destination": "/x", "source": "y"})), "mounts[0].type: must be specified");
    refused(mount(json!({"destination": "", "type": "tmpfs"})), "mounts[0].destination");
    refused(mount(json!({"destination": "/x\u{0}", "type": "tmpfs"})), "contains a NUL byte");
    refused(
        mount(json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]})),
        "only supported for bind-mounts",
    );
    refused(
        mount(json!({"destination": "/x", "type": "none", "source": "/y", "options": ["bind", "idmap"]})),
        "needs a user namespace",
    );
    refused(mount(json!({"destination": "/x", "type": "proc", "options": ["tmpcopyup"]})), "tmpfs only");
}

#[test]
fn the_specs_devices_replace_the_defaults() {
    let devices = json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 8630}, {"path": "/dev/fifo", "type": "p"}]);
    let plan = plan(json!({"linux": {"devices": devices}})).unwrap();
    assert_eq!(plan.devices.len(), 7);
    let null = plan.devices.iter().find(|device| device.path == Path::new("/dev/null")).unwrap();
    assert_eq!(null.mode, 0o666);
    refused(json!({"linux": {"devices": [{"path": "/dev/x", "type": "a"}]}}), "linux.devices[0].type");
    refused(json!({"linux": {"devices": [{"path": "/dev/../x", "type": "p"}]}}), "contains \"..\"");
    refused(
        json!({"linux": {"devices": [{"path": "/dev/x", "type": "c", "major": -2}]}}),
        "linux.devices[0].major",
    );
}

#[test]
fn paths_cannot_climb() {
    refused(json!({"linux": {"cgroupsPath": "/a/../../b"}}), "linux.cgroupsPath");
    refused(json!({"linux": {"cgroupsPath": "a.slice:..:x"}}), "linux.cgroupsPath");
    refused(json!({"linux": {"maskedPaths": ["/proc/../etc"]}}), "linux.maskedPaths[0]");
    refused(json!({"linux": {"readonlyPaths": ["../proc"]}}), "linux.readonlyPaths[0]");
    refused(json!({"linux": {"readonlyPaths": [""]}}), "linux.readonlyPaths[0]");
    let relative = plan(json!({"linux": {"readonlyPaths": ["proc"]}})).unwrap();
    assert_eq!(relative.readonly_paths, [Path::new("/proc")]);
    refused(json!({"linux": {"intelRdt": {"closID": ".."}}}), "invalid intelRdt.ClosID");
}

#[test]
fn network_devices_need_a_namespace_and_a_name() {
    let devices =
        |devices: Value| json!({"linux": {"namespaces": [{"type": "network"}], "netDevices": devices}});
    let plan = plan(devices(json!({"eth1": {"name": "lan"}, "eth2": {}}))).unwrap();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(plan.net_devices, [pair("eth1", "lan"), pair("eth2", "eth2")]);
    refused(devices(json!({"a/b": {}})), "invalid network device name");
    refused(devices(json!({"a": {"name": "x".repeat(16)}})), "invalid network device name");
    refused(json!({"linux": {"netDevices": {"eth1": {}}}}), "without a NET namespace");
}

#[test]
fn time_offsets_need_a_time_namespace() {
    let offsets = json!({"monotonic": {"secs": 7881, "nanosecs": 2_718_281}});
    let namespaced = json!({"linux": {"namespaces": [{"type": "time"}], "timeOffsets": offsets.clone()}});
    assert_eq!(
        plan(namespaced).unwrap().namespaces.time_offsets,
        [("monotonic".to_owned(), 7881, 2_718_281)]
    );
    refused(json!({"linux": {"timeOffsets": offsets}}), "time namespace isn't enabled");
}

#[test]
fn hooks_have_absolute_paths_and_positive_timeouts() {
    refused(json!({"hooks": {"createRuntime": [{"path": "hook"}]}}), "hooks.createRuntime[0].path");
    refused(json!({"hooks": {"poststop": [{"path": "/h", "timeout": 0}]}}), "hooks.poststop[0].timeout");
    let plan = plan(json!({"hooks": {"prestart": [{"path": "/h", "args": ["h"], "timeout": 3}]}})).unwrap();
    assert_eq!(plan.hooks.prestart[0].timeout_seconds, Some(3));
}

/// Any JSON, bounded in depth and size.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,8}|/[a-z./]{0,12}|CAP_[A-Z]{2,6}|\\x00".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,10}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The fields a random value is put in.
const FIELDS: [&str; 34] = [
    "ociVersion",
    "root",
    "root.path",
    "root.readonly",
    "mounts",
    "process",
    "process.args",
    "process.env",
    "process.cwd",
    "process.user",
    "process.capabilities",
    "process.rlimits",
    "process.scheduler",
    "process.ioPriority",
    "process.consoleSize",
    "process.execCPUAffinity",
    "process.oomScoreAdj",
    "hostname",
    "hooks",
    "hooks.prestart",
    "annotations",
    "linux",
    "linux.namespaces",
    "linux.uidMappings",
    "linux.devices",
    "linux.resources",
    "linux.sysctl",
    "linux.memoryPolicy",
    "linux.timeOffsets",
    "linux.netDevices",
    "linux.intelRdt",
    "linux.personality",
    "linux.seccomp",
    "linux.cgroupsPath",
];

proptest! {
    #[test]
    fn no_document_panics(document in any_json()) {
        let _ = spec::parse(document.to_string().as_bytes());
    }

    #[test]
    fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = spec::parse(&text);
    }

    #[test]
    fn no_field_panics(field in prop::sample::select(FIELDS.to_vec()), value in any_json()) {
        let patch = field.rsplit('.').fold(value, |inner, key| json!({ key: inner }));
        let _ = plan(patch);
    }

    #[test]
    fn no_mount_panics(options in prop::collection::vec("[a-z]{1,9}(=[a-z0-9]{0,3})?", 0..6), destination in "[a-z./]{0,12}") {
        let mount = json!({"destination": destination, "type": "tmpfs", "source": "x", "options": options});
        if let Ok(plan) = plan(json!({"mounts": [mount]})) {
            let destination = &plan.mounts[0].destination;
            prop_assert!(destination.is_absolute());
            prop_assert!(destination.components().all(|part| part != std::path::Component::ParentDir));
        }
    }
}
