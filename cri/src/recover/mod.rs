//! What a daemon does with what the last one left: disk and monitors are the truth, and this rebuilds the index from them.
//!
//! | found | becomes |
//! |---|---|
//! | a ready record, and a monitor that answers | the pod as the monitor tells it |
//! | a ready record, and a monitor that holds its socket but does not answer yet | containers UNKNOWN until it does |
//! | a ready record of this boot, no monitor | its cgroups are killed; exited, reason MonitorLost; not ready |
//! | a record of another boot | exited, reason NodeRebooted; not ready; its network is detached, what is left of mounts is taken away |
//! | a stopped record | exited containers, by their exit records |
//! | a record in phase creating, or none | taken apart, its network detached: nobody was ever told its id; as soon as its monitor answers |
//! | a record that cannot be read | moved to `<state>/corrupt`, after the same |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::cgroup::Cgroup;
use runtime::monitor::protocol::Op;
use tokio::task::JoinSet;
use tracing::debug_span;

use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::monitor_client::{self, Connected, ExecWaiters, MonitorClient, Process};
use crate::network::record::NetworkRecord;
use crate::pod::{self, ContainerState, ContainerView, Directories, PodTask, PodView};
use crate::records::{self, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::store::Name;
use crate::translate::{ContainerMetadata, Defaults, Pod};

/// How long the start waits for one monitor's hello. One that is slower is taken up when it answers.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How long a monitor that is to end may take for it.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Finds every pod there is. One that makes trouble is logged and does not keep the others from being found.
pub async fn recover(daemon: &Arc<Daemon>) -> Result<(), Error> {
    let ids = {
        let daemon = daemon.clone();
        blocking(debug_span!("recover_scan"), move || scan(&daemon)).await?
    };
    let mut pods = JoinSet::new();
    for id in ids {
        let daemon = daemon.clone();
        pods.spawn(async move {
            if let Err(error) = recover_pod(&daemon, &id).await {
                tracing::error!(pod = %id, error = %error.sentence(), "a pod cannot be taken over");
            }
        });
    }
    while pods.join_next().await.is_some() {}
    let known = daemon.store.pods().len();
    if known > 0 {
        tracing::info!(pods = known, "taken over from an earlier daemon");
    }
    Ok(())
}

/// The ids of all pods with a directory below state or run.
fn scan(daemon: &Daemon) -> Result<Vec<String>, Error> {
    let mut ids = Vec::new();
    for base in [&daemon.state, &daemon.run] {
        let pods = base.join("pods");
        let failed = |source| Error::Io { action: "read", path: pods.clone(), source };
        fs::create_dir_all(&pods).map_err(failed)?;
        for entry in fs::read_dir(&pods).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                ids.push(name);
            }
        }
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// What is on disk of a pod.
struct OnDisk {
    record: SandboxRecord,
    pod: Pod,
    containers: Vec<ContainerRecord>,
    /// Directories of containers whose making was not finished.
    half_made: Vec<String>,
    network: Option<Arc<NetworkRecord>>,
}

async fn recover_pod(daemon: &Arc<Daemon>, id: &str) -> Result<(), Error> {
    let read = {
        let (daemon, id) = (daemon.clone(), id.to_owned());
        blocking(debug_span!("recover_read"), move || read_pod(&daemon, &id)).await
    };
    match read {
        Ok(Some(found)) if found.record.phase != SandboxPhase::Creating => take_over(daemon, found).await,
        Ok(found) => {
            tracing::warn!(pod = %id, "a pod that was being made when the daemon died is taken apart");
            let (containers, made) = match found {
                Some(found) => (found.containers, found.record.made_cgroups),
                None => (Vec::new(), Vec::new()),
            };
            match discard_half_made(daemon, id, containers.clone(), &made, HELLO_DEADLINE).await {
                Err(Error::Unavailable { .. }) => {
                    // Started a moment before the daemon died, on a machine that is busy. The start does not wait for it.
                    tracing::warn!(pod = %id, "its monitor is slow to answer: it is waited for");
                    discard_half_made_later(daemon.clone(), id.to_owned(), containers, made);
                    Ok(())
                }
                other => other,
            }
        }
        // A disk that cannot be read now is no reason to end a pod.
        Err(error @ Error::Io { .. }) => Err(error),
        Err(error) => {
            let error = error.sentence();
            tracing::error!(pod = %id, error, "its record cannot be used: it is taken apart and set aside");
            let containers = {
                let dirs = daemon.directories(id);
                blocking(debug_span!("recover_read"), move || Ok(readable_containers(&dirs))).await?
            };
            take_apart(daemon, id, containers, HELLO_DEADLINE).await?;
            crate::network::detach(daemon, &daemon.directories(id), id).await?;
            release(daemon, id).await?;
            let (daemon, id) = (daemon.clone(), id.to_owned());
            blocking(debug_span!("set_aside"), move || set_aside(&daemon, &id)).await
        }
    }
}

/// The containers of a pod whose own record is lost, as far as theirs can be read: their cgroups have to be emptied.
fn readable_containers(dirs: &Directories) -> Vec<ContainerRecord> {
    let ids = container_ids(&dirs.state).unwrap_or_default();
    ids.iter().filter_map(|id| ContainerRecord::read(&dirs.container(id)).ok()).collect()
}

/// Whether there is, or may be, something to undo of a pod's network.
async fn attached(daemon: &Daemon, id: &str) -> bool {
    let state = daemon.directories(id).state;
    let read = blocking(debug_span!("network_record"), move || NetworkRecord::read(&state)).await;
    !matches!(read, Ok(None))
}

/// Takes a pod's namespaces and mounts off the host.
async fn release(daemon: &Daemon, id: &str) -> Result<(), Error> {
    let dirs = daemon.directories(id);
    blocking(debug_span!("release"), move || pod::release(&dirs)).await
}

/// Takes apart a pod that was never whole, and removes what there is of it. Its monitor may take `limit` to answer.
async fn discard_half_made(
    daemon: &Arc<Daemon>,
    id: &str,
    containers: Vec<ContainerRecord>,
    made_cgroups: &[PathBuf],
    limit: Duration,
) -> Result<(), Error> {
    take_apart(daemon, id, containers, limit).await?;
    {
        let (daemon, id, made) = (daemon.clone(), id.to_owned(), made_cgroups.to_owned());
        blocking(debug_span!("remove_cgroups"), move || {
            daemon.remove_cgroups(&id, &made);
            Ok(())
        })
        .await?;
    }
    if attached(daemon, id).await {
        // Plugins may take their time; the start does not wait for them.
        pod::discard_later(daemon.clone(), id.to_owned());
        return Ok(());
    }
    pod::discard(daemon, id).await
}

/// The same beside everything else, whenever its monitor answers.
fn discard_half_made_later(
    daemon: Arc<Daemon>,
    id: String,
    containers: Vec<ContainerRecord>,
    made_cgroups: Vec<PathBuf>,
) {
    tokio::spawn(async move {
        if let Err(error) = discard_half_made(&daemon, &id, containers, &made_cgroups, Duration::MAX).await {
            tracing::error!(pod = %id, error = %error.sentence(), "a pod that was never whole cannot be taken apart: the next start tries again");
        }
    });
}

/// Ends whatever monitor there is, which may take `limit` to answer, and the processes that it left.
async fn take_apart(
    daemon: &Arc<Daemon>,
    id: &str,
    containers: Vec<ContainerRecord>,
    limit: Duration,
) -> Result<(), Error> {
    let dirs = daemon.directories(id);
    let unreachable = |source| Error::Unavailable { what: format!("the monitor of pod {id}"), source };
    let connecting = monitor_client::take_up(&dirs.run, ExecWaiters::default());
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(Connected { client, hello, .. })) => {
            if let Some(process) = Process::foreign(hello.pid) {
                client.is_process(process);
            }
            if let Err(error) = client.order(Op::StopSandbox).await {
                tracing::warn!(pod = %id, %error, "its monitor does not stop its processes");
            }
            if let Err(error) = client.shutdown(SHUTDOWN_DEADLINE).await {
                tracing::warn!(pod = %id, %error, "its monitor does not end");
            }
        }
        Ok(Err(error)) if error.is_gone() => {}
        // It may live, and then it needs its directories to be found again: by the next daemon.
        Ok(Err(error)) => return Err(unreachable(Some(Box::new(error)))),
        Err(_) => return Err(unreachable(None)),
    }
    let daemon = daemon.clone();
    let containers: Vec<_> = containers.into_iter().map(Arc::new).collect();
    blocking(debug_span!("kill_left"), move || {
        pod::kill_left(&daemon, &containers);
        Ok(())
    })
    .await
}

/// Moves a pod's directory out of the way, for a person to look at.
fn set_aside(daemon: &Daemon, id: &str) -> Result<(), Error> {
    let from = daemon.directories(id).state;
    let corrupt = daemon.state.join("corrupt");
    let to = corrupt.join(format!("{id}-{}", crate::records::now_ns()));
    let failed = |source| Error::Io { action: "set aside", path: from.clone(), source };
    fs::create_dir_all(&corrupt).map_err(failed)?;
    fs::rename(&from, &to).map_err(failed)?;
    tracing::error!(pod = %id, path = %to.display(), "set aside");
    Ok(())
}

/// None: there is a directory, but no record in it.
fn read_pod(daemon: &Daemon, id: &str) -> Result<Option<OnDisk>, Error> {
    let dirs = daemon.directories(id);
    let record = match SandboxRecord::read(&dirs.state) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // A handler that is not configured any more is no reason to forget a pod that runs.
    let mut defaults: Defaults = daemon.defaults.clone();
    defaults.handlers.entry(record.runtime_handler.clone()).or_insert(defaults.default_handler.clone());
    let pod = Pod::parse(record.config.clone(), &record.runtime_handler, &defaults)?;
    let (mut containers, mut half_made) = (Vec::new(), Vec::new());
    for container in container_ids(&dirs.state)? {
        match ContainerRecord::read(&dirs.container(&container)) {
            Ok(record) if record.complete => containers.push(record),
            Ok(_) => half_made.push(container),
            Err(error) => {
                tracing::error!(%container, error = %error.sentence(), "its record cannot be read: it is removed");
                half_made.push(container);
            }
        }
    }
    let network = NetworkRecord::read(&dirs.state)?.map(Arc::new);
    Ok(Some(OnDisk { record, pod, containers, half_made, network }))
}

fn container_ids(pod_dir: &Path) -> Result<Vec<String>, Error> {
    let path = pod_dir.join("containers");
    let failed = |source| Error::Io { action: "read", path: path.clone(), source };
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            ids.push(name);
        }
    }
    Ok(ids)
}

/// Makes a pod of what is on disk and what its monitor tells.
async fn take_over(daemon: &Arc<Daemon>, found: OnDisk) -> Result<(), Error> {
    let OnDisk { record, pod, containers, half_made, network } = found;
    let dirs = daemon.directories(&record.id);
    let same_boot = record.boot_id == daemon.boot_id;
    let stopped = record.phase == SandboxPhase::Stopped;
    let (id, metadata) = (record.id.clone(), pod.metadata.clone());

    daemon.store.restore(Name::Pod(metadata.clone()), &id);
    daemon.restore_cgroups(&record.made_cgroups);
    if !stopped {
        daemon.networks.ports.restore(&id, &pod);
    }
    let detach_later = network.is_some() && !same_boot && !stopped;
    let containers = {
        let (daemon, dirs) = (daemon.clone(), dirs.clone());
        blocking(debug_span!("clear_checkpoints"), move || {
            clear_checkpoints(&daemon, &dirs, &containers);
            Ok(containers)
        })
        .await?
    };
    let mut views = BTreeMap::new();
    for container in containers {
        let name = container.config.metadata.clone().unwrap_or_default();
        let name = ContainerMetadata { name: name.name, attempt: name.attempt };
        daemon.store.restore(Name::Container(id.clone(), name), &container.id);
        daemon.store.add_container(&container.id, &id);
        let known = container.lost.as_ref().map(|lost| lost.exit.clone());
        let exit = match known {
            Some(exit) => Some(exit),
            None => records::read_exit(&dirs.container(&container.id))?,
        };
        let state = exit.map_or(ContainerState::Unknown, ContainerState::Exited);
        views.insert(container.id.clone(), Arc::new(ContainerView::new(container, state)));
    }
    let view = PodView {
        record: Arc::new(record),
        pod: Arc::new(pod),
        ready: same_boot && !stopped,
        pause: None,
        containers: views,
        network,
        monitor: None,
    };
    let (mut task, handle) = PodTask::new(daemon.clone(), view, None);
    if stopped || !same_boot {
        if !stopped {
            tracing::warn!(pod = %metadata, "the node was rebooted under the pod");
            take_apart(daemon, &id, Vec::new(), HELLO_DEADLINE).await?;
            if !detach_later {
                release(daemon, &id).await?;
                daemon.networks.ports.release(&id);
            }
        }
        remove_half_made(daemon, &id, &half_made, None).await;
        task.end_all_unseen("NodeRebooted", "the node was rebooted while it ran").await;
    } else {
        let take_up = async move { monitor_client::take_up(&dirs.run, ExecWaiters::default()).await };
        let connecting = tokio::spawn(take_up);
        task.connect(connecting, HELLO_DEADLINE).await;
        remove_half_made(daemon, &id, &half_made, task.monitor()).await;
    }
    daemon.store.add_pod(handle.clone());
    task.spawn();
    if detach_later {
        // What reboots do not undo, leases on disk above all, must not wait for kubelet to remember the pod.
        tokio::spawn(async move {
            if let Err(error) = handle.stop().await {
                let error = error.sentence();
                tracing::warn!(pod = %handle.id(), error, "a pod of before the reboot is not detached: its stop will try again");
            }
        });
    }
    Ok(())
}

/// What checkpoints left that the last daemon died in. They were taken of containers that are to go on.
fn clear_checkpoints(daemon: &Daemon, dirs: &Directories, containers: &[ContainerRecord]) {
    for container in containers {
        match crate::checkpoint::clear(&dirs.container(&container.id)) {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(container = %container.id, "a checkpoint of it was not finished, and is taken away");
                // criu thaws it, unless it died too. It fails anyway: nobody is there to answer it.
                let path = daemon.cgroup_path(&container.cgroups_path, &container.id).ok();
                let cgroup = path.and_then(|path| Cgroup::open(&daemon.hierarchies, &path).ok());
                if let Some(cgroup) = cgroup.filter(|cgroup| cgroup.is_frozen() == Ok(true))
                    && let Err(failure) = cgroup.thaw()
                {
                    tracing::warn!(container = %container.id, %failure, "it cannot be thawed");
                }
            }
            Err(error) => {
                let error = error.sentence();
                tracing::warn!(container = %container.id, error, "what a checkpoint left cannot be removed");
            }
        }
    }
}

/// Containers that the last daemon did not finish making; nobody knows their ids.
async fn remove_half_made(
    daemon: &Arc<Daemon>,
    pod: &str,
    half_made: &[String],
    monitor: Option<&MonitorClient>,
) {
    let dirs = daemon.directories(pod);
    for container in half_made {
        tracing::warn!(%container, "a container that was being made when the daemon died is removed");
        if let Some(monitor) = monitor
            && let Err(error) = monitor.order(Op::Delete { container: container.clone() }).await
        {
            tracing::warn!(%container, %error, "its monitor cannot delete it");
        }
        let dir = dirs.container(container);
        let removed = blocking(debug_span!("remove_files"), move || {
            imageless::rootfs::remove_dir(&dir)
                .map_err(|error| Error::internal(format!("remove {}", dir.display()), error))
        });
        if let Err(error) = removed.await {
            tracing::warn!(%container, error = %error.sentence(), "it cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests;
