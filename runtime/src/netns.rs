//! Network namespaces that live without a process: pinned by a bind mount of their `/proc` link (namespaces(7)).
//!
//! A pod's network namespace is there before its first process, since the CNI plugins work on it by its path, and it stays when the
//! last one has died. A short-lived thread makes it: unshare(2) of a network namespace concerns the calling
//! thread alone, so no process has to be started and the daemon itself stays where it is.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{Failure, Step};

/// `NSFS_MAGIC` of linux/magic.h: the filesystem that a pinned namespace's file belongs to.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Makes a network namespace with its loopback up and pins it on `path`, which must not exist. Nothing is left behind on failure.
pub fn create(path: &Path) -> Result<(), Failure> {
    let failed = |errno| Failure::at(Step::Namespace, errno, path);
    rustix::fs::openat(
        CWD,
        path,
        OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::from_raw_mode(0o444),
    )
    .map_err(failed)?;
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).stack_size(64 << 10);
        let thread = thread
            .spawn_scoped(scope, || pin(path))
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        thread.join().unwrap_or_else(|_| Err(Failure::because(Step::Namespace, "the netns thread panicked")))
    });
    if made.is_err() {
        let _ = remove(path);
    }
    made
}

/// Unpins the namespace and removes its file. What is gone already is no error. The kernel takes the namespace down, with
/// the interfaces in it, when its last process has left.
pub fn remove(path: &Path) -> Result<(), Failure> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL: not a mount, as after a reboot or a create that was cut short.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(Failure::at(Step::Namespace, errno, path)),
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Failure::at(Step::Namespace, errno, path)),
    }
}

/// Whether a namespace is pinned on `path`. After a reboot the file may be there and the namespace not.
pub fn is_pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(NSFS_MAGIC))
}

/// In the thread.
fn pin(path: &Path) -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Failure::os(Step::Namespace, Errno::from_raw_os_error(errno as i32)))?;
    loopback_up().map_err(|errno| {
        Failure::os(Step::Network, errno).with_message("bringing up the loopback interface")
    })?;
    mount_bind("/proc/thread-self/ns/net", path).map_err(|errno| Failure::at(Step::Namespace, errno, path))
}

/// One rtnetlink(7) request in the caller's namespace: `RTM_NEWLINK` with `IFF_UP` for interface 1, which is always the loopback.
pub fn loopback_up() -> Result<(), Errno> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const NLM_F_ACK: u16 = 4;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    const LOOPBACK: i32 = 1;
    const LENGTH: usize = 32;

    let mut request = [0_u8; LENGTH];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    // struct nlmsghdr: length, type, flags, sequence, port.
    put(0, &32_u32.to_ne_bytes());
    put(4, &RTM_NEWLINK.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
    put(20, &LOOPBACK.to_ne_bytes());
    put(24, &IFF_UP.to_ne_bytes());
    put(28, &IFF_UP.to_ne_bytes());

    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is 0, the default.
        None,
    )?;
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    // The kernel has answered by the time send(2) returns: header, error number, and the request's head again.
    let mut answer = [0_u8; 256];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let word = |at: usize| answer[at..at + 4].first_chunk::<4>().copied().unwrap_or_default();
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if length < 20 || kind != NLMSG_ERROR {
        return Err(Errno::PROTO);
    }
    match i32::from_ne_bytes(word(16)) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(-error)),
    }
}
