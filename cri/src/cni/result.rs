//! What plugins print: results of ADD, and errors.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::config::Version;

/// An error as a plugin prints it. Spec: section 5, Error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Below 100: the specification's; from 100: the plugin's own.
    pub code: i64,
    /// For people.
    pub msg: String,
    /// More of it; often empty.
    pub details: String,
}

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        write!(f, " (code {})", self.code)
    }
}

/// The error that a failed plugin printed. None: it printed something else.
pub fn reported(output: &[u8]) -> Option<Reported> {
    let value: Map<String, Value> = serde_json::from_slice(output).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = value.get("code")?.as_i64()?;
    Some(Reported { code, msg: text("msg"), details: text("details") })
}

/// Parses the result of one plugin, and puts it into the form that the list's version has, for the next plugin.
pub fn parse(output: &[u8], version: Version) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(output).map_err(|error| format!("it is not JSON: {error}"))?;
    let Value::Object(mut result) = value else { return Err("it is no JSON object".to_owned()) };
    match result.get("cniVersion").and_then(Value::as_str) {
        None | Some("") => {}
        Some(told) if Version::parse(told).is_some() => {}
        Some(told) => return Err(format!("its cniVersion {told:?} is not supported")),
    }
    result.insert("cniVersion".to_owned(), version.as_str().into());
    match result.get_mut("ips") {
        None | Some(Value::Null) => {}
        Some(Value::Array(ips)) => {
            for ip in ips {
                let address = address(ip)?;
                let Value::Object(ip) = ip else { continue };
                if version >= Version::V1_0 {
                    ip.remove("version");
                } else {
                    ip.insert("version".to_owned(), if address.is_ipv4() { "4" } else { "6" }.into());
                }
            }
        }
        Some(_) => return Err("its ips are no array".to_owned()),
    }
    Ok(Value::Object(result))
}

/// `address` of an element of `ips`, without its prefix length.
fn address(ip: &Value) -> Result<IpAddr, String> {
    let text = ip.get("address").and_then(Value::as_str).ok_or("an element of its ips has no address")?;
    let address = text.split('/').next().unwrap_or_default();
    address.parse().map_err(|_| format!("{text:?} in it is no address"))
}

/// The addresses of the pod's interface `ifname`, in the result's order: those of other interfaces are left out.
pub fn addresses(result: &Value, ifname: &str) -> Vec<IpAddr> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let ours = |ip: &Value| {
        let Some(index) = ip.get("interface").and_then(Value::as_u64) else { return true };
        let interface = usize::try_from(index).ok().and_then(|index| interfaces?.get(index));
        let text = |key: &str| interface.and_then(|i| i.get(key)).and_then(Value::as_str).unwrap_or_default();
        text("name") == ifname && !text("sandbox").is_empty()
    };
    let ips = result.get("ips").and_then(Value::as_array);
    ips.into_iter().flatten().filter(|ip| ours(ip)).filter_map(|ip| address(ip).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_those_of_the_pods_interface() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cni0" },
                { "name": "veth1" },
                { "name": "eth0", "sandbox": "/run/netns/x" },
                { "name": "eth1", "sandbox": "/run/netns/x" },
            ],
            "ips": [
                { "address": "10.1.0.5/16", "interface": 2 },
                { "address": "10.9.0.5/16", "interface": 3 },
                { "address": "10.1.0.1/16", "interface": 0 },
                { "address": "fd00::5/64", "interface": 2 },
                { "address": "10.2.0.1/16", "interface": 77 },
            ],
        });
        let found: Vec<String> = addresses(&result, "eth0").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.0.5", "fd00::5"]);
        assert_eq!(addresses(&json!({ "ips": [{ "address": "10.0.0.9/24" }] }), "eth0").len(), 1);
        assert!(addresses(&json!({}), "eth0").is_empty());
    }

    #[test]
    fn a_result_takes_the_form_of_the_lists_version() {
        let old = br#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.1/8"}]}"#;
        let new = parse(old, Version::V1_1).unwrap();
        assert_eq!(new, json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.0.0.1/8" }] }));
        let back = parse(new.to_string().as_bytes(), Version::V0_4).unwrap();
        assert_eq!(back["ips"][0]["version"], "4");
        assert!(parse(b"{\"cniVersion\":\"3.0.0\"}", Version::V1_0).unwrap_err().contains("3.0.0"));
        assert!(parse(b"", Version::V1_0).unwrap_err().contains("not JSON"));
        assert!(parse(b"{\"ips\":[{\"address\":\"x\"}]}", Version::V1_0).unwrap_err().contains("no address"));
    }

    #[test]
    fn an_error_keeps_code_message_and_details() {
        let text = br#"{"cniVersion":"1.0.0","code":11,"msg":"no address left","details":"10.0.0.0/30"}"#;
        assert_eq!(reported(text).unwrap().to_string(), "no address left (10.0.0.0/30) (code 11)");
        assert_eq!(reported(b"Segmentation fault"), None);
        assert_eq!(reported(b"{}"), None);
    }

    proptest! {
        #[test]
        fn no_output_is_too_strange(output in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = reported(&output);
            if let Ok(value) = parse(&output, Version::V1_0) {
                let _ = addresses(&value, "eth0");
            }
        }
    }
}
