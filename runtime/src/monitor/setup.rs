//! What a monitor does before it serves: its arguments, its session, its score, its cgroup.
//!
//! The listening socket is its standard input, so that the daemon needs no code between fork and exec to hand it over. The steps,
//! in order, and why there:
//!
//! 1. a session of its own: no terminal of the daemon's can signal it;
//! 2. subreaper: what its descendants leave behind comes to it;
//! 3. the socket is taken and standard input becomes /dev/null, before anything could be inherited by a child;
//! 4. oom score and cgroup, as early as possible: until then it can be killed for the memory of others.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::logger::Logger;
use super::serve::Server;
use crate::cgroup::{CgroupPath, Controller, Driver, Hierarchies, join_self_runtime};
use crate::failure::sentence;
use crate::{Failure, Step};

/// The monitor's hierarchies: those through which it could be killed or frozen with something else.
const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Freezer];

/// The command line of a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `--pod`: the pod's id, named in every log line.
    pub pod: String,
    /// `--run`: the pod's directory with `monitor.sock`, which is removed at the end.
    pub run: PathBuf,
    /// `--cgroup`: the cgroup of all monitors; None: it stays where it was started.
    pub cgroup: Option<PathBuf>,
    /// `--oom-score`: the wanted oom_score_adj; None: as inherited.
    pub oom_score: Option<i32>,
    /// `--log-level`: error, warn, info, debug or trace.
    pub log_level: tracing::Level,
}

/// Why a command line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Not one of ours.
    #[error("unknown argument {0:?}")]
    Unknown(OsString),
    /// It needs a value.
    #[error("{0} needs a value")]
    NoValue(&'static str),
    /// It is needed.
    #[error("{0} is needed")]
    Missing(&'static str),
    /// Its value is not of the right kind.
    #[error("{option} cannot be {value:?}")]
    Invalid {
        /// The option.
        option: &'static str,
        /// What was given.
        value: OsString,
    },
}

impl Options {
    /// Reads the arguments after the program's name. Each is given as two words; the daemon is the only caller.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, OptionsError> {
        let mut arguments = arguments.into_iter();
        let (mut pod, mut run, mut cgroup, mut oom_score) = (None, None, None, None);
        let mut log_level = tracing::Level::INFO;
        while let Some(argument) = arguments.next() {
            let option = ["--pod", "--run", "--cgroup", "--oom-score", "--log-level"]
                .into_iter()
                .find(|option| argument == *option)
                .ok_or(OptionsError::Unknown(argument))?;
            let value = arguments.next().ok_or(OptionsError::NoValue(option))?;
            let invalid = |value: OsString| OptionsError::Invalid { option, value };
            let text = |value: OsString| value.into_string().map_err(invalid);
            match option {
                "--pod" => pod = Some(text(value)?),
                "--run" => run = Some(PathBuf::from(value)),
                "--cgroup" => cgroup = Some(PathBuf::from(value)),
                "--oom-score" => {
                    let value = text(value)?;
                    let score: i32 = value.parse().map_err(|_| invalid(value.clone().into()))?;
                    if !(-1000..=1000).contains(&score) {
                        return Err(invalid(value.into()));
                    }
                    oom_score = Some(score);
                }
                _ => {
                    let value = text(value)?;
                    log_level = value.parse().map_err(|_| invalid(value.into()))?;
                }
            }
        }
        Ok(Self {
            pod: pod.ok_or(OptionsError::Missing("--pod"))?,
            run: run.ok_or(OptionsError::Missing("--run"))?,
            cgroup,
            oom_score,
            log_level,
        })
    }
}

/// Runs a monitor until it is told to end.
///
/// # Errors
/// It cannot begin; once it serves, nothing makes it fail but the poll loop itself.
pub fn run(options: &Options) -> Result<(), Failure> {
    // Fails only if it is set already, by a test in this process.
    let _ = tracing::subscriber::set_global_default(Logger::new(options.log_level, &options.pod));
    // Executed from a memfd it would be called by that descriptor's number in ps(1).
    let _ = rustix::thread::set_name(c"podwright-monit");
    // EPERM: it leads a group already, as when started from a shell; then it has been set apart well enough.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| Failure::os(Step::ProcessAttributes, errno).with_message("become a subreaper"))?;
    let socket = take_socket()?;
    if let Some(score) = options.oom_score {
        set_oom_score(score);
    }
    let hierarchies = join_cgroup(options)?;
    tracing::debug!("the monitor serves");
    Server::new(socket, options.run.join("monitor.sock"), hierarchies)?.run()
}

/// The listening socket, from standard input.
fn take_socket() -> Result<OwnedFd, Failure> {
    let failed = |errno, what: &str| Failure::os(Step::State, errno).with_message(what);
    let listening = rustix::net::sockopt::socket_acceptconn(std::io::stdin().as_fd());
    if !listening.map_err(|errno| failed(errno, "standard input is not a socket"))? {
        return Err(failed(Errno::INVAL, "standard input is not a listening socket"));
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3)
        .map_err(|errno| failed(errno, "duplicate the listening socket"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::at(Step::State, errno, "/dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|errno| failed(errno, "replace standard input"))?;
    Ok(socket)
}

/// As low as allowed: without CAP_SYS_RESOURCE the score can be raised only, and it stays what it is.
fn set_oom_score(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::debug!(%error, score, "the oom score stays as it was");
    }
}

/// Joins the cgroup of all monitors. A monitor outside of it works; it is only less safe.
fn join_cgroup(options: &Options) -> Result<Hierarchies, Failure> {
    let hierarchies = Hierarchies::detect()?;
    let Some(path) = &options.cgroup else { return Ok(hierarchies) };
    let path = CgroupPath::parse(Some(path), &options.pod, Driver::Cgroupfs)
        .map_err(|error| Failure::because(Step::Cgroup, sentence(&error)))?;
    if let Err(failure) = join_self_runtime(&hierarchies, &path, &CONTROLLERS) {
        tracing::warn!(%failure, "the monitor stays in the cgroup it was started in");
    }
    Ok(hierarchies)
}

impl fmt::Display for Options {
    /// As a command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--pod {} --run {}", self.pod, self.run.display())?;
        if let Some(cgroup) = &self.cgroup {
            write!(f, " --cgroup {}", cgroup.display())?;
        }
        if let Some(score) = self.oom_score {
            write!(f, " --oom-score {score}")?;
        }
        write!(f, " --log-level {}", self.log_level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, OptionsError> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_command_line_is_read_as_it_is_shown() {
        let line = "--pod p --run /run/p --cgroup /podwright/monitors --oom-score -999 --log-level DEBUG";
        let options = parse(line).unwrap();
        assert_eq!(options.oom_score, Some(-999));
        assert_eq!(options.to_string(), line);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(parse("--pod p"), Err(OptionsError::Missing("--run")));
        assert_eq!(parse("--pod"), Err(OptionsError::NoValue("--pod")));
        assert_eq!(parse("--frob 1"), Err(OptionsError::Unknown("--frob".into())));
        assert!(parse("--pod p --run r --oom-score 1001").is_err());
        assert!(parse("--pod p --run r --log-level loud").is_err());
    }
}
