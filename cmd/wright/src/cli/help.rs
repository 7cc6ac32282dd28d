//! Help texts, in the shape runc's have: sections `NAME:`, `USAGE:`, `DESCRIPTION:`, `COMMANDS:`, `OPTIONS:`.

use std::fmt::Write;

use super::{Command, Flag, Kind};

/// The help of the whole.
pub(crate) fn program(version: &str, commands: &[&Command], flags: &[Flag]) -> String {
    let mut text = String::from(
        "NAME:
   wright - Open Container Initiative runtime

wright starts, inspects and ends containers that are described by an OCI bundle: a directory
with a config.json and a root filesystem. It needs no daemon and no images, and takes the place of runc
wherever a path to that is configured.

To run a container from the bundle in the current directory:

    # wright run [ -b bundle ] <container-id>

USAGE:
   wright [global options] command [command options] [arguments...]

VERSION:
",
    );
    let _ = writeln!(text, "   {version}\n\nCOMMANDS:");
    let width = commands.iter().map(|command| command.name.len()).max().unwrap_or(0);
    for command in commands {
        let _ = writeln!(text, "   {:width$}  {}", command.name, command.usage);
    }
    text.push_str("\nGLOBAL OPTIONS:\n");
    options(&mut text, flags);
    let _ = writeln!(text, "   --help, -h     show help\n   --version, -v  print the version");
    text
}

/// The help of one verb.
pub(crate) fn command(command: &Command) -> String {
    let mut text = format!(
        "NAME:\n   wright {} - {}\n\nUSAGE:\n   wright {}",
        command.name, command.usage, command.name
    );
    if !command.flags.is_empty() {
        text.push_str(" [command options]");
    }
    let _ = writeln!(text, " {}", command.arguments);
    if !command.description.is_empty() {
        let _ = writeln!(text, "\nDESCRIPTION:\n   {}", command.description);
    }
    if !command.flags.is_empty() {
        text.push_str("\nOPTIONS:\n");
        options(&mut text, command.flags);
    }
    text
}

fn options(text: &mut String, flags: &[Flag]) {
    let head = |flag: &Flag| {
        let value = if flag.kind == Kind::Bool { "" } else { " value" };
        match flag.short {
            Some(short) => format!("--{}{value}, -{short}{value}", flag.name),
            None => format!("--{}{value}", flag.name),
        }
    };
    let width = flags.iter().map(|flag| head(flag).len()).max().unwrap_or(0);
    for flag in flags {
        let default = flag.default.map(|default| format!(" (default: {default})")).unwrap_or_default();
        let _ = writeln!(text, "   {:width$}  {}{default}", head(flag), flag.help);
    }
}
