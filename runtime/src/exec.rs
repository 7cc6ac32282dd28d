//! One more process in a running container.
//!
//! The child joins every namespace of the container's init that differs from the caller's, at once and by init's pidfd, so that
//! no path is trusted; it is born in init's PID namespace. From there on it is made as init was: [`crate::launch`].
//! What it gets of the container is what its own `process` says: capabilities, no_new_privs, limits, labels, the score of the OOM
//! killer; the same seccomp profile; a session keyring of its own.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::CapabilitySet;

use crate::cgroup::Cgroup;
use crate::console::{self, Pty};
use crate::container::Stdio;
use crate::handshake::{End, FromChild};
use crate::launch::{self, Affinity, Launch, Program};
use crate::namespaces::{self, Route};
use crate::plan::{MemoryPolicy, NamespaceKind, Process};
use crate::spawn::{SPAWN_DEADLINE, Spawn, Spawned, held, spawn};
use crate::state::State;
use crate::{Failure, Step, init, lsm, process, relay, resctrl, seccomp, sys};

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
    /// The container, as [`seccomp::Program::listener`] is told of it; None is for a filter that has no such listener.
    pub container: Option<State<'a>>,
    /// So many descriptors from 3 on stay open in it.
    pub preserve_fds: u32,
    /// The container's personality(2).
    pub personality: Option<u32>,
    /// The container's resctrl groups.
    pub resctrl: Option<&'a resctrl::Group>,
    /// The container's memory policy.
    pub memory_policy: Option<&'a MemoryPolicy>,
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
    let ExecRequest { init, init_pidfd, process, cgroup, stdio, seccomp, preserve_fds, .. } = request;
    lsm::check(process.apparmor_profile.as_deref(), process.selinux_label.as_deref())?;
    let differing = namespaces::differing(init).map_err(|errno| {
        Failure::os(Step::Namespace, errno).with_message("the container's init is not there any more")
    })?;
    let (route, target) = ways(differing, init_pidfd)?;
    let pid_namespace = differing & NamespaceKind::Pid.flag() != 0;
    let parent = Spawn {
        route: &route,
        pid_namespace_of: (pid_namespace && !route.intermediate).then_some(init_pidfd),
        cgroup: Some(cgroup),
        beside: Some(init.unsigned_abs()),
        resctrl: request.resctrl,
        affinity: process.cpu_affinity_initial.as_deref(),
        rlimits: &process.rlimits,
        oom_score_adj: process.oom_score_adj,
        maps: (&[], &[]),
        net_devices: &[],
        before_pivot: &|_| Ok(()),
        agent: seccomp.and_then(seccomp::Program::listener).zip(request.container),
        map_owners: &|_, _| Err(Failure::because(Step::Handshake, "an exec'd process mounts nothing")),
    };
    let launch = Launch {
        process,
        affinity: match (&process.cpu_affinity_initial, &process.cpu_affinity_final) {
            (_, Some(list)) => Affinity::List(list),
            (Some(_), None) => Affinity::Kept,
            (None, None) => Affinity::Cgroup,
        },
        personality: request.personality,
        memory_policy: request.memory_policy,
        seccomp,
        user_namespace: target.mapped,
    };
    let attributes = parent.oom_score_adj.is_some() || parent.resctrl.is_some();
    let spawned = spawn(parent, |link, _| {
        if attributes {
            link.ask(&FromChild::Attributes)?;
        }
        run(&target, &launch, &stdio, preserve_fds, link)
    })?;
    // Ready was its last word unless execve fails; its end closes when that succeeds.
    match spawned.link.next(Instant::now() + SPAWN_DEADLINE) {
        Ok(None) => {
            let Spawned { pid, pidfd, fd: console, .. } = spawned;
            Ok(Execed { pid, pidfd, console })
        }
        Ok(Some(packet)) => {
            spawned.reap();
            match packet.message {
                FromChild::Failed(failure) => Err(failure),
                _ => Err(Failure::because(Step::Handshake, "an exec'd process spoke out of turn")),
            }
        }
        Err(failure) => {
            spawned.reap();
            Err(held(failure, seccomp.is_some_and(launch::is_early)))
        }
    }
}

/// Which namespaces to join.
struct Target<'a> {
    pidfd: BorrowedFd<'a>,
    /// `CLONE_NEW*` flags of those that are still to be joined.
    namespaces: u32,
    /// Whether the process comes into another user namespace.
    mapped: bool,
}

/// How to come into the namespaces that differ: by the child, which is born in the PID namespace; or, for a caller who is nobody outside the
/// container's user namespace, by an intermediate.
fn ways(differing: u32, pidfd: BorrowedFd<'_>) -> Result<(Route, Target<'_>), Failure> {
    let failure = |errno| Failure::os(Step::Namespace, errno);
    let mapped = differing & NamespaceKind::User.flag() != 0;
    let own = rustix::thread::capabilities(None).map_err(failure)?;
    if !mapped || own.effective.contains(CapabilitySet::SYS_ADMIN) {
        let namespaces = differing & !NamespaceKind::Pid.flag();
        return Ok((Route::direct(), Target { pidfd, namespaces, mapped }));
    }
    let copy = rustix::io::fcntl_dupfd_cloexec(pidfd, 3).map_err(failure)?;
    Ok((Route::beside(copy, differing), Target { pidfd, namespaces: 0, mapped }))
}

/// The child's half.
fn run(
    target: &Target<'_>,
    launch: &Launch<'_>,
    stdio: &Stdio,
    preserve_fds: u32,
    link: &End,
) -> Result<Infallible, Failure> {
    let prepared = prepare(target, launch, stdio, link)?;
    let _silent = relay::silence();
    let (program, master) = prepared;
    let early = launch.seccomp.filter(|filter| launch::is_early(filter));
    if let Some(filter) = early {
        launch::load_early(filter, link)?;
    }
    match &master {
        Some(master) => link.tell(&FromChild::Ready, &[master.as_fd()])?,
        None => link.tell(&FromChild::Ready, &[])?,
    }
    drop(master);
    launch::forget_descriptors(preserve_fds, link.as_fd())?;
    if let Some(filter) = launch.seccomp.filter(|_| early.is_none()) {
        launch::load(filter)?;
    }
    let failure = program.execute();
    // Where a filter lets nothing be told, the status tells what a shell's would.
    let _ = link.tell(&FromChild::Failed(failure.clone()), &[]);
    sys::exit_now(init::exit_code(&failure))
}

/// Everything up to readiness. What is returned with the program is the master of its terminal.
fn prepare(
    target: &Target<'_>,
    launch: &Launch<'_>,
    stdio: &Stdio,
    link: &End,
) -> Result<(Program, Option<OwnedFd>), Failure> {
    let _warnings = relay::to(link);
    let failure = |errno| Failure::os(Step::Namespace, errno);
    sys::reset_signals();
    // What runs in there must not look into this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failure)?;
    if target.namespaces != 0 {
        namespaces::enter(target.pidfd, target.namespaces)
            .map_err(|errno| failure(errno).with_message("join the container's namespaces"))?;
    }
    if target.mapped {
        namespaces::become_root()?;
    }
    rustix::process::setsid().map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    process::session_keyring(launch.process.selinux_label.as_deref())?;
    let (master, peer) = match stdio {
        Stdio::Pty { crlf } => {
            let Pty { master, peer } = console::allocate()?;
            console::end_lines(master.as_fd(), *crlf)?;
            (Some(master), Some(peer))
        }
        Stdio::Inherit | Stdio::Fds { .. } => (None, None),
    };
    let program = stdio.streams(peer).and_then(|streams| launch::become_process(launch, streams, link)?);
    match program {
        Ok(program) => Ok((program, master)),
        Err(failure) => {
            // Closing it would hang the terminal up, and SIGHUP kill this process before it has told why it fails.
            std::mem::forget(master);
            Err(failure)
        }
    }
}
