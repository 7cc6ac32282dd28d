//! The container engine: everything between a `config.json` and a running process.
#![deny(unsafe_code)]

pub mod failure;

pub use failure::{Failure, Step};
