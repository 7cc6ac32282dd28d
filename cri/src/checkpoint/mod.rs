//! CheckpointContainer: a running container's processes and changed files as one archive, while the container goes on.
//!
//! ```text
//! lock the container's directory        one checkpoint of it at a time
//! <location's directory>/.podwright-…   the archive, mode 0600, under a name of its own
//! <container>/checkpoint/               that name, criu's images; on its last notification, when all stands still, rootfs-diff.tar
//! archive written, synced, renamed to the location
//! ```
//!
//! criu is the daemon's child, not the monitor's: the monitor is not asked, so every container's output flows on. The daemon
//! knows the pid, the spec and the cgroup, which is all that criu needs. Should the daemon die, criu finds nobody at its next
//! notification and lets the processes go on; the next daemon takes away what was made so far ([`clear`]).
//!
//! Nothing is ever restored from an archive: what is in one was a container's, and so is hostile.

mod archive;
mod metadata;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use runtime::cgroup::Cgroup;
use runtime::checkpoint::{CgroupsMode, DumpOptions, Images, Options, Target, dump};
use runtime::plan::Plan;
use runtime::{Failure, Step};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tracing::info_span;

use crate::check;
use crate::container::find;
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::pod::{ContainerState, ContainerView, PodView};
use crate::v1::CheckpointContainerRequest;
use archive::{Archive, Stop};

/// How many checkpoints are taken at once on a node; further ones wait for their turn. Each reads all memory of its container and writes it twice.
pub const AT_ONCE: usize = 2;

/// How long a checkpoint may take where the request leaves it to the runtime.
const DEFAULT_LIMIT: Duration = Duration::from_secs(600);

/// The longest limit, which keeps arithmetic on deadlines in range.
const MAX_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The directory of what is being archived, below the container's.
const WORK: &str = "checkpoint";

/// In it, the name that the archive has until it is finished.
const UNFINISHED: &str = "archive";

/// criu's images, there and in the archive.
const IMAGES: &str = "checkpoint";

/// How often the removal of that is tried again.
const CLEAR_ATTEMPTS: usize = 10;

/// criu's own general configuration for containers, as administrators know it from runc; it goes before our options.
const CRIU_CONFIG: &str = "/etc/criu/runc.conf";

/// CheckpointContainer.
#[tracing::instrument(name = "checkpoint_container", skip_all, fields(id = request.container_id, location = request.location))]
pub async fn container(daemon: &Arc<Daemon>, request: CheckpointContainerRequest) -> Result<(), Error> {
    let found = find(daemon, &request.container_id)?;
    let location = check::absolute_path("location", &request.location)?;
    let limit = limit(request.timeout)?;
    let id = found.container.record.id.clone();
    if !matches!(found.container.state, ContainerState::Running { .. }) {
        let reason = "is not running, so there is nothing to checkpoint".into();
        return Err(Error::FailedPrecondition { what: "container", id, reason });
    }
    if !runtime::checkpoint::is_available() {
        return Err(Error::Unimplemented {
            what: "CheckpointContainer without criu, which is not on the daemon's PATH,".into(),
        });
    }
    let late = || Error::DeadlineExceeded { what: format!("the checkpoint of container {id}"), limit };
    let deadline = Instant::now() + limit;
    let turn = tokio::time::timeout_at(deadline.into(), Arc::clone(&daemon.checkpoints).acquire_owned());
    let turn = turn.await.map_err(|_| late())?.map_err(|error| Error::internal("take a turn", error))?;
    let left = Arc::new(AtomicBool::new(false));
    let guard = LeftOnDrop(Arc::clone(&left));
    let job = Job {
        daemon: Arc::clone(daemon),
        pod: found.pod_view,
        container: found.container,
        location,
        stop: Stop { deadline, left },
    };
    let taken = blocking(info_span!("checkpoint"), move || {
        let _turn = turn;
        job.run()
    });
    let taken = taken.await;
    drop(guard);
    match taken {
        Err(error) if error.code() == tonic::Code::DeadlineExceeded => Err(late()),
        Err(_) if Instant::now() >= deadline => Err(late()),
        other => other,
    }
}

/// The time that a request gives, in seconds; 0 leaves it to us.
fn limit(seconds: i64) -> Result<Duration, Error> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(seconds) => Ok(Duration::from_secs(seconds).min(MAX_LIMIT)),
        Err(_) => Err(Error::invalid("timeout", "must not be negative; 0 leaves it to the runtime")),
    }
}

/// Says so when the caller has left: nobody would know of the archive.
struct LeftOnDrop(Arc<AtomicBool>);

impl Drop for LeftOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One checkpoint.
struct Job {
    daemon: Arc<Daemon>,
    pod: Arc<PodView>,
    container: Arc<ContainerView>,
    location: PathBuf,
    stop: Stop,
}

impl Job {
    /// Takes it. Blocks. Nothing is left when it fails.
    fn run(&self) -> Result<(), Error> {
        let record = &self.container.record;
        let dir = self.daemon.directories(&record.sandbox).container(&record.id);
        let _lock = lock(&dir, &record.id)?;
        let work = Work::make(&dir)?;
        let note = |temporary: &Path| {
            let path = work.0.join(UNFINISHED);
            fs::write(&path, temporary.as_os_str().as_encoded_bytes()).map_err(|source| Error::Io {
                action: "write",
                path,
                source,
            })
        };
        let mut archive = Archive::create(&self.location, self.stop.clone(), note)?;
        let (text, plan) = self.plan(&dir)?;
        let deleted = self.dump(&dir, &work.0, &plan)?;
        self.fill(&mut archive, &work.0, &text, &deleted)?;
        archive.finish()
    }

    /// The container's spec, as it is and as the engine reads it.
    fn plan(&self, dir: &Path) -> Result<(Vec<u8>, Plan), Error> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::internal(format!("read the spec of container {}", self.container.record.id), error)
        };
        let text = runtime::spec::read_capped(&dir.join(imageless::bundle::CONFIG))
            .map_err(|error| failed(error.into()))?;
        let loaded = runtime::spec::parse(&text).map_err(|error| failed(error.into()))?;
        let plan = Plan::from_spec(&loaded.spec, &loaded.raw, dir).map_err(|error| failed(error.into()))?;
        Ok((text, plan))
    }

    /// Processes, and, while they stand still, the files they changed. The result is what they deleted.
    fn dump(&self, dir: &Path, work: &Path, plan: &Plan) -> Result<Vec<PathBuf>, Error> {
        let record = &self.container.record;
        let engine = |failure| Error::Engine { what: "container", id: record.id.clone(), failure };
        let path = self.daemon.cgroup_path(&record.cgroups_path, &record.id)?;
        let cgroup = Cgroup::open(&self.daemon.hierarchies, &path).map_err(engine)?;
        let target = Target { pid: self.container.pid().unwrap_or(0), plan, cgroup: &cgroup };
        let images = Images { path: work.join(IMAGES), work: Some(work.to_owned()) };
        let options = DumpOptions {
            // Whatever it is connected to or has locked is no reason not to look at it.
            common: Options {
                tcp_established: true,
                ext_unix_sockets: true,
                file_locks: true,
                // criu would mount the hierarchies anew, which changes options of the host's (checkpoint-restore/criu#3029).
                cgroups: CgroupsMode::Ignore,
                config_file: Some(PathBuf::from(CRIU_CONFIG)),
                ..Options::default()
            },
            leave_running: true,
            unlocked_network: true,
            ..DumpOptions::default()
        };
        let mut deleted = Vec::new();
        let mut stopped = || {
            deleted = self.changed_files(dir, work, plan).map_err(|error| Failure {
                errno: errno_of(&error),
                ..Failure::because(
                    Step::Checkpoint,
                    format!("archive the writable layer: {}", error.sentence()),
                )
            })?;
            Ok(())
        };
        dump(target, &images, options, Some(self.stop.deadline), &mut stopped).map_err(engine)?;
        Ok(deleted)
    }

    /// The writable layer, but the places of mounts.
    fn changed_files(&self, dir: &Path, work: &Path, plan: &Plan) -> Result<Vec<PathBuf>, Error> {
        let record = &self.container.record;
        let path = work.join(metadata::ROOTFS_DIFF);
        let failed = |error: std::io::Error| Error::Io { action: "write", path: path.clone(), source: error };
        // The image may be another by now, or gone; then it is not known what opaque directories hide.
        let entry = self.daemon.images().resolve(&record.image.name).ok();
        let entry = entry.filter(|entry| entry.id == record.image.id);
        let skip = |below: &Path| {
            let absolute = Path::new("/").join(below);
            plan.mounts.iter().any(|mount| mount.destination == absolute)
        };
        let mut tar = archive::file(&path, self.stop.clone()).map_err(failed)?;
        let upper = dir.join(imageless::rootfs::UPPER);
        let diff = imageless::diff::write(&upper, entry.as_ref().map(|entry| entry.tree()), &skip, &mut tar);
        let diff = diff.map_err(|error| Error::internal(format!("container {}", record.id), error))?;
        tar.into_inner().and_then(|mut writer| std::io::Write::flush(&mut writer)).map_err(failed)?;
        if !diff.complete {
            tracing::warn!(
                "the checkpoint lacks a part of the writable layer: it is nested too deeply, or hides what is not known"
            );
        }
        Ok(diff.deleted)
    }

    /// Everything into the archive, in the order in which readers look for it.
    fn fill(
        &self,
        archive: &mut Archive,
        work: &Path,
        spec: &[u8],
        deleted: &[PathBuf],
    ) -> Result<(), Error> {
        let described = metadata::Described { pod: &self.pod, container: &self.container };
        archive.bytes(metadata::CONFIG_DUMP, &described.config_dump()?)?;
        archive.bytes(metadata::SPEC_DUMP, spec)?;
        archive.bytes(metadata::STATUS, &described.status()?)?;
        archive.bytes(metadata::BIND_MOUNTS, &metadata::bind_mounts(spec)?)?;
        for name in [runtime::checkpoint::DUMP_LOG, "stats-dump"] {
            archive.file(Path::new(name), &work.join(name))?;
        }
        archive.directory(Path::new(IMAGES))?;
        for name in names(&work.join(IMAGES))? {
            let image = work.join(IMAGES).join(&name);
            archive.file(&Path::new(IMAGES).join(&name), &image)?;
            // Memory is not kept twice for longer than it must be.
            fs::remove_file(&image).map_err(|source| Error::Io { action: "remove", path: image, source })?;
        }
        archive.file(Path::new(metadata::ROOTFS_DIFF), &work.join(metadata::ROOTFS_DIFF))?;
        if !deleted.is_empty() {
            archive.bytes(metadata::DELETED_FILES, &metadata::deleted_files(deleted)?)?;
        }
        match &self.container.record.log_path {
            Some(log) => archive.growing(Path::new(metadata::CONTAINER_LOG), log),
            None => Ok(()),
        }
    }
}

/// The errno at the root of an error; 0: it has none.
fn errno_of(error: &Error) -> i32 {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return errno;
        }
        cause = error.source();
    }
    0
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, Error> {
    let listed = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>());
    let mut names = listed.map_err(|source| Error::Io { action: "list", path: dir.to_owned(), source })?;
    names.sort_unstable();
    Ok(names)
}

/// One checkpoint of a container at a time, whichever daemon takes it.
fn lock(dir: &Path, id: &str) -> Result<OwnedFd, Error> {
    let failed = |errno: Errno| Error::Io { action: "lock", path: dir.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(failed)?;
    match rustix::fs::flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(Errno::AGAIN) => Err(Error::FailedPrecondition {
            what: "container",
            id: id.to_owned(),
            reason: "is being checkpointed already".into(),
        }),
        Err(errno) => Err(failed(errno)),
    }
}

/// The directory of one checkpoint, gone with it.
struct Work(PathBuf);

impl Work {
    /// A fresh one.
    fn make(dir: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        clear(dir)?;
        let path = dir.join(WORK);
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        for path in [path.clone(), path.join(IMAGES)] {
            builder.create(&path).map_err(|source| Error::Io { action: "make", path, source })?;
        }
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = imageless::rootfs::remove_dir(&self.0) {
            tracing::warn!(%error, "what a checkpoint left cannot be removed");
        }
    }
}

/// Removes what a daemon that died while it took a checkpoint has left, of the container whose directory this is: the work, and the
/// archive so far. Blocks. True: there was something.
pub fn clear(dir: &Path) -> Result<bool, Error> {
    let path = dir.join(WORK);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(false);
    }
    let mut noted = Vec::new();
    // Twice the longest path, to be sure that it is all of it.
    let read = open_regular(&path.join(UNFINISHED)).and_then(|file| file.take(8192).read_to_end(&mut noted));
    if read.is_ok() {
        archive::remove_unfinished(Path::new(OsStr::from_bytes(&noted)));
    }
    let mut removed = imageless::rootfs::remove_dir(&path);
    // A criu that has not noticed yet may add a file behind the removal's back, until its directory is gone.
    for _ in 0..CLEAR_ATTEMPTS {
        if removed.is_ok() {
            break;
        }
        removed = imageless::rootfs::remove_dir(&path);
    }
    removed.map_err(|error| Error::internal("remove an earlier checkpoint", error))?;
    Ok(true)
}

/// A file that is to be read whole, opened without following a link and without waiting for anybody.
fn open_regular(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_bounded_and_never_negative() {
        assert_eq!(limit(0).unwrap(), DEFAULT_LIMIT);
        assert_eq!(limit(7).unwrap(), Duration::from_secs(7));
        assert_eq!(limit(i64::MAX).unwrap(), MAX_LIMIT);
        assert!(limit(-1).is_err());
    }

    #[test]
    fn what_a_dead_daemon_left_is_cleared_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!clear(dir.path()).unwrap());
        let (unfinished, other) = (dir.path().join(".podwright-0123"), dir.path().join("finished.tar"));
        for noted in [&unfinished, &other, &PathBuf::from(".podwright-relative"), &PathBuf::new()] {
            fs::write(&unfinished, "half").unwrap();
            fs::write(&other, "whole").unwrap();
            let work = std::mem::ManuallyDrop::new(Work::make(dir.path()).unwrap());
            fs::write(work.0.join(UNFINISHED), noted.as_os_str().as_bytes()).unwrap();
            fs::write(work.0.join(IMAGES).join("pages-1.img"), "memory").unwrap();
            assert!(clear(dir.path()).unwrap());
            assert!(!work.0.exists());
            assert_eq!(unfinished.exists(), *noted != unfinished);
            assert!(other.exists());
        }
    }

    #[test]
    fn a_container_has_one_checkpoint_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path(), "c").unwrap();
        assert_eq!(lock(dir.path(), "c").unwrap_err().code(), tonic::Code::FailedPrecondition);
        drop(first);
        lock(dir.path(), "c").unwrap();
    }
}
