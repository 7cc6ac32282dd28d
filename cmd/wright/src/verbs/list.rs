//! `wright list`: the containers below the state root.

use anyhow::{Result, bail};
use runtime::state::{StateDir, StateError};

use crate::cli::{Command, Count, Parsed, switch, text};
use crate::container::Container;
use crate::globals::Globals;
use crate::output::{lines, print, table};

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "list",
    usage: "lists containers started by wright with the given root",
    arguments: "",
    description: "The root is given by the global option \"--root\" (default: \"/run/wright\").",
    flags: &[
        text("format", Some("f"), "select one of: table or json").or("\"table\""),
        switch("quiet", Some("q"), "display only container IDs"),
    ],
    count: Count::Exactly(0),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    if globals.root_given && !globals.root.exists() {
        bail!("open {}: no such file or directory", globals.root.display());
    }
    let containers = containers(globals)?;
    if parsed.on("quiet") {
        let ids = containers.iter().map(|container| container.record.id.as_str());
        print(&lines(ids))?;
        return Ok(0);
    }
    let owners: Vec<String> = containers.iter().map(Container::owner).collect();
    let states: Vec<_> =
        containers.iter().zip(&owners).map(|(container, owner)| container.state(owner)).collect();
    match parsed.text("format").unwrap_or("table") {
        // As Go writes an empty slice that was never made.
        "json" if states.is_empty() => print("null\n")?,
        "json" => print(&format!("{}\n", serde_json::to_string(&states)?))?,
        "table" => {
            let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(states.iter().map(|state| {
                vec![
                    state.id.to_owned(),
                    state.pid.to_string(),
                    state.status.to_string(),
                    state.bundle.display().to_string(),
                    state.created.unwrap_or_default().to_owned(),
                    state.owner.unwrap_or_default().to_owned(),
                ]
            }));
            print(&table(&rows))?;
        }
        _ => bail!("invalid format option"),
    }
    Ok(0)
}

fn containers(globals: &Globals) -> Result<Vec<Container>> {
    let mut containers = Vec::new();
    for id in StateDir::ids(&globals.root)? {
        match Container::open(globals, &id) {
            Ok(container) => containers.push(container),
            // Deleted meanwhile, or only being made.
            Err(error) if matches!(error.downcast_ref(), Some(StateError::NotFound)) => {}
            Err(error) => globals.log.warn(&format!("container {id}: {error:#}")),
        }
    }
    Ok(containers)
}
