//! `wright ps`: the processes of a container, as the host sees them.

use std::process::{Command as Process, Stdio};

use anyhow::{Context, Result, bail};

use crate::cli::{Command, Count, Parsed, text};
use crate::container::Container;
use crate::globals::Globals;
use crate::output::{lines, print};

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "ps",
    usage: "ps displays the processes running inside a container",
    arguments: "<container-id> [ps options]",
    description: "What follows the id is given to ps(1); without any, -ef.",
    flags: &[text("format", Some("f"), "select one of: table or json").or("\"table\"")],
    count: Count::AtLeast(1),
    interspersed: false,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    let mut pids = container.pids()?;
    pids.sort_unstable();
    match parsed.text("format").unwrap_or("table") {
        "json" => print(&format!("{}\n", serde_json::to_string(&pids)?))?,
        "table" => print(&table(&parsed.positionals[1..], &pids)?)?,
        _ => bail!("invalid format option"),
    }
    Ok(0)
}

fn table(options: &[String], pids: &[u32]) -> Result<String> {
    let mut ps = Process::new("ps");
    if options.is_empty() {
        ps.arg("-ef")
    } else {
        ps.args(options)
    };
    let output = ps.stdin(Stdio::null()).output().context("run ps")?;
    if !output.status.success() {
        bail!("ps: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let output = String::from_utf8_lossy(&output.stdout);
    let mut all = output.lines();
    let head = all.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.context("couldn't find PID field in ps output")?;
    let ours = all.filter(|line| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: u32| pids.binary_search(&pid).is_ok())
    });
    Ok(lines(std::iter::once(head).chain(ours)))
}
