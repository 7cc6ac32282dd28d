//! What an archive tells of its container, under the names and in the shapes that containerd and CRI-O use and checkpointctl reads.
//!
//! | name | holds |
//! |---|---|
//! | `config.dump` | who it is, from which image, when |
//! | `spec.dump` | its runtime-spec; annotations `io.kubernetes.cri.*` tell its pod |
//! | `status` | times and pid, as containerd keeps them |
//! | `bind.mounts` | what is mounted from the host, and whether it is a file or a directory |
//! | `checkpoint/` | criu's images |
//! | `dump.log`, `stats-dump` | criu's log and statistics |
//! | `rootfs-diff.tar`, `deleted.files` | what it changed of its image |
//! | `container.log` | its output so far |

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::Error;
use crate::pod::{ContainerState, ContainerView, PodView};
use crate::records::now_ns;

pub(super) const CONFIG_DUMP: &str = "config.dump";
pub(super) const SPEC_DUMP: &str = "spec.dump";
pub(super) const STATUS: &str = "status";
pub(super) const BIND_MOUNTS: &str = "bind.mounts";
pub(super) const ROOTFS_DIFF: &str = "rootfs-diff.tar";
pub(super) const DELETED_FILES: &str = "deleted.files";
pub(super) const CONTAINER_LOG: &str = "container.log";

/// The name of this runtime in archives.
const RUNTIME: &str = "podwright";

/// Go's zero time: never.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Whom an archive describes.
pub(super) struct Described<'a> {
    pub(super) pod: &'a PodView,
    pub(super) container: &'a ContainerView,
}

impl Described<'_> {
    /// `config.dump`.
    pub(super) fn config_dump(&self) -> Result<Vec<u8>, Error> {
        let record = &self.container.record;
        let metadata = record.config.metadata.clone().unwrap_or_default();
        let pod = &self.pod.pod.metadata;
        let requested = record.config.image.clone().unwrap_or_default();
        let handler = &self.pod.record.runtime_handler;
        to_bytes(&json!({
            "id": record.id,
            // As kubelet's container names have always been made.
            "name": format!(
                "k8s_{}_{}_{}_{}_{}",
                metadata.name, pod.name, pod.namespace, pod.uid, metadata.attempt
            ),
            "rootfsImage": requested.image,
            "rootfsImageRef": record.image.id,
            "rootfsImageName": record.image.name,
            "runtime": if handler.is_empty() { RUNTIME } else { handler },
            "createdTime": rfc3339(record.created_at_ns)?,
            "checkpointedTime": rfc3339(now_ns())?,
            "restoredTime": NEVER,
            "restored": false,
        }))
    }

    /// `status`.
    pub(super) fn status(&self) -> Result<Vec<u8>, Error> {
        let started_at_ns = match self.container.state {
            ContainerState::Running { started_at_ns, .. } => started_at_ns,
            _ => 0,
        };
        to_bytes(&json!({
            "Version": "v1",
            "Pid": self.container.pid().unwrap_or(0),
            "CreatedAt": self.container.record.created_at_ns,
            "StartedAt": started_at_ns,
            "FinishedAt": 0,
            "ExitCode": 0,
            "Reason": "",
            "Message": "",
        }))
    }
}

/// `bind.mounts`, of a spec.
pub(super) fn bind_mounts(spec: &[u8]) -> Result<Vec<u8>, Error> {
    let spec: Value =
        serde_json::from_slice(spec).map_err(|error| Error::internal("read a container's spec", error))?;
    let mounts = spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let described: Vec<Value> = mounts.iter().filter_map(bind_mount).collect();
    to_bytes(&Value::from(described))
}

fn bind_mount(mount: &Value) -> Option<Value> {
    let (source, destination) = (mount["source"].as_str()?, mount["destination"].as_str()?);
    let options = mount["options"].as_array();
    let bound =
        options.is_some_and(|options| options.iter().any(|option| option == "bind" || option == "rbind"));
    if mount["type"] != "bind" && !bound {
        return None;
    }
    // One that is gone is mounted in there all the same.
    let metadata = std::fs::metadata(source).ok()?;
    Some(json!({
        "source": source,
        "destination": destination,
        "file_type": if metadata.is_dir() { "directory" } else { "file" },
        "permissions": metadata.permissions().mode() & 0o777,
    }))
}

/// `deleted.files`.
pub(super) fn deleted_files(deleted: &[PathBuf]) -> Result<Vec<u8>, Error> {
    to_bytes(&deleted.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().into())
}

fn to_bytes(value: &Value) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(|error| Error::internal("describe a checkpoint", error))
}

fn rfc3339(ns: i64) -> Result<String, Error> {
    OffsetDateTime::from_unix_timestamp_nanos(ns.into())
        .map_err(|error| Error::internal("describe a checkpoint", error))?
        .format(&Rfc3339)
        .map_err(|error| Error::internal("describe a checkpoint", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_tell_what_has_to_be_there() {
        let spec = json!({"mounts": [
            {"type": "proc", "source": "proc", "destination": "/proc"},
            {"type": "bind", "source": "/etc/passwd", "destination": "/etc/hosts", "options": ["rbind"]},
            {"source": "/", "destination": "/host", "options": ["bind", "ro"]},
            {"type": "bind", "source": "/nowhere", "destination": "/x"},
        ]});
        let told: Value = serde_json::from_slice(&bind_mounts(spec.to_string().as_bytes()).unwrap()).unwrap();
        let told: Vec<_> = told
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| (mount["destination"].as_str().unwrap(), mount["file_type"].as_str().unwrap()))
            .collect();
        assert_eq!(told, [("/etc/hosts", "file"), ("/host", "directory")]);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(1_700_000_000_123_456_789).unwrap(), "2023-11-14T22:13:20.123456789Z");
    }
}
