//! `podwright stop` and `podwright rm`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_cri::v1;

use crate::Outcome;
use crate::client::Client;
use crate::names::{self, Named};
use crate::output;

/// Arguments of `stop`.
#[derive(Args)]
pub(crate) struct StopArguments {
    /// Seconds between the stop signal and SIGKILL.
    #[arg(short, long, default_value_t = 10)]
    time: u32,
    /// Pods or containers: names, ids or beginnings of ids.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Arguments of `rm`.
#[derive(Args)]
pub(crate) struct RmArguments {
    /// Also those that run.
    #[arg(short, long)]
    force: bool,
    /// Every pod.
    #[arg(short, long, conflicts_with = "names")]
    all: bool,
    /// Pods or containers: names, ids or beginnings of ids.
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
}

/// Stops each, and prints its name once it has stopped.
pub(crate) async fn stop(mut client: Client, arguments: StopArguments) -> Outcome {
    for name in &arguments.names {
        match names::find(&mut client, name).await? {
            Named::Pod(pod) => stop_pod(&mut client, &pod.id, arguments.time).await,
            Named::Container(container) => stop_container(&mut client, container.id, arguments.time).await,
        }
        .with_context(|| format!("stop {name}"))?;
        output::line(name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes each, and prints its name once it is gone.
pub(crate) async fn rm(mut client: Client, arguments: RmArguments) -> Outcome {
    let mut given = arguments.names;
    if arguments.all {
        given = client.pods().await?.into_iter().map(|pod| pod.id).collect();
    }
    for name in &given {
        match names::find(&mut client, name).await? {
            Named::Pod(pod) => {
                let running = client.containers().await?.into_iter().find(|c| {
                    c.pod_sandbox_id == pod.id && c.state == v1::ContainerState::ContainerRunning as i32
                });
                if running.is_some() && !arguments.force {
                    bail!("pod {name} has a running container: stop it first, or use --force");
                }
                remove_pod(&mut client, &pod.id).await
            }
            Named::Container(container) => {
                if container.state == v1::ContainerState::ContainerRunning as i32 && !arguments.force {
                    bail!("container {name} is running: stop it first, or use --force");
                }
                let request = v1::RemoveContainerRequest { container_id: container.id };
                client.runtime.remove_container(request).await.map(drop).map_err(Into::into)
            }
        }
        .with_context(|| format!("remove {name}"))?;
        output::line(name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops a pod's containers, each with its grace period, then the pod.
pub(crate) async fn stop_pod(client: &mut Client, id: &str, grace_seconds: u32) -> Result<()> {
    for container in client.containers().await? {
        if container.pod_sandbox_id == id && container.state == v1::ContainerState::ContainerRunning as i32 {
            stop_container(client, container.id, grace_seconds).await?;
        }
    }
    client.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

/// Stops a pod at once and removes it.
pub(crate) async fn remove_pod(client: &mut Client, id: &str) -> Result<()> {
    client.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    client.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

async fn stop_container(client: &mut Client, container_id: String, grace_seconds: u32) -> Result<()> {
    let request = v1::StopContainerRequest { container_id, timeout: i64::from(grace_seconds) };
    client.runtime.stop_container(request).await?;
    Ok(())
}
