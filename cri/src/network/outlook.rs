//! Which network the next pod gets, and whether it could be attached to it.

use std::path::PathBuf;

use super::{any_plugin, missing_plugin};
use crate::cni::config::{self, Found};
use crate::cni::{Fault, NetworkList};
use crate::config::{Config, DefaultNetwork, Network};

/// The network of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// By plugins.
    Cni(Box<NetworkList>),
    /// The built-in one.
    Bridge,
    /// A loopback interface and nothing else.
    Loopback,
    /// None, and why.
    Unready(String),
}

/// What a new pod would meet.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// Its network.
    pub choice: Choice,
    /// Configurations that cannot be used.
    pub faults: Vec<Fault>,
    /// Why the chosen network would fail: a plugin is missing, or says so itself.
    pub trouble: Option<String>,
}

impl Default for Outlook {
    /// Before the first look.
    fn default() -> Self {
        Self {
            choice: Choice::Unready("the network's configuration is not read yet".to_owned()),
            faults: Vec::new(),
            trouble: None,
        }
    }
}

/// The condition `NetworkReady`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Its status.
    pub ready: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Outlook {
    /// The condition that this makes.
    pub fn readiness(&self) -> Readiness {
        let faults =
            self.faults.iter().fold(String::new(), |text, fault| format!("{text}; ignored: {fault}"));
        if let Some(trouble) = &self.trouble {
            return Readiness {
                ready: false,
                reason: "NetworkPluginNotReady",
                message: format!("{trouble}{faults}"),
            };
        }
        match &self.choice {
            Choice::Cni(list) => Readiness {
                ready: true,
                reason: "",
                message: match faults.as_str() {
                    "" => String::new(),
                    faults => format!("{} is used{faults}", list.file.display()),
                },
            },
            Choice::Bridge => Readiness {
                ready: true,
                reason: "BuiltInBridge",
                message: "there is no CNI configuration: pods are on the built-in bridge (network.bridge)"
                    .to_owned(),
            },
            Choice::Loopback => Readiness {
                ready: true,
                reason: "LoopbackOnly",
                message: "there is no CNI configuration: pods use the host's network or have a loopback interface only"
                    .to_owned(),
            },
            Choice::Unready(reason) => {
                Readiness { ready: false, reason: "NetworkPluginNotReady", message: reason.clone() }
            }
        }
    }
}

/// The outlook of a pod without a runtime handler. Blocks.
pub fn look(config: &Config) -> Outlook {
    let directories = conf_dirs(config, "");
    let found = config::load(directories);
    let faults = found.faults.clone();
    let choice = choose(found, directories, &config.network);
    let trouble = match &choice {
        Choice::Cni(list) => missing_plugin(list, &config.network.cni_bin_dirs)
            .map(|missing| format!("network {} of {}: {missing}", list.name, list.file.display())),
        _ => None,
    };
    Outlook { choice, faults, trouble }
}

/// The network of a new pod of a runtime handler, by what is on disk at this moment. Blocks.
pub fn choose_now(config: &Config, handler: &str) -> Choice {
    let directories = conf_dirs(config, handler);
    choose(config::load(directories), directories, &config.network)
}

/// The networks of all runtime handlers. Blocks.
pub fn lists(config: &Config) -> Vec<NetworkList> {
    let mut lists: Vec<NetworkList> = Vec::new();
    for handler in config.runtime.handlers.keys() {
        if let Some(list) = config::load(conf_dirs(config, handler)).list
            && !lists.contains(&list)
        {
            lists.push(list);
        }
    }
    lists
}

/// Where the configurations of a runtime handler are.
pub fn conf_dirs<'a>(config: &'a Config, handler: &str) -> &'a [PathBuf] {
    match config.runtime.handlers.get(handler) {
        Some(handler) if !handler.cni_conf_dirs.is_empty() => &handler.cni_conf_dirs,
        _ => &config.network.cni_conf_dirs,
    }
}

/// A configuration that is there is used or, if none can be, waited for: whoever put it there wants plugins.
fn choose(found: Found, directories: &[PathBuf], network: &Network) -> Choice {
    let nothing = found.nothing();
    if let Some(list) = found.list {
        return Choice::Cni(Box::new(list));
    }
    if !nothing {
        let faults: Vec<String> = found.faults.iter().map(ToString::to_string).collect();
        return Choice::Unready(format!("no CNI configuration can be used: {}", faults.join("; ")));
    }
    match network.default {
        DefaultNetwork::BridgeAlways => Choice::Bridge,
        DefaultNetwork::Bridge if !any_plugin(&network.cni_bin_dirs) => Choice::Bridge,
        DefaultNetwork::Loopback => Choice::Loopback,
        DefaultNetwork::Bridge | DefaultNetwork::None => {
            let places: Vec<String> = directories.iter().map(|dir| dir.display().to_string()).collect();
            let more = match (any_plugin(&network.cni_bin_dirs), network.default) {
                (false, _) => ", and no plugins either",
                (true, DefaultNetwork::None) => "",
                (true, _) => {
                    ": plugins are installed, so one is waited for (network.default = \"bridge_always\" has pods use the built-in bridge)"
                }
            };
            Choice::Unready(format!("there is no CNI configuration in {}{more}", places.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(default: DefaultNetwork) -> Network {
        Network { default, cni_bin_dirs: vec!["/no/such/plugins".into()], ..Network::default() }
    }

    fn list() -> NetworkList {
        let text = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
        config::parse("/etc/cni/net.d/20.conf".as_ref(), text).unwrap()
    }

    fn fault() -> Fault {
        Fault { file: "/etc/cni/net.d/10.conflist".into(), line: 3, reason: "not JSON".into() }
    }

    #[test]
    fn a_configuration_comes_before_any_default() {
        let found = Found { list: Some(list()), faults: vec![fault()] };
        assert!(matches!(choose(found, &[], &network(DefaultNetwork::Loopback)), Choice::Cni(_)));
        let broken = || Found { list: None, faults: vec![fault()] };
        let Choice::Unready(reason) = choose(broken(), &[], &network(DefaultNetwork::Loopback)) else {
            panic!("a broken configuration is no invitation to something else")
        };
        assert!(reason.contains("10.conflist:3: not JSON"), "{reason}");
        assert_eq!(choose(Found::default(), &[], &network(DefaultNetwork::Loopback)), Choice::Loopback);
        assert_eq!(choose(Found::default(), &[], &network(DefaultNetwork::Bridge)), Choice::Bridge);
        let installed = |default| Network { cni_bin_dirs: vec!["/proc/self".into()], ..network(default) };
        let waits = choose(Found::default(), &[], &installed(DefaultNetwork::Bridge));
        assert!(matches!(&waits, Choice::Unready(reason) if reason.contains("bridge_always")), "{waits:?}");
        let always = choose(Found::default(), &[], &installed(DefaultNetwork::BridgeAlways));
        assert_eq!(always, Choice::Bridge);
        let none = choose(Found::default(), &["/etc/cni/net.d".into()], &network(DefaultNetwork::None));
        assert!(matches!(&none, Choice::Unready(reason) if reason.contains("/etc/cni/net.d")), "{none:?}");
    }

    #[test]
    fn the_condition_tells_what_is_wrong() {
        let mut outlook =
            Outlook { choice: Choice::Cni(Box::new(list())), faults: vec![fault()], trouble: None };
        let readiness = outlook.readiness();
        assert!(readiness.ready && readiness.message.contains("10.conflist:3"), "{readiness:?}");
        outlook.trouble = Some("plugin bridge is not installed".into());
        let readiness = outlook.readiness();
        assert!(!readiness.ready && readiness.message.starts_with("plugin bridge"), "{readiness:?}");
        assert!(!Outlook::default().readiness().ready);
    }
}
