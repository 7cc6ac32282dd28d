//! What a pod's network costs: by plugins, beside the same plugins called directly; by the built-in bridge, beside a pod that
//! has only a loopback interface. Every node is in a network namespace of its own.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podwright_tests::{Client, NetworkNamespace, Node, NodeOptions, v1};
use serde_json::{Value, json};

use crate::report::{self, Samples};

/// Where Debian has its plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// RunPodSandbox with CNI may take so many times as long as the chain alone.
const CNI_FACTOR: f64 = 1.5;

/// RunPodSandbox with the built-in network may take so many milliseconds longer than without.
const BUILT_IN_MS: f64 = 3.0;

fn node(network: &[String]) -> Result<Node> {
    Node::with(&NodeOptions { own_network: true, network: network.to_vec(), ..Default::default() })
}

fn plugins(ipam: &Path) -> Vec<Value> {
    vec![
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "ipam": { "type": "host-local", "dataDir": ipam, "ranges": [[{ "subnet": "10.210.0.0/16" }]],
                      "routes": [{ "dst": "0.0.0.0/0" }] },
        }),
        json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
    ]
}

/// A runtime's way to make and stop a pod with a network of its own.
struct Subject {
    client: Client,
    unique: String,
    made: usize,
}

impl Subject {
    fn new(node: &Node) -> Result<Self> {
        Ok(Self { client: node.client()?, unique: node.unique().to_owned(), made: 0 })
    }

    /// How long RunPodSandbox and StopPodSandbox take.
    fn life(&mut self) -> Result<[Duration; 2]> {
        self.made += 1;
        let name = format!("net{}", self.made);
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                uid: format!("{}-{name}", self.unique),
                name,
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: "bench".to_owned(),
            linux: Some(v1::LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        let start = Instant::now();
        let id = self.client.run_pod(&config).context("RunPodSandbox")?;
        let run = start.elapsed();
        let start = Instant::now();
        self.client.stop_pod(&id).context("StopPodSandbox")?;
        let stop = start.elapsed();
        self.client.remove_pod(&id)?;
        Ok([run, stop])
    }
}

/// The chain without any runtime: a namespace, and one process a plugin.
struct Direct {
    host: NetworkNamespace,
    plugins: Vec<Value>,
    made: usize,
}

impl Direct {
    fn life(&mut self) -> Result<[Duration; 2]> {
        self.made += 1;
        let pod = NetworkNamespace::new()?;
        let netns = format!("/proc/{}/ns/net", pod.pid());
        let container = format!("direct{}", self.made);
        let start = Instant::now();
        let mut result = None;
        for plugin in &self.plugins {
            result = Some(self.call("ADD", plugin, &container, &netns, result.as_ref())?);
        }
        let add = start.elapsed();
        let start = Instant::now();
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin, &container, &netns, result.as_ref())?;
        }
        Ok([add, start.elapsed()])
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        container: &str,
        netns: &str,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "pods".into();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let program = Path::new(PLUGINS).join(plugin["type"].as_str().unwrap_or_default());
        let output = self.host.run(|| {
            let mut child = Command::new(&program)
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", PLUGINS)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            child.stdin.take().context("no stdin")?.write_all(config.to_string().as_bytes())?;
            Ok(child.wait_with_output()?)
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{} {verb}: {text}", program.display());
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

/// Lives in turn, and a table of them.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    let loopback = node(&["default = \"loopback\"".to_owned()])?;
    let built_in = node(&["default = \"bridge\"".to_owned()])?;
    let mut subjects = vec![Subject::new(&loopback)?, Subject::new(&built_in)?];
    let mut names = vec!["loopback only", "built-in bridge"];
    let with_plugins = Path::new(PLUGINS).join("bridge").is_file();
    let (mut cni, mut direct) = (None, None);
    let ipam = tempfile::tempdir()?;
    if with_plugins {
        let node = node(&[format!("cni_bin_dirs = [{PLUGINS:?}]")])?;
        let list =
            json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins(&node.path().join("ipam")) });
        std::fs::write(node.cni().join("10-pods.conflist"), list.to_string())?;
        subjects.push(Subject::new(&node)?);
        names.push("CNI: bridge, host-local, portmap");
        cni = Some(node);
        direct = Some(Direct { host: NetworkNamespace::new()?, plugins: plugins(ipam.path()), made: 0 });
    } else {
        println!("\n{PLUGINS} has no plugins: their part is left out");
    }
    let mut samples: Vec<[Samples; 2]> = names.iter().map(|_| Default::default()).collect();
    let mut direct_samples: [Samples; 2] = Default::default();
    for round in 0..=rounds {
        let add = |samples: &mut [Samples; 2], times: [Duration; 2]| {
            // The first makes bridges and rules.
            if round > 0 {
                samples.iter_mut().zip(times).for_each(|(samples, time)| samples.add(time));
            }
        };
        for (subject, samples) in subjects.iter_mut().zip(&mut samples) {
            add(samples, subject.life()?);
        }
        if let Some(direct) = &mut direct {
            add(&mut direct_samples, direct.life()?);
        }
    }
    println!("\npods with a network of their own, {rounds} rounds in turn, ms (median/p95)");
    let row = |name: &str, samples: &[Samples; 2]| {
        vec![name.to_owned(), report::cell(&samples[0]), report::cell(&samples[1])]
    };
    let mut rows: Vec<_> = names.iter().zip(&samples).map(|(name, samples)| row(name, samples)).collect();
    if direct.is_some() {
        rows.push(row("the same plugins called directly", &direct_samples));
    }
    report::table(&["", "RunPodSandbox / ADD", "StopPodSandbox / DEL"], &rows);
    let more = samples[1][0].median() - samples[0][0].median();
    let verdict = |fine: bool| if fine { "within" } else { "NOT within" };
    println!("{} {BUILT_IN_MS} ms for the built-in network ({more:.2} ms)", verdict(more <= BUILT_IN_MS));
    if direct.is_some() {
        let ratio = samples[2][0].median() / direct_samples[0].median();
        println!("{} {CNI_FACTOR} times the chain alone with CNI ({ratio:.2})", verdict(ratio <= CNI_FACTOR));
        let tenth = more / direct_samples[0].median();
        println!("the built-in network takes {tenth:.2} of the plugins' time");
    }
    drop(cni);
    Ok(())
}
