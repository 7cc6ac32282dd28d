//! The parent of a network plugin: nothing that the plugin starts gets out from below it, whatever session, process group or parent it
//! chooses.
//!
//! ```text
//! daemon --> parent (subreaper) --> plugin --> …        orphans of the plugin's processes become the parent's children
//! ```
//!
//! It waits for the plugin and ends as it did; what the plugin has left running goes on. A daemon that wants the end of all stops the
//! parent with SIGSTOP, so that it stays where it is, kills what is below it until nothing is, and then the parent. That works
//! on every host, whatever its cgroups are.

use std::ffi::OsStr;
use std::io;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

/// Runs a plugin below this process, which has to have no other children, with its environment and stdio. Returns its exit code,
/// or 128 and the number of the signal that it died of, as a shell does.
///
/// # Errors
/// It cannot be started, or waited for.
pub fn run(program: &OsStr) -> io::Result<u8> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let plugin = Pid::from_raw(Command::new(program).spawn()?.id().cast_signed());
    loop {
        let (ended, status) = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        // Orphans are waited for as well, and nobody asks how they ended.
        if Some(ended) == plugin {
            let killed = status.terminating_signal().map(|signal| 128 + signal);
            let code = status.exit_status().or(killed).unwrap_or_default();
            return Ok(u8::try_from(code).unwrap_or(u8::MAX));
        }
    }
}
