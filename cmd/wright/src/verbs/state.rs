//! `wright state`: one container's state as JSON.

use anyhow::Result;

use crate::cli::{Command, Count, Parsed};
use crate::container::Container;
use crate::globals::Globals;
use crate::output::print;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "state",
    usage: "output the state of a container",
    arguments: "<container-id>",
    description: "",
    flags: &[],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    let owner = container.owner();
    print(&format!("{}\n", serde_json::to_string_pretty(&container.state(&owner))?))?;
    Ok(0)
}
