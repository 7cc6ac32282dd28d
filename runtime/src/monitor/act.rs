//! What the state machine says is to be done, done: the other half of [`serve`](super::serve).

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::attach::ClientFds;
use super::engine;
use super::log::Log;
use super::pod::{Action, Caller, Input};
use super::poll::{Kind, Token};
use super::protocol::{CreateRequest, ExecRequest, Message, Op, Reply};
use super::serve::{Container, Exec, Gate, KILL_DEADLINE, Oom, Pause, Server};
use super::stdio::{self, Stdio};
use crate::cgroup::{self, Limits};
use crate::container::run_poststop_hooks;
use crate::failure::sentence;
use crate::{Failure, Step, pause, signal, spec};

impl Server {
    /// Does one action. What it makes known is the machine's next input.
    pub(super) fn act(&mut self, action: Action, fds: &mut Vec<OwnedFd>) -> Option<Input> {
        match action {
            Action::Reply { caller, result } => {
                // What is here now was made for the caller by the action before; what came from it was used up by that.
                let made = matches!(result, Ok(Reply::Started { .. })).then(|| std::mem::take(fds));
                self.reply(caller, result, made.unwrap_or_default());
            }
            Action::Announce(event) => self.announce(&Message::Event(event)),
            Action::MakeSandbox { caller, request } => {
                let result = self.make_pause(&request);
                return Some(Input::SandboxMade { caller, result });
            }
            Action::Create { caller, request } => {
                let result = self.create(&request, std::mem::take(fds));
                self.trim_due = true;
                return Some(Input::Created { caller, container: request.container, result });
            }
            Action::OpenGate { container } => return self.open_gate(container),
            Action::Exec { caller, request } => {
                let result = self.exec(&request, std::mem::take(fds)).map(|(pid, terminal)| {
                    fds.extend(terminal);
                    pid
                });
                self.trim_due = true;
                return Some(Input::Execed { caller, exec: request.exec, result });
            }
            Action::Serve { caller, op } => {
                let result = self.serve(op, std::mem::take(fds)).map(|()| Reply::Done);
                self.reply(caller, result, Vec::new());
            }
            Action::Signal { container, signal } => self.signal(&container, signal),
            Action::KillAll { container } => self.kill_all(&container),
            Action::SignalExec { exec, signal } => self.signal_exec(&exec, signal),
            Action::Record { container, record } => {
                if let Some(bundle) = self.by_id(&container).map(|(_, container)| container.bundle.clone()) {
                    self.save(bundle, record);
                }
            }
            Action::Remove { container } => self.remove(&container),
            Action::KillPause => {
                if let Some(pause) = &self.pause
                    && let Err(errno) = signal::send(pause.pidfd.as_fd(), libc::SIGKILL)
                {
                    tracing::error!(errno = errno.raw_os_error(), "kill pause");
                }
            }
            Action::Quit => self.quit(),
        }
        None
    }

    fn reply(&mut self, caller: Caller, result: Result<Reply, Failure>, fds: Vec<OwnedFd>) {
        let Ok(number) = u32::try_from(caller.connection) else { return };
        if let Err(failure) = &result {
            tracing::debug!(%failure, "a request failed");
        }
        let greets = matches!(result, Ok(Reply::Hello(_)));
        let result = match result {
            Ok(Reply::Hello(hello)) => Ok(Reply::Hello(hello.fit(|id| self.is_saved(id)))),
            other => other,
        };
        self.send(number, &Message::Reply { id: caller.request, result }, fds);
        if greets && let Some(connection) = self.connections.get_mut(&number) {
            connection.greeted = true;
        }
    }

    fn announce(&mut self, message: &Message) {
        let greeted = self.connections.iter().filter(|(_, connection)| connection.greeted);
        let numbers: Vec<u32> = greeted.map(|(number, _)| *number).collect();
        for number in numbers {
            self.send(number, message, Vec::new());
        }
    }

    fn make_pause(&mut self, request: &super::protocol::SandboxRequest) -> Result<i32, Failure> {
        let span = tracing::debug_span!("pause_start");
        let _entered = span.enter();
        let pause::Pause { pid, pidfd } = pause::start(request)?;
        let pidfd = self
            .poll
            .watch(pidfd, Token::new(Kind::Pause, 0), Some(EventFlags::IN))
            .map_err(|errno| Failure::os(Step::Clone, errno).with_message("wait for pause"))?;
        self.pause = Some(Pause { pid, pidfd });
        Ok(pid)
    }

    fn create(&mut self, request: &CreateRequest, fds: Vec<OwnedFd>) -> Result<i32, Failure> {
        let span = tracing::debug_span!("container_create", container = request.container);
        let _entered = span.enter();
        // The log first: it is the cheapest to fail, and leaves nothing.
        let part_bytes = usize::try_from(request.log_part_bytes).unwrap_or(0);
        let log = Log::open(request.log_path.as_deref(), part_bytes)?;
        let made = match engine::create(request, fds, &self.hierarchies) {
            Ok(made) => made,
            Err(failure) => {
                log.discard();
                return Err(failure);
            }
        };
        let number = self.number();
        let (pid, cgroup) = (made.pid, made.cgroup);
        let assembled = {
            let (poll, token) = (&self.poll, |kind| Token::new(kind, number));
            let input = stdio::Input { kept: request.stdin, once: request.stdin_once };
            let gate_end = made.gate.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE);
            let parts = || {
                let pidfd = poll.watch(made.pidfd, token(Kind::Init), Some(EventFlags::IN))?;
                let gate = poll.watch(gate_end?, token(Kind::Gate), None)?;
                Ok((pidfd, gate, Stdio::new(poll, number, log, made.ends, input)?))
            };
            parts()
        };
        let (pidfd, watched, stdio) = match assembled {
            Ok(parts) => parts,
            Err(errno) => {
                // Dropping the gate ends init; its zombie is reaped by SIGCHLD.
                give_up(&cgroup);
                return Err(Failure::os(Step::Clone, errno).with_message("wait for the container"));
            }
        };
        let container = Container {
            id: request.container.clone(),
            bundle: request.bundle.clone(),
            pid,
            pidfd: Some(pidfd),
            gate: Some(Gate { starter: made.gate, watched, opened: false }),
            oom: self.watch_memory(number, &cgroup),
            oom_above: cgroup.oom_above().map(|above| (above, self.oom_told)),
            cgroup,
            stdio,
            own_pids: made.own_pids,
            plan: made.plan,
            root: made.root,
            seccomp: made.seccomp,
        };
        self.containers.insert(number, container);
        Ok(pid)
    }

    /// Out-of-memory notices are a comfort: without them the exit record still tells.
    fn watch_memory(&self, number: u32, cgroup: &cgroup::Cgroup) -> Option<Oom> {
        let watch = match cgroup.oom_watch() {
            Ok(watch) => watch?,
            Err(failure) => {
                tracing::debug!(%failure, "no out-of-memory notices for this container");
                return None;
            }
        };
        let fd = watch.as_fd().try_clone_to_owned().ok()?;
        let watched = self.poll.watch(fd, Token::new(Kind::Oom, number), Some(EventFlags::IN)).ok()?;
        Some(Oom { watch, _watched: watched, seen: 0 })
    }

    fn open_gate(&mut self, id: String) -> Option<Input> {
        let (_, container) = self.by_id_mut(&id)?;
        let gate = container.gate.as_mut()?;
        gate.opened = true;
        let opened = gate.starter.open().and_then(|()| {
            gate.watched
                .set(Some(EventFlags::IN))
                .map_err(|errno| Failure::os(Step::Handshake, errno).with_message("wait for the start gate"))
        });
        let failure = opened.err()?;
        // Init is gone or will never be heard of: either way it is not to live on.
        self.kill_all(&id);
        let at_ns = stdio::realtime_ns();
        Some(Input::GateOutcome { container: id, outcome: Err(failure), at_ns })
    }

    /// The process's pid, and its terminal's master where it has one.
    fn exec(&mut self, request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<(i32, Option<OwnedFd>), Failure> {
        let span = tracing::debug_span!("exec", container = request.container, exec = request.exec);
        let _entered = span.enter();
        self.forget_ended_execs();
        let number = self.number();
        let lives = self.by_id_mut(&request.container).ok_or_else(|| gone(&request.container))?;
        let (container, Container { pid, pidfd, cgroup, root, seccomp, bundle, plan, .. }) = lives;
        let pidfd = pidfd.as_ref().ok_or_else(|| gone(&request.container))?.as_fd();
        // A process that begins in a frozen cgroup would be waited for until the deadline.
        if cgroup.is_frozen()? {
            let message = format!("container {} is paused", request.container);
            return Err(Failure::because(Step::Request, message));
        }
        let (seccomp, plan) = (seccomp.as_ref(), plan.as_deref());
        let target = engine::Target { pid: *pid, pidfd, cgroup, root: *root, seccomp, bundle, plan };
        let made = engine::exec(request, fds, target, number)?;
        let pidfd = self
            .poll
            .watch(made.pidfd, Token::new(Kind::Exec, number), Some(EventFlags::IN))
            .map_err(|errno| Failure::os(Step::Clone, errno).with_message("wait for the process"))?;
        let exec = Exec {
            id: request.exec.clone(),
            container,
            pid: made.pid,
            pidfd: Some(pidfd),
            cgroup: made.cgroup,
            limit: request
                .limit_ms
                .and_then(|limit| Instant::now().checked_add(Duration::from_millis(limit))),
        };
        self.execs.insert(number, exec);
        Ok((made.pid, made.terminal))
    }

    /// What concerns one container and changes nothing of its state.
    fn serve(&mut self, op: Op, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        match op {
            Op::Resize { container, width, height } => {
                self.container(&container)?.stdio.resize(width, height)
            }
            Op::Attach { container, attach, stdin, stdout, stderr } => {
                let wanted = [stdin, stdout, stderr];
                if fds.len() != wanted.iter().filter(|wanted| **wanted).count() {
                    let message = format!("{} descriptors came with an attach of {wanted:?}", fds.len());
                    return Err(Failure::because(Step::Request, message));
                }
                let mut fds = fds.into_iter();
                let [stdin, stdout, stderr] = wanted.map(|wanted| if wanted { fds.next() } else { None });
                self.container(&container)?.stdio.attach(attach, ClientFds { stdin, stdout, stderr })
            }
            Op::ReopenLog { container } => {
                let stdio = &mut self.container(&container)?.stdio;
                stdio.log().reopen()?;
                stdio.retry_log();
                Ok(())
            }
            Op::Update { container, resources } => {
                let resources: LinuxResources = spec::parse_value(resources.to_string().as_bytes())
                    .map_err(|error| Failure::because(Step::Config, sentence(&error)))?;
                let limits = Limits::from_spec(&resources)
                    .map_err(|error| Failure::because(Step::Cgroup, sentence(&error)))?;
                self.container(&container)?.cgroup.update(&limits)
            }
            Op::Pause { container } => {
                self.container(&container)?.cgroup.freeze(Instant::now() + KILL_DEADLINE)
            }
            Op::Resume { container } => self.container(&container)?.cgroup.thaw(),
            other => Err(Failure::because(Step::Request, format!("{other:?} is not served here"))),
        }
    }

    fn signal(&self, id: &str, number: i32) {
        let Some((_, container)) = self.by_id(id) else { return };
        let Some(pidfd) = &container.pidfd else { return };
        if let Err(errno) = signal::send(pidfd.as_fd(), number)
            && errno != Errno::SRCH
        {
            tracing::warn!(container = id, signal = number, errno = errno.raw_os_error(), "send a signal");
        }
    }

    /// Kills all of a container, or at least its init.
    fn kill_all(&self, id: &str) {
        let Some((_, container)) = self.by_id(id) else { return };
        if let Err(failure) = container.cgroup.send_kill(Instant::now() + KILL_DEADLINE) {
            tracing::warn!(container = id, %failure, "kill a container's cgroup: its init is killed alone");
            self.signal(id, libc::SIGKILL);
        }
    }

    pub(super) fn signal_exec(&self, id: &str, number: i32) {
        for exec in self.execs.values().filter(|exec| exec.id == id) {
            let result = match (&exec.cgroup, &exec.pidfd) {
                (Some(cgroup), _) if number == libc::SIGKILL => {
                    cgroup.send_kill(Instant::now() + KILL_DEADLINE)
                }
                (_, Some(pidfd)) => match signal::send(pidfd.as_fd(), number) {
                    Err(errno) if errno != Errno::SRCH => Err(Failure::os(Step::Signal, errno)),
                    _ => Ok(()),
                },
                (_, None) => Ok(()),
            };
            if let Err(failure) = result {
                tracing::warn!(exec = id, signal = number, %failure, "signal an exec'd process");
            }
        }
    }

    fn remove(&mut self, id: &str) {
        let Some(number) = self.by_id(id).map(|(number, _)| number) else { return };
        let Some(mut container) = self.containers.remove(&number) else { return };
        let span = tracing::debug_span!("container_remove", container = id);
        let _entered = span.enter();
        self.forget_record(&container.bundle);
        container.stdio.retry_log();
        let lost = container.stdio.log().give_up();
        if lost > 0 {
            tracing::error!(
                container = id,
                bytes = lost,
                "the disk never took the end of the container's log"
            );
        }
        // Its execs die with it; their exits are still told.
        give_up(&container.cgroup);
        if let Some(plan) = &container.plan {
            for failure in run_poststop_hooks(id, &container.bundle, plan) {
                tracing::warn!(container = id, %failure, "a poststop hook");
            }
        }
        for exec in self.execs.values_mut().filter(|exec| exec.container == number) {
            exec.cgroup = None;
        }
        self.forget_ended_execs();
        self.trim_due = true;
    }

    fn by_id(&self, id: &str) -> Option<(u32, &Container)> {
        let found = self.containers.iter().find(|(_, container)| container.id == id);
        found.map(|(number, container)| (*number, container))
    }

    fn by_id_mut(&mut self, id: &str) -> Option<(u32, &mut Container)> {
        let found = self.containers.iter_mut().find(|(_, container)| container.id == id);
        found.map(|(number, container)| (*number, container))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.by_id_mut(id).map(|(_, container)| container).ok_or_else(|| gone(id))
    }
}

/// Kills what is left in a cgroup and takes it away, with the parents that were made for it.
fn give_up(cgroup: &cgroup::Cgroup) {
    let removed = cgroup.remove(Instant::now()).or_else(|_| {
        let deadline = Instant::now() + KILL_DEADLINE;
        cgroup.kill_all(deadline)?;
        cgroup.remove(deadline)
    });
    match removed {
        Ok(()) => cgroup::remove_ancestors(cgroup.made_ancestors()),
        Err(failure) => tracing::error!(%failure, "remove a container's cgroup"),
    }
}

fn gone(id: &str) -> Failure {
    Failure::because(Step::Request, format!("container {id} is not there any more"))
}
