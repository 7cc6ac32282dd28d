//! Pause: the process that holds a sandbox's namespaces. A sandbox is ready for as long as it lives.
//!
//! It is a copy of its monitor that never executes anything, so that thirty of them share their pages. It has no
//! capability, no descriptor and no root to see; the kernel kills it with its monitor (`PR_SET_PDEATHSIG`). As PID 1 of a shared PID
//! namespace it ignores SIGCHLD, by which the kernel reaps for it whatever is reparented to it.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{Signal, chdir, fchdir, getppid, pivot_root, set_parent_process_death_signal};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::handshake::{End, FromChild};
use crate::monitor::protocol::SandboxRequest;
use crate::namespaces::Route;
use crate::plan::{IdMap, NamespaceKind, Namespaces};
use crate::procfs::Procfs;
use crate::spawn::{Spawn, spawn};
use crate::{Failure, Step, namespaces, sys};

/// Neither root nor anybody: the traditional overflow id.
const NOBODY: u32 = 65534;

/// A living pause.
#[derive(Debug)]
pub struct Pause {
    /// Its pid in the caller's PID namespace.
    pub pid: i32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
}

/// Makes the namespaces of a sandbox and the process that holds them. In the cgroup of the caller.
///
/// # Errors
/// The step that failed. No process is left then.
pub fn start(request: &SandboxRequest) -> Result<Pause, Failure> {
    let namespaces = namespaces_of(request);
    let route = Route::open(&namespaces)?;
    let parent = Spawn {
        route: &route,
        pid_namespace_of: None,
        cgroup: None,
        beside: None,
        resctrl: None,
        affinity: None,
        rlimits: &[],
        // Killed for memory it would take the whole pod along.
        oom_score_adj: None,
        maps: (&namespaces.uid_maps, &namespaces.gid_maps),
        net_devices: &[],
        before_pivot: &|_| Ok(()),
        agent: None,
        map_owners: &|_, _| Err(Failure::because(Step::Handshake, "pause has no mounts to map")),
    };
    let monitor = rustix::process::getpid();
    let spawned = spawn(parent, |link, _| run(request, &namespaces, monitor, link))?;
    Ok(Pause { pid: spawned.pid, pidfd: spawned.pidfd })
}

/// The namespaces a sandbox asks for.
fn namespaces_of(request: &SandboxRequest) -> Namespaces {
    let mut all = Namespaces::default();
    let maps = |maps: &[(u32, u32, u32)]| {
        maps.iter().map(|&(container_id, host_id, length)| IdMap { container_id, host_id, length }).collect()
    };
    if let Some(user) = &request.user_namespace {
        all.new.push(NamespaceKind::User);
        all.uid_maps = maps(&user.uids);
        all.gid_maps = maps(&user.gids);
    }
    let asked = [
        (NamespaceKind::Ipc, request.ipc),
        (NamespaceKind::Uts, request.uts),
        (NamespaceKind::Pid, request.pid),
    ];
    all.new.extend(asked.iter().filter(|(_, asked)| *asked).map(|(kind, _)| *kind));
    if request.pid {
        // Only processes of the same PID namespace could look into pause's root.
        all.new.push(NamespaceKind::Mount);
    }
    if makes_network(request) {
        all.new.push(NamespaceKind::Network);
    } else if let Some(path) = &request.netns {
        all.join.push((NamespaceKind::Network, path.clone()));
    }
    all
}

/// Who owns a network namespace decides who may mount a sysfs that shows it: in a pod with a user namespace that has to be
/// the pod's own, and only a process in there can make such a one.
fn makes_network(request: &SandboxRequest) -> bool {
    request.user_namespace.is_some() && request.netns.is_some()
}

/// The child's half.
fn run(
    request: &SandboxRequest,
    namespaces: &Namespaces,
    monitor: rustix::process::Pid,
    link: &End,
) -> Result<Infallible, Failure> {
    sys::reset_signals();
    sys::ignore_children();
    let _ = rustix::thread::set_name(c"podwright-pause");
    if request.user_namespace.is_some() {
        link.ask(&FromChild::Map)?;
        namespaces::become_root()?;
    }
    rustix::process::setsid().map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    if let Some(name) = request.hostname.as_deref().filter(|_| request.uts) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| Failure::at(Step::Hostname, errno, name))?;
    }
    if makes_network(request) {
        crate::netns::loopback_up().map_err(|errno| {
            Failure::os(Step::Network, errno).with_message("bringing up the loopback interface")
        })?;
    }
    if !request.sysctls.is_empty() {
        let procfs = Procfs::open()?;
        for (name, value) in &request.sysctls {
            let path = format!("sys/{}", name.replace('.', "/"));
            procfs.write(&path, value.as_bytes()).map_err(|errno| Failure::at(Step::Sysctl, errno, name))?;
        }
    }
    if namespaces.is_new(NamespaceKind::Mount) {
        hide_the_host()
            .map_err(|errno| Failure::os(Step::PivotRoot, errno).with_message("pause's empty root"))?;
    }
    give_up_everything().map_err(|errno| Failure::os(Step::Credentials, errno))?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| Failure::os(Step::ProcessAttributes, errno))?;
    // It may have died before that: inside a PID namespace its pid reads 0, so the link is asked instead.
    if getppid().is_some_and(|parent| parent != monitor) {
        return Err(Failure::because(Step::Handshake, "the monitor has gone away"));
    }
    link.tell(&FromChild::Ready, &[])?;
    let _ = sys::close_range(0, i32::MAX);
    sys::memory::rest()
}

/// An empty, read-only root, and nothing of the host's mounts.
fn hide_the_host() -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&filesystem)?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, read_only)?;
    // Any directory will do to have it attached, which pivot_root wants: this one is there on every Linux.
    move_mount(&root, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(&root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

/// No group, no user of note, and with that no capability.
fn give_up_everything() -> Result<(), Errno> {
    match set_thread_groups(&[]) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    match set_thread_res_gid(gid, gid, gid).and_then(|()| set_thread_res_uid(uid, uid, uid)) {
        // A user namespace that does not map it: then its root has no power outside of it.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    rustix::thread::set_no_new_privs(true)
}
