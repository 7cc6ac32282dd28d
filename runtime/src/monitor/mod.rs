//! The monitor of a pod: one thread that owns the pod's processes, logs and exit records, and outlives the daemon.
//!
//! ```text
//!                      daemon
//!                        | protocol over wire (SEQPACKET, JSON, passed descriptors)
//!   +--------------------|-------------------------------------------------+
//!   | poll --> serve <-> connection        act --> engine --> container … |
//!   |            |                          ^                             |
//!   |            `--Input--> pod --Action---'      log, stdio, attach,    |
//!   |                       (pure)                 relay, record          |
//!   +-----------------------------------------------------------------------+
//!        pause, containers, exec'd processes: children, each a pidfd in poll
//! ```
//!
//! Architecture invariants: no thread, no async runtime, no fork that is not the engine's clone3; nothing waits but
//! [`poll`]; every queue has a named bound; an exit is recorded on disk before it is told. A bug aborts the process (`panic =
//! "abort"`): the daemon then kills the pod's cgroups and reports its containers as lost, instead of trusting a monitor
//! that is not sure of itself.

mod act;
mod attach;
mod connection;
mod engine;
mod log;
pub mod log_format;
mod logger;
mod pod;
mod poll;
pub mod protocol;
pub mod record;
mod serve;
mod setup;
mod signals;
mod stdio;
pub mod wire;

pub use setup::{Options, OptionsError, run};
