//! How a session ended, as the error stream tells it: since v4 a `Status` of Kubernetes' API (meta/v1) in JSON, before that the
//! message of a failure as text and of a success nothing.

use serde_json::json;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As wished: a command exited with 0, what was attached to has ended.
    Success,
    /// A command exited with another code; 128 + the signal where one killed it.
    ExitCode(i32),
    /// Something did not work.
    Failed(String),
}

impl Outcome {
    /// What is written on the error stream. None: nothing.
    pub(super) fn encode(&self, json: bool) -> Option<String> {
        if json { Some(self.status().to_string()) } else { self.message() }
    }

    /// The message of what is no success.
    fn message(&self) -> Option<String> {
        match self {
            Self::Success => None,
            Self::ExitCode(code) => Some(format!("command terminated with non-zero exit code: {code}")),
            Self::Failed(message) => Some(format!("Internal error occurred: {message}")),
        }
    }

    /// A `Status`; kubectl looks for the code at the cause called `ExitCode`.
    fn status(&self) -> serde_json::Value {
        let message = self.message();
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(cause) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": cause}]},
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_finds_the_code() {
        let text = Outcome::ExitCode(42).encode(true).unwrap();
        assert_eq!(
            text,
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 42","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#
        );
        assert_eq!(Outcome::Success.encode(true).unwrap(), r#"{"metadata":{},"status":"Success"}"#);
    }

    #[test]
    fn before_v4_only_failures_are_told() {
        assert_eq!(Outcome::Success.encode(false), None);
        let told = Outcome::ExitCode(1).encode(false).unwrap();
        assert_eq!(told, "command terminated with non-zero exit code: 1");
    }
}
