//! What of a pod is told to plugins: `CNI_ARGS`, and the capability arguments that they asked for.
//!
//! | capability | from |
//! |---|---|
//! | `portMappings` | the request's port mappings that have a host port |
//! | `bandwidth` | annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth` |
//! | `dns` | the request's DNS configuration |
//! | `ipRanges` | the pod CIDR that kubelet tells (UpdateRuntimeConfig) |
//! | `aliases` | the pod's host name |
//! | `mac`, `ips` | annotations `cni.podwright.io/mac` and `cni.podwright.io/ips` |
//! | `cgroupPath` | the pod's cgroup |
//! | `io.kubernetes.cri.pod-annotations` | the pod's annotations |
//!
//! A plugin gets only what its configuration declares: see [`super::chain::plugin_input`].

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::check;
use crate::error::Error;
use crate::translate::{CgroupParent, Pod};
use crate::v1;

/// kubelet's limits of a pod's bandwidth in bits per second: 1k and 1P.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The burst that goes with a rate, in bits: the most that the plugin takes, as with containerd.
const BURST: u64 = u32::MAX as u64;

/// `CNI_ARGS` by the names that plugins know from kubelet's own times.
pub fn cni_args(pod: &Pod, id: &str) -> Result<String, Error> {
    let metadata = &pod.metadata;
    let pairs = [
        ("K8S_POD_NAMESPACE", metadata.namespace.as_str()),
        ("K8S_POD_NAME", metadata.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", metadata.uid.as_str()),
    ];
    let mut args = "IgnoreUnknown=1".to_owned();
    for (key, value) in pairs {
        if value.contains([';', '=']) {
            let reason =
                format!("{} cannot be told to network plugins: it has ';' or '='", check::shown(value));
            return Err(Error::invalid("config.metadata", reason));
        }
        args.extend([";", key, "=", value]);
    }
    Ok(args)
}

/// Every capability argument there is for the pod, by the capability's name.
pub fn capability_args(pod: &Pod, pod_cidrs: &[String]) -> Result<Map<String, Value>, Error> {
    let mut args = Map::new();
    let mut put = |name: &str, value: Value| drop(args.insert(name.to_owned(), value));
    let ports = port_mappings(pod);
    if !ports.is_empty() {
        put("portMappings", Value::Array(ports));
    }
    if let Some(bandwidth) = bandwidth(pod)? {
        put("bandwidth", bandwidth);
    }
    if let Some(dns) = &pod.dns {
        let value = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        put("dns", value);
    }
    if !pod_cidrs.is_empty() {
        put("ipRanges", pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect());
    }
    put("aliases", json!([pod.hostname]));
    if let Some(mac) = pod.annotations.get(MAC) {
        put("mac", mac_address(mac)?.into());
    }
    if let Some(ips) = pod.annotations.get(IPS) {
        put("ips", ip_list(ips)?.into());
    }
    let cgroup = match &pod.cgroup_parent {
        Some(CgroupParent::Path(path)) => path.to_string_lossy().into_owned(),
        Some(CgroupParent::Slice(slice)) => slice.clone(),
        None => String::new(),
    };
    if !cgroup.is_empty() {
        put("cgroupPath", cgroup.into());
    }
    if !pod.annotations.is_empty() {
        put("io.kubernetes.cri.pod-annotations", json!(pod.annotations));
    }
    Ok(args)
}

const MAC: &str = "cni.podwright.io/mac";
const IPS: &str = "cni.podwright.io/ips";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

fn port_mappings(pod: &Pod) -> Vec<Value> {
    let one = |mapping: &crate::translate::PortMapping| {
        let protocol = match mapping.protocol {
            v1::Protocol::Tcp => "tcp",
            v1::Protocol::Udp => "udp",
            v1::Protocol::Sctp => "sctp",
        };
        let host_ip = mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
        Some(json!({
            "hostPort": mapping.host_port?,
            "containerPort": mapping.container_port,
            "protocol": protocol,
            "hostIP": host_ip,
        }))
    };
    pod.port_mappings.iter().filter_map(one).collect()
}

fn bandwidth(pod: &Pod) -> Result<Option<Value>, Error> {
    let rate = |annotation: &str| {
        let Some(text) = pod.annotations.get(annotation) else { return Ok(None) };
        if let Some(rate) = quantity(text).filter(|rate| BANDWIDTH.contains(rate)) {
            return Ok(Some(rate));
        }
        let reason =
            format!("{} is no bandwidth: bits per second, 1k to 1P, such as 10M", check::shown(text));
        Err(Error::invalid(format!("config.annotations[{annotation:?}]"), reason))
    };
    let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
    let mut value = Map::new();
    for (rate, keys) in [(ingress, ["ingressRate", "ingressBurst"]), (egress, ["egressRate", "egressBurst"])]
    {
        if let Some(rate) = rate {
            value.insert(keys[0].to_owned(), rate.into());
            value.insert(keys[1].to_owned(), BURST.into());
        }
    }
    Ok((!value.is_empty()).then_some(Value::Object(value)))
}

/// A quantity as Kubernetes writes it, `1500`, `1.5M`, `10Ki`, `2e6`, rounded up to a whole number.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let (factor, shrink) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1_u128 << 50, 1),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.trim_start_matches('+').parse().ok()?;
            (10_u128.checked_pow(power).filter(|_| power <= 18)?, 1)
        }
    };
    u64::try_from((digits * factor).div_ceil(divisor * shrink)).ok()
}

/// Six octets in hexadecimal, of an address that one interface may have.
fn mac_address(text: &str) -> Result<String, Error> {
    let octets: Vec<Option<u8>> = text
        .split(':')
        .map(|octet| (octet.len() == 2).then(|| u8::from_str_radix(octet, 16).ok()).flatten())
        .collect();
    match octets.as_slice() {
        [Some(first), _, _, _, _, _] if octets.iter().all(Option::is_some) && first & 1 == 0 => {
            Ok(text.to_ascii_lowercase())
        }
        _ => {
            let reason = format!("{} is no MAC address such as 02:00:00:00:00:01", check::shown(text));
            Err(Error::invalid(format!("config.annotations[{MAC:?}]"), reason))
        }
    }
}

/// Addresses with or without a prefix length, separated by commas.
fn ip_list(text: &str) -> Result<Vec<String>, Error> {
    let one = |word: &str| {
        let (address, prefix) = word.split_once('/').unwrap_or((word, ""));
        let length = address.parse::<IpAddr>().ok().map(|ip| if ip.is_ipv4() { 32 } else { 128 });
        let fits = prefix.is_empty() && !word.ends_with('/')
            || prefix.parse::<u32>().is_ok_and(|bits| length.is_some_and(|length| bits <= length));
        (length.is_some() && fits).then(|| word.to_owned())
    };
    let words: Option<Vec<String>> = text.split(',').map(str::trim).map(one).collect();
    words.filter(|words| words.len() <= 16).ok_or_else(|| {
        let reason = format!("{} is no list of addresses such as 10.0.0.5/24,fd00::5", check::shown(text));
        Error::invalid(format!("config.annotations[{IPS:?}]"), reason)
    })
}

/// The pod CIDRs of UpdateRuntimeConfig: one, or one of each family, separated by a comma.
pub fn pod_cidrs(text: &str) -> Option<Vec<String>> {
    let cidr = |word: &str| {
        let (address, prefix) = word.split_once('/')?;
        let length = if address.parse::<IpAddr>().ok()?.is_ipv4() { 32 } else { 128 };
        (prefix.parse::<u32>().ok()? <= length).then(|| word.to_owned())
    };
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(str::trim).map(cidr).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::translate::Defaults;

    fn pod(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Pod {
        let metadata = v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "shop".into(),
            attempt: 0,
        };
        let mut config =
            v1::PodSandboxConfig { metadata: Some(metadata), hostname: "web-0".into(), ..Default::default() };
        change(&mut config);
        Pod::parse(config, "", &Defaults::default()).unwrap()
    }

    #[test]
    fn plugins_are_told_whose_network_it_is() {
        assert_eq!(
            cni_args(&pod(|_| {}), "id1").unwrap(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=id1;K8S_POD_UID=u1"
        );
        let sly =
            pod(|config| config.metadata.as_mut().unwrap().name = "a;K8S_POD_NAMESPACE=kube-system".into());
        assert!(cni_args(&sly, "id1").is_err(), "nobody passes for another");
    }

    #[test]
    fn every_capability_has_its_source() {
        let pod = pod(|config| {
            config.port_mappings = vec![
                v1::PortMapping {
                    protocol: v1::Protocol::Udp.into(),
                    container_port: 53,
                    host_port: 5353,
                    host_ip: "10.0.0.1".into(),
                },
                v1::PortMapping { container_port: 80, ..Default::default() },
            ];
            config.dns_config =
                Some(v1::DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() });
            let annotations = [(INGRESS, "1.5M"), (MAC, "02:00:00:00:00:0A"), (IPS, "10.0.0.5/24, fd00::5")];
            config.annotations =
                annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
            config.linux.get_or_insert_default().cgroup_parent = "/kubepods/pod1".into();
        });
        let args = capability_args(&pod, &pod_cidrs("10.1.0.0/24,fd00::/64").unwrap()).unwrap();
        assert_eq!(
            args["portMappings"],
            json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1" }])
        );
        assert_eq!(args["bandwidth"], json!({ "ingressRate": 1_500_000, "ingressBurst": BURST }));
        assert_eq!(args["dns"]["servers"], json!(["10.0.0.10"]));
        assert_eq!(args["ipRanges"], json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]]));
        assert_eq!(args["aliases"], json!(["web-0"]));
        assert_eq!(args["mac"], "02:00:00:00:00:0a");
        assert_eq!(args["ips"], json!(["10.0.0.5/24", "fd00::5"]));
        assert_eq!(args["cgroupPath"], "/kubepods/pod1");
        assert_eq!(args["io.kubernetes.cri.pod-annotations"][INGRESS], "1.5M");
    }

    #[test]
    fn annotations_that_cannot_be_meant_are_refused() {
        for (key, value) in [
            (INGRESS, "fast"),
            (EGRESS, "10"),
            (EGRESS, "2P"),
            (MAC, "01:00:00:00:00:01"),
            (MAC, "02:00:00:00:00"),
            (IPS, "10.0.0.1/33"),
            (IPS, "a"),
            (IPS, "10.0.0.1/"),
        ] {
            let pod = pod(|config| drop(config.annotations.insert(key.to_owned(), value.to_owned())));
            let error = capability_args(&pod, &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{value}: {error}");
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        let cases = [
            ("1500", Some(1500)),
            ("10k", Some(10_000)),
            ("1.5Ki", Some(1536)),
            ("2e3", Some(2000)),
            ("100m", Some(1)),
            ("", None),
            (".", None),
            ("1K", None),
            ("-1", None),
            ("1.2.3", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(quantity(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_quantity_is_too_strange(text in "\\PC{0,24}") {
            let _ = (quantity(&text), pod_cidrs(&text), ip_list(&text), mac_address(&text));
        }

        #[test]
        fn plain_numbers_are_themselves(number in 0_u64..1_000_000_000_000) {
            prop_assert_eq!(quantity(&number.to_string()), Some(number));
        }
    }
}
