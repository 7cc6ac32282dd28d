//! StartContainer, UpdateContainerResources, RemoveContainer and UpdatePodSandboxResources, the pod's part.

use std::sync::Arc;
use std::time::Duration;

use runtime::failure::Step;
use runtime::monitor::protocol::{Op, Reply};
use rustix::process::Signal;
use tracing::debug_span;

use super::stop::container_name;
use super::task::short;
use super::{ContainerState, ContainerView, PodTask};
use crate::daemon::blocking;
use crate::error::Error;
use crate::monitor_client::{ClientError, ExecWaiters, Notice, REQUEST_DEADLINE};
use crate::records::{ContainerRecord, SandboxRecord};
use crate::translate::{Pod, Resources};
use crate::v1::{ContainerEventType, LinuxContainerResources, UpdatePodSandboxResourcesRequest};

/// How long a container that could not be started may take to be gone.
const START_EXIT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a killed container may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

impl PodTask {
    /// Opens a container's gate.
    pub(super) async fn start_container(&mut self, id: &str) -> Result<(), Error> {
        let refused = |reason: &str| Error::FailedPrecondition {
            what: "container",
            id: id.to_owned(),
            reason: reason.to_owned(),
        };
        let pid = match self.container(id)?.state {
            ContainerState::Created { pid } => pid,
            ContainerState::Running { .. } => return Err(refused("is running already")),
            ContainerState::Exited(_) => return Err(refused("has exited; containers are started once")),
            ContainerState::Unknown => return Err(refused("is not known to its monitor yet; try again")),
        };
        self.must_be_ready()?;
        match self.request(Op::Start { container: id.to_owned() }, Vec::new()).await {
            Ok(Reply::Running { started_at_ns }) => {
                tracing::info!(container = %short(id), pid, "started");
                // Its end may have been told already.
                if self.container(id)?.alive() {
                    self.set_state(id, ContainerState::Running { pid, started_at_ns });
                }
                self.announce(id, ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Ok(other) => Err(Error::internal(
                format!("start container {id}"),
                format!("the monitor answered {other:?}"),
            )),
            Err(error) => {
                // A program that could not be executed has ended with that; its end is to be seen by who reads the error.
                let ends = matches!(&error, ClientError::Failed(failure) if failure.step != Step::Request);
                if ends && !self.wait_exited(id, START_EXIT_DEADLINE).await {
                    tracing::warn!(container = %short(id), "it could not be started, and does not end");
                }
                Err(self.failed("container", id, error))
            }
        }
    }

    /// Lays the new limits over those in force: all of them, or none. Of a container that has ended, only what is told of it
    /// changes, as with containerd: kubelet may have asked just before the end.
    pub(super) async fn update_container(
        &mut self,
        id: &str,
        later: LinuxContainerResources,
    ) -> Result<(), Error> {
        let view = self.container(id)?;
        let old = view.record.resources.clone();
        Resources::parse("linux", later.clone())?;
        let resources = merge(old.clone(), later);
        // The sum has to be right too: a new limit on memory may be above an old one on memory and swap.
        let limits = self.limits(id, &resources)?;
        if view.alive() {
            let request = Op::Update { container: id.to_owned(), resources: limits };
            if let Err(error) = self.order(request).await {
                self.restore_limits(id, &old).await;
                return Err(self.failed("container", id, error));
            }
        }

        let record = ContainerRecord { resources, ..(*view.record).clone() };
        let dir = self.dirs.container(id);
        let record = blocking(debug_span!("container_record"), move || {
            record.write(&dir)?;
            Ok(record)
        })
        .await?;
        let current = self.container(id)?;
        let view = ContainerView { record: Arc::new(record), ..(*current).clone() };
        self.view.containers.insert(id.to_owned(), Arc::new(view));
        self.publish();
        Ok(())
    }

    /// Limits as the monitor takes them.
    fn limits(&self, id: &str, resources: &LinuxContainerResources) -> Result<serde_json::Value, Error> {
        let mut limits = Resources::parse("linux", resources.clone())?.to_oci(&self.daemon.host)?;
        // An update that would kill is refused on both versions of cgroups.
        if let Some(mut memory) = *limits.memory() {
            memory.set_check_before_update(Some(true));
            limits.set_memory(Some(memory));
        }
        serde_json::to_value(&limits)
            .map_err(|error| Error::internal(format!("limits of container {id}"), error))
    }

    /// Writes the old limits again after new ones were refused half way.
    async fn restore_limits(&mut self, id: &str, old: &LinuxContainerResources) {
        let Ok(resources) = self.limits(id, old) else { return };
        if let Err(error) = self.order(Op::Update { container: id.to_owned(), resources }).await {
            tracing::warn!(container = %short(id), %error, "the limits before a refused update cannot be restored");
        }
    }

    /// The numbers are kept for statuses. Where kubelet has made the pod's cgroup, kubelet has changed it before this call;
    /// where it was made here, it is changed here.
    pub(super) async fn update_pod(
        &mut self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<(), Error> {
        let mut record = SandboxRecord::clone(&self.view.record);
        let linux = record.config.linux.get_or_insert_default();
        if let Some(overhead) = request.overhead {
            Resources::parse("overhead", overhead.clone())?;
            linux.overhead = Some(merge(linux.overhead.take().unwrap_or_default(), overhead));
        }
        if let Some(resources) = request.resources {
            Resources::parse("resources", resources.clone())?;
            linux.resources = Some(merge(linux.resources.take().unwrap_or_default(), resources));
        }
        let parse = |field, raw: &Option<LinuxContainerResources>| {
            raw.clone().map(|raw| Resources::parse(field, raw)).transpose()
        };
        let pod = Pod {
            overhead: parse("overhead", &linux.overhead)?,
            resources: parse("resources", &linux.resources)?,
            ..(*self.view.pod).clone()
        };
        let dir = self.dirs.state.clone();
        let daemon = self.daemon.clone();
        let (record, pod) = blocking(debug_span!("pod_limits"), move || {
            daemon.limit_pod(&pod, &record.id)?;
            record.write(&dir)?;
            Ok((record, pod))
        })
        .await?;
        self.view.record = Arc::new(record);
        self.view.pod = Arc::new(pod);
        self.publish();
        Ok(())
    }

    /// Removes a container and everything it left; kills it first if it runs. One that is gone is removed already.
    pub(super) async fn remove_container(&mut self, id: &str) -> Result<(), Error> {
        let Some(view) = self.view.containers.get(id).cloned() else { return Ok(()) };
        if !self.wait_connected(REQUEST_DEADLINE).await {
            let what = format!("the monitor of pod {}", self.view.name());
            return Err(Error::Unavailable { what, source: None });
        }
        if self.view.monitor.is_some() {
            if view.alive() {
                self.kill(id).await?;
            }
            let deleted = self.order(Op::Delete { container: id.to_owned() }).await;
            deleted.map_err(|error| self.failed("container", id, error))?;
            self.drain();
        }
        let dir = self.dirs.container(id);
        blocking(debug_span!("remove_files"), move || {
            imageless::rootfs::remove_dir(&dir)
                .map_err(|error| Error::internal(format!("remove {}", dir.display()), error))
        })
        .await?;
        self.daemon.store.remove_container(id);
        self.daemon.store.release(&container_name(&view.record));
        self.daemon.samples.forget(id, &self.dirs.container(id).join(imageless::rootfs::UPPER));
        self.view.containers.remove(id);
        self.publish();
        tracing::info!(container = %short(id), "removed");
        self.announce(id, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Kills every process of a container and waits for its end.
    async fn kill(&mut self, id: &str) -> Result<(), Error> {
        let kill = Op::Kill { container: id.to_owned(), signal: Signal::KILL.as_raw(), all: true };
        self.order(kill).await.map_err(|error| self.failed("container", id, error))?;
        if self.wait_exited(id, KILL_DEADLINE).await {
            return Ok(());
        }
        let what = format!("the end of the killed container {id}");
        Err(Error::DeadlineExceeded { what, limit: KILL_DEADLINE })
    }

    /// Takes notices until the container has ended, or nobody can tell any more. False: the deadline came first.
    async fn wait_exited(&mut self, id: &str, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        while self.view.containers.get(id).is_some_and(|view| view.alive()) {
            let Some(notices) = self.notices.as_mut() else { return true };
            let Ok(notice) = tokio::time::timeout_at(deadline, notices.recv()).await else { return false };
            self.take(notice.unwrap_or(Notice::Gone(ExecWaiters::default())));
        }
        true
    }
}

/// The limits as they are reported: what the update gives, over what was there.
fn merge(old: LinuxContainerResources, new: LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: String, new: String| if new.is_empty() { old } else { new };
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        // A limit on memory without a word on swap means no swap, in an update as in a creation: the old sum of both, which may be
        // less than the new limit, is gone with the old limit. So it is with containerd.
        memory_swap_limit_in_bytes: if new.memory_limit_in_bytes == 0 {
            number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes)
        } else {
            new.memory_swap_limit_in_bytes
        },
        // Cannot be changed while the container runs.
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: text(old.cpuset_mems, new.cpuset_mems),
        hugepage_limits: {
            let mut limits = old.hugepage_limits;
            limits.retain(|old| new.hugepage_limits.iter().all(|new| new.page_size != old.page_size));
            limits.extend(new.hugepage_limits);
            limits
        },
        unified: {
            let mut unified = old.unified;
            unified.extend(new.unified);
            unified
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::HugepageLimit;

    #[test]
    fn an_update_changes_only_what_it_gives() {
        let old = LinuxContainerResources {
            cpu_shares: 100,
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 5,
            ..Default::default()
        };
        let new = LinuxContainerResources {
            memory_limit_in_bytes: 2 << 20,
            oom_score_adj: 9,
            ..Default::default()
        };
        let merged = merge(old, new);
        assert_eq!(merged.cpu_shares, 100);
        assert_eq!(merged.memory_limit_in_bytes, 2 << 20);
        assert_eq!(merged.oom_score_adj, 5);
    }

    #[test]
    fn a_new_limit_on_memory_takes_the_old_sum_with_swap_away() {
        let old = LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            ..Default::default()
        };
        let memory = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
        assert_eq!(merge(old.clone(), memory).memory_swap_limit_in_bytes, 0);
        let shares = LinuxContainerResources { cpu_shares: 2, ..Default::default() };
        assert_eq!(merge(old, shares).memory_swap_limit_in_bytes, 64 << 20);
    }

    #[test]
    fn huge_pages_are_updated_size_by_size() {
        let limit = |page_size: &str, limit| HugepageLimit { page_size: page_size.to_owned(), limit };
        let old = LinuxContainerResources {
            hugepage_limits: vec![limit("2MB", 1), limit("1GB", 2)],
            ..Default::default()
        };
        let new = LinuxContainerResources { hugepage_limits: vec![limit("2MB", 3)], ..Default::default() };
        assert_eq!(merge(old, new).hugepage_limits, [limit("1GB", 2), limit("2MB", 3)]);
    }
}
