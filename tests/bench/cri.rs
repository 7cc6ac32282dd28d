//! A pod of one container from run to removed, call by call, on both daemons in turn.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use podwright_tests::{Client, Node, v1};
use tonic::Status;

use crate::containerd::{Containerd, IMAGE};
use crate::report::{self, Samples};

/// One runtime under measurement.
struct Subject<'a> {
    client: Client,
    image: &'a str,
    unique: String,
    made: usize,
}

/// The calls of one pod's life, in order.
const CALLS: [&str; 11] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ContainerStatus",
    "ExecSync true",
    "ContainerStats",
    "ListContainers",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// Ends at once on TERM, as a well-behaved server does.
const SERVER: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

impl Subject<'_> {
    fn config(&mut self) -> v1::PodSandboxConfig {
        self.made += 1;
        let name = format!("bench{}", self.made);
        let options = v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..container_pids() };
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                uid: format!("{}-{name}", self.unique),
                name,
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}-bench", self.unique),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(&self, script: &str) -> v1::ContainerConfig {
        let options = v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..container_pids() };
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: self.image.to_owned(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(options),
                    seccomp: Some(v1::SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// One whole life; a duration for each of [`CALLS`].
    fn life(&mut self) -> Result<Vec<Duration>> {
        let sandbox = self.config();
        let container = self.container(SERVER);
        let client = &self.client;
        let mut laps = Laps::default();
        let pod = laps.time(|| client.run_pod(&sandbox))?;
        let id = laps.time(|| client.create(&pod, &container, &sandbox))?;
        laps.time(|| client.start(&id))?;
        laps.time(|| client.container(&id))?;
        laps.time(|| client.exec_in(&id, &["/bin/true"], 10))?;
        laps.time(|| client.container_stats(v1::ContainerStatsRequest { container_id: id.clone() }))?;
        laps.time(|| client.containers())?;
        laps.time(|| client.stop(&id, 30))?;
        laps.time(|| client.remove(&id))?;
        laps.time(|| client.stop_pod(&pod))?;
        laps.time(|| client.remove_pod(&pod))?;
        Ok(laps.0)
    }

    /// A pod that stays, its container running.
    fn keep(&mut self) -> Result<()> {
        let sandbox = self.config();
        let container = self.container("exec sleep 100000");
        let pod = self.client.run_pod(&sandbox)?;
        let id = self.client.create(&pod, &container, &sandbox)?;
        Ok(self.client.start(&id)?)
    }
}

/// How long each call took, in order.
#[derive(Default)]
struct Laps(Vec<Duration>);

impl Laps {
    fn time<T>(&mut self, call: impl FnOnce() -> Result<T, Status>) -> Result<T> {
        let start = Instant::now();
        let result = call();
        let name = CALLS.get(self.0.len()).copied().unwrap_or_default();
        self.0.push(start.elapsed());
        result.context(name)
    }
}

fn container_pids() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }
}

fn subjects<'a>(node: &Node, containerd: &Containerd, run: &str) -> Result<[Subject<'a>; 2]> {
    let unique = format!("{}-{run}", node.unique());
    Ok([
        Subject { client: node.client()?, image: "busybox", unique: unique.clone(), made: 0 },
        Subject { client: containerd.client()?, image: IMAGE, unique, made: 0 },
    ])
}

/// Removes the cgroups that containerd leaves of a parent it was given.
fn sweep(node: &Node) {
    for cgroup in podwright_tests::snapshot::cgroups(&format!("{}-", node.unique())).into_iter().rev() {
        let _ = std::fs::remove_dir(cgroup);
    }
}

/// Lives in turn, and a table of their calls.
pub(crate) fn measure(node: &Node, containerd: &Containerd, rounds: usize) -> Result<()> {
    let mut subjects = subjects(node, containerd, "life")?;
    let mut samples = [(), ()].map(|()| vec![Samples::default(); CALLS.len() + 1]);
    for subject in &mut subjects {
        // Caches, lazily loaded plugins.
        subject.life()?;
    }
    for _ in 0..rounds {
        for (subject, samples) in subjects.iter_mut().zip(&mut samples) {
            let durations = subject.life()?;
            samples[CALLS.len()].add(durations.iter().sum());
            for (samples, duration) in samples.iter_mut().zip(durations) {
                samples.add(duration);
            }
        }
    }
    sweep(node);
    let [ours, theirs] = samples;
    let row = |name: &str, index: usize| {
        vec![
            name.to_owned(),
            report::cell(&ours[index]),
            report::cell(&theirs[index]),
            format!("{:.2}", ours[index].median() / theirs[index].median()),
        ]
    };
    let mut rows: Vec<_> = CALLS.iter().enumerate().map(|(index, name)| row(name, index)).collect();
    rows.push(row("all: run to removed", CALLS.len()));
    println!("\nhost-network pod of one container, {rounds} rounds in turn, ms (median/p95)");
    report::table(&["", "podwright", "containerd+crun", "ratio"], &rows);
    let ratio = ours[CALLS.len()].median() / theirs[CALLS.len()].median();
    println!(
        "{} a third of containerd's time ({ratio:.2})",
        if ratio < 1.0 / 3.0 { "under" } else { "NOT under" }
    );
    Ok(())
}

/// Whole lives of many pods at once.
pub(crate) fn throughput(node: &Node, containerd: &Containerd) -> Result<()> {
    const WORKERS: usize = 8;
    const EACH: usize = 5;
    let mut rates = Vec::new();
    for which in 0..2 {
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let [ours, theirs] = subjects(node, containerd, &format!("many{worker}"))?;
            workers.push(if which == 0 { ours } else { theirs });
        }
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = workers
                .iter_mut()
                .map(|subject| scope.spawn(move || (0..EACH).try_for_each(|_| subject.life().map(drop))))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
        })?;
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        rates.push((WORKERS * EACH) as f64 / start.elapsed().as_secs_f64());
    }
    sweep(node);
    println!("\npods a second, {WORKERS} at once (lives as above)");
    let cells = vec![
        "pods/s".to_owned(),
        format!("{:.1}", rates[0]),
        format!("{:.1}", rates[1]),
        format!("{:.2}", rates[0] / rates[1]),
    ];
    report::table(&["", "podwright", "containerd+crun", "ratio"], &[cells]);
    Ok(())
}

/// Makes pods that stay, on both.
pub(crate) fn keep(node: &Node, containerd: &Containerd, pods: usize) -> Result<()> {
    for mut subject in subjects(node, containerd, "kept")? {
        for _ in 0..pods {
            subject.keep()?;
        }
    }
    Ok(())
}

/// Removes every pod of both.
pub(crate) fn clear(node: &Node, containerd: &Containerd) -> Result<()> {
    for client in [node.client()?, containerd.client()?] {
        for pod in client.pods()? {
            client.stop_pod(&pod.id)?;
            client.remove_pod(&pod.id)?;
        }
    }
    sweep(node);
    Ok(())
}
