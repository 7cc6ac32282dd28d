//! `podwright run`: a pod and its only container in one.
//!
//! ```text
//! pull (resolve) -> run pod -> create -> subscribe -> start -> follow the log -> exit code -> --rm: remove
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use k8s_cri::v1;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;
use crate::client::Client;
use crate::exec::exit_code;
use crate::logs::{Exit, Log};
use crate::session::{self, Ended, Wanted};
use crate::{attach, output, remove};

/// The period of a CPU quota in microseconds: the kernel's default.
const CPU_PERIOD_US: i64 = 100_000;

/// Arguments of `run`.
#[derive(Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct RunArguments {
    /// Remove the pod and its log when the command has ended.
    #[arg(long)]
    rm: bool,
    /// Print the container's id and leave it running.
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Pass stdin on to it.
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal; ctrl-p ctrl-q leaves it running.
    #[arg(short, long)]
    tty: bool,
    /// The pod's and the container's name.
    #[arg(long)]
    name: Option<String>,
    /// The pod's namespace.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// An environment variable, KEY=VALUE; KEY alone takes this program's own.
    #[arg(short, long)]
    env: Vec<String>,
    /// A host path to mount: HOST:CONTAINER[:ro|rw|rslave|rshared,…].
    #[arg(short, long)]
    volume: Vec<String>,
    /// Memory limit in bytes, or with k, m or g.
    #[arg(short, long)]
    memory: Option<String>,
    /// CPU limit in CPUs, such as 0.5.
    #[arg(long)]
    cpus: Option<f64>,
    /// Most processes.
    #[arg(long)]
    pids: Option<i64>,
    /// User: UID[:GID] or a name of the rootfs.
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory in the container.
    #[arg(short, long)]
    workdir: Option<String>,
    /// The container's network.
    #[arg(long, value_enum, default_value_t = Network::Pod)]
    network: Network,
    /// The container's hostname.
    #[arg(long)]
    hostname: Option<String>,
    /// Give it every capability and device.
    #[arg(long)]
    privileged: bool,
    /// Mount its root read-only.
    #[arg(long)]
    read_only: bool,
    /// Run the rootfs's own entry point with another program.
    #[arg(long)]
    entrypoint: Option<String>,
    /// Where logs are written, a directory a pod.
    #[arg(long, env = "PODWRIGHT_LOG_DIR", default_value = "/var/log/podwright")]
    log_dir: PathBuf,
    /// The root filesystem: a reference, or `rootfs.local/PATH` below a root.
    rootfs: String,
    /// The command and its arguments; none: the rootfs's own.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Where the container's network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// A network namespace of the pod's own.
    Pod,
    /// The host's.
    Host,
}

/// Runs a command and exits with its code.
pub(crate) async fn run(mut client: Client, arguments: RunArguments) -> Outcome {
    let image = v1::ImageSpec { image: arguments.rootfs.clone(), ..Default::default() };
    let pull = v1::PullImageRequest { image: Some(image), ..Default::default() };
    let image_ref = client.image.pull_image(pull).await?.into_inner().image_ref;

    let pod_config = pod_config(&arguments)?;
    let container_config = container_config(&arguments, &image_ref)?;
    let log_directory = PathBuf::from(&pod_config.log_directory);
    std::fs::create_dir_all(&log_directory)
        .with_context(|| format!("log directory {}", log_directory.display()))?;

    let request = v1::RunPodSandboxRequest { config: Some(pod_config.clone()), ..Default::default() };
    let pod = match client.runtime.run_pod_sandbox(request).await {
        Ok(response) => response.into_inner().pod_sandbox_id,
        Err(status) => {
            remove_log(&log_directory);
            return Err(status.into());
        }
    };
    let result = Box::pin(run_container(&mut client, &arguments, &pod, pod_config, container_config)).await;
    // A pod that could not run its command is of no use to anybody; one that did is kept unless --rm says otherwise.
    let kept = match &result {
        Ok(Run::GoesOn) => true,
        Ok(Run::Ended(_)) => !arguments.rm,
        Ok(Run::NotStarted(_)) | Err(_) => false,
    };
    if !kept {
        remove::remove_pod(&mut client, &pod).await.with_context(|| format!("remove pod {pod}"))?;
        remove_log(&log_directory);
    }
    Ok(match result? {
        Run::GoesOn => ExitCode::SUCCESS,
        Run::Ended(code) | Run::NotStarted(code) => code,
    })
}

/// What became of the command.
enum Run {
    /// It was left running, as was wished.
    GoesOn,
    /// It ended with this.
    Ended(ExitCode),
    /// There is no such program, or it cannot be executed; the reason is printed, and this is a shell's code for it.
    NotStarted(ExitCode),
}

/// Creates and starts the container, and sees it through to its exit code.
async fn run_container(
    client: &mut Client,
    arguments: &RunArguments,
    pod: &str,
    pod_config: v1::PodSandboxConfig,
    config: v1::ContainerConfig,
) -> Result<Run> {
    let log_path = Path::new(&pod_config.log_directory).join(&config.log_path);
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod_config),
    };
    let container = client.runtime.create_container(request).await?.into_inner().container_id;
    // Subscribed before it starts: its end cannot come unseen.
    let exit = Exit::subscribe(client, &container).await?;
    let wanted = Wanted { stdin: arguments.interactive, tty: arguments.tty };
    let mut attached = None;
    if wanted.stdin || wanted.tty {
        // Before it starts, so that nothing it writes is missed.
        let url = attach::url(client, &container, wanted).await?;
        let mut socket = session::connect(&url, "v5.channel.k8s.io").await?;
        session::ready(&mut socket).await?;
        attached = Some(socket);
    }
    let start = v1::StartContainerRequest { container_id: container.clone() };
    if let Err(status) = client.runtime.start_container(start).await {
        return not_started(client, &container, status).await;
    }
    if arguments.detach {
        output::line(&container);
        return Ok(Run::GoesOn);
    }
    if let Some(socket) = attached {
        match session::carry(socket, wanted).await? {
            Ended::Detached => {
                output::line(&container);
                return Ok(Run::GoesOn);
            }
            Ended::Signalled(_) => remove::stop_pod(client, pod, 10).await?,
            Ended::Code(_) => {}
        }
        exit.wait().await?;
        return code_of(client, arguments, &container).await.map(Run::Ended);
    }
    let mut log = Log::open(&log_path, false)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = log.follow(exit.wait()) => ended?,
        _ = interrupt.recv() => stop_and_print(client, pod, &mut log).await?,
        _ = terminate.recv() => stop_and_print(client, pod, &mut log).await?,
    }
    code_of(client, arguments, &container).await.map(Run::Ended)
}

/// A container whose start was refused with `refusal`: with the exit code that its end has, if that tells more than that
/// podwright failed.
async fn not_started(client: &mut Client, container: &str, refusal: tonic::Status) -> Result<Run> {
    let status = client.container_status(container, false).await?.status.unwrap_or_default();
    if !(126..=127).contains(&status.exit_code) {
        return Err(refusal.into());
    }
    output::error(&format!("podwright: {}", crate::client::one_line(&refusal.into())));
    Ok(Run::NotStarted(exit_code(status.exit_code)))
}

/// The exit code of a container that has ended.
async fn code_of(client: &mut Client, arguments: &RunArguments, container: &str) -> Outcome {
    let status = client.container_status(container, false).await?.status.unwrap_or_default();
    if status.reason == "OOMKilled" {
        output::error(&format!("podwright: {} was killed for going over its memory limit", arguments.rootfs));
    }
    Ok(exit_code(status.exit_code))
}

/// Stops the pod and prints what its container still had to say.
async fn stop_and_print(client: &mut Client, pod: &str, log: &mut Log) -> Result<()> {
    remove::stop_pod(client, pod, 10).await?;
    log.print_tail(None)
}

fn remove_log(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        output::error(&format!("podwright: log directory {}: {error}", directory.display()));
    }
}

/// The pod of a `run`.
fn pod_config(arguments: &RunArguments) -> Result<v1::PodSandboxConfig> {
    let uid = uid()?;
    let name = arguments.name.clone().unwrap_or_else(|| {
        let rootfs = arguments.rootfs.rsplit('/').next().unwrap_or_default();
        let rootfs = rootfs.split([':', '@']).next().unwrap_or_default();
        format!("{rootfs}-{}", &uid[..6])
    });
    Ok(v1::PodSandboxConfig {
        hostname: match (&arguments.hostname, arguments.network) {
            (Some(hostname), _) => hostname.clone(),
            (None, Network::Pod) => name.clone(),
            (None, Network::Host) => String::new(),
        },
        log_directory: arguments.log_dir.join(format!("{name}_{uid}")).to_string_lossy().into_owned(),
        metadata: Some(v1::PodSandboxMetadata {
            name,
            uid,
            namespace: arguments.namespace.clone(),
            attempt: 0,
        }),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(arguments)),
                privileged: arguments.privileged,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The namespaces of the pod and, the same, of its container.
fn namespaces(arguments: &RunArguments) -> v1::NamespaceOption {
    let network = match arguments.network {
        Network::Pod => v1::NamespaceMode::Pod,
        Network::Host => v1::NamespaceMode::Node,
    };
    v1::NamespaceOption {
        network: network as i32,
        pid: v1::NamespaceMode::Container as i32,
        ipc: v1::NamespaceMode::Pod as i32,
        ..Default::default()
    }
}

/// The container of a `run`. Its seccomp profile is the runtime's default unless it is privileged.
fn container_config(arguments: &RunArguments, image_ref: &str) -> Result<v1::ContainerConfig> {
    let name = arguments.name.clone().unwrap_or_else(|| "main".to_owned());
    let (run_as_user, run_as_group, run_as_username) = user(arguments.user.as_deref())?;
    let profile = v1::security_profile::ProfileType::RuntimeDefault;
    let security = v1::LinuxContainerSecurityContext {
        privileged: arguments.privileged,
        readonly_rootfs: arguments.read_only,
        run_as_user,
        run_as_group,
        run_as_username,
        namespace_options: Some(namespaces(arguments)),
        seccomp: Some(v1::SecurityProfile { profile_type: profile as i32, ..Default::default() }),
        ..Default::default()
    };
    let mut resources = v1::LinuxContainerResources::default();
    if let Some(memory) = &arguments.memory {
        resources.memory_limit_in_bytes = bytes(memory)?;
    }
    if let Some(cpus) = arguments.cpus {
        resources.cpu_period = CPU_PERIOD_US;
        resources.cpu_quota = quota_us(cpus)?;
    }
    if let Some(pids) = arguments.pids {
        resources.unified = HashMap::from([("pids.max".to_owned(), pids.to_string())]);
    }
    Ok(v1::ContainerConfig {
        log_path: format!("{name}.log"),
        metadata: Some(v1::ContainerMetadata { name, attempt: 0 }),
        image: Some(v1::ImageSpec {
            image: image_ref.to_owned(),
            user_specified_image: arguments.rootfs.clone(),
            ..Default::default()
        }),
        command: arguments.entrypoint.iter().cloned().collect(),
        args: arguments.command.clone(),
        stdin: arguments.interactive,
        stdin_once: arguments.interactive,
        tty: arguments.tty,
        working_dir: arguments.workdir.clone().unwrap_or_default(),
        envs: arguments.env.iter().map(|e| environment(e)).collect::<Result<_>>()?,
        mounts: arguments.volume.iter().map(|v| volume(v)).collect::<Result<_>>()?,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security),
        }),
        ..Default::default()
    })
}

/// A pod uid, unique on this machine: the clock and this process.
fn uid() -> Result<String> {
    let ns = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_nanos();
    // The quickest digits first, so that short names differ.
    let digits: String = format!("{ns:016x}").chars().rev().collect();
    Ok(format!("{digits}-{:x}", std::process::id()))
}

/// `UID`, `UID:GID` or a name.
type User = (Option<v1::Int64Value>, Option<v1::Int64Value>, String);

fn user(text: Option<&str>) -> Result<User> {
    let Some(text) = text else { return Ok((None, None, String::new())) };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let group = match group {
        Some(group) => Some(v1::Int64Value {
            value: group.parse().with_context(|| format!("--user {text}: the group must be a number"))?,
        }),
        None => None,
    };
    Ok(match user.parse() {
        Ok(value) => (Some(v1::Int64Value { value }), group, String::new()),
        Err(_) => (None, group, user.to_owned()),
    })
}

/// A size such as `64m` in bytes.
fn bytes(text: &str) -> Result<i64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match digits.strip_suffix(['k', 'm', 'g', 't']) {
        Some(rest) if digits.ends_with('k') => (rest, 10),
        Some(rest) if digits.ends_with('m') => (rest, 20),
        Some(rest) if digits.ends_with('g') => (rest, 30),
        Some(rest) => (rest, 40),
        None => (digits, 0),
    };
    let number: i64 = digits.parse().with_context(|| format!("{text:?} is not a size such as 64m"))?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => bail!("{text:?} is not a size such as 64m"),
    }
}

/// CPUs as microseconds a period.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "checked to be in range")]
fn quota_us(cpus: f64) -> Result<i64> {
    // The kernel's least quota is 1 ms.
    if !(0.01..=100_000.0).contains(&cpus) {
        bail!("--cpus {cpus}: must be between 0.01 and 100000");
    }
    Ok((cpus * CPU_PERIOD_US as f64) as i64)
}

/// `KEY=VALUE`, or `KEY` of this program's own environment.
fn environment(text: &str) -> Result<v1::KeyValue> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => (text, std::env::var(text).with_context(|| format!("--env {text}: not set here"))?),
    };
    if key.is_empty() {
        bail!("--env {text:?}: the name is empty");
    }
    Ok(v1::KeyValue { key: key.to_owned(), value })
}

/// `HOST:CONTAINER[:OPTION,…]`.
fn volume(text: &str) -> Result<v1::Mount> {
    let mut parts = text.splitn(3, ':');
    let (Some(host), Some(container)) = (parts.next(), parts.next()) else {
        bail!("--volume {text:?}: want HOST:CONTAINER[:OPTIONS]");
    };
    if !host.starts_with('/') || !container.starts_with('/') {
        bail!("--volume {text:?}: both paths must be absolute");
    }
    let mut mount =
        v1::Mount { host_path: host.to_owned(), container_path: container.to_owned(), ..Default::default() };
    for option in parts.next().into_iter().flat_map(|o| o.split(',')) {
        match option {
            "ro" => mount.readonly = true,
            "rw" => mount.readonly = false,
            "rprivate" | "private" => mount.propagation = v1::MountPropagation::PropagationPrivate as i32,
            "rslave" | "slave" => mount.propagation = v1::MountPropagation::PropagationHostToContainer as i32,
            "rshared" | "shared" => mount.propagation = v1::MountPropagation::PropagationBidirectional as i32,
            other => bail!("--volume {text:?}: unknown option {other:?}"),
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(bytes("1024").unwrap(), 1024);
        assert_eq!(bytes("64m").unwrap(), 64 << 20);
        assert_eq!(bytes("64Mi").unwrap(), 64 << 20);
        assert_eq!(bytes("1GB").unwrap(), 1 << 30);
        for bad in ["", "m", "-1", "0", "9999999999999g", "1.5g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_become_a_quota() {
        assert_eq!(quota_us(0.5).unwrap(), 50_000);
        assert!(quota_us(0.0).is_err());
        assert!(quota_us(f64::NAN).is_err());
    }

    #[test]
    fn volumes_are_read() {
        let mount = volume("/a:/b:ro,rslave").unwrap();
        assert!(mount.readonly);
        assert_eq!(mount.propagation, v1::MountPropagation::PropagationHostToContainer as i32);
        for bad in ["/a", "a:/b", "/a:b", "/a:/b:what"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_read() {
        assert_eq!(user(Some("0:5")).unwrap().1.unwrap().value, 5);
        assert_eq!(user(Some("nobody")).unwrap().2, "nobody");
        assert!(user(Some("a:b")).is_err());
    }
}
