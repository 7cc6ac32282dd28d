//! ContainerStats, ListContainerStats, PodSandboxStats and ListPodSandboxStats.
//!
//! CPU and memory are read from the container's cgroup when they are asked for. Rates need an earlier reading: one is
//! remembered for each container. What the writable layer holds is found by walking it, which
//! [`imageless::usage::WritableLayers`] does once in a while.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imageless::usage::WritableLayers;
use runtime::cgroup::{Cgroup, Pressure, PressureLine, Stats};
use tracing::debug_span;

use crate::check;
use crate::container;
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::network::IFNAME;
use crate::network::bridge::links::{Traffic, traffic};
use crate::pod::{ContainerView, PodView};
use crate::records::now_ns;
use crate::select;
use crate::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier,
    FilesystemUsage, IoUsage, LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage,
    PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter, ProcessUsage, PsiData, PsiStats, SwapUsage,
    UInt64Value,
};

/// The shortest time that a rate is computed over.
const MIN_WINDOW: Duration = Duration::from_secs(1);

/// Earlier readings, by container id.
#[derive(Debug, Default)]
pub struct Samples {
    samples: Mutex<HashMap<String, Sample>>,
    layers: WritableLayers,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    /// When CPU time was read, and how much it was.
    cpu: Option<(Instant, u64)>,
    /// The last rate, in nanoseconds per second.
    rate: Option<u64>,
}

impl Samples {
    fn with<T>(&self, id: &str, act: impl FnOnce(&mut Sample) -> T) -> T {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        act(samples.entry(id.to_owned()).or_default())
    }

    /// The container, whose writable layer was at `upper`, is gone.
    pub fn forget(&self, id: &str, upper: &Path) {
        self.layers.forget(upper);
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Nanoseconds of CPU time per second since the remembered reading. None: there is none that is old enough.
    fn rate(&self, id: &str, now: Instant, usage_ns: u64) -> Option<u64> {
        self.with(id, |sample| {
            match sample.cpu {
                Some((then, before)) if now - then >= MIN_WINDOW => {
                    let nanos = u64::try_from((now - then).as_nanos()).unwrap_or(u64::MAX);
                    let used = u128::from(usage_ns.saturating_sub(before)) * 1_000_000_000;
                    sample.rate = u64::try_from(used / u128::from(nanos.max(1))).ok();
                    sample.cpu = Some((now, usage_ns));
                }
                Some(_) => {}
                None => sample.cpu = Some((now, usage_ns)),
            }
            sample.rate
        })
    }
}

/// ContainerStats.
pub async fn container(daemon: &Arc<Daemon>, id: &str) -> Result<ContainerStats, Error> {
    let found = container::find(daemon, id)?;
    let missing = || Error::FailedPrecondition {
        what: "container",
        id: found.container.record.id.clone(),
        reason: "is not running, so there is nothing to measure".into(),
    };
    let view = found.container.clone();
    let mut stats = of_containers(daemon, vec![view], true).await?;
    stats.pop().ok_or_else(missing)
}

/// ListContainerStats: of the containers that run.
pub async fn containers(
    daemon: &Arc<Daemon>,
    filter: Option<ContainerStatsFilter>,
) -> Result<Vec<ContainerStats>, Error> {
    let filter = filter.unwrap_or_default();
    let wanted = |view: &Arc<ContainerView>| {
        view.record.id.starts_with(&filter.id)
            && select::labels(&view.record.config.labels, &filter.label_selector)
    };
    let pods = daemon.store.pods().into_iter().map(|pod| pod.view());
    let views = pods
        .filter(|pod| pod.record.id.starts_with(&filter.pod_sandbox_id))
        .flat_map(|pod| pod.containers.values().cloned().collect::<Vec<_>>())
        .filter(wanted)
        .collect();
    of_containers(daemon, views, true).await
}

/// PodSandboxStats.
pub async fn pod(daemon: &Arc<Daemon>, id: &str) -> Result<PodSandboxStats, Error> {
    let view = daemon.store.pod(check::id("pod_sandbox_id", id)?)?.view();
    of_pod(daemon, &view).await
}

/// ListPodSandboxStats.
pub async fn pods(
    daemon: &Arc<Daemon>,
    filter: Option<PodSandboxStatsFilter>,
) -> Result<Vec<PodSandboxStats>, Error> {
    let filter = filter.unwrap_or_default();
    let mut stats = Vec::new();
    for pod in daemon.store.pods() {
        let view = pod.view();
        let wanted = view.ready
            && view.record.id.starts_with(&filter.id)
            && select::labels(&view.record.config.labels, &filter.label_selector);
        if wanted {
            stats.push(of_pod(daemon, &view).await?);
        }
    }
    Ok(stats)
}

/// A pod is the sum of its containers: with cgroups per container, its own cgroup may be somebody else's to read.
async fn of_pod(daemon: &Arc<Daemon>, view: &Arc<PodView>) -> Result<PodSandboxStats, Error> {
    let containers = of_containers(daemon, view.containers.values().cloned().collect(), true).await?;
    let now = now_ns();
    let sum = |value: fn(&ContainerStats) -> Option<&UInt64Value>| {
        let total = containers.iter().filter_map(value).map(|value| value.value).sum();
        Some(UInt64Value { value: total })
    };
    let cpu = CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: sum(|stats| stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()),
        usage_nano_cores: sum(|stats| stats.cpu.as_ref()?.usage_nano_cores.as_ref()),
        psi: None,
    };
    let memory = MemoryUsage {
        timestamp: now,
        working_set_bytes: sum(|stats| stats.memory.as_ref()?.working_set_bytes.as_ref()),
        usage_bytes: sum(|stats| stats.memory.as_ref()?.usage_bytes.as_ref()),
        rss_bytes: sum(|stats| stats.memory.as_ref()?.rss_bytes.as_ref()),
        page_faults: sum(|stats| stats.memory.as_ref()?.page_faults.as_ref()),
        major_page_faults: sum(|stats| stats.memory.as_ref()?.major_page_faults.as_ref()),
        ..MemoryUsage::default()
    };
    let views: Vec<_> = view.containers.values().cloned().collect();
    let shared = daemon.clone();
    let processes = blocking(debug_span!("process_count"), move || {
        let count = |view: &Arc<ContainerView>| {
            let cgroup = open(&shared, view)?;
            cgroup.pids(true).ok().map(|pids| pids.len() as u64)
        };
        Ok(views.iter().filter_map(count).sum::<u64>())
    })
    .await?;
    let config = &view.record.config;
    Ok(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: view.record.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(cpu),
            memory: Some(memory),
            network: network(daemon, view, now).await,
            process: Some(ProcessUsage {
                timestamp: now,
                process_count: Some(UInt64Value { value: processes }),
            }),
            containers,
            io: None,
        }),
        windows: None,
    })
}

/// What went through the links of the pod's own network namespace. None: it uses the host's, or it is not there any more.
async fn network(daemon: &Arc<Daemon>, view: &PodView, now: i64) -> Option<NetworkUsage> {
    if view.pod.namespaces.host_network() || !view.ready {
        return None;
    }
    let netns = daemon.directories(&view.record.id).netns();
    let links = blocking(debug_span!("network_stats"), move || {
        traffic(&netns)
            .map_err(|error| Error::internal(format!("read the links of {}", netns.display()), error))
    })
    .await;
    match links {
        Ok(links) => Some(network_usage(links, now)),
        Err(error) => {
            tracing::debug!(pod = %view.record.id, error = %error.sentence(), "its traffic cannot be read");
            None
        }
    }
}

/// The default interface apart from the others; the loopback is neither, as with containerd.
fn network_usage(links: Vec<Traffic>, now: i64) -> NetworkUsage {
    let usage = |link: Traffic| NetworkInterfaceUsage {
        name: link.name,
        rx_bytes: some(link.received.bytes),
        rx_errors: some(link.received.errors),
        tx_bytes: some(link.sent.bytes),
        tx_errors: some(link.sent.errors),
    };
    let (default, others): (Vec<_>, Vec<_>) =
        links.into_iter().filter(|link| link.name != "lo").map(usage).partition(|link| link.name == IFNAME);
    NetworkUsage { timestamp: now, default_interface: default.into_iter().next(), interfaces: others }
}

/// Reads what lives; what has ended meanwhile is left out.
async fn of_containers(
    daemon: &Arc<Daemon>,
    views: Vec<Arc<ContainerView>>,
    psi: bool,
) -> Result<Vec<ContainerStats>, Error> {
    let daemon = daemon.clone();
    blocking(debug_span!("stats"), move || {
        Ok(views.iter().filter(|view| view.alive()).filter_map(|view| read(&daemon, view, psi)).collect())
    })
    .await
}

fn open(daemon: &Daemon, view: &ContainerView) -> Option<Cgroup> {
    let path = daemon.cgroup_path(&view.record.cgroups_path, &view.record.id).ok()?;
    Cgroup::open(&daemon.hierarchies, &path).ok()
}

/// One container. None: its cgroup is gone.
fn read(daemon: &Arc<Daemon>, view: &ContainerView, psi: bool) -> Option<ContainerStats> {
    let cgroup = open(daemon, view)?;
    let stats = if psi { cgroup.stats() } else { cgroup.stats_brief() };
    let stats = match stats {
        Ok(stats) => stats,
        Err(failure) => {
            tracing::debug!(container = %view.record.id, %failure, "its statistics cannot be read");
            return None;
        }
    };
    let record = &view.record;
    let rate = daemon.samples.rate(&record.id, Instant::now(), stats.cpu.usage_ns);
    let now = now_ns();
    Some(ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: Some(CpuUsage {
            timestamp: now,
            usage_core_nano_seconds: some(stats.cpu.usage_ns),
            usage_nano_cores: rate.and_then(some),
            psi: stats.cpu.pressure.map(pressure),
        }),
        memory: Some(memory(&stats, now)),
        writable_layer: writable_layer(daemon, view),
        swap: Some(swap(&stats, now)),
        io: stats.io_pressure.map(|io| IoUsage { timestamp: now, psi: Some(pressure(io)) }),
    })
}

#[allow(clippy::unnecessary_wraps, reason = "the API's numbers are optional messages")]
fn some(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn memory(stats: &Stats, now: i64) -> MemoryUsage {
    let memory = &stats.memory;
    MemoryUsage {
        timestamp: now,
        working_set_bytes: some(memory.working_set),
        available_bytes: memory.available.and_then(some),
        usage_bytes: some(memory.usage),
        rss_bytes: some(memory.rss),
        page_faults: some(memory.page_faults),
        major_page_faults: some(memory.major_page_faults),
        psi: memory.pressure.map(pressure),
    }
}

fn swap(stats: &Stats, now: i64) -> SwapUsage {
    let memory = &stats.memory;
    SwapUsage {
        timestamp: now,
        swap_available_bytes: memory.swap_limit.map(|limit| limit.saturating_sub(memory.swap)).and_then(some),
        swap_usage_bytes: some(memory.swap),
    }
}

fn pressure(pressure: Pressure) -> PsiStats {
    let line = |line: PressureLine| PsiData {
        total: line.total_us.saturating_mul(1000),
        avg10: f64::from(line.avg10_centi) / 100.0,
        avg60: f64::from(line.avg60_centi) / 100.0,
        avg300: f64::from(line.avg300_centi) / 100.0,
    };
    PsiStats { full: Some(line(pressure.full)), some: Some(line(pressure.some)) }
}

/// What the container wrote into its root. Only the first caller waits for a walk; later ones get the last figure, and
/// have it renewed for the next.
fn writable_layer(daemon: &Arc<Daemon>, view: &ContainerView) -> Option<FilesystemUsage> {
    let upper = upper(daemon, view);
    let usage = match daemon.samples.layers.last(&upper) {
        None => daemon.samples.layers.usage(&upper),
        Some(figure) => {
            if figure.at.elapsed().is_ok_and(|age| age > imageless::usage::FRESH) {
                let (daemon, upper) = (daemon.clone(), upper.clone());
                tokio::task::spawn_blocking(move || daemon.samples.layers.usage(&upper).map(drop));
            }
            Ok(figure)
        }
    };
    match usage {
        Ok(usage) => Some(FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(FilesystemIdentifier { mountpoint: upper.to_string_lossy().into_owned() }),
            used_bytes: some(usage.bytes),
            inodes_used: some(usage.inodes),
        }),
        Err(error) => {
            tracing::debug!(container = %view.record.id, %error, "its writable layer cannot be walked");
            None
        }
    }
}

fn upper(daemon: &Daemon, view: &ContainerView) -> PathBuf {
    daemon.directories(&view.record.sandbox).container(&view.record.id).join(imageless::rootfs::UPPER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_that_are_apart() {
        let samples = Samples::default();
        let start = Instant::now();
        assert_eq!(samples.rate("c", start, 1_000), None);
        assert_eq!(samples.rate("c", start + Duration::from_millis(10), 2_000), None);
        assert_eq!(samples.rate("c", start + Duration::from_secs(2), 1_000_001_000), Some(500_000_000));
        assert_eq!(samples.rate("c", start + Duration::from_millis(2100), 1_000_001_000), Some(500_000_000));
        samples.forget("c", Path::new("/none"));
        assert_eq!(samples.rate("c", start, 5), None);
    }

    #[test]
    fn the_default_interface_is_told_apart() {
        let link = |name: &str| Traffic { name: name.to_owned(), ..Traffic::default() };
        let usage = network_usage(vec![link("lo"), link("eth1"), link("eth0")], 7);
        assert_eq!(usage.default_interface.unwrap().name, "eth0");
        let others: Vec<String> = usage.interfaces.into_iter().map(|link| link.name).collect();
        assert_eq!((others.as_slice(), usage.timestamp), (&["eth1".to_owned()][..], 7));
    }
}
