//! Network namespaces that live without a process: pinned by a bind mount of their `/proc` link (namespaces(7)).
//!
//! A pod's network namespace is there before its first process, since the CNI plugins work on it by its path, and it stays when the
//! last one has died. A short-lived thread makes it: unshare(2) of a network namespace concerns the calling
//! thread alone, so no process has to be started and the daemon itself stays where it is.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::rtnetlink::Rtnetlink;
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
    let made = in_a_thread(path, || pin(path));
    if made.is_err() {
        let _ = remove(path);
    }
    made
}

/// A TCP socket in the network namespace pinned on `path`, or where there is none in the caller's; non-blocking and close-on-exec. A
/// socket stays in its namespace, so whoever has it connects from there without being there.
pub fn tcp_socket(path: Option<&Path>, ipv6: bool) -> Result<OwnedFd, Failure> {
    let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || {
        rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|errno| Failure::os(Step::Network, errno).with_message("make a socket"))
    };
    let Some(path) = path else { return make() };
    let failed = |errno| Failure::at(Step::Namespace, errno, path);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let namespace = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
    in_a_thread(path, || {
        // It fails with EINVAL on what is no namespace.
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|errno| failed(Errno::from_raw_os_error(errno as i32)))?;
        make()
    })
}

/// Does what moves the calling thread, in one that ends with it.
fn in_a_thread<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    let failed = |errno| Failure::at(Step::Namespace, errno, path);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).stack_size(64 << 10);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        thread.join().unwrap_or_else(|_| Err(Failure::because(Step::Namespace, "the netns thread panicked")))
    })
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

/// Takes the loopback of the caller's namespace up. It is always interface 1.
pub fn loopback_up() -> Result<(), Errno> {
    const LOOPBACK: u32 = 1;
    Rtnetlink::open()?.up(LOOPBACK)
}
