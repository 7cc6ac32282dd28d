//! Which processes are in a cgroup.

use rustix::io::Errno;

use crate::Failure;

use super::Cgroup;
use super::files::Dir;

impl Cgroup {
    /// Processes in this cgroup; `recursive`: and in those below it. A cgroup that is gone has none.
    pub fn pids(&self, recursive: bool) -> Result<Vec<u32>, Failure> {
        let mut pids = Vec::new();
        if let Some(dir) = self.membership() {
            collect(dir, recursive, &mut pids)?;
        }
        Ok(pids)
    }

    /// The hierarchy that tells who is in: v2, which has one answer; else a v1 directory that is this cgroup's alone.
    pub(super) fn membership(&self) -> Option<&Dir> {
        self.v2.as_ref().or_else(|| {
            let freezer = self.of_v1(super::Controller::Freezer);
            freezer.or_else(|| self.v1.iter().find(|dir| dir.owned))
        })
    }
}

fn collect(dir: &Dir, recursive: bool, pids: &mut Vec<u32>) -> Result<(), Failure> {
    match dir.read("cgroup.procs") {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        // Removed meanwhile; or a threaded cgroup, whose processes its domain lists.
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(dir.failed(errno, "cgroup.procs")),
    }
    if recursive {
        for name in dir.children().unwrap_or_default() {
            match dir.below(&name) {
                Ok(child) => collect(&child, true, pids)?,
                Err(failure) if failure.errno() == Some(Errno::NOENT) => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(())
}
