//! The container engine: everything between a `config.json` and a running process.
#![deny(unsafe_code)]

pub mod capabilities;
pub mod cgroup;
pub mod failure;
pub mod hooks;
pub mod lsm;
pub mod monitor;
mod mounts;
mod namespaces;
pub mod netns;
pub mod plan;
mod rootfs;
mod process;
mod procfs;
pub mod seccomp;
pub mod signal;
pub mod spec;
pub mod state;
mod sys;

pub use failure::{Failure, Step};
