//! Staying with a process until it exits: signals are passed on, its terminal is relayed, its exit status becomes ours.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime::signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::terminal::Relay;

/// The signals that are ours to pass on, held back from the moment this is made.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks all signals and collects them in a descriptor. Before the process exists they are for, so that none is lost.
    pub(crate) fn hold() -> Result<Self> {
        let mut all = SigSet::all();
        // These tell of our own faults, at once.
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTRAP,
        ] {
            all.remove(fault);
        }
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&all, flags).context("signalfd")?))
    }
}

/// Waits for a child of ours. The result is its exit status, or 128 and the signal that killed it.
pub(crate) fn supervise(signals: &Signals, pidfd: &OwnedFd, mut relay: Option<Relay>) -> Result<u8> {
    loop {
        let mut ready = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
        if let Some(relay) = &relay {
            ready.extend(relay.interest());
        }
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno).context("wait for the container"),
        }
        let exited = !ready[0].revents().is_empty();
        let signalled = !ready[1].revents().is_empty();
        let stdin = rustix::stdio::stdin();
        let stdin_ready = ready[2..].iter().any(|fd| {
            use std::os::fd::AsRawFd;
            fd.as_fd().as_raw_fd() == stdin.as_raw_fd() && !fd.revents().is_empty()
        });
        drop(ready);
        if let Some(relay) = &mut relay {
            relay.step(stdin_ready)?;
        }
        if signalled {
            forward(signals, pidfd, relay.as_ref())?;
        }
        if exited {
            if let Some(relay) = &mut relay {
                relay.output()?;
            }
            return reap(pidfd);
        }
    }
}

fn forward(signals: &Signals, pidfd: &OwnedFd, relay: Option<&Relay>) -> Result<()> {
    while let Some(info) = signals.0.read_signal().context("read signals")? {
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        match (number, relay) {
            (libc::SIGCHLD | libc::SIGURG, _) => {}
            (libc::SIGWINCH, Some(relay)) => relay.resize(),
            _ => match signal::send(pidfd.as_fd(), number) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno).context("pass a signal on"),
            },
        }
    }
    Ok(())
}

/// The exit status of a child that has exited.
fn reap(pidfd: &OwnedFd) -> Result<u8> {
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => break status,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("reap the container"),
        }
    };
    let code = match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 255,
        },
        None => 255,
    };
    Ok(u8::try_from(code).unwrap_or(255))
}
