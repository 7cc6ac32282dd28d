//! The monitor of a pod: one thread that owns the pod's processes, logs and exit records.

pub mod log_format;
pub mod protocol;
pub mod wire;
