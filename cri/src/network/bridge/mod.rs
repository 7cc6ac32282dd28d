//! The built-in network: a bridge, addresses of its own, masquerading and host ports. It is what pods get where nobody has
//! configured anything, without any program being started.
//!
//! ```text
//! bridge   made with the first pod, named by an alias for the daemon's state directory: nobody else's is ever used
//! attach   addresses leased (the pod's record) -> cable into the pod's namespace -> addresses, routes -> host ports
//! detach   host ports -> cable; the lease ends with the record
//! ```
//!
//! | file | tells |
//! |---|---|
//! | [`links`] | rtnetlink |
//! | [`nft`] | rules |
//! | [`leases`] | which address a pod gets |

pub mod leases;
pub mod links;
pub mod nft;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::IFNAME;
use super::record::{Maker, NetworkRecord};
use crate::config::BridgeNetwork;
use crate::translate::Pod;
use crate::v1::Protocol;
use leases::{Leases, Range};
use links::{Netlink, Veth};
use nft::{Forward, Rules};

/// What of a pod's built-in network is recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cable {
    /// The bridge.
    pub bridge: String,
    /// The cable's end at the bridge.
    pub link: String,
    /// The host ports that lead to the pod.
    pub ports: Vec<HostPort>,
}

/// A port of the host that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// The IP protocol's number.
    pub protocol: u8,
    /// On which of the host's addresses; None: on all.
    pub host: Option<IpAddr>,
    /// There.
    pub host_port: u16,
    /// In the pod.
    pub pod_port: u16,
}

/// What a daemon knows of its built-in network.
#[derive(Debug, Default)]
pub struct Bridge {
    leases: Mutex<Leases>,
    /// The configuration that the bridge and its rules were made by; None: they were not, by this daemon.
    made: Mutex<Option<BridgeNetwork>>,
}

/// Why a pod cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// A range of the configuration is none; it is checked when the configuration is read.
    #[error("network.bridge: {0}")]
    Range(String),
    /// Every address is some pod's.
    #[error("no address is free in {0}: remove pods, or configure a larger range")]
    Full(Range),
    /// A step in the kernel failed.
    #[error("{step}")]
    Kernel {
        /// Which.
        step: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A failed step.
fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> BridgeError {
    let step = step.into();
    |source| BridgeError::Kernel { step, source }
}

/// The ranges of a configuration.
pub fn ranges(config: &BridgeNetwork) -> Result<Vec<Range>, BridgeError> {
    let texts = [&config.ipv4, &config.ipv6].into_iter().filter(|text| !text.is_empty());
    texts.map(|text| Range::parse(text).map_err(BridgeError::Range)).collect()
}

impl Bridge {
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the addresses of pods that an earlier daemon attached.
    pub fn restore(&self, records: &[NetworkRecord]) {
        let mut leases = self.leases();
        for record in records.iter().filter(|record| matches!(record.maker, Maker::Bridge(_))) {
            record.addresses.iter().for_each(|address| leases.restore(*address));
        }
    }

    /// Leases addresses for a pod and makes its record, which has to be on disk before [`attach`](Self::attach).
    pub fn lease(&self, config: &BridgeNetwork, id: &str, pod: &Pod) -> Result<NetworkRecord, BridgeError> {
        let maker =
            Maker::Bridge(Cable { bridge: config.name.clone(), link: link_name(id), ports: host_ports(pod) });
        let mut record = NetworkRecord::new(id, maker);
        let ranges = ranges(config)?;
        let mut leases = self.leases();
        for range in ranges {
            let Some(address) = leases.take(range) else {
                record.addresses.iter().for_each(|address| leases.give_back(*address));
                return Err(BridgeError::Full(range));
            };
            record.addresses.push(address);
        }
        Ok(record)
    }

    /// Ends the leases of a record that is on disk no more.
    pub fn give_back(&self, record: &NetworkRecord) {
        let mut leases = self.leases();
        record.addresses.iter().for_each(|address| leases.give_back(*address));
    }

    /// Attaches a pod as recorded. Blocks.
    pub fn attach(
        &self,
        config: &BridgeNetwork,
        state: &Path,
        record: &NetworkRecord,
        cable: &Cable,
        netns: &Path,
    ) -> Result<(), BridgeError> {
        let ranges = ranges(config)?;
        let mut here = Netlink::here().map_err(failed("open rtnetlink"))?;
        let bridge = self.ensure(&mut here, config, &ranges, state)?;
        let step = |step: &str| failed(format!("{step} of {}", netns.display()));
        let namespace = links::open_namespace(netns).map_err(step("open the network namespace"))?;
        let veth =
            Veth { name: &cable.link, bridge, peer: IFNAME, namespace: namespace.as_fd(), mtu: config.mtu };
        here.add_veth(&veth)
            .map_err(failed(format!("lead {} from {} into the pod", cable.link, cable.bridge)))?;
        let mut inside = Netlink::inside(namespace.as_fd()).map_err(step("enter the network namespace"))?;
        let (eth0, _) = inside
            .link(IFNAME)
            .and_then(|link| link.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(step("find eth0"))?;
        inside.set_up(eth0).map_err(step("take up eth0"))?;
        for address in &record.addresses {
            let Some(range) = ranges.iter().find(|range| range.contains(*address)) else { continue };
            inside.add_address(eth0, range.interface(*address)).map_err(step("give an address to eth0"))?;
            inside.add_default_route(eth0, range.gateway().address).map_err(step("add the default route"))?;
        }
        rules(config, &interfaces(&ranges)).add(&forwards(record, cable)).map_err(failed("add host ports"))
    }

    /// Undoes that, in whole or in part. Blocks.
    pub fn detach(&self, record: &NetworkRecord, cable: &Cable) -> Result<(), BridgeError> {
        let rules = Rules { bridge: &cable.bridge, ranges: &[], masquerade: false };
        rules.remove(&forwards(record, cable)).map_err(failed("remove host ports"))?;
        let removed = Netlink::here().and_then(|mut here| here.remove(&cable.link));
        removed.map_err(failed(format!("remove the link {}", cable.link)))
    }

    /// Makes the bridge and its rules, once for each configuration; the bridge again where somebody took it away.
    fn ensure(
        &self,
        here: &mut Netlink,
        config: &BridgeNetwork,
        ranges: &[Range],
        state: &Path,
    ) -> Result<u32, BridgeError> {
        // Held for the whole of it: the second pod waits for what the first one makes.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let alias = format!("podwright {}", state.display());
        let step = |step: &str| failed(format!("{step} {}", config.name));
        if made.as_ref() == Some(config) {
            let found = here.link(&config.name).map_err(step("find the bridge"))?;
            if let Some((index, Some(found))) = found
                && found == alias
            {
                return Ok(index);
            }
        }
        *made = None;
        let index = here
            .ensure_bridge(&config.name, &alias, mac(&alias, &config.name), config.mtu)
            .map_err(step("make the bridge"))?;
        for range in ranges {
            here.add_address(index, range.gateway()).map_err(step("give an address to the bridge"))?;
        }
        let sysctls = [
            (!config.ipv4.is_empty(), "ipv4/ip_forward".to_owned()),
            // See the guard in nft.
            (!config.ipv4.is_empty(), format!("ipv4/conf/{}/route_localnet", config.name)),
            (!config.ipv6.is_empty(), "ipv6/conf/all/forwarding".to_owned()),
        ];
        for (_, name) in sysctls.iter().filter(|(wanted, _)| *wanted) {
            let path = PathBuf::from("/proc/sys/net").join(name);
            fs::write(&path, "1").map_err(failed(format!("write {}", path.display())))?;
        }
        let alive: Vec<Forward> = super::record::all(state)
            .iter()
            .filter_map(|record| match &record.maker {
                Maker::Bridge(cable) if cable.bridge == config.name => Some(forwards(record, cable)),
                _ => None,
            })
            .flatten()
            .collect();
        rules(config, &interfaces(ranges)).rebuild(&alive).map_err(step("make the rules of"))?;
        *made = Some(config.clone());
        Ok(index)
    }
}

fn interfaces(ranges: &[Range]) -> Vec<links::Interface> {
    ranges.iter().map(|range| range.gateway()).collect()
}

fn rules<'a>(config: &'a BridgeNetwork, ranges: &'a [links::Interface]) -> Rules<'a> {
    Rules { bridge: &config.name, ranges, masquerade: config.masquerade }
}

/// The cable's end at the bridge: the head of the pod's id, as far as a link's name goes (IFNAMSIZ).
fn link_name(id: &str) -> String {
    format!("pw{}", id.get(..12).unwrap_or(id))
}

/// An address of the bridge's own, the same each time: locally administered.
fn mac(alias: &str, name: &str) -> [u8; 6] {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (alias, name).hash(&mut hasher);
    let [first, second, mut mac @ ..] = hasher.finish().to_be_bytes();
    mac[0] = 0x02;
    mac[1] ^= first ^ second;
    mac
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let port = |mapping: &crate::translate::PortMapping| {
        let protocol = match mapping.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        };
        Some(HostPort {
            protocol,
            host: mapping.host_ip,
            host_port: mapping.host_port?,
            pod_port: mapping.container_port,
        })
    };
    pod.port_mappings.iter().filter_map(port).collect()
}

/// The rules that a pod's host ports are: one for each of its addresses that the host's address can lead to.
fn forwards(record: &NetworkRecord, cable: &Cable) -> Vec<Forward> {
    let one = |port: &HostPort, pod: IpAddr| {
        let same_family = port.host.is_none_or(|host| host.is_ipv4() == pod.is_ipv4());
        same_family.then_some(Forward {
            protocol: port.protocol,
            // 0.0.0.0 stands for all of its family.
            host: port.host.filter(|host| !host.is_unspecified()),
            host_port: port.host_port,
            pod,
            pod_port: port.pod_port,
        })
    };
    let pairs =
        cable.ports.iter().flat_map(|port| record.addresses.iter().map(move |address| (port, *address)));
    pairs.filter_map(|(port, address)| one(port, address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(addresses: &[&str], ports: &[(Option<&str>, u16)]) -> (NetworkRecord, Cable) {
        let ports = ports.iter().map(|(host, host_port)| HostPort {
            protocol: 6,
            host: host.map(|host| host.parse().unwrap()),
            host_port: *host_port,
            pod_port: 80,
        });
        let cable = Cable { bridge: "b".into(), link: link_name("0123456789abcdef"), ports: ports.collect() };
        let mut record = NetworkRecord::new("p", Maker::Bridge(cable.clone()));
        record.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (record, cable)
    }

    #[test]
    fn a_host_port_leads_to_each_address_of_its_family() {
        let ports = [(None, 80), (Some("192.0.2.1"), 81), (Some("::"), 82)];
        let (record, cable) = record(&["10.0.0.2", "fd00::2"], &ports);
        let told: Vec<(u16, bool, String)> = forwards(&record, &cable)
            .iter()
            .map(|forward| (forward.host_port, forward.host.is_some(), forward.pod.to_string()))
            .collect();
        assert_eq!(
            told,
            [
                (80, false, "10.0.0.2".to_owned()),
                (80, false, "fd00::2".to_owned()),
                (81, true, "10.0.0.2".to_owned()),
                (82, false, "fd00::2".to_owned()),
            ]
        );
    }

    #[test]
    fn names_and_addresses_fit_the_kernel() {
        assert_eq!(link_name("0123456789abcdef0123"), "pw0123456789ab");
        assert_eq!(mac("a", "b"), mac("a", "b"));
        assert_eq!(mac("a", "b")[0] & 3, 2, "locally administered, of one host");
    }
}
