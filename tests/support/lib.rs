//! What every test needs: a private node (the real daemon with directories, a socket and a cgroup of
//! its own), a client that speaks CRI through an independent binding, a real root filesystem, waits
//! that end on events, and snapshots of the host that show whether anything was left behind.
//!
//! Nothing here imitates the kernel or the daemon. Every name a node can leave on the host (directory,
//! cgroup) contains the node's unique name, so a snapshot of one test never sees another's work.
#![forbid(unsafe_code)]

pub mod apiserver;
pub mod binaries;
pub mod client;
pub mod criu;
pub mod deadline;
pub mod descriptor;
pub mod netns;
pub mod node;
pub mod oci;
pub mod pod;
pub mod process;
pub mod raw;
pub mod root;
pub mod seccomp;
pub mod skip;
pub mod snapshot;
pub mod spdy;
pub mod streaming;
pub mod stub_plugin;
pub mod temporary;
pub mod watch;

pub use apiserver::ApiServer;
pub use client::{Client, Events, ExecOutput};
pub use criu::Criu;
pub use deadline::{Deadline, seconds};
pub use netns::NetworkNamespace;
pub use node::{Node, NodeOptions};
pub use pod::{Container, ContainerBuilder, Pod, PodBuilder};
pub use raw::Wire;
pub use root::BusyboxRoot;
pub use snapshot::HostSnapshot;

/// The CRI messages, of a binding that shares no line with the daemon's own.
pub use k8s_cri::v1;

/// What a test returns: any error fails it, with its whole chain printed.
pub type Outcome = anyhow::Result<()>;
