//! GetContainerEvents: what happens to pods and containers, told to who listens.
//!
//! kubelet's evented PLEG lives on it, and so do `podwright run` and `podwright logs`. A pod's own events carry the
//! sandbox's id as the container's. Each event holds the statuses as they were when it happened.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::error::Error;
use crate::pod::PodView;
use crate::records::now_ns;
use crate::v1::{ContainerEventResponse, ContainerEventType};
use crate::{container, sandbox};

/// Events that a listener may be behind; one that falls further behind is told so and has to begin again.
const QUEUE: usize = 1024;

/// Who listens. Clones share it.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Arc<ContainerEventResponse>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::channel(QUEUE).0 }
    }
}

/// The answer of `GetContainerEvents`.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

impl Events {
    /// Tells that `kind` happened to `id`, a container of the pod or the pod itself.
    pub fn announce(&self, id: &str, kind: ContainerEventType, pod: &PodView) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now_ns(),
            pod_sandbox_status: Some(sandbox::status_of(pod)),
            containers_statuses: pod.containers.values().map(|view| container::status_of(view)).collect(),
        };
        // An error means that the last listener has just left.
        let _ = self.sender.send(Arc::new(event));
    }

    /// Listens from now on, until `shutdown`.
    pub fn listen(&self, mut shutdown: watch::Receiver<bool>) -> EventStream {
        let mut receiver = self.sender.subscribe();
        let (forward, events) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = receiver.recv() => event,
                    () = forward.closed() => return,
                    _ = shutdown.wait_for(|ending| *ending) => return,
                };
                let item = match event {
                    Ok(event) => Ok((*event).clone()),
                    Err(broadcast::error::RecvError::Closed) => return,
                    Err(broadcast::error::RecvError::Lagged(missed)) => Err(Error::ResourceExhausted {
                        what: "container events".into(),
                        reason: format!(
                            "{missed} were missed because they were not read in time; list again"
                        ),
                    }
                    .into()),
                };
                let last = item.is_err();
                if forward.send(item).await.is_err() || last {
                    return;
                }
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(events).map(|item| item))
    }
}
