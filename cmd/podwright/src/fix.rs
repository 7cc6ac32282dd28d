//! `podwright doctor --fix`: has the daemon mend what it can.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_cri::v1;
use serde::Deserialize;

use crate::client::Client;
use crate::rootfs;
use crate::watch::Watch;

/// How long plugins may take to go through everything they know.
const DEADLINE: Duration = Duration::from_secs(300);

/// What came of a collection: the daemon's `network-collection.json`.
#[derive(Debug, Deserialize)]
struct Collection {
    /// Which reload asked for it.
    reload: u64,
    /// Why it failed.
    error: Option<String>,
    /// Pods whose network is not as it was made.
    not_as_made: Vec<String>,
}

/// Has plugins forget what is no pod's, and check what is. Returns what they found wrong.
pub(crate) async fn networks(socket: &Path) -> Result<Vec<String>> {
    let mut client = Client::connect(socket).await?;
    let request = v1::StatusRequest { verbose: true };
    let info = client.runtime.status(request).await?.into_inner().info;
    let config: serde_json::Value =
        serde_json::from_str(info.get("config").context("the daemon does not tell its configuration")?)?;
    let run: PathBuf = serde_json::from_value(config["paths"]["run"].clone())?;
    let mut watch = Watch::directory(&run)?;
    let instance_file = run.join("podwrightd.json");
    let instance = rootfs::read_instance(&instance_file)?;
    rootfs::reload(&instance, &instance_file).await?;
    let collected = async {
        loop {
            if let Some(collection) = read(&run.join("network-collection.json"))
                && collection.reload > instance.reloads
            {
                return anyhow::Ok(collection);
            }
            watch.changed().await?;
        }
    };
    let collection =
        tokio::time::timeout(DEADLINE, collected).await.context("the daemon did not collect in time")??;
    match collection.error {
        Some(error) => bail!("{error}"),
        None => Ok(collection.not_as_made),
    }
}

/// None: there was no collection yet.
fn read(path: &Path) -> Option<Collection> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
