//! System calls that no crate wraps, one per function: the only place in the workspace where `unsafe` is allowed.
#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod command;
pub(crate) mod seccomp;
