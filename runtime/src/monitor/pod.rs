//! The pod's state machine: what is asked and what happens goes in, what is to be done comes out. Pure: no descriptor,
//! no clock and no process, so its tests need no kernel. [`serve`](super::serve) feeds it and does what it says, in order.
//!
//! ```text
//! container   (request Create; done by the loop) -> Created
//!
//!   Created --Start: open the gate--> Starting --gate at its end--> Running --exit--> Exited
//!      |                                 |                                              ^
//!      |                                 `--gate tells a failure--> Failed ----exit-----|
//!      `-------------------------------- exit (killed before its start) ----------------'
//!
//!   Delete: Exited -> removed, Done.   Anything else -> kill, wait for the exit, removed, Done.
//!
//! sandbox     Absent --Sandbox--> Ready(pause) --pause dies--> Gone
//!
//!   StopSandbox / Shutdown: kill what runs -> (every container Exited) -> kill pause -> (Gone) -> Done [-> quit]
//! ```
//!
//! What holds in every state, tested over random sequences:
//! - each request is answered exactly once;
//! - a container's record is written before its exit is announced, and both happen exactly once;
//! - `finished_at` is never before `started_at`;
//! - nothing is created or started once the sandbox is stopping.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use rustix::io::Errno;

use super::protocol::{
    ContainerReport, ContainerState, CreateRequest, Event, ExecReport, ExecRequest, ExitRecord, Hello,
    MAX_EXECS, Op, PROTOCOL, Reply, SandboxRequest,
};
use crate::{Failure, Step};

/// The most containers of one pod, exited ones that were not deleted included.
pub(crate) const MAX_CONTAINERS: usize = 512;

/// How many ends of exec'd processes are remembered, the last ones: a connection can break with some of them untold.
const MAX_ENDED_EXECS: usize = 128;

/// The largest signal number (SIGRTMAX).
const MAX_SIGNAL: i32 = 64;

/// Who asked: answers go there, if it still exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The loop's number for the connection.
    pub connection: u64,
    /// The request's id on it.
    pub request: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// As a shell tells it: the exit status, or 128 + the signal.
    pub exit_code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

/// What the machine is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A request; descriptors that came with it stay with the loop.
    Request { caller: Caller, op: Op },
    /// [`Action::MakeSandbox`] was done: pause's pid.
    SandboxMade { caller: Caller, result: Result<i32, Failure> },
    /// [`Action::Create`] was done: init's pid.
    Created { caller: Caller, container: String, result: Result<i32, Failure> },
    /// An opened gate told how the start went.
    GateOutcome { container: String, outcome: Result<(), Failure>, at_ns: i64 },
    /// A container's init has exited and its output is logged as far as it was written.
    Exited { container: String, end: End, oom_kills: bool, at_ns: i64 },
    /// The kernel killed a process of the container for memory.
    Oom { container: String },
    /// [`Action::Exec`] was done: the process's pid.
    Execed { caller: Caller, exec: String, result: Result<i32, Failure> },
    /// An exec'd process has exited.
    ExecExited { exec: String, end: End },
    /// Pause has exited.
    PauseExited,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Answer a request.
    Reply { caller: Caller, result: Result<Reply, Failure> },
    /// Tell every connection.
    Announce(Event),
    /// Make pause, then tell [`Input::SandboxMade`].
    MakeSandbox { caller: Caller, request: SandboxRequest },
    /// Take a container to its gate, then tell [`Input::Created`].
    Create { caller: Caller, request: CreateRequest },
    /// Open the gate; its outcome comes as [`Input::GateOutcome`].
    OpenGate { container: String },
    /// Run a process, then tell [`Input::Execed`].
    Exec { caller: Caller, request: ExecRequest },
    /// Do what the op says to a container that exists (and runs, where that matters) and answer it.
    Serve { caller: Caller, op: Op },
    /// Signal init.
    Signal { container: String, signal: i32 },
    /// SIGKILL every process of the container.
    KillAll { container: String },
    /// Signal an exec'd process, or with SIGKILL its cgroup where it has one; an unknown one is no error.
    SignalExec { exec: String, signal: i32 },
    /// Write the exit record to disk.
    Record { container: String, record: ExitRecord },
    /// Kill what is left, remove the cgroup, close the log, forget.
    Remove { container: String },
    /// SIGKILL pause; its exit comes as [`Input::PauseExited`].
    KillPause,
    /// End the monitor once its answers are sent.
    Quit,
}

/// The pod.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The monitor's own pid, for [`Hello`].
    own_pid: i32,
    sandbox: Sandbox,
    containers: BTreeMap<String, Container>,
    /// Execs that run, each with its container.
    execs: BTreeMap<String, String>,
    /// The exit codes of the last that ended, oldest first.
    ended_execs: VecDeque<(String, i32)>,
    /// Who waits for the sandbox to stop; not empty: it is stopping.
    stop_callers: Vec<Caller>,
    /// Who waits for the end of the monitor; not empty: it is stopping.
    quit_callers: Vec<Caller>,
    /// Stopping was asked for; never taken back.
    stopping: bool,
    pause_killed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sandbox {
    Absent,
    Ready(i32),
    Gone,
}

#[derive(Debug)]
struct Container {
    pid: i32,
    phase: Phase,
    started_at_ns: Option<i64>,
    delete_callers: Vec<Caller>,
}

#[derive(Debug)]
enum Phase {
    Created,
    Starting { callers: Vec<Caller> },
    Failed { failure: Failure },
    Running,
    Exited { record: ExitRecord },
}

impl Container {
    fn has_exited(&self) -> bool {
        matches!(self.phase, Phase::Exited { .. })
    }

    fn report(&self, id: &str) -> ContainerReport {
        let (state, exit) = match &self.phase {
            Phase::Created | Phase::Starting { .. } | Phase::Failed { .. } => (ContainerState::Created, None),
            Phase::Running => (ContainerState::Running, None),
            Phase::Exited { record } => (ContainerState::Exited, Some(record.clone())),
        };
        ContainerReport {
            id: id.to_owned(),
            pid: exit.is_none().then_some(self.pid),
            state,
            started_at_ns: self.started_at_ns,
            exit,
        }
    }
}

impl Pod {
    /// A pod without a sandbox, in the monitor with this pid.
    pub(crate) fn new(own_pid: i32) -> Self {
        Self {
            own_pid,
            sandbox: Sandbox::Absent,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            ended_execs: VecDeque::new(),
            stop_callers: Vec::new(),
            quit_callers: Vec::new(),
            stopping: false,
            pause_killed: false,
        }
    }

    /// Whether nothing of a pod is here or was: a monitor that nobody talks to may end.
    pub(crate) fn is_unused(&self) -> bool {
        self.sandbox == Sandbox::Absent && self.containers.is_empty()
    }

    /// Whether any process of the pod lives.
    pub(crate) fn has_processes(&self) -> bool {
        matches!(self.sandbox, Sandbox::Ready(_)) || self.containers.values().any(|c| !c.has_exited())
    }

    /// Advances by one input.
    pub(crate) fn step(&mut self, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Request { caller, op } => self.request(caller, op, &mut actions),
            Input::SandboxMade { caller, result } => {
                if let Ok(pid) = result {
                    self.sandbox = Sandbox::Ready(pid);
                }
                actions.push(reply(caller, result.map(|pid| Reply::Started { pid })));
            }
            Input::Created { caller, container, result } => {
                if let Ok(pid) = result {
                    let made = Container {
                        pid,
                        phase: Phase::Created,
                        started_at_ns: None,
                        delete_callers: Vec::new(),
                    };
                    self.containers.insert(container, made);
                }
                actions.push(reply(caller, result.map(|pid| Reply::Started { pid })));
            }
            Input::GateOutcome { container, outcome, at_ns } => {
                self.gate_outcome(&container, outcome, at_ns, &mut actions);
            }
            Input::Exited { container, end, oom_kills, at_ns } => {
                self.exited(&container, end, oom_kills, at_ns, &mut actions);
            }
            Input::Oom { container } => {
                if self.containers.get(&container).is_some_and(|c| !c.has_exited()) {
                    actions.push(Action::Announce(Event::Oom { container }));
                }
            }
            Input::Execed { caller, exec, result } => {
                if result.is_err() {
                    self.execs.remove(&exec);
                }
                actions.push(reply(caller, result.map(|pid| Reply::Started { pid })));
            }
            Input::ExecExited { exec, end } => {
                if self.execs.remove(&exec).is_some() {
                    if self.ended_execs.len() >= MAX_ENDED_EXECS {
                        self.ended_execs.pop_front();
                    }
                    self.ended_execs.push_back((exec.clone(), end.exit_code));
                    actions.push(Action::Announce(Event::ExecExited { exec, exit_code: end.exit_code }));
                }
            }
            Input::PauseExited => {
                self.sandbox = Sandbox::Gone;
                actions.push(Action::Announce(Event::PauseExited));
                self.advance_stop(&mut actions);
            }
        }
        actions
    }

    fn request(&mut self, caller: Caller, op: Op, actions: &mut Vec<Action>) {
        match op {
            Op::Hello { protocols, execs } => actions.push(reply(caller, self.hello(&protocols, execs))),
            Op::Sandbox(request) => actions.push(match self.may_make_sandbox() {
                Ok(()) => Action::MakeSandbox { caller, request },
                Err(refusal) => reply(caller, Err(refusal)),
            }),
            Op::Create(request) => actions.push(match self.may_create(&request) {
                Ok(()) => Action::Create { caller, request },
                Err(refusal) => reply(caller, Err(refusal)),
            }),
            Op::Start { container } => self.start(caller, container, actions),
            Op::Kill { signal, .. } | Op::KillExec { signal, .. } if !(1..=MAX_SIGNAL).contains(&signal) => {
                let failure =
                    Failure::os(Step::Signal, Errno::INVAL).with_message(format!("signal {signal}"));
                actions.push(reply(caller, Err(failure)));
            }
            Op::Kill { container, signal, all } => {
                if self.containers.get(&container).is_some_and(|c| !c.has_exited() || all) {
                    actions.push(if all {
                        Action::KillAll { container }
                    } else {
                        Action::Signal { container, signal }
                    });
                }
                actions.push(reply(caller, Ok(Reply::Done)));
            }
            Op::Exec(request) => match self.may_exec(&request) {
                Ok(()) => {
                    self.execs.insert(request.exec.clone(), request.container.clone());
                    actions.push(Action::Exec { caller, request });
                }
                Err(refusal) => actions.push(reply(caller, Err(refusal))),
            },
            Op::KillExec { exec, signal } => {
                // Also when it has exited: what it left in its cgroup is meant too.
                actions.push(Action::SignalExec { exec, signal });
                actions.push(reply(caller, Ok(Reply::Done)));
            }
            Op::Resize { ref container, .. }
            | Op::Attach { ref container, .. }
            | Op::Pause { ref container }
            | Op::Resume { ref container }
            | Op::Update { ref container, .. } => actions.push(match self.alive(container) {
                Ok(_) => Action::Serve { caller, op },
                Err(refusal) => reply(caller, Err(refusal)),
            }),
            Op::ReopenLog { ref container } => actions.push(match self.containers.get(container) {
                Some(_) => Action::Serve { caller, op },
                None => reply(caller, Err(unknown(container))),
            }),
            Op::Delete { container } => self.delete(caller, container, actions),
            Op::StopSandbox => {
                self.stop_callers.push(caller);
                self.stop(actions);
            }
            Op::Shutdown => {
                self.quit_callers.push(caller);
                self.stop(actions);
            }
        }
    }

    fn hello(&self, protocols: &[u32], asked: Vec<String>) -> Result<Reply, Failure> {
        if !protocols.contains(&PROTOCOL) {
            let message = format!("this monitor speaks protocol {PROTOCOL}, the daemon {protocols:?}");
            return Err(Failure::because(Step::Request, message));
        }
        Ok(Reply::Hello(Hello {
            protocol: PROTOCOL,
            pid: self.own_pid,
            pause: match self.sandbox {
                Sandbox::Ready(pid) => Some(pid),
                Sandbox::Absent | Sandbox::Gone => None,
            },
            containers: self.containers.iter().map(|(id, container)| container.report(id)).collect(),
            execs: asked.into_iter().take(MAX_EXECS).filter_map(|exec| self.exec_report(exec)).collect(),
        }))
    }

    /// None: it was never there, or is forgotten.
    fn exec_report(&self, exec: String) -> Option<ExecReport> {
        if self.execs.contains_key(&exec) {
            return Some(ExecReport { exec, exit_code: None });
        }
        let (_, code) = self.ended_execs.iter().find(|(ended, _)| *ended == exec)?;
        Some(ExecReport { exec, exit_code: Some(*code) })
    }

    fn may_make_sandbox(&self) -> Result<(), Failure> {
        match self.sandbox {
            _ if self.stopping => Err(refused("the sandbox is being stopped")),
            Sandbox::Absent => Ok(()),
            Sandbox::Ready(_) | Sandbox::Gone => Err(refused("the sandbox exists already")),
        }
    }

    /// Containers live only in a sandbox that stands.
    fn ready(&self) -> Result<(), Failure> {
        match self.sandbox {
            _ if self.stopping => Err(refused("the sandbox is being stopped")),
            Sandbox::Ready(_) => Ok(()),
            Sandbox::Absent => Err(refused("the sandbox has not been made")),
            Sandbox::Gone => Err(refused("the sandbox's pause process has exited")),
        }
    }

    fn may_create(&self, request: &CreateRequest) -> Result<(), Failure> {
        self.ready()?;
        if self.containers.contains_key(&request.container) {
            let message = format!("container {} exists already", request.container);
            return Err(Failure { errno: Errno::EXIST.raw_os_error(), ..refused(&message) });
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(refused(&format!("the pod has {MAX_CONTAINERS} containers, which is the most")));
        }
        Ok(())
    }

    fn may_exec(&self, request: &ExecRequest) -> Result<(), Failure> {
        let container = self.alive(&request.container)?;
        if !matches!(container.phase, Phase::Running) {
            return Err(refused(&format!("container {} is not running", request.container)));
        }
        if self.execs.contains_key(&request.exec) {
            let message = format!("exec {} exists already", request.exec);
            return Err(Failure { errno: Errno::EXIST.raw_os_error(), ..refused(&message) });
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(refused(&format!("{MAX_EXECS} processes run in the pod by exec, which is the most")));
        }
        Ok(())
    }

    /// A container whose init lives.
    fn alive(&self, id: &str) -> Result<&Container, Failure> {
        match self.containers.get(id) {
            None => Err(unknown(id)),
            Some(container) if container.has_exited() => Err(refused(&format!("container {id} has exited"))),
            Some(container) => Ok(container),
        }
    }

    fn start(&mut self, caller: Caller, id: String, actions: &mut Vec<Action>) {
        let stands = self.ready();
        let refusal = match (self.containers.get_mut(&id), stands) {
            (None, _) => unknown(&id),
            (Some(_), Err(refusal)) => refusal,
            (Some(container), Ok(())) => match &mut container.phase {
                Phase::Created => {
                    container.phase = Phase::Starting { callers: vec![caller] };
                    actions.push(Action::OpenGate { container: id });
                    return;
                }
                Phase::Starting { callers } => {
                    callers.push(caller);
                    return;
                }
                Phase::Failed { failure } => failure.clone(),
                Phase::Running => refused(&format!("container {id} is running already")),
                Phase::Exited { .. } => refused(&format!("container {id} has exited")),
            },
        };
        actions.push(reply(caller, Err(refusal)));
    }

    fn gate_outcome(
        &mut self,
        id: &str,
        outcome: Result<(), Failure>,
        at_ns: i64,
        actions: &mut Vec<Action>,
    ) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Starting { callers } = &mut container.phase else { return };
        let callers = std::mem::take(callers);
        let answer = match outcome {
            Ok(()) => {
                container.started_at_ns = Some(at_ns);
                container.phase = Phase::Running;
                Ok(Reply::Running { started_at_ns: at_ns })
            }
            Err(failure) => {
                container.phase = Phase::Failed { failure: failure.clone() };
                Err(failure)
            }
        };
        actions.extend(callers.into_iter().map(|caller| reply(caller, answer.clone())));
    }

    fn exited(&mut self, id: &str, end: End, oom_kills: bool, at_ns: i64, actions: &mut Vec<Action>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (start_failure, waiting) = match &mut container.phase {
            Phase::Exited { .. } => return,
            Phase::Created | Phase::Running => (None, Vec::new()),
            Phase::Failed { failure } => (Some(failure.clone()), Vec::new()),
            Phase::Starting { callers } => {
                let failure = Failure::because(Step::Handshake, "init died before it executed its program");
                (Some(failure), std::mem::take(callers))
            }
        };
        if let Some(failure) = &start_failure {
            actions.extend(waiting.into_iter().map(|caller| reply(caller, Err(failure.clone()))));
        }
        // A shell whose child was killed ends with 137 by itself: as for containerd, any kill counts, unless all went well.
        let killed_for_memory = oom_kills && start_failure.is_none() && end.exit_code != 0;
        let record = ExitRecord {
            exit_code: start_failure.as_ref().map_or(end.exit_code, start_failure_code),
            signal: end.signal,
            oom_killed: killed_for_memory,
            started_at_ns: container.started_at_ns,
            // The clock may have been set back meanwhile.
            finished_at_ns: container.started_at_ns.map_or(at_ns, |started| at_ns.max(started)),
            start_failure,
        };
        container.phase = Phase::Exited { record: record.clone() };
        let delete_callers = std::mem::take(&mut container.delete_callers);
        actions.push(Action::Record { container: id.to_owned(), record: record.clone() });
        actions.push(Action::Announce(Event::Exited { container: id.to_owned(), record }));
        if !delete_callers.is_empty() {
            self.containers.remove(id);
            actions.push(Action::Remove { container: id.to_owned() });
            actions.extend(delete_callers.into_iter().map(|caller| reply(caller, Ok(Reply::Done))));
        }
        self.advance_stop(actions);
    }

    fn delete(&mut self, caller: Caller, id: String, actions: &mut Vec<Action>) {
        match self.containers.get_mut(&id) {
            None => actions.push(reply(caller, Ok(Reply::Done))),
            Some(container) if container.has_exited() => {
                self.containers.remove(&id);
                actions.push(Action::Remove { container: id });
                actions.push(reply(caller, Ok(Reply::Done)));
            }
            Some(container) => {
                container.delete_callers.push(caller);
                actions.push(Action::KillAll { container: id });
            }
        }
    }

    /// Kills what runs. A second request kills again: the first may have failed.
    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.stopping = true;
        self.pause_killed = false;
        for (id, _) in self.containers.iter().filter(|(_, container)| !container.has_exited()) {
            actions.push(Action::KillAll { container: id.clone() });
        }
        self.advance_stop(actions);
    }

    /// Goes on with a stop as far as what has exited allows: containers first, then pause, then the answers.
    fn advance_stop(&mut self, actions: &mut Vec<Action>) {
        if !self.stopping || self.containers.values().any(|container| !container.has_exited()) {
            return;
        }
        if let Sandbox::Ready(_) = self.sandbox {
            if !self.pause_killed {
                self.pause_killed = true;
                actions.push(Action::KillPause);
            }
            return;
        }
        let done = |caller| reply(caller, Ok(Reply::Done));
        actions.extend(std::mem::take(&mut self.stop_callers).into_iter().map(done));
        let quit_callers = std::mem::take(&mut self.quit_callers);
        if !quit_callers.is_empty() {
            for container in std::mem::take(&mut self.containers).into_keys() {
                actions.push(Action::Remove { container });
            }
            actions.extend(quit_callers.into_iter().map(done));
            actions.push(Action::Quit);
        }
    }
}

/// What a shell would have told of a program that cannot be executed; 128 for a start that failed otherwise.
fn start_failure_code(failure: &Failure) -> i32 {
    match (failure.step, failure.errno()) {
        (Step::Exec, Some(Errno::NOENT)) => 127,
        (Step::Exec, Some(Errno::ACCESS | Errno::NOEXEC | Errno::PERM)) => 126,
        _ => 128,
    }
}

fn reply(caller: Caller, result: Result<Reply, Failure>) -> Action {
    Action::Reply { caller, result }
}

fn refused(message: &str) -> Failure {
    Failure::because(Step::Request, message)
}

/// ENOENT, so that callers can tell it from every other refusal.
fn unknown(container: &str) -> Failure {
    let message = format!("no container {container} in this pod");
    Failure { errno: Errno::NOENT.raw_os_error(), ..refused(&message) }
}
