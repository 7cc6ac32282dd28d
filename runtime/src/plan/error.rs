//! What makes a spec impossible to follow.

/// Why a spec cannot be followed. Every variant names the field, as `linux.namespaces[2].type`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A field that must be there is not.
    #[error("{field}: must be specified")]
    Missing {
        /// The field.
        field: String,
    },
    /// A field's value is impossible in itself.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field asks for something that needs another one.
    #[error("{field}: {problem}")]
    Conflict {
        /// The field.
        field: String,
        /// What it needs, or what it cannot be together with.
        problem: String,
    },
}

impl PlanError {
    pub(super) fn missing(field: impl Into<String>) -> Self {
        Self::Missing { field: field.into() }
    }

    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub(super) fn conflict(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Conflict { field: field.into(), problem: problem.into() }
    }
}

/// Refuses a string that no system call could take.
pub(super) fn no_nul(field: impl FnOnce() -> String, text: &str) -> Result<(), PlanError> {
    if text.contains('\0') { Err(PlanError::invalid(field(), "contains a NUL byte")) } else { Ok(()) }
}

/// Refuses a path that is not absolute, or that no system call could take.
pub(super) fn absolute(field: impl Fn() -> String, path: &std::path::Path) -> Result<(), PlanError> {
    no_nul(&field, &path.to_string_lossy())?;
    if path.is_absolute() {
        Ok(())
    } else {
        Err(PlanError::invalid(field(), format!("{} is not an absolute path", path.display())))
    }
}
