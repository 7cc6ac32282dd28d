//! The OCI bundle of one container (runtime-spec, bundle.md): `<container dir>/config.json` and `<container dir>/rootfs`.
//!
//! `rootfs` is an empty directory and stays one on the host: init moves the detached root mount onto it in its own mount
//! namespace. The configuration only has to survive the daemon, not a power loss, which no container survives: it is
//! renamed into place and not synced.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::atomic::{self, Durability};

/// The runtime configuration in a bundle.
pub const CONFIG: &str = "config.json";
/// The directory the root is mounted on.
pub const ROOTFS: &str = "rootfs";

/// Why a bundle could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The specification cannot be JSON.
    #[error("the container's specification cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// A file or directory could not be made: no space, for one.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the bundle into `container_dir`, which exists. A second call replaces the configuration.
///
/// # Errors
/// [`BundleError`]; then the old configuration, if any, is still whole.
pub fn write(container_dir: &Path, spec: &Spec) -> Result<(), BundleError> {
    let rootfs = container_dir.join(ROOTFS);
    match fs::DirBuilder::new().mode(0o700).create(&rootfs) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(BundleError::Write { path: rootfs, source: error });
        }
        _ => {}
    }
    let path = container_dir.join(CONFIG);
    let json = serde_json::to_vec(spec)?;
    atomic::write(&path, &json, Durability::Crash).map_err(|source| BundleError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_written_and_replaced_whole() {
        let temp = tempfile::tempdir().unwrap();
        let mut spec = Spec::default();
        write(temp.path(), &spec).unwrap();
        spec.set_hostname(Some("second".to_owned()));
        write(temp.path(), &spec).unwrap();
        let read = Spec::load(temp.path().join(CONFIG)).unwrap();
        assert_eq!(read.hostname().as_deref(), Some("second"));
        let mut names: Vec<_> =
            fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [CONFIG, ROOTFS], "no temporary file is left");
        assert!(matches!(write(Path::new("/nonexistent"), &spec), Err(BundleError::Write { .. })));
    }
}
