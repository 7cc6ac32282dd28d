//! The runtime itself: Version, Status, RuntimeConfig and UpdateRuntimeConfig.

use std::collections::HashMap;

use runtime::cgroup::Driver;
use serde_json::json;

use crate::check;
use crate::cni::arguments;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::network::outlook::Readiness;
use crate::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse, RuntimeFeatures,
    RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest, StatusResponse,
    UpdateRuntimeConfigRequest, VersionResponse,
};

/// The version of kubelet's runtime API; kubelet exits if it is anything else.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Our name.
const RUNTIME_NAME: &str = "podwright";

/// The CRI that is spoken here.
const CRI_VERSION: &str = "v1";

/// Version.
pub fn version() -> VersionResponse {
    VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: CRI_VERSION.to_owned(),
    }
}

/// Status.
pub fn status(daemon: &Daemon, request: &StatusRequest) -> StatusResponse {
    let features = || RuntimeHandlerFeatures {
        recursive_read_only_mounts: daemon.host.recursive_readonly,
        user_namespaces: daemon.host.user_namespaces,
    };
    let handlers = daemon.config().runtime.handlers.keys().cloned().collect::<Vec<_>>();
    StatusResponse {
        status: Some(RuntimeStatus {
            conditions: conditions(daemon.apparmor.complaint(), daemon.networks.outlook().readiness()),
        }),
        info: if request.verbose { info(daemon) } else { HashMap::new() },
        runtime_handlers: handlers
            .into_iter()
            .map(|name| RuntimeHandler { name, features: Some(features()) })
            .collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            // Sysfs, which only the owner of a network namespace can mount, is bound from the host then.
            user_namespaces_host_network: daemon.host.user_namespaces,
            mount_options: true,
        }),
    }
}

/// kubelet starts pods on a node only where both hold, those in the host's network where only the first does.
///
/// Neither waits for AppArmor, whose `complaint` is only told: pods that do not ask for it run.
fn conditions(complaint: Option<String>, network: Readiness) -> Vec<RuntimeCondition> {
    let complaint = complaint.map(|reason| format!("there is no default AppArmor profile: {reason}"));
    let reason = if complaint.is_some() { "NoDefaultAppArmorProfile" } else { "" };
    let runtime = Readiness { ready: true, reason, message: complaint.unwrap_or_default() };
    let condition = |kind: &str, readiness: Readiness| RuntimeCondition {
        r#type: kind.to_owned(),
        status: readiness.ready,
        reason: readiness.reason.to_owned(),
        message: readiness.message,
    };
    vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)]
}

/// RuntimeConfig.
pub fn runtime_config(daemon: &Daemon) -> RuntimeConfigResponse {
    let driver = match daemon.driver {
        Driver::Cgroupfs => CgroupDriver::Cgroupfs,
        Driver::Systemd => CgroupDriver::Systemd,
    };
    RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}

/// UpdateRuntimeConfig: kubelet tells the pod CIDR, which plugins with the capability `ipRanges` get.
pub fn update_runtime_config(daemon: &Daemon, request: &UpdateRuntimeConfigRequest) -> Result<(), Error> {
    let config = request.runtime_config.as_ref();
    let network = config.and_then(|config| config.network_config.as_ref());
    let cidr = network.map(|network| network.pod_cidr.as_str()).unwrap_or_default();
    let cidrs = arguments::pod_cidrs(cidr).ok_or_else(|| {
        let reason = format!("{} is no range such as 10.1.0.0/24, or one of each family", check::shown(cidr));
        Error::invalid("runtime_config.network_config.pod_cidr", reason)
    })?;
    tracing::info!(pod_cidr = cidr, "kubelet tells the pod network");
    // An empty one changes nothing, as with containerd.
    if cidrs.is_empty() { Ok(()) } else { daemon.networks.set_pod_cidrs(&daemon.state, cidrs) }
}

/// The effective configuration and what the host has, as JSON.
fn info(daemon: &Daemon) -> HashMap<String, String> {
    let config = serde_json::to_string(&*daemon.config()).unwrap_or_default();
    let host = json!({
        "kernel": format!("{}.{}", daemon.host.kernel.0, daemon.host.kernel.1),
        "cgroup": format!("{:?}", daemon.hierarchies.mode()).to_lowercase(),
        "monitor": daemon.program.path(),
        "apparmor": daemon.host.apparmor,
        "apparmorDefaultProfile": daemon.host.apparmor && daemon.apparmor.complaint().is_none(),
        "selinux": daemon.host.selinux,
        "swapAccounting": daemon.host.swap_accounting,
        "bootID": daemon.boot_id,
    });
    HashMap::from([("config".to_owned(), config), ("host".to_owned(), host.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_accepts_the_version() {
        let version = version();
        assert_eq!(version.version, "0.1.0");
        assert_eq!(version.runtime_api_version, "v1");
        // It has to parse as a version: three numbers.
        assert_eq!(version.runtime_version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3);
    }

    #[test]
    fn both_conditions_are_told() {
        let network = || crate::network::outlook::Outlook::default().readiness();
        let kinds: Vec<_> =
            conditions(None, network()).into_iter().map(|condition| condition.r#type).collect();
        assert_eq!(kinds, ["RuntimeReady", "NetworkReady"]);
        let told = &conditions(Some("why".to_owned()), network())[0];
        assert!(told.status && told.message.ends_with("profile: why"), "{told:?}");
    }
}
