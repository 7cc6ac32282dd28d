//! Checkpoint and restore of a container through criu (criu(8), <https://criu.org>).
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | what is asked for; dumping |
//! | `restore.rs` | restoring |
//! | `external.rs` | what is not the container's own: binds, joined namespaces |
//! | `criu.rs` | criu as a child, and the conversation with it |
//! | `rpc.rs` | the messages of that |
//! | `log.rs` | what criu's log says about a failure |
//!
//! criu is found on PATH and driven by its RPC over a socket pair, not by its command line: that is the only way to get a restored
//! container as a child of ours, its terminal, and a say while its processes stand still.
//!
//! What is in an image directory is criu's, but for `descriptors.json`: what init's stdio was, as an array of three link texts.
//! Names and places are runc's, so that each restores what the other dumped.

mod criu;
mod external;
mod log;
mod progress;
mod restore;
mod rpc;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

pub use restore::{RestoreOptions, RestoreRequest, Restored, restore};

use crate::cgroup::{Cgroup, Controller};
use crate::mounts::resolve::{self, Links};
use crate::plan::Plan;
use crate::{Failure, Step};
use criu::{Criu, Patience, Setup};
use rpc::{Features, Kind, Options as RpcOptions, Request, Response};

/// The file in an image directory that tells what the container's stdio was.
pub const DESCRIPTORS: &str = "descriptors.json";

/// criu's log of a dump, in the work directory.
pub const DUMP_LOG: &str = "dump.log";

/// The verbosity of criu's log: everything.
const LOG_LEVEL: i32 = 4;

/// How long criu may take to find out what it and the kernel can.
const FEATURES_DEADLINE: Duration = Duration::from_secs(60);

/// criu's `CRIU_NETWORK_LOCK_METHOD__SKIP`.
const NETWORK_LOCK_SKIP: i32 = 3;

/// Whether there is a criu on this process's PATH.
pub fn is_available() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| {
        let file = rustix::fs::access(directory.join(criu::PROGRAM), rustix::fs::Access::EXEC_OK);
        file.is_ok()
    })
}

/// Where criu keeps what it needs: images, and its log and statistics.
#[derive(Debug, Clone)]
pub struct Images {
    /// The images. Absolute.
    pub path: PathBuf,
    /// The log and statistics; Absolute; None: with the images.
    pub work: Option<PathBuf>,
}

impl Images {
    fn log(&self, name: &str) -> PathBuf {
        self.work.as_ref().unwrap_or(&self.path).join(name)
    }
}

/// What criu does about cgroups and their limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum CgroupsMode {
    /// Nothing: restored processes are in the cgroup that criu is in.
    Ignore = 0,
    /// Limits are restored for cgroups that criu makes.
    Soft = 3,
    /// Limits are always restored.
    Full = 4,
    /// Cgroups that are there must have the dumped limits.
    Strict = 5,
    /// criu's own choice.
    #[default]
    Default = 6,
}

/// What a dump and a restore have in common.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools)] // Each is a switch of criu's.
pub struct Options {
    /// Established TCP connections are taken along.
    pub tcp_established: bool,
    /// Unix sockets with a peer outside are allowed.
    pub ext_unix_sockets: bool,
    /// A session or terminal that is another's is allowed.
    pub shell_job: bool,
    /// File locks are taken along.
    pub file_locks: bool,
    /// Memory comes when it is touched (userfaultfd(2)).
    pub lazy_pages: bool,
    /// What an image's parent has too is taken out of the parent.
    pub auto_dedup: bool,
    /// About cgroups.
    pub cgroups: CgroupsMode,
    /// A configuration of criu's that goes before these options; one that is not there is none.
    pub config_file: Option<PathBuf>,
}

/// What a dump alone has.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // Each is a switch of criu's.
pub struct DumpOptions {
    /// What a restore has too.
    pub common: Options,
    /// The processes go on afterwards; else they are killed.
    pub leave_running: bool,
    /// Memory only, and the processes go on: the first part of a dump that then takes less time.
    pub pre_dump: bool,
    /// The images of an earlier pre-dump, relative to the image directory.
    pub parent: Option<PathBuf>,
    /// Connections that are just being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files that are open and deleted are given a name.
    pub link_remap: bool,
    /// Memory goes to, or with lazy pages is served at, this address and port.
    pub page_server: Option<(String, u16)>,
    /// Packets go on coming while connections are dumped. For a dump that nothing is restored from while the container goes on: criu's
    /// lock is firewall rules in the container's network namespace, which may be others' too, and stays if criu dies.
    pub unlocked_network: bool,
    /// Gets one zero byte when lazy pages are served, and is then closed.
    pub status: Option<OwnedFd>,
}

/// A running container to dump.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its init's pid in the caller's PID namespace.
    pub pid: i32,
    /// What it was made from.
    pub plan: &'a Plan,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
}

/// Dumps a container. By `deadline`, if one is given, it is done or given up, and the processes go on. `stopped` is called when all
/// is dumped and every process still stands still; its failure is the dump's.
///
/// # Errors
/// [`Step::Checkpoint`] with criu's own last words. The container goes on as it was; the image directory may hold some files.
pub fn dump(
    target: Target<'_>,
    images: &Images,
    mut options: DumpOptions,
    deadline: Option<Instant>,
    stopped: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let directories = Directories::make(images)?;
    require_features(&options)?;
    let mut status = options.status.take();
    let rpc = dump_options(target, &directories, &options)?;
    if !options.pre_dump {
        write_descriptors(target.pid, &images.path)?;
    }
    let kind = if options.pre_dump { Kind::PreDump } else { Kind::Dump };
    let request = Request { kind: kind as i32, options: Some(rpc), ..Request::default() };
    let was_frozen = target.cgroup.is_frozen().unwrap_or(false);
    let mut criu = Criu::start(&Setup::default())?;
    // Without a deadline a person waits, who can tell a slow network or a late reader of lazy pages from a dead criu.
    let patience = deadline.map_or(Patience::Endless, Patience::Until);
    let answered = criu.ask(&request, patience, &mut |notify, _| match notify.script.as_deref() {
        Some("post-dump") => stopped(),
        Some("status-ready") => tell_ready(status.take()),
        _ => Ok(()),
    });
    let ended = criu.end();
    if answered.is_err() && !was_frozen {
        // A criu that was killed may have left it frozen.
        let _ = target.cgroup.thaw();
    }
    let response = answered?;
    done(&response, kind, &images.log(DUMP_LOG))?;
    match ended {
        // Of a pre-dump criu thinks that more must follow.
        Some(status) if !status.success() && !options.pre_dump => {
            let message = format!("criu has dumped, and then failed: {status}");
            Err(criu_failed(&images.log(DUMP_LOG), message, 0))
        }
        _ => Ok(()),
    }
}

fn dump_options(
    target: Target<'_>,
    directories: &Directories,
    options: &DumpOptions,
) -> Result<RpcOptions, Failure> {
    let Target { pid, plan, cgroup } = target;
    let page_server = options.page_server.as_ref().map(|(address, port)| rpc::PageServer {
        address: Some(address.clone()),
        port: Some(i32::from(*port)),
    });
    let parent = options.parent.as_deref().map(|path| text(path).map(str::to_owned)).transpose()?;
    Ok(RpcOptions {
        pid: Some(pid),
        root: Some(text(&plan.rootfs.path)?.to_owned()),
        log_file: Some(DUMP_LOG.to_owned()),
        leave_running: Some(options.leave_running),
        tcp_skip_in_flight: Some(options.tcp_skip_in_flight),
        link_remap: Some(options.link_remap),
        page_server,
        network_lock: options.unlocked_network.then_some(NETWORK_LOCK_SKIP),
        track_mem: parent.as_ref().map(|_| true),
        parent_img: parent,
        freeze_cgroup: freezer(cgroup).map(|path| text(path).map(str::to_owned)).transpose()?,
        external: external::dumped_namespaces(plan, pid)?,
        // A pre-dump looks at memory only.
        ext_mnt: if options.pre_dump { Vec::new() } else { external::dumped_mounts(plan, pid, cgroup)? },
        ..common_options(&options.common, directories)?
    })
}

/// The options that a dump and a restore share.
fn common_options(options: &Options, directories: &Directories) -> Result<RpcOptions, Failure> {
    let config_file = options.config_file.as_deref().map(|path| text(path).map(str::to_owned)).transpose()?;
    Ok(RpcOptions {
        images_dir_fd: directories.images.as_raw_fd(),
        work_dir_fd: directories.work.as_ref().map(AsRawFd::as_raw_fd),
        log_level: Some(LOG_LEVEL),
        notify_scripts: Some(true),
        tcp_established: Some(options.tcp_established),
        ext_unix_sk: Some(options.ext_unix_sockets),
        shell_job: Some(options.shell_job),
        file_locks: Some(options.file_locks),
        lazy_pages: Some(options.lazy_pages),
        auto_dedup: Some(options.auto_dedup),
        evasive_devices: Some(true),
        orphan_pts_master: Some(true),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(options.cgroups as i32),
        // Network devices are those who made them's to restore.
        empty_ns: Some(crate::plan::NamespaceKind::Network.flag()),
        config_file,
        ..RpcOptions::default()
    })
}

/// The cgroup by whose freezer criu stops the processes: the one that `wright pause` freezes too.
fn freezer(cgroup: &Cgroup) -> Option<&Path> {
    cgroup.directory_v2().or_else(|| cgroup.directory(Controller::Freezer))
}

/// Refuses what this criu, or this kernel, cannot.
fn require_features(options: &DumpOptions) -> Result<(), Failure> {
    let (tracking, lazy) = (options.pre_dump, options.common.lazy_pages);
    if !tracking && !lazy {
        return Ok(());
    }
    let wanted = Features { memory_tracking: tracking.then_some(true), lazy_pages: lazy.then_some(true) };
    let request = Request { kind: Kind::FeatureCheck as i32, features: Some(wanted), ..Request::default() };
    let patience = Patience::Until(Instant::now() + FEATURES_DEADLINE);
    let response = Criu::start(&Setup::default())?.ask(&request, patience, &mut |_, _| Ok(()))?;
    let there = response.features.unwrap_or_default();
    let missing = [
        (tracking && there.memory_tracking != Some(true), "memory tracking"),
        (lazy && there.lazy_pages != Some(true), "lazy pages"),
    ];
    match missing.iter().find(|(missing, _)| *missing) {
        Some((_, name)) => {
            let message = format!("criu is missing features: {name}, which it or this kernel lacks");
            Err(Failure::because(Step::Checkpoint, message))
        }
        None => Ok(()),
    }
}

/// A descriptor that the caller's process was given by its number, to be used as [`DumpOptions::status`].
///
/// # Errors
/// It is not open, not writable, or of this process's own making.
pub fn status_descriptor(number: i32) -> Result<OwnedFd, Failure> {
    let refused = |errno: Errno| {
        Failure::os(Step::Checkpoint, errno).with_message(format!("invalid --status-fd argument {number}"))
    };
    crate::sys::adopt_writable(number).map_err(refused)
}

/// The zero byte for who waits for lazy pages to be served.
fn tell_ready(status: Option<OwnedFd>) -> Result<(), Failure> {
    match status {
        Some(fd) => {
            rustix::io::write(&fd, &[0]).map(|_| ()).map_err(|errno| Failure::os(Step::Checkpoint, errno))
        }
        None => Ok(()),
    }
}

/// What criu's last answer means.
fn done(response: &Response, kind: Kind, log: &Path) -> Result<(), Failure> {
    if response.success && response.kind == kind as i32 {
        return Ok(());
    }
    let said = log::last_errors(log).or_else(|| response.error.clone()).unwrap_or_default();
    let what = match kind {
        Kind::Restore => "restore",
        Kind::PreDump => "pre-dump",
        _ => "dump",
    };
    let errno = response.errno.unwrap_or(0).saturating_abs();
    Err(criu_failed(log, format!("criu failed: {what}: {said}"), errno))
}

/// A failure of criu's, which its log tells more about. criu has no errno for most.
fn criu_failed(log: &Path, message: String, errno: i32) -> Failure {
    let path = Some(log.to_string_lossy().into_owned());
    Failure { step: Step::Checkpoint, errno, path, message: Some(message) }
}

/// The directories that criu works in, open: it finds them through our /proc/PID/fd.
#[derive(Debug)]
struct Directories {
    images: OwnedFd,
    work: Option<OwnedFd>,
}

impl Directories {
    /// Opens them, made where they are missing.
    fn make(images: &Images) -> Result<Self, Failure> {
        for path in [Some(&images.path), images.work.as_ref()].into_iter().flatten() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| io_failed(&error, path))?;
        }
        Self::open(images)
    }

    /// Opens them.
    fn open(images: &Images) -> Result<Self, Failure> {
        Self::open_with(images, &|path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty())
        })
    }

    /// Opens them as a process with a mount namespace of its own has them: in a directory of another namespace it could not mount.
    fn open_of(images: &Images, pid: u32) -> Result<Self, Failure> {
        let root = format!("/proc/{pid}/root");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &root, flags, Mode::empty())
            .map_err(|errno| Failure::at(Step::Checkpoint, errno, &root))?;
        Self::open_with(images, &|path| {
            resolve::open(root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY, Links::Follow)
        })
    }

    fn open_with(images: &Images, open: &dyn Fn(&Path) -> Result<OwnedFd, Errno>) -> Result<Self, Failure> {
        let open = |path: &Path| open(path).map_err(|errno| Failure::at(Step::Checkpoint, errno, path));
        Ok(Self { images: open(&images.path)?, work: images.work.as_deref().map(open).transpose()? })
    }
}

/// Notes what init's stdio is, so that what is a pipe can be another pipe when it is restored.
fn write_descriptors(pid: i32, images: &Path) -> Result<(), Failure> {
    let link = |number: i32| {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
        match std::fs::read_link(&path) {
            Ok(target) => Ok(target.to_string_lossy().into_owned()),
            // Closed, which is the program's own business.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(io_failed(&error, &path)),
        }
    };
    let links = [link(0)?, link(1)?, link(2)?];
    let path = images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&links).map_err(|error| io_failed(&error.into(), &path))?;
    std::fs::write(&path, text).map_err(|error| io_failed(&error, &path))
}

fn io_failed(error: &std::io::Error, path: &Path) -> Failure {
    Failure::at(Step::Checkpoint, Errno::from_io_error(error).unwrap_or(Errno::IO), path)
}

/// criu's messages are text.
fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .ok_or_else(|| Failure::at(Step::Checkpoint, Errno::ILSEQ, path).with_message("is not UTF-8"))
}
