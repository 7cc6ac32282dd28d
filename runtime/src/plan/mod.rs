//! The plan of a container: a [`Spec`](oci_spec::runtime::Spec) with every default, flag and name resolved.
//!
//! [`Plan::from_spec`] is pure: it reads no file and asks nothing of the kernel, so every rule of it is tested
//! without one. Whatever it accepts, the engine can attempt; whatever it refuses names the spec's field.
//! Init only follows a plan; it decides nothing.

mod attributes;
mod build;
mod devices;
mod error;
mod lifecycle;
mod mounts;
mod namespaces;
pub mod options;
mod process;
mod sysctls;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use attributes::number_list;
pub use error::PlanError;
use serde::{Deserialize, Serialize};
pub use sysctls::sysctl_path;

/// Everything the engine needs to take a container from nothing to its start gate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which namespaces are made and which are joined.
    pub namespaces: Namespaces,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// What is mounted inside it, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes below /dev, the runtime-spec's default devices first.
    pub devices: Vec<DeviceNode>,
    /// Absolute container paths hidden under an empty read-only file or directory.
    pub masked_paths: Vec<PathBuf>,
    /// Absolute container paths remounted read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// Set in the container's UTS namespace.
    pub hostname: Option<String>,
    /// Set in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Sysctls as (path below /proc/sys with slashes, value), in the spec's order.
    pub sysctls: Vec<(String, String)>,
    /// Network devices moved into the container: (host name, name inside).
    pub net_devices: Vec<(String, String)>,
    /// The container's own process; None: the spec has none and the container can be created but not started.
    pub process: Option<Process>,
    /// The spec's `linux.cgroupsPath`, as written; None: the engine's caller chooses.
    pub cgroups_path: Option<String>,
    /// The spec's `linux.resources`, for [`crate::cgroup`].
    pub resources: Option<oci_spec::runtime::LinuxResources>,
    /// Lifecycle hooks.
    pub hooks: Hooks,
    /// SELinux label for the mounts that take one.
    pub mount_label: Option<String>,
    /// personality(2) domain and flags.
    pub personality: Option<u32>,
    /// Intel RDT, as the spec gives it.
    pub intel_rdt: Option<oci_spec::runtime::LinuxIntelRdt>,
    /// set_mempolicy(2), for init and all it starts.
    pub memory_policy: Option<MemoryPolicy>,
    /// Give init a session keyring of its own; false: it keeps the caller's.
    pub new_keyring: bool,
    /// What the spec asks for that is accepted but will not happen (an unknown capability, a deprecated field):
    /// one sentence each, for the caller's log.
    pub warnings: Vec<String>,
    /// `annotations` of the spec, for hooks' state.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// `ociVersion` of the spec, for hooks' state.
    pub oci_version: String,
}

/// The eight kinds of namespace. See namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceKind {
    /// CLONE_NEWUSER. First: joining or making it decides what the others may do.
    User,
    /// CLONE_NEWIPC.
    Ipc,
    /// CLONE_NEWUTS.
    Uts,
    /// CLONE_NEWNET.
    Network,
    /// CLONE_NEWPID.
    Pid,
    /// CLONE_NEWCGROUP. Made after init has joined its cgroup, so that it is the root there.
    Cgroup,
    /// CLONE_NEWTIME.
    Time,
    /// CLONE_NEWNS. Last.
    Mount,
}

/// The namespaces of a container. A kind in neither list is shared with the engine's caller.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    /// Kinds to make, ordered as [`NamespaceKind`].
    pub new: Vec<NamespaceKind>,
    /// Kinds to join by a path such as `/proc/4026/ns/net`, ordered as [`NamespaceKind`].
    pub join: Vec<(NamespaceKind, PathBuf)>,
    /// Maps for a new user namespace; empty otherwise.
    pub uid_maps: Vec<IdMap>,
    /// Maps for a new user namespace; empty otherwise.
    pub gid_maps: Vec<IdMap>,
    /// Offsets of a new time namespace as lines of /proc/PID/timens_offsets: (clock, seconds, nanoseconds).
    pub time_offsets: Vec<(String, i64, u32)>,
}

/// One line of a uid_map or gid_map. See user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub container_id: u32,
    /// First id outside.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// The root filesystem.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// Absolute host path of `root.path`.
    pub path: PathBuf,
    /// Remounted read-only once everything inside is mounted.
    pub readonly: bool,
    /// Propagation of the container's whole mount tree; None: `rslave`.
    pub propagation: Option<Propagation>,
    /// Use MS_MOVE and chroot(2) where the root cannot be pivoted (initramfs).
    pub no_pivot: bool,
}

/// Mount propagation. See mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// Which type.
    pub kind: PropagationKind,
    /// Whether every mount below is changed too (the `r` in `rslave`).
    pub recursive: bool,
}

/// The propagation types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PropagationKind {
    /// MS_PRIVATE.
    Private,
    /// MS_SHARED.
    Shared,
    /// MS_SLAVE.
    Slave,
    /// MS_UNBINDABLE.
    Unbindable,
}

/// One mount inside the root.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Absolute path in the container; resolved beneath the root, symlinks followed inside it only.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: MountSource,
    /// Mount attributes (MOUNT_ATTR_*, mount_setattr(2)) to set on the mount itself.
    pub attr_set: u64,
    /// Mount attributes to clear on the mount itself.
    pub attr_clear: u64,
    /// Mount attributes to set on the mount and every one below it (`rro`, `rnosuid`, …).
    pub attr_set_recursive: u64,
    /// Mount attributes to clear on the mount and every one below it (`rrw`, …).
    pub attr_clear_recursive: u64,
    /// Propagation changes, in order.
    pub propagation: Vec<Propagation>,
    /// Copy what the root has at `destination` into the new tmpfs.
    pub tmpcopyup: bool,
    /// An idmapped mount.
    pub idmap: Option<MountIdmap>,
    /// The user asked for some flag explicitly (`rw`, `suid`, …), so a bind remount must not fall back to keeping a locked one.
    pub attr_explicit: bool,
}

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum MountSource {
    /// A host file or directory.
    Bind {
        /// Host path.
        path: PathBuf,
        /// `rbind`: with what is mounted below it.
        recursive: bool,
    },
    /// A new filesystem.
    Filesystem {
        /// Its type, as in /proc/filesystems.
        fstype: String,
        /// Its source; some types show it in mountinfo.
        source: Option<String>,
        /// Its own options, in order: `key` or `key=value`.
        options: Vec<(String, Option<String>)>,
        /// Superblock flags: read-only, sync, dirsync, lazytime, mandlock, silent, as MS_* bits.
        superblock_flags: u64,
    },
    /// The container's own view of its cgroups (`type: cgroup` or `cgroup2`).
    Cgroup,
    /// `remount`: nothing new. What is mounted at the destination already gets the attributes of this entry.
    Remount {
        /// Options to change of its filesystem, as [`Filesystem`](Self::Filesystem) has them.
        options: Vec<(String, Option<String>)>,
        /// Superblock flags to set; read-only is for the mount alone.
        superblock_flags: u64,
    },
}

/// How a mount's owners are mapped.
#[derive(Debug, Clone)]
pub struct MountIdmap {
    /// uid maps; empty: the container's user namespace.
    pub uid_maps: Vec<IdMap>,
    /// gid maps; empty: the container's user namespace.
    pub gid_maps: Vec<IdMap>,
    /// `ridmap`: the mounts below too.
    pub recursive: bool,
}

/// A device node to make, or to bind where nodes cannot be made (user namespaces).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Absolute container path.
    pub path: PathBuf,
    /// Character, block or FIFO.
    pub kind: DeviceKind,
    /// Major number; 0 for a FIFO.
    pub major: u32,
    /// Minor number; 0 for a FIFO.
    pub minor: u32,
    /// Permission bits; the default is 0666.
    pub mode: u32,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
}

/// The types of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// `c` or `u`.
    Char,
    /// `b`.
    Block,
    /// `p`.
    Fifo,
}

/// A process of a container: its init, or one that is exec'd into it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Program and arguments; at least one.
    pub args: Vec<String>,
    /// `KEY=value`, later ones win; in the spec's order.
    pub env: Vec<String>,
    /// Absolute working directory in the container.
    pub cwd: PathBuf,
    /// Wants a pseudo-terminal.
    pub terminal: bool,
    /// (columns, rows) of the terminal.
    pub console_size: Option<(u16, u16)>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// The five capability sets as bit masks, bit N = capability N.
    pub capabilities: Capabilities,
    /// Resource limits: (RLIMIT_* number, soft, hard).
    pub rlimits: Vec<Rlimit>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile to change to at exec.
    pub apparmor_profile: Option<String>,
    /// SELinux label to change to at exec.
    pub selinux_label: Option<String>,
    /// sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// ioprio_set(2): (class 1..=3, priority 0..=7).
    pub io_priority: Option<(u32, u32)>,
    /// `execCPUAffinity.initial`: CPU list to run on before joining the cgroup.
    pub cpu_affinity_initial: Option<String>,
    /// `execCPUAffinity.final`: CPU list once in the cgroup.
    pub cpu_affinity_final: Option<String>,
}

/// Capability sets as bit masks. See capabilities(7). Absent sets are empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What exec can ever gain.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept over exec of files that ask for them.
    pub inheritable: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over exec of any file.
    pub ambient: u64,
}

/// One resource limit. See getrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// RLIMIT_* number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// `struct sched_attr` of sched_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scheduler {
    /// SCHED_* number.
    pub policy: u32,
    /// SCHED_FLAG_* bits.
    pub flags: u64,
    /// -20..=19, for SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// 1..=99, for SCHED_FIFO and SCHED_RR; else 0.
    pub priority: u32,
    /// SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub period: u64,
}

/// The arguments of set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// MPOL_* number with its MPOL_F_* flags or'ed in.
    pub mode: i32,
    /// The nodes, ascending; empty: none are passed.
    pub nodes: Vec<u32>,
}

/// Lifecycle hooks of the runtime-spec, in order of their points.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Deprecated; with createRuntime, before it.
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, after the container's namespaces stand, before pivot_root.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before pivot_root; the path is the host's.
    pub create_container: Vec<Hook>,
    /// In the container, before its program is executed.
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, after the program was executed.
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, after the container is gone.
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Arguments, the program's own name first; empty: just the path.
    pub args: Vec<String>,
    /// Its whole environment. None: the spec gives none, which is none at all but for startContainer hooks: those have
    /// that of the container's process.
    pub env: Option<Vec<String>>,
    /// Killed after so many seconds; None: never.
    pub timeout_seconds: Option<u64>,
}
