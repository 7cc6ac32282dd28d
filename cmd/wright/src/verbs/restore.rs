//! `wright restore`: a container from the files that `checkpoint` made.

use anyhow::{Context, Result};

use crate::cli::{Command, Count, Parsed, switch, text};
use crate::container::destroy;
use crate::criu::{
    AUTO_DEDUP, CGROUPS_MODE, EMPTY_NS, EXT_UNIX_SK, FILE_LOCKS, LAZY_PAGES, SHELL_JOB, TCP_ESTABLISHED,
    WORK_PATH, warn_unprivileged,
};
use crate::foreground::{Signals, supervise};
use crate::globals::Globals;
use crate::launch::{BUNDLE, CONSOLE_SOCKET, Launched, PID_FILE, restore};
use crate::terminal::Relay;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "restore",
    usage: "restore a container from a previous checkpoint",
    arguments: "<container-id>",
    description: "The processes that \"wright checkpoint\" saved go on, by criu, which is found on the PATH. Hooks up to createRuntime run;
   the exit code is as with \"wright run\".",
    flags: &[
        CONSOLE_SOCKET,
        text("image-path", None, "path to criu image files for restoring"),
        WORK_PATH,
        TCP_ESTABLISHED,
        EXT_UNIX_SK,
        SHELL_JOB,
        FILE_LOCKS,
        CGROUPS_MODE,
        BUNDLE,
        switch("detach", Some("d"), "detach from the container's process"),
        PID_FILE,
        switch("no-subreaper", None, "accepted for compatibility; no subreaper is used"),
        switch("no-pivot", None, "accepted for compatibility; how the root is entered is criu's choice"),
        EMPTY_NS,
        AUTO_DEDUP,
        LAZY_PAGES,
        text("lsm-profile", None, "Specify an LSM profile to be used during restore in the form of TYPE:NAME."),
        text("lsm-mount-context", None, "Specify an LSM mount context to be used during restore."),
    ],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    run_inner(globals, parsed).context("restore failed")
}

fn run_inner(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    warn_unprivileged(globals, "restore");
    let detach = parsed.on("detach");
    let mut launched = restore(globals, parsed, detach)?;
    if detach {
        return Ok(0);
    }
    let attended = attend(&mut launched);
    let gone = destroy(globals, &launched.dir, &launched.record, Some(&launched.plan.hooks));
    let code = attended?;
    gone?;
    Ok(code)
}

/// Stays with it until its end.
fn attend(launched: &mut Launched) -> Result<u8> {
    let signals = Signals::hold()?;
    let relay = launched.console.take().map(Relay::start).transpose()?;
    supervise(&signals, &launched.pidfd, relay)
}
