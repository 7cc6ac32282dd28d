//! Containers: CreateContainer, StartContainer, StopContainer, RemoveContainer, ListContainers, ContainerStatus,
//! UpdateContainerResources and ReopenContainerLog.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::failure::{Failure, Step};
use runtime::monitor::protocol::{ExitRecord, Op};
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::json;
use tonic::Status;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::monitor_client::ClientError;
use crate::pod::{ContainerState as State, ContainerView, NewContainer};
use crate::store::{Found, Name};
use crate::translate::{Container as Checked, StopSignal};
use crate::v1::{
    Container, ContainerFilter, ContainerResources, ContainerState, ContainerStatus, ContainerStatusRequest,
    ContainerStatusResponse, CreateContainerRequest, ImageSpec, ListContainersRequest,
    RemoveContainerRequest, ReopenContainerLogRequest, StartContainerRequest, StopContainerRequest,
    UpdateContainerResourcesRequest,
};
use crate::{check, ids, select};

/// How long a killed container may take to be gone; only what hangs in the kernel takes long.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a signal waits for a broken connection to its monitor to be made again.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The longest grace period, which keeps arithmetic on deadlines in range.
const MAX_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// CreateContainer. A retry of one that is being made joins it.
#[tracing::instrument(name = "create_container", skip_all, fields(pod = request.pod_sandbox_id, name))]
pub async fn create(daemon: &Arc<Daemon>, request: CreateContainerRequest) -> Result<String, Status> {
    let pod = daemon.store.pod(crate::sandbox::required_id(&request.pod_sandbox_id)?)?;
    let config = request.config.ok_or_else(|| Error::invalid("config", "must be given"))?;
    let container = Checked::parse(config.clone(), &pod.view().pod)?;
    tracing::Span::current().record("name", container.metadata.to_string());
    let name = Name::Container(pod.id().to_owned(), container.metadata.clone());
    let make = || async move {
        let id = ids::random()?;
        pod.create_container(NewContainer { id: id.clone(), config, container }).await?;
        Ok(id)
    };
    daemon.store.once(name, make).await
}

/// StartContainer.
#[tracing::instrument(name = "start_container", skip_all, fields(id = request.container_id))]
pub async fn start(daemon: &Daemon, request: StartContainerRequest) -> Result<(), Error> {
    let found = find(daemon, &request.container_id)?;
    found.pod.start_container(&found.container.record.id).await
}

/// StopContainer: the stop signal, the grace period, SIGKILL. What does not run is stopped already.
#[tracing::instrument(name = "stop_container", skip_all, fields(id = request.container_id, grace_s = request.timeout))]
pub async fn stop(daemon: &Daemon, request: StopContainerRequest) -> Result<(), Error> {
    let found = match find(daemon, &request.container_id) {
        Err(Error::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    if !matches!(found.container.state, State::Running { .. } | State::Unknown) {
        return Ok(());
    }
    let record = &found.container.record;
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0)).min(MAX_GRACE);
    if !grace.is_zero() {
        // A retry, or a second client, waits too: to many programs the same signal again means to hurry.
        let sent = &found.container.stop_sent;
        if !sent.swap(true, Ordering::Relaxed)
            && let Err(error) = signal(&found, record.stop_signal, false).await
        {
            sent.store(false, Ordering::Relaxed);
            return Err(error);
        }
        if found.pod.wait_exit(&record.id, grace).await {
            return Ok(());
        }
        tracing::info!("the grace period is over: killing it");
    }
    signal(&found, Signal::KILL.as_raw(), true).await?;
    if found.pod.wait_exit(&record.id, KILL_DEADLINE).await {
        return Ok(());
    }
    let what = format!("the end of the killed container {}", record.id);
    Err(Error::DeadlineExceeded { what, limit: KILL_DEADLINE })
}

/// Sends a signal to a container's init, or SIGKILL to all of it. One that has ended needs none.
async fn signal(found: &Found, signal: i32, all: bool) -> Result<(), Error> {
    let id = &found.container.record.id;
    let mut views = found.pod.views();
    loop {
        // The pod as it is now: it may have been stopped meanwhile, and then there is nobody to signal.
        let view = views.borrow_and_update().clone();
        if view.containers.get(id).is_none_or(|container| !container.alive()) {
            return Ok(());
        }
        let unreachable = if let Some(monitor) = &view.monitor {
            match monitor.order(Op::Kill { container: id.clone(), signal, all }).await {
                Ok(()) => return Ok(()),
                Err(gone @ ClientError::Gone) => client_error(found, gone),
                Err(error) => return Err(client_error(found, error)),
            }
        } else {
            client_error(found, ClientError::Gone)
        };
        // Either the connection is being made again, or the monitor has died, which ends the container.
        match tokio::time::timeout(RECONNECT_DEADLINE, views.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(unreachable),
        }
    }
}

/// RemoveContainer: kills it if it runs. An unknown one is removed already.
#[tracing::instrument(name = "remove_container", skip_all, fields(id = request.container_id))]
pub async fn remove(daemon: &Daemon, request: RemoveContainerRequest) -> Result<(), Error> {
    let found = match find(daemon, &request.container_id) {
        Err(Error::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    match found.pod.remove_container(&found.container.record.id).await {
        Err(Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// ListContainers.
pub fn list(daemon: &Daemon, request: ListContainersRequest) -> Vec<Container> {
    let filter = request.filter.unwrap_or_default();
    let views = daemon.store.pods().into_iter().map(|pod| pod.view());
    views
        .filter(|pod| pod.record.id.starts_with(&filter.pod_sandbox_id))
        .flat_map(|pod| pod.containers.values().cloned().collect::<Vec<_>>())
        .filter(|view| matches(view, &filter))
        .map(|view| item(&view))
        .collect()
}

/// ContainerStatus.
pub fn status(daemon: &Daemon, request: &ContainerStatusRequest) -> Result<ContainerStatusResponse, Error> {
    let found = find(daemon, &request.container_id)?;
    Ok(ContainerStatusResponse {
        status: Some(status_of(&found.container)),
        info: if request.verbose { info(daemon, &found) } else { HashMap::new() },
    })
}

/// UpdateContainerResources.
#[tracing::instrument(name = "update_container_resources", skip_all, fields(id = request.container_id))]
pub async fn update(daemon: &Daemon, request: UpdateContainerResourcesRequest) -> Result<(), Error> {
    let found = find(daemon, &request.container_id)?;
    if request.windows.is_some() {
        return Err(Error::invalid("windows", "this is a Linux node"));
    }
    let resources = request.linux.ok_or_else(|| Error::invalid("linux", "must be given"))?;
    found.pod.update_container(&found.container.record.id, resources).await
}

/// ReopenContainerLog: the new file exists when this returns.
#[tracing::instrument(name = "reopen_container_log", skip_all, fields(id = request.container_id))]
pub async fn reopen_log(daemon: &Daemon, request: ReopenContainerLogRequest) -> Result<(), Error> {
    let found = find(daemon, &request.container_id)?;
    let monitor = running_monitor(&found)?;
    let container = found.container.record.id.clone();
    monitor.order(Op::ReopenLog { container }).await.map_err(|error| client_error(&found, error))
}

/// The container of a request.
pub(crate) fn find(daemon: &Daemon, id: &str) -> Result<Found, Error> {
    daemon.store.container(check::id("container_id", id)?)
}

/// The monitor of a container that runs.
pub(crate) fn running_monitor(found: &Found) -> Result<crate::monitor_client::MonitorClient, Error> {
    let not_running = || Error::FailedPrecondition {
        what: "container",
        id: found.container.record.id.clone(),
        reason: "is not running".into(),
    };
    match (&found.container.state, &found.pod_view.monitor) {
        (State::Running { .. }, Some(monitor)) => Ok(monitor.clone()),
        _ => Err(not_running()),
    }
}

/// The monitor of a container that runs or can be started.
pub(crate) fn attachable_monitor(found: &Found) -> Result<crate::monitor_client::MonitorClient, Error> {
    match (&found.container.state, &found.pod_view.monitor) {
        (State::Created { .. }, Some(monitor)) => Ok(monitor.clone()),
        _ => running_monitor(found),
    }
}

/// A monitor's refusal as the caller sees it.
pub(crate) fn client_error(found: &Found, error: ClientError) -> Error {
    let id = found.container.record.id.clone();
    match error {
        ClientError::Failed(failure) => Error::Engine { what: "container", id, failure },
        ClientError::Slow(limit) => {
            Error::DeadlineExceeded { what: format!("container {id}: a request to its monitor"), limit }
        }
        gone @ ClientError::Gone => Error::Unavailable {
            what: format!("the monitor of pod {}", found.pod_view.name()),
            source: Some(Box::new(gone)),
        },
        other => Error::internal(format!("container {id}"), other),
    }
}

/// The container's status.
pub fn status_of(view: &ContainerView) -> ContainerStatus {
    let record = &view.record;
    let config = &record.config;
    let mut status = ContainerStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: state(view).into(),
        created_at: record.created_at_ns,
        image: Some(image_spec(view)),
        image_ref: record.image.id.clone(),
        image_id: record.image.id.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: record.log_path.as_deref().map(path_text).unwrap_or_default(),
        resources: Some(ContainerResources { linux: Some(record.resources.clone()), windows: None }),
        user: Some((&record.identity).into()),
        stop_signal: stop_signal(record.stop_signal).into(),
        ..ContainerStatus::default()
    };
    match &view.state {
        State::Created { .. } | State::Unknown => {}
        State::Running { started_at_ns, .. } => status.started_at = *started_at_ns,
        State::Exited(exit) => {
            status.started_at = exit.started_at_ns.unwrap_or(0);
            status.finished_at = exit.finished_at_ns;
            status.exit_code = exit_code(exit);
            (status.reason, status.message) = match &record.lost {
                Some(lost) => (lost.reason.clone(), lost.message.clone()),
                None => reason(exit),
            };
        }
    }
    status
}

/// The exit code: of a program that could not be executed, the one that a shell would give.
fn exit_code(exit: &ExitRecord) -> i32 {
    match &exit.start_failure {
        Some(failure) => start_exit_code(failure),
        None => exit.exit_code,
    }
}

/// 127 where there is no such program, 126 where it cannot be executed, else 128, as containerd's users know it.
fn start_exit_code(failure: &Failure) -> i32 {
    match (failure.step, failure.errno()) {
        (Step::Exec, Some(Errno::NOENT)) => 127,
        (Step::Exec, Some(Errno::ACCESS | Errno::NOEXEC | Errno::PERM)) => 126,
        _ => 128,
    }
}

/// Why it ended, as one word, and for people.
fn reason(exit: &ExitRecord) -> (String, String) {
    let (word, message) = match exit {
        ExitRecord { start_failure: Some(failure), .. } if failure.step == Step::Exec => {
            ("ContainerCannotRun", failure.to_string())
        }
        ExitRecord { start_failure: Some(failure), .. } => ("StartError", failure.to_string()),
        ExitRecord { oom_killed: true, .. } => ("OOMKilled", String::new()),
        ExitRecord { exit_code: 0, .. } => ("Completed", String::new()),
        _ => ("Error", String::new()),
    };
    (word.to_owned(), message)
}

fn state(view: &ContainerView) -> ContainerState {
    match view.state {
        State::Created { .. } => ContainerState::ContainerCreated,
        State::Running { .. } => ContainerState::ContainerRunning,
        State::Exited(_) => ContainerState::ContainerExited,
        State::Unknown => ContainerState::ContainerUnknown,
    }
}

/// The image as the request called it, under the name it is listed by.
fn image_spec(view: &ContainerView) -> ImageSpec {
    let requested = view.record.config.image.clone().unwrap_or_default();
    ImageSpec { image: view.record.image.name.clone(), ..requested }
}

fn stop_signal(number: i32) -> crate::v1::Signal {
    StopSignal::from_image(&number.to_string()).unwrap_or_default().to_v1()
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The container as lists show it.
fn item(view: &ContainerView) -> Container {
    let record = &view.record;
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: record.config.metadata.clone(),
        image: Some(image_spec(view)),
        image_ref: record.image.id.clone(),
        state: state(view).into(),
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

fn matches(view: &ContainerView, filter: &ContainerFilter) -> bool {
    view.record.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(state(view)))
        && select::labels(&view.record.config.labels, &filter.label_selector)
}

/// What `crictl inspect` shows beside the status, under containerd's keys where they mean the same.
fn info(daemon: &Daemon, found: &Found) -> HashMap<String, String> {
    let record = &found.container.record;
    let bundle = daemon.directories(&record.sandbox).container(&record.id);
    let spec = std::fs::read(bundle.join(imageless::bundle::CONFIG)).ok();
    let spec: serde_json::Value =
        spec.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let info = json!({
        "sandboxID": record.sandbox,
        "pid": found.container.pid().unwrap_or(0),
        "removing": false,
        "snapshotter": "overlay",
        "runtimeType": "podwright",
        "bundle": bundle,
        "cgroupsPath": record.cgroups_path,
        "config": record.config,
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(exit_code: i32) -> ExitRecord {
        ExitRecord {
            exit_code,
            signal: None,
            oom_killed: false,
            started_at_ns: Some(1),
            finished_at_ns: 2,
            start_failure: None,
        }
    }

    #[test]
    fn an_end_has_the_word_and_the_code_that_people_know() {
        let failed = |errno| ExitRecord {
            start_failure: Some(Failure::at(Step::Exec, errno, "/nope")),
            started_at_ns: None,
            ..exit(1)
        };
        let cases = [
            (exit(0), 0, "Completed"),
            (exit(3), 3, "Error"),
            (ExitRecord { oom_killed: true, ..exit(137) }, 137, "OOMKilled"),
            (failed(Errno::NOENT), 127, "ContainerCannotRun"),
            (failed(Errno::ACCESS), 126, "ContainerCannotRun"),
            (failed(Errno::NOEXEC), 126, "ContainerCannotRun"),
            (failed(Errno::TOOBIG), 128, "ContainerCannotRun"),
            (
                ExitRecord { start_failure: Some(Failure::because(Step::Hook, "timed out")), ..exit(1) },
                128,
                "StartError",
            ),
        ];
        for (exit, code, word) in cases {
            assert_eq!((exit_code(&exit), reason(&exit).0.as_str()), (code, word), "{exit:?}");
        }
        assert_eq!(reason(&failed(Errno::NOENT)).1, "exec /nope: no such file or directory");
    }

    #[test]
    fn a_stop_signal_is_told_by_its_name() {
        assert_eq!(stop_signal(15), crate::v1::Signal::Sigterm);
        assert_eq!(stop_signal(3), crate::v1::Signal::Sigquit);
    }
}
