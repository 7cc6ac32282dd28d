//! How large images are, found out beside the requests.
//!
//! The CRI wants a size that is not 0, and a tree must not be walked while somebody waits for an answer. So a size is
//! measured once per id, by one background thread that exists only while there is something to measure, within limits of
//! objects and time, and kept on disk. Until then [`UNMEASURED_BYTES`] is told. A tree on a network filesystem is not
//! walked unasked: reading all of a shared software tree's directories is no small thing.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use crate::beneath;
use crate::places::Roots;
use crate::records::{Records, Size};
use crate::tree::{self, Limits, Outcome};

/// The size told for an image whose tree was not measured yet.
pub const UNMEASURED_BYTES: u64 = 4096;
/// Objects looked at in one tree.
const OBJECTS_MAX: u64 = 1_000_000;
/// Time spent on one tree.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Entries waiting to be measured; the next list asks again for those that found no room.
const QUEUE_MAX: usize = 1024;
/// Ids remembered as measured or waiting.
const SEEN_MAX: usize = 100_000;
/// Hard-linked inodes remembered in one tree.
const LINKED_MAX: usize = 1_000_000;
/// statfs(2) types where a walk costs other machines: NFS, SMB, SMB2, FUSE (CVMFS, sshfs), Ceph, 9P, AFS, Lustre, GPFS.
const NETWORK_FILESYSTEMS: [u32; 9] = [
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x00c3_6400,
    0x0102_1997,
    0x5346_414f,
    0x0bd0_0bd0,
    0x4750_4653,
];

/// An entry to be measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Job {
    pub(crate) root: usize,
    pub(crate) path: PathBuf,
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) named_by_config: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// Ids waiting or done in this run: a tree that cannot be measured is not tried at every list.
    seen: BTreeSet<String>,
    /// Whether a thread takes from the queue.
    running: bool,
}

/// The queue and its thread.
#[derive(Debug)]
pub(crate) struct Measurer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    roots: Arc<Roots>,
    records: Arc<Records>,
    queue: Mutex<Queue>,
    stop: AtomicBool,
}

impl Measurer {
    pub(crate) fn new(roots: Arc<Roots>, records: Arc<Records>) -> Self {
        let shared = Shared { roots, records, queue: Mutex::default(), stop: AtomicBool::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// Has the entry measured some time, once per run.
    pub(crate) fn request(&self, job: Job) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.seen.len() >= SEEN_MAX {
            queue.seen.clear();
        }
        if queue.waiting.len() >= QUEUE_MAX || !queue.seen.insert(job.id.clone()) {
            return;
        }
        queue.waiting.push_back(job);
        if queue.running {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let spawned =
            std::thread::Builder::new().name("rootfs-size".to_owned()).spawn(move || shared.drain());
        match spawned {
            Ok(_) => queue.running = true,
            Err(error) => {
                tracing::warn!(%error, "no thread to measure images with; their sizes stay unknown");
            }
        }
    }
}

impl Drop for Measurer {
    /// The thread ends at the next object it looks at.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn drain(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let job = queue.waiting.pop_front();
                if job.is_none() || self.stop.load(Ordering::Relaxed) {
                    queue.running = false;
                    return;
                }
                job
            };
            let Some(job) = job else { return };
            self.measure_one(&job);
        }
    }

    fn measure_one(&self, job: &Job) {
        // Gone or refused meanwhile: whoever asks for it next is told why.
        let Ok(entry) = self.roots.entry_at(job.root, &job.path, job.named_by_config) else { return };
        if is_network(entry.tree()) {
            return;
        }
        let Some(size) = measure(entry.tree(), entry.id.clone(), &self.stop) else { return };
        if let Err(error) = self.records.measured(&entry.root, &entry.path, &job.key, size) {
            tracing::warn!(entry = %entry.location().display(), %error, "cannot record the size of an image");
        }
    }
}

/// Walks `tree` within the limits; None where it was stopped or could not be read.
pub(crate) fn measure(tree: BorrowedFd<'_>, id: String, stop: &AtomicBool) -> Option<Size> {
    let limits = Limits { objects: OBJECTS_MAX, deadline: Some(Instant::now() + TIME_MAX) };
    let (mut bytes, mut objects) = (0_u64, 0_u64);
    let mut linked = HashSet::new();
    let outcome = tree::walk(tree, limits, |found| {
        objects += 1;
        let first_link = found.stat.st_nlink < 2
            || found.kind != FileType::RegularFile
            || linked.len() >= LINKED_MAX
            || linked.insert((found.stat.st_dev, found.stat.st_ino));
        if found.kind == FileType::RegularFile && first_link {
            bytes = bytes.saturating_add(beneath::size_of(found.stat));
        }
        Ok(!stop.load(Ordering::Relaxed))
    });
    if stop.load(Ordering::Relaxed) {
        return None;
    }
    match outcome {
        Ok(outcome) => Some(Size { id, bytes, objects, complete: outcome == Outcome::Complete }),
        Err(failure) => {
            let path = String::from_utf8_lossy(&failure.path).into_owned();
            tracing::warn!(image = id, path, errno = %failure.errno, "cannot measure an image");
            None
        }
    }
}

fn is_network(tree: BorrowedFd<'_>) -> bool {
    // An O_PATH handle answers fstatfs since 3.12.
    rustix::fs::fstatfs(tree).is_ok_and(|fs| {
        NETWORK_FILESYSTEMS.iter().any(|magic| i64::from(*magic) == (fs.f_type & 0xffff_ffff))
    })
}
