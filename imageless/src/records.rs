//! What is remembered about entries between runs: `<state>/images/<key>.json`, one file for each entry that was ever
//! registered, unregistered or measured.
//!
//! The key is a hash of the entry's place, so that a changed sidecar (and with it a changed id) does not bring an
//! unregistered image back. Registration survives a power loss; a size is only a cache. A record that cannot be read is set
//! aside as `<key>.json.corrupt`: its entry counts as never registered, which is how every entry begins.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::atomic::{self, Durability};

/// Most records that are read.
const RECORDS_MAX: usize = 100_000;
/// Largest record.
const RECORD_MAX_BYTES: u64 = 64 << 10;
const SUFFIX: &str = ".json";

/// Whether an image is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Registration {
    /// Never asked for: shown because it is there.
    #[default]
    Present,
    /// Pulled.
    Pulled,
    /// Removed, and not shown until pulled.
    Removed,
}

/// How much an entry's tree holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// The id it was measured under.
    pub id: String,
    /// Bytes of its regular files, each hard-linked file once.
    pub bytes: u64,
    /// Objects in it.
    pub objects: u64,
    /// False where the walk stopped at its limits: it is at least this large.
    pub complete: bool,
}

/// One entry's record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The configured root.
    pub(crate) root: PathBuf,
    /// The real path below it.
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) registration: Registration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<Size>,
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    by_key: Mutex<BTreeMap<String, Record>>,
}

impl Records {
    /// Reads the records in `dir`, which is made if it is not there.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut by_key = BTreeMap::new();
        for file in fs::read_dir(dir)?.take(RECORDS_MAX) {
            let file = file?;
            let name = file.file_name();
            let key = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|key| is_key(key));
            let Some(key) = key else { continue };
            match read(&file.path()) {
                Ok(record) => {
                    by_key.insert(key.to_owned(), record);
                }
                Err(error) => set_aside(&file.path(), &error),
            }
        }
        Ok(Self { dir: dir.to_owned(), by_key: Mutex::new(by_key) })
    }

    /// The directory they are in.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn registration(&self, key: &str) -> Registration {
        self.lock().get(key).map(|record| record.registration).unwrap_or_default()
    }

    /// The size measured under this id.
    pub(crate) fn size(&self, key: &str, id: &str) -> Option<Size> {
        self.lock().get(key)?.size.clone().filter(|size| size.id == id)
    }

    /// The places of all pulled entries.
    pub(crate) fn pulled(&self) -> Vec<(PathBuf, PathBuf)> {
        self.lock()
            .values()
            .filter(|record| record.registration == Registration::Pulled)
            .map(|record| (record.root.clone(), record.path.clone()))
            .collect()
    }

    pub(crate) fn register(
        &self,
        root: &Path,
        path: &Path,
        key: &str,
        registration: Registration,
    ) -> io::Result<()> {
        self.update(root, path, key, Durability::PowerLoss, |record| record.registration = registration)
    }

    pub(crate) fn measured(&self, root: &Path, path: &Path, key: &str, size: Size) -> io::Result<()> {
        self.update(root, path, key, Durability::Crash, |record| record.size = Some(size))
    }

    /// Disk first, then memory: a failed write changes nothing.
    fn update(
        &self,
        root: &Path,
        path: &Path,
        key: &str,
        durability: Durability,
        change: impl FnOnce(&mut Record),
    ) -> io::Result<()> {
        let mut records = self.lock();
        let mut record = records.get(key).cloned().unwrap_or_else(|| Record {
            root: root.to_owned(),
            path: path.to_owned(),
            ..Record::default()
        });
        change(&mut record);
        if records.get(key) == Some(&record) {
            return Ok(());
        }
        atomic::write(&self.dir.join(format!("{key}{SUFFIX}")), &serde_json::to_vec(&record)?, durability)?;
        records.insert(key.to_owned(), record);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Record>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn read(path: &Path) -> io::Result<Record> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(RECORD_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn set_aside(path: &Path, error: &io::Error) {
    let aside = path.with_extension("json.corrupt");
    let moved = fs::rename(path, &aside);
    tracing::warn!(
        path = %path.display(),
        aside = %aside.display(),
        moved = moved.is_ok(),
        %error,
        "image record cannot be read and is set aside; its image counts as never registered"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_a_corrupt_one_is_set_aside() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("images");
        let (root, path) = (Path::new("/roots"), Path::new("a/b"));
        let key = crate::entry::key(root, path);
        let records = Records::open(&dir).unwrap();
        assert_eq!(records.registration(&key), Registration::Present);
        records.register(root, path, &key, Registration::Removed).unwrap();
        let size = Size { id: "sha256:x".to_owned(), bytes: 5, objects: 1, complete: true };
        records.measured(root, path, &key, size.clone()).unwrap();

        let records = Records::open(&dir).unwrap();
        assert_eq!(records.registration(&key), Registration::Removed);
        assert_eq!(records.size(&key, "sha256:x"), Some(size));
        assert_eq!(records.size(&key, "sha256:y"), None, "the size of another state of the entry");

        fs::write(dir.join(format!("{key}.json")), "{").unwrap();
        fs::write(dir.join("stranger.json"), "{").unwrap();
        let records = Records::open(&dir).unwrap();
        assert_eq!(records.registration(&key), Registration::Present);
        assert!(dir.join(format!("{key}.json.corrupt")).exists());
        assert!(dir.join("stranger.json").exists());
    }
}
