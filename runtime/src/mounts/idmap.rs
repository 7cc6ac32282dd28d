//! The user namespace that an idmapped mount takes its mapping from (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
//!
//! The kernel reads a mapping from a user namespace only. A mapping that no namespace has yet gets one for the moment:
//!
//! ```text
//!   caller                              holder, in a new user namespace
//!   clone3(CLONE_NEWUSER) ------------> reads /proc/self: its pid as this procfs counts
//!   writes /proc/PID/{uid,gid}_map <--- tells it
//!   opens /proc/PID/ns/user
//!   closes the socket ----------------> ends
//! ```
//!
//! The descriptor outlives the process.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::plan::IdMap;
use crate::sys::{self, Clone3, Forked};

/// A user namespace with these maps. For a process with one thread that may write any map.
pub(crate) fn user_namespace(uid_maps: &[IdMap], gid_maps: &[IdMap]) -> Result<OwnedFd, Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let arguments = Clone3 { namespaces: u64::from(libc::CLONE_NEWUSER.unsigned_abs()), ..Clone3::default() };
    match sys::clone3(&arguments)? {
        Forked::Child => {
            drop(ours);
            hold(theirs.as_fd())
        }
        Forked::Parent { pidfd, .. } => {
            drop(theirs);
            let namespace = take(ours.as_fd(), uid_maps, gid_maps);
            drop(ours);
            // Its end is certain: it waits for this socket and nothing else.
            while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
            namespace
        }
    }
}

/// Whether the user namespace at `path`, the `/proc/PID/ns/user` of a process in it, has just these maps. On doubt it has not.
pub(super) fn has_maps(path: &Path, uid_maps: &[IdMap], gid_maps: &[IdMap]) -> bool {
    let Some(process) = path.parent().and_then(Path::parent).filter(|_| path.ends_with("ns/user")) else {
        return false;
    };
    let has = |file: &str, maps: &[IdMap]| {
        std::fs::read_to_string(process.join(file)).is_ok_and(|text| parse(&text) == Some(maps.to_vec()))
    };
    has("uid_map", uid_maps) && has("gid_map", gid_maps)
}

/// A map as procfs shows it.
fn parse(text: &str) -> Option<Vec<IdMap>> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut number = || numbers.next()?.ok();
        Some(IdMap { container_id: number()?, host_id: number()?, length: number()? })
    };
    text.lines().map(line).collect()
}

/// The holder: tells its pid and waits for the other end to go away.
fn hold(socket: BorrowedFd<'_>) -> ! {
    let pid = rustix::fs::readlink(c"/proc/self", Vec::new());
    if let Ok(pid) = pid
        && rustix::io::write(socket, pid.as_bytes()).is_ok()
    {
        let mut nothing = [0];
        while let Err(Errno::INTR) = rustix::io::read(socket, &mut nothing) {}
    }
    sys::exit_now(0)
}

fn take(socket: BorrowedFd<'_>, uid_maps: &[IdMap], gid_maps: &[IdMap]) -> Result<OwnedFd, Errno> {
    let mut pid = [0; 32];
    let length = rustix::io::read(socket, &mut pid)?;
    let pid = std::str::from_utf8(&pid[..length]).ok().filter(|pid| !pid.is_empty()).ok_or(Errno::SRCH)?;
    write_map(&format!("/proc/{pid}/uid_map"), uid_maps)?;
    write_map(&format!("/proc/{pid}/gid_map"), gid_maps)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/ns/user"), flags, Mode::empty())
}

/// A map takes one write(2) only.
fn write_map(path: &str, maps: &[IdMap]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, lines(maps).as_bytes()).map(drop)
}

fn lines(maps: &[IdMap]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", map.container_id, map.host_id, map.length);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_lines_of_inside_outside_length() {
        let maps = [
            IdMap { container_id: 0, host_id: 100_000, length: 65_536 },
            IdMap { container_id: 65_536, host_id: 5, length: 1 },
        ];
        assert_eq!(lines(&maps), "0 100000 65536\n65536 5 1\n");
        assert_eq!(
            parse("         0     100000      65536\n     65536          5          1\n").unwrap(),
            maps
        );
        assert_eq!(parse("0 x 1"), None);
    }

    #[test]
    fn a_namespaces_maps_are_its_own() {
        let own = parse(&std::fs::read_to_string("/proc/self/uid_map").unwrap()).unwrap();
        let groups = parse(&std::fs::read_to_string("/proc/self/gid_map").unwrap()).unwrap();
        let path = Path::new("/proc/self/ns/user");
        assert!(has_maps(path, &own, &groups));
        assert!(!has_maps(path, &[], &groups));
        assert!(!has_maps(Path::new("/run/user-namespace"), &own, &groups));
    }
}
