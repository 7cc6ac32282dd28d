//! What the daemon keeps on disk about pods and containers, so that the next one knows them.
//!
//! ```text
//! <state>/pods/<id>/sandbox.json                           SandboxRecord
//! <state>/pods/<id>/containers/<id>/container.json         ContainerRecord
//! <state>/pods/<id>/containers/<id>/exit.json              ExitRecord, written by the monitor
//! ```
//!
//! A record is on disk before its pod's or container's first side effect, in phase `creating`, so that whatever a crash
//! leaves behind is found by it. It is written to a temporary name and renamed. It is not fsynced: no process it speaks
//! of survives a power loss either. One that cannot be read is set aside by [`crate::recover`], never fatal.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use runtime::monitor::protocol::ExitRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::translate::Identity;
use crate::v1;

/// The shape of the records; a daemon refuses records of a later one.
const VERSION: u32 = 1;

/// The longest record that is read, in bytes: above anything that the checks on requests let through.
const MAX_RECORD_BYTES: u64 = 32 * 1024 * 1024;

/// A pod, as `sandbox.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Its id: the directory's name.
    pub id: String,
    /// `/proc/sys/kernel/random/boot_id` of the boot it ran in.
    pub boot_id: String,
    /// How far it got.
    pub phase: SandboxPhase,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// The request.
    pub config: v1::PodSandboxConfig,
    /// The request's handler.
    pub runtime_handler: String,
    /// Cgroup directories that were made for the pod, to be removed with it if they are empty then.
    #[serde(default)]
    pub made_cgroups: Vec<PathBuf>,
}

/// How far a pod got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxPhase {
    /// Its parts are being made: nobody knows its id yet.
    Creating,
    /// It has, or had, a monitor.
    Ready,
    /// Everything of it was stopped and released; only the record and its containers' are left.
    Stopped,
}

/// A container, as `container.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Its id: the directory's name.
    pub id: String,
    /// Its pod's id.
    pub sandbox: String,
    /// False: its parts are being made, and nobody knows its id yet.
    pub complete: bool,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// The request.
    pub config: v1::ContainerConfig,
    /// What it runs from.
    pub image: ImageUse,
    /// The log file; None: none.
    pub log_path: Option<PathBuf>,
    /// Who its first process is.
    pub identity: Identity,
    /// The number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// The limits in force.
    pub resources: v1::LinuxContainerResources,
    /// `linux.cgroupsPath` of its spec.
    pub cgroups_path: PathBuf,
    /// Set when its end was not seen by its monitor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// The image of a container, as statuses tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// The image's first name, or what the request calls it.
    pub name: String,
    /// The image's id.
    pub id: String,
}

/// The end of a container whose end nobody saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// `MonitorLost` or `NodeRebooted`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What is known of it: the exit code is [`UNKNOWN_EXIT_CODE`], the time is when it was found out.
    pub exit: ExitRecord,
}

/// The exit code of a container whose end nobody saw; what containerd's users know it by.
pub const UNKNOWN_EXIT_CODE: i32 = 255;

impl SandboxRecord {
    /// The first record of a pod.
    pub fn new(id: &str, boot_id: &str, config: v1::PodSandboxConfig, runtime_handler: &str) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            boot_id: boot_id.to_owned(),
            phase: SandboxPhase::Creating,
            created_at_ns: now_ns(),
            config,
            runtime_handler: runtime_handler.to_owned(),
            made_cgroups: Vec::new(),
        }
    }

    /// Writes it into its pod's directory.
    pub fn write(&self, pod_dir: &Path) -> Result<(), Error> {
        write(&pod_dir.join(SANDBOX), self)
    }

    /// Reads it back.
    pub fn read(pod_dir: &Path) -> Result<Self, Error> {
        let path = pod_dir.join(SANDBOX);
        let record: Self = read(&path)?;
        known_version(&path, record.version)?;
        Ok(record)
    }
}

impl ContainerRecord {
    /// The shape written now.
    pub const VERSION: u32 = VERSION;

    /// Writes it into its container's directory.
    pub fn write(&self, container_dir: &Path) -> Result<(), Error> {
        write(&container_dir.join(CONTAINER), self)
    }

    /// Reads it back.
    pub fn read(container_dir: &Path) -> Result<Self, Error> {
        let path = container_dir.join(CONTAINER);
        let record: Self = read(&path)?;
        known_version(&path, record.version)?;
        Ok(record)
    }
}

/// Reads what the monitor wrote when the container exited. None: it has not, or not in a monitor's sight.
pub fn read_exit(container_dir: &Path) -> Result<Option<ExitRecord>, Error> {
    match read(&container_dir.join(EXIT)) {
        Ok(record) => Ok(Some(record)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

const SANDBOX: &str = "sandbox.json";
const CONTAINER: &str = "container.json";
const EXIT: &str = "exit.json";

/// Now, in nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Writes `value` as JSON to a temporary name beside `path` and renames it.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let json = serde_json::to_vec(value)
        .map_err(|error| Error::internal(format!("encode {}", path.display()), error))?;
    let failed = |source| Error::Io { action: "write", path: path.to_owned(), source };
    let temporary = path.with_extension("json.tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    let written = file.write_all(&json).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // A full disk must not be left fuller.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

/// Reads a record; an error that is not [`Error::Io`] means that it is corrupt.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::internal(format!("{} is corrupt", path.display()), error))
}

fn known_version(path: &Path, version: u32) -> Result<(), Error> {
    if version <= VERSION {
        return Ok(());
    }
    let error = format!("version {version} is later than this daemon's {VERSION}");
    Err(Error::internal(format!("{} cannot be used", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let config = v1::PodSandboxConfig { hostname: "h".into(), ..Default::default() };
        let record = SandboxRecord::new("p1", "boot", config, "");
        record.write(directory.path()).unwrap();
        assert_eq!(SandboxRecord::read(directory.path()).unwrap(), record);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["sandbox.json"], "no temporary file stays");
    }

    #[test]
    fn a_corrupt_or_later_record_is_refused_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sandbox.json");
        fs::write(&path, "{\"version\":1,").unwrap();
        let error = SandboxRecord::read(directory.path()).unwrap_err();
        assert!(error.to_string().contains("sandbox.json is corrupt"), "{error}");
        let mut record = SandboxRecord::new("p1", "boot", v1::PodSandboxConfig::default(), "");
        record.version = 99;
        record.write(directory.path()).unwrap();
        let error = SandboxRecord::read(directory.path()).unwrap_err().sentence();
        assert!(error.contains("version 99"), "{error}");
    }

    #[test]
    fn a_missing_exit_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_exit(directory.path()).unwrap(), None);
    }
}
