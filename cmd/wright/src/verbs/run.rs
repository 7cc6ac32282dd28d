//! `wright run`: create, start, and (unless detached) wait and delete.

use anyhow::Result;
use runtime::{Failure, Step};

use crate::cli::{Command, Count, Parsed, switch};
use crate::container::destroy;
use crate::foreground::{Signals, supervise};
use crate::gate::{after_start, pass};
use crate::globals::Globals;
use crate::launch::{
    BUNDLE, CONSOLE_SOCKET, GateKind, Launched, NO_NEW_KEYRING, NO_PIVOT, PID_FILE, PIDFD_SOCKET,
    PRESERVE_FDS, launch,
};
use crate::terminal::Relay;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "run",
    usage: "create and run a container",
    arguments: "<container-id>",
    description: "The bundle is a directory with a config.json and a root filesystem. The exit code is that of the container's
   program, or 128 and the signal that killed it.",
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        switch("detach", Some("d"), "detach from the container's process"),
        switch("keep", None, "do not delete the container after it exits"),
        PID_FILE,
        switch("no-subreaper", None, "accepted for compatibility; no subreaper is used"),
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
    ],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    match run_inner(globals, parsed) {
        Err(error) => match error.downcast::<NotExecuted>() {
            // The last word is init's, which by now is the container: as runc's has it, plain, and with the exit code of its own.
            Ok(NotExecuted(failure)) => {
                globals.log.last_word(&failure.to_string());
                Ok(NOT_EXECUTED)
            }
            Err(error) => Err(error.context("wright run failed")),
        },
        ran => ran,
    }
}

/// The exit code of a container whose program could not be executed once everything else was done.
const NOT_EXECUTED: u8 = 255;

/// The program was found, and the kernel would not execute it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotExecuted(Failure);

fn run_inner(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let detach = parsed.on("detach");
    let launched = launch(globals, parsed, GateKind::Ours, detach)?;
    // From here on a signal is the container's; before, it ends this process and with it init at its gate.
    let signals = if detach { None } else { Some(Signals::hold()?) };
    match attend(launched, signals.as_ref()) {
        (launched, Ok(code)) => {
            if signals.is_some() && !parsed.on("keep") {
                destroy(globals, &launched.dir, &launched.record, Some(&launched.plan.hooks))?;
            }
            Ok(code)
        }
        (launched, Err(error)) => {
            let _ = rustix::process::pidfd_send_signal(&launched.pidfd, rustix::process::Signal::KILL);
            if let Err(left) = destroy(globals, &launched.dir, &launched.record, Some(&launched.plan.hooks)) {
                globals.log.warn(&format!("clean up: {left:#}"));
            }
            Err(error)
        }
    }
}

/// Opens the gate and, where signals are held, stays until the end.
fn attend(mut launched: Launched, signals: Option<&Signals>) -> (Launched, Result<u8>) {
    let outcome = go(&mut launched, signals);
    (launched, outcome)
}

fn go(launched: &mut Launched, signals: Option<&Signals>) -> Result<u8> {
    let relay = match (signals, launched.console.take()) {
        (Some(_), Some(console)) => Some(Relay::start(console)?),
        _ => None,
    };
    if let Some(gate) = launched.gate.take() {
        pass(&gate).map_err(|error| match error.downcast::<Failure>() {
            Ok(failure) if failure.step == Step::Exec => NotExecuted(failure).into(),
            Ok(failure) => failure.into(),
            Err(error) => error,
        })?;
    }
    after_start(&launched.plan.hooks, &launched.record)?;
    match signals {
        Some(signals) => supervise(signals, &launched.pidfd, relay),
        None => Ok(0),
    }
}
