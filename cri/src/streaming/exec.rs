//! A command in a container, with a client's streams.
//!
//! ```text
//! client <--> daemon <--pipes, or the master of a terminal--> process      (the monitor only clones it, and tells of its exit)
//! ```
//!
//! A client that is gone is nothing to its process: as with containerd, a pipe at its stdin is closed, what it writes is dropped,
//! and it goes on. It ends with its container, by itself, or, where it has a terminal, when the daemon ends, which hangs up.

use std::sync::Arc;

use runtime::monitor::protocol::{ExecRequest, Op, Reply};
use tokio::sync::{oneshot, watch};
use tracing::debug_span;

use super::client::Client;
use super::sizes::Size;
use super::status::Outcome;
use super::stdio::{self, Sink, Source, Terminal, hand_on, ours, type_in};
use super::tickets::Streams;
use crate::container::{client_error, find, running_monitor};
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::exec::{KillOnDrop, Target, process_json};
use crate::ids;
use crate::seccomp::memfd;

/// A process that runs, and the daemon's ends of its stdio.
struct Running {
    exit: oneshot::Receiver<i32>,
    stdin: Option<Sink>,
    stdout: Option<Source>,
    stderr: Option<Source>,
    terminal: Option<Terminal>,
}

/// Runs the command, carries what it reads and writes, and tells the client how it ended.
pub(super) async fn run(
    daemon: &Arc<Daemon>,
    container: &str,
    command: Vec<String>,
    streams: Streams,
    mut client: Client,
) {
    let running = start(daemon, container, command, streams).await;
    client.ready().await;
    let Client { stdin, stdout, stderr, sizes, connection } = client;
    let outcome = match running {
        Err(error) => {
            let sentence = error.sentence();
            tracing::info!(container, error = sentence, "a command cannot be run");
            Outcome::Failed(format!("error executing command in container: {sentence}"))
        }
        Ok(running) => {
            let (told, exited) = watch::channel(false);
            let mut over = exited.clone();
            let exit = async {
                let code = running.exit.await;
                told.send_replace(true);
                code
            };
            // These have no end of their own that is certain to come.
            let while_it_runs = async {
                tokio::select! {
                    ((), ()) = async { tokio::join!(type_in(stdin, running.stdin), resize(running.terminal, sizes)) } => {}
                    _ = over.wait_for(|exited| *exited) => {}
                }
            };
            let (code, (), (), ()) = tokio::join!(
                exit,
                hand_on(running.stdout, stdout, exited.clone()),
                hand_on(running.stderr, stderr, exited.clone()),
                while_it_runs,
            );
            match code {
                Ok(0) => Outcome::Success,
                Ok(code) => Outcome::ExitCode(code),
                Err(_) => Outcome::Failed("the pod's monitor is gone, and its processes with it".to_owned()),
            }
        }
    };
    connection.finish(&outcome).await;
}

async fn start(
    daemon: &Arc<Daemon>,
    container: &str,
    command: Vec<String>,
    streams: Streams,
) -> Result<Running, Error> {
    let found = find(daemon, container)?;
    let monitor = running_monitor(&found)?;
    let record = &found.container.record;
    let failed = |source: std::io::Error| Error::internal(format!("exec in container {}", record.id), source);

    let config = daemon.directories(&record.sandbox).container(&record.id).join(imageless::bundle::CONFIG);
    let process = blocking(debug_span!("exec_process"), move || process_json(&config, command, streams.tty));
    let mut fds = vec![memfd(&process.await?).map_err(failed)?];
    // A terminal is all three, and comes with the answer.
    let piped = |wanted: bool| wanted && !streams.tty;
    let stdin = ours(piped(streams.stdin), stdio::input_pipe, &mut fds).map_err(failed)?;
    let stdout = ours(piped(streams.stdout), stdio::output_pipe, &mut fds).map_err(failed)?;
    let stderr = ours(piped(streams.stderr), stdio::output_pipe, &mut fds).map_err(failed)?;

    let exec = ids::random()?;
    let exit = monitor.exec_exit(&exec);
    let target = Target { pod: found.pod.clone(), container: record.id.clone(), exec: exec.clone() };
    let op = Op::Exec(ExecRequest {
        container: record.id.clone(),
        exec,
        stdio: [stdin.is_some(), stdout.is_some(), stderr.is_some()],
        own_cgroup: false,
        limit_ms: None,
    });
    let guard = KillOnDrop::new(target);
    let master = match monitor.request_fds(op, fds).await {
        Ok((Reply::Started { .. }, mut fds)) => fds.pop(),
        Ok((other, _)) => {
            return Err(Error::internal(format!("exec in container {}", record.id), format!("{other:?}")));
        }
        Err(error) => {
            guard.failed(&error);
            return Err(client_error(&found, error));
        }
    };
    guard.disarm();
    let Some(master) = master else { return Ok(Running { exit, stdin, stdout, stderr, terminal: None }) };
    let (output, terminal) = Terminal::new(master).map_err(failed)?;
    Ok(Running {
        exit,
        stdin: streams.stdin.then(|| Sink::Terminal(terminal.clone())),
        // Read in any case: a terminal that nobody reads stops its process.
        stdout: Some(output),
        stderr: None,
        terminal: Some(terminal),
    })
}

/// Keeps the terminal at the size of the client's.
async fn resize(terminal: Option<Terminal>, mut sizes: watch::Receiver<Option<Size>>) {
    let Some(terminal) = terminal else { return };
    loop {
        let size = *sizes.borrow_and_update();
        if let Some(Err(error)) = size.map(|size| terminal.resize(size)) {
            tracing::debug!(%error, "resize a terminal");
        }
        if sizes.changed().await.is_err() {
            return;
        }
    }
}
