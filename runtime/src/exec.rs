//! One more process in a running container.
//!
//! The child joins every namespace of the container's init that differs from the caller's, at once and by init's pidfd, so that
//! no path is trusted; it is born in init's PID namespace. From there on it is made as init was: [`crate::init::become_process`].
//! What it gets of the container is what its own `process` says: capabilities, no_new_privs, limits, labels, the score of the OOM
//! killer; the same seccomp profile; a session keyring of its own.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::container::Stdio;
use crate::handshake::{End, FromChild};
use crate::init::{self, Terminal};
use crate::namespaces::{self, Route};
use crate::plan::{NamespaceKind, Process};
use crate::procfs::Procfs;
use crate::spawn::{SPAWN_DEADLINE, Spawn, spawn};
use crate::{Failure, Step, lsm, process, seccomp, sys};

/// What to run where.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The pid of the container's init in the caller's PID namespace.
    pub init: i32,
    /// The pidfd of the container's init.
    pub init_pidfd: BorrowedFd<'a>,
    /// What to run.
    pub process: &'a Process,
    /// The cgroup it begins in: the container's, or one below it.
    pub cgroup: &'a mut Cgroup,
    /// Its stdin, stdout and stderr.
    pub stdio: Stdio,
    /// The container's compiled seccomp profile.
    pub seccomp: Option<&'a seccomp::Program>,
    /// So many descriptors from 3 on stay open in it.
    pub preserve_fds: u32,
}

/// A process that executes its program.
#[derive(Debug)]
pub struct Execed {
    /// Its pid in the caller's PID namespace.
    pub pid: i32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// The master of its pseudo-terminal, with [`Stdio::Pty`].
    pub console: Option<OwnedFd>,
}

/// Runs a process in a container and returns once it executes its program.
///
/// # Errors
/// The step that failed; [`Step::Exec`] where the program cannot be found or executed. No process is left then.
pub fn exec(request: ExecRequest<'_>) -> Result<Execed, Failure> {
    let ExecRequest { init, init_pidfd, process, cgroup, stdio, seccomp, preserve_fds } = request;
    lsm::check(process.apparmor_profile.as_deref(), process.selinux_label.as_deref())?;
    let differing = namespaces::differing(init).map_err(|errno| {
        Failure::os(Step::Namespace, errno).with_message("the container's init is not there any more")
    })?;
    let pid_namespace = NamespaceKind::Pid.flag();
    let parent = Spawn {
        route: &Route::direct(),
        pid_namespace_of: (differing & pid_namespace != 0).then_some(init_pidfd),
        cgroup: Some(cgroup),
        oom_score_adj: process.oom_score_adj,
        maps: (&[], &[]),
        before_pivot: &|_| Ok(()),
    };
    let spawned = spawn(parent, |link, _| {
        let target = Target { pidfd: init_pidfd, namespaces: differing & !pid_namespace };
        run(&target, process, &stdio, (seccomp, preserve_fds), link)
    })?;
    // Ready was its last word unless execve fails; its end closes when that succeeds.
    match spawned.link.next(Instant::now() + SPAWN_DEADLINE) {
        Ok(None) => Ok(Execed { pid: spawned.pid, pidfd: spawned.pidfd, console: spawned.fd }),
        Ok(Some(packet)) => {
            spawned.reap();
            match packet.message {
                FromChild::Failed(failure) => Err(failure),
                _ => Err(Failure::because(Step::Handshake, "an exec'd process spoke out of turn")),
            }
        }
        Err(failure) => {
            spawned.reap();
            Err(failure)
        }
    }
}

/// Which namespaces to join.
struct Target<'a> {
    pidfd: BorrowedFd<'a>,
    /// `CLONE_NEW*` flags, without the PID namespace, which the process was born in.
    namespaces: u32,
}

/// The child's half.
fn run(
    target: &Target<'_>,
    process: &Process,
    stdio: &Stdio,
    (filter, preserve_fds): (Option<&seccomp::Program>, u32),
    link: &End,
) -> Result<Infallible, Failure> {
    sys::reset_signals();
    if let Some(list) = &process.cpu_affinity_initial {
        process::affinity(list)?;
    }
    if target.namespaces != 0 {
        namespaces::enter(target.pidfd, target.namespaces).map_err(|errno| {
            Failure::os(Step::Namespace, errno).with_message("join the container's namespaces")
        })?;
    }
    if target.namespaces & NamespaceKind::User.flag() != 0 {
        namespaces::become_root()?;
    }
    rustix::process::setsid().map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    let procfs = Procfs::open()?;
    process::session_keyring(process.selinux_label.as_deref(), &procfs)?;
    let (master, peer) = match stdio {
        Stdio::Pty => Some(new_pty()?),
        Stdio::Inherit | Stdio::Fds { .. } => None,
    }
    .unzip();
    let terminal = Terminal { peer, stdio: stdio.duplicate()? };
    let program = init::become_process(process, terminal, &procfs, filter.is_some())??;
    drop(procfs);
    match &master {
        Some(master) => link.tell(&FromChild::Ready, &[master.as_fd()])?,
        None => link.tell(&FromChild::Ready, &[])?,
    }
    drop(master);
    init::execute_program(&program, preserve_fds, filter)
}

/// A pseudo-terminal of the container's devpts: (master, peer). Its multiplexer is proven to be one before it is used, since
/// the container may have put anything there.
fn new_pty() -> Result<(OwnedFd, OwnedFd), Failure> {
    const PATH: &str = "/dev/ptmx";
    let failed = |errno| Failure::at(Step::Console, errno, PATH);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open(PATH, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&master).map_err(failed)?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::CharacterDevice
        || device != (5, 2)
    {
        return Err(failed(Errno::NODEV).with_message("is not a pseudo-terminal multiplexer"));
    }
    rustix::io::ioctl_fionbio(&master, false).map_err(failed)?;
    sys::unlock_pty(master.as_fd()).map_err(failed)?;
    let peer = sys::pty_peer(master.as_fd()).map_err(failed)?;
    Ok((master, peer))
}
