//! What needs systemd as process 1: the cgroup driver that asks it, and the units as they are installed. These run in the virtual
//! machine (`tests/vm`); elsewhere each says that it cannot.

mod daemon;
mod units;
mod wright;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use podwright_tests::skip::skip;

/// False, and said: systemd is not process 1 here.
fn present(test: &str) -> bool {
    let found = Path::new("/run/systemd/system").is_dir();
    if !found {
        skip(&format!("systemd::{test}"), "systemd is not process 1");
    }
    found
}

/// `systemctl ARGUMENTS`, which has to succeed.
fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success(),
        "systemctl {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// A property of a unit.
fn property(unit: &str, name: &str) -> Result<String> {
    systemctl(&["show", "--property", name, "--value", unit])
}

/// A file of a unit's cgroup.
fn cgroup_file(unit: &str, file: &str) -> Result<String> {
    let path = format!("/sys/fs/cgroup{}/{file}", property(unit, "ControlGroup")?);
    Ok(std::fs::read_to_string(&path).map_err(|error| anyhow::anyhow!("{path}: {error}"))?.trim().to_owned())
}
