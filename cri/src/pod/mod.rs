//! A pod: one task owns its state, and does what is asked of it in order.
//!
//! ```text
//! RPC handlers --Command--> [pod task] --request--> monitor
//!                               |    <--Notice-----
//!                               +--publishes--> Arc<PodView> --> statuses, lists, waits
//! ```
//!
//! Handlers parse, ask the task, and answer. What takes long without changing anything (a grace period, an exec) waits in
//! the handler, on the view. The task never does: while it waits for the monitor it still takes the monitor's events.
//!
//! | file | tells |
//! |---|---|
//! | [`view`] | what a pod looks like |
//! | [`task`] | the loop, requests and events |
//! | [`run`] | how a pod comes to be |
//! | [`files`] | the files and mounts that its containers share |
//! | [`create`] | how a container comes to be |
//! | [`prepare`] | everything that happens on disk before that |
//! | [`life`] | start, update, remove of a container |
//! | [`stop`] | the end of a pod, wanted or not |
//! | [`discard`] | the end of one that was never whole |

mod create;
mod discard;
mod files;
mod life;
mod prepare;
mod run;
mod stop;
mod task;
mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

pub use create::NewContainer;
pub use discard::{discard, discard_later};
pub(crate) use files::{private_dir, release};
pub use run::{NewPod, run};
pub use stop::{end_unseen, kill_left};
pub use task::PodTask;
pub use view::{ContainerState, ContainerView, PodView};

use crate::error::Error;
use crate::v1;

/// Commands that wait for their turn at one pod; more callers wait to queue.
const COMMAND_QUEUE: usize = 32;

/// A way to a pod's task. Clones share it.
#[derive(Debug, Clone)]
pub struct PodHandle {
    id: Arc<str>,
    commands: mpsc::Sender<Asked>,
    view: watch::Receiver<Arc<PodView>>,
}

/// A command, and the span of the call that asked, in which it is carried out.
#[derive(Debug)]
struct Asked {
    command: Command,
    span: Span,
}

/// How a command is answered.
type Answer = oneshot::Sender<Result<(), Error>>;

/// What a pod's task can be asked for. It does so to the end, also when who asked has left.
#[derive(Debug)]
enum Command {
    Create(Box<NewContainer>, Answer),
    Start { container: String, answer: Answer },
    Update { container: String, resources: Box<v1::LinuxContainerResources>, answer: Answer },
    UpdatePod { resources: Box<v1::UpdatePodSandboxResourcesRequest>, answer: Answer },
    RemoveContainer { container: String, answer: Answer },
    Stop { answer: Answer },
    Remove { answer: Answer },
}

impl PodHandle {
    /// The pod's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pod as it is now.
    pub fn view(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }

    /// Makes a container up to its start gate.
    pub async fn create_container(&self, new: NewContainer) -> Result<(), Error> {
        self.ask(|answer| Command::Create(Box::new(new), answer)).await
    }

    /// Starts a created container.
    pub async fn start_container(&self, container: &str) -> Result<(), Error> {
        self.ask(|answer| Command::Start { container: container.to_owned(), answer }).await
    }

    /// Changes the limits of a container.
    pub async fn update_container(
        &self,
        container: &str,
        resources: v1::LinuxContainerResources,
    ) -> Result<(), Error> {
        let resources = Box::new(resources);
        self.ask(|answer| Command::Update { container: container.to_owned(), resources, answer }).await
    }

    /// Notes the resources that kubelet gave the pod's own cgroup.
    pub async fn update_pod(&self, resources: v1::UpdatePodSandboxResourcesRequest) -> Result<(), Error> {
        self.ask(|answer| Command::UpdatePod { resources: Box::new(resources), answer }).await
    }

    /// Removes a container, killing it if it runs.
    pub async fn remove_container(&self, container: &str) -> Result<(), Error> {
        self.ask(|answer| Command::RemoveContainer { container: container.to_owned(), answer }).await
    }

    /// Stops everything in the pod and releases what it holds of the host. Idempotent.
    pub async fn stop(&self) -> Result<(), Error> {
        self.ask(|answer| Command::Stop { answer }).await
    }

    /// Stops the pod and removes what it left. Idempotent.
    pub async fn remove(&self) -> Result<(), Error> {
        match self.ask(|answer| Command::Remove { answer }).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// What the pod looks like, now and after each change.
    pub fn views(&self) -> watch::Receiver<Arc<PodView>> {
        self.view.clone()
    }

    /// Waits until the container has exited or is gone. False: the deadline came first.
    pub async fn wait_exit(&self, container: &str, limit: Duration) -> bool {
        let mut view = self.view.clone();
        let ended = view.wait_for(|view| view.containers.get(container).is_none_or(|c| !c.alive()));
        // The end of the channel is the end of the pod.
        tokio::time::timeout(limit, ended).await.is_ok()
    }

    async fn ask(&self, command: impl FnOnce(Answer) -> Command) -> Result<(), Error> {
        let gone = || Error::NotFound { what: "pod sandbox", id: self.id.to_string() };
        let (answer, answered) = oneshot::channel();
        let asked = Asked { command: command(answer), span: Span::current() };
        self.commands.send(asked).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// The directories of one pod.
#[derive(Debug, Clone)]
pub struct Directories {
    /// `<state>/pods/<id>`: records, bundles, writable layers.
    pub state: PathBuf,
    /// `<run>/pods/<id>`: socket, namespaces, shared files.
    pub run: PathBuf,
}

impl Directories {
    /// Those of the pod `id`.
    pub fn new(state: &Path, run: &Path, id: &str) -> Self {
        Self { state: state.join("pods").join(id), run: run.join("pods").join(id) }
    }

    /// A container's.
    pub fn container(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    /// Where the pod's network namespace is pinned.
    pub fn netns(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// Where the pod's shared memory is mounted.
    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }
}
