//! Tests of translation: a fixture here, one file per topic below.

mod identity;
mod isolation;
mod limits;
mod property;
mod refusals;
mod storage;

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxSeccomp, Mount, Process, Spec};

use runtime::plan::{Plan, PlanError};

use super::*;
use crate::v1;

/// A request and a node, each part open to change.
struct Fixture {
    defaults: Defaults,
    handler: &'static str,
    pod: v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    image: ImageDefaults,
    user: ResolvedUser,
    paths: PodPaths,
    host: HostFacts,
    /// Empty: private ones at the paths the request names.
    sources: Vec<MountSource>,
    devices: Vec<DeviceNode>,
    localhost_seccomp: Option<LinuxSeccomp>,
    apparmor_missing: Option<String>,
}

/// The smallest request there is, on an ordinary node.
fn fixture() -> Fixture {
    Fixture {
        defaults: Defaults { host_hostname: "node-1".into(), ..Defaults::default() },
        handler: "",
        pod: v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                uid: "uid-1".into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            ..Default::default()
        },
        container: v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "server".into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        },
        image: ImageDefaults {
            reference: "docker.io/library/busybox:latest".into(),
            cmd: vec!["sh".into()],
            ..ImageDefaults::default()
        },
        user: ResolvedUser::default(),
        paths: PodPaths {
            network_ns: Some("/run/p/netns".into()),
            uts_ns: Some("/proc/7/ns/uts".into()),
            ipc_ns: Some("/proc/7/ns/ipc".into()),
            pid_ns: Some("/proc/7/ns/pid".into()),
            user_ns: Some("/proc/7/ns/user".into()),
            target_pid_ns: Some("/proc/9/ns/pid".into()),
            shm: Some("/run/p/shm".into()),
            hosts: Some("/run/p/hosts".into()),
            hostname: Some("/run/p/hostname".into()),
            resolv_conf: Some("/run/p/resolv.conf".into()),
        },
        host: HostFacts::default(),
        sources: Vec::new(),
        devices: Vec::new(),
        localhost_seccomp: None,
        apparmor_missing: None,
    }
}

impl Fixture {
    fn pod_linux(&mut self) -> &mut v1::LinuxPodSandboxConfig {
        self.pod.linux.get_or_insert_default()
    }

    fn pod_security(&mut self) -> &mut v1::LinuxSandboxSecurityContext {
        self.pod_linux().security_context.get_or_insert_default()
    }

    fn pod_namespaces(&mut self) -> &mut v1::NamespaceOption {
        self.pod_security().namespace_options.get_or_insert_default()
    }

    fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.container.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut v1::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut v1::LinuxContainerResources {
        self.container.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    fn privileged(&mut self) {
        self.pod_security().privileged = true;
        self.security().privileged = true;
    }

    fn parse_pod(&self) -> Result<Pod, Error> {
        Pod::parse(self.pod.clone(), self.handler, &self.defaults)
    }

    fn parse(&self) -> Result<(Pod, Container), Error> {
        let pod = self.parse_pod()?;
        let container = Container::parse(self.container.clone(), &pod)?;
        Ok((pod, container))
    }

    fn try_spec(&self) -> Result<Spec, Error> {
        let (pod, container) = self.parse()?;
        let sources: Vec<MountSource> = match &self.sources[..] {
            [] => container
                .mounts
                .iter()
                .map(|mount| MountSource {
                    path: match &mount.source {
                        RequestedSource::Host(path) => path.clone(),
                        RequestedSource::Image { .. } => PathBuf::from("/run/p/images/0"),
                    },
                    ..MountSource::default()
                })
                .collect(),
            sources => sources.to_vec(),
        };
        container_spec(&ContainerInputs {
            ids: Ids { pod: "p1", container: "c1" },
            defaults: &self.defaults,
            pod: &pod,
            container: &container,
            image: &self.image,
            user: &self.user,
            paths: &self.paths,
            host: &self.host,
            rootfs: "/state/pods/p1/containers/c1/rootfs".as_ref(),
            cgroups_path: "/podwright/p1/c1".as_ref(),
            mount_sources: &sources,
            devices: &self.devices,
            localhost_seccomp: self.localhost_seccomp.as_ref(),
            apparmor_missing: self.apparmor_missing.as_deref(),
            selinux_level: Some("s0:c1,c2"),
        })
    }

    fn spec(&self) -> Spec {
        self.try_spec().unwrap()
    }

    /// The error's text; its field, where it has one, is the head.
    fn error(&self) -> String {
        self.try_spec().unwrap_err().to_string()
    }

    fn process(&self) -> Process {
        self.spec().process().clone().unwrap()
    }

    fn linux(&self) -> Linux {
        self.spec().linux().clone().unwrap()
    }

    fn mounts(&self) -> Vec<Mount> {
        self.spec().mounts().clone().unwrap()
    }

    fn mount(&self, destination: &str) -> Mount {
        let mounts = self.mounts();
        let found: Vec<_> =
            mounts.iter().filter(|mount| mount.destination() == &PathBuf::from(destination)).collect();
        assert_eq!(found.len(), 1, "{destination}: {found:?}");
        found[0].clone()
    }
}

/// What the engine makes of a spec.
fn plan(spec: &Spec) -> Result<Plan, PlanError> {
    Plan::from_spec(spec, &serde_json::to_value(spec).unwrap(), "/bundle".as_ref())
}

/// The options of a mount, joined.
fn options(mount: &Mount) -> String {
    mount.options().clone().unwrap_or_default().join(",")
}

/// A list of owned strings.
fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

/// A value of `Int64Value`.
#[allow(clippy::unnecessary_wraps, reason = "the fields it is written to are optional")]
fn int(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

#[test]
fn the_smallest_request_gives_containerds_container() {
    let spec = fixture().spec();
    assert_eq!(spec.version(), "1.2.1");
    assert_eq!(spec.hostname(), &None);
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_deref().unwrap(), ["sh"]);
    assert_eq!(process.no_new_privileges(), Some(false));
    assert_eq!(process.rlimits(), &None);
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.seccomp(), &None);
    assert_eq!(linux.sysctl(), &None);
    assert_eq!(linux.cgroups_path(), &Some("/podwright/p1/c1".into()));
    assert_eq!(linux.masked_paths().as_ref().unwrap().len(), MASKED_PATHS.len());
    let resources = linux.resources().as_ref().unwrap();
    assert_eq!((resources.cpu(), resources.memory(), resources.pids()), (&None, &None, &None));
    serde_json::to_string(&spec).unwrap();
}

#[test]
fn the_engine_takes_every_kind_of_container() {
    let ordinary = plan(&fixture().spec()).unwrap();
    assert_eq!(ordinary.warnings, Vec::<String>::new());
    // Every option of every mount is a flag that is known, but for those that belong to a filesystem.
    for mount in &ordinary.mounts {
        if let runtime::plan::MountSource::Filesystem { fstype, options, .. } = &mount.source {
            let keys: Vec<&str> = options.iter().map(|(key, _)| key.as_str()).collect();
            let own: &[&str] = match fstype.as_str() {
                "tmpfs" => &["mode", "size"],
                "devpts" => &["newinstance", "ptmxmode", "mode", "gid"],
                _ => &[],
            };
            assert_eq!(keys, own, "{fstype}");
        }
    }
    let mut f = fixture();
    f.privileged();
    plan(&f.spec()).unwrap();
    let mapping = v1::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 };
    f.pod_namespaces().userns_options =
        Some(v1::UserNamespace { mode: 0, uids: vec![mapping], gids: vec![mapping] });
    plan(&f.spec()).unwrap();
    f.pod_namespaces().network = v1::NamespaceMode::Node.into();
    plan(&f.spec()).unwrap();
}

#[test]
fn annotations_say_whose_container_it_is_and_pass_only_named_ones() {
    let mut f = fixture();
    f.defaults.default_handler.pod_annotations = strings(&["example.com/*", "exact"]);
    for (key, value) in [("example.com/a", "1"), ("exact", "2"), ("exactly", "3"), ("run.oci.x", "4")] {
        f.pod.annotations.insert(key.into(), value.into());
    }
    f.container.annotations.insert("io.kubernetes.cri.sandbox-id".into(), "other".into());
    f.container.annotations.insert("exact".into(), "of the container".into());
    f.defaults.default_handler.container_annotations = strings(&["io.kubernetes.*", "exact"]);
    let spec = f.spec();
    let annotations = spec.annotations().as_ref().unwrap();
    let get = |key: &str| annotations.get(key).map(String::as_str);
    assert_eq!(get("example.com/a"), Some("1"));
    assert_eq!(get("exact"), Some("of the container"));
    assert_eq!((get("exactly"), get("run.oci.x")), (None, None));
    assert_eq!(get("io.kubernetes.cri.sandbox-id"), Some("p1"));
    assert_eq!(get("io.kubernetes.cri.container-name"), Some("server"));
    assert_eq!(get("io.kubernetes.cri.sandbox-namespace"), Some("shop"));
    assert_eq!(annotations.len(), 9);
}

#[test]
fn the_configuration_is_kept_for_reports() {
    let mut f = fixture();
    f.pod.log_directory = "/var/log/pods/shop_web_uid-1/".into();
    f.container.log_path = "server/0.log".into();
    f.pod.labels.insert("app".into(), "web".into());
    f.container.stop_signal = v1::Signal::Sigusr1.into();
    let (pod, container) = f.parse().unwrap();
    assert_eq!(pod.log_path(&container), Some("/var/log/pods/shop_web_uid-1/server/0.log".into()));
    assert_eq!(pod.metadata.to_string(), "shop/web (attempt 0)");
    assert_eq!(container.metadata.to_string(), "server (attempt 0)");
    assert_eq!(pod.labels["app"], "web");
    let image = ImageDefaults { stop_signal: "SIGQUIT".into(), ..ImageDefaults::default() };
    assert_eq!(container.stop_signal(&image).to_string(), "SIGUSR1");
    f.container.stop_signal = 0;
    let (_, container) = f.parse().unwrap();
    assert_eq!(container.stop_signal(&image).number(), 3);
    assert_eq!(container.stop_signal(&ImageDefaults::default()).number(), 15);
    f.container.log_path.clear();
    let (pod, container) = f.parse().unwrap();
    assert_eq!(pod.log_path(&container), None);
}

#[test]
fn cgroup_parents_come_in_the_drivers_form() {
    let mut f = fixture();
    let path = |f: &Fixture| f.parse_pod().unwrap().cgroups_path("/podwright".as_ref(), "p1", "c1");
    assert_eq!(path(&f), PathBuf::from("/podwright/p1/c1"));
    f.pod_linux().cgroup_parent = "/kubepods/besteffort/pod1/".into();
    assert_eq!(path(&f), PathBuf::from("/kubepods/besteffort/pod1/c1"));
    f.pod_linux().cgroup_parent = "kubepods-besteffort-pod1.slice".into();
    assert!(f.parse_pod().unwrap_err().to_string().contains("the driver here is cgroupfs"));
    f.defaults.cgroup_driver = CgroupDriver::Systemd;
    assert_eq!(path(&f), PathBuf::from("kubepods-besteffort-pod1.slice:podwright:c1"));
    f.pod_linux().cgroup_parent = "/kubepods.slice/kubepods-pod1.slice".into();
    assert_eq!(path(&f), PathBuf::from("kubepods-pod1.slice:podwright:c1"));
    for parent in ["/kubepods/pod1", "a:b.slice", "-x.slice", ".slice", "../x.slice", "a--b.slice"] {
        f.pod_linux().cgroup_parent = parent.into();
        assert!(f.parse_pod().unwrap_err().to_string().starts_with("config.linux.cgroup_parent"), "{parent}");
    }
    f.pod_linux().cgroup_parent.clear();
    assert_eq!(path(&f), PathBuf::from("system.slice:podwright:c1"));
}

#[test]
fn resolv_conf_is_the_requests() {
    let mut f = fixture();
    assert_eq!(f.parse_pod().unwrap().dns, None);
    f.pod.dns_config = Some(v1::DnsConfig::default());
    assert_eq!(f.parse_pod().unwrap().dns, None);
    f.pod.dns_config = Some(v1::DnsConfig {
        servers: strings(&["10.0.0.10", "fe80::1%eth0"]),
        searches: strings(&["shop.svc.cluster.local", "cluster.local"]),
        options: strings(&["ndots:5"]),
    });
    let dns = f.parse_pod().unwrap().dns.unwrap();
    assert_eq!(
        dns.resolv_conf(),
        "search shop.svc.cluster.local cluster.local\nnameserver 10.0.0.10\nnameserver fe80::1%eth0\n\
         options ndots:5\n"
    );
}

#[test]
fn port_mappings_are_ports() {
    let mut f = fixture();
    let mapping = |container_port, host_port, host_ip: &str| v1::PortMapping {
        protocol: 1,
        container_port,
        host_port,
        host_ip: host_ip.into(),
    };
    f.pod.port_mappings = vec![mapping(53, 5353, "127.0.0.1"), mapping(80, 0, "")];
    let ports = f.parse_pod().unwrap().port_mappings;
    assert_eq!(ports[0].protocol, v1::Protocol::Udp);
    assert_eq!((ports[0].container_port, ports[0].host_port), (53, Some(5353)));
    assert_eq!(ports[0].host_ip, Some("127.0.0.1".parse().unwrap()));
    assert_eq!((ports[1].host_port, ports[1].host_ip), (None, None));
}
