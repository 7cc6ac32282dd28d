//! Which cgroup hierarchies this host has, where they are mounted and where in them this process is.
//!
//! Both come from two files: `/proc/self/mountinfo` and `/proc/self/cgroup` (cgroups(7)). Nothing is
//! cached here: the caller detects once and keeps the value.
//!
//! | host | v1 list | v2 | controllers are driven through |
//! |---|---|---|---|
//! | legacy | each controller (or co-mounted set) | none | v1 |
//! | hybrid | as above | mounted beside them, with none or the remaining controllers | the hierarchy that has the controller |
//! | unified | empty | at `/sys/fs/cgroup` | v2 |
//!
//! On a hybrid host the v2 hierarchy is used even when it has no controller, because killing, freezing and
//! waiting for the last exit are race free and announced by events there, and are neither in v1.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::{Failure, Step};

/// A resource controller, under one name for both versions (v1's `blkio` is [`Controller::Io`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    /// CPU time: shares, quota, real-time.
    Cpu,
    /// v1 only: CPU time accounting (part of `cpu` in v2).
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// Device access; an eBPF program in v2, no controller.
    Devices,
    /// v1 only: freezing (part of the core in v2).
    Freezer,
    /// Block I/O: `blkio` in v1, `io` in v2.
    Io,
    /// Number of tasks.
    Pids,
    /// Huge pages.
    Hugetlb,
    /// v1 only: class of network packets.
    NetCls,
    /// v1 only: priority of network packets.
    NetPrio,
    /// perf events.
    PerfEvent,
    /// RDMA handles and objects.
    Rdma,
    /// Miscellaneous scalar resources.
    Misc,
    /// v2 only: a file of the core, or of a controller this build has no name for; written as given.
    Core,
}

impl Controller {
    /// By a name from a v1 mount's options, `cgroup.controllers`, or the head of a file name. None: no controller of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuacct" => Self::Cpuacct,
            "cpuset" => Self::Cpuset,
            "memory" => Self::Memory,
            "devices" => Self::Devices,
            "freezer" => Self::Freezer,
            "blkio" | "io" => Self::Io,
            "pids" => Self::Pids,
            "hugetlb" => Self::Hugetlb,
            "net_cls" => Self::NetCls,
            "net_prio" => Self::NetPrio,
            "perf_event" => Self::PerfEvent,
            "rdma" => Self::Rdma,
            "misc" => Self::Misc,
            _ => return None,
        })
    }

    /// Its name in v2's files.
    pub fn name_v2(self) -> &'static str {
        if self == Self::Io { "io" } else { self.name() }
    }

    /// Its name in v1 mounts and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Io => "blkio",
            Self::Pids => "pids",
            Self::Hugetlb => "hugetlb",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::PerfEvent => "perf_event",
            Self::Rdma => "rdma",
            Self::Misc => "misc",
            Self::Core => "cgroup",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a host arranges its hierarchies; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// v1 hierarchies only.
    Legacy,
    /// v1 hierarchies and a v2 one beside them.
    Hybrid,
    /// v2 only.
    Unified,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Directory of the cgroup this process is in, as seen below `mount`. None: outside of what is mounted here.
    pub own: Option<PathBuf>,
    /// The controllers mounted with it (v1) or available at its root (v2).
    pub controllers: Vec<Controller>,
    /// As in `/proc/self/cgroup`'s second field: `cpu,cpuacct`, `name=systemd`, or empty for v2.
    pub label: String,
}

/// Every hierarchy of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// v1 hierarchies, named ones included, in mount order.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy, where mounted.
    pub v2: Option<Hierarchy>,
}

impl Hierarchies {
    /// Reads this process's mountinfo and cgroup files.
    pub fn detect() -> Result<Self, Failure> {
        let mountinfo = read("/proc/self/mountinfo")?;
        let own = read("/proc/self/cgroup")?;
        let mut found = Self::parse(&mountinfo, &own);
        if let Some(v2) = &mut found.v2 {
            let controllers = read(v2.mount.join("cgroup.controllers"))?;
            v2.controllers = controllers.split_whitespace().filter_map(Controller::from_name).collect();
        }
        if found.v1.is_empty() && found.v2.is_none() {
            return Err(Failure::because(Step::Cgroup, "no cgroup hierarchy is mounted on this host"));
        }
        Ok(found)
    }

    /// The pure part of [`detect`](Self::detect): what the texts of the two files say. v2's controllers stay empty.
    pub fn parse(mountinfo: &str, own: &str) -> Self {
        let memberships: Vec<(&str, &str)> = own.lines().filter_map(membership).collect();
        let mut found = Self { v1: Vec::new(), v2: None };
        for mount in mountinfo.lines().filter_map(CgroupMount::parse) {
            if mount.is_v2 {
                if found.v2.is_none() {
                    found.v2 = Some(mount.hierarchy(&memberships, Vec::new(), String::new()));
                }
                continue;
            }
            let Some((label, _)) =
                memberships.iter().find(|(label, _)| !label.is_empty() && same_set(label, &mount.options))
            else {
                continue;
            };
            // A hierarchy mounted twice (bind mounts, old symlink replacements) is one hierarchy.
            if found.v1.iter().any(|known| known.label == *label) {
                continue;
            }
            let controllers = label.split(',').filter_map(Controller::from_name).collect();
            found.v1.push(mount.hierarchy(&memberships, controllers, (*label).to_owned()));
        }
        found
    }

    /// How they are arranged.
    pub fn mode(&self) -> Mode {
        match (self.v1.is_empty(), &self.v2) {
            (true, _) => Mode::Unified,
            (false, Some(_)) => Mode::Hybrid,
            (false, None) => Mode::Legacy,
        }
    }

    /// The hierarchy that has `controller`: a v1 one first, then v2.
    pub fn with(&self, controller: Controller) -> Option<&Hierarchy> {
        self.v1
            .iter()
            .find(|hierarchy| hierarchy.controllers.contains(&controller))
            .or_else(|| self.v2.as_ref().filter(|v2| v2.controllers.contains(&controller)))
    }
}

/// One cgroup or cgroup2 line of mountinfo.
struct CgroupMount {
    root: String,
    point: PathBuf,
    is_v2: bool,
    options: String,
}

impl CgroupMount {
    /// `36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices`; None for any other filesystem.
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let is_v2 = match tail.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = tail.nth(1).unwrap_or_default().to_owned();
        let mut head = head.split(' ').skip(3);
        let root = unescape(head.next()?);
        let point = PathBuf::from(unescape(head.next()?));
        Some(Self { root, point, is_v2, options })
    }

    fn hierarchy(
        self,
        memberships: &[(&str, &str)],
        controllers: Vec<Controller>,
        label: String,
    ) -> Hierarchy {
        let own = memberships
            .iter()
            .find(|(set, _)| *set == label)
            .and_then(|(_, path)| Path::new(path).strip_prefix(&self.root).ok())
            // A path outside of our cgroup namespace shows as `/../..`.
            .filter(|rest| rest.components().all(|part| matches!(part, Component::Normal(_))))
            .map(|rest| self.point.join(rest));
        Hierarchy { own, mount: self.point, controllers, label }
    }
}

/// `(label, path)` of a line such as `4:memory:/x` or `0::/x`.
fn membership(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

/// Whether every member of `label` is among the mount options, which hold `rw` and others too.
fn same_set(label: &str, options: &str) -> bool {
    label.split(',').all(|member| options.split(',').any(|option| option == member))
}

/// Undoes mountinfo's octal escapes for space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let mut out = field.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        if out.contains(code) {
            out = out.replace(code, character);
        }
    }
    out
}

fn read(path: impl AsRef<Path>) -> Result<String, Failure> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map_err(|error| super::files::failure(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /mnt/again rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host() {
        let found = Hierarchies::parse(HYBRID, "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/u\n");
        assert_eq!(found.mode(), Mode::Hybrid);
        assert_eq!(found.v1.len(), 3);
        assert_eq!(found.v1[0].controllers, [Controller::Cpu, Controller::Cpuacct]);
        assert_eq!(found.v1[1].own.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/a/b")));
        assert_eq!(found.v1[2].label, "name=systemd");
        let v2 = found.v2.as_ref().unwrap();
        assert_eq!(v2.own.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/u")));
        assert_eq!(found.with(Controller::Cpuacct).unwrap().label, "cpu,cpuacct");
        assert!(found.with(Controller::Hugetlb).is_none());
    }

    #[test]
    fn a_unified_host_seen_from_inside_a_container() {
        let mountinfo = "9 1 0:9 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot\n";
        let found = Hierarchies::parse(mountinfo, "0::/docker/abc/inner\n");
        assert_eq!(found.mode(), Mode::Unified);
        assert_eq!(found.v2.unwrap().own.as_deref(), Some(Path::new("/sys/fs/cgroup/inner")));
        let outside = Hierarchies::parse(mountinfo, "0::/../x\n");
        assert_eq!(outside.v2.unwrap().own, None);
    }

    #[test]
    fn controllers_that_are_mounted_nowhere_are_not_listed() {
        let found = Hierarchies::parse(HYBRID, "12:misc:/\n4:memory:/\n");
        assert_eq!(found.v1.len(), 1);
    }
}
