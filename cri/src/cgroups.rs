//! Cgroups that are made for pods and have to go with them: the parents of their containers' cgroups, and the runtime's own.
//!
//! kubelet makes the parents of its pods and removes them. Others (crictl, tests) name parents that nobody has made; they are
//! made here, and belong to every pod that uses them: the last one's removal removes them. Which they are is
//! in the pods' records, so that the next daemon knows too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use runtime::Failure;
use runtime::cgroup::{
    Cgroup, CgroupPath, CreateOptions, Driver, Existing, Hierarchies, Limits, remove_ancestors,
};

use crate::error::Error;
use crate::translate::{HostFacts, Pod};

/// Directories that were made for pods and may still be there.
#[derive(Debug, Default)]
pub struct MadeCgroups {
    directories: Mutex<BTreeSet<PathBuf>>,
}

/// Where pods' cgroups go.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The host's.
    pub hierarchies: &'a Hierarchies,
    /// Who makes them.
    pub driver: Driver,
    /// The parent of pods that name none.
    pub runtime: &'a Path,
}

impl MadeCgroups {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what an earlier daemon has made.
    pub fn restore(&self, made: &[PathBuf]) {
        self.lock().extend(made.iter().cloned());
    }

    /// Makes the cgroup above a pod's containers, and gives the directories that have to go with the pod: those made now, and
    /// those above it that were made for other pods. Blocks.
    pub fn ensure_parent(
        &self,
        place: Place<'_>,
        pod: &Pod,
        id: &str,
        host: &HostFacts,
    ) -> Result<Vec<PathBuf>, Error> {
        if place.driver == Driver::Systemd {
            // systemd makes slices with the first scope in them.
            return Ok(Vec::new());
        }
        let container = pod.cgroups_path(place.runtime, id, "x");
        let Some(parent) = container.parent() else { return Ok(Vec::new()) };
        let path = CgroupPath::parse(Some(parent), id, place.driver)
            .map_err(|error| Error::internal(format!("cgroup parent of pod sandbox {id}"), error))?;
        // Held while they are made, so that two pods of one parent agree on who made it.
        let mut known = self.lock();
        let before =
            Cgroup::open(place.hierarchies, &path).map(|cgroup| directories(&cgroup)).unwrap_or_default();
        let cgroup = create(place.hierarchies, &path).map_err(|failure| Error::Engine {
            what: "pod sandbox",
            id: id.to_owned(),
            failure,
        })?;
        let all = directories(&cgroup);
        if pod.cgroup_parent.is_none()
            && let Err(error) = limit(&cgroup, pod, id, host)
        {
            remove_ancestors(&directories(&cgroup));
            remove_ancestors(cgroup.made_ancestors());
            return Err(error);
        }
        known.extend(cgroup.made_ancestors().iter().cloned());
        known.extend(all.iter().filter(|path| !before.contains(path)).cloned());
        let with_parents: BTreeSet<&Path> = all.iter().flat_map(|path| path.ancestors()).collect();
        Ok(with_parents.into_iter().filter(|path| known.contains(*path)).map(Path::to_owned).collect())
    }

    /// Limits the cgroup of a pod that has one of its own to what the pod asks for now. kubelet's pods have a parent, which
    /// kubelet limits. Blocks.
    pub fn limit_pod(place: Place<'_>, pod: &Pod, id: &str, host: &HostFacts) -> Result<(), Error> {
        if place.driver == Driver::Systemd || pod.cgroup_parent.is_some() {
            return Ok(());
        }
        let failed = |failure| Error::Engine { what: "pod sandbox", id: id.to_owned(), failure };
        let path = CgroupPath::parse(Some(&place.runtime.join(id)), id, place.driver)
            .map_err(|error| Error::internal(format!("cgroup of pod sandbox {id}"), error))?;
        let cgroup = Cgroup::open(place.hierarchies, &path).map_err(failed)?;
        limit(&cgroup, pod, id, host)
    }

    /// Removes what was made for a pod as far as it is empty, and the cgroup that a pod without a parent has, whether or not
    /// there was time to record it. Blocks.
    pub fn remove(&self, place: Place<'_>, id: &str, made: &[PathBuf]) {
        let mut known = self.lock();
        let own = CgroupPath::parse(Some(&place.runtime.join(id)), id, Driver::Cgroupfs);
        if let Some(cgroup) = own.ok().and_then(|path| Cgroup::open(place.hierarchies, &path).ok()) {
            remove_ancestors(&directories(&cgroup));
        }
        remove_ancestors(made);
        known.retain(|path| !made.contains(path) || path.exists());
    }
}

/// Makes the cgroup of monitors with the daemon, so that no pod is charged with leaving it behind.
pub fn ensure_monitors(place: Place<'_>) {
    if place.driver == Driver::Systemd {
        return;
    }
    let made = monitors(place).map(|path| create(place.hierarchies, &path));
    if let Some(Err(failure)) = made {
        tracing::warn!(%failure, "the runtime's own cgroup cannot be made");
    }
}

/// And removes it with the daemon, when no pod is left in it.
pub fn release_monitors(place: Place<'_>) {
    let cgroup = monitors(place).and_then(|path| Cgroup::open(place.hierarchies, &path).ok());
    let Some(cgroup) = cgroup.filter(|_| place.driver == Driver::Cgroupfs) else { return };
    let mut all = Vec::new();
    for directory in directories(&cgroup) {
        all.extend(directory.parent().map(Path::to_owned));
        all.push(directory);
    }
    remove_ancestors(&all);
}

fn monitors(place: Place<'_>) -> Option<CgroupPath> {
    CgroupPath::parse(Some(&place.runtime.join("monitors")), "monitors", Driver::Cgroupfs).ok()
}

fn create(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<Cgroup, Failure> {
    let options = CreateOptions { existing: Existing::Any, ..CreateOptions::default() };
    Cgroup::create(hierarchies, path, &options)
}

/// Writes a pod's own limits, and its overhead's, into its own cgroup.
fn limit(cgroup: &Cgroup, pod: &Pod, id: &str, host: &HostFacts) -> Result<(), Error> {
    let Some(resources) = &pod.resources else { return Ok(()) };
    let total = pod.overhead.as_ref().map(|overhead| resources.plus(overhead));
    let resources = total.as_ref().unwrap_or(resources).to_oci(host)?;
    let mut limits = Limits::from_spec(&resources)
        .map_err(|error| Error::invalid("config.linux.resources", error.to_string()))?;
    limits.memory.check_before_update = true;
    let failed = |failure| Error::Engine { what: "pod sandbox", id: id.to_owned(), failure };
    cgroup.update(&limits).map_err(failed)
}

fn directories(cgroup: &Cgroup) -> Vec<PathBuf> {
    cgroup.record().directories.into_iter().map(|directory| directory.path).collect()
}
