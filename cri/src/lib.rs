//! The Kubernetes Container Runtime Interface over the engine.

#![forbid(unsafe_code)]

pub mod v1;
