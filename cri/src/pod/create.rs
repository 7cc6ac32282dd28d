//! CreateContainer, the pod's part: everything on disk, then the monitor takes it up to its start gate.

use std::path::PathBuf;
use std::sync::Arc;

use runtime::monitor::protocol::{CreateFd, CreateRequest, Op, Reply};
use tracing::debug_span;

use super::prepare::{Prepared, prepare};
use super::task::short;
use super::{ContainerState, ContainerView, PodTask};
use crate::daemon::blocking;
use crate::error::Error;
use crate::monitor_client::ClientError;
use crate::records::ContainerRecord;
use crate::translate::Container;
use crate::v1::{ContainerConfig, ContainerEventType};

/// A container to be made.
#[derive(Debug)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// The request.
    pub config: ContainerConfig,
    /// The request, checked.
    pub container: Container,
}

impl PodTask {
    /// Makes a container. On failure nothing of it is left.
    pub(super) async fn create_container(&mut self, new: NewContainer) -> Result<(), Error> {
        self.must_be_ready()?;
        let id = new.id.clone();
        let prepared = {
            let (daemon, dirs, view) = (self.daemon.clone(), self.dirs.clone(), self.view.clone());
            blocking(debug_span!("prepare"), move || {
                prepare(&daemon, &dirs, &view, &new).map(|prepared| (prepared, new))
            })
            .await
        };
        let (prepared, new) = prepared?;
        let bundle = prepared.bundle.clone();
        let made = self.create_prepared(prepared, &new).await;
        if made.is_err() {
            self.take_back(&id, bundle).await;
        }
        made
    }

    async fn create_prepared(&mut self, prepared: Prepared, new: &NewContainer) -> Result<(), Error> {
        let Prepared { record, bundle, kinds, fds } = prepared;
        let id = record.id.clone();
        let pid = self.clone_init(&record, bundle.clone(), kinds, fds, new).await?;
        let record = blocking(debug_span!("container_record"), move || {
            let record = ContainerRecord { complete: true, ..record };
            record.write(&bundle)?;
            Ok(record)
        })
        .await?;
        let view = ContainerView::new(record, ContainerState::Created { pid });
        self.view.containers.insert(id.clone(), Arc::new(view));
        self.daemon.store.add_container(&id, &self.view.record.id);
        self.publish();
        tracing::info!(container = %short(&id), pid, "created");
        self.announce(&id, ContainerEventType::ContainerCreatedEvent);
        Ok(())
    }

    #[tracing::instrument(name = "clone_init", level = "debug", skip_all)]
    async fn clone_init(
        &mut self,
        record: &ContainerRecord,
        bundle: PathBuf,
        kinds: Vec<CreateFd>,
        fds: Vec<std::os::fd::OwnedFd>,
        new: &NewContainer,
    ) -> Result<i32, Error> {
        let config = self.daemon.config();
        let handler =
            config.runtime.handlers.get(&self.view.pod.runtime_handler).cloned().unwrap_or_default();
        let request = CreateRequest {
            container: record.id.clone(),
            bundle,
            log_path: record.log_path.clone(),
            log_part_bytes: handler.log_part_bytes,
            stdin: new.container.stdin,
            stdin_once: new.container.stdin_once,
            fds: kinds,
        };
        match self.request(Op::Create(request), fds).await {
            Ok(Reply::Started { pid }) => Ok(pid),
            Ok(other) => Err(Error::internal(
                format!("create container {}", record.id),
                format!("the monitor answered {other:?}"),
            )),
            Err(error) => Err(self.failed("container", &record.id, error)),
        }
    }

    /// Takes away what there may be of a container that could not be made.
    async fn take_back(&mut self, id: &str, bundle: PathBuf) {
        match self.order(Op::Delete { container: id.to_owned() }).await {
            Ok(()) | Err(ClientError::Gone) => {}
            Err(error) => tracing::warn!(container = %id, %error, "a half-made container cannot be deleted"),
        }
        let removed = blocking(debug_span!("remove_files"), move || {
            imageless::rootfs::remove_dir(&bundle)
                .map_err(|error| Error::internal(format!("remove {}", bundle.display()), error))
        });
        if let Err(error) = removed.await {
            tracing::warn!(container = %id, error = %error.sentence(), "a half-made container cannot be removed");
        }
    }

    /// Containers are made in a ready pod only.
    pub(super) fn must_be_ready(&self) -> Result<(), Error> {
        if self.view.ready && !self.monitor_lost {
            return Ok(());
        }
        Err(Error::FailedPrecondition {
            what: "pod sandbox",
            id: self.view.record.id.clone(),
            reason: "is not ready: it was stopped, or its pause process has died".into(),
        })
    }
}
