//! The Kubernetes Container Runtime Interface over the engine.

#![forbid(unsafe_code)]

pub mod check;
pub mod error;
pub mod seccomp_default;
pub mod translate;
pub mod v1;
