//! The child's half of a container: everything init does from clone3 to execve, in order.
//!
//! Why in this order: cgroups before any limit could be escaped, and before the cgroup namespace that takes the cgroup as its root; the user
//! namespace's maps before anything is made, so that it has the right owner; mounts before pivot_root, while host paths can still be
//! seen; the console before it too, in the container's own devpts; what needs privilege (sysctls, limits, labels) before
//! credentials are given up; the program is looked for with the user's own rights; then the gate; then seccomp, last of all, so that a
//! profile need allow nothing but execve and what follows it.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::container::{CreateRequest, Stdio};
use crate::gate;
use crate::handshake::{End, FromChild};
use crate::hooks::{self, Point};
use crate::mounts::Sources;
use crate::plan::{NamespaceKind, Plan, Process};
use crate::procfs::Procfs;
use crate::rootfs::{self, Root, Surroundings};
use crate::state::{State, Status};
use crate::{Failure, Step, lsm, namespaces, netns, process, seccomp, sys};

/// Takes the calling process, fresh from clone3, to its program. Returns only when that fails before the gate;
/// after it, the gate is told and the process exits.
pub(crate) fn run(
    request: &CreateRequest<'_>,
    sources: Sources,
    cgroup: &Cgroup,
    link: &End,
) -> Result<Infallible, Failure> {
    let plan = request.plan;
    sys::reset_signals();
    let pid = become_root_of_new_user_namespace(plan, link)?;
    rustix::process::setsid().map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    make_late_namespaces(plan)?;
    if plan.namespaces.is_new(NamespaceKind::Network) {
        netns::loopback_up().map_err(|errno| Failure::os(Step::Network, errno).with_message("loopback"))?;
    }
    // Before the root is entered: what is in there must not stand in for the kernel's own files.
    let procfs = Procfs::open()?;
    let label = plan.process.as_ref().and_then(|process| process.selinux_label.as_deref());
    if plan.new_keyring {
        process::session_keyring(label, &procfs)?;
    }

    let around = Surroundings {
        cgroup,
        user_namespace: plan.namespaces.contains(NamespaceKind::User),
        cgroup_namespace: plan.namespaces.contains(NamespaceKind::Cgroup),
    };
    let root = Root::prepare(plan, request.root)?.with_sources(sources);
    root.mount_all(plan, &around)?;
    root.make_devices(plan, &around)?;
    let pid = run_hooks_before_pivot(request, link, pid)?;
    let console = match request.stdio {
        Stdio::Pty => Some(root.console(plan)?),
        Stdio::Inherit | Stdio::Fds { .. } => None,
    };
    root.pivot(plan)?;
    rootfs::finish(plan, &around)?;
    name_host(plan)?;
    for (path, value) in &plan.sysctls {
        procfs
            .write(&format!("sys/{path}"), value.as_bytes())
            .map_err(|errno| Failure::at(Step::Sysctl, errno, path))?;
    }

    let (master, peer) = console.unzip();
    let program = match &plan.process {
        Some(process) => Some(prepare_process(request, plan, process, peer, &procfs)?),
        None => None,
    };
    drop(procfs);
    match &master {
        Some(master) => link.tell(&FromChild::Ready, &[master.as_fd()])?,
        None => link.tell(&FromChild::Ready, &[])?,
    }
    drop(master);

    // From here on nobody listens on the link: the gate is told instead.
    let opened = request.gate.wait().map_err(|errno| Failure::os(Step::Handshake, errno))?;
    let Some(starter) = opened else { sys::exit_now(128 + libc::SIGKILL) };
    let Err(failure) = execute(request, pid, program);
    gate::tell(starter.as_fd(), &failure);
    sys::exit_now(exit_code(&failure));
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
fn become_root_of_new_user_namespace(plan: &Plan, link: &End) -> Result<Option<i32>, Failure> {
    let pid =
        if plan.namespaces.is_new(NamespaceKind::User) { Some(link.ask(&FromChild::Map)?) } else { None };
    if plan.namespaces.contains(NamespaceKind::User) {
        namespaces::become_root()?;
    }
    Ok(pid)
}

/// The namespaces that clone3 cannot make: see the table of [`crate::namespaces`].
fn make_late_namespaces(plan: &Plan) -> Result<(), Failure> {
    let unshare = |kind: NamespaceKind| {
        sys::unshare(kind.flag().cast_signed()).map_err(|errno| {
            Failure::os(Step::Namespace, errno).with_message(format!("make a {} namespace", kind.proc_name()))
        })
    };
    if plan.namespaces.is_new(NamespaceKind::Cgroup) {
        unshare(NamespaceKind::Cgroup)?;
    }
    if plan.namespaces.is_new(NamespaceKind::Time) {
        unshare(NamespaceKind::Time)?;
        let offsets: String = plan
            .namespaces
            .time_offsets
            .iter()
            .map(|(clock, seconds, nanoseconds)| format!("{clock} {seconds} {nanoseconds}\n"))
            .collect();
        if !offsets.is_empty() {
            const PATH: &str = "/proc/self/timens_offsets";
            std::fs::write(PATH, offsets).map_err(|error| {
                Failure::at(Step::Namespace, Errno::from_io_error(&error).unwrap_or(Errno::IO), PATH)
            })?;
        }
    }
    Ok(())
}

/// prestart and createRuntime hooks by the parent, then createContainer hooks here: in the container's namespaces, with host paths
/// still in sight. Returns this process's pid as the parent sees it, where it was asked for.
fn run_hooks_before_pivot(
    request: &CreateRequest<'_>,
    link: &End,
    pid: Option<i32>,
) -> Result<Option<i32>, Failure> {
    let hooks = &request.plan.hooks;
    let due = [&hooks.prestart, &hooks.create_runtime, &hooks.create_container, &hooks.start_container];
    if due.iter().all(|hooks| hooks.is_empty()) {
        return Ok(pid);
    }
    let pid = link.ask(&FromChild::BeforePivot)?;
    if !hooks.create_container.is_empty() {
        let state = state_json(request, pid, Status::Creating)?;
        hooks::run(Point::CreateContainer, &hooks.create_container, &state, Some(request.bundle), None)?;
    }
    Ok(Some(pid))
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
    let state = State {
        oci_version: &plan.oci_version,
        id,
        pid,
        status,
        bundle,
        rootfs: None,
        created: None,
        annotations: &plan.annotations,
        owner: None,
    };
    state.to_json().map_err(|error| Failure::because(Step::State, error.to_string()))
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

/// A program that is ready to be executed.
pub(crate) struct Program {
    path: std::ffi::CString,
    args: Vec<std::ffi::CString>,
    env: Vec<std::ffi::CString>,
}

/// Everything of `process` but seccomp. The inner error is kept for the gate (see [`CreateRequest::late_exec_errors`]).
fn prepare_process(
    request: &CreateRequest<'_>,
    plan: &Plan,
    process: &Process,
    peer: Option<OwnedFd>,
    procfs: &Procfs,
) -> Result<Result<Program, Failure>, Failure> {
    if let Some(domain) = plan.personality {
        sys::personality(domain).map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    }
    if let Some(policy) = &plan.memory_policy {
        sys::set_mempolicy(policy.mode, &policy.nodes)
            .map_err(|errno| Failure::os(Step::ProcessAttributes, errno).with_message("memory policy"))?;
    }
    let stdio = request.stdio.duplicate()?;
    let prepared = become_process(process, Terminal { peer, stdio }, procfs, request.seccomp.is_some())?;
    match prepared {
        Err(failure) if !request.late_exec_errors => Err(failure),
        prepared => Ok(prepared),
    }
}

/// Where a process's stdin, stdout and stderr come from.
pub(crate) struct Terminal {
    /// The container's end of its pseudo-terminal.
    pub(crate) peer: Option<OwnedFd>,
    /// Three descriptors to use instead; neither: what the caller has.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
}

/// What init and an exec'd process have in common: stdio, limits, labels, working directory, credentials, and the search for the program.
/// The inner error says that the program cannot be found or executed.
pub(crate) fn become_process(
    process: &Process,
    terminal: Terminal,
    procfs: &Procfs,
    seccomp: bool,
) -> Result<Result<Program, Failure>, Failure> {
    match (terminal.peer, terminal.stdio) {
        (Some(peer), _) => process::take_terminal(peer, process)?,
        (None, Some(stdio)) => process::take_stdio(stdio, process)?,
        (None, None) => {}
    }
    process::attributes(process)?;
    if let Some(list) = &process.cpu_affinity_final {
        process::affinity(list)?;
    }
    if process.apparmor_profile.is_some() || process.selinux_label.is_some() {
        let proc = procfs.thread_dir().map_err(|errno| Failure::os(Step::Label, errno))?;
        lsm::set_apparmor_exec(proc.as_fd(), process.apparmor_profile.as_deref().unwrap_or_default())?;
        lsm::set_selinux_exec(proc.as_fd(), process.selinux_label.as_deref().unwrap_or_default())?;
    }
    process::enter_working_directory(process)?;
    let (args, env) = process::strings(process)?;
    process::credentials(process, seccomp)?;
    Ok(process::look_up_program(process).map(|path| Program { path, args, env }))
}

/// The last steps, once the gate is open.
fn execute(
    request: &CreateRequest<'_>,
    pid: Option<i32>,
    program: Option<Result<Program, Failure>>,
) -> Result<Infallible, Failure> {
    let Some(program) = program else {
        return Err(Failure::because(Step::Config, "the spec has no process to start"));
    };
    let hooks = &request.plan.hooks.start_container;
    if !hooks.is_empty() {
        let state = state_json(request, pid.unwrap_or_default(), Status::Created)?;
        hooks::run(Point::StartContainer, hooks, &state, None, None)?;
    }
    execute_program(&program?, request.preserve_fds, request.seccomp)
}

/// seccomp, then execve. Returns only when that fails.
pub(crate) fn execute_program(
    program: &Program,
    preserve_fds: u32,
    filter: Option<&seccomp::Program>,
) -> Result<Infallible, Failure> {
    sys::close_on_exec_from(3 + preserve_fds).map_err(|errno| Failure::os(Step::Exec, errno))?;
    if let Some(filter) = filter {
        seccomp::load(filter).map_err(|errno| Failure::os(Step::Seccomp, errno))?;
    }
    let errno = sys::execve(&program.path, &program.args, &program.env);
    Err(Failure::at(Step::Exec, errno, program.path.to_string_lossy().as_ref()))
}
