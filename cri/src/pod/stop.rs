//! The end of a pod: asked for, or found out.
//!
//! ```text
//! StopPodSandbox     containers and pause killed -> their cgroups removed -> monitor ended -> network detached
//!                    -> namespaces, mounts released
//! RemovePodSandbox   that, and then everything on disk, the names, the cgroups made for it
//! monitor lost       cgroups killed -> containers reported exited with reason MonitorLost -> not ready
//! ```
//!
//! Every step may be repeated: a stop that failed half way is finished by the next one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::cgroup::Cgroup;
use runtime::monitor::protocol::{ExitRecord, Op};
use rustix::io::Errno;
use tracing::debug_span;

use super::run::END_DEADLINE;
use super::{ContainerState, ContainerView, PodTask, files};
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::monitor_client::{ClientError, ExecWaiters, REQUEST_DEADLINE};
use crate::records::{self, ContainerRecord, Lost, SandboxPhase, SandboxRecord, UNKNOWN_EXIT_CODE};
use crate::store::Name;
use crate::translate::ContainerMetadata;
use crate::v1::ContainerEventType;

/// How long killed processes may take to be gone. Only what hangs in the kernel takes longer than milliseconds.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

impl PodTask {
    /// StopPodSandbox.
    #[tracing::instrument(name = "pod_stop", level = "debug", skip_all)]
    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        if self.view.record.phase == SandboxPhase::Stopped {
            return Ok(());
        }
        self.end_processes().await?;
        crate::network::detach(&self.daemon, &self.dirs, &self.view.record.id).await?;
        self.view.network = None;
        let record = SandboxRecord { phase: SandboxPhase::Stopped, ..(*self.view.record).clone() };
        let dirs = self.dirs.clone();
        let record = blocking(debug_span!("release"), move || {
            files::release(&dirs)?;
            record.write(&dirs.state)?;
            Ok(record)
        })
        .await?;
        self.view.record = Arc::new(record);
        self.view.ready = false;
        self.view.pause = None;
        self.publish();
        let id = self.view.record.id.clone();
        self.announce(&id, ContainerEventType::ContainerStoppedEvent);
        Ok(())
    }

    /// Has the monitor end with all that it runs; a second time, if the connection breaks the first.
    async fn end_processes(&mut self) -> Result<(), Error> {
        let mut again = true;
        loop {
            if !self.wait_connected(REQUEST_DEADLINE).await {
                let what = format!("the monitor of pod {}", self.view.name());
                return Err(Error::Unavailable { what, source: None });
            }
            if self.view.monitor.is_none() {
                // It has died, and what it left was killed then.
                return Ok(());
            }
            match self.end_monitor().await {
                Ok(()) => return Ok(()),
                Err(ClientError::Gone) if again => self.reconnect().await,
                Err(error) => return Err(self.failed("pod sandbox", &self.view.record.id, error)),
            }
            again = false;
        }
    }

    /// Has the monitor kill everything and end, and takes its last notices.
    async fn end_monitor(&mut self) -> Result<(), ClientError> {
        self.stopping = true;
        self.order(Op::StopSandbox).await?;
        self.drain();
        let containers: Vec<String> = self.view.containers.keys().cloned().collect();
        for container in containers {
            self.order(Op::Delete { container }).await?;
        }
        // To its end, so that nothing of it is left when the answer is given.
        if let Some(client) = self.view.monitor.clone()
            && let Err(error) = client.shutdown(END_DEADLINE).await
        {
            tracing::warn!(%error, "the monitor does not end");
        }
        self.drain();
        self.notices = None;
        self.execs = ExecWaiters::default();
        self.monitor_lost = false;
        self.view.monitor = None;
        self.view.ready = false;
        self.view.pause = None;
        // What it did not tell the end of has ended all the same.
        self.end_all_unseen("Unknown", "its end was not seen").await;
        self.publish();
        Ok(())
    }

    /// RemovePodSandbox.
    #[tracing::instrument(name = "pod_remove", level = "debug", skip_all)]
    pub(super) async fn remove(&mut self) -> Result<(), Error> {
        self.stop().await?;
        let (daemon, dirs, record) = (self.daemon.clone(), self.dirs.clone(), self.view.record.clone());
        blocking(debug_span!("remove_files"), move || {
            imageless::rootfs::remove_dir(&dirs.state)
                .map_err(|error| Error::internal(format!("remove pod sandbox {}", record.id), error))?;
            daemon.remove_cgroups(&record.id, &record.made_cgroups);
            Ok(())
        })
        .await?;
        let containers = std::mem::take(&mut self.view.containers);
        let id = self.view.record.id.clone();
        for (container, view) in containers {
            let upper = self.dirs.container(&container).join(imageless::rootfs::UPPER);
            self.daemon.samples.forget(&container, &upper);
            self.daemon.store.release(&container_name(&view.record));
            self.announce(&container, ContainerEventType::ContainerDeletedEvent);
        }
        self.daemon.store.remove_pod(&id);
        self.daemon.store.release(&Name::Pod(self.view.pod.metadata.clone()));
        self.publish();
        self.announce(&id, ContainerEventType::ContainerDeletedEvent);
        self.removed = true;
        Ok(())
    }

    /// The monitor is gone without our asking: whatever it left running is killed, and reported so.
    pub(super) async fn lose_monitor(&mut self) {
        tracing::error!(pod = %self.view.name(), "the pod's monitor has died: killing what it left");
        self.notices = None;
        self.monitor_lost = false;
        self.view.monitor = None;
        let records: Vec<_> = self.view.containers.values().map(|view| view.record.clone()).collect();
        let daemon = self.daemon.clone();
        let killed = blocking(debug_span!("kill_cgroups"), move || {
            for record in &records {
                kill_cgroup(&daemon, record);
            }
            Ok(())
        });
        if let Err(error) = killed.await {
            tracing::error!(%error, "the pod's cgroups cannot be killed");
        }
        self.view.ready = false;
        self.view.pause = None;
        self.end_all_unseen("MonitorLost", "the pod's monitor died, and its processes were killed").await;
        self.publish();
    }

    /// Notes the end of every container whose end is not known.
    pub async fn end_all_unseen(&mut self, reason: &'static str, message: &'static str) {
        self.end_unseen_where(ContainerView::alive, reason, message).await;
    }

    /// Notes the end of those that their monitor says nothing about.
    pub(super) async fn end_unknown(&mut self) {
        let unknown = |view: &ContainerView| view.state == ContainerState::Unknown;
        self.end_unseen_where(unknown, "Unknown", "its monitor does not know it").await;
    }

    async fn end_unseen_where(
        &mut self,
        which: impl Fn(&ContainerView) -> bool,
        reason: &'static str,
        message: &'static str,
    ) {
        let ended: Vec<_> = self.view.containers.values().filter(|view| which(view)).cloned().collect();
        for view in ended {
            let started = match view.state {
                ContainerState::Running { started_at_ns, .. } => Some(started_at_ns),
                _ => None,
            };
            let dir = self.dirs.container(&view.record.id);
            let record = (*view.record).clone();
            let ended = blocking(debug_span!("end_unseen"), move || {
                end_unseen(&dir, record, started, reason, message)
            })
            .await;
            let id = view.record.id.clone();
            match ended {
                Ok((record, exit)) => {
                    let view = ContainerView::new(record, ContainerState::Exited(exit));
                    self.view.containers.insert(id.clone(), Arc::new(view));
                }
                Err(error) => {
                    tracing::error!(container = %id, error = %error.sentence(), "its end cannot be recorded");
                    let exit = unseen(started);
                    self.set_state(&id, ContainerState::Exited(exit));
                }
            }
            self.publish();
            self.announce(&id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Takes the notices that have arrived.
    pub(super) fn drain(&mut self) {
        while let Some(Ok(notice)) = self.notices.as_mut().map(tokio::sync::mpsc::Receiver::try_recv) {
            self.take(notice);
        }
    }
}

/// The name of a container.
pub(super) fn container_name(record: &ContainerRecord) -> Name {
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let metadata = ContainerMetadata { name: metadata.name, attempt: metadata.attempt };
    Name::Container(record.sandbox.clone(), metadata)
}

/// The end of a container that its monitor does not tell: its exit record, where the monitor had written one, or the
/// admission that it is not known, which is written into its own record.
pub fn end_unseen(
    dir: &Path,
    mut record: ContainerRecord,
    started_at_ns: Option<i64>,
    reason: &str,
    message: &str,
) -> Result<(ContainerRecord, ExitRecord), Error> {
    if let Some(exit) = records::read_exit(dir)? {
        return Ok((record, exit));
    }
    if let Some(lost) = &record.lost {
        let exit = lost.exit.clone();
        return Ok((record, exit));
    }
    let exit = unseen(started_at_ns);
    record.lost = Some(Lost { reason: reason.to_owned(), message: message.to_owned(), exit: exit.clone() });
    record.write(dir)?;
    Ok((record, exit))
}

fn unseen(started_at_ns: Option<i64>) -> ExitRecord {
    ExitRecord {
        exit_code: UNKNOWN_EXIT_CODE,
        signal: None,
        oom_killed: false,
        started_at_ns,
        finished_at_ns: records::now_ns().max(started_at_ns.unwrap_or(0)),
        start_failure: None,
    }
}

/// Kills what a container left in its cgroup, and removes that.
fn kill_cgroup(daemon: &Daemon, record: &ContainerRecord) {
    let deadline = Instant::now() + KILL_DEADLINE;
    let path = match daemon.cgroup_path(&record.cgroups_path, &record.id) {
        Ok(path) => path,
        Err(error) => return tracing::error!(error = %error.sentence(), "a cgroup's path"),
    };
    let done = match Cgroup::open(&daemon.hierarchies, &path) {
        Err(failure) if failure.errno() == Some(Errno::NOENT) => return,
        Err(failure) => Err(failure),
        Ok(cgroup) => cgroup.kill_all(deadline).and_then(|()| cgroup.remove(deadline)),
    };
    if let Err(failure) = done {
        tracing::error!(container = %record.id, %failure, "its cgroup cannot be emptied");
    }
}

/// Kills what a pod without a monitor left in its containers' cgroups. Blocks.
pub fn kill_left(daemon: &Daemon, containers: &[Arc<ContainerRecord>]) {
    for record in containers {
        kill_cgroup(daemon, record);
    }
}
