//! What a pod looks like at one moment: immutable, shared, read without asking the pod's task.
//!
//! ```text
//! container:  Created --start--> Running --exit--> Exited
//!                \--stop, kill, cannot be executed---^
//!             Unknown: its monitor holds its socket but has not answered this daemon yet
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use runtime::monitor::protocol::ExitRecord;

use crate::monitor_client::MonitorClient;
use crate::network::record::NetworkRecord;
use crate::records::{ContainerRecord, SandboxRecord};
use crate::translate::Pod;

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// As on disk.
    pub record: Arc<SandboxRecord>,
    /// The record's configuration, checked.
    pub pod: Arc<Pod>,
    /// Pause lives.
    pub ready: bool,
    /// Pause's pid, while it lives and is known.
    pub pause: Option<i32>,
    /// By id.
    pub containers: BTreeMap<String, Arc<ContainerView>>,
    /// What it is attached to; None: nothing.
    pub network: Option<Arc<NetworkRecord>>,
    /// None: the pod is stopped, or its monitor is gone.
    pub monitor: Option<MonitorClient>,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// As on disk.
    pub record: Arc<ContainerRecord>,
    /// How far it is.
    pub state: ContainerState,
    /// Whether StopContainer has sent the stop signal: a retry waits, and does not send it again.
    pub stop_sent: Arc<AtomicBool>,
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Init waits at its start gate.
    Created {
        /// Init's pid.
        pid: i32,
    },
    /// Its program runs.
    Running {
        /// Init's pid.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at_ns: i64,
    },
    /// It has ended.
    Exited(ExitRecord),
    /// Its monitor has not said yet.
    Unknown,
}

impl PodView {
    /// The namespaced name of the pod, for messages.
    pub fn name(&self) -> String {
        self.pod.metadata.to_string()
    }
}

impl ContainerView {
    /// A container as far as is known.
    pub fn new(record: ContainerRecord, state: ContainerState) -> Self {
        Self { record: Arc::new(record), state, stop_sent: Arc::default() }
    }

    /// Whether a process of it may live.
    pub fn alive(&self) -> bool {
        !matches!(self.state, ContainerState::Exited(_))
    }

    /// Init's pid, while it lives.
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            ContainerState::Created { pid } | ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }
}
