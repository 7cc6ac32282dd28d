//! Loading a bundle's `config.json`. See the runtime-spec's `config.md`.
//!
//! The file is somebody else's: its size is capped, it must be a regular file, and a value of the wrong type
//! is refused with the path of its field. What Go's JSON reader accepts is accepted: unknown fields, and
//! `null` for "absent". Whether the values make sense is [`crate::plan`]'s to say.

pub mod default;
mod keys;

use std::io::Read;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::capabilities;

/// The name of the file in a bundle.
pub const CONFIG: &str = "config.json";

/// The newest version of the runtime-spec that is understood whole.
pub const OCI_VERSION: &str = "1.3.0";

/// The oldest version of the runtime-spec that is accepted.
pub const OCI_VERSION_MIN: &str = "1.0.0";

/// The largest `config.json` that is read.
pub const MAX_CONFIG_BYTES: u64 = 16 * 1024 * 1024;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// There is no such file.
    #[error("JSON specification file {0} not found")]
    NotFound(PathBuf),
    /// It cannot be opened or read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is a directory, a FIFO, a device or the like.
    #[error("{0} is not a regular file")]
    NotRegular(PathBuf),
    /// It is larger than [`MAX_CONFIG_BYTES`].
    #[error("{0} is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge(PathBuf),
    /// It is no JSON.
    #[error("not a JSON document")]
    Syntax(#[source] serde_json::Error),
    /// A field has a value that cannot be meant.
    #[error("{field}")]
    Field {
        /// The field's path, as `linux.uidMappings[0].size`.
        field: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A version of the spec that is not ours.
    #[error("ociVersion: {0:?} is not supported: this is a runtime for 1.x")]
    Version(String),
}

/// A spec as it was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The typed spec.
    pub spec: Spec,
    /// The same document as JSON, for what the typed one lacks.
    pub raw: Value,
    /// What was left out because it is unknown, one sentence each.
    pub warnings: Vec<String>,
}

/// Reads and checks `<bundle>/config.json`.
pub fn load(bundle: &Path) -> Result<Loaded, SpecError> {
    parse(&read_capped(&bundle.join(CONFIG))?)
}

/// Reads and checks a `config.json`'s content.
pub fn parse(text: &[u8]) -> Result<Loaded, SpecError> {
    let mut raw: Value = serde_json::from_slice(text).map_err(SpecError::Syntax)?;
    drop_nulls(&mut raw);
    keys::fold(&mut raw);
    check_version(&raw)?;
    let mut warnings = Vec::new();
    if let Some(process) = raw.get_mut("process") {
        normalise_process(process, "process", &mut warnings);
    }
    let mut typed = raw.clone();
    take_out_scheduler_flags(typed.get_mut("process"));
    normalise_linux(&mut typed);
    Ok(Loaded { spec: typed_value(typed)?, raw, warnings })
}

/// Reads a `process.json`, the runtime-spec's `process` alone. The second result is its JSON, the third what was left out.
pub fn load_process(path: &Path) -> Result<(Process, Value, Vec<String>), SpecError> {
    parse_process(&read_given(path)?)
}

/// As [`load_process`], for its content.
pub fn parse_process(text: &[u8]) -> Result<(Process, Value, Vec<String>), SpecError> {
    let mut raw: Value = serde_json::from_slice(text).map_err(SpecError::Syntax)?;
    drop_nulls(&mut raw);
    keys::fold(&mut raw);
    let mut warnings = Vec::new();
    normalise_process(&mut raw, "process", &mut warnings);
    let mut typed = raw.clone();
    take_out_scheduler_flags(Some(&mut typed));
    Ok((typed_value(typed)?, raw, warnings))
}

/// Reads any other JSON value of the runtime-spec, such as the `linux.resources` given to an update.
pub fn parse_value<T: DeserializeOwned>(text: &[u8]) -> Result<T, SpecError> {
    let mut raw: Value = serde_json::from_slice(text).map_err(SpecError::Syntax)?;
    drop_nulls(&mut raw);
    keys::fold(&mut raw);
    typed_value(raw)
}

/// Reads what a person names on the command line: also a pipe, such as a shell's `<(…)`, which is waited for. At most [`MAX_CONFIG_BYTES`].
pub fn read_given(path: &Path) -> Result<Vec<u8>, SpecError> {
    let failed = |source: std::io::Error| SpecError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return read_capped(path);
    }
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|pipe| pipe.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(SpecError::TooLarge(path.to_owned()));
    }
    Ok(text)
}

/// Reads a regular file of at most [`MAX_CONFIG_BYTES`]. It is opened without blocking, so a FIFO cannot hang the caller.
pub fn read_capped(path: &Path) -> Result<Vec<u8>, SpecError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => SpecError::NotFound(path.to_owned()),
        _ => SpecError::Read { path: path.to_owned(), source },
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let mut file = std::fs::File::from(file);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SpecError::NotRegular(path.to_owned()));
    }
    let mut text = Vec::with_capacity(usize::try_from(metadata.len().min(MAX_CONFIG_BYTES)).unwrap_or(0) + 1);
    file.by_ref().take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(SpecError::TooLarge(path.to_owned()));
    }
    Ok(text)
}

fn typed_value<T: DeserializeOwned>(value: Value) -> Result<T, SpecError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => "the document".to_owned(),
            path => path,
        };
        SpecError::Field { field, source: error.into_inner() }
    })
}

/// 1.x in any form, also `1.0.2-dev`.
fn check_version(raw: &Value) -> Result<(), SpecError> {
    match raw.get("ociVersion") {
        None if raw.is_object() => Err(SpecError::Version(String::new())),
        Some(Value::String(version)) => {
            let mut parts = version.splitn(3, '.');
            let known = parts.next() == Some("1")
                && parts.next().is_some_and(|minor| minor.parse::<u32>().is_ok())
                && parts.next().is_some();
            if known { Ok(()) } else { Err(SpecError::Version(version.clone())) }
        }
        // The typed reader refuses what is no string, with the field's path.
        _ => Ok(()),
    }
}

/// Go's reader takes `null` for the zero value, so tools written in Go write it for "absent".
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(array) => array.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Leaves out unknown capabilities, as runc does (a newer tool may name newer ones), and fills in what only
/// the typed reader insists on.
fn normalise_process(process: &mut Value, field: &str, warnings: &mut Vec<String>) {
    let Some(process) = process.as_object_mut() else { return };
    process.entry("user").or_insert_with(|| Value::Object(serde_json::Map::new()));
    process.entry("cwd").or_insert_with(|| Value::String(String::new()));
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else { return };
    let mut unknown = std::collections::BTreeSet::new();
    for names in sets.values_mut() {
        let Some(names) = names.as_array_mut() else { continue };
        names.retain(|name| {
            let Value::String(name) = name else { return true };
            let known = capabilities::number(name).is_some() && name.starts_with("CAP_");
            if !known {
                unknown.insert(name.clone());
            }
            known
        });
    }
    if !unknown.is_empty() {
        let unknown: Vec<_> = unknown.into_iter().collect();
        // The first words are runc's, which tools know.
        let names = unknown.join(" ");
        warnings
            .push(format!("ignoring unknown or unavailable capabilities: [{names}] of {field}.capabilities"));
    }
}

/// The type crate spells the scheduler's flags unlike the runtime-spec; the plan reads them from the raw document.
fn take_out_scheduler_flags(process: Option<&mut Value>) {
    if let Some(Value::Object(scheduler)) = process.and_then(|process| process.get_mut("scheduler")) {
        scheduler.remove("flags");
    }
}

/// Takes out what the plan reads from the raw document itself, with errors of its own, and the empty strings that mean
/// "absent" where the typed reader knows only its own words.
fn normalise_linux(spec: &mut Value) {
    let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) else { return };
    linux.remove("memoryPolicy");
    if let Some(seccomp) = linux.get("seccomp") {
        let action = seccomp.get("defaultAction").and_then(Value::as_str).unwrap_or_default();
        let syscalls = seccomp.get("syscalls").and_then(Value::as_array).is_none_or(Vec::is_empty);
        if action.is_empty() && syscalls {
            linux.remove("seccomp");
        }
    }
    let rules = linux.get_mut("resources").and_then(|resources| resources.get_mut("devices"));
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut()
            && rule.get("type").and_then(Value::as_str) == Some("")
        {
            rule.remove("type");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(error: &dyn std::error::Error) -> String {
        match error.source() {
            Some(source) => format!("{error}: {}", chain(source)),
            None => error.to_string(),
        }
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let text = br#"{"ociVersion":"1.0.0","linux":{"uidMappings":[{"hostID":1,"containerID":0,"size":4294967296}]}}"#;
        let message = chain(&parse(text).unwrap_err());
        assert!(message.starts_with("linux.uidMappings[0].size: "), "{message}");
    }

    #[test]
    fn users_beyond_u32_are_refused() {
        let text = br#"{"ociVersion":"1.0.0","process":{"cwd":"/","user":{"uid":4294967296,"gid":0}}}"#;
        let message = chain(&parse(text).unwrap_err());
        assert!(message.starts_with("process.user.uid: "), "{message}");
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let text =
            br#"{"ociVersion":"1.2.0","mounts":null,"process":{"args":null,"cwd":"/"},"zebra":{"x":[null]}}"#;
        let loaded = parse(text).unwrap();
        assert!(loaded.spec.mounts().is_none());
        assert!(loaded.spec.process().as_ref().unwrap().args().is_none());
    }

    #[test]
    fn unknown_capabilities_are_left_out_with_a_warning() {
        let text = br#"{"ociVersion":"1.2.0","process":{"cwd":"/","capabilities":{"bounding":["CAP_KILL","CAP_FLY"]}}}"#;
        let loaded = parse(text).unwrap();
        assert_eq!(
            loaded.warnings,
            ["ignoring unknown or unavailable capabilities: [CAP_FLY] of process.capabilities"]
        );
        let process = loaded.spec.process().as_ref().unwrap();
        let bounding = process.capabilities().as_ref().unwrap().bounding();
        assert_eq!(capabilities::from_spec(bounding.as_ref()), 1 << 5);
    }

    #[test]
    fn other_major_versions_are_refused() {
        for version in ["0.5.0", "2.0.0", "1", "1.x.0", ""] {
            let text = format!(r#"{{"ociVersion":{version:?}}}"#);
            assert!(matches!(parse(text.as_bytes()), Err(SpecError::Version(_))), "{version}");
        }
        assert!(parse(br#"{"ociVersion":"1.0.2-dev"}"#).is_ok());
        assert!(matches!(parse(b"{}"), Err(SpecError::Version(_))));
        assert!(matches!(parse(br#"{"ociVersion":1}"#), Err(SpecError::Field { .. })));
        assert!(matches!(parse(b"null"), Err(SpecError::Field { .. })));
    }

    #[test]
    fn a_fifo_or_a_directory_does_not_hang() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(matches!(load(bundle.path()), Err(SpecError::NotFound(_))));
        std::fs::create_dir(bundle.path().join(CONFIG)).unwrap();
        assert!(matches!(load(bundle.path()), Err(SpecError::NotRegular(_))));
        std::fs::remove_dir(bundle.path().join(CONFIG)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, bundle.path().join(CONFIG), Mode::from_raw_mode(0o600))
            .unwrap();
        assert!(matches!(load(bundle.path()), Err(SpecError::NotRegular(_))));
    }
}
