//! The task of one pod: its loop, its requests to the monitor, and what the monitor tells it.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use runtime::Failure;
use runtime::monitor::protocol::{ContainerState as Reported, Event, ExitRecord, Op, Reply};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::{Asked, COMMAND_QUEUE, Command, ContainerState, ContainerView, Directories, PodHandle, PodView};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::monitor_client::{ClientError, Connected, ExecWaiters, MonitorClient, Notice, Process, take_up};
use crate::v1::ContainerEventType;

/// How long a broken connection may take to be made again before other requests get their turn.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The owner of a pod's state.
#[derive(Debug)]
pub struct PodTask {
    pub(super) daemon: Arc<Daemon>,
    pub(super) dirs: Directories,
    /// The state. What others see is the last that was published.
    pub(super) view: PodView,
    published: watch::Sender<Arc<PodView>>,
    commands: mpsc::Receiver<Asked>,
    /// None: there is no monitor to hear of.
    pub(super) notices: Option<mpsc::Receiver<Notice>>,
    /// The connection has ended without our asking; dealt with before the next command.
    pub(super) monitor_lost: bool,
    /// Who waited on it for an exec'd process: for the next connection.
    pub(super) execs: ExecWaiters,
    /// A hello that an earlier daemon's monitor has not answered yet.
    connecting: Option<Connecting>,
    /// The pod is being stopped: what ends now was told to.
    pub(super) stopping: bool,
    /// The pod is removed: the task ends.
    pub(super) removed: bool,
}

/// A connection under way.
type Connecting = JoinHandle<Result<Connected, ClientError>>;

impl PodTask {
    /// A task around what a pod looks like now, and the way to it. Nothing happens until [`spawn`](Self::spawn).
    pub fn new(
        daemon: Arc<Daemon>,
        view: PodView,
        notices: Option<mpsc::Receiver<Notice>>,
    ) -> (Self, PodHandle) {
        let dirs = daemon.directories(&view.record.id);
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let (published, receiver) = watch::channel(Arc::new(view.clone()));
        let handle = PodHandle { id: view.record.id.as_str().into(), commands: sender, view: receiver };
        let task = Self {
            daemon,
            dirs,
            view,
            published,
            commands,
            notices,
            monitor_lost: false,
            execs: ExecWaiters::default(),
            connecting: None,
            stopping: false,
            removed: false,
        };
        (task, handle)
    }

    /// Lets it run for as long as there is the pod.
    pub fn spawn(self) {
        let span = tracing::info_span!(parent: None, "pod", id = %self.short_id());
        tokio::spawn(self.run().instrument(span));
    }

    async fn run(mut self) {
        while !self.removed {
            if self.monitor_lost {
                self.reconnect().await;
            }
            tokio::select! {
                biased;
                notice = next(&mut self.notices) => self.take(notice),
                connected = answer(&mut self.connecting) => self.connected(connected).await,
                command = self.commands.recv() => match command {
                    Some(Asked { command, span }) => self.execute(command).instrument(span).await,
                    // The daemon is ending; the pod goes on without it.
                    None => break,
                },
            }
        }
    }

    /// Takes up the monitor that an earlier daemon left, or, if it does not answer within `limit`, goes on without it until
    /// it does.
    pub async fn connect(&mut self, connecting: Connecting, limit: Duration) {
        self.connecting = Some(connecting);
        if !self.wait_connected(limit).await {
            tracing::warn!(pod = %self.view.name(), "the pod's monitor is slow to answer: its containers are unknown until then");
        }
    }

    /// The connection has ended. If the monitor has not, it is taken up again.
    pub(super) async fn reconnect(&mut self) {
        tracing::warn!(pod = %self.view.name(), "the connection to the pod's monitor has ended");
        while self.notices.is_some() {
            let notice = next(&mut self.notices).await;
            self.take(notice);
        }
        self.monitor_lost = false;
        self.view.monitor = None;
        let (run, execs) = (self.dirs.run.clone(), std::mem::take(&mut self.execs));
        self.connect(tokio::spawn(async move { take_up(&run, execs).await }), RECONNECT_DEADLINE).await;
    }

    /// The connection, for who has to clean up through it.
    pub fn monitor(&self) -> Option<&MonitorClient> {
        self.view.monitor.as_ref()
    }

    /// Waits for a connection under way. False: it is still under way.
    pub(super) async fn wait_connected(&mut self, limit: Duration) -> bool {
        if self.connecting.is_none() {
            return true;
        }
        match tokio::time::timeout(limit, answer(&mut self.connecting)).await {
            Ok(connected) => {
                self.connected(connected).await;
                true
            }
            Err(_) => false,
        }
    }

    async fn connected(&mut self, connected: Result<Connected, ClientError>) {
        self.connecting = None;
        match connected {
            Ok(connected) => self.adopt(connected).await,
            Err(error) => {
                tracing::error!(pod = %self.view.name(), %error, "there is no monitor to take over");
                self.lose_monitor().await;
            }
        }
    }

    /// Believes the monitor about what lives.
    async fn adopt(&mut self, connected: Connected) {
        let Connected { client, hello, notices } = connected;
        if let Some(process) = Process::foreign(hello.pid) {
            client.is_process(process);
        }
        self.view.monitor = Some(client);
        self.notices = Some(notices);
        for report in hello.containers {
            let state = match (report.state, report.pid, report.exit) {
                (_, _, Some(exit)) => {
                    self.exited(&report.id, exit);
                    continue;
                }
                (Reported::Created, Some(pid), None) => ContainerState::Created { pid },
                (Reported::Running, Some(pid), None) => {
                    ContainerState::Running { pid, started_at_ns: report.started_at_ns.unwrap_or(0) }
                }
                // Its exit is on disk: there were too many to be told.
                (_, _, None) => ContainerState::Unknown,
            };
            match self.view.containers.get(&report.id) {
                Some(known) if known.alive() => self.set_state(&report.id, state),
                Some(_) => {}
                None => self.delete_unknown(report.id).await,
            }
        }
        if self.view.pause.is_some() && hello.pause.is_none() {
            self.take(Notice::Event(Event::PauseExited));
        }
        self.view.ready = hello.pause.is_some();
        self.view.pause = hello.pause;
        self.publish();
        // Those that the monitor does not know have ended, whenever that was.
        self.end_unknown().await;
    }

    /// A container of the monitor's that is none of ours: its creation failed while nobody could undo it.
    async fn delete_unknown(&mut self, container: String) {
        tracing::warn!(container = %short(&container), "the monitor has a container that was never made: it is deleted");
        if let Err(error) = self.order(Op::Delete { container }).await {
            tracing::warn!(%error, "it cannot be deleted");
        }
    }

    async fn execute(&mut self, command: Command) {
        // Whoever asked may have left: what was asked for is done all the same.
        match command {
            Command::Create(new, answer) => {
                let _ = answer.send(self.create_container(*new).await);
            }
            Command::Start { container, answer } => {
                let _ = answer.send(self.start_container(&container).await);
            }
            Command::Update { container, resources, answer } => {
                let _ = answer.send(self.update_container(&container, *resources).await);
            }
            Command::UpdatePod { resources, answer } => {
                let _ = answer.send(self.update_pod(*resources).await);
            }
            Command::RemoveContainer { container, answer } => {
                let _ = answer.send(self.remove_container(&container).await);
            }
            Command::Stop { answer } => {
                let _ = answer.send(self.stop().await);
            }
            Command::Remove { answer } => {
                let _ = answer.send(self.remove().await);
            }
        }
    }

    /// Asks the monitor, and takes its events meanwhile.
    pub(super) async fn request(&mut self, op: Op, fds: Vec<OwnedFd>) -> Result<Reply, ClientError> {
        let Some(client) = self.view.monitor.clone() else { return Err(ClientError::Gone) };
        let mut answer = pin!(client.request(op, fds));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                notice = next(&mut self.notices) => self.take(notice),
            }
        }
    }

    /// As [`request`](Self::request), for operations that answer [`Reply::Done`].
    pub(super) async fn order(&mut self, op: Op) -> Result<(), ClientError> {
        match self.request(op, Vec::new()).await? {
            Reply::Done => Ok(()),
            other => Err(ClientError::Protocol(format!("{other:?}"))),
        }
    }

    pub(super) fn take(&mut self, notice: Notice) {
        match notice {
            Notice::Event(Event::Exited { container, record }) => self.exited(&container, record),
            Notice::Event(Event::PauseExited) => {
                if !self.stopping {
                    tracing::warn!(pod = %self.view.name(), "pause has died: the pod is not ready any more");
                }
                self.view.ready = false;
                self.view.pause = None;
                self.publish();
                if !self.stopping {
                    let id = self.view.record.id.clone();
                    self.announce(&id, ContainerEventType::ContainerStoppedEvent);
                }
            }
            Notice::Event(Event::Oom { container }) => {
                tracing::warn!(container = %short(&container), "the kernel killed a process of it for memory");
            }
            // The connection hands these to who waits for them.
            Notice::Event(Event::ExecExited { .. }) => {}
            Notice::Gone(execs) => {
                self.notices = None;
                self.monitor_lost = true;
                self.execs = execs;
            }
        }
    }

    /// Notes the end of a container.
    pub(super) fn exited(&mut self, container: &str, record: ExitRecord) {
        let Some(known) = self.view.containers.get(container) else { return };
        if !known.alive() {
            return;
        }
        tracing::info!(container = %short(container), exit_code = record.exit_code, oom = record.oom_killed, "exited");
        self.set_state(container, ContainerState::Exited(record));
        self.announce(container, ContainerEventType::ContainerStoppedEvent);
    }

    /// Changes a container's state and publishes it.
    pub(super) fn set_state(&mut self, container: &str, state: ContainerState) {
        if let Some(known) = self.view.containers.get_mut(container) {
            *known = Arc::new(ContainerView { state, ..(**known).clone() });
        }
        self.publish();
    }

    /// Shows the state to everybody.
    pub(super) fn publish(&self) {
        self.published.send_replace(Arc::new(self.view.clone()));
    }

    /// Tells the watchers of `GetContainerEvents`; `id` is a container's or the pod's.
    pub(super) fn announce(&self, id: &str, kind: ContainerEventType) {
        self.daemon.events.announce(id, kind, &self.view);
    }

    /// A container that has to exist.
    pub(super) fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        let missing = || Error::NotFound { what: "container", id: id.to_owned() };
        self.view.containers.get(id).cloned().ok_or_else(missing)
    }

    /// A failed request about a container as the error its caller gets.
    pub(super) fn failed(&self, what: &'static str, id: &str, error: ClientError) -> Error {
        match error {
            ClientError::Failed(failure) => engine(what, id, failure),
            ClientError::Slow(limit) => {
                Error::DeadlineExceeded { what: format!("{what} {id}: a request to its monitor"), limit }
            }
            gone @ ClientError::Gone => Error::Unavailable {
                what: format!("the monitor of pod {} ({})", self.view.name(), self.view.record.id),
                source: Some(Box::new(gone)),
            },
            other => Error::internal(format!("{what} {id}"), other),
        }
    }

    pub(super) fn short_id(&self) -> &str {
        short(&self.view.record.id)
    }
}

/// The engine's failure about a pod or container.
pub(super) fn engine(what: &'static str, id: &str, failure: Failure) -> Error {
    Error::Engine { what, id: id.to_owned(), failure }
}

/// Enough of an id for a log line.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The outcome of a connection under way; never, where there is none.
async fn answer(connecting: &mut Option<Connecting>) -> Result<Connected, ClientError> {
    match connecting {
        Some(handle) => handle.await.unwrap_or(Err(ClientError::Gone)),
        None => std::future::pending().await,
    }
}

/// The next notice; never, where there is no monitor.
async fn next(notices: &mut Option<mpsc::Receiver<Notice>>) -> Notice {
    match notices {
        Some(receiver) => receiver.recv().await.unwrap_or(Notice::Gone(ExecWaiters::default())),
        None => std::future::pending().await,
    }
}
