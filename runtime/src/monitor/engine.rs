//! From the monitor's requests to the engine's: containers and exec'd processes come into being here.
//!
//! Each function does one thing to the end and keeps nothing; what it made goes back to [`act`](super::act).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::protocol::{CreateFd, CreateRequest, ExecRequest};
use super::stdio::Ends;
use crate::cgroup::{Cgroup, CgroupPath, CreateOptions, Driver, Hierarchies};
use crate::container::{self, StartGate, Stdio};
use crate::exec;
use crate::failure::sentence;
use crate::plan::{NamespaceKind, Plan, Process};
use crate::seccomp::Program;
use crate::state::Status;
use crate::{Failure, Step, init, spec};

/// The most that is read from a passed memfd.
const MAX_MEMFD_BYTES: usize = 4 * 1024 * 1024;

/// The longest that a hook may run, in seconds. The monitor waits for most of them, and all of its pod with it; a hook that gives
/// itself more time, or no limit at all, gets this.
const MOST_HOOK_SECONDS: u64 = 60;

/// A container at its start gate.
pub(super) struct Container {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) gate: StartGate,
    pub(super) cgroup: Cgroup,
    pub(super) ends: Ends,
    /// Its PID namespace is its own: the kernel kills all of it with its init.
    pub(super) own_pids: bool,
    /// Its plan, where there are hooks to run once the program runs or the container is gone, or a seccomp agent to be told of execs.
    pub(super) plan: Option<Box<Plan>>,
    /// Who its root is on the host; None: the host's root. See [`give`].
    pub(super) root: Option<(u32, u32)>,
    /// The memfd with its seccomp program, for what is exec'd into it. Kept as it is: its pages are the daemon's too.
    pub(super) seccomp: Option<OwnedFd>,
}

/// Where to exec.
pub(super) struct Target<'a> {
    /// The container's init.
    pub(super) pid: i32,
    /// The container's init.
    pub(super) pidfd: BorrowedFd<'a>,
    /// The container's cgroup.
    pub(super) cgroup: &'a mut Cgroup,
    /// See [`Container::root`].
    pub(super) root: Option<(u32, u32)>,
    /// See [`Container::seccomp`].
    pub(super) seccomp: Option<&'a OwnedFd>,
    /// Its bundle.
    pub(super) bundle: &'a Path,
    /// See [`Container::plan`].
    pub(super) plan: Option<&'a Plan>,
}

/// An exec'd process.
pub(super) struct Execed {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Its own cgroup, where it has one.
    pub(super) cgroup: Option<Cgroup>,
    /// Its terminal's master, where it has one.
    pub(super) terminal: Option<OwnedFd>,
}

/// Takes a container up to its start gate. `fds` are what [`CreateRequest::fds`] says.
pub(super) fn create(
    request: &CreateRequest,
    fds: Vec<OwnedFd>,
    hierarchies: &Hierarchies,
) -> Result<Container, Failure> {
    if fds.len() != request.fds.len() {
        let message = format!("{} descriptors came, {} were announced", fds.len(), request.fds.len());
        return Err(Failure::because(Step::Request, message));
    }
    let (mut root, mut seccomp) = (None, None);
    for (kind, fd) in request.fds.iter().zip(fds) {
        match kind {
            CreateFd::Root => root = Some(fd),
            CreateFd::Seccomp => seccomp = Some(fd),
        }
    }
    let filter = seccomp.as_ref().map(program).transpose()?;
    let plan = read_plan(&request.bundle)?;
    let cgroup_path = cgroup_path(&plan, &request.container)?;
    let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
    let (stdio, pipes) = if terminal {
        (Stdio::Pty { crlf: true }, None)
    } else {
        pipes(request.stdin).map(|(s, p)| (s, Some(p)))?
    };
    let root_outside = plan.namespaces.root_outside();
    give(&stdio, root_outside)?;
    let (gate, theirs) = StartGate::pair()?;
    let created = container::create(&container::CreateRequest {
        id: &request.container,
        bundle: &request.bundle,
        plan: &plan,
        hierarchies,
        cgroup_path: &cgroup_path,
        cgroup_options: CreateOptions::default(),
        root: root.as_ref().map(|fd| fd.as_fd()),
        stdio,
        preserve_fds: 0,
        gate: theirs,
        seccomp: filter.as_ref(),
        late_exec_errors: true,
    })?;
    let ends = match (pipes, created.console) {
        (Some(pipes), _) => pipes,
        (None, Some(master)) => Ends::Terminal(master),
        (None, None) => return Err(Failure::because(Step::Console, "the engine gave no terminal")),
    };
    let keeps_plan = !plan.hooks.poststart.is_empty()
        || !plan.hooks.poststop.is_empty()
        || filter.as_ref().is_some_and(|filter| filter.listener().is_some());
    Ok(Container {
        pid: created.pid,
        pidfd: created.pidfd,
        gate,
        cgroup: created.cgroup,
        ends,
        own_pids: plan.namespaces.is_new(NamespaceKind::Pid),
        plan: keeps_plan.then(|| Box::new(plan)),
        root: root_outside,
        seccomp,
    })
}

/// Runs a process in a container. `fds` as [`Op::Exec`](super::protocol::Op::Exec) says; `number` names its cgroup.
pub(super) fn exec(
    request: &ExecRequest,
    fds: Vec<OwnedFd>,
    target: Target<'_>,
    number: u32,
) -> Result<Execed, Failure> {
    let Target { pid, pidfd, cgroup: container, root, seccomp, bundle, plan } = target;
    let mut fds = fds.into_iter();
    let description = fds.next().ok_or_else(|| Failure::because(Step::Request, "no process was passed"))?;
    let process = read_process(&description)?;
    let passed = request.stdio.iter().filter(|passed| **passed).count();
    if fds.len() != passed {
        let message = format!("{} stdio descriptors came, {passed} were announced", fds.len());
        return Err(Failure::because(Step::Request, message));
    }
    let [stdin, stdout, stderr] = request.stdio.map(|passed| if passed { fds.next() } else { None });
    let streams = if process.terminal {
        if passed > 0 {
            let message = "stdio descriptors came for a process with a terminal of its own";
            return Err(Failure::because(Step::Request, message));
        }
        Stdio::Pty { crlf: true }
    } else {
        let or_null = |fd: Option<OwnedFd>| fd.map_or_else(null, Ok);
        Stdio::Fds { stdin: or_null(stdin)?, stdout: or_null(stdout)?, stderr: or_null(stderr)? }
    };
    give(&streams, root)?;
    let filter = seccomp.map(program).transpose()?;
    let own = request.own_cgroup.then(|| container.child(&format!("exec-{number}")));
    let mut cgroup = own.transpose()?;
    let execed = exec::exec(exec::ExecRequest {
        init: pid,
        init_pidfd: pidfd,
        process: &process,
        cgroup: cgroup.as_mut().unwrap_or(container),
        stdio: streams,
        seccomp: filter.as_ref(),
        container: plan.map(|plan| init::state(&request.container, bundle, plan, (pid, Status::Running))),
        preserve_fds: 0,
        // Pods have neither.
        personality: None,
        resctrl: None,
        memory_policy: None,
    });
    let execed = execed.inspect_err(|_| {
        if let Some(cgroup) = &cgroup {
            // What it could hold is dead with the failure.
            let _ = cgroup.remove(std::time::Instant::now());
        }
    })?;
    Ok(Execed { pid: execed.pid, pidfd: execed.pidfd, cgroup, terminal: execed.console })
}

fn read_plan(bundle: &Path) -> Result<Plan, Failure> {
    let config = |error: &dyn std::error::Error| Failure::because(Step::Config, sentence(error));
    let loaded = spec::load(bundle).map_err(|error| config(&error))?;
    let mut plan = Plan::from_spec(&loaded.spec, &loaded.raw, bundle).map_err(|error| config(&error))?;
    plan.hooks.bound(MOST_HOOK_SECONDS);
    for warning in loaded.warnings.iter().chain(&plan.warnings) {
        tracing::debug!(%warning, "config.json");
    }
    Ok(plan)
}

fn read_process(description: &OwnedFd) -> Result<Process, Failure> {
    let config = |error: &dyn std::error::Error| Failure::because(Step::Config, sentence(error));
    let (process, raw, _) = spec::parse_process(&read(description)?).map_err(|error| config(&error))?;
    Process::from_spec(&process, &raw).map_err(|error| config(&error))
}

fn program(memfd: &OwnedFd) -> Result<Program, Failure> {
    Program::from_bytes(&read(memfd)?).map_err(|error| Failure::because(Step::Seccomp, sentence(&error)))
}

/// `slice:prefix:name` is systemd's form; a path has a slash.
fn cgroup_path(plan: &Plan, id: &str) -> Result<CgroupPath, Failure> {
    let given = plan.cgroups_path.as_deref();
    let systemd = given.is_some_and(|path| !path.contains('/') && path.matches(':').count() == 2);
    let driver = if systemd { Driver::Systemd } else { Driver::Cgroupfs };
    CgroupPath::parse(given.map(Path::new), id, driver)
        .map_err(|error| Failure::because(Step::Cgroup, sentence(&error)))
}

/// The container's ends of new pipes, and ours.
fn pipes(with_stdin: bool) -> Result<(Stdio, Ends), Failure> {
    let pipe = || {
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        pipe.map_err(|errno| Failure::os(Step::State, errno).with_message("make a pipe"))
    };
    let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
    let (their_stdin, stdin) =
        if with_stdin { pipe().map(|(read, write)| (read, Some(write)))? } else { (null()?, None) };
    let theirs = Stdio::Fds { stdin: their_stdin, stdout: their_stdout, stderr: their_stderr };
    Ok((theirs, Ends::Pipes { stdin, stdout, stderr }))
}

/// Makes the pipes the property of the root of the container's user namespace, who then gives them to the process's user; what
/// belongs to the host's root, nobody in there could open again through /dev/stdout.
fn give(stdio: &Stdio, root: Option<(u32, u32)>) -> Result<(), Failure> {
    let (Stdio::Fds { stdin, stdout, stderr }, Some((uid, gid))) = (stdio, root) else { return Ok(()) };
    let failed = |errno| Failure::os(Step::Console, errno).with_message("give the standard streams away");
    for fd in [stdin, stdout, stderr] {
        let stat = rustix::fs::fstat(fd).map_err(failed)?;
        // Anything else may be more than this process's, as /dev/null is.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)?;
        }
    }
    Ok(())
}

fn null() -> Result<OwnedFd, Failure> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::at(Step::State, errno, "/dev/null"))
}

/// A passed memfd from its start, wherever its sender left the offset.
fn read(memfd: &OwnedFd) -> Result<Vec<u8>, Failure> {
    let failed = |errno| Failure::os(Step::Request, errno).with_message("read a passed memfd");
    let size = rustix::fs::fstat(memfd).map_err(failed)?.st_size;
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_MEMFD_BYTES);
    let mut bytes = vec![0; size.ok_or_else(|| failed(Errno::FBIG))?];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(memfd, &mut bytes[filled..], filled as u64) {
            Ok(0) => bytes.truncate(filled),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(bytes)
}
