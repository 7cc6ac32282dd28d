//! How much is used: by the filesystems below roots and state (statvfs(3)), and by one container's writable layer.
//!
//! The CRI asks for the bytes that images use on their filesystem. Knowing them exactly would mean walking every tree, so
//! what is told is the use of the whole filesystem each root is on: cheap, current, and what kubelet's eviction is about.
//!
//! A writable layer has no counter either, short of project quotas. It is walked, within limits of objects and time, at
//! most once in [`FRESH`]; in between the last figure stands, with the time it was taken. The walk happens in the caller's
//! thread: call [`WritableLayers::usage`] from one that may block, never from an async task.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;

use crate::beneath;
use crate::tree::{self, Limits, Outcome};

/// How long the figure of a writable layer stands.
pub const FRESH: Duration = Duration::from_secs(10);
/// Objects looked at in one layer.
const OBJECTS_MAX: u64 = 500_000;
/// Time spent on one layer.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes of a unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// The use of one filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The directory that stands for the filesystem: of several roots on one the first, and the
    /// state directory where that is on it too.
    pub path: PathBuf,
    /// Bytes used in the filesystem.
    pub used_bytes: u64,
    /// Inodes used; 0 where the filesystem does not count them.
    pub inodes_used: u64,
    /// When it was read.
    pub at: SystemTime,
}

/// The use of one writable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUsage {
    /// Bytes allocated on disk.
    pub bytes: u64,
    /// Objects, the layer's directory included.
    pub inodes: u64,
    /// When the walk ended.
    pub at: SystemTime,
    /// False where a limit ended it: it is at least this much.
    pub complete: bool,
}

/// The image filesystems (one for each that holds a root) and the one of the containers' writable layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUsage {
    /// Filesystems with roots. A root that is not there is left out; without any, it is the containers' filesystem.
    pub images: Vec<FsUsage>,
    /// The filesystem with the state directory.
    pub containers: FsUsage,
}

/// Why a filesystem could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the use of the filesystem at {path}")]
pub struct UsageError {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The use of the filesystems below `roots` and `state`. Where both are on one filesystem both are named by the state
/// directory, so that kubelet sees one filesystem and not two.
pub fn node_usage(roots: &[PathBuf], state: &Path) -> Result<NodeUsage, UsageError> {
    let (device, containers) = fs_usage(state)?;
    let mut by_device = BTreeMap::new();
    for root in roots {
        match fs_usage(root) {
            Ok((device, usage)) => {
                by_device.entry(device).or_insert(usage);
            }
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if by_device.is_empty() || by_device.contains_key(&device) {
        by_device.insert(device, containers.clone());
    }
    Ok(NodeUsage { images: by_device.into_values().collect(), containers })
}

fn fs_usage(path: &Path) -> Result<(u64, FsUsage), UsageError> {
    let fail = |source| UsageError { path: path.to_owned(), source };
    let device = std::fs::metadata(path).map_err(fail)?.dev();
    let fs = rustix::fs::statvfs(path).map_err(|errno| fail(errno.into()))?;
    let usage = FsUsage {
        path: path.to_owned(),
        used_bytes: fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(fs.f_frsize),
        inodes_used: fs.f_files.saturating_sub(fs.f_ffree),
        at: SystemTime::now(),
    };
    Ok((device, usage))
}

/// The last figures of all writable layers.
#[derive(Debug, Default)]
pub struct WritableLayers {
    /// A lock for each layer: who asks while it is being walked waits for that walk, and others do not.
    layers: Mutex<BTreeMap<PathBuf, Arc<Mutex<Option<Figure>>>>>,
}

#[derive(Debug, Clone, Copy)]
struct Figure {
    usage: LayerUsage,
    taken: Instant,
}

impl WritableLayers {
    /// The use of the layer at `upper`, at most [`FRESH`] old. Blocks while it walks.
    ///
    /// # Errors
    /// The layer is gone, or cannot be read.
    pub fn usage(&self, upper: &Path) -> Result<LayerUsage, UsageError> {
        let slot = Arc::clone(self.lock().entry(upper.to_owned()).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(figure) = *slot
            && figure.taken.elapsed() < FRESH
        {
            return Ok(figure.usage);
        }
        let usage = measure(upper).inspect_err(|_| {
            // A layer that is gone must not stay remembered.
            self.forget(upper);
        })?;
        *slot = Some(Figure { usage, taken: Instant::now() });
        Ok(usage)
    }

    /// The last figure, however old, without any walk.
    pub fn last(&self, upper: &Path) -> Option<LayerUsage> {
        let slot = Arc::clone(self.lock().get(upper)?);
        // Being walked just now: nothing to tell without waiting.
        let figure = *slot.try_lock().ok()?;
        figure.map(|figure| figure.usage)
    }

    /// Forgets a layer that was removed.
    pub fn forget(&self, upper: &Path) {
        self.lock().remove(upper);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Arc<Mutex<Option<Figure>>>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn measure(upper: &Path) -> Result<LayerUsage, UsageError> {
    let fail = |errno: Errno| UsageError { path: upper.to_owned(), source: errno.into() };
    let dir = beneath::open_trusted_dir(upper).map_err(fail)?;
    let allocated = |stat: &rustix::fs::Stat| u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES;
    let mut bytes = allocated(&rustix::fs::fstat(&dir).map_err(fail)?);
    let mut inodes = 1;
    let mut linked = HashSet::new();
    let limits = Limits { objects: OBJECTS_MAX, deadline: Some(Instant::now() + TIME_MAX) };
    let outcome = tree::walk(dir.as_fd(), limits, |found| {
        // Directories have links to themselves; everything else counts once.
        let once = found.kind == rustix::fs::FileType::Directory
            || found.stat.st_nlink < 2
            || linked.insert(found.stat.st_ino);
        if once {
            inodes += 1;
            bytes += allocated(found.stat);
        }
        Ok(true)
    })
    .map_err(|failure| fail(failure.errno))?;
    Ok(LayerUsage { bytes, inodes, at: SystemTime::now(), complete: outcome == Outcome::Complete })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_layer_is_walked_once_in_a_while() {
        let temp = tempfile::tempdir().unwrap();
        let upper = temp.path().join("upper");
        fs::create_dir_all(upper.join("a")).unwrap();
        fs::write(upper.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(upper.join("a/file"), upper.join("again")).unwrap();
        let layers = WritableLayers::default();
        assert_eq!(layers.last(&upper), None);
        let usage = layers.usage(&upper).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!(usage.complete && (100_000..200_000).contains(&usage.bytes), "{usage:?}");
        fs::write(upper.join("new"), "x").unwrap();
        assert_eq!(layers.usage(&upper).unwrap(), usage, "the figure stands for a while");
        assert_eq!(layers.last(&upper), Some(usage));
        layers.forget(&upper);
        assert_eq!(layers.usage(&upper).unwrap().inodes, 4);
        layers.forget(&upper);
        fs::remove_dir_all(&upper).unwrap();
        assert!(layers.usage(&upper).is_err());
        assert!(layers.lock().is_empty());
    }

    #[test]
    fn one_filesystem_is_told_once() {
        let temp = tempfile::tempdir().unwrap();
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let usage = node_usage(&[a.clone(), b, temp.path().join("gone")], temp.path()).unwrap();
        assert_eq!(usage.images.len(), 1);
        assert_eq!(usage.images[0].path, temp.path());
        assert!(usage.containers.used_bytes > 0 && usage.containers.inodes_used > 0);
        let usage = node_usage(&[PathBuf::from("/proc")], temp.path()).unwrap();
        assert_eq!(usage.images[0].path, Path::new("/proc"));
        let usage = node_usage(&[], temp.path()).unwrap();
        assert_eq!(usage.images, [usage.containers]);
        assert!(node_usage(&[a], Path::new("/nonexistent")).is_err());
    }
}
