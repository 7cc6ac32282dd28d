//! Standard streams: a terminal, or three descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;
use rustix::termios::{Winsize, isatty, tcsetwinsize};

use crate::plan;
use crate::{Failure, Step};

/// Makes `peer` the controlling terminal of the caller, which leads its session, and its three standard streams; gives it the plan's
/// size and user.
pub(crate) fn take_terminal(peer: OwnedFd, process: &plan::Process) -> Result<(), Failure> {
    let failure = |errno, what: &str| Failure::os(Step::Console, errno).with_message(what);
    let peer = above_stdio(peer).map_err(|errno| failure(errno, "duplicate the terminal"))?;
    if let Some((columns, rows)) = process.console_size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&peer, size).map_err(|errno| failure(errno, "set the terminal's size"))?;
    }
    give(peer.as_fd(), process.uid)?;
    rustix::process::ioctl_tiocsctty(&peer)
        .map_err(|errno| failure(errno, "set the controlling terminal"))?;
    take([peer.as_fd(); 3])
}

/// Makes the three descriptors the standard streams of the caller. Pipes and terminals among them become the user's, so that the
/// program can open them again through /dev/stdout and its like.
pub(crate) fn take_stdio(stdio: [OwnedFd; 3], process: &plan::Process) -> Result<(), Failure> {
    let mut moved = Vec::with_capacity(stdio.len());
    for fd in stdio {
        moved.push(above_stdio(fd).map_err(|errno| Failure::os(Step::Console, errno))?);
    }
    for fd in &moved {
        if has_an_owner_that_matters(fd.as_fd())? {
            give(fd.as_fd(), process.uid)?;
        }
    }
    take([moved[0].as_fd(), moved[1].as_fd(), moved[2].as_fd()])
}

/// The same file at a number above 2, so that no stream is overwritten before it has found its place.
fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { rustix::io::fcntl_dupfd_cloexec(&fd, 3) }
}

fn take([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(|errno| Failure::os(Step::Console, errno).with_message("duplicate the standard streams"))
}

/// Pipes and terminals. Other devices, /dev/null above all, and files belong to more than this process.
fn has_an_owner_that_matters(fd: BorrowedFd<'_>) -> Result<bool, Failure> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| Failure::os(Step::Console, errno))?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        FileType::CharacterDevice => isatty(fd),
        _ => false,
    })
}

/// Changes the owner; the group is left to the filesystem (devpts' `gid=`). Where that is not allowed, because the owner is not mapped
/// in the user namespace or the filesystem is read-only, the streams work as they are.
fn give(fd: BorrowedFd<'_>, uid: u32) -> Result<(), Failure> {
    match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>) {
        Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => Ok(()),
        given => given.map_err(|errno| {
            Failure::os(Step::Console, errno).with_message("give the standard streams to the user")
        }),
    }
}
