//! Signals as something to poll for, and the reaping of processes that nobody else reaps.
//!
//! Our own children are waited for by their pidfds. Others become ours because the monitor is a subreaper: what an
//! exec'd process leaves behind in the host's PID namespace, for one. SIGCHLD tells of them.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::io::Errno;

/// Blocks the signals the monitor handles and returns where they can be read.
pub(crate) fn open() -> Result<(SignalFd, OwnedFd), Errno> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        mask.add(signal);
    }
    mask.thread_block().map_err(errno)?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(errno)?;
    let watched = signals.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    Ok((signals, watched))
}

/// Takes every waiting signal. True: one of them asks the monitor to end.
pub(crate) fn take(signals: &SignalFd) -> bool {
    let mut end = false;
    while let Ok(Some(signal)) = signals.read_signal() {
        let asks = [Signal::SIGTERM, Signal::SIGINT].map(|signal| signal as u32);
        end |= asks.contains(&signal.ssi_signo);
    }
    end
}

/// The pid of a child that has exited and is not reaped. It stays so.
pub(crate) fn exited_child() -> Option<i32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => Some(pid.as_raw()),
        _ => None,
    }
}

/// Reaps a child that has exited; how it ended is nobody's business.
pub(crate) fn reap(pid: i32) {
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}
