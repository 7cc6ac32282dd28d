//! The one error shape that crosses a process: from init to its parent, from the monitor to the daemon.
//!
//! An errno alone does not tell a person what to mend; a formatted string cannot be matched on. A
//! [`Failure`] is both: the step that failed, the errno, and the path (or other subject) it failed on.

use std::fmt;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What was being done when it failed. One variant per step of a container's life, in the order they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Reading or checking a request or a `config.json`.
    Config,
    /// Making or joining a cgroup, or writing one of its limits.
    Cgroup,
    /// clone3(2) of init or of an exec'd process.
    Clone,
    /// Writing uid_map, gid_map or setgroups of a new user namespace.
    UserMapping,
    /// Joining or making a namespace.
    Namespace,
    /// Moving or configuring a network device.
    Network,
    /// Mounting or preparing the root filesystem.
    Rootfs,
    /// One of the spec's mounts.
    Mount,
    /// Making a device node.
    Device,
    /// Allocating or handing over the pseudo-terminal.
    Console,
    /// pivot_root(2) or its fallback.
    PivotRoot,
    /// Masking a path or making it read-only.
    MaskPath,
    /// Hostname or domainname.
    Hostname,
    /// Writing a sysctl.
    Sysctl,
    /// An AppArmor profile or SELinux label.
    Label,
    /// Resource limits, oom score, scheduler, I/O priority, affinity, personality, memory policy.
    ProcessAttributes,
    /// User, groups, capabilities or no_new_privs.
    Credentials,
    /// Changing to the working directory, or the proof that it is inside the root.
    WorkingDirectory,
    /// Loading the seccomp filter.
    Seccomp,
    /// A lifecycle hook.
    Hook,
    /// The handshake between parent and child, or a peer that vanished.
    Handshake,
    /// Looking up or executing the container's program.
    Exec,
    /// Sending a signal.
    Signal,
    /// Reading or writing state on disk.
    State,
    /// Opening or writing the container's log.
    Log,
    /// Checkpoint or restore.
    Checkpoint,
    /// The request itself cannot be served now: unknown container, wrong state, limit reached.
    Request,
}

impl Step {
    /// The step in words, for the head of a message.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Cgroup => "cgroup",
            Self::Clone => "clone",
            Self::UserMapping => "user namespace mapping",
            Self::Namespace => "namespace",
            Self::Network => "network device",
            Self::Rootfs => "rootfs",
            Self::Mount => "mount",
            Self::Device => "device",
            Self::Console => "console",
            Self::PivotRoot => "pivot_root",
            Self::MaskPath => "mask",
            Self::Hostname => "hostname",
            Self::Sysctl => "sysctl",
            Self::Label => "security label",
            Self::ProcessAttributes => "process attributes",
            Self::Credentials => "credentials",
            Self::WorkingDirectory => "working directory",
            Self::Seccomp => "seccomp",
            Self::Hook => "hook",
            Self::Handshake => "handshake",
            Self::Exec => "exec",
            Self::Signal => "signal",
            Self::State => "state",
            Self::Log => "log",
            Self::Checkpoint => "checkpoint",
            Self::Request => "request",
        }
    }
}

/// A failed step, with what it failed on. `errno` 0 means that no system call failed: `message` says what did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done.
    pub step: Step,
    /// errno(3) of the failed call; 0 where none failed.
    pub errno: i32,
    /// The path, name or id it failed on, as the user wrote it where possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// One sentence for what errno and path do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Failure {
    /// A failed system call without a subject.
    pub fn os(step: Step, errno: Errno) -> Self {
        Self { step, errno: errno.raw_os_error(), path: None, message: None }
    }

    /// A failed system call on `path`.
    pub fn at(step: Step, errno: Errno, path: impl AsRef<std::path::Path>) -> Self {
        Self {
            step,
            errno: errno.raw_os_error(),
            path: Some(path.as_ref().to_string_lossy().into_owned()),
            message: None,
        }
    }

    /// A step that failed without a system call failing.
    pub fn because(step: Step, message: impl Into<String>) -> Self {
        Self { step, errno: 0, path: None, message: Some(message.into()) }
    }

    /// Adds the sentence that says what errno and path do not.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// The errno, where a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        (self.errno != 0).then(|| Errno::from_raw_os_error(self.errno))
    }
}

impl fmt::Display for Failure {
    /// `exec /run.sh: no such file or directory`, in lower case as tools that match on it expect.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step.describe())?;
        if let Some(path) = &self.path {
            write!(f, " {path}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if self.errno != 0 {
            write!(f, ": {}", errno_text(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// strerror(3)'s text with a lower-case head, as the tools around OCI runtimes print and match it.
pub fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match (chars.next(), text.starts_with("RPC")) {
        (Some(head), false) => head.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// An error and every cause of it, joined by colons.
#[must_use]
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_one_sentence() {
        let failure = Failure::at(Step::Exec, Errno::NOENT, "/run.sh");
        assert_eq!(failure.to_string(), "exec /run.sh: no such file or directory");
        let failure = Failure::because(Step::Hook, "timed out after 3 s");
        assert_eq!(failure.to_string(), "hook: timed out after 3 s");
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::at(Step::Mount, Errno::PERM, "/proc").with_message("no such type");
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }
}
