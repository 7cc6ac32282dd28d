//! `wright create`: a container up to its start gate.

use anyhow::{Context, Result};

use crate::cli::{Command, Count, Parsed};
use crate::globals::Globals;
use crate::launch::{
    BUNDLE, CONSOLE_SOCKET, GateKind, NO_NEW_KEYRING, NO_PIVOT, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS, launch,
};

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "create",
    usage: "create a container",
    arguments: "<container-id>",
    description: "The bundle is a directory with a config.json and a root filesystem. The container's program is executed by
   \"wright start\".",
    flags: &[BUNDLE, CONSOLE_SOCKET, PIDFD_SOCKET, PID_FILE, NO_PIVOT, NO_NEW_KEYRING, PRESERVE_FDS],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    launch(globals, parsed, GateKind::OnDisk, true).context("wright create failed")?;
    Ok(0)
}
