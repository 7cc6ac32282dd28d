//! The container engine: everything between a `config.json` and a running process.
#![deny(unsafe_code)]

pub mod capabilities;
pub mod cgroup;
pub mod checkpoint;
mod console;
pub mod container;
pub mod event;
pub mod exec;
pub mod failure;
mod gate;
mod handshake;
pub mod hooks;
pub mod idmap;
mod init;
mod launch;
pub mod lsm;
pub mod monitor;
mod mounts;
mod namespaces;
mod net_devices;
pub mod netns;
pub mod pause;
pub mod plan;
pub mod plugin;
mod process;
mod procfs;
mod relay;
pub mod resctrl;
mod rootfs;
mod rtnetlink;
pub mod seccomp;
pub mod signal;
mod spawn;
pub mod spec;
pub mod state;
mod sys;

pub use failure::{Failure, Step};
