//! What `container_spec` needs beside the request: facts that somebody looked up.
//!
//! Everything here is plain data. The daemon fills it from the host (once), from the pod it runs, and from the
//! root filesystem it has open; translation itself asks nobody anything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Arch, LinuxSeccomp};

use super::capabilities::{self, Names};
use super::container::Container;
use super::devices::DeviceNode;
use super::pod::{Defaults, HandlerRules, Pod};
use super::user::ResolvedUser;

/// Everything the spec of one container is made from.
#[derive(Debug, Clone, Copy)]
pub struct ContainerInputs<'a> {
    /// Ids of pod and container.
    pub ids: Ids<'a>,
    /// The node's configuration.
    pub defaults: &'a Defaults,
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// What the rootfs entry's sidecar says.
    pub image: &'a ImageDefaults,
    /// The user as found inside the root.
    pub user: &'a ResolvedUser,
    /// Files and namespaces of the pod.
    pub paths: &'a PodPaths,
    /// The host.
    pub host: &'a HostFacts,
    /// `root.path`: an absolute host path.
    pub rootfs: &'a Path,
    /// `linux.cgroupsPath`; see [`Pod::cgroups_path`].
    pub cgroups_path: &'a Path,
    /// The sources of [`Container::mounts`], in their order.
    pub mount_sources: &'a [MountSource],
    /// The nodes that [`Container::devices`] stand for: one each, or more where a directory was named.
    pub devices: &'a [DeviceNode],
    /// Why there is no default AppArmor profile, for people; None: it is loaded.
    pub apparmor_missing: Option<&'a str>,
    /// The parsed profile of [`super::Seccomp::Localhost`].
    pub localhost_seccomp: Option<&'a LinuxSeccomp>,
    /// The level (`s0:c1,c2`) that the pod's containers share where the request gives none.
    pub selinux_level: Option<&'a str>,
}

impl ContainerInputs<'_> {
    /// The rules of the pod's handler.
    pub(super) fn handler(&self) -> &HandlerRules {
        self.defaults.handler(&self.pod.runtime_handler)
    }
}

/// Ids of a container and its pod.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    /// The pod sandbox's.
    pub pod: &'a str,
    /// The container's.
    pub container: &'a str,
}

/// The part of an OCI image configuration that has a meaning here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// The reference the container was asked for, for annotations.
    pub reference: String,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Cmd.
    pub cmd: Vec<String>,
    /// Env, each `KEY=value`.
    pub env: Vec<String>,
    /// `WorkingDir`; empty: `/`.
    pub working_dir: String,
    /// User; empty: root.
    pub user: String,
    /// `StopSignal` by name or number; empty: SIGTERM.
    pub stop_signal: String,
    /// Volumes: container paths. They stay in the container's writable layer, as with containerd's default.
    pub volumes: Vec<String>,
}

/// Files and namespaces that the pod's containers share. Namespace paths are such as `/proc/4026/ns/ipc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodPaths {
    /// The pinned network namespace; None with the host's.
    pub network_ns: Option<PathBuf>,
    /// Pause's UTS namespace; None with the host's network.
    pub uts_ns: Option<PathBuf>,
    /// Pause's IPC namespace; None with the host's.
    pub ipc_ns: Option<PathBuf>,
    /// Pause's PID namespace; None where pause has none of its own.
    pub pid_ns: Option<PathBuf>,
    /// Pause's user namespace; None with the host's.
    pub user_ns: Option<PathBuf>,
    /// The PID namespace of the container that this one targets.
    pub target_pid_ns: Option<PathBuf>,
    /// The pod's shared memory directory; None: no `/dev/shm` of the pod's (the host's IPC namespace).
    pub shm: Option<PathBuf>,
    /// The pod's /etc/hosts; None: the root's own stays.
    pub hosts: Option<PathBuf>,
    /// The pod's /etc/hostname; None: the root's own stays.
    pub hostname: Option<PathBuf>,
    /// The pod's /etc/resolv.conf; None: the root's own stays.
    pub resolv_conf: Option<PathBuf>,
}

/// What a request's mount turned out to be on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountSource {
    /// The source with symbolic links followed, or the place an image volume is mounted at.
    pub path: PathBuf,
    /// How the mount that holds it propagates; decides which propagation the container may ask for.
    pub propagation: SourcePropagation,
}

/// How a host mount propagates, as the optional fields of mountinfo show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SourcePropagation {
    /// Neither way.
    #[default]
    Private,
    /// `master:N`.
    Slave,
    /// `shared:N`, perhaps with a master too.
    Shared,
}

/// The cgroup hierarchy in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller, perhaps beside an empty unified one.
    V1,
    /// The unified one.
    V2,
}

/// What this host has. Read once when the daemon starts.
#[allow(clippy::struct_excessive_bools, reason = "five independent facts")]
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// Which cgroup interface.
    pub cgroup: CgroupVersion,
    /// Options of the host's cgroup2 mount that a mount without a cgroup namespace would take away: `nsdelegate`,
    /// `memory_recursiveprot`.
    pub cgroup2_options: Vec<String>,
    /// Page sizes that the hugetlb controller limits, such as `2MB`; empty without it.
    pub hugepage_sizes: BTreeSet<String>,
    /// Whether swap can be limited.
    pub swap_accounting: bool,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Whether SELinux is on.
    pub selinux: bool,
    /// Whether read-only can be made recursive: `mount_setattr(2)`, Linux 5.12.
    pub recursive_readonly: bool,
    /// Whether pods can have user namespaces: the owners of the root filesystem directories can be mapped.
    pub user_namespaces: bool,
    /// Capabilities of the daemon itself, which bound what it can grant.
    pub capabilities: Names,
    /// The nodes below /dev, for privileged containers.
    pub devices: Vec<DeviceNode>,
    /// The machine.
    pub arch: Arch,
    /// The kernel's version: major and minor.
    pub kernel: (u32, u32),
}

impl Default for HostFacts {
    /// A current x86-64 machine with cgroup v2 and without a security module.
    fn default() -> Self {
        Self {
            cgroup: CgroupVersion::V2,
            cgroup2_options: Vec::new(),
            hugepage_sizes: BTreeSet::new(),
            swap_accounting: true,
            apparmor: false,
            selinux: false,
            recursive_readonly: true,
            user_namespaces: true,
            capabilities: capabilities::ALL.iter().copied().collect(),
            devices: Vec::new(),
            arch: Arch::ScmpArchX86_64,
            kernel: (6, 1),
        }
    }
}
