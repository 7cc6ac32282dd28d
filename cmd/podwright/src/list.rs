//! `podwright ps` and `podwright pods`.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use k8s_cri::v1;
use serde_json::json;

use crate::Outcome;
use crate::client::Client;
use crate::output::{self, Columns};

/// Arguments of `ps`.
#[derive(Args)]
pub(crate) struct PsArguments {
    /// Show those that do not run, too.
    #[arg(short, long)]
    all: bool,
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
}

/// Arguments of `pods`.
#[derive(Args)]
pub(crate) struct PodsArguments {
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
}

/// Lists containers, newest first.
pub(crate) async fn ps(mut client: Client, arguments: PsArguments, json: bool) -> Outcome {
    let pods: HashMap<String, String> =
        client.pods().await?.into_iter().map(|p| (p.id, p.metadata.unwrap_or_default().name)).collect();
    let mut containers = client.containers().await?;
    containers.retain(|c| arguments.all || c.state == v1::ContainerState::ContainerRunning as i32);
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    if arguments.quiet {
        return Ok(ids(containers.iter().map(|c| &c.id)));
    }
    if json {
        let rows: Vec<_> = containers
            .iter()
            .map(|c| {
                json!({
                    "id": c.id, "name": name(c), "pod": pods.get(&c.pod_sandbox_id), "podId": c.pod_sandbox_id,
                    "rootfs": rootfs(c), "state": state(c.state), "createdAtNs": c.created_at,
                })
            })
            .collect();
        return output::json(&rows);
    }
    let mut table = Columns::new(&["CONTAINER", "NAME", "POD", "ROOTFS", "STATE", "EXIT", "AGE"]);
    for container in &containers {
        let exit = exit_code(&mut client, container).await?;
        table.row(vec![
            output::short(&container.id),
            name(container),
            pods.get(&container.pod_sandbox_id).cloned().unwrap_or_default(),
            rootfs(container),
            state(container.state).to_owned(),
            exit,
            output::age(container.created_at),
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// Lists pods, newest first.
pub(crate) async fn pods(mut client: Client, arguments: PodsArguments, json: bool) -> Outcome {
    let mut pods = client.pods().await?;
    pods.sort_by_key(|p| std::cmp::Reverse(p.created_at));
    if arguments.quiet {
        return Ok(ids(pods.iter().map(|p| &p.id)));
    }
    let count: HashMap<String, usize> =
        client.containers().await?.into_iter().fold(HashMap::new(), |mut map, c| {
            *map.entry(c.pod_sandbox_id).or_default() += 1;
            map
        });
    if json {
        let rows: Vec<_> = pods
            .iter()
            .map(|p| {
                let metadata = p.metadata.clone().unwrap_or_default();
                json!({
                    "id": p.id, "name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid,
                    "state": pod_state(p.state), "containers": count.get(&p.id).unwrap_or(&0), "createdAtNs": p.created_at,
                })
            })
            .collect();
        return output::json(&rows);
    }
    let mut table = Columns::new(&["POD", "NAME", "NAMESPACE", "STATE", "CONTAINERS", "AGE"]);
    for pod in &pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        table.row(vec![
            output::short(&pod.id),
            metadata.name,
            metadata.namespace,
            pod_state(pod.state).to_owned(),
            count.get(&pod.id).unwrap_or(&0).to_string(),
            output::age(pod.created_at),
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

fn ids<'a>(ids: impl Iterator<Item = &'a String>) -> ExitCode {
    for id in ids {
        output::line(id);
    }
    ExitCode::SUCCESS
}

/// The exit code of a container that has one, with its reason where that says more.
async fn exit_code(client: &mut Client, container: &v1::Container) -> Result<String> {
    if container.state != v1::ContainerState::ContainerExited as i32 {
        return Ok(String::new());
    }
    // It may have been removed since it was listed.
    match client.container_status(&container.id, false).await {
        Ok(v1::ContainerStatusResponse { status: Some(status), .. }) => Ok(match status.reason.as_str() {
            "" | "Completed" | "Error" => status.exit_code.to_string(),
            reason => format!("{} {reason}", status.exit_code),
        }),
        _ => Ok(String::new()),
    }
}

fn name(container: &v1::Container) -> String {
    container.metadata.as_ref().map_or_else(String::new, |m| m.name.clone())
}

/// What the container's root was asked for as.
fn rootfs(container: &v1::Container) -> String {
    let image = container.image.clone().unwrap_or_default();
    if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image }
}

/// A container's state in a word.
pub(crate) fn state(state: i32) -> &'static str {
    match v1::ContainerState::try_from(state) {
        Ok(v1::ContainerState::ContainerCreated) => "created",
        Ok(v1::ContainerState::ContainerRunning) => "running",
        Ok(v1::ContainerState::ContainerExited) => "exited",
        _ => "unknown",
    }
}

/// A pod's state in words.
pub(crate) fn pod_state(state: i32) -> &'static str {
    match v1::PodSandboxState::try_from(state) {
        Ok(v1::PodSandboxState::SandboxReady) => "ready",
        _ => "not ready",
    }
}
