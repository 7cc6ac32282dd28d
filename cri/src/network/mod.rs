//! The networks of pods: which one a pod gets, attaching it, and never losing track of what was attached.
//!
//! ```text
//! which network   a CNI configuration, if there is one     -> its plugins (crate::cni)
//!                 none                                     -> what network.default says: the built-in bridge, …
//!
//! attach          record on disk -> ADD -> result and addresses on disk -> the pod may be told of
//! detach          DEL until it succeeds -> record removed
//! ```
//!
//! The record (`<state>/pods/<id>/network.json`, [`record`]) is there from before the first plugin is started until the last has
//! undone its work, and it holds the configuration that was used: a pod is detached by what attached it, whatever
//! the configuration says by then. Who finds a record finds what has to be undone, also after a crash and after a reboot.
//!
//! | file | tells |
//! |---|---|
//! | [`outlook`] | which network the next pod gets, and whether it could: the condition `NetworkReady` |
//! | [`watch`] | the task that keeps that current |
//! | [`record`] | what is on disk of a pod's network |
//! | [`bridge`] | the built-in network |
//! | [`ports`] | host ports: no two pods have the same |

pub mod bridge;
pub mod outlook;
pub mod ports;
pub mod record;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, Semaphore};
use tracing::debug_span;

use crate::cni::plugin::Input;
use crate::cni::{self, Network, NetworkList, PluginError};
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::monitor_client::Program;
use crate::pod::Directories;
use crate::translate::Pod;
use outlook::{Choice, Outlook};
use ports::HostPorts;
use record::{Maker, NetworkRecord};

/// The interface of a pod that its addresses are on.
pub const IFNAME: &str = "eth0";

/// What came of the last collection of garbage, in the run directory.
const COLLECTION: &str = "network-collection.json";

/// What kubelet told of the pod network, in the state directory.
const POD_CIDRS: &str = "pod-cidrs.json";

/// Chains of plugins that run at once; more wait. Each is a process or two.
const MAX_CHAINS: usize = 32;

/// What the daemon knows of networks.
#[derive(Debug)]
pub struct Networks {
    outlook: RwLock<Arc<Outlook>>,
    /// Tells the [`watch`] that the configuration was read again.
    pub reloaded: Notify,
    /// Host ports in use.
    pub ports: HostPorts,
    /// Held shared to attach or detach, and alone for GC, which must not see either half way (CNI spec, section GC).
    gate: tokio::sync::RwLock<()>,
    chains: Semaphore,
    pod_cidrs: RwLock<Vec<String>>,
    /// The built-in network.
    pub bridge: bridge::Bridge,
}

impl Default for Networks {
    fn default() -> Self {
        Self {
            outlook: RwLock::default(),
            reloaded: Notify::default(),
            ports: HostPorts::default(),
            gate: tokio::sync::RwLock::default(),
            chains: Semaphore::new(MAX_CHAINS),
            pod_cidrs: RwLock::default(),
            bridge: bridge::Bridge::default(),
        }
    }
}

impl Networks {
    /// Whether pods can be attached, as last seen.
    pub fn outlook(&self) -> Arc<Outlook> {
        self.outlook.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_outlook(&self, outlook: Outlook) {
        *self.outlook.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(outlook);
    }

    /// The node's pod CIDRs, as far as kubelet has told them.
    pub fn pod_cidrs(&self) -> Vec<String> {
        self.pod_cidrs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the pod CIDRs that kubelet tells, for the next daemon too: kubelet does not repeat them.
    pub fn set_pod_cidrs(&self, state: &Path, cidrs: Vec<String>) -> Result<(), Error> {
        crate::records::write(&state.join(POD_CIDRS), &cidrs)?;
        *self.pod_cidrs.write().unwrap_or_else(PoisonError::into_inner) = cidrs;
        Ok(())
    }

    /// Takes up what an earlier daemon was told, and the addresses that its pods have. Blocks.
    pub fn restore(&self, state: &Path) {
        self.bridge.restore(&record::all(state));
        let path = state.join(POD_CIDRS);
        match crate::records::read::<Vec<String>>(&path) {
            Ok(cidrs) => *self.pod_cidrs.write().unwrap_or_else(PoisonError::into_inner) = cidrs,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(error = %error.sentence(), "kubelet's pod CIDRs are forgotten"),
        }
    }
}

/// Attaches a pod whose network namespace is there. None: it has a loopback interface only, as configured.
///
/// Whatever becomes of it, [`detach`] undoes it.
pub async fn attach(
    daemon: &Arc<Daemon>,
    dirs: &Directories,
    id: &str,
    pod: &Arc<Pod>,
) -> Result<Option<Arc<NetworkRecord>>, Error> {
    let choice = {
        let (daemon, handler) = (daemon.clone(), pod.runtime_handler.clone());
        blocking(debug_span!("network_choice"), move || Ok(outlook::choose_now(&daemon.config(), &handler)))
            .await?
    };
    match choice {
        Choice::Cni(list) => add(daemon, dirs, id, pod, &list).await.map(|record| Some(Arc::new(record))),
        Choice::Bridge => attach_to_bridge(daemon, dirs, id, pod).await.map(|record| Some(Arc::new(record))),
        Choice::Loopback => Ok(None),
        Choice::Unready(reason) => {
            Err(Error::FailedPrecondition { what: "network of pod sandbox", id: id.to_owned(), reason })
        }
    }
}

#[tracing::instrument(name = "cni_add", level = "debug", skip_all, fields(network = list.name))]
async fn add(
    daemon: &Daemon,
    dirs: &Directories,
    id: &str,
    pod: &Pod,
    list: &NetworkList,
) -> Result<NetworkRecord, Error> {
    let cidrs = daemon.networks.pod_cidrs();
    let mut record = NetworkRecord::new(
        id,
        Maker::Cni {
            file: list.file.clone(),
            config: list.raw.clone(),
            args: cni::arguments::cni_args(pod, id)?,
            capability_args: cni::arguments::capability_args(pod, &cidrs)?,
        },
    );
    let what = || format!("attach pod sandbox {id} to network {}", list.name);
    write(dirs, &record).await?;
    let _shared = daemon.networks.gate.read().await;
    let _turn = daemon.networks.chains.acquire().await;
    for plugin in &list.plugins {
        let chain = Chain::new(daemon, dirs, &record)?;
        let added = chain.network(list).add(plugin, &chain.attachment(), record.result.as_ref()).await;
        let result = added.map_err(|error| Error::internal(what(), error))?;
        record.addresses = cni::result::addresses(&result, IFNAME);
        record.result = Some(result);
        write(dirs, &record).await?;
    }
    if record.addresses.is_empty() {
        let reason = format!("its plugins have ended well, but gave the pod's {IFNAME} no address");
        return Err(Error::internal(what(), reason));
    }
    Ok(record)
}

#[tracing::instrument(name = "bridge_attach", level = "debug", skip_all)]
async fn attach_to_bridge(
    daemon: &Arc<Daemon>,
    dirs: &Directories,
    id: &str,
    pod: &Arc<Pod>,
) -> Result<NetworkRecord, Error> {
    let _shared = daemon.networks.gate.read().await;
    let (shared, dirs, id, pod) = (daemon.clone(), dirs.clone(), id.to_owned(), pod.clone());
    blocking(debug_span!("bridge_attach"), move || {
        let config = &shared.config().network.bridge;
        let failed = |error| Error::internal(format!("attach pod sandbox {id} to {}", config.name), error);
        let bridge = &shared.networks.bridge;
        let record = bridge.lease(config, &id, &pod).map_err(failed)?;
        if let Err(error) = record.write(&dirs.state) {
            bridge.give_back(&record);
            return Err(error);
        }
        if let Maker::Bridge(cable) = &record.maker {
            bridge.attach(config, &shared.state, &record, cable, &dirs.netns()).map_err(failed)?;
        }
        Ok(record)
    })
    .await
}

/// Undoes what [`attach`] did, in whole or in part; may be repeated until it succeeds. The pod's network namespace has to be
/// there still if it is to be of use: plugins find in it what they made.
pub async fn detach(daemon: &Arc<Daemon>, dirs: &Directories, id: &str) -> Result<(), Error> {
    // What an earlier daemon's plugin still does would be done after our DEL.
    let input = input(dirs);
    let settled = Input::settle(&input).await;
    settled.map_err(|source| Error::Io { action: "take over", path: input.clone(), source })?;
    if let Some(record) = read(dirs).await? {
        let _shared = daemon.networks.gate.read().await;
        match &record.maker {
            Maker::Cni { .. } => del(daemon, dirs, &record).await?,
            Maker::Bridge(cable) => {
                let (daemon, record, cable) = (daemon.clone(), record.clone(), cable.clone());
                let done = blocking(debug_span!("bridge_detach"), move || {
                    let what = format!("detach pod sandbox {} from {}", record.container, cable.bridge);
                    daemon
                        .networks
                        .bridge
                        .detach(&record, &cable)
                        .map_err(|error| Error::internal(what, error))
                });
                done.await?;
            }
        }
        let state = dirs.state.clone();
        blocking(debug_span!("network_record"), move || NetworkRecord::remove(&state)).await?;
        daemon.networks.bridge.give_back(&record);
    }
    daemon.networks.ports.release(id);
    Ok(())
}

#[tracing::instrument(name = "cni_del", level = "debug", skip_all)]
async fn del(daemon: &Daemon, dirs: &Directories, record: &NetworkRecord) -> Result<(), Error> {
    let _turn = daemon.networks.chains.acquire().await;
    let chain = Chain::new(daemon, dirs, record)?;
    let list = record.list()?;
    let deleted = chain.network(&list).del(&chain.attachment(), record.result.as_ref()).await;
    deleted.map_err(|error| {
        Error::internal(format!("detach pod sandbox {} from network {}", record.container, list.name), error)
    })
}

/// Has every network's plugins forget what is no pod's of ours; when somebody asks for it, by reload number `reload`, they CHECK
/// what is, too. Only plugins of CNI 1.1 can be asked to forget; what others made is found by the pods' records. What came of
/// it is told to the log and in [`COLLECTION`].
pub async fn collect_garbage(daemon: Arc<Daemon>, reload: u64) {
    let collected = collect(&daemon).await;
    if let Err(error) = &collected {
        tracing::error!(error = %error.sentence(), "leftovers of pods' networks are not collected");
    }
    // At the start nobody waits for it, and it is a process for each plugin of each pod.
    let troubles = if reload > 0 { check_all(&daemon).await } else { Vec::new() };
    let error = collected.err().map(|error| error.sentence());
    let told = serde_json::json!({ "reload": reload, "error": error, "not_as_made": troubles });
    if let Err(error) = crate::records::write(&daemon.run.join(COLLECTION), &told) {
        tracing::warn!(error = %error.sentence(), "the collection cannot be noted");
    }
}

async fn collect(daemon: &Arc<Daemon>) -> Result<(), Error> {
    let _alone = daemon.networks.gate.write().await;
    let shared = daemon.clone();
    let (lists, records) = blocking(debug_span!("network_records"), move || {
        Ok((outlook::lists(&shared.config()), record::all(&shared.state)))
    })
    .await?;
    let config = daemon.config();
    let mut outcome = Ok(());
    for list in lists {
        let valid: Vec<(String, String)> = records
            .iter()
            .filter(|record| record.network() == Some(&list.name))
            .map(|record| (record.container.clone(), record.ifname.clone()))
            .collect();
        let network = Network {
            list: &list,
            bin_dirs: &config.network.cni_bin_dirs,
            limit: limit(&config.network),
            parent: &daemon.program,
        };
        if let Err(error) = network.gc(&valid).await {
            outcome = Err(Error::internal(format!("collect garbage of network {}", list.name), error));
        }
    }
    outcome
}

/// The pods that CHECK says are not attached any more as they were, and what it says.
async fn check_all(daemon: &Arc<Daemon>) -> Vec<String> {
    let mut troubles = Vec::new();
    let state = daemon.state.clone();
    let records = blocking(debug_span!("network_records"), move || Ok(record::all(&state))).await;
    for record in records.unwrap_or_default() {
        let Some(result) = &record.result else { continue };
        let dirs = daemon.directories(&record.container);
        let _shared = daemon.networks.gate.read().await;
        if !matches!(record.maker, Maker::Cni { .. }) {
            continue;
        }
        let (Ok(chain), Ok(list)) = (Chain::new(daemon, &dirs, &record), record.list()) else { continue };
        if chain.netns.is_none() {
            continue;
        }
        if let Err(error) = chain.network(&list).check(&chain.attachment(), result).await {
            tracing::warn!(pod = %record.container, %error, "the pod's network is not as it was made");
            troubles.push(format!("pod sandbox {}: {error}", record.container));
        }
    }
    troubles
}

/// How long one execution of a plugin may take.
fn limit(config: &crate::config::Network) -> Duration {
    Duration::from_secs(config.plugin_timeout_seconds)
}

/// The file that a pod's plugins have as their input.
fn input(dirs: &Directories) -> PathBuf {
    dirs.run.join("cni")
}

async fn write(dirs: &Directories, record: &NetworkRecord) -> Result<(), Error> {
    let (state, record) = (dirs.state.clone(), record.clone());
    blocking(debug_span!("network_record"), move || record.write(&state)).await
}

async fn read(dirs: &Directories) -> Result<Option<NetworkRecord>, Error> {
    let state = dirs.state.clone();
    blocking(debug_span!("network_record"), move || NetworkRecord::read(&state)).await
}

/// What the executions of one pod's plugins have in common.
struct Chain<'a> {
    record: &'a NetworkRecord,
    args: &'a str,
    capability_args: &'a serde_json::Map<String, Value>,
    netns: Option<PathBuf>,
    input: PathBuf,
    config: Arc<crate::config::Config>,
    parent: &'a Program,
}

impl<'a> Chain<'a> {
    fn new(daemon: &'a Daemon, dirs: &Directories, record: &'a NetworkRecord) -> Result<Self, Error> {
        let Maker::Cni { args, capability_args, .. } = &record.maker else {
            return Err(Error::internal(
                format!("network of pod sandbox {}", record.container),
                "no plugin made it",
            ));
        };
        // After a reboot it is gone; whoever is detached then still needs a place for the plugins' input.
        crate::pod::private_dir(&dirs.run)?;
        let netns = dirs.netns();
        Ok(Self {
            record,
            args,
            capability_args,
            netns: runtime::netns::is_pinned(&netns).then_some(netns),
            input: input(dirs),
            config: daemon.config(),
            parent: &daemon.program,
        })
    }

    fn network<'b>(&'b self, list: &'b NetworkList) -> Network<'b> {
        let config = &self.config.network;
        Network { list, bin_dirs: &config.cni_bin_dirs, limit: limit(config), parent: self.parent }
    }

    fn attachment(&self) -> cni::chain::Attachment<'_> {
        cni::chain::Attachment {
            container: &self.record.container,
            netns: self.netns.as_deref(),
            ifname: &self.record.ifname,
            args: self.args,
            capability_args: self.capability_args,
            input: &self.input,
        }
    }
}

/// Whether a plugin of a list is missing, and which.
fn missing_plugin(list: &NetworkList, bin_dirs: &[PathBuf]) -> Option<PluginError> {
    list.plugins.iter().find_map(|plugin| cni::plugin::find(&plugin.kind, bin_dirs).err())
}

/// Whether there is any program in the directories of plugins.
fn any_plugin(bin_dirs: &[PathBuf]) -> bool {
    let holds_a_file = |directory: &Path| {
        std::fs::read_dir(directory)
            .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|e| e.path().is_file())))
    };
    bin_dirs.iter().any(|directory| holds_a_file(directory))
}
