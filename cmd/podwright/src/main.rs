//! `podwright`: run and look at pods from a terminal.
//!
//! Every verb speaks the public CRI to `podwrightd`, through k8s-cri, a binding that shares no code with the
//! daemon. A verb is one file; this one holds the command line and turns an error into one line.
#![forbid(unsafe_code)]

mod attach;
mod client;
mod doctor;
mod exec;
mod fix;
mod inspect;
mod list;
mod logs;
mod names;
mod output;
mod port_forward;
mod remove;
mod rootfs;
mod run;
mod session;
mod terminal;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};

/// Runs pods from root filesystem directories, through the podwright daemon.
#[derive(Parser)]
#[command(name = "podwright", version, max_term_width = 100)]
struct Arguments {
    /// The daemon's socket.
    #[arg(long, global = true, env = "PODWRIGHT_SOCKET", default_value = "/run/podwright/podwright.sock")]
    socket: PathBuf,

    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Subcommand)]
enum Verb {
    /// Run a command in a new pod and follow its output.
    Run(Box<run::RunArguments>),
    /// List containers.
    Ps(list::PsArguments),
    /// List pods.
    Pods(list::PodsArguments),
    /// Print a container's log.
    Logs(logs::LogsArguments),
    /// Run one more command in a running container.
    Exec(exec::ExecArguments),
    /// Show a running container's output and type into it; ctrl-p ctrl-q leaves its terminal.
    Attach(attach::AttachArguments),
    /// Listen on local ports and forward them into a pod.
    PortForward(port_forward::PortForwardArguments),
    /// Stop pods or containers.
    Stop(remove::StopArguments),
    /// Remove pods or containers.
    Rm(remove::RmArguments),
    /// Print everything the daemon knows of a pod, container or rootfs.
    Inspect(inspect::InspectArguments),
    /// List, show and name root filesystem directories.
    #[command(subcommand)]
    Rootfs(rootfs::RootfsVerb),
    /// Say what this host lacks to run pods, and how to mend it.
    Doctor {
        /// Have the daemon mend what it can: plugins forget attachments that are no pod's, and check those that are.
        #[arg(long)]
        fix: bool,
    },
    /// Print the versions of this program and of the daemon.
    Version {
        /// Wait up to so many seconds for the daemon to answer.
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
    },
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// How a verb ended: the exit code of this program.
type Outcome = anyhow::Result<ExitCode>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match Box::pin(dispatch(arguments)).await {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&format!("podwright: {}", client::one_line(&error)));
            // As docker and podman: 125 tells that this program failed, not the command it was to run.
            ExitCode::from(125)
        }
    }
}

/// Runs one verb.
async fn dispatch(arguments: Arguments) -> Outcome {
    let Arguments { socket, json, verb } = arguments;
    match verb {
        Verb::Doctor { fix } => doctor::doctor(&socket, fix, json).await,
        Verb::Version { wait } => version(&socket, json, wait).await,
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "podwright", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        verb => {
            let client = client::Client::connect(&socket).await?;
            match verb {
                Verb::Run(arguments) => Box::pin(run::run(client, *arguments)).await,
                Verb::Ps(arguments) => list::ps(client, arguments, json).await,
                Verb::Pods(arguments) => list::pods(client, arguments, json).await,
                Verb::Logs(arguments) => logs::logs(client, arguments).await,
                Verb::Exec(arguments) => exec::exec(client, arguments).await,
                Verb::Attach(arguments) => attach::attach(client, arguments).await,
                Verb::PortForward(arguments) => port_forward::port_forward(client, arguments).await,
                Verb::Stop(arguments) => remove::stop(client, arguments).await,
                Verb::Rm(arguments) => remove::rm(client, arguments).await,
                Verb::Inspect(arguments) => inspect::inspect(client, arguments).await,
                Verb::Rootfs(verb) => rootfs::rootfs(client, verb, json).await,
                Verb::Doctor { .. } | Verb::Version { .. } | Verb::Completion { .. } => Ok(ExitCode::SUCCESS),
            }
        }
    }
}

/// Prints this program's version and, where it answers, the daemon's.
async fn version(socket: &std::path::Path, json: bool, wait_s: Option<u64>) -> Outcome {
    if let Some(seconds) = wait_s {
        tokio::time::timeout(Duration::from_secs(seconds), until_it_answers(socket)).await.with_context(
            || format!("podwrightd did not answer at {} within {seconds} s", socket.display()),
        )??;
    }
    let daemon = match client::Client::connect(socket).await {
        Ok(mut client) => client.version().await.ok(),
        Err(_) => None,
    };
    if json {
        let daemon = daemon.map(|v| {
            serde_json::json!({"name": v.runtime_name, "version": v.runtime_version, "api": v.runtime_api_version})
        });
        return output::json(&serde_json::json!({"client": env!("CARGO_PKG_VERSION"), "daemon": daemon}));
    }
    output::line(&format!("podwright   {}", env!("CARGO_PKG_VERSION")));
    match daemon {
        Some(v) => output::line(&format!(
            "{}  {} (CRI {})",
            v.runtime_name, v.runtime_version, v.runtime_api_version
        )),
        None => output::line(&format!("daemon      no answer at {}", socket.display())),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns once the daemon answers, woken by changes in its socket's directory.
async fn until_it_answers(socket: &std::path::Path) -> anyhow::Result<()> {
    let directory = socket.parent().context("a socket path has a directory")?;
    let mut watch = watch::Watch::directory(directory)?;
    loop {
        if let Ok(mut client) = client::Client::connect(socket).await
            && client.version().await.is_ok()
        {
            return Ok(());
        }
        // Between bind(2), which is seen, and listen(2), which is not, lies a moment: hence the limit.
        if let Ok(changed) = tokio::time::timeout(Duration::from_millis(100), watch.changed()).await {
            changed?;
        }
    }
}
