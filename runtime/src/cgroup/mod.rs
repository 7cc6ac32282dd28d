//! Control groups: one [`Cgroup`] is a container's place in every hierarchy of the host (cgroups(7)).
//!
//! Its life, in the engine's order:
//!
//! ```text
//! Hierarchies::detect      once per process
//! CgroupPath::parse        config.json -> where
//! Limits::from_spec        config.json -> what (pure)
//! Cgroup::create           mkdir in every hierarchy; undone as a whole when any of it fails
//! Cgroup::apply            limits and devices, while nothing runs in it yet
//! clone3                   straight into Cgroup::dirfd_v2, where there is one
//! Cgroup::join_self_v1     in the child: the hierarchies that clone3 cannot reach
//! Cgroup::update, freeze, thaw, kill_all, stats, oom_watch …
//! Cgroup::remove           and remove_ancestors for the parents that create had to make
//! ```
//!
//! **v2 beside v1** (hybrid): limits go to the v1 hierarchies, and the cgroup is made in the v2 one
//! too, although it may have no controller: `cgroup.kill` kills a subtree that forks faster than it can be read,
//! `cgroup.freeze` freezes it reliably, and `cgroup.events` announces both and the last exit through poll(2).
//! v1 has none of these. The v1 freezer is joined and thawed, so that what others freeze
//! there still dies and resumes, but we do not freeze with it where v2 is mounted.
//!
//! **systemd** (`systemd.rs`): create only notes the unit; join asks systemd to start the scope around the process, since a scope
//! cannot be empty. Limits applied before that travel with the request.

mod apply;
mod create;
mod dbus;
pub mod devices;
pub mod ebpf;
pub(crate) mod files;
mod freeze;
mod hierarchies;
mod kill;
mod limits;
mod oom;
mod path;
mod pids;
mod remove;
mod stats;
mod systemd;
mod variant;
mod wait;
mod writes;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Failure, Step};
use files::Dir;

pub use create::{CreateOptions, Existing, join_self_runtime};
pub use hierarchies::{Controller, Hierarchies, Hierarchy, Mode};
pub use limits::{
    CpuLimits, DeviceWeight, IoLimits, LimitError, Limits, MemoryLimits, Throttle, ThrottleKind,
};
pub use oom::{OomAbove, OomWatch};
pub use path::{CgroupPath, Driver, PathError};
pub use remove::remove_ancestors;
pub use stats::{
    CpuStats, HugetlbStats, IoEntry, IoOperation, MemoryStats, PidsStats, Pressure, PressureLine, Stats,
};
pub use writes::{Write, weight_of_shares, writes_v1, writes_v2};

/// A cgroup in every hierarchy, its directories held open. `Send` and `Sync`; dropping it removes nothing.
#[derive(Debug)]
pub struct Cgroup {
    /// v1 directories, in mount order.
    v1: Vec<Dir>,
    /// The v2 directory.
    v2: Option<Dir>,
    /// Parents that did not exist before, outermost first within each hierarchy.
    made_ancestors: Vec<PathBuf>,
    /// Permission errors are expected: an unprivileged user gets the hierarchies that were delegated.
    rootless: bool,
    /// The systemd unit, where systemd makes it.
    scope: Option<systemd::Scope>,
}

/// What finds a cgroup again after a restart: kept in a container's state on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// One directory per hierarchy.
    pub directories: Vec<RecordedDirectory>,
    /// The systemd unit, where systemd made the cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Parents that were made for it and may be removed with [`remove_ancestors`] when they are empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_ancestors: Vec<PathBuf>,
    /// See [`CreateOptions::rootless`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
}

/// A cgroup's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedDirectory {
    /// See [`Hierarchy::label`]; empty for v2.
    pub hierarchy: String,
    /// The directory.
    pub path: PathBuf,
}

impl Cgroup {
    /// An existing cgroup by its place. Hierarchies that lack it are left out; none having it is ENOENT.
    pub fn open(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<Self, Failure> {
        let v1 = hierarchies.v1.iter().map(|hierarchy| (hierarchy, false));
        let all = v1.chain(hierarchies.v2.iter().map(|hierarchy| (hierarchy, true)));
        let mut places = Vec::new();
        for (hierarchy, v2) in all {
            let directory = path.directory(hierarchy, v2).map_err(|error| refused(&error))?;
            places.push((directory, hierarchy.controllers.clone(), hierarchy.label.clone()));
        }
        let mut cgroup = Self::open_places(places)?;
        if let CgroupPath::Systemd { unit, .. } = path {
            cgroup.scope = Some(systemd::Scope::running(unit.clone()));
        }
        Ok(cgroup)
    }

    /// An existing cgroup by its record. Directories that are gone are left out; all gone is ENOENT.
    pub fn open_record(record: &CgroupRecord) -> Result<Self, Failure> {
        let mut places = Vec::new();
        for directory in &record.directories {
            let controllers = if directory.hierarchy.is_empty() {
                let text = std::fs::read_to_string(directory.path.join("cgroup.controllers"));
                let text = text.unwrap_or_default();
                text.split_whitespace().filter_map(Controller::from_name).collect()
            } else {
                directory.hierarchy.split(',').filter_map(Controller::from_name).collect()
            };
            places.push((directory.path.clone(), controllers, directory.hierarchy.clone()));
        }
        let mut cgroup = Self::open_places(places)?;
        cgroup.made_ancestors.clone_from(&record.made_ancestors);
        cgroup.rootless = record.rootless;
        cgroup.scope = record.unit.clone().map(systemd::Scope::running);
        Ok(cgroup)
    }

    fn open_places(places: Vec<(PathBuf, Vec<Controller>, String)>) -> Result<Self, Failure> {
        let mut cgroup =
            Self { v1: Vec::new(), v2: None, made_ancestors: Vec::new(), rootless: false, scope: None };
        let mut missing = None;
        for (path, controllers, label) in places {
            match Dir::open(path, controllers, label) {
                Ok(dir) if dir.label.is_empty() => cgroup.v2 = Some(dir),
                Ok(dir) => cgroup.v1.push(dir),
                Err(failure) if failure.errno() == Some(rustix::io::Errno::NOENT) => missing = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        match missing {
            Some(failure) if cgroup.v1.is_empty() && cgroup.v2.is_none() => Err(failure),
            _ => Ok(cgroup),
        }
    }

    /// What to keep on disk.
    pub fn record(&self) -> CgroupRecord {
        CgroupRecord {
            directories: self
                .dirs()
                .map(|dir| RecordedDirectory { hierarchy: dir.label.clone(), path: dir.path.clone() })
                .collect(),
            unit: self.scope.as_ref().map(|scope| scope.unit.clone()),
            made_ancestors: self.made_ancestors.clone(),
            rootless: self.rootless,
        }
    }

    /// Parents that did not exist before this cgroup was made; see [`remove_ancestors`].
    pub fn made_ancestors(&self) -> &[PathBuf] {
        &self.made_ancestors
    }

    /// For `CLONE_INTO_CGROUP` (clone3(2)). None: every hierarchy is v1, and [`join`](Self::join) is the way in.
    pub fn dirfd_v2(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    /// Whether only the parent can put a new process in, by [`join`](Self::join): a systemd scope starts around a process.
    pub fn joins_by_parent_only(&self) -> bool {
        self.scope.as_ref().is_some_and(systemd::Scope::is_pending)
    }

    /// The directory of `controller`'s hierarchy, for messages and for what reads single files there.
    pub fn directory(&self, controller: Controller) -> Option<&Path> {
        self.of(controller).map(|dir| dir.path.as_path())
    }

    /// The v2 directory.
    pub fn directory_v2(&self) -> Option<&Path> {
        self.v2.as_ref().map(|dir| dir.path.as_path())
    }

    /// Whether v1 hierarchies have the controllers.
    pub fn is_v1(&self) -> bool {
        !self.v1.is_empty()
    }

    /// A cgroup below this one that is only there to be killed and waited for as a whole (an exec'd process with a timeout):
    /// made in v2, or in the v1 freezer where there is no v2; every other hierarchy is this cgroup's.
    pub fn child(&self, name: &str) -> Result<Self, Failure> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Failure::because(Step::Cgroup, format!("bad sub cgroup path: {name}")));
        }
        let in_v2 = self.v2.is_some();
        let v1 = self
            .v1
            .iter()
            .map(|dir| if !in_v2 && dir.has(Controller::Freezer) { dir.child(name) } else { dir.share() })
            .collect::<Result<_, _>>()?;
        let v2 = self.v2.as_ref().map(|dir| dir.child(name)).transpose()?;
        Ok(Self { v1, v2, made_ancestors: Vec::new(), rootless: self.rootless, scope: None })
    }

    /// An existing cgroup below this one in every hierarchy, as `wright exec --cgroup` names it.
    pub fn below(&self, path: &str) -> Result<Self, Failure> {
        let path = path.trim_matches('/');
        let bad = !path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if bad || path.chars().any(char::is_control) {
            return Err(Failure::because(Step::Cgroup, format!("bad sub cgroup path: {path}")));
        }
        let v1 = self.v1.iter().map(|dir| dir.below(path)).collect::<Result<_, _>>()?;
        let v2 = self.v2.as_ref().map(|dir| dir.below(path)).transpose()?;
        Ok(Self { v1, v2, made_ancestors: Vec::new(), rootless: self.rootless, scope: None })
    }

    /// As [`below`](Self::below), where each controller's hierarchy has a path of its own; the hierarchies of no named
    /// controller stay as they are. The empty name stands for v2.
    pub fn below_each(&self, paths: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let path_of = |dir: &Dir| {
            paths
                .iter()
                .find(|(name, _)| Controller::from_name(name).is_some_and(|controller| dir.has(controller)))
        };
        let bad = |path: &str| {
            let trimmed = path.trim_matches('/');
            !trimmed.is_empty() && trimmed.split('/').any(|part| matches!(part, "" | "." | ".."))
        };
        if let Some(path) = paths.values().find(|path| bad(path)) {
            return Err(Failure::because(Step::Cgroup, format!("bad sub cgroup path: {path}")));
        }
        let one = |dir: &Dir| match path_of(dir) {
            Some((_, path)) => dir.below(path.trim_matches('/')),
            None => dir.share(),
        };
        let v1 = self.v1.iter().map(one).collect::<Result<_, _>>()?;
        let v2 = match (&self.v2, paths.get("")) {
            (Some(dir), Some(path)) => Some(dir.below(path.trim_matches('/'))?),
            (Some(dir), None) => Some(one(dir)?),
            (None, _) => None,
        };
        Ok(Self { v1, v2, made_ancestors: Vec::new(), rootless: self.rootless, scope: None })
    }

    /// Every directory, v1 first.
    fn dirs(&self) -> impl Iterator<Item = &Dir> {
        self.v1.iter().chain(&self.v2)
    }

    /// The directory whose hierarchy has `controller`.
    fn of(&self, controller: Controller) -> Option<&Dir> {
        self.dirs().find(|dir| dir.has(controller))
    }

    /// The v1 directory whose hierarchy has `controller`.
    fn of_v1(&self, controller: Controller) -> Option<&Dir> {
        self.v1.iter().find(|dir| dir.has(controller))
    }
}

/// A refused path or limit as the failure it is to the caller.
fn refused(error: &dyn std::error::Error) -> Failure {
    Failure::because(Step::Cgroup, error.to_string())
}
