//! `wright pause` and `wright resume`: freezing and thawing.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use runtime::state::Status;

use crate::cli::{Command, Count, Parsed};
use crate::container::Container;
use crate::globals::Globals;

/// How long every task may take to freeze.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first verb.
pub(crate) const PAUSE: Command = Command {
    name: "pause",
    usage: "pause suspends all processes inside the container",
    arguments: "<container-id>",
    description: "",
    flags: &[],
    count: Count::Exactly(1),
    interspersed: true,
    run: pause,
};

/// The second verb.
pub(crate) const RESUME: Command = Command {
    name: "resume",
    usage: "resumes all processes that have been previously paused",
    arguments: "<container-id>",
    description: "",
    flags: &[],
    count: Count::Exactly(1),
    interspersed: true,
    run: resume,
};

fn pause(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    match container.status() {
        Status::Running | Status::Created => {}
        status => bail!("container not running or created: {status}"),
    }
    container.needed_cgroup()?.freeze(Instant::now() + FREEZE_TIMEOUT)?;
    Ok(0)
}

fn resume(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    // A created container can be frozen too, and is then still called created.
    match container.status() {
        Status::Paused => {}
        Status::Created if container.needed_cgroup()?.is_frozen()? => {}
        _ => bail!("container not paused"),
    }
    container.needed_cgroup()?.thaw()?;
    Ok(0)
}
