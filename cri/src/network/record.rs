//! What is on disk of a pod's network: `<state>/pods/<id>/network.json`, for as long as there may be something to undo.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::IFNAME;
use super::bridge::Cable;
use crate::cni::{NetworkList, config};
use crate::error::Error;
use crate::records;

/// The shape of the record.
const VERSION: u32 = 1;

const FILE: &str = "network.json";

/// A pod's network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The pod sandbox's id.
    pub container: String,
    /// Its interface.
    pub ifname: String,
    /// Who makes it, and will undo it.
    pub maker: Maker,
    /// As far as plugins have told theirs, the last result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The pod's addresses, the first one first; those of the built-in network from before it is attached.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Who makes a pod's network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Maker {
    /// Plugins.
    Cni {
        /// Where the configuration was read from.
        file: PathBuf,
        /// The configuration: a list.
        config: Value,
        /// `CNI_ARGS`.
        args: String,
        /// Every capability argument.
        capability_args: Map<String, Value>,
    },
    /// The built-in network.
    Bridge(Cable),
}

impl NetworkRecord {
    /// The record of a network that is about to be made.
    pub fn new(pod: &str, maker: Maker) -> Self {
        Self {
            version: VERSION,
            container: pod.to_owned(),
            ifname: IFNAME.to_owned(),
            maker,
            result: None,
            addresses: Vec::new(),
        }
    }

    /// The name of the CNI network; None: no plugin made it.
    pub fn network(&self) -> Option<&str> {
        match &self.maker {
            Maker::Cni { config, .. } => config.get("name")?.as_str(),
            Maker::Bridge(_) => None,
        }
    }

    /// The configuration that made it.
    pub fn list(&self) -> Result<NetworkList, Error> {
        let failed = |reason: String| {
            Error::internal(format!("the recorded network of pod sandbox {}", self.container), reason)
        };
        match &self.maker {
            Maker::Cni { file, config, .. } => {
                config::from_value(file, config.clone()).map_err(|(_, reason)| failed(reason))
            }
            Maker::Bridge(_) => Err(failed("no plugin made it".to_owned())),
        }
    }

    /// Writes it into its pod's directory.
    pub fn write(&self, pod_dir: &Path) -> Result<(), Error> {
        records::write(&pod_dir.join(FILE), self)
    }

    /// Reads it back. None: there is nothing to undo. One that cannot be read is moved aside: with it nothing can be undone.
    pub fn read(pod_dir: &Path) -> Result<Option<Self>, Error> {
        let path = pod_dir.join(FILE);
        match records::read::<Self>(&path) {
            Ok(record) if record.version <= VERSION => Ok(Some(record)),
            Ok(record) => {
                let reason = format!("version {} is later than this daemon's {VERSION}", record.version);
                Err(Error::internal(format!("{} cannot be used", path.display()), reason))
            }
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error @ Error::Io { .. }) => Err(error),
            Err(error) => {
                let aside = pod_dir.join("network.json.corrupt");
                tracing::error!(
                    error = %error.sentence(), path = %aside.display(),
                    "a pod's network cannot be undone: its record is set aside"
                );
                fs::rename(&path, &aside).map_err(|source| Error::Io {
                    action: "set aside",
                    path,
                    source,
                })?;
                Ok(None)
            }
        }
    }

    /// Removes it: everything is undone.
    pub fn remove(pod_dir: &Path) -> Result<(), Error> {
        let path = pod_dir.join(FILE);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}

/// The records of all pods, as far as they can be read.
pub fn all(state: &Path) -> Vec<NetworkRecord> {
    let Ok(pods) = fs::read_dir(state.join("pods")) else { return Vec::new() };
    pods.flatten().filter_map(|pod| NetworkRecord::read(&pod.path()).ok().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_broken_one_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(NetworkRecord::read(directory.path()).unwrap(), None);
        let maker = Maker::Cni {
            file: "/etc/cni/net.d/10.conflist".into(),
            config: serde_json::json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": "t" }] }),
            args: "IgnoreUnknown=1".into(),
            capability_args: Map::new(),
        };
        let mut record = NetworkRecord::new("p1", maker);
        record.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        record.write(directory.path()).unwrap();
        assert_eq!(NetworkRecord::read(directory.path()).unwrap(), Some(record.clone()));
        assert_eq!((record.network(), record.list().unwrap().plugins.len()), (Some("n"), 1));
        NetworkRecord::remove(directory.path()).unwrap();
        NetworkRecord::remove(directory.path()).unwrap();
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert_eq!(NetworkRecord::read(directory.path()).unwrap(), None);
        assert!(directory.path().join("network.json.corrupt").exists());
    }
}
