//! Devices by name: the Container Device Interface (<https://github.com/cncf-tags/container-device-interface>, SPEC.md).
//!
//! ```text
//! config.CDI_devices, annotations cdi.k8s.io/*  -->  names  vendor.com/class=name
//! /etc/cdi, /var/run/cdi: *.json, *.yaml        -->  files  of the vendors' (format.rs)
//! the files' edits                              -->  the runtime-spec (edits.rs)
//! ```
//!
//! The directories are read when a container asks for a device, and only then: what a vendor's program has just written is there,
//! what it has removed is gone, and nothing has to be watched. A file that cannot be used takes nothing from the others; it is told
//! when a device cannot be found.
//!
//! The crate container-device-interface is not used: it validates by a JSON schema library that brings an HTTP client and TLS
//! (175 crates in all), one broken file hides every device, and it neither finds conflicts nor watches (its `cache.rs`).

mod edits;
mod format;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::check;
use crate::error::Error;

/// The longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The most files of one directory that are read.
const MAX_FILES: usize = 1024;

/// Annotations of containers whose values are names of devices, separated by commas: how device plugins asked before there
/// was a field.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// The names in a container's annotations.
pub fn annotated<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for (key, value) in annotations {
        if !key.starts_with(ANNOTATION_PREFIX) {
            continue;
        }
        for name in value.split(',') {
            names.push(name_of(&format!("config.annotations[{}]", check::shown(key)), name)?);
        }
    }
    Ok(names)
}

/// A well-formed name.
pub fn name_of(field: &str, name: &str) -> Result<String, Error> {
    if name.len() <= check::NAME_BYTES * 3 && format::qualified(name).is_some() {
        return Ok(name.to_owned());
    }
    let reason = format!("{} is not of the form vendor/class=name", check::shown(name));
    Err(Error::invalid(field, reason))
}

/// Gives the container of `spec` the devices, in their order. `directories` are those of the configuration. Blocks.
pub fn inject(spec: &mut Spec, devices: &[String], directories: &[PathBuf]) -> Result<(), Error> {
    if devices.is_empty() {
        return Ok(());
    }
    let scan = Scan::of(directories);
    let mut once = BTreeSet::new();
    for name in devices {
        let (file, device) = scan.find(name)?;
        let failed = |reason| Error::FailedPrecondition { what: "CDI device", id: name.clone(), reason };
        if once.insert(&file.path) {
            edits::apply(spec, &file.content.container_edits).map_err(failed)?;
        }
        edits::apply(spec, &device.container_edits).map_err(failed)?;
    }
    Ok(())
}

/// What is in the directories now.
struct Scan<'a> {
    directories: &'a [PathBuf],
    files: Vec<Found>,
    /// What could not be used, a sentence each.
    broken: Vec<String>,
}

/// A file that can be used.
struct Found {
    path: PathBuf,
    /// The place of its directory: later ones go before earlier ones.
    priority: usize,
    content: format::File,
}

impl<'a> Scan<'a> {
    fn of(directories: &'a [PathBuf]) -> Self {
        let mut scan = Self { directories, files: Vec::new(), broken: Vec::new() };
        for (priority, directory) in directories.iter().enumerate() {
            let entries = match fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    scan.broken.push(format!("{}: {error}", directory.display()));
                    continue;
                }
            };
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).take(MAX_FILES).collect();
            paths.sort();
            for path in paths {
                let yaml = match path.extension().and_then(|extension| extension.to_str()) {
                    Some("json") => false,
                    Some("yaml") => true,
                    _ => continue,
                };
                match read(&path).and_then(|text| format::parse(&text, yaml)) {
                    Ok(content) => scan.files.push(Found { path, priority, content }),
                    Err(reason) => scan.broken.push(format!("{}: {reason}", path.display())),
                }
            }
        }
        scan
    }

    /// The device of that name in the directory that goes before the others.
    fn find(&self, name: &str) -> Result<(&Found, &format::Device), Error> {
        let refused = |reason| Error::FailedPrecondition { what: "CDI device", id: name.to_owned(), reason };
        let (kind, wanted) = name.split_once('=').unwrap_or_default();
        let mut found: Vec<_> = self
            .files
            .iter()
            .filter(|file| file.content.kind == kind)
            .filter_map(|file| {
                Some((file, file.content.devices.iter().find(|device| device.name == wanted)?))
            })
            .collect();
        found.sort_by_key(|(file, _)| std::cmp::Reverse(file.priority));
        match found[..] {
            [] => Err(refused(self.missing())),
            [(first, _), (second, _), ..] if first.priority == second.priority => Err(refused(format!(
                "is in two files, {} and {}: neither is used",
                first.path.display(),
                second.path.display()
            ))),
            [first, ..] => Ok(first),
        }
    }

    /// Why a device may be missing.
    fn missing(&self) -> String {
        if self.directories.is_empty() {
            return "CDI is off on this node: devices.cdi_spec_dirs of the configuration is empty".to_owned();
        }
        let places: Vec<_> = self.directories.iter().map(|path| path.display().to_string()).collect();
        let mut reason = format!("no file in {} has it", places.join(" or "));
        for broken in &self.broken {
            reason.push_str("; unusable is ");
            reason.push_str(broken);
        }
        reason
    }
}

/// The whole of a regular file of bounded size.
fn read(path: &Path) -> Result<String, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err("is no regular file, or too long".to_owned());
    }
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    read.map_err(|error| error.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, value: &str) -> String {
        format!(
            r#"{{"cdiVersion": "1.0.0", "kind": "v.com/c", "containerEdits": {{"env": ["SHARED={value}"]}},
                "devices": [{{"name": "{name}", "containerEdits": {{"env": ["OWN_{name}={value}"]}}}}]}}"#
        )
    }

    fn env(devices: &[&str], directories: &[PathBuf]) -> Result<Vec<String>, String> {
        let mut spec = Spec::default();
        let devices: Vec<_> = devices.iter().map(|&name| name.to_owned()).collect();
        inject(&mut spec, &devices, directories).map_err(|error| error.to_string())?;
        let env = spec.process().as_ref().unwrap().env().clone().unwrap_or_default();
        Ok(env.into_iter().filter(|entry| entry.starts_with("OWN") || entry.starts_with("SHARED")).collect())
    }

    #[test]
    fn a_later_directory_goes_before_and_a_tie_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dirs = [root.path().join("etc"), root.path().join("run"), root.path().join("none")];
        fs::create_dir(&dirs[0]).unwrap();
        fs::create_dir(&dirs[1]).unwrap();
        fs::write(dirs[0].join("a.json"), file("0", "etc")).unwrap();
        fs::write(dirs[0].join("b.json"), file("1", "etc")).unwrap();
        fs::write(dirs[0].join("broken.json"), "{").unwrap();
        fs::write(dirs[0].join("notes.txt"), "{").unwrap();
        assert_eq!(env(&["v.com/c=0"], &dirs).unwrap(), ["SHARED=etc", "OWN_0=etc"]);
        fs::write(dirs[1].join("a.yaml"), file("0", "run")).unwrap();
        assert_eq!(env(&["v.com/c=0"], &dirs).unwrap(), ["SHARED=run", "OWN_0=run"]);
        fs::write(dirs[1].join("b.json"), file("0", "again")).unwrap();
        let error = env(&["v.com/c=0"], &dirs).unwrap_err();
        assert!(error.contains("is in two files") && error.contains("a.yaml"), "{error}");
        let error = env(&["v.com/c=9"], &dirs).unwrap_err();
        assert!(error.contains("no file in") && error.contains("broken.json"), "{error}");
        assert!(env(&["v.com/c=0"], &[]).unwrap_err().contains("CDI is off"));
    }

    #[test]
    fn annotations_name_devices_too() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        let names = annotated(&map(&[("cdi.k8s.io/plugin_1", "v/c=0,v/c=1"), ("other", "x")])).unwrap();
        assert_eq!(names, ["v/c=0", "v/c=1"]);
        assert!(annotated(&map(&[("cdi.k8s.io/plugin_1", "v/c=0,,")])).is_err());
    }
}
