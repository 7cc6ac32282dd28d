//! ExecSync. Exec with streams is in [`crate::streaming`].
//!
//! ```text
//! daemon: pipe, pipe --(write ends, process)--> monitor: clones the process into the container
//! daemon: reads both pipes, capped; waits for ExecExited; then drains for a bounded time
//! ```
//!
//! The pipes go straight from the process to the daemon. A child that outlives the process and holds its pipes must not
//! hold up the answer, so what is read after the exit is bounded in time; a process that writes more than the cap is
//! read on and the rest dropped, so that it does not block.
//!
//! A connection to the monitor that breaks meanwhile costs nothing: the next one tells of the process. When the daemon dies the process
//! goes on, as with containerd; one that has a limit is then killed by the monitor, a little later than it would have been.

use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{Process, Spec};
use runtime::monitor::protocol::{ExecRequest, Op, Reply};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug_span;

use crate::check;
use crate::container::{client_error, find, running_monitor};
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::ids;
use crate::monitor_client::ClientError;
use crate::pod::PodHandle;
use crate::seccomp::memfd;
use crate::translate::DEFAULT_TERM;
use crate::v1::{ExecSyncRequest, ExecSyncResponse};

/// The most output that is kept of each stream, in bytes.
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// The longest message that kubelet takes, in bytes.
const CLIENT_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// What an answer has beside its output, in bytes, rounded up generously.
const MESSAGE_OVERHEAD_BYTES: usize = 1024;

/// How long output is read after the process has exited while something else holds its pipes.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How much later than the daemon the monitor ends a command that has a limit.
const LIMIT_GRACE: Duration = Duration::from_secs(5);

/// How long a connection to the monitor is waited for to kill a command over it.
const REACH_DEADLINE: Duration = Duration::from_secs(60);

/// One read, in bytes: a full pipe.
const READ_BYTES: usize = 64 * 1024;

/// ExecSync: runs a command in a container and answers its output.
#[tracing::instrument(name = "exec_sync", level = "debug", skip_all, fields(id = request.container_id))]
pub async fn sync(daemon: &Daemon, request: ExecSyncRequest) -> Result<ExecSyncResponse, Error> {
    let found = find(daemon, &request.container_id)?;
    let monitor = running_monitor(&found)?;
    check_command(&request.cmd)?;
    let limit = u64::try_from(request.timeout)
        .map_err(|_| Error::invalid("timeout", "must not be negative; 0 waits for ever"))?;
    let limit = (limit != 0).then(|| Duration::from_secs(limit));

    let record = &found.container.record;
    let config = daemon.directories(&record.sandbox).container(&record.id).join(imageless::bundle::CONFIG);
    let process =
        blocking(debug_span!("exec_process"), move || process_json(&config, request.cmd, false)).await?;
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("exec in container {}", record.id), source)
    };
    let process = memfd(&process).map_err(|error| failed(error.into()))?;
    let (stdout, stdout_end) = output_pipe().map_err(|error| failed(error.into()))?;
    let (stderr, stderr_end) = output_pipe().map_err(|error| failed(error.into()))?;

    let exec = ids::random()?;
    let exit = monitor.exec_exit(&exec);
    let op = Op::Exec(ExecRequest {
        container: record.id.clone(),
        exec: exec.clone(),
        stdio: [false, true, true],
        own_cgroup: limit.is_some(),
        limit_ms: limit
            .map(|limit| u64::try_from(limit.saturating_add(LIMIT_GRACE).as_millis()).unwrap_or(u64::MAX)),
    });
    let target = Target { pod: found.pod.clone(), container: record.id.clone(), exec };
    let guard = KillOnDrop::new(target.clone());
    match monitor.request(op, vec![process, stdout_end, stderr_end]).await {
        Ok(Reply::Started { .. }) => {}
        Ok(other) => return Err(failed(format!("the monitor answered {other:?}").into())),
        Err(error) => {
            guard.failed(&error);
            return Err(client_error(&found, error));
        }
    }

    // From the exit on, reading is bounded.
    let (exited, exited_seen) = watch::channel(false);
    let reading = async {
        tokio::join!(read_capped(stdout, exited_seen.clone()), read_capped(stderr, exited_seen.clone()))
    };
    let waiting = async {
        let code = wait_for_exit(&target, exit, limit).await;
        exited.send_replace(true);
        code
    };
    let ((stdout, stderr), code) = tokio::join!(reading, waiting);
    guard.disarm();
    let (stdout, stderr) = fit(stdout, stderr, daemon.config().server.max_message_bytes);
    match code {
        Ended::Exited(exit_code) => Ok(ExecSyncResponse { stdout, stderr, exit_code }),
        Ended::TimedOut(limit) => {
            Err(Error::DeadlineExceeded { what: format!("the command in container {}", record.id), limit })
        }
        Ended::MonitorGone => Err(Error::Unavailable {
            what: format!("the monitor of pod {}", found.pod_view.name()),
            source: None,
        }),
    }
}

/// Cuts both outputs so that they fit into one message: each has half of it, and what the other leaves of its half.
fn fit(mut stdout: Vec<u8>, mut stderr: Vec<u8>, max_message_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let room = max_message_bytes.min(CLIENT_MESSAGE_BYTES).saturating_sub(MESSAGE_OVERHEAD_BYTES);
    let half = room / 2;
    let stdout_room = if stderr.len() < half { room - stderr.len() } else { half };
    stdout.truncate(stdout_room);
    stderr.truncate(room - stdout.len());
    (stdout, stderr)
}

/// The exit code of what SIGKILL has ended.
const KILLED: i32 = 137;

/// How a command ended.
enum Ended {
    Exited(i32),
    TimedOut(Duration),
    MonitorGone,
}

/// Waits for the exit; past the limit, kills the whole subtree and waits for that.
async fn wait_for_exit(
    target: &Target,
    mut exit: tokio::sync::oneshot::Receiver<i32>,
    limit: Option<Duration>,
) -> Ended {
    let ended = |result: Result<i32, _>| result.map_or(Ended::MonitorGone, Ended::Exited);
    let Some(limit) = limit else { return ended(exit.await) };
    let since = Instant::now();
    match tokio::time::timeout(limit, &mut exit).await {
        // A daemon that did not get to look at its clock for long: the monitor has killed it.
        Ok(Ok(KILLED)) if since.elapsed() >= limit => return Ended::TimedOut(limit),
        Ok(result) => return ended(result),
        Err(_) => {}
    }
    target.kill().await;
    // It is reported as timed out in any case; its exit is waited for so that it is gone when that is read.
    if tokio::time::timeout(KILL_DEADLINE, exit).await.is_err() {
        tracing::warn!(exec = target.exec, "a killed command does not end");
    }
    Ended::TimedOut(limit)
}

/// An exec'd process, to be killed.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) pod: PodHandle,
    pub(crate) container: String,
    pub(crate) exec: String,
}

impl Target {
    /// Kills it; over the pod's next connection to the monitor where this one has ended.
    async fn kill(&self) {
        let mut views = self.pod.views();
        let killed = async {
            loop {
                let view = views.borrow_and_update().clone();
                if view.containers.get(&self.container).is_none_or(|container| !container.alive()) {
                    // It has ended with its container.
                    return;
                }
                if let Some(monitor) = &view.monitor {
                    let op = Op::KillExec { exec: self.exec.clone(), signal: Signal::KILL.as_raw() };
                    match monitor.order(op).await {
                        Ok(()) => return,
                        Err(ClientError::Gone) => {}
                        Err(error) => {
                            return tracing::warn!(exec = self.exec, %error, "a command cannot be killed");
                        }
                    }
                }
                if views.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(REACH_DEADLINE, killed).await.is_err() {
            tracing::warn!(
                exec = self.exec,
                "a command cannot be killed: its pod's monitor cannot be reached"
            );
        }
    }
}

/// Kills the command when its caller has left: nobody else would end it.
#[derive(Debug)]
pub(crate) struct KillOnDrop(Option<Target>);

impl KillOnDrop {
    pub(crate) fn new(target: Target) -> Self {
        Self(Some(target))
    }

    /// It has ended, or is somebody else's from here on.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }

    /// Its start has failed: where the monitor says so it does not run; otherwise it may.
    pub(crate) fn failed(self, error: &ClientError) {
        if let ClientError::Failed(_) = error {
            self.disarm();
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(target) = self.0.take() {
            tokio::spawn(async move { target.kill().await });
        }
    }
}

/// A pipe: the end that is read here, and the one for the process.
fn output_pipe() -> std::io::Result<(pipe::Receiver, std::os::fd::OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// Reads to the end, or until the drain deadline after the exit; keeps [`MAX_OUTPUT_BYTES`].
async fn read_capped(mut pipe: pipe::Receiver, mut exited: watch::Receiver<bool>) -> Vec<u8> {
    let mut output = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut until: Option<Instant> = None;
    loop {
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => read,
            _ = exited.wait_for(|exited| *exited), if until.is_none() => {
                until = Some(Instant::now() + DRAIN_DEADLINE);
                continue;
            }
            () = at(until) => break,
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let room = MAX_OUTPUT_BYTES - output.len();
                output.extend_from_slice(&buffer[..length.min(room)]);
            }
        }
        // Something may write for ever.
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
    }
    output
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// A command that execve(2) can take.
pub(crate) fn check_command(command: &[String]) -> Result<(), Error> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd", "must name a program"));
    }
    if command.len() > check::LIST_ITEMS {
        return Err(Error::invalid(
            "cmd",
            format!("has {} elements; {} are allowed", command.len(), check::LIST_ITEMS),
        ));
    }
    for (i, argument) in command.iter().enumerate() {
        check::argument(&format!("cmd[{i}]"), argument)?;
    }
    Ok(())
}

/// The container's own process with another command, and a terminal or none, as JSON.
pub(crate) fn process_json(config: &Path, command: Vec<String>, terminal: bool) -> Result<Vec<u8>, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("read {}", config.display()), source)
    };
    let spec = Spec::load(config).map_err(|error| failed(error.into()))?;
    let process = spec.process().clone().ok_or_else(|| failed("it has no process".into()))?;
    serde_json::to_vec(&with_command(process, command, terminal)).map_err(|error| failed(error.into()))
}

fn with_command(mut process: Process, command: Vec<String>, terminal: bool) -> Process {
    let mut env = process.env().clone().unwrap_or_default();
    if terminal && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push(DEFAULT_TERM.to_owned());
    }
    process.set_args(Some(command)).set_terminal(Some(terminal)).set_console_size(None).set_env(Some(env));
    process
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_command_has_to_name_a_program() {
        assert!(check_command(&[]).is_err());
        assert!(check_command(&[String::new()]).is_err());
        assert!(check_command(&["ls".into(), "a\0b".into()]).is_err());
        assert!(check_command(&["ls".into(), String::new()]).is_ok());
    }

    #[test]
    fn both_outputs_fit_into_one_message() {
        let lengths = |stdout: usize, stderr: usize| {
            let (stdout, stderr) = fit(vec![1; stdout], vec![2; stderr], 10_000 + MESSAGE_OVERHEAD_BYTES);
            (stdout.len(), stderr.len())
        };
        assert_eq!(lengths(10, 20), (10, 20));
        assert_eq!(lengths(20_000, 0), (10_000, 0));
        assert_eq!(lengths(20_000, 1_000), (9_000, 1_000));
        assert_eq!(lengths(1_000, 20_000), (1_000, 9_000));
        assert_eq!(lengths(20_000, 20_000), (5_000, 5_000));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_pipe_that_somebody_holds_is_read_for_a_bounded_time() {
        let (read, write) = output_pipe().unwrap();
        let mut writer = std::fs::File::from(write);
        writer.write_all(b"said before the exit").unwrap();
        let (exited, seen) = watch::channel(false);
        let reading = tokio::spawn(read_capped(read, seen));
        exited.send_replace(true);
        assert_eq!(reading.await.unwrap(), b"said before the exit");
        drop(writer);
    }
}
