//! Compiles `proto/runtime/v1/api.proto` into Rust without a `protoc` on the machine.
//!
//! Three files land in `OUT_DIR`: `runtime.v1.rs` (messages, client, server), `descriptor.bin` (the
//! descriptor set, for reflection and for tests) and `methods.rs` (the path of every call, so that a test
//! can check what each of them answers). `src/v1.rs` includes them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message as _;

/// Messages kept in records on disk: the two configurations, and everything they are made of.
const SERIALISED: &[&str] = &[
    "CDIDevice",
    "Capability",
    "ContainerConfig",
    "ContainerMetadata",
    "DNSConfig",
    "Device",
    "HugepageLimit",
    "IDMapping",
    "ImageSpec",
    "Int64Value",
    "KeyValue",
    "LinuxContainerConfig",
    "LinuxContainerResources",
    "LinuxContainerSecurityContext",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "Mount",
    "NamespaceOption",
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "PortMapping",
    "SELinuxOption",
    "SecurityProfile",
    "UserNamespace",
    "WindowsContainerConfig",
    "WindowsContainerResources",
    "WindowsContainerSecurityContext",
    "WindowsCpuGroupAffinity",
    "WindowsNamespaceOption",
    "WindowsPodSandboxConfig",
    "WindowsSandboxSecurityContext",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile(["runtime/v1/api.proto"], ["proto"])?;
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;

    let mut methods = String::from("&[\n");
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                writeln!(methods, "    \"/{}.{}/{}\",", file.package(), service.name(), method.name())?;
            }
        }
    }
    methods.push_str("]\n");
    fs::write(out.join("methods.rs"), methods)?;

    let mut builder = tonic_prost_build::configure();
    for message in SERIALISED {
        builder = builder.type_attribute(
            format!("runtime.v1.{message}"),
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        );
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
