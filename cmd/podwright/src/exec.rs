//! `podwright exec`.
#![allow(clippy::print_stdout, reason = "the command's own output is passed on")]

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use k8s_cri::v1;

use crate::Outcome;
use crate::client::Client;
use crate::names;
use crate::session::{self, Ended, Wanted};

/// Arguments of `exec`.
#[derive(Args)]
pub(crate) struct ExecArguments {
    /// Pass stdin on to it.
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Kill the command after so many seconds and print what it wrote at its end; 0: never.
    #[arg(long, default_value_t = 0, conflicts_with_all = ["interactive", "tty"])]
    timeout: u32,
    /// The container, or the pod of a single one: name, id or the beginning of one.
    container: String,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs a command to its end, prints what it writes and exits with its code.
pub(crate) async fn exec(mut client: Client, arguments: ExecArguments) -> Outcome {
    let container = names::find_container(&mut client, &arguments.container).await?;
    if arguments.timeout == 0 {
        let wanted = Wanted { stdin: arguments.interactive, tty: arguments.tty };
        let request = v1::ExecRequest {
            container_id: container.id,
            cmd: arguments.command,
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.tty,
        };
        let url = client.runtime.exec(request).await?.into_inner().url;
        let socket = session::connect(&url, "v5.channel.k8s.io").await?;
        return Ok(exit_code(match session::carry(socket, wanted).await? {
            Ended::Code(code) => code,
            Ended::Detached => 0,
            Ended::Signalled(signal) => 128 + signal,
        }));
    }
    let request = v1::ExecSyncRequest {
        container_id: container.id,
        cmd: arguments.command,
        timeout: i64::from(arguments.timeout),
    };
    let response = client.runtime.exec_sync(request).await?.into_inner();
    std::io::stdout().write_all(&response.stdout)?;
    std::io::stderr().write_all(&response.stderr)?;
    Ok(exit_code(response.exit_code))
}

/// A container's exit code as this program's own.
pub(crate) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
