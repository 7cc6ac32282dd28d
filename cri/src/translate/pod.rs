//! The checked pod: `PodSandboxConfig`, parsed once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::namespaces::{self, PodNamespaces};
use super::resources::Resources;
use super::security::{AppArmor, SeLinux, Seccomp};
use super::user::UserRequest;
use super::{Container, security, sysctls};
use crate::check;
use crate::error::Error;
use crate::v1;

/// The name of the runtime's default AppArmor profile.
pub const APPARMOR_PROFILE: &str = "podwright-default";

/// What the node's configuration decides for every pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The host's name: what a pod without a hostname of its own has.
    pub host_hostname: String,
    /// The handler of pods that name none.
    pub default_handler: HandlerRules,
    /// Handlers of `RunPodSandbox` by name.
    pub handlers: BTreeMap<String, HandlerRules>,
    /// Who makes cgroups; decides the form of a pod's `cgroup_parent`.
    pub cgroup_driver: CgroupDriver,
    /// Let every user bind ports below 1024 in pods with a network of their own.
    pub unprivileged_ports: bool,
    /// Let every group send ICMP echo in pods with a network of their own.
    pub unprivileged_icmp: bool,
    /// `pids.max` of each container; None: no limit.
    pub pids_limit: Option<u64>,
    /// The AppArmor profile that `RuntimeDefault` stands for.
    pub apparmor_profile: String,
}

/// What a RuntimeClass handler decides for its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandlerRules {
    /// Annotations of pods that are copied into the spec: keys, in which `*` stands for anything. The engine acts on none; hooks and
    /// tools may read them.
    pub pod_annotations: Vec<String>,
    /// The same of containers.
    pub container_annotations: Vec<String>,
    /// What privileged containers get of the host's devices.
    pub privileged_devices: PrivilegedDevices,
    /// Containers may make cgroups below their own: cgroup v2 only.
    pub cgroup_writable: bool,
}

/// What privileged containers get of the host's devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrivilegedDevices {
    /// Every node, and every access.
    #[default]
    Nodes,
    /// No node, but every access to those that are made.
    AccessOnly,
    /// What any other container gets.
    None,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            host_hostname: "localhost".to_owned(),
            default_handler: HandlerRules::default(),
            handlers: BTreeMap::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            unprivileged_ports: true,
            unprivileged_icmp: true,
            pids_limit: None,
            apparmor_profile: APPARMOR_PROFILE.to_owned(),
        }
    }
}

impl Defaults {
    /// The rules of a handler. One that is not configured any more has the default one's.
    pub fn handler(&self, name: &str) -> &HandlerRules {
        self.handlers.get(name).unwrap_or(&self.default_handler)
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime, by mkdir.
    Cgroupfs,
    /// systemd, asked over D-Bus.
    Systemd,
}

/// A pod as the daemon works with it: every string checked, every number in range, every mode known.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Name, uid, namespace and attempt.
    pub metadata: PodMetadata,
    /// Reported back and selected by.
    pub labels: BTreeMap<String, String>,
    /// Reported back unchanged.
    pub annotations: BTreeMap<String, String>,
    /// The handler asked for; empty is the default one.
    pub runtime_handler: String,
    /// What the pod's UTS namespace, /etc/hostname and $HOSTNAME say; never empty.
    pub hostname: String,
    /// Where the containers' log paths start; None: no container of this pod has a log file.
    pub log_directory: Option<PathBuf>,
    /// resolv.conf of the request; None: a copy of the host's.
    pub dns: Option<Dns>,
    /// Host ports, for pods with a network of their own.
    pub port_mappings: Vec<PortMapping>,
    /// Whose namespaces the pod uses.
    pub namespaces: PodNamespaces,
    /// The cgroup above the containers'; None: the runtime's own.
    pub cgroup_parent: Option<CgroupParent>,
    /// Kernel parameters of the pod's own namespaces, by dotted name, the node's defaults among them.
    pub sysctls: BTreeMap<String, String>,
    /// What the pod as a whole may do.
    pub security: PodSecurity,
    /// The sum over its containers, where the client says so.
    pub resources: Option<Resources>,
    /// What the runtime costs on top, where the client says so.
    pub overhead: Option<Resources>,
}

/// What tells one sandbox from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodMetadata {
    /// The pod's name.
    pub name: String,
    /// The pod's uid; may be empty.
    pub uid: String,
    /// The Kubernetes namespace; may be empty.
    pub namespace: String,
    /// Counts sandboxes of the same pod.
    pub attempt: u32,
}

impl std::fmt::Display for PodMetadata {
    /// `namespace/name (attempt 1)`, for messages.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} (attempt {})", self.namespace, self.name, self.attempt)
    }
}

/// Lines of `resolv.conf(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Addresses, an IPv6 one perhaps with its zone.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Dns {
    /// The file itself.
    pub fn resolv_conf(&self) -> String {
        let servers = self.servers.iter().map(|server| format!("nameserver {server}\n"));
        let list = |word: &str, list: &[String]| match list {
            [] => String::new(),
            list => format!("{word} {}\n", list.join(" ")),
        };
        list("search", &self.searches) + &servers.collect::<String>() + &list("options", &self.options)
    }
}

/// One port of the pod that the host leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// TCP, UDP or SCTP.
    pub protocol: v1::Protocol,
    /// In the pod.
    pub container_port: u16,
    /// On the host; None: not exposed there.
    pub host_port: Option<u16>,
    /// On which of the host's addresses; None: all.
    pub host_ip: Option<IpAddr>,
}

/// The cgroup above a pod's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupParent {
    /// A path below each hierarchy's root, absolute, such as `/kubepods/burstable/pod1`.
    Path(PathBuf),
    /// A systemd slice, such as `kubepods-burstable-pod1.slice`.
    Slice(String),
}

/// What a pod as a whole may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSecurity {
    /// Whether privileged containers are allowed in it.
    pub privileged: bool,
    /// For pause.
    pub seccomp: Seccomp,
    /// For pause.
    pub apparmor: AppArmor,
    /// For pause, and for containers that give none.
    pub selinux: Option<SeLinux>,
    /// For pause.
    pub user: UserRequest,
    /// For pause, which has no root to write to anyway; reported back.
    pub readonly_rootfs: bool,
}

impl Pod {
    /// Parses the configuration of `RunPodSandbox`.
    pub fn parse(
        config: v1::PodSandboxConfig,
        runtime_handler: &str,
        defaults: &Defaults,
    ) -> Result<Self, Error> {
        if !runtime_handler.is_empty() && !defaults.handlers.contains_key(runtime_handler) {
            let reason = format!(
                "{} is not configured here: a handler is a table [runtime.handlers.NAME] of the configuration",
                check::shown(runtime_handler)
            );
            return Err(Error::invalid("runtime_handler", reason));
        }
        if config.windows.is_some() {
            return Err(Error::invalid("config.windows", "this is a Linux node"));
        }
        let linux = config.linux.unwrap_or_default();
        let (namespaces, security) = parse_security(linux.security_context.unwrap_or_default())?;
        Ok(Self {
            metadata: parse_metadata(config.metadata)?,
            labels: check::labels("config.labels", config.labels)?,
            annotations: check::annotations("config.annotations", config.annotations)?,
            runtime_handler: runtime_handler.to_owned(),
            hostname: parse_hostname(&config.hostname, defaults)?,
            log_directory: match config.log_directory.as_str() {
                "" => None,
                path => Some(check::absolute_path("config.log_directory", path)?),
            },
            // An empty configuration is none, as with containerd: no pod wants an empty file.
            dns: config
                .dns_config
                .filter(|dns| *dns != v1::DnsConfig::default())
                .map(parse_dns)
                .transpose()?,
            port_mappings: parse_ports(config.port_mappings)?,
            cgroup_parent: parse_cgroup_parent(&linux.cgroup_parent, defaults.cgroup_driver)?,
            sysctls: sysctls::parse("config.linux.sysctls", linux.sysctls, &namespaces, defaults)?,
            resources: linux
                .resources
                .map(|raw| Resources::parse("config.linux.resources", raw))
                .transpose()?,
            overhead: linux.overhead.map(|raw| Resources::parse("config.linux.overhead", raw)).transpose()?,
            namespaces,
            security,
        })
    }

    /// Where a container of this pod logs to; None: nowhere.
    pub fn log_path(&self, container: &Container) -> Option<PathBuf> {
        Some(self.log_directory.as_deref()?.join(container.log_path.as_deref()?))
    }

    /// `linux.cgroupsPath` of a container: below the pod's parent or, without one, below the runtime's own `root`
    /// (a path such as `/podwright`). The systemd form is `slice:prefix:name`, and there is always a slice.
    pub fn cgroups_path(&self, root: &Path, pod_id: &str, container_id: &str) -> PathBuf {
        match &self.cgroup_parent {
            Some(CgroupParent::Path(parent)) => parent.join(container_id),
            Some(CgroupParent::Slice(slice)) => format!("{slice}:podwright:{container_id}").into(),
            None => root.join(pod_id).join(container_id),
        }
    }
}

/// `config.metadata`: the name is what everything else refers to.
fn parse_metadata(metadata: Option<v1::PodSandboxMetadata>) -> Result<PodMetadata, Error> {
    let metadata = metadata.ok_or_else(|| Error::invalid("config.metadata", "must be given"))?;
    Ok(PodMetadata {
        name: check::name("config.metadata.name", &metadata.name)?,
        uid: check::optional_name("config.metadata.uid", &metadata.uid)?,
        namespace: check::optional_name("config.metadata.namespace", &metadata.namespace)?,
        attempt: metadata.attempt,
    })
}

/// An absent hostname is the host's, as with containerd; crictl's samples have none.
fn parse_hostname(hostname: &str, defaults: &Defaults) -> Result<String, Error> {
    if hostname.is_empty() {
        return Ok(defaults.host_hostname.clone());
    }
    check::hostname("config.hostname", hostname)
}

/// `config.dns_config`.
fn parse_dns(dns: v1::DnsConfig) -> Result<Dns, Error> {
    let words = |kind: &str, list: Vec<String>| {
        let field = format!("config.dns_config.{kind}");
        let list = check::list(&field, list)?;
        let word = |(i, word): (usize, &String)| check::resolver_word(&format!("{field}[{i}]"), word);
        list.iter().enumerate().map(word).collect::<Result<Vec<_>, _>>()
    };
    let servers = words("servers", dns.servers)?;
    for (i, server) in servers.iter().enumerate() {
        let address = server.split_once('%').map_or(server.as_str(), |(address, _zone)| address);
        check::ip(&format!("config.dns_config.servers[{i}]"), address)?;
    }
    Ok(Dns { servers, searches: words("searches", dns.searches)?, options: words("options", dns.options)? })
}

/// `config.port_mappings`.
fn parse_ports(mappings: Vec<v1::PortMapping>) -> Result<Vec<PortMapping>, Error> {
    let mappings = check::list("config.port_mappings", mappings)?;
    let parse = |(i, mapping): (usize, v1::PortMapping)| {
        let field = format!("config.port_mappings[{i}]");
        let protocol = v1::Protocol::try_from(mapping.protocol).map_err(|_| {
            let reason = format!("{} is not a protocol: TCP, UDP or SCTP", mapping.protocol);
            Error::invalid(format!("{field}.protocol"), reason)
        })?;
        let container_port = check::port(&format!("{field}.container_port"), mapping.container_port)?;
        let host_port = check::port(&format!("{field}.host_port"), mapping.host_port)?;
        if host_port != 0 && container_port == 0 {
            return Err(Error::invalid(format!("{field}.container_port"), "must be given with a host port"));
        }
        Ok(PortMapping {
            protocol,
            container_port,
            host_port: (host_port != 0).then_some(host_port),
            host_ip: match mapping.host_ip.as_str() {
                "" => None,
                address => Some(check::ip(&format!("{field}.host_ip"), address)?),
            },
        })
    };
    mappings.into_iter().enumerate().map(parse).collect()
}

/// `config.linux.cgroup_parent`, whose form goes with the driver that kubelet was told of.
fn parse_cgroup_parent(parent: &str, driver: CgroupDriver) -> Result<Option<CgroupParent>, Error> {
    let field = "config.linux.cgroup_parent";
    if parent.is_empty() {
        // A path of our own would lie across systemd's tree; what names no slice is in systemd's default one.
        return Ok((driver == CgroupDriver::Systemd).then(|| CgroupParent::Slice("system.slice".to_owned())));
    }
    let slice = Path::new(parent).extension().is_some_and(|extension| extension == "slice");
    match driver {
        CgroupDriver::Cgroupfs if slice => {
            let reason =
                format!("{} is a systemd slice, but the driver here is cgroupfs", check::shown(parent));
            Err(Error::invalid(field, reason))
        }
        CgroupDriver::Cgroupfs => match check::absolute_path(field, parent)? {
            root if root == Path::new("/") => Ok(None),
            path => Ok(Some(CgroupParent::Path(path))),
        },
        CgroupDriver::Systemd if !slice => {
            let reason = format!(
                "{} is not a systemd slice such as a-b.slice, but the driver is systemd",
                check::shown(parent)
            );
            Err(Error::invalid(field, reason))
        }
        CgroupDriver::Systemd => {
            // kubelet gives the slice's own name; a path that ends in it means the same.
            let name = parent.rsplit('/').next().unwrap_or(parent);
            check::absolute_path(field, &format!("/{}", parent.trim_start_matches('/')))?;
            check::name(field, name)?;
            let unit = PathBuf::from(format!("{name}:podwright:x"));
            let taken =
                runtime::cgroup::CgroupPath::parse(Some(&unit), "x", runtime::cgroup::Driver::Systemd);
            if name.starts_with('-') || taken.is_err() {
                let reason = format!("{} is not the name of a slice", check::shown(name));
                return Err(Error::invalid(field, reason));
            }
            Ok(Some(CgroupParent::Slice(name.to_owned())))
        }
    }
}

/// `config.linux.security_context`.
fn parse_security(raw: v1::LinuxSandboxSecurityContext) -> Result<(PodNamespaces, PodSecurity), Error> {
    let field = "config.linux.security_context";
    let namespaces = namespaces::parse_pod(&format!("{field}.namespace_options"), raw.namespace_options)?;
    let user = UserRequest::parse(field, raw.run_as_user, raw.run_as_group, "", raw.supplemental_groups)?
        .with_policy(field, raw.supplemental_groups_policy)?;
    #[allow(deprecated, reason = "clients older than the typed field still send the string")]
    let seccomp_path = raw.seccomp_profile_path;
    let security = PodSecurity {
        privileged: raw.privileged,
        seccomp: security::parse_seccomp(field, raw.seccomp, &seccomp_path)?,
        apparmor: security::parse_apparmor(field, raw.apparmor, "")?,
        selinux: security::parse_selinux(field, raw.selinux_options)?,
        user,
        readonly_rootfs: raw.readonly_rootfs,
    };
    Ok((namespaces, security))
}
