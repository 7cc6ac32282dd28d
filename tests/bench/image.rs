//! An OCI image of one layer, made of a directory, for a runtime that wants images.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Writes an OCI layout as a tar file: the tree at `root` as the only layer of an image called `reference`.
pub(crate) fn write(root: &Path, reference: &str, entrypoint: &[&str], tar: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let blobs = work.path().join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = work.path().join("layer");
    archive(root, &layer)?;
    let layer_size = fs::metadata(&layer)?.len();
    let layer_digest = digest(&fs::read(&layer)?);
    fs::rename(&layer, blobs.join(&layer_digest))?;
    let blob = |value: serde_json::Value| -> Result<(String, usize)> {
        let bytes = serde_json::to_vec(&value)?;
        let name = digest(&bytes);
        fs::write(blobs.join(&name), &bytes)?;
        Ok((name, bytes.len()))
    };
    let (config, config_size) = blob(json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    }))?;
    let (manifest, manifest_size) = blob(json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{config}"), "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{layer_digest}"), "size": layer_size }],
    }))?;
    fs::write(work.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{manifest}"), "size": manifest_size,
            "annotations": { "io.containerd.image.name": reference },
            "platform": { "architecture": "amd64", "os": "linux" },
        }],
    });
    fs::write(work.path().join("index.json"), serde_json::to_vec(&index)?)?;
    archive(work.path(), tar)
}

fn archive(directory: &Path, file: &Path) -> Result<()> {
    let status = Command::new("tar")
        .arg("-C")
        .arg(directory)
        .arg("-cf")
        .arg(file)
        .args(["--exclude=./layer", "."])
        .status();
    ensure!(status.context("run tar")?.success(), "tar of {} failed", directory.display());
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
