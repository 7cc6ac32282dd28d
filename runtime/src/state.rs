//! A container's state on disk and what follows from it: `<root>/<id>/`. See the runtime-spec's `runtime.md#state`.
//!
//! ```text
//! <root>/<id>/state.json    Record: what cannot be found out otherwise (pid, when, where); written whole or not at all
//!             config.json   the spec as it was when the container was made
//!             start.sock    the start gate, there until `start` takes it
//! ```
//!
//! A status is never stored: it is derived, each time, from facts that cannot be stale.
//!
//! ```text
//! no pid in the record            -> creating
//! pid gone, a zombie, or another  -> stopped     (start time in /proc/PID/stat tells a reused pid)
//! start.sock still there          -> created
//! cgroup frozen                   -> paused
//! otherwise                       -> running
//! ```

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, CgroupRecord};
use crate::resctrl::Group;

/// The file of a [`Record`].
const STATE: &str = "state.json";

/// The file of the spec's copy.
const CONFIG: &str = "config.json";

/// The start gate's socket.
const START: &str = "start.sock";

/// The longest container id in bytes: a file name, with room for suffixes.
const MAX_ID_BYTES: usize = 240;

/// Why a container's state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Empty.
    #[error("invalid container ID format: container id cannot be empty")]
    EmptyId,
    /// Characters other than letters, digits, `_`, `+`, `-`, `.`; or `.` or `..`; or too long.
    #[error("invalid container ID format: {0:?}")]
    InvalidId(String),
    /// Nothing under the id.
    #[error("container does not exist")]
    NotFound,
    /// The id is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A path that is no UTF-8, which JSON cannot hold.
    #[error("a path of the container cannot be written as JSON")]
    NotJson(#[source] serde_json::Error),
    /// A record that is none.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The states of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Init waits at its gate.
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Its init has exited.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What is remembered of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The spec's version.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Init's pid; None while the container is being made.
    pub pid: Option<i32>,
    /// Init's start time in clock ticks since boot, which tells it from a later process of the same pid.
    pub pid_start_time: u64,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The root's absolute path.
    pub rootfs: PathBuf,
    /// When it was made, in RFC 3339 with nanoseconds.
    pub created: String,
    /// The spec's annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The cgroup.
    #[serde(default)]
    pub cgroup: CgroupRecord,
    /// The resctrl groups, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Group>,
    /// Whether it was made with the systemd driver.
    #[serde(default)]
    pub systemd: bool,
}

/// The state as hooks get it and `state` prints it. The order of the fields is that of runc's output.
#[derive(Debug, Clone, Serialize)]
pub struct State<'a> {
    /// The spec's version.
    #[serde(rename = "ociVersion")]
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// Init's pid; 0 when stopped.
    pub pid: i32,
    /// The status.
    pub status: Status,
    /// The bundle's absolute path.
    pub bundle: &'a Path,
    /// The root's absolute path; hooks do not get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<&'a Path>,
    /// When it was made; hooks do not get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<&'a str>,
    /// The spec's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
    /// The user who made it; hooks do not get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
}

impl State<'_> {
    /// The JSON a hook reads from stdin.
    pub fn to_json(&self) -> Result<Vec<u8>, StateError> {
        serde_json::to_vec(self).map_err(StateError::NotJson)
    }
}

/// Checks a container id as runc does: it becomes a file name and a part of a cgroup's.
pub fn check_id(id: &str) -> Result<(), StateError> {
    if id.is_empty() {
        return Err(StateError::EmptyId);
    }
    let sound = id.len() <= MAX_ID_BYTES
        && !matches!(id, "." | "..")
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.'));
    if sound { Ok(()) } else { Err(StateError::InvalidId(id.to_owned())) }
}

/// A container's directory below the state root.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Claims `<root>/<id>`, making the root where it lacks. Whoever makes the directory owns the id.
    pub fn create(root: &Path, id: &str) -> Result<Self, StateError> {
        check_id(id)?;
        let failed = |path: &Path, source| StateError::Io { doing: "make", path: path.to_owned(), source };
        let path = root.join(id);
        let mut builder = DirBuilder::new();
        builder.mode(0o711);
        // The root is there nearly always: try that first.
        match builder.create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                DirBuilder::new().mode(0o700).recursive(true).create(root).map_err(|e| failed(root, e))?;
                builder.create(&path).map_err(|error| failed(&path, error))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists);
            }
            other => other.map_err(|error| failed(&path, error))?,
        }
        Ok(Self { path })
    }

    /// An existing container's directory.
    pub fn open(root: &Path, id: &str) -> Result<Self, StateError> {
        check_id(id)?;
        let path = root.join(id);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self { path }),
            Ok(_) => Err(StateError::NotFound),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StateError::NotFound),
            Err(source) => Err(StateError::Io { doing: "look at", path, source }),
        }
    }

    /// The ids that have a directory below `root`, sorted. A root that is not there has none.
    pub fn ids(root: &Path) -> Result<Vec<String>, StateError> {
        let failed = |source| StateError::Io { doing: "list", path: root.to_owned(), source };
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if check_id(&name).is_ok() && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                ids.push(name);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the start gate's socket is.
    pub fn start_socket(&self) -> PathBuf {
        self.path.join(START)
    }

    /// Where a further file of the container's goes.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes the record so that a reader sees the old one or the new one.
    pub fn write(&self, record: &Record) -> Result<(), StateError> {
        let text = serde_json::to_vec(record).map_err(StateError::NotJson)?;
        self.replace(STATE, &text)
    }

    /// Keeps the spec, for what is executed in the container later.
    pub fn write_config(&self, text: &[u8]) -> Result<(), StateError> {
        self.replace(CONFIG, text)
    }

    fn replace(&self, name: &str, text: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.{}", std::process::id()));
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(text))
            .and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|source| {
            let _ = std::fs::remove_file(&temporary);
            StateError::Io { doing: "write", path, source }
        })
    }

    /// The record. One that is not there yet means that the container is being made: see [`Record::pid`].
    pub fn read(&self) -> Result<Option<Record>, StateError> {
        let path = self.path.join(STATE);
        match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(record) => Ok(Some(record)),
                Err(source) => Err(StateError::Damaged { path, source }),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { doing: "read", path, source }),
        }
    }

    /// The spec's copy.
    pub fn read_config(&self) -> Result<Vec<u8>, StateError> {
        let path = self.path.join(CONFIG);
        std::fs::read(&path).map_err(|source| StateError::Io { doing: "read", path, source })
    }

    /// The user id that made the container.
    pub fn owner(&self) -> Option<u32> {
        std::fs::metadata(&self.path).ok().map(|metadata| metadata.uid())
    }

    /// The status, from the facts of this moment. See the module's head.
    pub fn status(&self, record: &Record) -> Status {
        let Some(pid) = record.pid else { return Status::Creating };
        if !alive(pid, record.pid_start_time) {
            return Status::Stopped;
        }
        if std::fs::symlink_metadata(self.start_socket()).is_ok() {
            return Status::Created;
        }
        let frozen = Cgroup::open_record(&record.cgroup).and_then(|cgroup| cgroup.is_frozen());
        if frozen.unwrap_or(false) { Status::Paused } else { Status::Running }
    }

    /// Removes the directory with all that is in it; one that is gone already is fine.
    pub fn remove(&self) -> Result<(), StateError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StateError::Io { doing: "remove", path: self.path.clone(), source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Whether the process with this pid is the one that started then, and has not exited.
pub fn alive(pid: i32, start_time: u64) -> bool {
    matches!(process_stat(pid), Some((state, started)) if started == start_time && !matches!(state, 'Z' | 'X'))
}

/// When a process started, in clock ticks since boot; None: there is no such process.
pub fn start_time(pid: i32) -> Option<u64> {
    process_stat(pid).map(|(_, started)| started)
}

/// The state letter and the start time of /proc/PID/stat. See proc_pid_stat(5).
fn process_stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

/// The name, in parentheses, may hold anything, parentheses and newlines too: what counts starts behind the last one.
fn parse_stat(text: &[u8]) -> Option<(char, u64)> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&text[end + 1..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // State is field 3, the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        for id in ["a", "A-b_c.d+e", "..a", "1"] {
            check_id(id).unwrap();
        }
        for id in [".", "..", "a/b", "a b", "ä", "a\n", "-/", &"x".repeat(241)] {
            assert!(
                check_id(id).unwrap_err().to_string().starts_with("invalid container ID format"),
                "{id:?}"
            );
        }
        assert!(matches!(check_id(""), Err(StateError::EmptyId)));
    }

    #[test]
    fn stat_survives_hostile_names() {
        let stat =
            |name: &str| format!("7 ({name}) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1\n");
        assert_eq!(parse_stat(stat("sh").as_bytes()), Some(('S', 4711)));
        assert_eq!(parse_stat(stat(") Z 1 2 3 (x").as_bytes()), Some(('S', 4711)));
        assert_eq!(parse_stat(b"7 (sh"), None);
    }

    fn record(pid: Option<i32>, pid_start_time: u64) -> Record {
        Record {
            oci_version: "1.2.0".into(),
            id: "c".into(),
            pid,
            pid_start_time,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2024-01-01T00:00:00.000000000Z".into(),
            annotations: BTreeMap::new(),
            cgroup: CgroupRecord::default(),
            resctrl: None,
            systemd: false,
        }
    }

    #[test]
    fn a_directory_is_an_id_taken() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("deep/root");
        assert!(matches!(StateDir::open(&root, "c"), Err(StateError::NotFound)));
        let state = StateDir::create(&root, "c").unwrap();
        assert!(matches!(StateDir::create(&root, "c"), Err(StateError::Exists)));
        assert!(state.read().unwrap().is_none());
        state.write(&record(None, 0)).unwrap();
        assert_eq!(StateDir::ids(&root).unwrap(), ["c"]);
        assert_eq!(StateDir::open(&root, "c").unwrap().read().unwrap().unwrap().id, "c");
        std::fs::write(state.path().join(STATE), "{").unwrap();
        assert!(matches!(state.read(), Err(StateError::Damaged { .. })));
        state.remove().unwrap();
        state.remove().unwrap();
        assert!(StateDir::ids(&root).unwrap().is_empty());
    }

    #[test]
    fn the_status_follows_the_facts() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "c").unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let started = start_time(own).unwrap();
        assert_eq!(state.status(&record(None, 0)), Status::Creating);
        assert_eq!(state.status(&record(Some(own), started + 1)), Status::Stopped);
        assert_eq!(state.status(&record(Some(own), started)), Status::Running);
        std::fs::write(state.start_socket(), "").unwrap();
        assert_eq!(state.status(&record(Some(own), started)), Status::Created);
    }

    #[test]
    fn hooks_get_the_specified_fields_only() {
        let annotations = BTreeMap::new();
        let state = State {
            oci_version: "1.2.0",
            id: "c",
            pid: 7,
            status: Status::Creating,
            bundle: Path::new("/b"),
            rootfs: None,
            created: None,
            annotations: &annotations,
            owner: None,
        };
        let expected = r#"{"ociVersion":"1.2.0","id":"c","pid":7,"status":"creating","bundle":"/b"}"#;
        assert_eq!(String::from_utf8(state.to_json().unwrap()).unwrap(), expected);
    }
}
