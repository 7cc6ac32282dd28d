//! Keys of a config.json in any case.
//!
//! Go's reader takes `Readonly` for `readonly`, so what is written by hand for runc may have either. To take no notice of `MaskedPaths` would leave
//! a container less confined than its author believes: keys that differ from the runtime-spec's in case only are read as those.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Every key of the runtime-spec's Linux documents, ordered without regard to case.
const KEYS: [&str; 150] = [
    "access",
    "action",
    "additionalGids",
    "allow",
    "ambient",
    "annotations",
    "apparmorProfile",
    "architectures",
    "args",
    "blockIO",
    "bounding",
    "burst",
    "capabilities",
    "cgroupsPath",
    "checkBeforeUpdate",
    "class",
    "classID",
    "closID",
    "consoleSize",
    "containerID",
    "cpu",
    "cpus",
    "createContainer",
    "createRuntime",
    "cwd",
    "deadline",
    "defaultAction",
    "defaultErrnoRet",
    "destination",
    "devices",
    "disableOOMKiller",
    "domain",
    "domainname",
    "effective",
    "enableCMT",
    "enableMBM",
    "enableMonitoring",
    "env",
    "errnoRet",
    "execCPUAffinity",
    "fileMode",
    "final",
    "flags",
    "gid",
    "gidMappings",
    "hard",
    "hcaHandles",
    "hcaObjects",
    "height",
    "hooks",
    "hostID",
    "hostname",
    "hugepageLimits",
    "idle",
    "index",
    "inheritable",
    "initial",
    "intelRdt",
    "ioPriority",
    "kernel",
    "kernelTCP",
    "l3CacheSchema",
    "leafWeight",
    "limit",
    "linux",
    "listenerMetadata",
    "listenerPath",
    "major",
    "maskedPaths",
    "memBwSchema",
    "memory",
    "memoryPolicy",
    "mems",
    "minor",
    "mode",
    "mountLabel",
    "mounts",
    "name",
    "names",
    "namespaces",
    "nanosecs",
    "netDevices",
    "network",
    "nice",
    "nodes",
    "noNewPrivileges",
    "ociVersion",
    "oomScoreAdj",
    "op",
    "options",
    "pageSize",
    "path",
    "period",
    "permitted",
    "personality",
    "pids",
    "policy",
    "poststart",
    "poststop",
    "prestart",
    "priorities",
    "priority",
    "process",
    "quota",
    "rate",
    "rdma",
    "readonly",
    "readonlyPaths",
    "realtimePeriod",
    "realtimeRuntime",
    "reservation",
    "resources",
    "rlimits",
    "root",
    "rootfsPropagation",
    "runtime",
    "scheduler",
    "schemata",
    "seccomp",
    "secs",
    "selinuxLabel",
    "shares",
    "size",
    "soft",
    "source",
    "startContainer",
    "swap",
    "swappiness",
    "syscalls",
    "sysctl",
    "terminal",
    "throttleReadBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice",
    "timeOffsets",
    "timeout",
    "type",
    "uid",
    "uidMappings",
    "umask",
    "unified",
    "useHierarchy",
    "user",
    "username",
    "value",
    "valueTwo",
    "weight",
    "weightDevice",
    "width",
];

/// Objects whose keys and values are the user's own.
const FREE: [&str; 3] = ["annotations", "sysctl", "unified"];

/// Objects whose keys are the user's own, and whose values are the specification's.
const NAMED: [&str; 2] = ["netDevices", "timeOffsets"];

/// Gives every known key its own case. Where a document has both, the specification's stands.
pub(super) fn fold(value: &mut Value) {
    match value {
        Value::Object(object) => {
            rename(object);
            for (key, value) in object.iter_mut() {
                if NAMED.contains(&key.as_str()) {
                    value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(fold);
                } else if !FREE.contains(&key.as_str()) {
                    fold(value);
                }
            }
        }
        Value::Array(array) => array.iter_mut().for_each(fold),
        _ => {}
    }
}

fn rename(object: &mut Map<String, Value>) {
    let other = |key: &String| known(key).filter(|known| known != key).map(|known| (key.clone(), known));
    // None, nearly always.
    let others: Vec<_> = object.keys().filter_map(other).collect();
    for (key, known) in others {
        if let Some(value) = object.remove(&key)
            && !object.contains_key(known)
        {
            object.insert(known.to_owned(), value);
        }
    }
}

/// The specification's key that this is but for case.
fn known(key: &str) -> Option<&'static str> {
    KEYS.binary_search_by(|known| compare(known, key)).ok().map(|place| KEYS[place])
}

fn compare(a: &str, b: &str) -> Ordering {
    a.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(b.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_keys_are_in_order() {
        assert!(KEYS.is_sorted_by(|a, b| compare(a, b) == Ordering::Less));
    }

    #[test]
    fn known_keys_get_their_case_and_others_keep_theirs() {
        let mut spec = json!({
            "OCIVersion": "1.2.0",
            "Root": {"path": "rootfs", "READONLY": true},
            "annotations": {"Root": "mine", "Path": "mine"},
            "linux": {
                "maskedpaths": ["/x"],
                "Resources": {"Unified": {"Memory": "1"}, "memory": {"Limit": 5}},
                "timeOffsets": {"Monotonic": {"Secs": 1}},
                "netDevices": {"Name": {"NAME": "eth0"}},
                "zebra": {"Type": 1}
            }
        });
        fold(&mut spec);
        let expected = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": true},
            "annotations": {"Root": "mine", "Path": "mine"},
            "linux": {
                "maskedPaths": ["/x"],
                "resources": {"unified": {"Memory": "1"}, "memory": {"limit": 5}},
                "timeOffsets": {"Monotonic": {"secs": 1}},
                "netDevices": {"Name": {"name": "eth0"}},
                "zebra": {"type": 1}
            }
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn the_specifications_spelling_stands() {
        let mut root = json!({"Path": "other", "path": "rootfs"});
        fold(&mut root);
        assert_eq!(root, json!({"path": "rootfs"}));
    }
}
