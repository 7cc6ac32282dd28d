//! The container engine: everything between a `config.json` and a running process.
#![deny(unsafe_code)]

pub mod failure;
pub mod monitor;
pub mod plan;

pub use failure::{Failure, Step};
