//! podwrightd: the CRI server. Arguments, logging, configuration; the rest is [`cri::serve`].
#![forbid(unsafe_code)]

mod logging;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use cri::config::{self, Config};
use cri::serve::{Options, Stage};
use sd_notify::NotifyState;

/// The most threads that answer calls. They wait for monitors and files nearly all the time.
const MAX_WORKERS: usize = 4;

/// The most threads that block on files at once; each costs a stack and, under glibc, perhaps an arena.
const MAX_BLOCKING: usize = 16;

/// Runs Kubernetes pods from root filesystem directories: a CRI server for kubelet and crictl.
#[derive(Debug, Parser)]
#[command(name = "podwrightd", version)]
struct Arguments {
    /// The configuration file; drop-ins are read from <FILE>.d/*.toml. May be absent where it is the default one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read and check the configuration, say what is wrong with it, and exit.
    #[arg(long)]
    check: bool,
    /// Log level or filter, such as debug or info,cri=trace; instead of the configuration's.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be up yet, and a person reads this.
            let _ = writeln!(std::io::stderr(), "podwrightd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let file = arguments.config.clone().unwrap_or_else(|| config::DEFAULT_FILE.into());
    let required = arguments.config.is_some();
    let mut config = Config::load(&file, required).context("configuration")?;
    if let Some(level) = &arguments.log_level {
        config.log.level.clone_from(level);
    }
    logging::check(&config.log.level).map_err(anyhow::Error::msg).context("log.level")?;
    if arguments.check {
        let _ = writeln!(std::io::stdout(), "{}: ok", file.display());
        return Ok(());
    }
    let set_level = logging::start(&config.log).map_err(anyhow::Error::msg)?;
    let fixed_level = arguments.log_level.is_some();
    let options = Options {
        config_file: file,
        config_required: required,
        inherited: inherited_socket()?,
        // A level of the command line stays through reloads.
        set_log_level: Box::new(move |level| if fixed_level { Ok(()) } else { set_level(level) }),
        notify: Box::new(notify),
    };

    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let served = runtime.block_on(cri::serve::serve(config, options));
    // What still blocks on files after the drain is not waited for.
    runtime.shutdown_background();
    served.map_err(|error| anyhow::anyhow!("{}", error.sentence()))
}

/// The listening socket of a systemd socket unit, if there is one.
fn inherited_socket() -> anyhow::Result<Option<std::os::unix::net::UnixListener>> {
    let mut inherited = listenfd::ListenFd::from_env();
    if inherited.len() == 0 {
        return Ok(None);
    }
    inherited.take_unix_listener(0).context("the inherited socket is no unix stream socket")
}

/// Tells systemd; without it, nobody.
fn notify(stage: Stage) {
    let told = match stage {
        Stage::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Stage::Reloading => match NotifyState::monotonic_usec_now() {
            Ok(now) => sd_notify::notify(&[NotifyState::Reloading, now]),
            Err(error) => Err(error),
        },
        Stage::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
