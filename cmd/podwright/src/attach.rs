//! `podwright attach`.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use k8s_cri::v1;

use crate::Outcome;
use crate::client::Client;
use crate::exec::exit_code;
use crate::logs::Exit;
use crate::names;
use crate::session::{self, Ended, Wanted};

/// How long a container may take to exit once its output has ended.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// Arguments of `attach`.
#[derive(Args)]
pub(crate) struct AttachArguments {
    /// Do not type into it.
    #[arg(long)]
    no_stdin: bool,
    /// The container, or the pod of a single one: name, id or the beginning of one.
    container: String,
}

/// Shows a container's output from now on and types into it; ctrl-p ctrl-q leaves a terminal. Exits with the container's code if it ends.
pub(crate) async fn attach(mut client: Client, arguments: AttachArguments) -> Outcome {
    let container = names::find_container(&mut client, &arguments.container).await?.id;
    let tty = has_terminal(&mut client, &container).await?;
    let wanted = Wanted { stdin: !arguments.no_stdin, tty };
    // Before the session, so that the end is not missed between the two.
    let exit = Exit::subscribe(&mut client, &container).await?;
    let url = url(&mut client, &container, wanted).await?;
    let socket = session::connect(&url, "v5.channel.k8s.io").await?;
    match session::carry(socket, wanted).await? {
        Ended::Detached => Ok(exit_code(0)),
        Ended::Signalled(signal) => Ok(exit_code(128 + signal)),
        Ended::Code(_) => {
            // The container's output ends before it does, or the session alone has ended.
            match tokio::time::timeout(LAST_MOMENTS, exit.wait()).await {
                Ok(ended) => ended?,
                Err(_) => {
                    bail!("the session has ended (did its output come too fast?); the container goes on")
                }
            }
            let status = client.container_status(&container, false).await?.status.unwrap_or_default();
            Ok(exit_code(status.exit_code))
        }
    }
}

/// The URL of a session at the container's stdio.
pub(crate) async fn url(client: &mut Client, container: &str, wanted: Wanted) -> anyhow::Result<String> {
    let request = v1::AttachRequest {
        container_id: container.to_owned(),
        stdin: wanted.stdin,
        tty: wanted.tty,
        stdout: true,
        stderr: !wanted.tty,
    };
    Ok(client.runtime.attach(request).await?.into_inner().url)
}

/// Whether the container has a terminal: the daemon's details tell.
async fn has_terminal(client: &mut Client, container: &str) -> anyhow::Result<bool> {
    let response = client.container_status(container, true).await?;
    let info = response.info.get("info").map(|text| serde_json::from_str::<serde_json::Value>(text));
    let info = info.transpose()?.unwrap_or_default();
    Ok(info["config"]["tty"].as_bool().unwrap_or(false))
}
