//! The calls themselves: which there are, and what the runtime says of itself.

use podwright_tests::{Node, Outcome, v1};
use tonic::Code;

/// Every method of the published contract, and whether this version answers it.
const METHODS: [(&str, bool); 43] = [
    ("/runtime.v1.RuntimeService/Version", true),
    ("/runtime.v1.RuntimeService/RunPodSandbox", true),
    ("/runtime.v1.RuntimeService/StopPodSandbox", true),
    ("/runtime.v1.RuntimeService/RemovePodSandbox", true),
    ("/runtime.v1.RuntimeService/PodSandboxStatus", true),
    ("/runtime.v1.RuntimeService/ListPodSandbox", true),
    ("/runtime.v1.RuntimeService/StreamPodSandboxes", true),
    ("/runtime.v1.RuntimeService/CreateContainer", true),
    ("/runtime.v1.RuntimeService/StartContainer", true),
    ("/runtime.v1.RuntimeService/StopContainer", true),
    ("/runtime.v1.RuntimeService/RemoveContainer", true),
    ("/runtime.v1.RuntimeService/ListContainers", true),
    ("/runtime.v1.RuntimeService/StreamContainers", true),
    ("/runtime.v1.RuntimeService/ContainerStatus", true),
    ("/runtime.v1.RuntimeService/UpdateContainerResources", true),
    ("/runtime.v1.RuntimeService/ReopenContainerLog", true),
    ("/runtime.v1.RuntimeService/ExecSync", true),
    ("/runtime.v1.RuntimeService/Exec", true),
    ("/runtime.v1.RuntimeService/Attach", true),
    ("/runtime.v1.RuntimeService/PortForward", true),
    ("/runtime.v1.RuntimeService/ContainerStats", true),
    ("/runtime.v1.RuntimeService/ListContainerStats", true),
    ("/runtime.v1.RuntimeService/StreamContainerStats", true),
    ("/runtime.v1.RuntimeService/PodSandboxStats", true),
    ("/runtime.v1.RuntimeService/ListPodSandboxStats", true),
    ("/runtime.v1.RuntimeService/StreamPodSandboxStats", true),
    ("/runtime.v1.RuntimeService/UpdateRuntimeConfig", true),
    ("/runtime.v1.RuntimeService/Status", true),
    ("/runtime.v1.RuntimeService/CheckpointContainer", true),
    ("/runtime.v1.RuntimeService/CheckpointPod", false),
    ("/runtime.v1.RuntimeService/RestorePod", false),
    ("/runtime.v1.RuntimeService/GetContainerEvents", true),
    ("/runtime.v1.RuntimeService/ListMetricDescriptors", false),
    ("/runtime.v1.RuntimeService/ListPodSandboxMetrics", false),
    ("/runtime.v1.RuntimeService/StreamPodSandboxMetrics", false),
    ("/runtime.v1.RuntimeService/RuntimeConfig", true),
    ("/runtime.v1.RuntimeService/UpdatePodSandboxResources", true),
    ("/runtime.v1.ImageService/ListImages", true),
    ("/runtime.v1.ImageService/StreamImages", true),
    ("/runtime.v1.ImageService/ImageStatus", true),
    ("/runtime.v1.ImageService/PullImage", true),
    ("/runtime.v1.ImageService/RemoveImage", true),
    ("/runtime.v1.ImageService/ImageFsInfo", true),
];

#[test]
fn exactly_the_listed_calls_are_not_built_yet() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    for (method, built) in METHODS {
        // An empty request is refused or answered; only what is missing is unimplemented.
        let code = client.raw_call(method).err().map(|status| status.code());
        assert_eq!(code != Some(Code::Unimplemented), built, "{method} answered {code:?}");
    }
    let unknown = client.raw_call("/runtime.v1.RuntimeService/NoSuchCall").unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    Ok(())
}

#[test]
fn version_and_status_are_what_kubelet_wants() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let version = client.version(v1::VersionRequest::default())?;
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_name, "podwright");
    assert_eq!(version.runtime_api_version, "v1");
    assert_eq!(version.runtime_version.split('.').count(), 3, "{}", version.runtime_version);

    let status = client.status(v1::StatusRequest { verbose: true })?;
    let conditions = status.status.unwrap().conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == wanted);
        assert!(condition.is_some_and(|condition| condition.status), "{wanted}: {conditions:?}");
    }
    let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
    assert!(default.is_some_and(|handler| handler.features.is_some()), "features of the handler called \"\"");
    assert!(status.features.is_some_and(|features| features.supplemental_groups_policy));
    let config: serde_json::Value = serde_json::from_str(&status.info["config"])?;
    assert_eq!(config["paths"]["run"], node.path().join("run").to_str().unwrap());
    Ok(())
}

#[test]
fn runtime_config_names_the_cgroup_driver() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let config = client.runtime_config(v1::RuntimeConfigRequest {})?;
    assert_eq!(config.linux.unwrap().cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    client.update_runtime_config(v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig { pod_cidr: "10.1.0.0/16".to_owned() }),
        }),
    })?;
    Ok(())
}

/// The README's tables say what becomes of each field.
#[test]
fn the_readme_tells_of_every_field() {
    let readme = include_str!("../../README.md");
    let (_, told) = readme.split_once("## What becomes of each field").expect("the tables");
    let contract = super::absurd::contract();
    let mut missing = Vec::new();
    for message in [
        "LinuxContainerSecurityContext",
        "LinuxSandboxSecurityContext",
        "NamespaceOption",
        "Mount",
        "LinuxContainerResources",
        "LinuxPodSandboxConfig",
    ] {
        // Those that are messages with tables or rows of their own.
        let own = ["namespace_options", "security_context", "resources", "target_id"];
        for field in contract[message].iter().filter(|field| !own.contains(&field.name.as_str())) {
            let name = &field.name;
            if !told.contains(&format!("`{name}`")) && !told.contains(&format!("namespace_options.{name}`")) {
                missing.push(format!("{message}.{name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
