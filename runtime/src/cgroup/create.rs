//! Making a cgroup in every hierarchy, and taking part of it back when the rest fails.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode as FileMode, Uid};
use rustix::io::Errno;

use crate::{Failure, Step};

use super::files::{Dir, failure};
use super::{Cgroup, CgroupPath, Controller, Hierarchies, Hierarchy, refused};

/// How [`Cgroup::create`] goes about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// What is done about a cgroup that is already there.
    pub existing: Existing,
    /// Hierarchies that may not be written to are left out, when the path was not given as an absolute one.
    pub rootless: bool,
    /// systemd only: `(name, value in GVariant's text form)` of further unit properties, from annotations
    /// `org.systemd.property.NAME`.
    pub unit_properties: Vec<(String, String)>,
    /// v2 only: the user, as the host counts, who may manage cgroups of his own below it. Set by [`crate::container::create`].
    pub owner: Option<u32>,
}

/// About a cgroup that is already there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Existing {
    /// Used if no process is in it and it is not frozen; refused otherwise (runc's rule for a new container).
    #[default]
    Empty,
    /// Used as it is.
    Any,
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy, with v2 controllers enabled down to it and v1 cpusets filled. Nothing is left behind on failure.
    pub fn create(
        hierarchies: &Hierarchies,
        path: &CgroupPath,
        options: &CreateOptions,
    ) -> Result<Self, Failure> {
        if let CgroupPath::Systemd { slice, unit } = path {
            return Self::prepare_unit(hierarchies, path, (slice, unit), options);
        }
        let mut undo = Made::default();
        let made = make_all(hierarchies, path, options, &mut undo);
        if made.is_err() {
            undo.take_back();
        }
        made
    }

    /// Moves the calling process, which must have one thread, into the v1 hierarchies: the first thing that a child does after clone3
    /// put it into the v2 one ([`dirfd_v2`](Self::dirfd_v2)). Allocates nothing.
    ///
    /// A process that is moved by another waits for an RCU grace period of the kernel's, milliseconds on an idle machine
    /// (`cgroup_threadgroup_rwsem`). A single thread that moves itself, by a 0 written to v1's `tasks`, is spared that (Linux 5.15).
    pub fn join_self_v1(&self) -> Result<(), Failure> {
        self.v1.iter().try_for_each(|dir| dir.set("tasks", "0"))
    }

    /// Moves the calling process, which must have one thread, into every hierarchy. Where clone3 can do its part, prefer
    /// [`join_self_v1`](Self::join_self_v1): moving within v2 waits, whoever moves.
    pub fn join_self(&self) -> Result<(), Failure> {
        self.join_self_v1()?;
        self.v2.as_ref().map_or(Ok(()), |dir| enter(dir, 0))
    }

    /// Moves a process into every hierarchy. It may take milliseconds; see [`join_self_v1`](Self::join_self_v1).
    pub fn join(&mut self, pid: u32) -> Result<(), Failure> {
        if self.joins_by_parent_only() {
            return self.start_unit(Some(pid));
        }
        self.join_v1(pid)?;
        self.v2.as_ref().map_or(Ok(()), |dir| enter(dir, pid))
    }

    /// Moves a process into the v1 hierarchies: what is left to do after `CLONE_INTO_CGROUP`.
    pub fn join_v1(&self, pid: u32) -> Result<(), Failure> {
        self.v1.iter().try_for_each(|dir| enter(dir, pid))
    }

    /// As [`join`](Self::join) for a process beside `init`. A container that manages cgroups of its own (v2, with controllers enabled
    /// below its own cgroup) keeps no process in the cgroup it was given; then `pid` goes where `init` is.
    pub fn join_beside(&mut self, pid: u32, init: u32) -> Result<(), Failure> {
        match self.join(pid) {
            Err(failed) if matches!(failed.errno(), Some(Errno::BUSY | Errno::OPNOTSUPP)) => {
                match self.v2.as_ref().and_then(|dir| holder(dir, init)) {
                    Some(dir) => enter(&dir, pid),
                    None => Err(failed),
                }
            }
            joined => joined,
        }
    }
}

/// Puts the calling process, which must have one thread, into the runtime's own cgroup, making it if need be: in the v1 hierarchies of
/// `controllers` and in named ones (which systemd kills a service by); in v2 only where there is no v1, for moving waits there
/// (see [`Cgroup::join_self_v1`]). Every monitor does so as its first act.
pub fn join_self_runtime(
    hierarchies: &Hierarchies,
    path: &CgroupPath,
    controllers: &[Controller],
) -> Result<(), Failure> {
    let wanted = |hierarchy: &&Hierarchy| {
        hierarchy.controllers.is_empty()
            || hierarchy.controllers.iter().any(|controller| controllers.contains(controller))
    };
    let mut undo = Made::default();
    for hierarchy in hierarchies.v1.iter().filter(wanted) {
        make_v1(hierarchy, path, &mut undo)?.set("tasks", "0")?;
    }
    if let Some(hierarchy) = hierarchies.v2.as_ref().filter(|_| hierarchies.v1.is_empty()) {
        enter(&make_v2(hierarchy, path, true, &mut undo)?, 0)?;
    }
    Ok(())
}

fn make_all(
    hierarchies: &Hierarchies,
    path: &CgroupPath,
    options: &CreateOptions,
    undo: &mut Made,
) -> Result<Cgroup, Failure> {
    let lenient = options.rootless && !matches!(path, CgroupPath::Absolute(_));
    let tolerated = |failure: &Failure| {
        lenient && matches!(failure.errno(), Some(Errno::ACCESS | Errno::PERM | Errno::ROFS))
    };
    let mut v1 = Vec::with_capacity(hierarchies.v1.len());
    for hierarchy in &hierarchies.v1 {
        match make_v1(hierarchy, path, undo) {
            Ok(dir) => v1.push(dir),
            Err(failure) if tolerated(&failure) => {}
            Err(failure) => return Err(failure),
        }
    }
    // Beside v1, what v2 has is enabled only when a limit asks for it (`apply`): most hosts are left as they were.
    let unified = hierarchies.v1.is_empty();
    let v2 = match hierarchies.v2.as_ref().map(|hierarchy| make_v2(hierarchy, path, unified, undo)) {
        None => None,
        Some(Ok(dir)) => Some(dir),
        Some(Err(failure)) if tolerated(&failure) => None,
        Some(Err(failure)) => return Err(failure),
    };
    if let (true, Some(dir), Some(owner)) = (unified, &v2, options.owner) {
        delegate(dir, owner, options.rootless)?;
    }
    let cgroup =
        Cgroup { v1, v2, made_ancestors: undo.ancestors.clone(), rootless: options.rootless, scope: None };
    if undo.found_existing && options.existing == Existing::Empty {
        refuse_used(&cgroup)?;
    }
    Ok(cgroup)
}

/// runc's two checks, in its words: tools match on them.
pub(super) fn refuse_used(cgroup: &Cgroup) -> Result<(), Failure> {
    let pids = cgroup.pids(true)?;
    if !pids.is_empty() {
        let message = format!("container's cgroup is not empty: {} process(es) found", pids.len());
        return Err(Failure::because(Step::Cgroup, message));
    }
    if cgroup.is_frozen()? {
        return Err(Failure::because(Step::Cgroup, "container's cgroup unexpectedly frozen"));
    }
    Ok(())
}

pub(super) fn make_v1(hierarchy: &Hierarchy, path: &CgroupPath, undo: &mut Made) -> Result<Dir, Failure> {
    let target = path.directory(hierarchy, false).map_err(|error| refused(&error))?;
    let first_new = undo.directories.len();
    undo.make(&target, &hierarchy.mount)?;
    let dir = Dir::open(target, hierarchy.controllers.clone(), hierarchy.label.clone())?;
    if hierarchy.controllers.contains(&Controller::Cpuset) {
        for new in &undo.directories[first_new..] {
            fill_cpuset(new, &hierarchy.mount)?;
        }
    }
    Ok(dir)
}

pub(super) fn make_v2(
    hierarchy: &Hierarchy,
    path: &CgroupPath,
    with_controllers: bool,
    undo: &mut Made,
) -> Result<Dir, Failure> {
    let target = path.directory(hierarchy, true).map_err(|error| refused(&error))?;
    undo.make(&target, &hierarchy.mount)?;
    let dir = Dir::open(target, hierarchy.controllers.clone(), String::new())?;
    if with_controllers {
        enable_controllers(hierarchy, &dir)?;
    }
    // Below a cgroup that is threaded, or has processes and controllers, a new one is of no use until it is threaded too.
    if dir.read("cgroup.type").is_ok_and(|kind| kind.trim_end() == "domain invalid") {
        dir.set("cgroup.type", "threaded")?;
    }
    Ok(dir)
}

/// Where the kernel tells which files of a cgroup go with it to who it is delegated to. See cgroups(7), "Cgroups delegation".
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";
/// Those of a kernel that does not tell (before 4.15).
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// Gives a v2 directory to a user, with those of its files that let him put processes in and make cgroups below, and none that would let
/// him lift its limits (the runtime-spec's `config-linux.md#cgroup-ownership`).
pub(super) fn delegate(dir: &Dir, owner: u32, rootless: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(DELEGATE).ok();
    let files = text.as_ref().map_or_else(|| DELEGATED.to_vec(), |text| text.split_whitespace().collect());
    let owner = Some(Uid::from_raw(owner));
    let own = rustix::fs::chownat(&dir.fd, c"", owner, None, AtFlags::EMPTY_PATH);
    let rest = files.into_iter().filter(|file| !file.contains('/')).map(|file| {
        match rustix::fs::chownat(&dir.fd, file, owner, None, AtFlags::SYMLINK_NOFOLLOW) {
            // Which of them there are depends on the controllers.
            Err(Errno::NOENT) => Ok(()),
            given => given,
        }
    });
    match std::iter::once(own).chain(rest).collect() {
        // A plain user gives nothing away; what he has been given is as good.
        Err(Errno::PERM) if rootless => Ok(()),
        given => given.map_err(|errno| {
            Failure::at(Step::Cgroup, errno, &dir.path).with_message("give it to the container's user")
        }),
    }
}

/// Enables one controller in every parent of a v2 directory, as far as the hierarchy goes up.
pub(super) fn enable(dir: &Dir, controller: Controller) -> Result<(), Failure> {
    let file = "cgroup.subtree_control";
    let mut parents: Vec<&Path> =
        dir.path.ancestors().skip(1).take_while(|parent| parent.join(file).exists()).collect();
    parents.reverse();
    for parent in parents {
        let at = Dir::open(parent.to_owned(), Vec::new(), String::new())?;
        at.set(file, &format!("+{}", controller.name_v2()))?;
    }
    Ok(())
}

/// Enables every controller of the root in each parent of `dir`. Most often they are already: one read tells.
fn enable_controllers(hierarchy: &Hierarchy, dir: &Dir) -> Result<(), Failure> {
    let here = dir.text("cgroup.controllers")?;
    let have: Vec<_> = here.split_whitespace().filter_map(Controller::from_name).collect();
    if hierarchy.controllers.iter().all(|controller| have.contains(controller)) {
        return Ok(());
    }
    let Ok(below) = dir.path.strip_prefix(&hierarchy.mount) else { return Ok(()) };
    let mut parent = hierarchy.mount.clone();
    for part in below {
        let at = Dir::open(parent.clone(), Vec::new(), String::new())?;
        let names = at.text("cgroup.controllers")?;
        let all: Vec<String> = names.split_whitespace().map(|name| format!("+{name}")).collect();
        // One refusal (a controller that v1 holds, real-time tasks) refuses the whole line: then each by itself. What
        // stays disabled shows when a limit of it is to be written, and only then is it an error.
        if at.write("cgroup.subtree_control", &all.join(" ")).is_err() {
            for one in &all {
                let _ = at.write("cgroup.subtree_control", one);
            }
        }
        parent.push(part);
    }
    Ok(())
}

/// A v1 cpuset is born without CPUs and memory nodes, and nothing can join it so: it gets its parent's, and so do parents that have none.
fn fill_cpuset(new: &Path, mount: &Path) -> Result<(), Failure> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherit(new, mount, file)?;
    }
    Ok(())
}

/// The file's value at `at`, after taking it over from the parent if it was empty.
fn inherit(at: &Path, mount: &Path, file: &str) -> Result<String, Failure> {
    let path = at.join(file);
    let value = std::fs::read_to_string(&path).map_err(|error| failure(&path, &error))?;
    let value = value.trim_end();
    if !value.is_empty() || at == mount {
        return Ok(value.to_owned());
    }
    let Some(parent) = at.parent() else { return Ok(String::new()) };
    let value = inherit(parent, mount, file)?;
    match std::fs::write(&path, &value) {
        // An exclusive sibling owns some of them: the spec's own set, applied next, may fit all the same.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        written => written.map_err(|error| failure(&path, &error))?,
    }
    Ok(value)
}

/// One write of a pid. A process that is gone already is not in our way: its exit is seen elsewhere.
pub(super) fn enter(dir: &Dir, pid: u32) -> Result<(), Failure> {
    dir.set("cgroup.procs", &pid.to_string())
}

/// The cgroup at or below `dir` that `pid` is in.
fn holder(dir: &Dir, pid: u32) -> Option<Dir> {
    for name in dir.children().ok()? {
        let Ok(child) = dir.below(&name) else { continue };
        let procs = child.read("cgroup.procs").unwrap_or_default();
        if procs.lines().any(|line| line.parse() == Ok(pid)) {
            return Some(child);
        }
        if let Some(found) = holder(&child, pid) {
            return Some(found);
        }
    }
    None
}

/// Directories that were made, in order, so that they can be taken back.
#[derive(Default)]
pub(super) struct Made {
    directories: Vec<PathBuf>,
    /// Those of them that are parents of the cgroup proper.
    pub(super) ancestors: Vec<PathBuf>,
    /// Some hierarchy had the cgroup already.
    found_existing: bool,
}

impl Made {
    /// mkdir -p, in the optimistic order: the parent is nearly always there.
    fn make(&mut self, target: &Path, mount: &Path) -> Result<(), Failure> {
        match self.mkdir(target) {
            Err(Errno::NOENT) => {}
            Err(Errno::EXIST) => {
                self.found_existing = true;
                return Ok(());
            }
            made => return made.map_err(|errno| Failure::at(Step::Cgroup, errno, target)),
        }
        let mut missing = Vec::new();
        for parent in target.ancestors().skip(1).take_while(|parent| *parent != mount) {
            match self.mkdir(parent) {
                Ok(()) => {
                    self.ancestors.push(parent.to_owned());
                    break;
                }
                Err(Errno::EXIST) => break,
                Err(Errno::NOENT) => missing.push(parent),
                Err(errno) => return Err(Failure::at(Step::Cgroup, errno, parent)),
            }
        }
        for parent in missing.into_iter().rev() {
            match self.mkdir(parent) {
                Ok(()) => self.ancestors.push(parent.to_owned()),
                // Another pod of the same parent was as quick.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failure::at(Step::Cgroup, errno, parent)),
            }
        }
        match self.mkdir(target) {
            Err(Errno::EXIST) => self.found_existing = true,
            made => made.map_err(|errno| Failure::at(Step::Cgroup, errno, target))?,
        }
        Ok(())
    }

    fn mkdir(&mut self, path: &Path) -> Result<(), Errno> {
        rustix::fs::mkdir(path, FileMode::from_raw_mode(0o755))?;
        self.directories.push(path.to_owned());
        Ok(())
    }

    /// Best effort: the failure that led here is the one to report.
    pub(super) fn take_back(&self) {
        for path in self.directories.iter().rev() {
            let _ = rustix::fs::rmdir(path);
        }
    }
}
