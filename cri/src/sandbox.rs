//! Pod sandboxes: RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox and
//! UpdatePodSandboxResources.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use tonic::Status;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::pod::{self, NewPod, PodView};
use crate::records::now_ns;
use crate::store::Name;
use crate::translate::{Pod, Userns};
use crate::v1::{
    LinuxPodSandboxStatus, ListPodSandboxRequest, Namespace, PodIp, PodSandbox, PodSandboxFilter,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
    UpdatePodSandboxResourcesRequest,
};
use crate::{container, ids, select};

/// RunPodSandbox: makes a pod. A retry of one that is being made joins it.
#[tracing::instrument(name = "run_pod_sandbox", skip_all, fields(pod))]
pub async fn run(daemon: &Arc<Daemon>, request: RunPodSandboxRequest) -> Result<String, Status> {
    let config = request.config.ok_or_else(|| Error::invalid("config", "must be given"))?;
    let pod = Pod::parse(config.clone(), &request.runtime_handler, &daemon.defaults)?;
    tracing::Span::current().record("pod", pod.metadata.to_string());
    if pod.namespaces.userns != Userns::None && !daemon.host.user_namespaces {
        // Told now: its containers could not be created.
        return Err(Error::FailedPrecondition {
            what: "pod sandbox",
            id: pod.metadata.to_string(),
            reason: "asks for a user namespace, but the filesystem of the root filesystem directories (rootfs.roots) or the kernel \
                     does not support idmapped mounts"
                .into(),
        }
        .into());
    }
    let name = Name::Pod(pod.metadata.clone());
    let make = {
        let daemon = daemon.clone();
        || async move { pod::run(daemon, NewPod { id: ids::random()?, config, pod }).await }
    };
    daemon.store.once(name, make).await
}

/// StopPodSandbox. An unknown pod is stopped already.
#[tracing::instrument(name = "stop_pod_sandbox", skip_all, fields(id = request.pod_sandbox_id))]
pub async fn stop(daemon: &Daemon, request: StopPodSandboxRequest) -> Result<(), Error> {
    match daemon.store.pod(required_id(&request.pod_sandbox_id)?) {
        Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(pod) => match pod.stop().await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        },
    }
}

/// RemovePodSandbox. An unknown pod is removed already.
#[tracing::instrument(name = "remove_pod_sandbox", skip_all, fields(id = request.pod_sandbox_id))]
pub async fn remove(daemon: &Daemon, request: RemovePodSandboxRequest) -> Result<(), Error> {
    match daemon.store.pod(required_id(&request.pod_sandbox_id)?) {
        Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(pod) => pod.remove().await,
    }
}

/// PodSandboxStatus.
pub fn status(daemon: &Daemon, request: &PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse, Error> {
    let pod = daemon.store.pod(required_id(&request.pod_sandbox_id)?)?;
    let view = pod.view();
    Ok(PodSandboxStatusResponse {
        status: Some(status_of(&view)),
        info: if request.verbose { info(daemon, &view) } else { HashMap::new() },
        containers_statuses: view
            .containers
            .values()
            .map(|container| container::status_of(container))
            .collect(),
        timestamp: now_ns(),
    })
}

/// ListPodSandbox.
pub fn list(daemon: &Daemon, request: ListPodSandboxRequest) -> Vec<PodSandbox> {
    let filter = request.filter.unwrap_or_default();
    let views = daemon.store.pods().into_iter().map(|pod| pod.view());
    views.filter(|view| matches(view, &filter)).map(|view| item(&view)).collect()
}

/// UpdatePodSandboxResources.
pub async fn update(daemon: &Daemon, request: UpdatePodSandboxResourcesRequest) -> Result<(), Error> {
    daemon.store.pod(required_id(&request.pod_sandbox_id)?)?.update_pod(request).await
}

/// The pod's status.
pub fn status_of(view: &PodView) -> PodSandboxStatus {
    let config = &view.record.config;
    let linux = config.linux.as_ref();
    let options = linux.and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone());
    PodSandboxStatus {
        id: view.record.id.clone(),
        metadata: config.metadata.clone(),
        state: state(view).into(),
        created_at: view.record.created_at_ns,
        network: Some(network_status(view)),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(options.unwrap_or_default()) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: view.record.runtime_handler.clone(),
    }
}

/// The pod's addresses, in the order that its network gave them.
fn network_status(view: &PodView) -> PodSandboxNetworkStatus {
    let addresses = view.network.iter().flat_map(|network| &network.addresses).map(ToString::to_string);
    let mut addresses = addresses.collect::<Vec<_>>().into_iter();
    PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
    }
}

fn state(view: &PodView) -> PodSandboxState {
    if view.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// The pod as lists show it.
fn item(view: &PodView) -> PodSandbox {
    let config = &view.record.config;
    PodSandbox {
        id: view.record.id.clone(),
        metadata: config.metadata.clone(),
        state: state(view).into(),
        created_at: view.record.created_at_ns,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: view.record.runtime_handler.clone(),
    }
}

fn matches(view: &PodView, filter: &PodSandboxFilter) -> bool {
    view.record.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(state(view)))
        && select::labels(&view.record.config.labels, &filter.label_selector)
}

/// What `crictl inspectp` shows beside the status, under containerd's keys where they mean the same.
fn info(daemon: &Daemon, view: &PodView) -> HashMap<String, String> {
    let dirs = daemon.directories(&view.record.id);
    let info = json!({
        "pid": view.pause.unwrap_or(0),
        "processStatus": if view.ready { "running" } else { "stopped" },
        "runtimeHandler": view.record.runtime_handler,
        "config": view.record.config,
        "netNamespacePath": if view.pod.namespaces.host_network() { None } else { Some(dirs.netns()) },
        "network": view.network.as_ref().and_then(|network| network.network()),
        "cniResult": view.network.as_ref().and_then(|network| network.result.as_ref()),
        "stateDirectory": dirs.state,
        "runDirectory": dirs.run,
        "containers": view.containers.keys().collect::<Vec<_>>(),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// An id has to be given.
pub(crate) fn required_id(id: &str) -> Result<&str, Error> {
    crate::check::id("pod_sandbox_id", id)
}
