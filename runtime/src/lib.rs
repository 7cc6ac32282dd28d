//! The container engine: everything between a `config.json` and a running process.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod failure;
pub mod monitor;
pub mod plan;
pub mod seccomp;
mod sys;

pub use failure::{Failure, Step};
