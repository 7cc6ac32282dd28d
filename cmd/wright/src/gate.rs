//! The start gate's socket on disk: `create` leaves a listening one, `start` connects to it.
//!
//! The socket is unlinked between connect and the byte that opens the gate: whoever comes second finds none, and the
//! status turns from created to running without anything being stored.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use runtime::container::{Gate, StartGate};
use runtime::hooks::{self, Point};
use runtime::plan::Hooks;
use runtime::state::{Record, StateDir, Status};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::container::bare_state;

/// How long the way from the gate to the program may take: for ever, in effect, but that a clock can add.
const START_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Binds the socket init listens on.
pub(crate) fn listen(dir: &StateDir) -> Result<Gate> {
    let (directory, path) = short_path(dir)?;
    let gate = Gate::listen(&path)?;
    drop(directory);
    Ok(gate)
}

/// Opens the gate of a created container and waits until it has executed its program.
pub(crate) fn open_listening(dir: &StateDir) -> Result<()> {
    let (directory, path) = short_path(dir)?;
    let gate = match StartGate::connect(&path) {
        Ok(gate) => gate,
        Err(failure) if failure.errno() == Some(Errno::NOENT) => {
            bail!("cannot start an already running container")
        }
        Err(failure) => return Err(failure.into()),
    };
    drop(directory);
    match rustix::fs::unlink(dir.start_socket()) {
        Ok(()) => {}
        // Another start was between its connect and this.
        Err(Errno::NOENT) => bail!("cannot start an already running container"),
        Err(errno) => return Err(errno).context("take the start gate"),
    }
    pass(&gate)
}

/// Opens the gate and waits until the program runs. startContainer hooks are in between, whose timeouts are their own.
pub(crate) fn pass(gate: &StartGate) -> Result<()> {
    gate.open()?;
    gate.wait(Instant::now() + START_TIMEOUT)?;
    Ok(())
}

/// Runs the poststart hooks.
pub(crate) fn after_start(hooks: &Hooks, record: &Record) -> Result<()> {
    if hooks.poststart.is_empty() {
        return Ok(());
    }
    let state = bare_state(record, Status::Running).to_json()?;
    hooks::run(Point::Poststart, &hooks.poststart, &state, Some(&record.bundle), None)?;
    Ok(())
}

/// A path of the socket that fits a socket address (108 bytes) however long the state root's is; it lives as long as the
/// returned descriptor.
fn short_path(dir: &StateDir) -> Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, dir.path(), flags, Mode::empty())
        .with_context(|| format!("open {}", dir.path().display()))?;
    let number = directory.as_fd().as_raw_fd();
    let name = dir.start_socket();
    let name = name.file_name().unwrap_or_default();
    let path = PathBuf::from(format!("/proc/self/fd/{number}")).join(name);
    Ok((directory, path))
}
