//! A client at the stdio of a container that runs, or is about to.
//!
//! ```text
//! client <--> daemon <--pipes--> monitor <--> container's pipes or terminal
//! ```
//!
//! The monitor has the container's own pipes, since it writes the log; it copies what comes from now on to the client's and never waits
//! for it: a client that reads too slowly is dropped there. What was written before is in the log.
//!
//! A client that says that it sends no more leaves a container whose stdin stays open, as with containerd; where its stdin ends
//! with it (`stdin_once`, without a terminal) the client sees the rest of the output.
//!
//! Unlike containerd it takes a container that is created and not started, so that nothing of its output need be missed.

use std::sync::Arc;
use std::time::Duration;

use runtime::monitor::protocol::Op;
use tokio::sync::watch;

use super::client::Client;
use super::sizes::Size;
use super::status::Outcome;
use super::stdio::{self, Sink, Source, ours, pass_on, type_in};
use super::tickets::Streams;
use crate::container::{attachable_monitor, client_error, find};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::ids;
use crate::monitor_client::ClientError;
use crate::pod::PodHandle;

/// Longer than any container lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How long the answer to the last input is waited for once a client has said that it sends no more.
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);

/// The daemon's ends.
struct Attached {
    /// The client leaves by saying that it sends no more: the container has a stdin, which does not end with the client's.
    leaves: bool,
    pod: PodHandle,
    stdin: Option<Sink>,
    stdout: Option<Source>,
    stderr: Option<Source>,
}

/// Carries what the client types and the container writes until the container's output ends or the client leaves.
pub(super) async fn run(daemon: &Arc<Daemon>, container: &str, streams: Streams, mut client: Client) {
    let attached = attach(daemon, container, streams).await;
    client.ready().await;
    let Client { stdin, stdout, stderr, sizes, connection } = client;
    let outcome = match attached {
        Err(error) => {
            let sentence = error.sentence();
            tracing::info!(container, error = sentence, "a container cannot be attached to");
            Outcome::Failed(format!("error attaching to container: {sentence}"))
        }
        Ok(attached) => {
            let Attached { leaves, pod, stdin: sink, stdout: source, stderr: error_source } = attached;
            let silent = source.is_none() && error_source.is_none();
            let output = async {
                tokio::join!(pass_on(source, stdout), pass_on(error_source, stderr));
                if silent {
                    pod.wait_exit(container, FOREVER).await;
                }
            };
            let input = async {
                type_in(stdin, sink).await;
                if !(streams.stdin && leaves) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(ANSWER_DEADLINE).await;
            };
            let resize = async {
                resize(&pod, container, streams.tty, sizes).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = output => {}
                () = input => {}
                () = resize => {}
                () = connection.gone() => {}
            }
            Outcome::Success
        }
    };
    connection.finish(&outcome).await;
}

async fn attach(daemon: &Arc<Daemon>, container: &str, streams: Streams) -> Result<Attached, Error> {
    let found = find(daemon, container)?;
    let monitor = attachable_monitor(&found)?;
    let failed = |source: std::io::Error| Error::internal(format!("attach to container {container}"), source);
    let mut fds = Vec::new();
    let stdin = ours(streams.stdin, stdio::input_pipe, &mut fds).map_err(failed)?;
    let stdout = ours(streams.stdout, stdio::output_pipe, &mut fds).map_err(failed)?;
    let stderr = ours(streams.stderr, stdio::output_pipe, &mut fds).map_err(failed)?;
    let op = Op::Attach {
        container: container.to_owned(),
        attach: ids::random()?,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    monitor.request(op, fds).await.map_err(|error| client_error(&found, error))?;
    let config = &found.container.record.config;
    let leaves = config.stdin && (config.tty || !config.stdin_once);
    Ok(Attached { leaves, pod: found.pod.clone(), stdin, stdout, stderr })
}

/// Keeps the container's terminal at the size of the client's that changed last.
async fn resize(pod: &PodHandle, container: &str, tty: bool, mut sizes: watch::Receiver<Option<Size>>) {
    if !tty {
        return;
    }
    loop {
        let size = *sizes.borrow_and_update();
        // The pod's, whichever connection that is by now.
        if let (Some(Size { width, height }), Some(monitor)) = (size, &pod.view().monitor) {
            let op = Op::Resize { container: container.to_owned(), width, height };
            match monitor.order(op).await {
                Ok(()) | Err(ClientError::Gone) => {}
                Err(error) => tracing::debug!(%error, "resize a container's terminal"),
            }
        }
        if sizes.changed().await.is_err() {
            return;
        }
    }
}
