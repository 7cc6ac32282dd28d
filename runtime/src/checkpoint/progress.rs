//! Whether a restore still gets on.
//!
//! How long one may take depends on how much memory comes from where, so it has no deadline. It has instead what a dead one lacks: criu, and
//! the processes that it makes and that fill their memory themselves, use their CPUs or read something.

use std::path::Path;
use std::time::{Duration, Instant};

/// A restore in which nothing has run, read or written for so long is given up.
pub(super) const STILL_FOR: Duration = Duration::from_secs(60);

/// How often it is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The most processes that are looked at.
const MAX_PROCESSES: usize = 4096;

/// What the descendants of this process have done, and since when it is no more than that.
#[derive(Debug)]
pub(super) struct Progress {
    done: u64,
    since: Instant,
}

impl Progress {
    /// As of now.
    pub(super) fn begin() -> Self {
        Self { done: done(), since: Instant::now() }
    }

    /// Looks again. False: nothing has moved for [`STILL_FOR`].
    pub(super) fn goes_on(&mut self) -> bool {
        self.noted(done(), Instant::now())
    }

    fn noted(&mut self, done: u64, now: Instant) -> bool {
        // Less is progress too: somebody has ended.
        if done != self.done {
            *self = Self { done, since: now };
        }
        now.duration_since(self.since) < STILL_FOR
    }
}

/// Ticks of CPU time and bytes read and written, of all descendants of this process, added up: only ever compared.
fn done() -> u64 {
    let own = std::process::id();
    let mut found = children(own);
    let mut next = 0;
    let mut sum = 0_u64;
    while let Some(&pid) = found.get(next) {
        next += 1;
        sum = sum.wrapping_add(work_of(Path::new(&format!("/proc/{pid}"))));
        found.extend(children(pid));
        found.truncate(MAX_PROCESSES);
    }
    sum
}

/// See proc_pid_task_tid_children(5); criu needs a kernel that has it.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn work_of(process: &Path) -> u64 {
    let read = |file: &str| std::fs::read_to_string(process.join(file)).unwrap_or_default();
    ticks(&read("stat")).wrapping_add(bytes(&read("io")))
}

/// utime and stime of a stat line (proc_pid_stat(5)); the name in parentheses may hold anything.
fn ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// rchar and wchar (proc_pid_io(5)).
fn bytes(io: &str) -> u64 {
    let of =
        |name| io.lines().find_map(move |line: &str| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    ["rchar:", "wchar:"].into_iter().filter_map(of).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_s_work_is_its_time_and_its_bytes() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 30 12 5 5 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), 42);
        assert_eq!(ticks("gone"), 0);
        assert_eq!(bytes("rchar: 10\nwchar: 5\nsyscr: 1\nread_bytes: 3\n"), 15);
        assert_eq!(bytes(""), 0);
    }

    #[test]
    fn what_stands_still_is_given_up_and_what_moves_is_not() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut progress = Progress { done: 5, since: start };
        assert!(progress.noted(5, after(59)));
        assert!(progress.noted(6, after(59)));
        assert!(progress.noted(6, after(118)));
        assert!(!progress.noted(6, after(119)));
    }
}
