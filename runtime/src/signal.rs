//! Signals by name and number, real-time ones too. See signal(7).

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::sys;

/// The highest signal number. See signal(7), "Real-time signals".
const MAX: i32 = 64;

/// The lowest real-time signal the C library leaves to programs.
const RTMIN: i32 = 34;

/// The names on this architecture, without `SIG`.
const NAMES: [(&str, i32); 36] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", 34),
    ("RTMAX", 64),
];

/// What a signal that ended a process means, in few words. See signal(7).
pub(crate) fn describe(signal: i32) -> String {
    let words = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        other => return other.to_string(),
    };
    words.to_owned()
}

/// The number of a signal given as such, or by its name in any case, with or without `SIG`; `RTMIN+3` and `RTMAX-1` too.
/// None: there is no such signal.
pub fn parse(text: &str) -> Option<i32> {
    let number = text.parse::<i32>().ok().or_else(|| named(text))?;
    (1..=MAX).contains(&number).then_some(number)
}

/// Sends a signal to the process a descriptor pins; 0 only asks whether it could be sent.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    sys::signal::pidfd_send(pidfd, signal)
}

fn named(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (name, offset) = match name.split_once(['+', '-']) {
        Some((base, offset)) if matches!(base, "RTMIN" | "RTMAX") => {
            let offset: i32 = offset.parse().ok()?;
            (base, if name.contains('+') { offset } else { -offset })
        }
        _ => (name, 0),
    };
    let (_, number) = NAMES.iter().find(|(known, _)| *known == name)?;
    let number = number + offset;
    (offset == 0 || (RTMIN..=MAX).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_signal() {
        for text in ["9", "KILL", "kill", "SIGKILL", "sigkill"] {
            assert_eq!(parse(text), Some(9), "{text}");
        }
        assert_eq!(parse("RTMIN+3"), Some(37));
        assert_eq!(parse("SIGRTMAX-1"), Some(63));
        for text in ["", "0", "65", "-9", "SIG", "KILL+1", "RTMIN-1", "RTMAX+1", "9x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
