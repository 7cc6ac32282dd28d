//! `podwright exec`.
#![allow(clippy::print_stdout, reason = "the command's own output is passed on")]

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use k8s_cri::v1;

use crate::Outcome;
use crate::client::Client;
use crate::names;

/// Arguments of `exec`.
#[derive(Args)]
pub(crate) struct ExecArguments {
    /// Kill the command after so many seconds; 0: never.
    #[arg(long, default_value_t = 0)]
    timeout: u32,
    /// The container, or the pod of a single one: name, id or the beginning of one.
    container: String,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs a command to its end, prints what it wrote and exits with its code.
pub(crate) async fn exec(mut client: Client, arguments: ExecArguments) -> Outcome {
    let container = names::find_container(&mut client, &arguments.container).await?;
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
