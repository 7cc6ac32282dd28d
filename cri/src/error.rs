//! The one error of the gRPC services, and the only maker of [`tonic::Status`].
//!
//! A variant per class that a client can act on; each reads as one sentence that names the pod, container or
//! path and, where something can be done, what. The status carries the whole chain of causes, because nothing
//! else of it reaches the caller.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::time::Duration;

use runtime::failure::{Failure, Step};
use rustix::io::Errno;
use tonic::{Code, Status};

/// Why a call cannot be answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such pod, container or exec session: `NOT_FOUND`.
    #[error("{what} {id} does not exist on this node")]
    NotFound {
        /// `pod sandbox`, `container`, …
        what: &'static str,
        /// As the client wrote it.
        id: String,
    },
    /// No rootfs directory answers to the reference: `NOT_FOUND`.
    #[error(
        "image {reference} is not on this node: no entry for it below {}; add a root filesystem directory there \
         or an alias to the configuration",
        places(searched)
    )]
    ImageNotFound {
        /// As the client wrote it.
        reference: String,
        /// The configured roots, in the order they were searched.
        searched: Vec<PathBuf>,
    },
    /// The name is taken: `ALREADY_EXISTS`.
    #[error("{what} {name} exists already with id {id}; remove it first")]
    AlreadyExists {
        /// `pod sandbox` or `container`.
        what: &'static str,
        /// Name, namespace and attempt, as people write them.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The request can never be served as it is: `INVALID_ARGUMENT`.
    #[error("{field}: {reason}")]
    InvalidArgument {
        /// Path of the field in the request, such as `config.linux.resources.cpu_quota`.
        field: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The request is fine, the state of its subject is not: `FAILED_PRECONDITION`.
    #[error("{what} {id}: {reason}")]
    FailedPrecondition {
        /// `pod sandbox`, `container`, `image`, …
        what: &'static str,
        /// Whose state.
        id: String,
        /// What is wrong with it and what would mend it.
        reason: String,
    },
    /// Not done within the time the caller gave: `DEADLINE_EXCEEDED`.
    #[error("{what} did not finish within {limit:?}")]
    DeadlineExceeded {
        /// What was waited for, with its id.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A bound was reached: `RESOURCE_EXHAUSTED`.
    #[error("{what}: {reason}")]
    ResourceExhausted {
        /// What was to be done, with its id.
        what: String,
        /// Which bound.
        reason: String,
    },
    /// Something this needs does not answer just now; trying again may help: UNAVAILABLE.
    #[error("{what} is not available now; try again")]
    Unavailable {
        /// The daemon, or a pod's monitor with the pod's id.
        what: String,
        /// Why, where that is known.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// A call or option that this version does not have: UNIMPLEMENTED.
    #[error("{what} is not supported by this version of podwright")]
    Unimplemented {
        /// The call or option.
        what: String,
    },
    /// A step of the engine failed; the class follows from step and errno.
    #[error("{what} {id}")]
    Engine {
        /// `pod sandbox` or `container`.
        what: &'static str,
        /// Whose.
        id: String,
        /// Step, errno and path.
        #[source]
        failure: Failure,
    },
    /// Work with a file failed; the class follows from the errno.
    #[error("{action} {}", path.display())]
    Io {
        /// `write`, `open`, …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The errno.
        #[source]
        source: std::io::Error,
    },
    /// A mistake of the daemon's own, or a cause outside the classes above: INTERNAL.
    #[error("{what}")]
    Internal {
        /// What was being done, with its id.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// A field of the request that is refused.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field: field.into(), reason: reason.into() }
    }

    /// An unexpected failure of `what`.
    pub fn internal(what: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal { what: what.into(), source: source.into() }
    }

    /// The gRPC code of this error's class.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::ImageNotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::ResourceExhausted { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Engine { failure, .. } => failure_code(failure),
            Self::Io { source, .. } => source.raw_os_error().and_then(scarcity).unwrap_or(Code::Internal),
            Self::Internal { .. } => Code::Internal,
        }
    }

    /// The error and every cause of it, joined by colons.
    pub fn sentence(&self) -> String {
        runtime::failure::sentence(self)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.sentence())
    }
}

/// The class of an engine's failure. What a client may mend itself is told from what it cannot.
fn failure_code(failure: &Failure) -> Code {
    if let Some(code) = scarcity(failure.errno) {
        return code;
    }
    match (failure.step, failure.errno()) {
        (_, Some(Errno::TIMEDOUT)) => Code::DeadlineExceeded,
        (Step::Config, _) | (Step::Cgroup | Step::Sysctl, Some(Errno::INVAL | Errno::RANGE)) => {
            Code::InvalidArgument
        }
        // fork's own limits: pids.max of the runtime's cgroup, RLIMIT_NPROC, pid_max.
        (Step::Clone, Some(Errno::AGAIN)) => Code::ResourceExhausted,
        (Step::Handshake, Some(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED)) => Code::Unavailable,
        // The image and the request decide these: what they name is missing or is of the wrong kind.
        // So do cgroups: v1 refuses a limit below what is in use.
        (Step::Exec | Step::WorkingDirectory | Step::Request, _)
        | (Step::Cgroup, Some(Errno::BUSY))
        | (
            Step::Mount | Step::Device | Step::Rootfs | Step::MaskPath | Step::Network | Step::Hook,
            Some(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::NODEV | Errno::NXIO),
        ) => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

/// The errnos that mean that something ran out, whatever was being done.
fn scarcity(errno: i32) -> Option<Code> {
    let full = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::USERS];
    full.iter().any(|errno_of| errno_of.raw_os_error() == errno).then_some(Code::ResourceExhausted)
}

/// `/a, /b`, or what to say when no root is configured.
fn places(searched: &[PathBuf]) -> String {
    if searched.is_empty() {
        return "any root (none is configured)".to_owned();
    }
    searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(step: Step, errno: Errno) -> Error {
        Error::Engine { what: "container", id: "web".into(), failure: Failure::at(step, errno, "/x") }
    }

    #[test]
    fn an_engine_failure_has_the_class_of_its_step_and_errno() {
        let cases = [
            (Step::Rootfs, Errno::NOSPC, Code::ResourceExhausted),
            (Step::State, Errno::DQUOT, Code::ResourceExhausted),
            (Step::Clone, Errno::AGAIN, Code::ResourceExhausted),
            (Step::Clone, Errno::NOMEM, Code::ResourceExhausted),
            (Step::Exec, Errno::NOENT, Code::FailedPrecondition),
            (Step::Exec, Errno::ACCESS, Code::FailedPrecondition),
            (Step::Mount, Errno::NOENT, Code::FailedPrecondition),
            (Step::Mount, Errno::PERM, Code::Internal),
            (Step::Cgroup, Errno::INVAL, Code::InvalidArgument),
            (Step::Cgroup, Errno::BUSY, Code::FailedPrecondition),
            (Step::Hook, Errno::TIMEDOUT, Code::DeadlineExceeded),
            (Step::Handshake, Errno::PIPE, Code::Unavailable),
            (Step::Seccomp, Errno::INVAL, Code::Internal),
        ];
        for (step, errno, code) in cases {
            assert_eq!(engine(step, errno).code(), code, "{step:?} {errno:?}");
        }
        let refused = Failure::because(Step::Request, "the pod is stopping");
        assert_eq!(
            Error::Engine { what: "container", id: "web".into(), failure: refused }.code(),
            Code::FailedPrecondition
        );
    }

    #[test]
    fn a_status_tells_the_whole_chain_once() {
        let status = Status::from(engine(Step::Exec, Errno::NOENT));
        assert_eq!(status.message(), "container web: exec /x: no such file or directory");
        let source = std::io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let status = Status::from(Error::Io { action: "write", path: "/state/x".into(), source });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().starts_with("write /state/x: "), "{}", status.message());
    }

    #[test]
    fn a_missing_image_names_the_places_searched() {
        let error = Error::ImageNotFound {
            reference: "busybox".into(),
            searched: vec!["/srv/roots".into(), "/nix/store".into()],
        };
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.to_string().contains("below /srv/roots, /nix/store;"), "{error}");
        let error = Error::ImageNotFound { reference: "busybox".into(), searched: Vec::new() };
        assert!(error.to_string().contains("none is configured"), "{error}");
    }
}
