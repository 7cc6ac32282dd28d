//! What was acquired on the way to something is given back in reverse when the way ends early.

use std::future::Future;
use std::pin::Pin;

/// One step back.
type Step = Pin<Box<dyn Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> + Send>>;

/// Steps back, most recent last. Nothing happens unless [`run`](Self::run) is called.
#[derive(Default)]
pub(crate) struct Undo {
    steps: Vec<(&'static str, Step)>,
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|(name, _)| name)).finish()
    }
}

impl Undo {
    /// Adds how to take back what was just done; `name` is for the log.
    pub(crate) fn push<E>(
        &mut self,
        name: &'static str,
        step: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.steps.push((name, Box::pin(async move { step.await.map_err(Into::into) })));
    }

    /// Adds a blocking step back.
    pub(crate) fn push_blocking<E>(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) where
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        self.push(name, async move {
            let done = tokio::task::spawn_blocking(step).await;
            match done {
                Ok(done) => done.map_err(Into::into),
                Err(error) => Err(Box::<dyn std::error::Error + Send + Sync>::from(error)),
            }
        });
    }

    /// Takes everything back, most recent first. A step that fails is logged: the first failure is the one to report.
    pub(crate) async fn run(self) {
        for (name, step) in self.steps.into_iter().rev() {
            if let Err(error) = step.await {
                tracing::warn!(step = name, %error, "a step could not be taken back");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn steps_run_in_reverse_and_a_failing_one_stops_nothing() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for number in 1..=3 {
            let seen = seen.clone();
            undo.push("step", async move {
                seen.lock().unwrap().push(number);
                if number == 2 { Err("second fails") } else { Ok(()) }
            });
        }
        undo.run().await;
        assert_eq!(*seen.lock().unwrap(), [3, 2, 1]);
    }
}
