//! Restoring: a cgroup, criu in it, and out comes a running container that is a child of the caller.
//!
//! 1. what criu cannot bring back is refused; the mount points that the root lacks are made;
//! 2. the cgroup is made and its limits are written, and criu is put in: what it restores begins there;
//! 3. criu, in a mount namespace of its own where the root is mounted as it wants it, restores, and tells when the namespaces stand
//!    (prestart and createRuntime hooks) and when a terminal has come out;
//! 4. init is a child of the caller, as if created.
//!
//! Whatever fails, no process and no cgroup stays.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::criu::{Criu, Patience, Setup, cgroups_of};
use super::external::Joined;
use super::rpc::{CgroupRoot, InheritFd, Kind, Notify, Options as RpcOptions, Request};
use super::{DESCRIPTORS, Directories, Images, Options, common_options, done, external, io_failed, text};
use crate::cgroup::{self, Cgroup, CgroupPath, Hierarchies, Limits};
use crate::hooks::{self, Point};
use crate::plan::{NamespaceKind, Plan};
use crate::spawn::SPAWN_DEADLINE;
use crate::state::Status;
use crate::{Failure, Step, init};
use crate::{namespaces, net_devices, netns};

/// criu's log, in the work directory.
const RESTORE_LOG: &str = "restore.log";

/// Where in the container's state directory criu's own mount of the root is; in the host's mount table it never shows.
const ROOT: &str = "criu-root";

/// The most descriptors that an image may name: stdio.
const MAX_DESCRIPTORS: usize = 3;

/// What a restore alone has.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// What a dump has too.
    pub common: Options,
    /// `TYPE:NAME` of the LSM profile that what is restored gets in place of the dumped one.
    pub lsm_profile: Option<String>,
    /// The SELinux context of mounts, in place of the dumped one.
    pub lsm_mount_context: Option<String>,
}

/// What a container is restored from.
#[derive(Debug)]
pub struct RestoreRequest<'a> {
    /// Its id, for hooks.
    pub id: &'a str,
    /// Its bundle, for hooks.
    pub bundle: &'a Path,
    /// What it is.
    pub plan: &'a Plan,
    /// A directory of the container's own, for a mount point that is gone when this returns.
    pub directory: &'a Path,
    /// This host's cgroup hierarchies.
    pub hierarchies: &'a Hierarchies,
    /// Its cgroup.
    pub cgroup_path: &'a CgroupPath,
    /// How its cgroup is made.
    pub cgroup_options: cgroup::CreateOptions,
    /// The images.
    pub images: &'a Images,
    /// How.
    pub options: &'a RestoreOptions,
}

/// A container that runs again.
#[derive(Debug)]
pub struct Restored {
    /// Init's pid in the caller's PID namespace. It is a child of the caller.
    pub pid: i32,
    /// Init's pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// The master of its terminal, where it had one that nobody holds.
    pub console: Option<OwnedFd>,
    /// Its cgroup.
    pub cgroup: Cgroup,
}

/// Restores a container. The caller's stdio takes the place of the pipes that were its stdio.
///
/// # Errors
/// [`Step::Checkpoint`] with criu's own last words, or the step before it that failed. Nothing of the container is left then.
pub fn restore(request: &RestoreRequest<'_>) -> Result<Restored, Failure> {
    let plan = request.plan;
    refuse(plan)?;
    // Told before anything is made.
    Directories::open(request.images)?;
    let pipes = read_descriptors(&request.images.path)?;
    let joined = external::restored_namespaces(plan)?;
    external::make_mount_points(plan)?;
    let limits = match &plan.resources {
        Some(resources) => Limits::from_spec(resources)
            .map_err(|error| Failure::because(Step::Config, format!("linux.resources: {error}")))?,
        None => Limits::default(),
    };
    let options =
        cgroup::CreateOptions { owner: request.plan.cgroup_owner(), ..request.cgroup_options.clone() };
    let mut cgroup = Cgroup::create(request.hierarchies, request.cgroup_path, &options)?;
    let root = Root::make(request.directory);
    let restored = root.and_then(|root| {
        cgroup.apply(&limits)?;
        run(request, &root, (pipes, &joined), &mut cgroup)
    });
    match restored {
        Ok((pid, console)) => {
            let pidfd = Pid::from_raw(pid).ok_or(Errno::SRCH);
            match pidfd.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())) {
                Ok(pidfd) => Ok(Restored { pid, pidfd, console, cgroup }),
                Err(errno) => {
                    take_back(request.id, &cgroup);
                    Err(Failure::os(Step::Checkpoint, errno).with_message("what was restored has ended"))
                }
            }
        }
        Err(failure) => {
            take_back(request.id, &cgroup);
            Err(failure)
        }
    }
}

/// Nothing of a container that could not be restored stays.
fn take_back(id: &str, cgroup: &Cgroup) {
    let parents = cgroup.made_ancestors().to_vec();
    let deadline = Instant::now() + SPAWN_DEADLINE;
    if let Err(left) = cgroup.kill_all(deadline).and_then(|()| cgroup.remove(deadline)) {
        tracing::warn!(id, %left, "the cgroup of a container that could not be restored is left");
    }
    cgroup::remove_ancestors(&parents);
}

/// What criu cannot bring back is refused.
fn refuse(plan: &Plan) -> Result<(), Failure> {
    let refused = |message: &str| Err(Failure::because(Step::Checkpoint, message));
    if plan.intel_rdt.is_some() {
        return refused(
            "linux.intelRdt: a restored container would be in no resctrl group, as criu knows none",
        );
    }
    if !plan.namespaces.contains(NamespaceKind::Mount) {
        return refused("a container without a mount namespace of its own cannot be restored");
    }
    Ok(())
}

/// The mount point of criu's root.
struct Root(PathBuf);

impl Root {
    fn make(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(ROOT);
        std::fs::create_dir(&path).map_err(|error| io_failed(&error, &path))?;
        // criu compares it with what /proc says.
        let path = std::fs::canonicalize(&path).map_err(|error| io_failed(&error, &path))?;
        Ok(Self(path))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Not recursively: if something were mounted here after all, it must not be emptied.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Steps 2 to 4. The result is init's pid and its terminal.
fn run(
    request: &RestoreRequest<'_>,
    root: &Root,
    (pipes, joined): (Vec<InheritFd>, &Joined),
    cgroup: &mut Cgroup,
) -> Result<(i32, Option<OwnedFd>), Failure> {
    let setup = Setup {
        keep: joined.open.iter().map(AsFd::as_fd).collect(),
        stdio: true,
        root: Some((&request.plan.rootfs.path, &root.0)),
    };
    let mut criu = Criu::start(&setup)?;
    cgroup.join(criu.pid())?;
    let directories = Directories::open_of(request.images, criu.pid())?;
    let mut inherit_fd = joined.inherit.clone();
    inherit_fd.extend(pipes);
    let options = &request.options;
    let rpc = RpcOptions {
        root: Some(text(&root.0)?.to_owned()),
        log_file: Some(RESTORE_LOG.to_owned()),
        rst_sibling: Some(true),
        cg_root: cgroup_roots(criu.pid())?,
        ext_mnt: external::restored_mounts(request.plan, cgroup)?,
        join_ns: joined.join.clone(),
        inherit_fd,
        lsm_profile: options.lsm_profile.clone(),
        lsm_mount_context: options.lsm_mount_context.clone(),
        ..common_options(&options.common, &directories)?
    };
    let ask = Request { kind: Kind::Restore as i32, options: Some(rpc), ..Request::default() };
    let mut console = None;
    let response = criu.ask(&ask, Patience::WhileItMoves, &mut |notify, fds| {
        match notify.script.as_deref() {
            Some("setup-namespaces") => set_up(request, notify)?,
            Some("orphan-pts-master") => console = fds.into_iter().next(),
            _ => {}
        }
        Ok(())
    })?;
    criu.end();
    done(&response, Kind::Restore, &request.images.log(RESTORE_LOG))?;
    let pid = response.restored.map(|restored| restored.pid).filter(|pid| *pid > 0);
    let pid =
        pid.ok_or_else(|| Failure::because(Step::Checkpoint, "criu names no process that it restored"))?;
    Ok((pid, console))
}

/// What is due when the namespaces stand and nothing runs in them yet.
fn set_up(request: &RestoreRequest<'_>, notify: &Notify) -> Result<(), Failure> {
    let pid = notify.pid.unwrap_or(0);
    let plan = request.plan;
    if plan.namespaces.is_new(NamespaceKind::Network) {
        furnish_network(plan, pid)?;
    }
    for (point, hooks) in
        [(Point::Prestart, &plan.hooks.prestart), (Point::CreateRuntime, &plan.hooks.create_runtime)]
    {
        if !hooks.is_empty() {
            let state = init::hook_state(request.id, request.bundle, plan, (pid, Status::Creating))?;
            hooks::run(point, hooks, &state, Some(request.bundle), None)?;
        }
    }
    Ok(())
}

/// A new network namespace is empty: the spec's devices move in, the loopback comes up, and what the spec sets in it is set, as when it
/// was created. (One that is joined has all this.) The caller has one thread, which goes there and comes back.
fn furnish_network(plan: &Plan, pid: i32) -> Result<(), Failure> {
    net_devices::move_into(pid, &plan.net_devices)?;
    let open = |path: &str| {
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Failure::at(Step::Namespace, errno, path))
    };
    let (ours, theirs) = (open("/proc/self/ns/net")?, open(&format!("/proc/{pid}/ns/net"))?);
    let enter = |namespace: &OwnedFd| {
        namespaces::enter(namespace.as_fd(), NamespaceKind::Network.flag())
            .map_err(|errno| Failure::os(Step::Namespace, errno).with_message("the network namespace"))
    };
    enter(&theirs)?;
    let sysctls: Vec<_> = plan.sysctls.iter().filter(|(name, _)| name.starts_with("net/")).cloned().collect();
    let furnished = netns::loopback_up()
        .map_err(|errno| Failure::os(Step::Network, errno).with_message("loopback"))
        .and_then(|()| init::write_sysctls(&sysctls));
    enter(&ours)?;
    furnished
}

/// Where criu is, by controller: what was dumped goes there.
fn cgroup_roots(pid: u32) -> Result<Vec<CgroupRoot>, Failure> {
    let mut roots = Vec::new();
    for (controllers, path) in cgroups_of(pid)? {
        for controller in controllers.split(',') {
            roots.push(CgroupRoot { controller: Some(controller.to_owned()), path: path.clone() });
        }
    }
    Ok(roots)
}

/// The pipes that were the container's stdio: each is now what the caller has under its number.
fn read_descriptors(images: &Path) -> Result<Vec<InheritFd>, Failure> {
    let path = images.join(DESCRIPTORS);
    let text = std::fs::read(&path).map_err(|error| io_failed(&error, &path))?;
    let links: Vec<String> = serde_json::from_slice(&text).map_err(|error| {
        Failure::at(Step::Checkpoint, Errno::INVAL, &path).with_message(error.to_string())
    })?;
    let numbered = (0_i32..).zip(links).take(MAX_DESCRIPTORS);
    Ok(numbered.filter(|(_, link)| link.contains("pipe:")).map(|(fd, key)| InheritFd { key, fd }).collect())
}
