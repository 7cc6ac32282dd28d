//! A container's life, one linear function each: create, start (by its gate), kill and delete by its cgroup.
//!
//! [`create`] is all that `wright create` and the monitor do to get a container to its start gate:
//!
//! 1. the namespaces to join are opened, the plan's labels checked against this host;
//! 2. the cgroup is made and its limits are written, before anything could run outside them;
//! 3. clone3 into the cgroup and the new namespaces ([`crate::spawn`]); the child does the rest of itself ([`crate::init`]);
//! 4. the child says that it is ready, and waits at its gate ([`crate::gate`]).
//!
//! Whatever fails, nothing stays: the child is reaped, the cgroup and the parents made for it are removed.

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use crate::cgroup::{self, Cgroup, CgroupPath, Hierarchies, Limits};
use crate::handshake::End;
use crate::hooks::{self, Point};
use crate::launch::Streams;
use crate::mounts::{Maps, Sources};
use crate::namespaces::Route;
use crate::plan::Plan;
use crate::resctrl::Resctrl;
use crate::spawn::{SPAWN_DEADLINE, Spawn, Spawned, spawn};
use crate::state::Status;
use crate::{Failure, Step, init, lsm, resctrl, seccomp};

pub use crate::gate::{Gate, StartGate};
pub use crate::init::exit_code;

/// What a container is created from.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Its id, for hooks.
    pub id: &'a str,
    /// Its bundle, for hooks: their working directory.
    pub bundle: &'a Path,
    /// What it is.
    pub plan: &'a Plan,
    /// This host's cgroup hierarchies.
    pub hierarchies: &'a Hierarchies,
    /// Its cgroup.
    pub cgroup_path: &'a CgroupPath,
    /// How its cgroup is made.
    pub cgroup_options: cgroup::CreateOptions,
    /// A detached mount to use as its root, mounted over the plan's root path in its own mount namespace.
    pub root: Option<BorrowedFd<'a>>,
    /// Its stdin, stdout and stderr.
    pub stdio: Stdio,
    /// So many descriptors from 3 on stay open in it.
    pub preserve_fds: u32,
    /// What it waits at once it is created.
    pub gate: Gate,
    /// Its compiled seccomp profile.
    pub seccomp: Option<&'a seccomp::Program>,
    /// True: a program that cannot be found or executed fails the start, as CRI users know it; false: the creation, as runc's do.
    pub late_exec_errors: bool,
}

/// Where a process's stdin, stdout and stderr come from.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    /// These. The caller's copies are closed when the request is dropped.
    Fds {
        /// Read from.
        stdin: OwnedFd,
        /// Written to.
        stdout: OwnedFd,
        /// Written to.
        stderr: OwnedFd,
    },
    /// A new pseudo-terminal of the container's own devpts.
    Pty {
        /// Lines end in CR LF, as terminals have it. False: as they were written, for whoever relays them to a terminal that does the same.
        crlf: bool,
    },
}

impl Stdio {
    /// In the child: what it is to take, given its end of the terminal. The request's own descriptors stay as they are.
    pub(crate) fn streams(&self, peer: Option<OwnedFd>) -> Result<Streams, Failure> {
        let copy = |fd: &OwnedFd| {
            rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|errno| Failure::os(Step::Console, errno))
        };
        Ok(match (self, peer) {
            (_, Some(peer)) => Streams::Terminal(peer),
            (Self::Fds { stdin, stdout, stderr }, None) => {
                Streams::Fds([copy(stdin)?, copy(stdout)?, copy(stderr)?])
            }
            (Self::Inherit | Self::Pty { .. }, None) => Streams::Inherit,
        })
    }
}

/// A container at its start gate.
#[derive(Debug)]
pub struct Created {
    /// Init's pid in the caller's PID namespace.
    pub pid: i32,
    /// Init's pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// The master of its pseudo-terminal, with [`Stdio::Pty`].
    pub console: Option<OwnedFd>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its resctrl groups, where it has any: to be removed with it.
    pub resctrl: Option<resctrl::Group>,
    /// What holds its init, until its existence is on disk.
    pub hold: Hold,
}

/// Holds the init of a container with a gate on disk ([`Gate::Listening`]): dropped before it was released, as by the death of this
/// process, it ends init. An init whose gate is connected is held by that.
#[derive(Debug)]
#[must_use = "an init that is not released ends"]
pub struct Hold(Option<End>, i32);

impl Hold {
    /// From now on init is whoever's who finds its container on disk.
    ///
    /// # Errors
    /// [`Step::Handshake`] where init has died already.
    pub fn release(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), |link| link.go(self.1))
    }
}

/// Takes a container from nothing to its start gate.
///
/// # Errors
/// The step that failed, with what it failed on. Nothing of the container is left then.
pub fn create(request: &CreateRequest<'_>) -> Result<Created, Failure> {
    let plan = request.plan;
    let route = Route::open(&plan.namespaces)?;
    if let Some(process) = &plan.process {
        lsm::check(process.apparmor_profile.as_deref(), process.selinux_label.as_deref())?;
    }
    let limits = match &plan.resources {
        Some(resources) => Limits::from_spec(resources)
            .map_err(|error| Failure::because(Step::Config, format!("linux.resources: {error}")))?,
        None => Limits::default(),
    };
    let resctrl = resctrl_group(plan, request.id)?;
    let undo = |failure| {
        resctrl.iter().for_each(resctrl::Group::remove);
        failure
    };
    let options = cgroup::CreateOptions { owner: plan.cgroup_owner(), ..request.cgroup_options.clone() };
    let made = Cgroup::create(request.hierarchies, request.cgroup_path, &options);
    let mut cgroup = made.map_err(undo)?;
    let cloned =
        cgroup.apply(&limits).and_then(|()| clone_init(request, &route, &mut cgroup, resctrl.as_ref()));
    match cloned {
        Ok(Spawned { pid, pidfd, fd: console, link }) => {
            let hold = Hold(matches!(request.gate, Gate::Listening(_)).then_some(link), pid);
            Ok(Created { pid, pidfd, console, cgroup, resctrl, hold })
        }
        Err(failure) => {
            let failure = undo(failure);
            let parents = cgroup.made_ancestors().to_vec();
            if let Err(left) = cgroup.remove(Instant::now() + SPAWN_DEADLINE) {
                tracing::warn!(id = request.id, %left, "the cgroup of a container that could not be created is left");
            }
            cgroup::remove_ancestors(&parents);
            Err(failure)
        }
    }
}

/// The resctrl groups of a container that is to have some.
fn resctrl_group(plan: &Plan, id: &str) -> Result<Option<resctrl::Group>, Failure> {
    let Some(rdt) = &plan.intel_rdt else { return Ok(None) };
    let resctrl = Resctrl::find().ok_or_else(|| {
        let problem =
            "intelRdt is specified in config, but Intel RDT is not enabled: no resctrl filesystem is mounted";
        Failure::because(Step::Config, format!("linux.intelRdt: {problem}"))
    })?;
    resctrl.create(rdt, id).map(Some)
}

/// Steps 3 and 4.
fn clone_init(
    request: &CreateRequest<'_>,
    route: &Route,
    cgroup: &mut Cgroup,
    resctrl: Option<&resctrl::Group>,
) -> Result<Spawned, Failure> {
    let plan = request.plan;
    let maps = RefCell::new(Maps::default());
    let sources = Sources::open(plan, &mut maps.borrow_mut())?;
    let before_pivot = |pid: i32| {
        for (point, hooks) in
            [(Point::Prestart, &plan.hooks.prestart), (Point::CreateRuntime, &plan.hooks.create_runtime)]
        {
            if !hooks.is_empty() {
                let state = init::state_json(request, pid, Status::Creating)?;
                hooks::run(point, hooks, &state, Some(request.bundle), None)?;
            }
        }
        Ok(())
    };
    // Its pid is known when it is told.
    let agent_state = init::state(request.id, request.bundle, plan, (0, Status::Creating));
    let parent = Spawn {
        route,
        pid_namespace_of: None,
        cgroup: Some(cgroup),
        beside: None,
        resctrl,
        affinity: None,
        rlimits: plan.process.as_ref().map_or(&[], |process| &process.rlimits),
        oom_score_adj: plan.process.as_ref().and_then(|process| process.oom_score_adj),
        maps: (&plan.namespaces.uid_maps, &plan.namespaces.gid_maps),
        net_devices: &plan.net_devices,
        before_pivot: &before_pivot,
        agent: request.seccomp.and_then(seccomp::Program::listener).zip(Some(agent_state)),
        map_owners: &|mount, clone| maps.borrow_mut().map_mount(mount, clone, plan),
    };
    spawn(parent, |link, cgroup| match cgroup {
        Some(cgroup) => init::run(request, sources, cgroup, link),
        None => Err(Failure::because(Step::Cgroup, "a container needs a cgroup")),
    })
}

/// Runs the hooks that are due once the program runs.
///
/// # Errors
/// The first that fails: the container is then to be stopped (the runtime-spec's lifecycle, step 9).
pub fn run_poststart_hooks(id: &str, bundle: &Path, plan: &Plan, pid: i32) -> Result<(), Failure> {
    if plan.hooks.poststart.is_empty() {
        return Ok(());
    }
    let state = init::hook_state(id, bundle, plan, (pid, Status::Running))?;
    hooks::run(Point::Poststart, &plan.hooks.poststart, &state, Some(bundle), None)
}

/// Runs the hooks that are due once the container is gone. Their failures are told, and nothing else can be done about them.
pub fn run_poststop_hooks(id: &str, bundle: &Path, plan: &Plan) -> Vec<Failure> {
    if plan.hooks.poststop.is_empty() {
        return Vec::new();
    }
    match init::hook_state(id, bundle, plan, (0, Status::Stopped)) {
        Ok(state) => hooks::run_all(Point::Poststop, &plan.hooks.poststop, &state, Some(bundle), None),
        Err(failure) => vec![failure],
    }
}
