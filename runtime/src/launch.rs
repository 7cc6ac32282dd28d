//! From a process that is in its namespaces and root to one that executes its program: the same for init and for an exec'd one.
//!
//! | Step | Why here in the order |
//! |---|---|
//! | security labels | written through a procfs, while one may still be mounted |
//! | terminal or streams | changing owners takes CAP_CHOWN |
//! | working directory | a missing one is made as root |
//! | arguments, environment | HOME is read from the root's passwd |
//! | limits, scheduling, … | raising them takes capabilities; low ones must not hit what comes before |
//! | credentials | ends all of that, but for CAP_SYS_ADMIN where a filter is still to be loaded |
//! | the program is looked up | as the user |
//! | *init waits at its gate, startContainer hooks run* | |
//! | seccomp | last: the filter need only allow execve and what the program does itself |
//! | execve | |

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::handshake::{End, FromChild};
use crate::plan::{MemoryPolicy, Process};
use crate::procfs::Procfs;
use crate::{Failure, Step, lsm, process, seccomp, sys};

/// What is launched.
pub(crate) struct Launch<'a> {
    /// The plan of the process.
    pub(crate) process: &'a Process,
    /// The CPUs it runs on.
    pub(crate) affinity: Affinity<'a>,
    /// personality(2).
    pub(crate) personality: Option<u32>,
    /// set_mempolicy(2).
    pub(crate) memory_policy: Option<&'a MemoryPolicy>,
    /// The filter.
    pub(crate) seccomp: Option<&'a seccomp::Program>,
    /// The process is in a user namespace, where its own privileges do not raise limits.
    pub(crate) user_namespace: bool,
}

/// The CPUs of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Affinity<'a> {
    /// All that its cgroup allows.
    Cgroup,
    /// Those it was made with.
    Kept,
    /// Those of a list.
    List(&'a str),
}

/// The standard streams, as far as they are to be taken.
pub(crate) enum Streams {
    /// As they are.
    Inherit,
    /// These three.
    Fds([OwnedFd; 3]),
    /// The process's end of a terminal.
    Terminal(OwnedFd),
}

/// A process that has only to execute its program.
pub(crate) struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Makes the caller, which leads a session, the process of `launch` in all but its program. The inner error says that the program cannot
/// be found or executed.
pub(crate) fn become_process(
    launch: &Launch<'_>,
    streams: Streams,
    link: &End,
) -> Result<Result<Program, Failure>, Failure> {
    let process = launch.process;
    labels(process)?;
    match streams {
        Streams::Inherit => own_null_device()?,
        Streams::Fds(fds) => {
            process::take_stdio(fds, process)?;
            own_null_device()?;
        }
        Streams::Terminal(peer) => process::take_terminal(peer, process)?,
    }
    process::enter_working_directory(process)?;
    let (args, env) = process::strings(process)?;
    attributes(launch, link)?;
    let loads_filter = launch.seccomp.is_some() && !process.no_new_privileges;
    process::credentials(process, loads_filter)?;
    Ok(process::look_up_program(process).map(|path| Program { path, args, env }))
}

fn labels(process: &Process) -> Result<(), Failure> {
    let (profile, label) = (process.apparmor_profile.as_deref(), process.selinux_label.as_deref());
    if profile.is_none() && label.is_none() {
        return Ok(());
    }
    let procfs = Procfs::open()?;
    lsm::set_apparmor_exec(procfs.as_fd(), profile.unwrap_or_default())?;
    lsm::set_selinux_exec(procfs.as_fd(), label.unwrap_or_default())
}

fn attributes(launch: &Launch<'_>, link: &End) -> Result<(), Failure> {
    let failure =
        |what: &'static str| move |errno| Failure::os(Step::ProcessAttributes, errno).with_message(what);
    let higher = launch
        .process
        .rlimits
        .iter()
        .any(|limit| sys::current_rlimit(limit.resource).is_ok_and(|current| current.hard < limit.hard));
    if launch.user_namespace && higher {
        link.ask(&FromChild::RaiseLimits)?;
    }
    process::attributes(launch.process)?;
    match launch.affinity {
        Affinity::Cgroup => process::reset_affinity(),
        Affinity::Kept => {}
        Affinity::List(list) => process::affinity(list)?,
    }
    if let Some(domain) = launch.personality {
        sys::personality(domain).map_err(failure("personality"))?;
    }
    if let Some(policy) = launch.memory_policy {
        sys::set_mempolicy(policy.mode, &policy.nodes).map_err(failure("memory policy"))?;
    }
    Ok(())
}

/// Standard streams that are the host's null device become the container's own: a container could change the mode or the owner of
/// the host's. A container that has none keeps what it was given.
fn own_null_device() -> Result<(), Failure> {
    const NULL: &str = "/dev/null";
    let failure = |errno| Failure::at(Step::Device, errno, NULL);
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let [stdin, stdout, stderr] = streams.map(is_null_device);
    if !stdin && !stdout && !stderr {
        return Ok(());
    }
    // Looked at before it is opened: opening a device has effects.
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if !rustix::fs::open(NULL, look, Mode::empty()).is_ok_and(|handle| is_null_device(handle.as_fd())) {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let null = rustix::fs::open(NULL, flags, Mode::empty()).map_err(failure)?;
    if !is_null_device(null.as_fd()) {
        return Ok(());
    }
    rustix::io::ioctl_fionbio(&null, false).map_err(failure)?;
    if stdin {
        rustix::stdio::dup2_stdin(&null).map_err(failure)?;
    }
    if stdout {
        rustix::stdio::dup2_stdout(&null).map_err(failure)?;
    }
    if stderr {
        rustix::stdio::dup2_stderr(&null).map_err(failure)?;
    }
    Ok(())
}

fn is_null_device(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

impl Program {
    /// Its environment, as far as it is text.
    pub(crate) fn environment(&self) -> Vec<String> {
        self.env.iter().filter_map(|entry| entry.to_str().ok().map(str::to_owned)).collect()
    }

    /// Executes it. Returns only why that failed.
    pub(crate) fn execute(&self) -> Failure {
        let errno = sys::execve(&self.path, &self.args, &self.env);
        Failure::at(Step::Exec, errno, self.path.to_string_lossy().as_ref())
    }
}

/// Whether the filter has a listener, and so must be loaded while the parent is there to take that.
pub(crate) fn is_early(filter: &seccomp::Program) -> bool {
    filter.listener().is_some()
}

/// Loads a filter that has a listener, and waits until the parent has taken that. What this takes, such a filter must let
/// through.
pub(crate) fn load_early(filter: &seccomp::Program, link: &End) -> Result<(), Failure> {
    match load(filter)? {
        Some(listener) => {
            let asked = link.ask(&FromChild::Listener { fd: listener.as_raw_fd() });
            // Nobody answers for the filter's system calls yet, of which close(2) may be one. It goes with the other descriptors.
            let _ = listener.into_raw_fd();
            asked.map(drop)
        }
        None => Ok(()),
    }
}

/// Loads a filter, for good.
pub(crate) fn load(filter: &seccomp::Program) -> Result<Option<OwnedFd>, Failure> {
    seccomp::load(filter).map_err(|errno| Failure::os(Step::Seccomp, errno))
}

/// Closes every descriptor but the standard streams, the `preserved` ones that follow, and `kept`, which execve closes. A process that
/// waits at its gate must not hold the ends of other containers' pipes. Whoever owned a closed descriptor must not be dropped any more.
pub(crate) fn forget_descriptors(preserved: u32, kept: BorrowedFd<'_>) -> Result<(), Failure> {
    let failure = |errno| Failure::os(Step::Exec, errno).with_message("closing descriptors");
    let first = i32::try_from(preserved.saturating_add(3)).map_err(|_| failure(Errno::INVAL))?;
    let kept = kept.as_raw_fd();
    if kept < first {
        return sys::close_range(first, i32::MAX).map_err(failure);
    }
    if kept > first {
        sys::close_range(first, kept - 1).map_err(failure)?;
    }
    sys::close_range(kept + 1, i32::MAX).map_err(failure)
}
