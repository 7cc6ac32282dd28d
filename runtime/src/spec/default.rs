//! The starter spec that `wright spec` writes: a read-only busybox-like root, a shell on a terminal.
//!
//! It is JSON text rather than built values so that a reader sees what the user will see, in the order of the
//! runtime-spec.

use serde_json::{Map, Value, json};

/// A spec for root.
pub fn spec() -> Value {
    let mut spec = base();
    if rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC)
        && let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces")
    {
        namespaces.push(json!({"type": "cgroup"}));
    }
    spec
}

/// A spec for a user without privilege: a user namespace in which the user is root, the host's network, the host's /sys
/// bound, and no cgroup limits.
pub fn rootless(uid: u32, gid: u32) -> Value {
    let mut spec = spec();
    if let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces") {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
        for mount in mounts {
            if mount["destination"] == "/sys" {
                *mount = json!({
                    "destination": "/sys",
                    "type": "none",
                    "source": "/sys",
                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]
                });
            } else if let Some(Value::Array(options)) = mount.get_mut("options") {
                // Ids other than one's own are not mapped.
                options.retain(|option| {
                    !option.as_str().is_some_and(|o| o.starts_with("gid=") || o.starts_with("uid="))
                });
            }
        }
    }
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        let rest = std::mem::take(linux);
        *linux = Map::from_iter([
            ("uidMappings".into(), json!([{"containerID": 0, "hostID": uid, "size": 1}])),
            ("gidMappings".into(), json!([{"containerID": 0, "hostID": gid, "size": 1}])),
        ]);
        linux.extend(rest.into_iter().filter(|(key, _)| key != "resources"));
    }
    spec
}

/// statfs(2)'s type of a cgroup2 filesystem.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

fn base() -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": super::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "wright",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::Plan;

    #[test]
    fn both_starters_make_a_plan() {
        for spec in [spec(), rootless(1000, 1001)] {
            let loaded = crate::spec::parse(spec.to_string().as_bytes()).unwrap();
            let plan = Plan::from_spec(&loaded.spec, &loaded.raw, Path::new("/bundle")).unwrap();
            assert_eq!(plan.mounts.len(), 7);
            assert_eq!(plan.masked_paths.len(), 10);
            assert_eq!(plan.readonly_paths.len(), 5);
            assert!(loaded.warnings.is_empty());
        }
    }

    #[test]
    fn the_rootless_starter_maps_the_caller() {
        let spec = rootless(1000, 1001);
        assert_eq!(spec["linux"]["uidMappings"][0]["hostID"], 1000);
        assert_eq!(spec["linux"]["gidMappings"][0]["hostID"], 1001);
        assert!(spec["linux"].get("resources").is_none());
        assert!(!spec.to_string().contains("gid=5"));
    }
}
