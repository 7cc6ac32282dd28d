//! The child's half of a container: everything init does from clone3 to execve, in order.
//!
//! Why in this order: cgroups before any limit could be escaped, and before the cgroup namespace that takes the cgroup as its root; the user
//! namespace's maps before anything is made, so that it has the right owner; mounts before pivot_root, while host paths can still be
//! seen; the console before it too, in the container's own devpts; what needs privilege (sysctls, limits, labels) before
//! credentials are given up; the program is looked for with the user's own rights; then the gate; then seccomp, last of all, so that a
//! profile need allow nothing but execve and what follows it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::cgroup::Cgroup;
use crate::container::{CreateRequest, Stdio};
use crate::gate::{self, Gate, HeldSignals, Passage};
use crate::handshake::{End, FromChild};
use crate::hooks::{self, Point};
use crate::launch::{self, Affinity, Launch, Program};
use crate::mounts::Sources;
use crate::plan::{Hook, NamespaceKind, Namespaces, Plan};
use crate::procfs::Procfs;
use crate::rootfs::{self, Root, Surroundings};
use crate::state::{State, Status};
use crate::{Failure, Step, console, namespaces, netns, process, relay, sys};

/// Takes the calling process, fresh from clone3, to its program. Returns only when that fails before the gate;
/// after it, the gate is told and the process exits.
pub(crate) fn run(
    request: &CreateRequest<'_>,
    sources: Sources,
    cgroup: &Cgroup,
    link: &End,
) -> Result<Infallible, Failure> {
    let prepared = prepare(request, sources, cgroup, link)?;
    let _silent = relay::silence();
    let (program, console) = prepared;
    let held = HeldSignals::hold();
    let early = request.seccomp.filter(|filter| launch::is_early(filter));
    if let Some(filter) = early {
        launch::load_early(filter, link)?;
    }
    match &console {
        Some(master) => link.tell(&FromChild::Ready, &[master.as_fd()])?,
        None => link.tell(&FromChild::Ready, &[])?,
    }
    drop(console);
    // An engine that dies before it has written down that there is a container leaves nobody who would end this process.
    if matches!(request.gate, Gate::Listening(_)) && link.wait().is_err() {
        sys::exit_now(128 + libc::SIGKILL);
    }

    // From here on nobody listens on the link: the gate is told instead.
    if launch::forget_descriptors(request.preserve_fds, request.gate.as_fd()).is_err() {
        sys::exit_now(exit_code(&Failure::because(Step::Exec, "")));
    }
    let starter = match request.gate.wait(held) {
        Ok(Passage::Open(starter)) => starter,
        Ok(Passage::Signal(signal)) => sys::exit_now(128 + signal),
        // Who could have opened it is gone.
        Ok(Passage::Abandoned) | Err(_) => sys::exit_now(128 + libc::SIGKILL),
    };
    let Err(failure) = execute(request, program, early.is_none());
    gate::tell(starter.as_fd(), &failure);
    sys::exit_now(exit_code(&failure));
}

/// A program that is ready, or why it cannot be executed; None: the spec has none.
type Prepared = Option<Result<Program, Failure>>;

/// Everything up to readiness. What is returned with the program is the master of its terminal.
fn prepare(
    request: &CreateRequest<'_>,
    sources: Sources,
    cgroup: &Cgroup,
    link: &End,
) -> Result<(Prepared, Option<OwnedFd>), Failure> {
    let plan = request.plan;
    let namespaces = &plan.namespaces;
    let _warnings = relay::to(link);
    sys::reset_signals();
    become_root_of_user_namespace(plan, link)?;
    rustix::process::setsid().map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    make_late_namespaces(namespaces)?;
    if namespaces.is_new(NamespaceKind::Network) {
        netns::loopback_up().map_err(|errno| Failure::os(Step::Network, errno).with_message("loopback"))?;
    }
    if !plan.net_devices.is_empty() {
        link.ask(&FromChild::NetDevices)?;
    }
    if plan.new_keyring {
        let label = plan.process.as_ref().and_then(|process| process.selinux_label.as_deref());
        process::session_keyring(label)?;
    }

    // A systemd scope has its directories only now that this process is in it.
    let scope = if cgroup.joins_by_parent_only() {
        Some(Cgroup::open(request.hierarchies, request.cgroup_path)?)
    } else {
        None
    };
    let around = Surroundings {
        cgroup: scope.as_ref().unwrap_or(cgroup),
        user_namespace: namespaces.contains(NamespaceKind::User),
        cgroup_namespace: namespaces.contains(NamespaceKind::Cgroup),
        link: Some(link),
    };
    let root = Root::prepare(plan, request.root)?.with_sources(sources);
    root.mount_all(plan, &around)?;
    root.make_devices(plan, &around)?;
    before_pivot(request, link)?;
    let console = match request.stdio {
        Stdio::Pty { crlf } => {
            let (master, peer) = root.console(plan)?;
            console::end_lines(master.as_fd(), crlf)?;
            Some((master, peer))
        }
        Stdio::Inherit | Stdio::Fds { .. } => None,
    };
    root.pivot(plan)?;
    if let Some(process) = &plan.process {
        process::make_working_directory(process);
    }
    name_host(plan)?;
    write_sysctls(&plan.sysctls)?;
    rootfs::finish(plan, &around)?;

    let (master, peer) = console.unzip();
    let Some(process) = &plan.process else { return Ok((None, master)) };
    let launch = Launch {
        process,
        affinity: Affinity::Cgroup,
        personality: plan.personality,
        memory_policy: plan.memory_policy.as_ref(),
        seccomp: request.seccomp,
        user_namespace: around.user_namespace,
    };
    let launched = launch::become_process(&launch, request.stdio.streams(peer)?, link);
    match launched.map_err(|failure| explain_scheduler(failure, plan))? {
        Err(failure) if !request.late_exec_errors => Err(failure),
        program => Ok((Some(program), master)),
    }
}

/// sched_setattr(2) refuses a deadline to a process that may not run on every CPU, with an errno that tells nothing of it.
fn explain_scheduler(failure: Failure, plan: &Plan) -> Failure {
    let cpu = plan.resources.as_ref().and_then(|resources| resources.cpu().as_ref());
    let confined = cpu.and_then(|cpu| cpu.cpus().as_deref()).is_some_and(|cpus| !cpus.is_empty());
    let scheduler = failure.message.as_deref().is_some_and(|message| message.contains("scheduler"));
    if confined && scheduler && failure.errno() == Some(Errno::PERM) {
        return failure.with_message("process scheduler can't be used together with AllowedCPUs");
    }
    failure
}

/// What a shell reports for a program that could not be executed.
pub fn exit_code(failure: &Failure) -> i32 {
    match (failure.step, failure.errno()) {
        (Step::Exec, Some(Errno::NOENT | Errno::NOTDIR)) => 127,
        (Step::Exec, Some(Errno::ACCESS | Errno::PERM | Errno::NOEXEC | Errno::ISDIR)) => 126,
        _ => 128,
    }
}

/// In a new user namespace everybody is nobody until its maps are written; then its root does the rest.
fn become_root_of_user_namespace(plan: &Plan, link: &End) -> Result<(), Failure> {
    if plan.namespaces.is_new(NamespaceKind::User) {
        link.ask(&FromChild::Map)?;
    }
    if plan.namespaces.contains(NamespaceKind::User) {
        namespaces::become_root()?;
    }
    Ok(())
}

/// The namespaces that clone3 cannot make: see the table of [`crate::namespaces`].
pub(crate) fn make_late_namespaces(namespaces: &Namespaces) -> Result<(), Failure> {
    for kind in [NamespaceKind::Cgroup, NamespaceKind::Time] {
        if namespaces.is_new(kind) {
            sys::unshare(kind.flag().cast_signed()).map_err(|errno| {
                Failure::os(Step::Namespace, errno)
                    .with_message(format!("make a {} namespace", kind.proc_name()))
            })?;
        }
    }
    set_clocks(&namespaces.time_offsets)
}

/// The offsets of the time namespace that execve will enter (time_namespaces(7)).
fn set_clocks(offsets: &[(String, i64, u32)]) -> Result<(), Failure> {
    if offsets.is_empty() {
        return Ok(());
    }
    let failure = |errno| Failure::at(Step::Namespace, errno, "/proc/self/timens_offsets");
    let lines = offsets.iter().fold(String::new(), |mut lines, (clock, seconds, nanoseconds)| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{clock} {seconds} {nanoseconds}");
        lines
    });
    // An undumpable process's files belong to the host's root, which nobody is in a user namespace.
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(failure)?;
    let written = Procfs::open()?.write("self/timens_offsets", lines.as_bytes());
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failure)?;
    written.map_err(failure)
}

/// Sysctls of the container's own namespaces: those whose files this process opens. Which may be set is the plan's business.
pub(crate) fn write_sysctls(sysctls: &[(String, String)]) -> Result<(), Failure> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let procfs = Procfs::open()?;
    for (path, value) in sysctls {
        procfs
            .write(&format!("sys/{path}"), value.as_bytes())
            .map_err(|errno| Failure::at(Step::Sysctl, errno, path))?;
    }
    Ok(())
}

/// prestart and createRuntime hooks by the parent, then createContainer hooks here: in the container's namespaces, with host paths still in sight.
fn before_pivot(request: &CreateRequest<'_>, link: &End) -> Result<(), Failure> {
    let plan = request.plan;
    let hooks = &plan.hooks;
    if !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty()) {
        link.ask(&FromChild::BeforePivot)?;
    }
    if hooks.create_container.is_empty() {
        return Ok(());
    }
    let state = state_json(request, own_pid(), Status::Creating)?;
    // Those of runc start in the container's root, and are written for it.
    let root = Some(plan.rootfs.path.as_path());
    hooks::run(Point::CreateContainer, &hooks.create_container, &state, root, None)
}

/// The pid as the container sees it, which is what hooks in there are told.
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The state that hooks read.
pub(crate) fn state_json(request: &CreateRequest<'_>, pid: i32, status: Status) -> Result<Vec<u8>, Failure> {
    hook_state(request.id, request.bundle, request.plan, (pid, status))
}

/// As [`state_json`], for who has no request any more.
pub(crate) fn hook_state(
    id: &str,
    bundle: &Path,
    plan: &Plan,
    (pid, status): (i32, Status),
) -> Result<Vec<u8>, Failure> {
    let state = state(id, bundle, plan, (pid, status));
    state.to_json().map_err(|error| Failure::because(Step::State, error.to_string()))
}

/// The state that hooks and seccomp agents are told.
pub(crate) fn state<'a>(
    id: &'a str,
    bundle: &'a Path,
    plan: &'a Plan,
    (pid, status): (i32, Status),
) -> State<'a> {
    State {
        oci_version: &plan.oci_version,
        id,
        pid,
        status,
        bundle,
        rootfs: None,
        created: None,
        annotations: &plan.annotations,
        owner: None,
    }
}

fn name_host(plan: &Plan) -> Result<(), Failure> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| Failure::at(Step::Hostname, errno, name))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|errno| Failure::at(Step::Hostname, errno, name))?;
    }
    Ok(())
}

/// The last steps, once the gate is open.
fn execute(
    request: &CreateRequest<'_>,
    program: Prepared,
    loads_filter: bool,
) -> Result<Infallible, Failure> {
    let Some(program) = program else {
        return Err(Failure::because(Step::Config, "the spec has no process to start"));
    };
    // Told before hooks run for it.
    let program = program?;
    let hooks = &request.plan.hooks.start_container;
    let mut filter = request.seccomp.filter(|_| loads_filter);
    if !hooks.is_empty() {
        // They are programs of the image's: no less confined than the container's own.
        if let Some(filter) = filter.take() {
            launch::load(filter)?;
        }
        let state = state_json(request, own_pid(), Status::Created)?;
        // They are the container's own programs, and are known to rely on its environment.
        let inherit = |hook: &Hook| Hook {
            env: hook.env.clone().or_else(|| Some(program.environment())),
            ..hook.clone()
        };
        let hooks: Vec<_> = hooks.iter().map(inherit).collect();
        hooks::run(Point::StartContainer, &hooks, &state, None, None)?;
    }
    if let Some(filter) = filter {
        launch::load(filter)?;
    }
    Err(program.execute())
}
