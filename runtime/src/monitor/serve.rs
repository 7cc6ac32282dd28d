//! The monitor's loop: waits for what happens, tells the pod's state machine, does what that says.
//!
//! ```text
//!   poll ──ready──> Server::ready ──Input──> Pod::step ──Actions──> Server::act ──Input──> …
//! ```
//!
//! One thread, nothing that waits but [`Poll::wait`]. Creating a container or an exec'd process and killing a cgroup are short
//! synchronous steps with deadlines; meanwhile other containers' output stays in their pipes. What an action makes
//! known (a pid, a failure) goes into the machine as the next input before anything else is looked at.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{WaitId, WaitIdOptions};

use super::connection::{Connection, ConnectionError, Received};
use super::log::{RETRY_FIRST, RETRY_LAST};
use super::log_format::Stream;
use super::pod::{Caller, End, Input, Pod};
use super::poll::{Kind, Poll, Ready, Token, Watched};
use super::protocol::{ExitRecord, Message, Op, Request};
use super::stdio::{Buffers, Stdio, realtime_ns};
use super::{record, signals, wire};
use crate::cgroup::{Cgroup, Hierarchies, OomAbove, OomWatch};
use crate::container::{StartGate, run_poststart_hooks};
use crate::plan::Plan;
use crate::{Failure, Step, sys};

/// The most daemons connected at once: one, and the one that replaces it, and some patience.
const MAX_CONNECTIONS: usize = 8;

/// A monitor without a sandbox and without a connection ends after this: its daemon died before it asked for anything.
const UNUSED_FOR: Duration = Duration::from_secs(60);

/// How long the last answers may take to be read before the monitor ends anyway.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Buffers that were not used for this long are given back.
const BUFFERS_KEPT_FOR: Duration = Duration::from_secs(2);

/// The most exited execs of which a background process is left.
const MAX_LINGERING_EXECS: usize = 64;

/// The signal of an out-of-memory kill: SIGKILL.
const KILLED: i32 = 9;

/// How long killing a cgroup may take.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// The most requests taken from one connection before others get their turn.
const REQUESTS_PER_TURN: usize = 16;

/// The monitor.
pub(super) struct Server {
    pub(super) poll: Poll,
    pub(super) pod: Pod,
    pub(super) hierarchies: Hierarchies,
    listener: Watched,
    socket_path: PathBuf,
    signals: SignalFd,
    /// Keeps the signalfd in the poll set.
    _signals_watched: Watched,
    pub(super) connections: BTreeMap<u32, Connection>,
    pub(super) pause: Option<Pause>,
    pub(super) containers: BTreeMap<u32, Container>,
    pub(super) execs: BTreeMap<u32, Exec>,
    /// Out-of-memory kills in all containers so far, as far as their own cgroups told of them.
    pub(super) oom_told: u64,
    next_number: u32,
    packet: Vec<u8>,
    buffers: Buffers,
    /// When the buffers go if nothing uses them.
    buffers_until: Option<Instant>,
    /// Records the disk did not take, and when to try again.
    unsaved: Option<Unsaved>,
    /// When the monitor ends if nothing has been asked of it.
    unused_until: Option<Instant>,
    /// The end, at the latest; None: it goes on.
    pub(super) ends_by: Option<Instant>,
    /// Memory was freed that is worth giving back.
    pub(super) trim_due: bool,
}

/// The pause process.
pub(super) struct Pause {
    pub(super) pid: i32,
    pub(super) pidfd: Watched,
}

/// A container not deleted.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) pid: i32,
    /// None: init has exited.
    pub(super) pidfd: Option<Watched>,
    /// None: the start was told of.
    pub(super) gate: Option<Gate>,
    pub(super) cgroup: Cgroup,
    pub(super) stdio: Stdio,
    pub(super) own_pids: bool,
    /// See [`engine::Container::plan`](super::engine::Container).
    pub(super) plan: Option<Box<Plan>>,
    /// See [`engine::Container::root`](super::engine::Container::root).
    pub(super) root: Option<(u32, u32)>,
    /// The memfd with its seccomp program.
    pub(super) seccomp: Option<OwnedFd>,
    pub(super) oom: Option<Oom>,
    /// Where kills are counted that the container's own cgroup takes away with it, and [`Server::oom_told`] of then.
    pub(super) oom_above: Option<(OomAbove, u64)>,
}

/// A start gate, waited on once it was opened.
pub(super) struct Gate {
    pub(super) starter: StartGate,
    pub(super) watched: Watched,
    /// Init was told to go on.
    pub(super) opened: bool,
}

/// Out-of-memory kills of a container.
pub(super) struct Oom {
    pub(super) watch: OomWatch,
    /// Keeps the notices in the poll set.
    pub(super) _watched: Watched,
    /// Kills already told of.
    pub(super) seen: u64,
}

/// A process exec'd into a container.
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) container: u32,
    pub(super) pid: i32,
    /// None: it has exited, and only its cgroup is left.
    pub(super) pidfd: Option<Watched>,
    pub(super) cgroup: Option<Cgroup>,
    /// When it is killed if it still runs.
    pub(super) limit: Option<Instant>,
}

struct Unsaved {
    records: BTreeMap<PathBuf, ExitRecord>,
    at: Instant,
    wait: Duration,
}

impl Server {
    /// A monitor that listens on `socket`, which has the path `socket_path`.
    pub(super) fn new(
        socket: OwnedFd,
        socket_path: PathBuf,
        hierarchies: Hierarchies,
    ) -> Result<Self, Failure> {
        let failed = |errno| Failure::os(Step::State, errno).with_message("set up the poll loop");
        let poll = Poll::new().map_err(failed)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        let (signals, readable) = signals::open().map_err(failed)?;
        let watch = |fd, kind| poll.watch(fd, Token::new(kind, 0), Some(EventFlags::IN)).map_err(failed);
        Ok(Self {
            listener: watch(socket, Kind::Listener)?,
            _signals_watched: watch(readable, Kind::Signals)?,
            signals,
            socket_path,
            pod: Pod::new(rustix::process::getpid().as_raw_nonzero().get()),
            hierarchies,
            connections: BTreeMap::new(),
            pause: None,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            oom_told: 0,
            next_number: 0,
            packet: wire::buffer(),
            buffers: Buffers::default(),
            buffers_until: None,
            unsaved: None,
            unused_until: Some(Instant::now() + UNUSED_FOR),
            ends_by: None,
            trim_due: true,
            poll,
        })
    }

    /// Serves until the monitor is told to end.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let mut ready = Vec::new();
        while !self.has_ended() {
            if std::mem::take(&mut self.trim_due) {
                sys::memory::trim();
            }
            self.poll
                .wait(self.deadline(), &mut ready)
                .map_err(|errno| Failure::os(Step::State, errno).with_message("epoll_wait"))?;
            for event in ready.drain(..) {
                self.ready(event);
            }
            self.overdue(Instant::now());
        }
        if let Err(errno) = rustix::fs::unlink(&self.socket_path)
            && errno != Errno::NOENT
        {
            tracing::warn!(errno = errno.raw_os_error(), "remove the monitor's socket");
        }
        Ok(())
    }

    /// A number that nothing else had or will have.
    pub(super) fn number(&mut self) -> u32 {
        // Four thousand million connections, containers and execs outlast any pod.
        self.next_number = self.next_number.wrapping_add(1);
        self.next_number
    }

    fn has_ended(&self) -> bool {
        self.ends_by
            .is_some_and(|by| by <= Instant::now() || self.connections.values().all(Connection::is_flushed))
    }

    fn deadline(&self) -> Option<Instant> {
        let own = [self.ends_by, self.buffers_until, self.unused_until, self.unsaved.as_ref().map(|u| u.at)];
        let logs = self.containers.values().map(|container| container.stdio.deadline());
        let execs = self.execs.values().map(|exec| exec.limit);
        own.into_iter().chain(logs).chain(execs).flatten().min()
    }

    /// Does what is due by the clock.
    fn overdue(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for container in self.containers.values_mut() {
            if due(container.stdio.deadline()) {
                container.stdio.retry_log();
            }
        }
        if due(self.buffers_until) {
            self.buffers.release();
            self.buffers_until = None;
            self.trim_due = true;
        }
        if due(self.unsaved.as_ref().map(|unsaved| unsaved.at)) {
            self.save_again();
        }
        let over = self.execs.values_mut().filter(|exec| due(exec.limit));
        let over: Vec<String> = over
            .map(|exec| {
                exec.limit = None;
                exec.id.clone()
            })
            .collect();
        for exec in over {
            // Who asked would have killed it by now, and so cannot.
            tracing::warn!(exec, "an exec'd process has run for as long as it may: it is killed");
            self.signal_exec(&exec, KILLED);
        }
        if due(self.unused_until) {
            tracing::info!("nobody asked for anything: the monitor ends");
            self.ends_by = Some(now);
        }
    }

    /// Something is ready.
    fn ready(&mut self, event: Ready) {
        let Token { kind, owner, sub } = event.token;
        match kind {
            Kind::Listener => self.accept(),
            Kind::Signals => self.signalled(),
            Kind::Connection => self.converse(owner, event),
            Kind::Pause => self.pause_exited(),
            Kind::Init => self.container_exited(owner),
            Kind::Gate => self.gate_answered(owner),
            Kind::Oom => self.out_of_memory(owner),
            Kind::Stdout => self.output(owner, Stream::Stdout),
            Kind::Stderr => self.output(owner, Stream::Stderr),
            Kind::Exec => self.exec_exited(owner),
            Kind::Stdin => self.stdio(owner, Stdio::stdin_ready),
            Kind::ClientInput => self.stdio(owner, |stdio| stdio.client_input(sub)),
            Kind::ClientStdout => {
                self.stdio(owner, |stdio| stdio.client_ready(sub, Stream::Stdout, event.closed));
            }
            Kind::ClientStderr => {
                self.stdio(owner, |stdio| stdio.client_ready(sub, Stream::Stderr, event.closed));
            }
        }
    }

    /// Tells the machine, and does what it says until it says no more. `fds` came with the request, if it is one.
    pub(super) fn tell(&mut self, input: Input, mut fds: Vec<OwnedFd>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.pod.step(input) {
                inputs.extend(self.act(action, &mut fds));
            }
        }
    }

    // Connections.

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(errno) => {
                tracing::error!(errno = errno.raw_os_error(), "accept a connection");
                return;
            }
        };
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        let uid = peer.as_ref().ok().map(|peer| peer.uid);
        if uid != Some(rustix::process::geteuid()) {
            tracing::warn!(uid = uid.map(rustix::fs::Uid::as_raw), "refused a connection of another user");
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!("refused a connection: {MAX_CONNECTIONS} are open, which is the most");
            return;
        }
        let number = self.number();
        match self.poll.watch(socket, Token::new(Kind::Connection, number), Some(EventFlags::IN)) {
            Ok(socket) => {
                self.connections.insert(number, Connection::new(socket));
                self.unused_until = None;
            }
            Err(errno) => tracing::error!(errno = errno.raw_os_error(), "wait for a connection"),
        }
    }

    fn converse(&mut self, number: u32, event: Ready) {
        if event.writable
            && let Some(connection) = self.connections.get_mut(&number)
            && let Err(error) = connection.flush()
        {
            self.disconnect(number, Some(error));
        }
        if !event.readable {
            return;
        }
        for _ in 0..REQUESTS_PER_TURN {
            // Looked up each time: an answer that cannot be sent closes the connection.
            let Some(connection) = self.connections.get_mut(&number) else { return };
            match connection.receive(&mut self.packet) {
                Ok(Received::Request(request, fds)) => self.request(number, request, fds),
                Ok(Received::Nothing) => return,
                Ok(Received::End) => return self.disconnect(number, None),
                Err(error) => return self.disconnect(number, Some(error)),
            }
        }
    }

    fn request(&mut self, number: u32, request: Request, fds: Vec<OwnedFd>) {
        let caller = Caller { connection: number.into(), request: request.id };
        let greeted = self.connections.get(&number).is_some_and(|connection| connection.greeted);
        if !greeted && !matches!(request.op, Op::Hello { .. }) {
            let refusal = Failure::because(Step::Request, "a connection starts with hello");
            self.send(number, &Message::Reply { id: request.id, result: Err(refusal) }, Vec::new());
            return;
        }
        let span = tracing::debug_span!(
            "monitor_request",
            op = op_name(&request.op),
            trace = request.trace.as_deref().unwrap_or_default()
        );
        let _entered = span.enter();
        self.tell(Input::Request { caller, op: request.op }, fds);
    }

    /// Sends a message; a connection that does not take it is closed.
    pub(super) fn send(&mut self, number: u32, message: &Message, fds: Vec<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&number)
            && let Err(error) = connection.send(message, fds)
        {
            self.disconnect(number, Some(error));
        }
    }

    fn disconnect(&mut self, number: u32, error: Option<ConnectionError>) {
        self.connections.remove(&number);
        if let Some(error) = error {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, source, "closed a connection");
        }
        if self.connections.is_empty() && self.pod.is_unused() {
            self.unused_until = Some(Instant::now() + UNUSED_FOR);
        }
    }

    // Processes.

    fn signalled(&mut self) {
        if signals::take(&self.signals) {
            if self.pod.has_processes() {
                tracing::warn!("told to end by a signal: ignored while the pod has processes");
            } else {
                tracing::info!("told to end by a signal");
                self.ends_by = Some(Instant::now() + LAST_WORDS);
            }
        }
        let mut last = None;
        while let Some(pid) = signals::exited_child() {
            if last != Some(pid) && self.own_exited(pid) {
                last = Some(pid);
            } else {
                signals::reap(pid);
            }
        }
    }

    /// If `pid` is one of ours, treats it as its pidfd would have it treated.
    fn own_exited(&mut self, pid: i32) -> bool {
        if self.pause.as_ref().is_some_and(|pause| pause.pid == pid) {
            self.pause_exited();
            return true;
        }
        let container = self.containers.iter().find(|(_, c)| c.pid == pid && c.pidfd.is_some());
        if let Some(number) = container.map(|(number, _)| *number) {
            self.container_exited(number);
            return true;
        }
        let exec = self.execs.iter().find(|(_, exec)| exec.pid == pid && exec.pidfd.is_some());
        if let Some(number) = exec.map(|(number, _)| *number) {
            self.exec_exited(number);
            return true;
        }
        false
    }

    fn pause_exited(&mut self) {
        let Some(pause) = &self.pause else { return };
        if ended(&pause.pidfd).is_none() {
            return;
        }
        self.pause = None;
        self.tell(Input::PauseExited, Vec::new());
    }

    fn container_exited(&mut self, number: u32) {
        let Some(container) = self.containers.get(&number) else { return };
        let Some(pidfd) = &container.pidfd else { return };
        let Some(end) = ended(pidfd) else { return };
        let at_ns = realtime_ns();
        // At once: systemd takes an empty scope away, and with it the count.
        let kills = container.cgroup.oom_kill_count();
        // How its start went was told before it exited, whichever of the two is seen first.
        if container.gate.as_ref().is_some_and(|gate| gate.opened) {
            self.gate_answered(number);
        }
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.pidfd = None;
        container.gate = None;
        if !container.own_pids
            && let Err(failure) = container.cgroup.send_kill(Instant::now() + KILL_DEADLINE)
        {
            tracing::warn!(container = container.id, %failure, "kill what the container's init left behind");
        }
        container.stdio.drain(&mut self.buffers);
        // What was noticed while it ran counts where the count is gone; and if nothing was, then what the cgroup above has counted
        // and nobody told of.
        let seen = container.oom.take().map_or(0, |oom| oom.seen);
        let unseen = match (&container.oom_above, kills, end.signal) {
            (Some((above, told)), None, Some(KILLED)) => above.kills().saturating_sub(self.oom_told - told),
            _ => 0,
        };
        let all = kills.unwrap_or(unseen).max(seen);
        let oom_kills = all > 0;
        self.oom_told += all - seen;
        let id = container.id.clone();
        self.buffers_used();
        self.tell(Input::Exited { container: id, end, oom_kills, at_ns }, Vec::new());
    }

    fn gate_answered(&mut self, number: u32) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(gate) = &container.gate else { return };
        let mut outcome = gate.starter.outcome();
        container.gate = None;
        // As in runc, who starts it waits for them, each has its own timeout, and a container whose hooks fail is stopped.
        if let (Ok(()), Some(plan)) = (&outcome, &container.plan) {
            outcome = run_poststart_hooks(&container.id, &container.bundle, plan, container.pid);
            if outcome.is_err()
                && let Err(failure) = container.cgroup.send_kill(Instant::now() + KILL_DEADLINE)
            {
                tracing::warn!(container = container.id, %failure, "kill it after a failed poststart hook");
            }
        }
        let input = Input::GateOutcome { container: container.id.clone(), outcome, at_ns: realtime_ns() };
        self.tell(input, Vec::new());
    }

    fn out_of_memory(&mut self, number: u32) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(oom) = &mut container.oom else { return };
        if let Err(failure) = oom.watch.drain() {
            tracing::warn!(container = container.id, %failure, "read out-of-memory notices: no more are told");
            container.oom = None;
            return;
        }
        let kills = container.cgroup.oom_kill_count().unwrap_or(0);
        if kills > oom.seen {
            self.oom_told += kills - oom.seen;
            oom.seen = kills;
            let container = container.id.clone();
            self.tell(Input::Oom { container }, Vec::new());
        }
    }

    fn exec_exited(&mut self, number: u32) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let Some(pidfd) = &exec.pidfd else { return };
        let Some(end) = ended(pidfd) else { return };
        exec.pidfd = None;
        exec.limit = None;
        let id = exec.id.clone();
        self.forget_ended_execs();
        self.tell(Input::ExecExited { exec: id, end }, Vec::new());
    }

    /// Forgets execs of which nothing is left: no process and an empty cgroup.
    pub(super) fn forget_ended_execs(&mut self) {
        self.execs.retain(|_, exec| {
            exec.pidfd.is_some()
                || exec.cgroup.as_ref().is_some_and(|cgroup| cgroup.remove(Instant::now()).is_err())
        });
        // Beyond that the oldest keep their cgroups, which go with the container's, but cannot be killed by name any more.
        let left: Vec<u32> =
            self.execs.iter().filter(|(_, exec)| exec.pidfd.is_none()).map(|(number, _)| *number).collect();
        for number in left.iter().take(left.len().saturating_sub(MAX_LINGERING_EXECS)) {
            self.execs.remove(number);
        }
    }

    // Output and input.

    fn output(&mut self, number: u32, stream: Stream) {
        if let Some(container) = self.containers.get_mut(&number) {
            container.stdio.read(stream, &mut self.buffers);
            self.buffers_used();
        }
    }

    fn buffers_used(&mut self) {
        if self.buffers.are_used() {
            self.buffers_until = Some(Instant::now() + BUFFERS_KEPT_FOR);
        }
    }

    fn stdio(&mut self, number: u32, act: impl FnOnce(&mut Stdio)) {
        if let Some(container) = self.containers.get_mut(&number) {
            act(&mut container.stdio);
        }
    }

    // Records.

    /// Writes a record, or keeps it to be written when the disk takes it: hello tells of it meanwhile.
    pub(super) fn save(&mut self, bundle: PathBuf, record: ExitRecord) {
        let Err(failure) = record::write(&bundle, &record) else { return };
        tracing::error!(%failure, "write an exit record: kept to try again");
        let unsaved = self.unsaved.get_or_insert_with(|| Unsaved {
            records: BTreeMap::new(),
            at: Instant::now() + RETRY_FIRST,
            wait: RETRY_FIRST,
        });
        unsaved.records.insert(bundle, record);
    }

    /// Whether the record of a container that has exited is on disk.
    pub(super) fn is_saved(&self, id: &str) -> bool {
        let Some(unsaved) = &self.unsaved else { return true };
        let bundle = self.containers.values().find(|container| container.id == id);
        bundle.is_none_or(|container| !unsaved.records.contains_key(&container.bundle))
    }

    /// Drops the record of a container that is deleted.
    pub(super) fn forget_record(&mut self, bundle: &std::path::Path) {
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.records.remove(bundle);
            if unsaved.records.is_empty() {
                self.unsaved = None;
            }
        }
    }

    fn save_again(&mut self) {
        let Some(unsaved) = &mut self.unsaved else { return };
        unsaved.records.retain(|bundle, record| record::write(bundle, record).is_err());
        unsaved.wait = (unsaved.wait * 2).min(RETRY_LAST);
        unsaved.at = Instant::now() + unsaved.wait;
        if unsaved.records.is_empty() {
            tracing::info!("every exit record is on disk again");
            self.unsaved = None;
        }
    }

    /// Ends the loop once the last answers are sent.
    pub(super) fn quit(&mut self) {
        self.ends_by = Some(Instant::now() + LAST_WORDS);
    }
}

/// How the process of a pidfd ended, reaping it. None: it has not.
fn ended(pidfd: &Watched) -> Option<End> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)) {
        Ok(None) => None,
        Ok(Some(status)) => match status.terminating_signal() {
            Some(signal) => Some(End { exit_code: 128 + signal, signal: Some(signal) }),
            None => Some(End { exit_code: status.exit_status().unwrap_or(255), signal: None }),
        },
        Err(errno) => {
            // It was reaped by somebody else, which nobody may: what it said is lost.
            tracing::error!(errno = errno.raw_os_error(), "wait for a child");
            Some(End { exit_code: 255, signal: None })
        }
    }
}

/// The op's name in the log.
fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Hello { .. } => "hello",
        Op::Sandbox(_) => "sandbox",
        Op::Create(_) => "create",
        Op::Start { .. } => "start",
        Op::Kill { .. } => "kill",
        Op::Exec(_) => "exec",
        Op::KillExec { .. } => "kill_exec",
        Op::Resize { .. } => "resize",
        Op::Attach { .. } => "attach",
        Op::ReopenLog { .. } => "reopen_log",
        Op::Update { .. } => "update",
        Op::Pause { .. } => "pause",
        Op::Resume { .. } => "resume",
        Op::Delete { .. } => "delete",
        Op::StopSandbox => "stop_sandbox",
        Op::Shutdown => "shutdown",
    }
}
