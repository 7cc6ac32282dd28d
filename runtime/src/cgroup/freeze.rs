//! Stopping and resuming every process of a cgroup.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::{Failure, Step};

use super::files::Dir;
use super::wait::{Events, timespec};
use super::{Cgroup, Controller};

impl Cgroup {
    /// Freezes it and all below, and waits until that is complete. If it is not by the deadline, it is thawed again.
    pub fn freeze(&self, deadline: Instant) -> Result<(), Failure> {
        let frozen = match (&self.v2, self.of_v1(Controller::Freezer)) {
            (Some(dir), _) => freeze_v2(dir, deadline)?,
            (None, Some(dir)) => freeze_v1(dir, deadline)?,
            (None, None) => {
                return Err(Failure::because(Step::Cgroup, "no freezer is available on this host"));
            }
        };
        if frozen {
            return Ok(());
        }
        self.thaw()?;
        Err(Failure::because(Step::Cgroup, "unable to freeze"))
    }

    /// Resumes it, whichever hierarchy froze it.
    pub fn thaw(&self) -> Result<(), Failure> {
        if let Some(dir) = &self.v2 {
            dir.set("cgroup.freeze", "0")?;
        }
        match self.of_v1(Controller::Freezer) {
            Some(dir) if dir.owned => dir.set("freezer.state", "THAWED"),
            _ => Ok(()),
        }
    }

    /// Whether it was frozen itself (an ancestor's freezing does not count). A freeze under way counts.
    pub fn is_frozen(&self) -> Result<bool, Failure> {
        if let Some(dir) = &self.v2 {
            match dir.read("cgroup.freeze") {
                Ok(text) if text.starts_with('1') => return Ok(true),
                Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(dir.failed(errno, "cgroup.freeze")),
            }
        }
        match self.of_v1(Controller::Freezer) {
            Some(dir) => match dir.read("freezer.self_freezing") {
                Ok(text) => Ok(text.starts_with('1')),
                Err(Errno::NOENT | Errno::NODEV) => Ok(false),
                Err(errno) => Err(dir.failed(errno, "freezer.self_freezing")),
            },
            None => Ok(false),
        }
    }
}

fn freeze_v2(dir: &Dir, deadline: Instant) -> Result<bool, Failure> {
    dir.set("cgroup.freeze", "1")?;
    let events = Events::open(dir).map_err(|errno| dir.failed(errno, "cgroup.events"))?;
    events.wait("frozen", true, deadline).map_err(|errno| dir.failed(errno, "cgroup.events"))
}

/// Only where there is no v2. The v1 freezer says FREEZING while a task is still on its way (reading the state is what
/// completes it), a task that joins or forks meanwhile can keep it there until the state is written again, and no event tells: it is asked
/// again after waits that double from 50 us to 10 ms.
fn freeze_v1(dir: &Dir, deadline: Instant) -> Result<bool, Failure> {
    let mut pause = Duration::from_micros(50);
    loop {
        dir.set("freezer.state", "FROZEN")?;
        if dir.text("freezer.state")?.starts_with("FROZEN") {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let _ = rustix::event::poll(&mut [], Some(&timespec(pause.min(left))));
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
