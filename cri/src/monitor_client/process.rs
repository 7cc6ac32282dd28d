//! The end of a monitor's process, which comes a moment after the end of its connection.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::watch;

/// A monitor's process.
#[derive(Debug, Clone)]
pub enum Process {
    /// One that this daemon has started; the watch turns true when it was reaped.
    Child(watch::Receiver<bool>),
    /// One of an earlier daemon's, which init reaps.
    Foreign(Arc<OwnedFd>),
}

impl Process {
    /// A child, reaped in the background when it ends, whoever made it end.
    pub fn reap(mut child: tokio::process::Child) -> Self {
        let (reaped, receiver) = watch::channel(false);
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::debug!(%status, "a monitor has ended"),
                Err(error) => tracing::warn!(%error, "a monitor cannot be waited for"),
            }
            reaped.send_replace(true);
        });
        Self::Child(receiver)
    }

    /// A monitor that serves just now. None: it does not any more.
    pub fn foreign(pid: i32) -> Option<Self> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self::Foreign(Arc::new(pidfd)))
    }

    /// Waits for its end, at most `limit` long.
    pub async fn wait(self, limit: Duration) {
        match self {
            Self::Child(mut reaped) => {
                // An error means that nobody can tell any more.
                let _ = reaped.wait_for(|reaped| *reaped).await;
            }
            Self::Foreign(pidfd) => {
                let waited = tokio::task::spawn_blocking(move || poll(&pidfd, limit)).await;
                if let Ok(Err(error)) = waited {
                    tracing::warn!(%error, "a monitor cannot be waited for");
                }
            }
        }
    }
}

/// Waits until the process has ended or the limit has passed.
fn poll(pidfd: &OwnedFd, limit: Duration) -> Result<(), Errno> {
    let deadline = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}
