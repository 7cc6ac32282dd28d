//! Host ports: a pod that wants one that another pod has is refused before anything of it is made.
//!
//! Plugins do not look: with two rules for one port, the older pod would lose its traffic to the newer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::translate::{Pod, PortMapping, Shared};

/// Host ports in use, by pod.
#[derive(Debug, Default)]
pub struct HostPorts {
    taken: Mutex<BTreeMap<String, Vec<PortMapping>>>,
}

impl HostPorts {
    /// Gives a pod the host ports it asks for, or says who has one of them.
    pub fn reserve(&self, id: &str, pod: &Pod) -> Result<(), Error> {
        let wanted = host_ports(pod);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for mapping in &wanted {
            let holder = taken.iter().find(|(_, ports)| ports.iter().any(|other| collide(mapping, other)));
            if let Some((holder, _)) = holder {
                let port = mapping.host_port.unwrap_or_default();
                let protocol = mapping.protocol.as_str_name();
                return Err(Error::FailedPrecondition {
                    what: "pod sandbox",
                    id: pod.metadata.to_string(),
                    reason: format!(
                        "host port {port}/{protocol} is in use by pod sandbox {holder}; stop that first"
                    ),
                });
            }
        }
        taken.insert(id.to_owned(), wanted);
        Ok(())
    }

    /// Notes the host ports of a pod that an earlier daemon made.
    pub fn restore(&self, id: &str, pod: &Pod) {
        let ports = host_ports(pod);
        if !ports.is_empty() {
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), ports);
        }
    }

    /// The pod does not use any more.
    pub fn release(&self, id: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// A pod in the host's network has its ports by itself.
fn host_ports(pod: &Pod) -> Vec<PortMapping> {
    if pod.namespaces.network == Shared::Node {
        return Vec::new();
    }
    pod.port_mappings.iter().filter(|mapping| mapping.host_port.is_some()).copied().collect()
}

/// Whether one packet could be meant for both.
fn collide(one: &PortMapping, other: &PortMapping) -> bool {
    one.host_port == other.host_port
        && one.protocol == other.protocol
        && match (one.host_ip, other.host_ip) {
            (Some(one), Some(other)) => one == other || covers(one, other) || covers(other, one),
            _ => true,
        }
}

/// `0.0.0.0` stands for every address of its family.
fn covers(one: IpAddr, other: IpAddr) -> bool {
    one.is_unspecified() && one.is_ipv4() == other.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::Defaults;
    use crate::v1;

    fn pod(ports: &[(v1::Protocol, i32, &str)]) -> Pod {
        let port_mappings = ports.iter().map(|(protocol, port, ip)| v1::PortMapping {
            protocol: (*protocol).into(),
            container_port: 80,
            host_port: *port,
            host_ip: (*ip).into(),
        });
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata { name: "web".into(), ..Default::default() }),
            hostname: "web".into(),
            port_mappings: port_mappings.collect(),
            ..Default::default()
        };
        Pod::parse(config, "", &Defaults::default()).unwrap()
    }

    #[test]
    fn a_port_has_one_pod() {
        use v1::Protocol::{Tcp, Udp};
        let ports = HostPorts::default();
        ports.reserve("one", &pod(&[(Tcp, 80, "10.0.0.1"), (Udp, 53, "")])).unwrap();
        for (taken, name) in [
            ((Tcp, 80, ""), "every address"),
            ((Tcp, 80, "10.0.0.1"), "the same"),
            ((Tcp, 80, "0.0.0.0"), "every address of the family"),
            ((Udp, 53, "fd00::1"), "one of every address"),
        ] {
            let error = ports.reserve("two", &pod(&[taken])).unwrap_err().to_string();
            assert!(error.contains("pod sandbox one"), "{name}: {error}");
        }
        for free in [(Tcp, 80, "10.0.0.2"), (Tcp, 80, "::"), (Udp, 80, ""), (Tcp, 81, "")] {
            ports.reserve("two", &pod(&[free])).unwrap();
            ports.release("two");
        }
        ports.release("one");
        ports.reserve("two", &pod(&[(Tcp, 80, "")])).unwrap();
    }
}
