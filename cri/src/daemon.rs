//! What every handler and every pod's task shares.
//!
//! Nothing here is the truth about a pod: that is on disk and in its monitor. What changes while the daemon runs is behind
//! a lock that is held to clone a pointer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use runtime::cgroup::{CgroupPath, Driver, Hierarchies};
use tokio::sync::Semaphore;

use crate::apparmor::DefaultProfile;
use crate::cgroups::{MadeCgroups, Place};
use crate::checkpoint;
use crate::config::{CgroupDriver, Config, Handler};
use crate::error::Error;
use crate::events::Events;
use crate::host;
use crate::monitor_client::Program;
use crate::network::Networks;
use crate::pod::Directories;
use crate::seccomp::SeccompCache;
use crate::stats::Samples;
use crate::store::Store;
use crate::translate::{self, Defaults, HostFacts, Pod};

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    reloadable: RwLock<Reloadable>,
    /// Where records, bundles and writable layers are.
    pub state: PathBuf,
    /// Where sockets and namespaces are.
    pub run: PathBuf,
    /// Pods and containers.
    pub store: Store,
    /// Watchers of `GetContainerEvents`.
    pub events: Events,
    /// The monitor's program.
    pub program: Program,
    /// What the configuration decides for every pod.
    pub defaults: Defaults,
    /// What this host has.
    pub host: HostFacts,
    /// Its cgroups.
    pub hierarchies: Hierarchies,
    /// Who makes cgroups.
    pub driver: Driver,
    /// The cgroup of the runtime itself and of pods without a parent.
    pub cgroup_root: PathBuf,
    made_cgroups: MadeCgroups,
    /// This boot.
    pub boot_id: String,
    /// The default AppArmor profile.
    pub apparmor: DefaultProfile,
    /// Compiled seccomp profiles.
    pub seccomp: SeccompCache,
    /// Turns for checkpoints.
    pub checkpoints: Arc<Semaphore>,
    /// What earlier statistics are remembered for.
    pub samples: Samples,
    /// The networks of pods.
    pub networks: Networks,
}

/// What SIGHUP replaces.
#[derive(Debug)]
struct Reloadable {
    config: Arc<Config>,
    images: Arc<imageless::Library>,
}

impl Daemon {
    /// Looks at the host and opens the images.
    pub fn new(config: Config) -> Result<Self, Error> {
        let hierarchies =
            Hierarchies::detect().map_err(|failure| Error::internal("find this host's cgroups", failure))?;
        let images = Arc::new(open_library(&config)?);
        let program = Program::load(&config.paths.monitor)
            .map_err(|error| Error::internal("prepare the monitor's program", error))?;
        let user_namespaces = if host::kernel() < host::IDMAPPED_LAYERS {
            Err("overlayfs has idmapped layers from Linux 5.19 on".to_owned())
        } else {
            program.try_idmap(&config.rootfs.roots)
        };
        if let Err(reason) = &user_namespaces {
            tracing::info!(reason, "no user namespaces for pods");
        }
        let host = host::facts(&hierarchies, user_namespaces.is_ok())?;
        let driver = match config.cgroup.driver {
            CgroupDriver::Cgroupfs => Driver::Cgroupfs,
            CgroupDriver::Systemd => Driver::Systemd,
        };
        let defaults = Defaults {
            host_hostname: host::hostname(),
            default_handler: config.runtime.handlers.get("").map(Handler::rules).unwrap_or_default(),
            handlers: config
                .runtime
                .handlers
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, handler)| (name.clone(), handler.rules()))
                .collect(),
            cgroup_driver: match driver {
                Driver::Cgroupfs => translate::CgroupDriver::Cgroupfs,
                Driver::Systemd => translate::CgroupDriver::Systemd,
            },
            ..Defaults::default()
        };
        Ok(Self {
            state: config.paths.state.clone(),
            run: config.paths.run.clone(),
            store: Store::default(),
            events: Events::default(),
            program,
            defaults,
            host,
            hierarchies,
            driver,
            cgroup_root: PathBuf::from(&config.cgroup.runtime),
            made_cgroups: MadeCgroups::default(),
            boot_id: host::boot_id()?,
            apparmor: DefaultProfile::new(&config.paths.state, &config.paths.run),
            seccomp: SeccompCache::default(),
            checkpoints: Arc::new(Semaphore::new(checkpoint::AT_ONCE)),
            samples: Samples::default(),
            networks: Networks::default(),
            reloadable: RwLock::new(Reloadable { config: Arc::new(config), images }),
        })
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.reloadable.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }

    /// The images.
    pub fn images(&self) -> Arc<imageless::Library> {
        self.reloadable.read().unwrap_or_else(PoisonError::into_inner).images.clone()
    }

    /// Takes over what can be changed while the daemon runs; says which keys would need a restart.
    pub fn reload(&self, new: Config) -> Result<Vec<&'static str>, Error> {
        let images = Arc::new(open_library(&new)?);
        let mut reloadable = self.reloadable.write().unwrap_or_else(PoisonError::into_inner);
        let old = &reloadable.config;
        let fixed = [
            ("server", old.server == new.server),
            ("streaming", old.streaming == new.streaming),
            ("paths", old.paths == new.paths),
            ("cgroup", old.cgroup == new.cgroup),
            ("log.format", old.log.format == new.log.format),
            ("runtime", old.runtime == new.runtime),
        ];
        let kept = Config {
            server: old.server.clone(),
            streaming: old.streaming.clone(),
            paths: old.paths.clone(),
            cgroup: old.cgroup.clone(),
            runtime: old.runtime.clone(),
            ..new
        };
        *reloadable = Reloadable { config: Arc::new(kept), images };
        Ok(fixed.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect())
    }

    /// The directories of a pod.
    pub fn directories(&self, pod: &str) -> Directories {
        Directories::new(&self.state, &self.run, pod)
    }

    /// The cgroup of the runtime's own processes.
    pub fn monitors_cgroup(&self) -> PathBuf {
        self.cgroup_root.join("monitors")
    }

    /// Where pods' cgroups go.
    pub fn cgroup_place(&self) -> Place<'_> {
        Place { hierarchies: &self.hierarchies, driver: self.driver, runtime: &self.cgroup_root }
    }

    /// See [`MadeCgroups::ensure_parent`].
    pub fn ensure_parent(&self, pod: &Pod, id: &str) -> Result<Vec<PathBuf>, Error> {
        self.made_cgroups.ensure_parent(self.cgroup_place(), pod, id, &self.host)
    }

    /// See [`MadeCgroups::limit_pod`].
    pub fn limit_pod(&self, pod: &Pod, id: &str) -> Result<(), Error> {
        MadeCgroups::limit_pod(self.cgroup_place(), pod, id, &self.host)
    }

    /// See [`MadeCgroups::remove`].
    pub fn remove_cgroups(&self, id: &str, made: &[PathBuf]) {
        self.made_cgroups.remove(self.cgroup_place(), id, made);
    }

    /// See [`MadeCgroups::restore`].
    pub fn restore_cgroups(&self, made: &[PathBuf]) {
        self.made_cgroups.restore(made);
    }

    /// Where the cgroup of a container is.
    pub fn cgroup_path(&self, cgroups_path: &Path, container: &str) -> Result<CgroupPath, Error> {
        CgroupPath::parse(Some(cgroups_path), container, self.driver)
            .map_err(|error| Error::internal(format!("cgroup of container {container}"), error))
    }
}

fn open_library(config: &Config) -> Result<imageless::Library, Error> {
    let library = imageless::Config {
        roots: config.rootfs.roots.clone(),
        aliases: config.rootfs.aliases.clone(),
        state: config.paths.state.join("images"),
    };
    imageless::Library::open(&library)
        .map_err(|error| Error::internal("open the root filesystem directories", error))
}

/// Runs what blocks on files away from the threads that answer, in a span of its own.
pub async fn blocking<T: Send + 'static>(
    span: tracing::Span,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.unwrap_or_else(|error| Err(Error::internal("work on files", error)))
}
