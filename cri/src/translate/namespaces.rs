//! Which namespaces a pod and its containers get.
//!
//! ```text
//!   request says   network        pid                 ipc            uts                cgroup        user
//!   POD            the pod's      the pod's (pause)   the pod's      goes with network  own on v2     the pod's
//!   NODE           the host's     the host's          the host's     goes with network                none
//!   CONTAINER      refused        its own             refused                                         refused
//!   TARGET         refused        another container's refused                                         refused
//! ```
//!
//! A container that says POD gets what its pod has, so POD in a pod of the host's network is the host's. A
//! container never gets more of the host than its pod.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType};
use serde::{Deserialize, Serialize};

use super::inputs::{CgroupVersion, ContainerInputs};
use crate::check;
use crate::error::Error;
use crate::v1::{self, NamespaceMode};

/// Whose network or IPC namespace a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shared {
    /// One of the pod's own.
    Pod,
    /// The host's.
    Node,
}

/// Whose PID namespace the containers of a pod use unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPid {
    /// One for all of them, with pause as its PID 1.
    Pod,
    /// One each.
    Container,
    /// The host's.
    Node,
}

/// Whose PID namespace one container uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPid {
    /// Pause's.
    Pod,
    /// Its own.
    Container,
    /// The host's.
    Node,
    /// That of the pod's container with this id.
    Target(String),
}

/// The user namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Userns {
    /// The host's.
    None,
    /// One of the pod's own.
    Mapped {
        /// Its uid map: one run that starts at 0 inside.
        uids: IdRange,
        /// Its gid map, likewise.
        gids: IdRange,
    },
}

/// A run of ids of a map. See `user_namespaces(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many; at least one, and neither end passes the last id.
    pub length: u32,
}

impl IdRange {
    /// Whether some id is in both, on either side.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let meet = |a: u32, b: u32| {
            u64::from(a) < u64::from(b) + u64::from(other.length)
                && u64::from(b) < u64::from(a) + u64::from(self.length)
        };
        meet(self.container, other.container) || meet(self.host, other.host)
    }

    /// The range as the runtime-spec writes it.
    pub(super) fn to_oci(self) -> LinuxIdMapping {
        let mapping = LinuxIdMappingBuilder::default()
            .container_id(self.container)
            .host_id(self.host)
            .size(self.length);
        mapping.build().expect("every field has a default")
    }
}

/// A pod's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNamespaces {
    /// Network; the UTS namespace goes with it.
    pub network: Shared,
    /// PID.
    pub pid: PodPid,
    /// IPC.
    pub ipc: Shared,
    /// User.
    pub userns: Userns,
}

impl PodNamespaces {
    /// Whether containers use the host's network, and with it the host's UTS namespace.
    pub fn host_network(&self) -> bool {
        self.network == Shared::Node
    }
}

/// The pod's part of `namespace_options`; absent options are the protocol's zero: POD everywhere.
pub(super) fn parse_pod(field: &str, options: Option<v1::NamespaceOption>) -> Result<PodNamespaces, Error> {
    let options = options.unwrap_or_default();
    let pid = match mode(&format!("{field}.pid"), options.pid)? {
        NamespaceMode::Pod => PodPid::Pod,
        NamespaceMode::Container => PodPid::Container,
        NamespaceMode::Node => PodPid::Node,
        NamespaceMode::Target => {
            return Err(Error::invalid(format!("{field}.pid"), "a pod has no container to target yet"));
        }
    };
    Ok(PodNamespaces {
        network: shared(&format!("{field}.network"), options.network)?,
        pid,
        ipc: shared(&format!("{field}.ipc"), options.ipc)?,
        userns: userns(&format!("{field}.userns_options"), options.userns_options)?,
    })
}

/// The container's part of `namespace_options`, checked against its pod's; gives its PID namespace.
pub(super) fn parse_container(
    field: &str,
    options: Option<v1::NamespaceOption>,
    pod: &PodNamespaces,
) -> Result<ContainerPid, Error> {
    let Some(options) = options else {
        return Ok(match pod.pid {
            PodPid::Pod => ContainerPid::Pod,
            PodPid::Container => ContainerPid::Container,
            PodPid::Node => ContainerPid::Node,
        });
    };
    let of_host = [("network", options.network, pod.network), ("ipc", options.ipc, pod.ipc)];
    for (kind, asked, has) in of_host {
        let field = format!("{field}.{kind}");
        if shared(&field, asked)? == Shared::Node && has == Shared::Pod {
            return Err(Error::invalid(field, "is NODE, but the pod has a namespace of its own"));
        }
    }
    if options.userns_options.is_some()
        && userns(&format!("{field}.userns_options"), options.userns_options)? != pod.userns
    {
        return Err(Error::invalid(format!("{field}.userns_options"), "differs from the pod's"));
    }
    let target_field = format!("{field}.target_id");
    let field = format!("{field}.pid");
    let target = !options.target_id.is_empty();
    match mode(&field, options.pid)? {
        NamespaceMode::Target => {
            let id = check::id(&target_field, &options.target_id)?;
            Ok(ContainerPid::Target(id.to_owned()))
        }
        _ if target => Err(Error::invalid(field, "has to be TARGET where target_id is given")),
        NamespaceMode::Container => Ok(ContainerPid::Container),
        NamespaceMode::Pod | NamespaceMode::Node if pod.pid == PodPid::Node => Ok(ContainerPid::Node),
        NamespaceMode::Pod => Ok(ContainerPid::Pod),
        NamespaceMode::Node => Err(Error::invalid(field, "is NODE, but the pod is not in the host's")),
    }
}

/// A mode that is one of the four.
fn mode(field: &str, raw: i32) -> Result<NamespaceMode, Error> {
    NamespaceMode::try_from(raw).map_err(|_| Error::invalid(field, format!("{raw} is not a namespace mode")))
}

/// A mode that is POD or NODE.
fn shared(field: &str, raw: i32) -> Result<Shared, Error> {
    match mode(field, raw)? {
        NamespaceMode::Pod => Ok(Shared::Pod),
        NamespaceMode::Node => Ok(Shared::Node),
        other => {
            Err(Error::invalid(field, format!("{} is not possible here: POD or NODE", other.as_str_name())))
        }
    }
}

/// The user namespace: POD with one map each for users and groups, or NODE with none.
fn userns(field: &str, options: Option<v1::UserNamespace>) -> Result<Userns, Error> {
    let Some(options) = options else { return Ok(Userns::None) };
    match mode(&format!("{field}.mode"), options.mode)? {
        NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(Userns::None),
        NamespaceMode::Node => Err(Error::invalid(field, "mode NODE takes no mappings")),
        NamespaceMode::Pod => Ok(Userns::Mapped {
            uids: only_range(&format!("{field}.uids"), &options.uids)?,
            gids: only_range(&format!("{field}.gids"), &options.gids)?,
        }),
        other => {
            let reason = format!("{} is not possible here: POD or NODE", other.as_str_name());
            Err(Error::invalid(format!("{field}.mode"), reason))
        }
    }
}

/// Exactly one range, and one that maps id 0: without a root nothing can be set up inside.
fn only_range(field: &str, mappings: &[v1::IdMapping]) -> Result<IdRange, Error> {
    let [mapping] = mappings else {
        let reason = format!("has {} mappings; exactly one is supported", mappings.len());
        return Err(Error::invalid(field, reason));
    };
    let range = range(&format!("{field}[0]"), *mapping)?;
    if range.container != 0 {
        return Err(Error::invalid(format!("{field}[0].container_id"), "has to be 0: root must be mapped"));
    }
    Ok(range)
}

/// A range that is not empty and whose ends are ids.
pub(super) fn range(field: &str, mapping: v1::IdMapping) -> Result<IdRange, Error> {
    let v1::IdMapping { host_id, container_id, length } = mapping;
    // The last of the 2^32 values is no id: it means "unchanged" to the kernel.
    let fits = |first: u32| first.checked_add(length).is_some();
    if length == 0 || !fits(host_id) || !fits(container_id) {
        let reason = format!("{length} ids from {container_id} to {host_id} are not a range of ids");
        return Err(Error::invalid(field, reason));
    }
    Ok(IdRange { container: container_id, host: host_id, length })
}

/// The namespaces of the spec, in the order they are listed in the runtime-spec.
pub(super) fn to_oci(inputs: &ContainerInputs<'_>) -> Result<Vec<LinuxNamespace>, Error> {
    let pod = &inputs.pod.namespaces;
    let paths = &inputs.paths;
    let mut namespaces = vec![made(LinuxNamespaceType::Mount)];
    match &inputs.container.pid {
        ContainerPid::Pod => {
            namespaces.push(joined(inputs, LinuxNamespaceType::Pid, paths.pid_ns.as_deref())?);
        }
        ContainerPid::Target(_) => {
            namespaces.push(joined(inputs, LinuxNamespaceType::Pid, paths.target_pid_ns.as_deref())?);
        }
        ContainerPid::Container => namespaces.push(made(LinuxNamespaceType::Pid)),
        ContainerPid::Node => {}
    }
    if pod.network == Shared::Pod {
        namespaces.push(joined(inputs, LinuxNamespaceType::Network, paths.network_ns.as_deref())?);
        namespaces.push(joined(inputs, LinuxNamespaceType::Uts, paths.uts_ns.as_deref())?);
    }
    if pod.ipc == Shared::Pod {
        namespaces.push(joined(inputs, LinuxNamespaceType::Ipc, paths.ipc_ns.as_deref())?);
    }
    if pod.userns != Userns::None {
        namespaces.push(joined(inputs, LinuxNamespaceType::User, paths.user_ns.as_deref())?);
    }
    // As containerd does: on v1 a container sees its own cgroup by a bind mount, without a namespace, and a
    // privileged one manages the host's cgroups.
    if inputs.host.cgroup == CgroupVersion::V2 && !inputs.container.security.privileged {
        namespaces.push(made(LinuxNamespaceType::Cgroup));
    }
    Ok(namespaces)
}

/// A new namespace.
fn made(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace
}

/// A namespace that exists. Its absence is a mistake of the daemon's: the pod's own process keeps it.
fn joined(
    inputs: &ContainerInputs<'_>,
    kind: LinuxNamespaceType,
    path: Option<&Path>,
) -> Result<LinuxNamespace, Error> {
    let path: PathBuf = path.map(Path::to_owned).ok_or_else(|| Error::FailedPrecondition {
        what: "pod sandbox",
        id: inputs.ids.pod.to_owned(),
        reason: format!(
            "has no {kind} namespace that container {} could join",
            inputs.container.metadata.name
        ),
    })?;
    let mut namespace = made(kind);
    namespace.set_path(Some(path));
    Ok(namespace)
}
