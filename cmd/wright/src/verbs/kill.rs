//! `wright kill`: a signal for a container.

use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail};
use runtime::signal;
use runtime::state::Status;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cli::{Command, Count, Parsed, switch};
use crate::container::Container;
use crate::globals::Globals;

/// SIGKILL.
const KILL: i32 = 9;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "kill",
    usage: "kill sends the specified signal (default: SIGTERM) to the container's init process",
    arguments: "<container-id> [signal]",
    description: "The signal is a name, with or without SIG, or a number.",
    flags: &[switch("all", Some("a"), "send the specified signal to all processes inside the container")],
    count: Count::Between(1, 2),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let container = Container::open(globals, parsed.id())?;
    let name = parsed.positionals.get(1).map_or("SIGTERM", String::as_str);
    // 0 asks whether there is a process (kill(2)).
    let signal = match name {
        "0" => 0,
        name => signal::parse(name).ok_or_else(|| anyhow!("unknown signal {name:?}"))?,
    };
    if parsed.on("all") {
        all(&container, signal)?;
    } else {
        init(&container, signal)?;
    }
    Ok(0)
}

fn init(container: &Container, signal: i32) -> Result<()> {
    let pidfd = container.pidfd();
    let shared = signal == KILL && !has_own_pid_namespace(container);
    match &pidfd {
        Some(pidfd) => match signal::send(pidfd.as_fd(), signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => bail!("container not running"),
            Err(errno) => return Err(errno).context("signal container init"),
        },
        None if shared && container.pids().is_ok_and(|pids| !pids.is_empty()) => {}
        None => bail!("container not running"),
    }
    // The kernel kills with its PID 1 what is in a PID namespace; what shares another must be found.
    if shared {
        return all(container, signal);
    }
    if signal == KILL
        && container.status() == Status::Paused
        && let Some(cgroup) = container.cgroup()
    {
        // A task frozen by v1 does not even die.
        cgroup.thaw()?;
    }
    Ok(())
}

fn all(container: &Container, signal: i32) -> Result<()> {
    if signal == KILL
        && let Some(cgroup) = container.cgroup().filter(|_| !container.record.cgroup.directories.is_empty())
    {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        cgroup.kill_all(deadline)?;
        return Ok(());
    }
    for pid in container.pids()? {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let sent = match pid {
            Some(pid) => {
                pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| signal::send(pidfd.as_fd(), signal))
            }
            None => Ok(()),
        };
        match sent {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno).context("signal a process of the container"),
        }
    }
    Ok(())
}

/// Whether the container made a PID namespace. When in doubt it has not.
fn has_own_pid_namespace(container: &Container) -> bool {
    container.plan().is_ok_and(|plan| plan.namespaces.is_new(runtime::plan::NamespaceKind::Pid))
}
