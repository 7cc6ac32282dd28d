//! `wright spec`: writes a starter config.json.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result, bail};
use runtime::spec::{CONFIG, default};

use crate::cli::{Command, Count, Parsed, switch, text};
use crate::globals::Globals;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "spec",
    usage: "create a new specification file",
    arguments: "",
    description: "Writes a config.json to start from: a read-only root in \"rootfs\" and a shell on a terminal.",
    flags: &[
        text("bundle", Some("b"), "path to the root of the bundle directory"),
        switch("rootless", None, "generate a configuration for a rootless container"),
    ],
    count: Count::Exactly(0),
    interspersed: true,
    run,
};

fn run(_: &Globals, parsed: &Parsed) -> Result<u8> {
    let spec = if parsed.on("rootless") {
        default::rootless(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    } else {
        default::spec()
    };
    let path = parsed.path("bundle").unwrap_or_default().join(CONFIG);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("File {CONFIG} exists. Remove it first")
        }
        Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
    };
    let mut text = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    serde::Serialize::serialize(&spec, &mut serde_json::Serializer::with_formatter(&mut text, tabs))?;
    text.push(b'\n');
    file.write_all(&text).with_context(|| format!("write {}", path.display()))?;
    Ok(0)
}
