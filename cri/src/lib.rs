//! The Kubernetes Container Runtime Interface over the engine.
//!
//! ```text
//! serve      lock, recover, listen, reload, drain
//!   service  every call of both services -> the file of its family:
//!            status  sandbox  container  exec  stats  events  image  (stream_lists)
//!     pod        one task per pod owns its state; store finds it
//!       translate      CRI configurations -> runtime-spec (pure)
//!       monitor_client the pod's monitor
//!       network, cni   what pods are attached to, and by whom
//!     records, recover what is on disk, and what a new daemon does with it
//! ```

#![forbid(unsafe_code)]

pub mod apparmor;
pub mod cdi;
pub mod cgroups;
pub mod check;
pub mod checkpoint;
pub mod cni;
pub mod config;
pub mod container;
pub mod daemon;
pub mod error;
pub mod events;
pub mod exec;
pub mod host;
pub mod host_mounts;
pub mod ids;
pub mod image;
pub mod monitor_client;
pub mod network;
pub mod pod;
pub mod records;
pub mod recover;
pub mod sandbox;
pub mod seccomp;
pub mod seccomp_default;
mod select;
pub mod serve;
pub mod service;
pub mod stats;
pub mod status;
pub mod store;
pub mod stream_lists;
pub mod streaming;
pub mod translate;
mod undo;
pub mod v1;
