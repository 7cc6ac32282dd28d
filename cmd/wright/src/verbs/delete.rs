//! `wright delete`: takes away what a container left.

use anyhow::{Result, bail};
use runtime::state::{StateDir, StateError, Status};

use crate::cli::{Command, Count, Parsed, switch};
use crate::container::Container;
use crate::globals::Globals;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "delete",
    usage: "delete any resources held by the container often used with detached container",
    arguments: "<container-id>",
    description: "",
    flags: &[switch(
        "force",
        Some("f"),
        "Forcibly deletes the container if it is still running (uses SIGKILL)",
    )],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let id = parsed.id();
    let force = parsed.on("force");
    let container = match Container::open(globals, id) {
        Ok(container) => container,
        Err(error) if matches!(error.downcast_ref(), Some(StateError::NotFound)) => {
            // A making that was cut short leaves a directory without a record.
            if let Ok(dir) = StateDir::open(&globals.root, id)
                && force
            {
                dir.remove()?;
            }
            return if force { Ok(0) } else { Err(error) };
        }
        Err(error) => return Err(error),
    };
    match container.status() {
        Status::Stopped => {}
        Status::Created => container.kill()?,
        _ if force => container.kill()?,
        status => bail!("cannot delete container {id} that is not stopped: {status}"),
    }
    container.destroy(globals)?;
    Ok(0)
}
