//! `podwright rootfs`: the directories pods can run from, and their names.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use k8s_cri::v1;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::json;

use crate::Outcome;
use crate::client::Client;
use crate::output::{self, Columns};
use crate::watch::Watch;

/// How long the daemon may take to read its configuration again.
const RELOAD_DEADLINE: Duration = Duration::from_secs(5);

/// What to do with root filesystem directories.
#[derive(Subcommand)]
pub(crate) enum RootfsVerb {
    /// List them.
    Ls,
    /// Print everything known of one as JSON.
    Show {
        /// A reference or an id.
        reference: String,
    },
    /// Give an existing directory below one of the daemon's roots one more name. Nothing is copied.
    Add {
        /// The name, such as `app:1.0` or `registry.example/app:1.0`.
        reference: String,
        /// The directory.
        directory: PathBuf,
    },
}

/// One verb on root filesystem directories.
pub(crate) async fn rootfs(mut client: Client, verb: RootfsVerb, json: bool) -> Outcome {
    match verb {
        RootfsVerb::Ls => ls(client, json).await,
        RootfsVerb::Show { reference } => match crate::inspect::image(&mut client, &reference).await? {
            Some(value) => output::json(&value),
            None => bail!("no rootfs is called {reference:?} (see `podwright rootfs ls`)"),
        },
        RootfsVerb::Add { reference, directory } => add(client, &reference, &directory).await,
    }
}

/// Lists every name of every entry.
async fn ls(mut client: Client, json: bool) -> Outcome {
    let request = v1::ListImagesRequest { filter: None };
    let mut images = client.image.list_images(request).await?.into_inner().images;
    images.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags));
    if json {
        let rows: Vec<_> = images
            .iter()
            .map(|i| json!({"id": i.id, "tags": i.repo_tags, "digests": i.repo_digests, "sizeBytes": i.size}))
            .collect();
        return output::json(&rows);
    }
    let mut table = Columns::new(&["REFERENCE", "ID", "SIZE"]);
    for image in &images {
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        for name in names {
            table.row(vec![name.clone(), output::short(&image.id), output::size(image.size)]);
        }
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// Where a running daemon's files are: `podwrightd.json` in its run directory, written anew after each reload.
#[derive(Debug, Deserialize)]
pub(crate) struct Instance {
    /// Its process.
    pid: i32,
    /// The file it was configured from.
    config_file: PathBuf,
    /// How often it has read it again.
    pub(crate) reloads: u64,
    /// Why the last time failed.
    #[serde(default)]
    reload_error: Option<String>,
}

/// Writes an alias into a drop-in of the daemon's configuration and has it read.
async fn add(mut client: Client, reference: &str, directory: &Path) -> Outcome {
    let request = v1::StatusRequest { verbose: true };
    let info = client.runtime.status(request).await?.into_inner().info;
    let config: serde_json::Value =
        serde_json::from_str(info.get("config").context("the daemon does not tell its configuration")?)?;
    let run: PathBuf = serde_json::from_value(config["paths"]["run"].clone())?;
    let roots: Vec<PathBuf> = serde_json::from_value(config["rootfs"]["roots"].clone())?;
    let entry = below_a_root(directory, &roots)?;

    let instance_file = run.join("podwrightd.json");
    let instance = read_instance(&instance_file)?;
    let drop_ins = instance.config_file.with_extension("toml.d");
    std::fs::create_dir_all(&drop_ins).with_context(|| format!("directory {}", drop_ins.display()))?;
    let drop_in = drop_ins.join(drop_in_name(reference));
    let text = format!(
        "# Written by podwright rootfs add; remove this file and reload podwrightd to forget the name.\n[rootfs.aliases]\n{} = {}\n",
        toml::Value::from(reference),
        toml::Value::from(entry.to_string_lossy().as_ref()),
    );
    std::fs::write(&drop_in, text).with_context(|| format!("drop-in {}", drop_in.display()))?;

    let added = match reload(&instance, &instance_file).await {
        Ok(()) => {
            let image = v1::ImageSpec { image: reference.to_owned(), ..Default::default() };
            let pull = v1::PullImageRequest { image: Some(image), ..Default::default() };
            client.image.pull_image(pull).await.map_err(anyhow::Error::from)
        }
        Err(error) => Err(error),
    };
    match added {
        Ok(response) => {
            output::line(&format!("{reference}  {}", output::short(&response.into_inner().image_ref)));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // A name that does not work is not left behind.
            std::fs::remove_file(&drop_in).with_context(|| format!("remove {}", drop_in.display()))?;
            let _ = reload(&read_instance(&instance_file)?, &instance_file).await;
            Err(error)
        }
    }
}

/// The path of `directory` below the first root that holds it.
fn below_a_root(directory: &Path, roots: &[PathBuf]) -> Result<PathBuf> {
    let directory = directory.canonicalize().with_context(|| format!("directory {}", directory.display()))?;
    for root in roots {
        if let Ok(root) = root.canonicalize()
            && let Ok(entry) = directory.strip_prefix(&root)
            && !entry.as_os_str().is_empty()
        {
            return Ok(entry.to_owned());
        }
    }
    let roots: Vec<_> = roots.iter().map(|r| r.display().to_string()).collect();
    bail!(
        "{} is below none of the daemon's roots ({}): move it there, or add its parent to [rootfs] roots",
        directory.display(),
        roots.join(", ")
    )
}

/// A file name for the drop-in of one reference: readable, and one to one.
fn drop_in_name(reference: &str) -> String {
    let mut name = String::from("50-rootfs-");
    for byte in reference.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => name.push(char::from(byte)),
            other => name.extend(['_', hex(other >> 4), hex(other & 15)]),
        }
    }
    name + ".toml"
}

fn hex(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

pub(crate) fn read_instance(path: &Path) -> Result<Instance> {
    let text = std::fs::read_to_string(path).with_context(|| format!("the daemon's {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("the daemon's {}", path.display()))
}

/// Has the daemon read its configuration again, and returns when it has.
pub(crate) async fn reload(instance: &Instance, instance_file: &Path) -> Result<()> {
    let directory = instance_file.parent().unwrap_or(Path::new("/"));
    let mut watch = Watch::directory(directory)?;
    let pid = Pid::from_raw(instance.pid).context("the daemon's pid is 0")?;
    kill_process(pid, Signal::HUP).with_context(|| format!("signal podwrightd, pid {}", instance.pid))?;
    let reloaded = async {
        while read_instance(instance_file)?.reloads == instance.reloads {
            watch.changed().await?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(RELOAD_DEADLINE, reloaded).await.context("podwrightd did not reload in time")??;
    match read_instance(instance_file)?.reload_error {
        Some(error) => bail!("podwrightd refused the new configuration: {error}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_in_names_are_one_to_one() {
        assert_eq!(drop_in_name("app:1.0"), "50-rootfs-app_3a1.0.toml");
        assert_ne!(drop_in_name("a/b"), drop_in_name("a_2fb"));
        assert!(!drop_in_name("../x").contains('/'));
    }
}
