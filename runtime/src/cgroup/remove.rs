//! Taking a cgroup away: rmdir(2), which the kernel refuses while a process or a cgroup is in it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::{Failure, Step};

use super::Cgroup;
use super::files::Dir;

impl Cgroup {
    /// Removes it in every hierarchy, with what the container made below it. Processes that are on their way out are
    /// waited for until the deadline; nothing is killed. What is gone already is no error.
    pub fn remove(&self, deadline: Instant) -> Result<(), Failure> {
        if let Some(scope) = &self.scope {
            scope.stop()?;
        }
        let mut waited = false;
        for dir in self.dirs().filter(|dir| dir.owned) {
            loop {
                match rmdir(&dir.path) {
                    Ok(()) => break,
                    Err(Errno::BUSY) => {}
                    Err(errno) => return Err(Failure::at(Step::Cgroup, errno, &dir.path)),
                }
                remove_below(dir);
                match rmdir(&dir.path) {
                    Ok(()) => break,
                    Err(Errno::BUSY) if !waited => {
                        // One wait serves all: a process leaves every hierarchy at once.
                        waited = true;
                        if !self.wait_empty(deadline)? {
                            return Err(Failure::at(Step::Cgroup, Errno::BUSY, &dir.path));
                        }
                    }
                    Err(errno) => return Err(Failure::at(Step::Cgroup, errno, &dir.path)),
                }
            }
        }
        Ok(())
    }
}

/// Removes parents that were made for a cgroup, innermost first, as far as they are empty.
pub fn remove_ancestors(ancestors: &[PathBuf]) {
    let mut deepest_first: Vec<&PathBuf> = ancestors.iter().collect();
    deepest_first.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in deepest_first {
        // EBUSY: another cgroup uses it now, and whoever is last finds it in its own record or leaves it.
        let _ = rustix::fs::rmdir(path);
    }
}

/// Bottom up. What stays is found by the caller's rmdir.
fn remove_below(dir: &Dir) {
    for name in dir.children().unwrap_or_default() {
        if rustix::fs::unlinkat(&dir.fd, name.as_str(), AtFlags::REMOVEDIR) == Err(Errno::BUSY) {
            if let Ok(child) = dir.below(&name) {
                remove_below(&child);
            }
            let _ = rustix::fs::unlinkat(&dir.fd, name.as_str(), AtFlags::REMOVEDIR);
        }
    }
}

fn rmdir(path: &Path) -> Result<(), Errno> {
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(errno) => Err(errno),
    }
}
