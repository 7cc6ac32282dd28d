//! What survives the death of the daemon, of a monitor, and of the machine.

mod checkpoint;
mod daemon;
mod monitor;
mod reboot;
