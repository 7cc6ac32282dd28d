//! The end of a pod that was never whole: one whose making failed, or was cut short by the daemon's death.
//!
//! Nobody was told its id, so nobody will ask for its end. What its network plugins made has to be undone all the same; until
//! they say that it is, the record stays on disk, and they are asked again: by this daemon, or by the next.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug_span;

use super::files;
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::network;

/// How long to wait before what failed is tried again, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Detaches a pod without processes from its network, releases its files and removes its records. May be repeated.
pub async fn discard(daemon: &Arc<Daemon>, id: &str) -> Result<(), Error> {
    let dirs = daemon.directories(id);
    network::detach(daemon, &dirs, id).await?;
    blocking(debug_span!("remove_files"), move || {
        files::release(&dirs)?;
        imageless::rootfs::remove_dir(&dirs.state)
            .map_err(|error| Error::internal(format!("remove {}", dirs.state.display()), error))
    })
    .await
}

/// As [`discard`], beside everything else, and again and again until it is done.
pub fn discard_later(daemon: Arc<Daemon>, id: String) {
    tokio::spawn(async move {
        let mut pause = RETRY.0;
        while let Err(error) = discard(&daemon, &id).await {
            let (error, seconds) = (error.sentence(), pause.as_secs());
            tracing::warn!(pod = %id, error, seconds, "a discarded pod is not gone: tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
        tracing::info!(pod = %id, "a pod that was never whole is gone");
    });
}
