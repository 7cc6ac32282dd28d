//! `wright start`: lets a created container's init execute its program.

use anyhow::{Result, bail};
use runtime::state::Status;

use crate::cli::{Command, Count, Parsed};
use crate::container::Container;
use crate::gate;
use crate::globals::Globals;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "start",
    usage: "executes the user defined process in a created container",
    arguments: "<container-id>",
    description: "",
    flags: &[],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    match container.status() {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        status => bail!("cannot start a container in the {status} state"),
    }
    // Read first: once the gate is open it is too late to find that they cannot be.
    let hooks = container.plan()?.hooks;
    gate::open_listening(&container.dir)?;
    if let Err(error) = gate::after_start(&hooks, &container.record) {
        // The runtime-spec's lifecycle, step 9: a container whose poststart hooks fail is stopped.
        if let Err(left) = container.kill() {
            globals.log.warn(&format!("kill the container after a failed poststart hook: {left:#}"));
        }
        return Err(error);
    }
    Ok(0)
}
