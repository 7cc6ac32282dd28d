//! RunPodSandbox: how a pod comes to be.
//!
//! ```text
//! host ports -> record on disk (creating) -> run directory -> cgroup parent
//!                              -> +- network namespace -> attached to its network (crate::network)
//!                                 +- shared files
//!                                 +- monitor started, hello
//!                              -> sandbox (pause) -> record (ready) -> task
//! ```
//!
//! Each step is undone, last first, when a later one fails. A pod whose network cannot be undone yet is kept on disk until it is.

use std::sync::Arc;
use std::time::Duration;

use runtime::cgroup::Driver;
use runtime::monitor::protocol::{Op, Reply, SandboxRequest, UserNamespaceMaps};
use tracing::{Instrument as _, debug_span};

use super::task::engine;
use super::{Directories, PodTask, PodView, files};
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::monitor_client::{self, ClientError, Connected, Process};
use crate::network::{self, record::NetworkRecord};
use crate::records::{SandboxPhase, SandboxRecord};
use crate::translate::{IdRange, Pod, PodPid, Shared, Userns};
use crate::undo::Undo;
use crate::v1::{ContainerEventType, PodSandboxConfig};

/// How long a monitor that was just started may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);

/// How long a monitor may take to end after it said that it will.
pub(super) const END_DEADLINE: Duration = Duration::from_secs(10);

/// The score of monitors: killed for memory only when there is nothing else to kill.
const OOM_SCORE: i32 = -999;

/// A pod to be made.
#[derive(Debug)]
pub struct NewPod {
    /// Its id.
    pub id: String,
    /// The request.
    pub config: PodSandboxConfig,
    /// The request, checked.
    pub pod: Pod,
}

/// Makes a pod and answers its id. On failure nothing of it is left.
pub async fn run(daemon: Arc<Daemon>, new: NewPod) -> Result<String, Error> {
    let mut undo = Undo::default();
    let made = bring_up(&daemon, new, &mut undo).await;
    if made.is_err() {
        undo.run().await;
    }
    made
}

async fn bring_up(daemon: &Arc<Daemon>, new: NewPod, undo: &mut Undo) -> Result<String, Error> {
    let NewPod { id, config, pod } = new;
    let dirs = daemon.directories(&id);
    let pod = Arc::new(pod);
    daemon.networks.ports.reserve(&id, &pod)?;
    let record = SandboxRecord::new(&id, &daemon.boot_id, config, &pod.runtime_handler);

    let record = {
        undo.push("network, run directory and record", {
            let (daemon, id) = (daemon.clone(), id.clone());
            async move {
                let discarded = super::discard(&daemon, &id).await;
                if discarded.is_err() {
                    super::discard_later(daemon, id);
                }
                discarded
            }
        });
        let (dirs, daemon, pod) = (dirs.clone(), daemon.clone(), pod.clone());
        blocking(debug_span!("pod_record"), move || {
            files::private_dir(&dirs.state.join("containers"))?;
            record.write(&dirs.state)?;
            files::private_dir(&dirs.run)?;
            let mut record = record;
            record.made_cgroups = daemon.ensure_parent(&pod, &record.id)?;
            Ok(record)
        })
        .await?
    };
    undo.push_blocking("cgroups", {
        let (daemon, id, made) = (daemon.clone(), id.clone(), record.made_cgroups.clone());
        move || {
            daemon.remove_cgroups(&id, &made);
            Ok::<(), Error>(())
        }
    });

    // Both are waited for, so that the way back finds nothing that is still being made.
    let (shared, monitor) = tokio::join!(
        make_shared(daemon, &dirs, &id, &pod),
        start_monitor(daemon, &dirs, &id).instrument(debug_span!("monitor_start"))
    );
    let connected = match monitor {
        Ok(connected) => {
            let client = connected.client.clone();
            undo.push("monitor", async move { client.shutdown(END_DEADLINE).await });
            connected
        }
        Err(error) => {
            shared?;
            return Err(error);
        }
    };
    let mut network = shared?;

    let Connected { client, notices, .. } = connected;
    let request = client.request(Op::Sandbox(sandbox_request(&dirs, &pod)), Vec::new());
    let pause = match request.instrument(debug_span!("pause_start")).await {
        Ok(Reply::Started { pid }) => pid,
        Ok(other) => return Err(Error::internal("start pause", format!("the monitor answered {other:?}"))),
        Err(ClientError::Failed(failure)) => return Err(engine("pod sandbox", &id, failure)),
        Err(ClientError::Slow(limit)) => {
            return Err(Error::DeadlineExceeded { what: format!("the start of pod sandbox {id}"), limit });
        }
        Err(error) => return Err(Error::internal(format!("start pause of pod sandbox {id}"), error)),
    };

    if pause_makes_network(&pod) {
        let pinned = dirs.clone();
        blocking(debug_span!("netns_pin"), move || files::pin_netns(&pinned, pause)).await?;
        network = attach(daemon, &dirs, &id, &pod).await?;
    }
    let record = {
        let state = dirs.state.clone();
        blocking(debug_span!("pod_record"), move || {
            let record = SandboxRecord { phase: SandboxPhase::Ready, ..record };
            record.write(&state)?;
            Ok(record)
        })
        .await?
    };
    let view = PodView {
        record: Arc::new(record),
        pod,
        ready: true,
        pause: Some(pause),
        containers: std::collections::BTreeMap::new(),
        network,
        monitor: Some(client),
    };
    let (task, handle) = PodTask::new(daemon.clone(), view, Some(notices));
    daemon.store.add_pod(handle);
    task.announce(&id, ContainerEventType::ContainerCreatedEvent);
    task.announce(&id, ContainerEventType::ContainerStartedEvent);
    task.spawn();
    Ok(id)
}

/// The pod's user namespace has to own its network namespace, so that one is made from inside.
fn pause_makes_network(pod: &Pod) -> bool {
    pod.namespaces.network == Shared::Pod && pod.namespaces.userns != Userns::None
}

/// The pod's files and, unless pause makes that, its network.
async fn make_shared(
    daemon: &Arc<Daemon>,
    dirs: &Directories,
    id: &str,
    pod: &Arc<Pod>,
) -> Result<Option<Arc<NetworkRecord>>, Error> {
    let shared = {
        let (dirs, pod) = (dirs.clone(), pod.clone());
        blocking(debug_span!("pod_files"), move || files::make(&dirs, &pod))
    };
    if pod.namespaces.network == Shared::Node || pause_makes_network(pod) {
        return shared.await.map(|()| None);
    }
    let netns = {
        let dirs = dirs.clone();
        blocking(debug_span!("netns_create"), move || files::make_netns(&dirs))
    };
    // The hosts file has to be there before the addresses are written into it.
    let (netns, shared) = tokio::join!(netns, shared);
    netns.and(shared)?;
    attach(daemon, dirs, id, pod).await
}

/// Attaches the pod to its network, and tells its hosts file.
async fn attach(
    daemon: &Arc<Daemon>,
    dirs: &Directories,
    id: &str,
    pod: &Arc<Pod>,
) -> Result<Option<Arc<NetworkRecord>>, Error> {
    let network = network::attach(daemon, dirs, id, pod).await?;
    if let Some(record) = &network {
        let (dirs, pod, record) = (dirs.clone(), pod.clone(), record.clone());
        blocking(debug_span!("pod_files"), move || files::write_addresses(&dirs, &pod, &record.addresses))
            .await?;
    }
    Ok(network)
}

/// Starts the monitor and says hello.
async fn start_monitor(daemon: &Daemon, dirs: &Directories, id: &str) -> Result<Connected, Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("start the monitor of pod sandbox {id}"), error)
    };
    let arguments = arguments(daemon, dirs, id);
    let mut launched = daemon.program.launch(&dirs.run, &arguments).map_err(|error| failed(error.into()))?;
    match monitor_client::connect(&dirs.run, HELLO_DEADLINE).await {
        Ok(connected) => {
            connected.client.is_process(Process::reap(launched.child));
            Ok(connected)
        }
        Err(error) => {
            if let Err(error) = launched.child.kill().await {
                tracing::warn!(%error, "a monitor that did not start cannot be killed");
            }
            Err(failed(error.into()))
        }
    }
}

/// The command line of a pod's monitor: see [`runtime::monitor::Options`].
fn arguments(daemon: &Daemon, dirs: &Directories, id: &str) -> Vec<String> {
    let config = daemon.config();
    let mut arguments = vec![
        "--pod".to_owned(),
        id.to_owned(),
        "--run".to_owned(),
        dirs.run.to_string_lossy().into_owned(),
        "--oom-score".to_owned(),
        OOM_SCORE.to_string(),
    ];
    // systemd's tree is systemd's: there a monitor stays in the daemon's unit.
    if daemon.driver == Driver::Cgroupfs {
        arguments.extend(["--cgroup".to_owned(), daemon.monitors_cgroup().to_string_lossy().into_owned()]);
    }
    // A filter for the daemon's modules says nothing about the monitor; a level does.
    let level = config.log.level.split(',').find_map(|part| part.trim().parse::<tracing::Level>().ok());
    if let Some(level) = level {
        arguments.extend(["--log-level".to_owned(), level.to_string().to_lowercase()]);
    }
    arguments
}

/// The namespaces that pause gets.
fn sandbox_request(dirs: &Directories, pod: &Pod) -> SandboxRequest {
    let namespaces = &pod.namespaces;
    let own_network = namespaces.network == Shared::Pod;
    let map = |range: &IdRange| vec![(range.container, range.host, range.length)];
    SandboxRequest {
        netns: own_network.then(|| dirs.netns()),
        ipc: namespaces.ipc == Shared::Pod,
        uts: own_network,
        pid: namespaces.pid == PodPid::Pod,
        hostname: own_network.then(|| pod.hostname.clone()),
        sysctls: pod.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        user_namespace: match &namespaces.userns {
            Userns::None => None,
            Userns::Mapped { uids, gids } => Some(UserNamespaceMaps { uids: map(uids), gids: map(gids) }),
        },
    }
}
