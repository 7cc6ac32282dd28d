//! Pods and containers as kubelet would describe them, in few words.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_cri::v1;
use prost::Message as _;
use tonic::Status;

use crate::{Client, Deadline, ExecOutput, Node, Wire, watch};

/// The text between a CRI log line's fields: `time stream tag text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nine digits of a second.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `F` for a full line, `P` for a part of one.
    pub tag: String,
    /// The text as the container wrote it.
    pub text: String,
}

/// Parses a whole log file; a last line without a newline is left out.
#[must_use]
pub fn parse_log(bytes: &[u8]) -> Vec<LogLine> {
    let text = String::from_utf8_lossy(bytes);
    let Some(end) = text.rfind('\n') else { return Vec::new() };
    text[..end]
        .split('\n')
        .map(|line| {
            let mut fields = line.splitn(4, ' ').map(str::to_owned);
            let mut field = || fields.next().unwrap_or_default();
            LogLine { time: field(), stream: field(), tag: field(), text: field() }
        })
        .collect()
}

/// A sandbox to be made. The defaults are those of a pod with a network namespace of its own and no
/// cgroup parent.
#[derive(Clone, Debug)]
pub struct PodBuilder {
    /// The configuration as it will be sent.
    pub config: v1::PodSandboxConfig,
    /// The RuntimeClass handler; empty is the default one.
    pub handler: String,
}

impl PodBuilder {
    /// A pod named `name` on `node`, in the host's network.
    pub fn new(node: &Node, name: &str) -> Self {
        let uid = format!("{}-{name}", node.unique());
        let logs = node.path().join("log").join(&uid);
        let namespaces = v1::NamespaceOption {
            network: v1::NamespaceMode::Node as i32,
            pid: v1::NamespaceMode::Container as i32,
            ipc: v1::NamespaceMode::Pod as i32,
            ..Default::default()
        };
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid,
                namespace: "tests".to_owned(),
                attempt: 0,
            }),
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self { config, handler: String::new() }
    }

    /// Chooses a RuntimeClass handler.
    #[must_use]
    pub fn handler(mut self, name: &str) -> Self {
        name.clone_into(&mut self.handler);
        self
    }

    /// Changes the configuration in place.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the Linux part in place.
    #[must_use]
    pub fn linux(self, change: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default()))
    }

    /// Changes the namespace options in place.
    #[must_use]
    pub fn namespaces(self, change: impl FnOnce(&mut v1::NamespaceOption)) -> Self {
        self.linux(|linux| {
            let context = linux.security_context.get_or_insert_default();
            change(context.namespace_options.get_or_insert_default());
        })
    }

    /// Gives the pod a network namespace of its own.
    #[must_use]
    pub fn own_network(self) -> Self {
        self.namespaces(|options| options.network = v1::NamespaceMode::Pod as i32)
    }

    /// Lets all containers share one PID namespace.
    #[must_use]
    pub fn shared_pids(self) -> Self {
        self.namespaces(|options| options.pid = v1::NamespaceMode::Pod as i32)
    }

    /// Sets a label.
    #[must_use]
    pub fn label(self, name: &str, value: &str) -> Self {
        self.with(|config| drop(config.labels.insert(name.to_owned(), value.to_owned())))
    }

    /// Makes the sandbox.
    pub fn run(self, node: &Node) -> Result<Pod> {
        // kubelet makes the log directory before the call.
        fs::create_dir_all(&self.config.log_directory)?;
        let client = node.client()?;
        let request = v1::RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let id = client.run_pod_sandbox(request).context("RunPodSandbox")?.pod_sandbox_id;
        Ok(Pod {
            client,
            id,
            config: self.config,
            records: node.path().join("state/pods"),
            made: Cell::new(0),
        })
    }
}

/// A sandbox that was made.
#[derive(Debug)]
pub struct Pod {
    /// A connection of its own.
    pub client: Client,
    /// The sandbox's id.
    pub id: String,
    /// What it was made from.
    pub config: v1::PodSandboxConfig,
    records: PathBuf,
    made: Cell<u32>,
}

impl Pod {
    /// A container of this pod, running a shell script.
    pub fn sh(&self, script: &str) -> ContainerBuilder<'_> {
        self.command(&["/bin/sh", "-c", script])
    }

    /// A container of this pod, running a command.
    pub fn command(&self, command: &[&str]) -> ContainerBuilder<'_> {
        let number = self.made.get();
        self.made.set(number + 1);
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: format!("c{number}"), attempt: 0 }),
            image: Some(v1::ImageSpec { image: "busybox".to_owned(), ..Default::default() }),
            command: command.iter().map(ToString::to_string).collect(),
            log_path: format!("c{number}/0.log"),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: self
                        .config
                        .linux
                        .as_ref()
                        .and_then(|linux| linux.security_context.as_ref())
                        .and_then(|context| context.namespace_options.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        ContainerBuilder { pod: self, config }
    }

    /// Its status.
    pub fn status(&self) -> Result<v1::PodSandboxStatus, Status> {
        self.client.pod(&self.id)
    }

    /// Stops it.
    pub fn stop(&self) -> Result<(), Status> {
        self.client.stop_pod(&self.id)
    }

    /// Removes it.
    pub fn remove(&self) -> Result<(), Status> {
        self.client.remove_pod(&self.id)
    }

    /// The directory of a container's records, where `exit.json` appears.
    pub fn container_records(&self, container: &str) -> PathBuf {
        self.records.join(&self.id).join("containers").join(container)
    }
}

/// A container to be made.
#[derive(Clone, Debug)]
pub struct ContainerBuilder<'pod> {
    pod: &'pod Pod,
    /// The configuration as it will be sent.
    pub config: v1::ContainerConfig,
}

impl<'pod> ContainerBuilder<'pod> {
    /// Changes the configuration in place.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut v1::ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the security context in place.
    #[must_use]
    pub fn security(self, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Self {
        self.with(|config| {
            change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
        })
    }

    /// Changes the resources in place.
    #[must_use]
    pub fn resources(self, change: impl FnOnce(&mut v1::LinuxContainerResources)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default().resources.get_or_insert_default()))
    }

    /// Names the container.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.with(|config| {
            name.clone_into(&mut config.metadata.get_or_insert_default().name);
            config.log_path = format!("{name}/0.log");
        })
    }

    /// Chooses the image.
    #[must_use]
    pub fn image(self, reference: &str) -> Self {
        self.with(|config| reference.clone_into(&mut config.image.get_or_insert_default().image))
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.with(|config| config.envs.push(v1::KeyValue { key: name.to_owned(), value: value.to_owned() }))
    }

    /// Binds a host directory or file.
    #[must_use]
    pub fn mount(self, host: &Path, container: &str, readonly: bool) -> Self {
        self.with(|config| {
            config.mounts.push(v1::Mount {
                container_path: container.to_owned(),
                host_path: host.to_string_lossy().into_owned(),
                readonly,
                ..Default::default()
            });
        })
    }

    /// Runs as this user.
    #[must_use]
    pub fn user(self, uid: i64) -> Self {
        self.security(|context| context.run_as_user = Some(v1::Int64Value { value: uid }))
    }

    /// Sends `CreateContainer` with more fields for the configuration than the binding knows.
    pub fn create_with(self, newer: &Wire) -> Result<Container<'pod>, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let bytes = Wire(request.encode_to_vec()).message(2, newer).0;
        let answer = self.pod.client.raw("/runtime.v1.RuntimeService/CreateContainer", bytes)?;
        let answer = v1::CreateContainerResponse::decode(&answer.0[..])
            .map_err(|error| Status::internal(error.to_string()))?;
        let log = Path::new(&self.pod.config.log_directory).join(&self.config.log_path);
        Ok(Container { pod: self.pod, id: answer.container_id, log, config: self.config })
    }

    /// Sends `CreateContainer`.
    pub fn create(self) -> Result<Container<'pod>, Status> {
        let log = Path::new(&self.pod.config.log_directory).join(&self.config.log_path);
        if let Some(directory) = log.parent() {
            // kubelet makes it before the call.
            let _ = fs::create_dir_all(directory);
        }
        let id = self.pod.client.create(&self.pod.id, &self.config, &self.pod.config)?;
        Ok(Container { pod: self.pod, id, log, config: self.config })
    }

    /// Sends `CreateContainer` and `StartContainer`.
    pub fn start(self) -> Result<Container<'pod>> {
        let container = self.create().context("CreateContainer")?;
        container.start().context("StartContainer")?;
        Ok(container)
    }

    /// Runs the container to its end and returns its status and its log.
    pub fn run(self) -> Result<(v1::ContainerStatus, Vec<LogLine>)> {
        let container = self.start()?;
        let status = container.wait()?;
        Ok((status, container.log_lines()?))
    }

    /// Runs the container to its end and returns what it wrote to stdout; any exit code but 0 is an error.
    pub fn output(self) -> Result<String> {
        let (status, lines) = self.run()?;
        anyhow::ensure!(
            status.exit_code == 0,
            "exit code {} ({}): {lines:?}",
            status.exit_code,
            status.message
        );
        Ok(lines
            .iter()
            .filter(|line| line.stream == "stdout")
            .map(|line| if line.tag == "F" { format!("{}\n", line.text) } else { line.text.clone() })
            .collect())
    }
}

/// A container that was made.
#[derive(Debug)]
pub struct Container<'pod> {
    pod: &'pod Pod,
    /// The container's id.
    pub id: String,
    /// Its log file.
    pub log: PathBuf,
    /// What it was made from.
    pub config: v1::ContainerConfig,
}

impl Container<'_> {
    /// Sends `StartContainer`.
    pub fn start(&self) -> Result<(), Status> {
        self.pod.client.start(&self.id)
    }

    /// Its status.
    pub fn status(&self) -> Result<v1::ContainerStatus, Status> {
        self.pod.client.container(&self.id)
    }

    /// Its state.
    pub fn state(&self) -> Result<v1::ContainerState, Status> {
        Ok(self.status()?.state())
    }

    /// An attach to its pipes, stdin among them.
    #[must_use]
    pub fn attach_request(&self) -> v1::AttachRequest {
        v1::AttachRequest {
            container_id: self.id.clone(),
            stdin: true,
            tty: false,
            stdout: true,
            stderr: true,
        }
    }

    /// Runs a shell script in it by `ExecSync`.
    pub fn exec(&self, script: &str) -> Result<ExecOutput, Status> {
        self.pod.client.exec_in(&self.id, &["/bin/sh", "-c", script], 0)
    }

    /// Stops it.
    pub fn stop(&self, timeout_s: i64) -> Result<(), Status> {
        self.pod.client.stop(&self.id, timeout_s)
    }

    /// Removes it.
    pub fn remove(&self) -> Result<(), Status> {
        self.pod.client.remove(&self.id)
    }

    /// Blocks until it has exited.
    pub fn wait(&self) -> Result<v1::ContainerStatus> {
        self.pod.client.wait_for_exit(&self.id, Deadline::in_seconds(30))
    }

    /// Its log so far.
    pub fn log_lines(&self) -> Result<Vec<LogLine>> {
        Ok(parse_log(&fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?))
    }

    /// Blocks until its log holds a line with this text.
    pub fn wait_for_log_line(&self, text: &str) -> Result<LogLine> {
        watch::content(&self.log, Deadline::in_seconds(30), |bytes| {
            parse_log(bytes).into_iter().find(|line| line.text == text)
        })
    }

    /// Its first process on the host, out of the verbose status.
    pub fn pid(&self) -> Result<u32> {
        let info = self.pod.client.container_info(&self.id)?;
        let text = info.get("info").context("verbose info has the key `info`")?;
        let value: serde_json::Value = serde_json::from_str(text)?;
        let pid = value.get("pid").and_then(serde_json::Value::as_u64).context("info has a pid")?;
        Ok(u32::try_from(pid)?)
    }
}

/// Labels as a filter wants them.
#[must_use]
pub fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
