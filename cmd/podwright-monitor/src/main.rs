//! One per pod: holds its namespaces, runs its containers, writes their logs. All of it is [`runtime::monitor`].
//!
//! The daemon starts it with a listening socket as standard input; nobody else has a use for it.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use runtime::monitor::{Options, run};

fn main() -> ExitCode {
    let done = match Options::parse(std::env::args_os().skip(1)) {
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
