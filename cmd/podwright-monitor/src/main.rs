//! One per pod: holds its namespaces, runs its containers, writes their logs. All of it is [`runtime::monitor`].
//!
//! The daemon starts it with a listening socket as standard input; nobody else has a use for it. Once, when it starts itself, the
//! daemon has it try something that takes a process of one thread: `--try-idmap DIRECTORY…` succeeds where the owners of one of
//! the directories can be mapped for a user namespace. And it is the parent of the daemon's network plugins, `--plugin PROGRAM`: see
//! [`runtime::plugin`].
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use runtime::monitor::{Options, run};
use runtime::{idmap, plugin};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "--try-idmap").is_some() {
        return try_idmap(arguments);
    }
    if arguments.next_if(|first| first == "--plugin").is_some() {
        return run_plugin(&arguments.next().unwrap_or_default());
    }
    let done = match Options::parse(arguments) {
        Ok(options) => run(&options).map_err(|failure| failure.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // There is nobody left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "podwright-monitor: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Ends as the plugin does; with 127 where it cannot be started.
fn run_plugin(program: &std::ffi::OsStr) -> ExitCode {
    match plugin::run(program) {
        Ok(code) => code.into(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "execute {}: {error}", program.display());
            127.into()
        }
    }
}

/// Succeeds if one of the directories can be idmapped; else says why not.
fn try_idmap(directories: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    for directory in directories {
        match idmap::try_on(directory.as_ref()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => {
                let _ = writeln!(std::io::stderr(), "{}: {failure}", directory.display());
            }
        }
    }
    ExitCode::FAILURE
}
