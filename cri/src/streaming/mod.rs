//! The streaming server: exec, attach and port-forward over an upgraded HTTP connection.

pub mod spdy;
