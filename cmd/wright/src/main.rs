//! `wright`: runs containers from OCI bundles; a drop-in for runc.
//!
//! One thread, from the first instruction to the last: the engine clones this process and goes on in the clone.
//! Nothing is set up that a verb does not need.
#![forbid(unsafe_code)]

mod cli;
mod container;
mod criu;
mod foreground;
mod gate;
mod globals;
mod launch;
mod log;
mod output;
mod sealed;
mod terminal;
mod verbs;

use std::process::ExitCode;

use runtime::spec::OCI_VERSION;

use crate::cli::{Parsed, help};
use crate::globals::Globals;
use crate::log::Log;

/// The exit code of a verb that failed.
const FAILED: u8 = 1;

/// The exit code of `exec` that failed, so that it is no exit code a program is likely to have.
const EXEC_FAILED: u8 = 255;

/// The exit code for a verb there is not.
const NO_SUCH_VERB: u8 = 3;

fn main() -> ExitCode {
    let mut arguments = Vec::new();
    for argument in std::env::args_os().skip(1) {
        match argument.into_string() {
            Ok(argument) => arguments.push(argument),
            Err(argument) => {
                Log::stderr().error(&format!("argument {} is not UTF-8", argument.display()));
                return ExitCode::from(FAILED);
            }
        }
    }
    ExitCode::from(run(arguments))
}

fn run(arguments: Vec<String>) -> u8 {
    let mut parsed = match cli::parse(&globals::FLAGS, false, with_version(arguments)) {
        Ok(parsed) => parsed,
        Err(error) => return misuse(&Log::stderr(), &error.to_string(), &program_help()),
    };
    if parsed.positionals.first().is_some_and(|word| word == VERSION) {
        return tell(&version());
    }
    let words = std::mem::take(&mut parsed.positionals);
    let Some((verb, rest)) = words.split_first() else { return tell(&program_help()) };
    if parsed.help {
        return tell(&program_help());
    }
    if matches!(verb.as_str(), "help" | "h") {
        return match rest.first() {
            None => tell(&program_help()),
            Some(verb) => match find(verb) {
                Some(command) => tell(&help::command(command)),
                None => no_such_verb(verb),
            },
        };
    }
    match find(verb) {
        Some(command) => dispatch(command, &parsed, rest.to_vec()),
        None => no_such_verb(verb),
    }
}

fn dispatch(command: &'static cli::Command, globals: &Parsed, words: Vec<String>) -> u8 {
    let globals = match Globals::resolve(globals) {
        Ok(globals) => globals,
        Err(error) => {
            Log::stderr().error(&format!("{error:#}"));
            return FAILED;
        }
    };
    let parsed = match cli::parse(command.flags, command.interspersed, words) {
        Ok(parsed) if parsed.help => return tell(&help::command(command)),
        Ok(parsed) => parsed,
        Err(error) => return misuse(&globals.log, &error.to_string(), &help::command(command)),
    };
    if let Err(error) = command.count.check(command.name, parsed.positionals.len()) {
        return misuse(&globals.log, &error.to_string(), &help::command(command));
    }
    match (command.run)(&globals, &parsed) {
        Ok(code) => code,
        Err(error) => {
            globals.log.error(&format!("{error:#}"));
            if command.name == verbs::exec::COMMAND.name { EXEC_FAILED } else { FAILED }
        }
    }
}

/// What stands for `--version` while the global flags are parsed.
const VERSION: &str = "\0version";

/// `-v` and `--version` before any verb ask for the version.
fn with_version(arguments: Vec<String>) -> Vec<String> {
    match arguments.first().map(String::as_str) {
        Some("-v" | "--version" | "-version") => vec![VERSION.to_owned()],
        _ => arguments,
    }
}

fn find(verb: &str) -> Option<&'static cli::Command> {
    verbs::ALL.into_iter().find(|command| command.name == verb)
}

fn tell(text: &str) -> u8 {
    match output::print(text) {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
}

fn misuse(log: &Log, message: &str, help: &str) -> u8 {
    let _ = output::print(&format!("Incorrect Usage: {message}\n\n{help}"));
    log.error(message);
    FAILED
}

fn no_such_verb(verb: &str) -> u8 {
    let _ = output::print(&format!("No help topic for '{verb}'\n"));
    NO_SUCH_VERB
}

fn program_help() -> String {
    help::program(env!("CARGO_PKG_VERSION"), &verbs::ALL, &globals::FLAGS)
}

fn version() -> String {
    let commit = option_env!("WRIGHT_COMMIT").unwrap_or("unknown");
    format!("wright version {}\ncommit: {commit}\nspec: {OCI_VERSION}\n", env!("CARGO_PKG_VERSION"))
}
