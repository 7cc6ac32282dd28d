//! Everything that CreateContainer does on disk before the monitor is asked: from the image's name to a bundle and a mounted
//! root. Blocks, and so runs away from the threads that answer.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use imageless::Entry;
use imageless::users::{self, UserError, UserSpec};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use runtime::failure::sentence;
use runtime::lsm;
use runtime::monitor::protocol::CreateFd;
use tracing::debug_span;

use super::{NewContainer, PodView, files};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host_mounts;
use crate::pod::Directories;
use crate::records::{ContainerRecord, ImageUse, now_ns};
use crate::translate::{
    self, AppArmor, Container, ContainerInputs, ContainerPid, DeviceNode, DeviceRequest, Ids, ImageDefaults,
    ResolvedUser, Seccomp,
};
use crate::{cdi, host, image};

/// The longest seccomp profile that is read, in bytes.
const MAX_PROFILE_BYTES: u64 = 4 * 1024 * 1024;

/// A container that only lacks its processes.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) record: ContainerRecord,
    pub(super) bundle: PathBuf,
    /// What the descriptors are, and they themselves.
    pub(super) kinds: Vec<CreateFd>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Does it all; on failure the container's directory is removed again.
pub(super) fn prepare(
    daemon: &Daemon,
    dirs: &Directories,
    view: &PodView,
    new: &NewContainer,
) -> Result<Prepared, Error> {
    let dir = dirs.container(&new.id);
    let prepared = steps(daemon, dirs, view, new, &dir);
    if prepared.is_err()
        && let Err(error) = imageless::rootfs::remove_dir(&dir)
    {
        tracing::warn!(%error, "a half-made container cannot be removed");
    }
    prepared
}

fn steps(
    daemon: &Daemon,
    dirs: &Directories,
    view: &PodView,
    new: &NewContainer,
    dir: &Path,
) -> Result<Prepared, Error> {
    let (pod, container) = (&view.pod, &new.container);
    let images = daemon.images();
    let entry = debug_span!("image_resolve").in_scope(|| {
        images.resolve(&container.image).map_err(|error| image::resolve_error(&container.image, error))
    })?;
    let defaults = image_defaults(&container.image, &entry);
    let cgroups_path = pod.cgroups_path(&daemon.cgroup_root, &view.record.id, &new.id);

    let user = debug_span!("user_lookup").in_scope(|| look_up(container, &defaults, &entry))?;
    let identity = container.security.user.identity(&user);
    let mut record = ContainerRecord {
        version: ContainerRecord::VERSION,
        id: new.id.clone(),
        sandbox: view.record.id.clone(),
        complete: false,
        created_at_ns: now_ns(),
        config: new.config.clone(),
        image: ImageUse { name: image::display_name(&images, &entry, container), id: entry.id.clone() },
        log_path: pod.log_path(container),
        identity,
        stop_signal: container.stop_signal(&defaults).number(),
        resources: resources_of(&new.config),
        cgroups_path: cgroups_path.clone(),
        lost: None,
    };
    files::private_dir(dir)?;
    record.write(dir)?;
    if let Some(directory) = record.log_path.as_deref().and_then(Path::parent) {
        make_log_directory(directory)?;
    }

    let found = debug_span!("mount_sources").in_scope(|| host_mounts::sources(&images, &container.mounts))?;
    for (mount, found) in record.config.mounts.iter_mut().zip(&found) {
        if let (Some(spec), Some(id)) = (&mut mount.image, &found.image) {
            // Which image it was is reported back, whatever its name names later.
            spec.image_ref.clone_from(id);
        }
    }
    let mount_sources: Vec<_> = found.into_iter().map(|found| found.source).collect();
    let devices = devices(&container.devices)?;
    let localhost_seccomp = match &container.security.seccomp {
        Seccomp::Localhost(path) if !container.security.privileged => Some(read_profile(path)?),
        _ => None,
    };
    let apparmor_missing = default_apparmor(daemon, container);
    if let AppArmor::Localhost(name) = &container.security.apparmor {
        must_be_loaded(name, &new.id)?;
    }
    let mut paths = files::paths(dirs, pod, view.pause);
    if let ContainerPid::Target(target) = &container.pid {
        paths.target_pid_ns = Some(target_pid_ns(view, target)?);
    }
    let mut spec = translate::container_spec(&ContainerInputs {
        ids: Ids { pod: &view.record.id, container: &new.id },
        defaults: &daemon.defaults,
        pod,
        container,
        image: &defaults,
        user: &user,
        paths: &paths,
        host: &daemon.host,
        rootfs: &dir.join(imageless::bundle::ROOTFS),
        cgroups_path: &cgroups_path,
        mount_sources: &mount_sources,
        devices: &devices,
        apparmor_missing: apparmor_missing.as_deref(),
        localhost_seccomp: localhost_seccomp.as_ref(),
        selinux_level: None,
    })?;

    let selinux = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    if !daemon.host.selinux && container.security.selinux.as_ref().or(pod.security.selinux.as_ref()).is_some()
    {
        tracing::warn!(container = %new.id, "its selinux_options are ignored: SELinux is off on this node");
    }
    debug_span!("selinux")
        .in_scope(|| host_mounts::relabel(&container.mounts, &mount_sources, selinux.as_deref()))?;
    debug_span!("cdi").in_scope(|| {
        cdi::inject(&mut spec, &container.cdi_devices, &daemon.config().devices.cdi_spec_dirs)
    })?;
    let mut kinds = vec![CreateFd::Root];
    let mapped = match &paths.user_ns {
        Some(path) => Some(debug_span!("idmap").in_scope(|| mapped_tree(&entry, path))?),
        None => None,
    };
    let lower = mapped.as_ref().map_or(entry.tree(), AsFd::as_fd);
    let options = imageless::rootfs::OverlayOptions { context: selinux.as_deref(), ..Default::default() };
    let mounted =
        debug_span!("mount_rootfs").in_scope(|| imageless::rootfs::mount_overlay(lower, dir, options));
    let mounted = mounted.map_err(|error| root_error(&new.id, &entry, error))?;
    let mut fds = vec![mounted.mount];
    if let Some(program) =
        debug_span!("seccomp").in_scope(|| daemon.seccomp.program(seccomp_of(&spec), &new.id))?
    {
        kinds.push(CreateFd::Seccomp);
        fds.push(program);
    }
    debug_span!("bundle")
        .in_scope(|| imageless::bundle::write(dir, &spec))
        .map_err(|error| Error::internal(format!("write the bundle of container {}", new.id), error))?;
    Ok(Prepared { record, bundle: dir.to_owned(), kinds, fds })
}

/// The entry's tree with its owners as the pod's user namespace, found at `path`, has them.
fn mapped_tree(entry: &Entry, path: &Path) -> Result<OwnedFd, Error> {
    let namespace =
        fs::File::open(path).map_err(|source| Error::Io { action: "open", path: path.to_owned(), source })?;
    runtime::idmap::clone_mapped(entry.tree(), namespace.as_fd()).map_err(|failure| {
        Error::FailedPrecondition {
            what: "image",
            id: entry.location().display().to_string(),
            reason: format!("cannot be the root of a container in a user namespace: {failure}"),
        }
    })
}

/// What the image says about the container's process.
fn image_defaults(reference: &str, entry: &Entry) -> ImageDefaults {
    let config = &entry.config;
    ImageDefaults {
        reference: reference.to_owned(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        working_dir: config.working_dir.clone().unwrap_or_default(),
        user: config.user.clone().unwrap_or_default(),
        stop_signal: config.stop_signal.clone().unwrap_or_default(),
        volumes: config.volumes.clone(),
    }
}

/// The user, by the files of the root it will run in.
fn look_up(container: &Container, image: &ImageDefaults, entry: &Entry) -> Result<ResolvedUser, Error> {
    let wanted = container.security.user.to_look_up(&image.user);
    let found = UserSpec::parse(&wanted).and_then(|spec| users::lookup(entry.tree(), &spec));
    let user = found.map_err(|error| match error {
        UserError::NoSuchUser(_) | UserError::NoSuchGroup(_) | UserError::Range(_) | UserError::Name(_) => {
            Error::invalid("config.linux.security_context", sentence(&error))
        }
        other => {
            Error::FailedPrecondition { what: "image", id: image.reference.clone(), reason: sentence(&other) }
        }
    })?;
    Ok(ResolvedUser {
        uid: user.uid,
        gid: user.gid,
        groups: user.additional_gids,
        home: user.username.is_some().then_some(user.home),
    })
}

/// The limits of a request, as they are reported back.
fn resources_of(config: &crate::v1::ContainerConfig) -> crate::v1::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// A log directory is kubelet's to make; for other clients it is made.
fn make_log_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Io { action: "make the log directory", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The nodes that the request's devices stand for.
fn devices(requests: &[DeviceRequest]) -> Result<Vec<DeviceNode>, Error> {
    let mut nodes = Vec::new();
    for request in requests {
        let missing = |reason: String| Error::FailedPrecondition {
            what: "device",
            id: request.host_path.display().to_string(),
            reason,
        };
        let real = fs::canonicalize(&request.host_path).map_err(|error| missing(error.to_string()))?;
        if real.is_dir() {
            let mut below = Vec::new();
            host::collect(&real, request.access, 0, &mut below);
            for mut node in below {
                if let Ok(rest) = node.path.strip_prefix(&real) {
                    node.path = request.container_path.join(rest);
                    nodes.push(node);
                }
            }
        } else {
            let node = host::node(&real, &request.container_path, request.access);
            nodes.push(node.ok_or_else(|| missing("is not a device node".into()))?);
        }
    }
    Ok(nodes)
}

/// Why there is no default AppArmor profile for a container that may want it; None: there is one, or nobody wants it.
fn default_apparmor(daemon: &Daemon, container: &Container) -> Option<String> {
    let wanted = matches!(container.security.apparmor, AppArmor::Unset | AppArmor::RuntimeDefault);
    if !wanted || container.security.privileged || !daemon.host.apparmor {
        return None;
    }
    debug_span!("apparmor").in_scope(|| daemon.apparmor.ensure().err())
}

/// A profile that is not loaded is refused here, where the request can be told, and not by init.
fn must_be_loaded(name: &str, container: &str) -> Result<(), Error> {
    // Some(false) only: where the list cannot be read, the kernel has the word.
    if lsm::apparmor_enabled() && lsm::apparmor_profile_loaded(name) == Some(false) {
        return Err(Error::FailedPrecondition {
            what: "container",
            id: container.to_owned(),
            reason: format!("the AppArmor profile {name} is not loaded on this node"),
        });
    }
    Ok(())
}

/// The profile at an absolute path of the host.
fn read_profile(path: &Path) -> Result<LinuxSeccomp, Error> {
    let invalid =
        |reason: String| Error::invalid("config.linux.security_context.seccomp.localhost_ref", reason);
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_PROFILE_BYTES).read_to_string(&mut text));
    read.map_err(|error| invalid(format!("read {}: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| invalid(format!("{} is not a seccomp profile: {error}", path.display())))
}

/// The PID namespace of a running container of the same pod.
fn target_pid_ns(view: &PodView, target: &str) -> Result<PathBuf, Error> {
    let field = "config.linux.security_context.namespace_options.target_id";
    let container = view.containers.get(target);
    let container =
        container.ok_or_else(|| Error::invalid(field, format!("{target} is no container of this pod")))?;
    let not_running = || Error::FailedPrecondition {
        what: "container",
        id: target.to_owned(),
        reason: "is not running, so its PID namespace cannot be joined".into(),
    };
    let pid = container.pid().ok_or_else(not_running)?;
    Ok(PathBuf::from(format!("/proc/{pid}/ns/pid")))
}

fn seccomp_of(spec: &Spec) -> Option<&LinuxSeccomp> {
    spec.linux().as_ref()?.seccomp().as_ref()
}

/// Space and permission problems tell themselves apart by their errno.
fn root_error(id: &str, entry: &Entry, error: imageless::rootfs::RootError) -> Error {
    use imageless::rootfs::RootError;
    match error {
        RootError::Layer { path, source } => Error::Io { action: "make", path, source: source.into() },
        other => Error::internal(
            format!("mount {} as the root of container {id}", entry.location().display()),
            other,
        ),
    }
}
