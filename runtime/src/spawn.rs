//! The parent's half of making a process: clone3, then serving what the child asks for until it is ready.
//!
//! The conversation is drawn in [`crate::handshake`]. Used for a container's init, for exec'd processes and for pause, which
//! differ in what their child does and in nothing here. Whatever fails, no process is left: the child is killed and reaped.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_getfd,
    pidfd_send_signal, set_dumpable_behavior, waitid,
};

use crate::cgroup::Cgroup;
use crate::handshake::{self, End, FromChild};
use crate::namespaces::{BornInside, Route};
use crate::plan::{IdMap, NamespaceKind, Rlimit};
use crate::state::State;
use crate::sys::{self, Clone3, Forked};
use crate::{Failure, Step, net_devices, process, resctrl, seccomp};

/// How long a new process may take until it is ready. Hooks count, and have deadlines of their own.
pub(crate) const SPAWN_DEADLINE: Duration = Duration::from_secs(120);

/// What the parent does for its child.
pub(crate) struct Spawn<'a> {
    /// Into which namespaces, and how.
    pub(crate) route: &'a Route,
    /// Where PID 1 of the child's PID namespace is found, where that is not by a path: a pidfd.
    pub(crate) pid_namespace_of: Option<BorrowedFd<'a>>,
    /// The cgroup the child begins in; None: the caller's.
    pub(crate) cgroup: Option<&'a mut Cgroup>,
    /// For a cgroup that the child cannot be born in: the init that shows where to be instead, see [`Cgroup::join_beside`].
    pub(crate) beside: Option<u32>,
    /// The resctrl groups it belongs to.
    pub(crate) resctrl: Option<&'a resctrl::Group>,
    /// The CPUs it runs on until it is in its cgroup, whose cpuset may forbid them.
    pub(crate) affinity: Option<&'a str>,
    /// Limits that it may need raised for it.
    pub(crate) rlimits: &'a [Rlimit],
    /// Written before the child is ready; clamped where the caller may not lower it.
    pub(crate) oom_score_adj: Option<i32>,
    /// Maps of a new user namespace: uids, gids.
    pub(crate) maps: (&'a [IdMap], &'a [IdMap]),
    /// Network devices to move into its network namespace: (host name, name inside).
    pub(crate) net_devices: &'a [(String, String)],
    /// What is due before pivot_root (hooks), given the child's pid.
    pub(crate) before_pivot: &'a dyn Fn(i32) -> Result<(), Failure>,
    /// Who gets the listener of its seccomp filter, and the state of the container that is told with it; pid 0: the child is its init.
    pub(crate) agent: Option<(&'a seccomp::Listener, State<'a>)>,
    /// Maps the owners of the detached clone of the plan's mount of this number, which its init may not.
    pub(crate) map_owners: &'a dyn Fn(usize, BorrowedFd<'_>) -> Result<(), Failure>,
}

/// A process that is ready.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its pid in the caller's PID namespace.
    pub(crate) pid: i32,
    /// Its pidfd, close-on-exec.
    pub(crate) pidfd: OwnedFd,
    /// What it passed along with its readiness: its console's master.
    pub(crate) fd: Option<OwnedFd>,
    /// The conversation, for a child that has something to say even after it was ready.
    pub(crate) link: End,
}

/// Clones a process that runs `child` and returns when that has said that it is ready. `child` returns only when it fails.
pub(crate) fn spawn(
    mut spawn: Spawn<'_>,
    child: impl FnOnce(&End, Option<&Cgroup>) -> Result<Infallible, Failure>,
) -> Result<Spawned, Failure> {
    let (ours, theirs) = handshake::pair()?;
    let into_v2 = spawn.cgroup.as_deref().filter(|_| spawn.affinity.is_none()).and_then(Cgroup::dirfd_v2);
    let namespaces = if spawn.route.intermediate { 0 } else { spawn.route.cloned };
    let born_inside = match (&spawn.route.pid, spawn.pid_namespace_of) {
        (Some(join), _) => Some(BornInside::enter(join.file.as_fd())),
        (None, Some(pidfd)) => Some(BornInside::enter(pidfd)),
        (None, None) => None,
    }
    .transpose()
    .map_err(|errno| Failure::os(Step::Namespace, errno).with_message("join the pid namespace"))?;
    let clone = |cgroup| sys::clone3(&Clone3 { namespaces, sibling: false, cgroup });
    let (forked, placed) = match clone(into_v2) {
        // A container that manages cgroups of its own keeps no process in the one it was given.
        Err(Errno::BUSY | Errno::OPNOTSUPP) if into_v2.is_some() => (clone(None), false),
        forked => (forked, into_v2.is_some()),
    };
    match &forked {
        // Going back is the parent's: from inside there is no way out.
        Ok(Forked::Child) => std::mem::forget(born_inside),
        _ => drop(born_inside),
    }
    let forked = forked.map_err(clone_failed)?;
    let (pid, pidfd) = match forked {
        Forked::Child => {
            drop(ours);
            enter(&spawn, placed, &theirs, child)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    tracing::debug!(pid, "cloned");
    let first = Born { pid, pidfd };
    let deadline = Instant::now() + SPAWN_DEADLINE;
    let served = if spawn.route.intermediate {
        // The intermediate is the first born; its last word is init's birth. It exits either way.
        let init = receive_init(&ours, deadline);
        let status = first.reap(init.is_err());
        init.map_err(|failure| explain(failure, status))
            .and_then(|init| serve(&mut spawn, &ours, init, deadline))
    } else {
        serve(&mut spawn, &ours, first, deadline)
    };
    served.map(|(born, console)| Spawned { pid: born.pid, pidfd: born.pidfd, fd: console, link: ours })
}

/// The child's side of clone3. `placed`: it was born in its v2 cgroup. Does not return.
fn enter(
    spawn: &Spawn<'_>,
    placed: bool,
    link: &End,
    child: impl FnOnce(&End, Option<&Cgroup>) -> Result<Infallible, Failure>,
) -> ! {
    let Err(failure) = enter_cgroup(spawn)
        .and_then(|()| enter_namespaces(spawn, link))
        .and_then(|()| ask_for_place(spawn, placed, link))
        .and_then(|()| child(link, spawn.cgroup.as_deref()));
    let _ = link.tell(&FromChild::Failed(failure), &[]);
    sys::exit_now(1)
}

/// The v1 cgroups, which a process joins by itself.
fn enter_cgroup(spawn: &Spawn<'_>) -> Result<(), Failure> {
    if let Some(list) = spawn.affinity {
        process::affinity(list)?;
    }
    spawn.cgroup.as_deref().map_or(Ok(()), Cgroup::join_self_v1)
}

/// What is left of the cgroup is the parent's to do: a systemd scope, or v2 where the process was not born in it.
fn ask_for_place(spawn: &Spawn<'_>, placed: bool, link: &End) -> Result<(), Failure> {
    let Some(cgroup) = spawn.cgroup.as_deref() else { return Ok(()) };
    if cgroup.joins_by_parent_only() || cgroup.dirfd_v2().is_some() && !placed {
        link.ask(&FromChild::Place)?;
    }
    Ok(())
}

/// Joins what is joined, as the child or, where one is needed, as the intermediate that then clones the child.
fn enter_namespaces(spawn: &Spawn<'_>, link: &End) -> Result<(), Failure> {
    let route = spawn.route;
    let makes_user = route.cloned & u64::from(NamespaceKind::User.flag()) != 0;
    // What is in the joined namespaces must not look into this process. The maps of a new user namespace can only be written for
    // a process that is dumpable, if the writer is a plain user.
    let joins = !route.joined.is_empty() || route.pid.is_some() || route.beside.is_some();
    if joins && !makes_user {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|errno| Failure::os(Step::Namespace, errno))?;
    }
    route.join()?;
    if route.intermediate {
        let arguments = Clone3 { namespaces: route.cloned, sibling: true, cgroup: None };
        if let Forked::Parent { pid, pidfd } = sys::clone3(&arguments).map_err(clone_failed)? {
            link.tell(&FromChild::Born { pid }, &[pidfd.as_fd()])?;
            sys::exit_now(0);
        }
    }
    Ok(())
}

/// A process that is not known to be ready yet.
struct Born {
    pid: i32,
    pidfd: OwnedFd,
}

impl Born {
    /// Waits for the process's end, which `kill` brings about.
    fn reap(&self, kill: bool) -> Option<WaitIdStatus> {
        reap(self.pidfd.as_fd(), kill)
    }
}

impl Spawned {
    /// Kills the process and waits for its end.
    pub(crate) fn reap(&self) {
        reap(self.pidfd.as_fd(), true);
    }
}

fn reap(pidfd: BorrowedFd<'_>, kill: bool) -> Option<WaitIdStatus> {
    if kill {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Ok(status) => return status,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// The intermediate's report.
fn receive_init(link: &End, deadline: Instant) -> Result<Born, Failure> {
    match link.next(deadline)? {
        Some(mut packet) => match (packet.message, packet.fds.pop()) {
            (FromChild::Born { pid }, Some(pidfd)) => Ok(Born { pid, pidfd }),
            (FromChild::Failed(failure), _) => Err(failure),
            _ => Err(Failure::because(Step::Handshake, "the intermediate did not report a process")),
        },
        None => Err(silent()),
    }
}

/// Serves a child until it is ready. Returns its console's master with it, where it has one.
fn serve(
    spawn: &mut Spawn<'_>,
    link: &End,
    born: Born,
    deadline: Instant,
) -> Result<(Born, Option<OwnedFd>), Failure> {
    match serve_until_ready(spawn, link, &born, deadline) {
        Ok(console) => Ok((born, console)),
        Err(failure) => {
            let status = born.reap(true);
            Err(explain(failure, status))
        }
    }
}

fn serve_until_ready(
    spawn: &mut Spawn<'_>,
    link: &End,
    born: &Born,
    deadline: Instant,
) -> Result<Option<OwnedFd>, Failure> {
    let pid = born.pid;
    if let Some(score) = spawn.oom_score_adj {
        write_oom_score_adj(pid, score)?;
    }
    if let Some(group) = spawn.resctrl {
        group.assign(pid)?;
    }
    let mut filtered = false;
    loop {
        let Some(mut packet) = link.next(deadline).map_err(|failure| held(failure, filtered))? else {
            return Err(silent());
        };
        tracing::debug!(pid, said = ?packet.message, "the new process has spoken");
        match packet.message {
            FromChild::Place => place(spawn, pid)?,
            FromChild::Map => write_maps(pid, spawn.maps)?,
            FromChild::NetDevices => net_devices::move_into(pid, spawn.net_devices)?,
            FromChild::BeforePivot => (spawn.before_pivot)(pid)?,
            // They were set before its first packet was read.
            FromChild::Attributes => {}
            FromChild::RaiseLimits => raise_hard_limits(pid, spawn.rlimits),
            FromChild::MapOwners { mount } => {
                let clone = packet.fds.pop();
                let clone = clone.ok_or_else(|| Failure::because(Step::Handshake, "no mount was passed"))?;
                (spawn.map_owners)(mount, clone.as_fd())?;
            }
            // At once: every system call from here on may be one that only the listener's new owner lets through.
            FromChild::Listener { fd } => {
                let taken = pidfd_getfd(&born.pidfd, fd, PidfdGetfdFlags::empty());
                let taken = taken.map_err(|errno| Failure::os(Step::Seccomp, errno))?;
                if let Some((agent, container)) = &spawn.agent {
                    let of = if container.pid == 0 { pid } else { container.pid };
                    seccomp::agent::pass(agent, taken.as_fd(), pid, &State { pid: of, ..container.clone() })?;
                }
                filtered = true;
            }
            FromChild::Ready => return Ok(packet.fds.pop()),
            FromChild::Failed(failure) => return Err(failure),
            FromChild::Born { .. } | FromChild::Warning(_) => {
                return Err(Failure::because(Step::Handshake, "the new process spoke out of turn"));
            }
        }
        link.go(pid)?;
    }
}

/// Moves the child into its cgroup.
fn place(spawn: &mut Spawn<'_>, pid: i32) -> Result<(), Failure> {
    let Some(cgroup) = spawn.cgroup.as_deref_mut() else { return Ok(()) };
    match spawn.beside {
        Some(init) => cgroup.join_beside(pid.unsigned_abs(), init),
        None => cgroup.join(pid.unsigned_abs()),
    }
}

/// Raises hard limits of a process in a user namespace as far as the caller may: no capability of its own lets it. It sets its limits
/// itself later, and tells what could not be had.
fn raise_hard_limits(pid: i32, wanted: &[Rlimit]) {
    for limit in wanted {
        if let Ok(current) = sys::current_rlimit(limit.resource)
            && current.hard < limit.hard
        {
            // The soft limit stays, for the sake of what the process still has to do.
            let _ = sys::prlimit(pid, Rlimit { soft: current.soft, ..*limit });
        }
    }
}

/// Adds to a child's silence that its filter's listener may be what it waits for.
pub(crate) fn held(failure: Failure, filtered: bool) -> Failure {
    if filtered && failure.message.as_deref() == Some(handshake::LATE) {
        let message = format!("{}: has the seccomp agent answered for its system calls?", handshake::LATE);
        return failure.with_message(message);
    }
    failure
}

/// A child that ended without saying why.
fn silent() -> Failure {
    Failure::because(Step::Handshake, "")
}

/// Adds how the child ended to a failure that only says that it did.
fn explain(failure: Failure, status: Option<WaitIdStatus>) -> Failure {
    if failure.message.as_deref() != Some("") {
        return failure;
    }
    let how = match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "has ended".to_owned(),
        },
        None => "has ended".to_owned(),
    };
    let killed = status.and_then(|status| status.terminating_signal()) == Some(libc::SIGKILL);
    let failure = failure.with_message(format!("the new process {how} before it was ready (out of memory?)"));
    // Nobody else kills what nobody knows yet.
    if killed { Failure { errno: libc::ENOMEM, ..failure } } else { failure }
}

fn clone_failed(errno: Errno) -> Failure {
    let failure = Failure::os(Step::Clone, errno);
    match errno {
        Errno::BUSY => failure.with_message("the engine must run in a process of one thread"),
        Errno::NOSPC => failure.with_message("too many nested namespaces (see user.max_*_namespaces)"),
        _ => failure,
    }
}

/// Sets the score by which the OOM killer picks (proc_pid_oom_score_adj(5)). Lowering it takes `CAP_SYS_RESOURCE`; a process without
/// it keeps the score it inherited, with a warning: pods must start in nested environments too.
pub(crate) fn write_oom_score_adj(pid: i32, score: i32) -> Result<(), Failure> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let failure = |error: &std::io::Error| {
        Failure::at(Step::ProcessAttributes, Errno::from_io_error(error).unwrap_or(Errno::IO), &path)
    };
    match std::fs::write(&path, score.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let current = std::fs::read_to_string(&path).map_err(|error| failure(&error))?;
            if current.trim() != score.to_string() {
                tracing::warn!(
                    pid,
                    score,
                    current = current.trim(),
                    "oom_score_adj cannot be lowered without CAP_SYS_RESOURCE"
                );
            }
            Ok(())
        }
        written => written.map_err(|error| failure(&error)),
    }
}

/// Writes the maps of a new user namespace (user_namespaces(7)): directly where the caller may, else through
/// newuidmap(1) and newgidmap(1), which give a plain user what /etc/subuid grants.
fn write_maps(pid: i32, (uids, gids): (&[IdMap], &[IdMap])) -> Result<(), Failure> {
    let own_only = |maps: &[IdMap], own: u32| matches!(maps, [map] if map.host_id == own && map.length == 1);
    let privileged = rustix::process::geteuid().is_root();
    let alone = !privileged && own_only(gids, rustix::process::getegid().as_raw());
    if alone {
        // Without privilege a group map takes giving up setgroups(2) for good.
        write_proc(pid, "setgroups", "deny")?;
    }
    if privileged || alone && own_only(uids, rustix::process::geteuid().as_raw()) {
        write_proc(pid, "gid_map", &map_text(gids))?;
        return write_proc(pid, "uid_map", &map_text(uids));
    }
    map_by_helper("newgidmap", pid, gids)?;
    map_by_helper("newuidmap", pid, uids)
}

fn write_proc(pid: i32, file: &str, text: &str) -> Result<(), Failure> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::write(&path, text).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Failure::at(Step::UserMapping, errno, path)
    })
}

fn map_text(maps: &[IdMap]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", map.container_id, map.host_id, map.length);
        text
    })
}

fn map_by_helper(program: &str, pid: i32, maps: &[IdMap]) -> Result<(), Failure> {
    let mut command = std::process::Command::new(program);
    command.arg(pid.to_string());
    for map in maps {
        command.args([map.container_id, map.host_id, map.length].map(|number| number.to_string()));
    }
    let failed = |why: String| Failure::because(Step::UserMapping, format!("{program}: {why}"));
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
