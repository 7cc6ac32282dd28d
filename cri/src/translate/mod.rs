//! From CRI configurations to the runtime-spec: pure, so that every rule is tested without a kernel.
//!
//! ```text
//!   v1::PodSandboxConfig  --Pod::parse-------->  Pod        checked once, when the pod is run
//!   v1::ContainerConfig   --Container::parse-->  Container  checked once, against its Pod
//!   Container + ContainerInputs  --container_spec-->  oci_spec::runtime::Spec
//!   v1::LinuxContainerResources  --Resources-------->  oci_spec::runtime::LinuxResources
//! ```
//!
//! Parsing refuses what can never be right and names the field. [`container_spec`] adds what only the node knows
//! ([`ContainerInputs`]) and refuses what cannot be honoured here; nothing that was asked for is left out in
//! silence. Where the API leaves a choice, the result is what containerd's users are used to.
//!
//! One file per topic: a field of the request is parsed, and turned into fields of the spec, in the same file.

mod annotations;
pub mod capabilities;
mod container;
mod devices;
mod filesystems;
mod inputs;
mod mounts;
mod namespaces;
mod pod;
mod process;
mod resources;
mod security;
mod signals;
mod sysctls;
mod user;

#[cfg(test)]
mod tests;

use oci_spec::runtime::{Linux, Root, Spec};

pub use container::{Container, ContainerMetadata, ContainerSecurity};
pub use devices::{Access, DeviceKind, DeviceNode, DeviceRequest};
use filesystems::filesystem;
pub use inputs::{
    CgroupVersion, ContainerInputs, HostFacts, Ids, ImageDefaults, MountSource, PodPaths, SourcePropagation,
};
pub use mounts::{MountRequest, Propagation, RequestedSource};
pub use namespaces::{ContainerPid, IdRange, PodNamespaces, PodPid, Shared, Userns};
pub use pod::{
    APPARMOR_PROFILE, CgroupDriver, CgroupParent, Defaults, Dns, HandlerRules, Pod, PodMetadata, PodSecurity,
    PortMapping, PrivilegedDevices,
};
pub(crate) use process::DEFAULT_TERM;
pub use resources::Resources;
pub use security::{AppArmor, MASKED_PATHS, READONLY_PATHS, SeLinux, Seccomp};
pub use signals::StopSignal;
pub use user::{Identity, ResolvedUser, UserName, UserRequest};

use crate::error::Error;

/// The version of the runtime-spec that the specs made here follow.
const OCI_VERSION: &str = "1.2.1";

/// The runtime-spec of one container.
pub fn container_spec(inputs: &ContainerInputs<'_>) -> Result<Spec, Error> {
    let mut root = Root::default();
    root.set_path(inputs.rootfs.to_owned()).set_readonly(Some(inputs.container.security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_process(Some(process::to_oci(inputs)?))
        .set_mounts(Some(filesystems::to_oci(inputs)?))
        // The UTS namespace is the pod's, and pause has named it.
        .set_hostname(None)
        .set_annotations(Some(annotations::to_oci(inputs)))
        .set_linux(Some(linux(inputs)?));
    Ok(spec)
}

/// The Linux part.
fn linux(inputs: &ContainerInputs<'_>) -> Result<Linux, Error> {
    let security = &inputs.container.security;
    let mut resources = inputs.container.resources.to_oci(inputs.host)?;
    resources.set_devices(Some(devices::rules(inputs))).set_pids(resources::pids(inputs.defaults.pids_limit));
    let paths = |paths: &Vec<String>| (!security.privileged && !paths.is_empty()).then(|| paths.clone());
    let nodes = devices::nodes(inputs);

    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources))
        .set_cgroups_path(Some(inputs.cgroups_path.to_owned()))
        .set_namespaces(Some(namespaces::to_oci(inputs)?))
        .set_devices((!nodes.is_empty()).then_some(nodes))
        .set_seccomp(security::seccomp(inputs)?)
        .set_rootfs_propagation(filesystems::root_propagation(inputs))
        .set_masked_paths(paths(&security.masked_paths))
        .set_readonly_paths(paths(&security.readonly_paths))
        .set_mount_label(security::selinux(inputs).map(|(_, mount)| mount));
    if let Userns::Mapped { uids, gids } = &inputs.pod.namespaces.userns {
        linux.set_uid_mappings(Some(vec![uids.to_oci()])).set_gid_mappings(Some(vec![gids.to_oci()]));
    }
    Ok(linux)
}
