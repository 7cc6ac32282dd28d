//! CRI calls against the real daemon on the real kernel: one file for each family of behaviour.

mod apparmor;
mod bad_input;
mod checkpoint;
mod containers;
mod daemon;
mod devices;
mod events;
mod exec;
mod hostile;
mod identity;
mod images;
mod isolation;
mod leaks;
mod life;
mod limits;
mod logs;
mod mounts;
mod namespaces;
mod network;
mod person;
mod pods;
mod stats;
mod stdin;
mod user_namespaces;
mod wire;
