//! `wright`, the OCI command line, on the real kernel.

mod apparmor;
mod checkpoint;
mod command_line;
mod compat;
mod containerd;
mod exec;
mod fields;
mod hooks;
mod hostile;
mod life;
mod many;
mod mounts;
mod net_devices;
mod podman;
mod privilege;
mod resources;
mod rootless;
mod seccomp;
mod terminal;

use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, watch};

/// Creates and starts the bundle's container and waits until it has written `up`.
fn start(bundle: &Bundle) -> Outcome {
    let created = bundle.create()?;
    anyhow::ensure!(created.code == 0, "create: {created:?}");
    bundle.wright(&["start", &bundle.id])?.ok()?;
    line(bundle, "up")
}

/// Blocks until the created container has written this line to its standard output.
fn line(bundle: &Bundle, line: &str) -> Outcome {
    watch::content(&bundle.path().join("stdout"), Deadline::in_seconds(20), |bytes| {
        String::from_utf8_lossy(bytes).lines().any(|written| written == line).then_some(())
    })
}
