//! Waiting for a change in a directory, by inotify(7).

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::inotify;
use tokio::net::unix::pipe;

/// A watched directory. Changes from the moment it is made are seen.
pub(crate) struct Watch(pipe::Receiver);

impl Watch {
    /// Watches for files in `directory` that are written, made or renamed into place.
    pub(crate) fn directory(directory: &Path) -> Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .context("inotify (see fs.inotify.max_user_instances)")?;
        let events =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, events)
            .with_context(|| format!("watch {} (see fs.inotify.max_user_watches)", directory.display()))?;
        // Not a pipe, but polled and read like one, which is all that the unchecked constructor leaves to us.
        Ok(Self(pipe::Receiver::from_file_unchecked(File::from(fd))?))
    }

    /// Returns when something has changed since the last call. What, the caller sees for itself.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        let mut events = [0; 4096];
        self.0.readable().await?;
        // Emptied, so that the next call waits for what is new.
        while self.0.try_read(&mut events).is_ok() {}
        Ok(())
    }
}
