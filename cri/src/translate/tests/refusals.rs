//! One table of every request that is refused by its own contents, with the head of what the client reads.

use super::*;
use crate::v1::{IdMapping, NamespaceMode, SecurityProfile, UserNamespace};

/// How the smallest request is spoilt.
type Spoil = fn(&mut Fixture);

fn mount(f: &mut Fixture) -> &mut v1::Mount {
    f.container.mounts =
        vec![v1::Mount { container_path: "/c".into(), host_path: "/h".into(), ..Default::default() }];
    &mut f.container.mounts[0]
}

fn device(f: &mut Fixture) -> &mut v1::Device {
    f.container.devices = vec![v1::Device {
        container_path: "/dev/x".into(),
        host_path: "/dev/x".into(),
        permissions: "rwm".into(),
    }];
    &mut f.container.devices[0]
}

fn userns(f: &mut Fixture, mode: NamespaceMode, uids: &[(u32, u32, u32)]) {
    let map = |&(container_id, host_id, length): &_| IdMapping { container_id, host_id, length };
    f.pod_namespaces().userns_options = Some(UserNamespace {
        mode: mode.into(),
        uids: uids.iter().map(map).collect(),
        gids: vec![IdMapping { container_id: 0, host_id: 1000, length: 1 }],
    });
}

fn sysctl(f: &mut Fixture, name: &str, value: &str) {
    f.pod_linux().sysctls.insert(name.into(), value.into());
}

#[rustfmt::skip]
const POD: &[(&str, Spoil)] = &[
    ("runtime_handler: \"gvisor\" is not configured", |f| f.handler = "gvisor"),
    ("config.windows: ", |f| f.pod.windows = Some(v1::WindowsPodSandboxConfig::default())),
    ("config.metadata: must be given", |f| f.pod.metadata = None),
    ("config.metadata.name: must not be empty", |f| f.pod.metadata.as_mut().unwrap().name.clear()),
    ("config.metadata.name: ", |f| f.pod.metadata.as_mut().unwrap().name = "../x".into()),
    ("config.metadata.namespace: ", |f| f.pod.metadata.as_mut().unwrap().namespace = "a\nb".into()),
    ("config.metadata.uid: ", |f| f.pod.metadata.as_mut().unwrap().uid = "a/b".into()),
    ("config.hostname: ", |f| f.pod.hostname = "a\nb".into()),
    ("config.log_directory: ", |f| f.pod.log_directory = "var/log".into()),
    ("config.log_directory: ", |f| f.pod.log_directory = "/var/log/../../etc".into()),
    ("config.labels[\"k\"]: ", |f| { f.pod.labels.insert("k".into(), "a\nb".into()); }),
    ("config.annotations[\"k\"]: ", |f| { f.pod.annotations.insert("k".into(), "a\0".into()); }),
    ("config.dns_config.servers[0]: \"x\" is not an IP", |f| f.pod.dns_config.get_or_insert_default().servers = strings(&["x"])),
    ("config.dns_config.searches[1]: ", |f| f.pod.dns_config.get_or_insert_default().searches = strings(&["a", "b\nnameserver 1.1.1.1"])),
    ("config.dns_config.options[0]: ", |f| f.pod.dns_config.get_or_insert_default().options = strings(&["a b"])),
    ("config.port_mappings[0].host_port: -1", |f| f.pod.port_mappings = vec![v1::PortMapping { host_port: -1, ..Default::default() }]),
    ("config.port_mappings[0].container_port: 70000", |f| f.pod.port_mappings = vec![v1::PortMapping { container_port: 70_000, ..Default::default() }]),
    ("config.port_mappings[0].container_port: must be given", |f| f.pod.port_mappings = vec![v1::PortMapping { host_port: 80, ..Default::default() }]),
    ("config.port_mappings[0].protocol: 9", |f| f.pod.port_mappings = vec![v1::PortMapping { protocol: 9, ..Default::default() }]),
    ("config.port_mappings[0].host_ip: ", |f| f.pod.port_mappings = vec![v1::PortMapping { host_ip: "x".into(), ..Default::default() }]),
    ("config.linux.cgroup_parent: ", |f| f.pod_linux().cgroup_parent = "/a/../..".into()),
    ("config.linux.cgroup_parent: ", |f| f.pod_linux().cgroup_parent = "kubepods".into()),
    ("config.linux.sysctls[\"kernel.panic\"]: is not a parameter of a namespace", |f| sysctl(f, "kernel.panic", "1")),
    ("config.linux.sysctls[\"kernel/core_pattern\"]: is not a parameter", |f| sysctl(f, "kernel/core_pattern", "|/x")),
    ("config.linux.sysctls[\"net.ipv4.../../kernel\"]: is not the name", |f| sysctl(f, "net.ipv4.../../kernel", "1")),
    ("config.linux.sysctls[\"net/../kernel/panic\"]: is not the name", |f| sysctl(f, "net/../kernel/panic", "1")),
    ("config.linux.sysctls[\"net.ipv4.a\"]: must not contain the control", |f| sysctl(f, "net.ipv4.a", "1\n2")),
    ("config.linux.sysctls[\"net.ipv4.a+kernel.b\"]: is not the name", |f| sysctl(f, "net.ipv4.a+kernel.b", "1")),
    ("config.linux.sysctls[\"net.ipv4.a\"]: would change the host", |f| { sysctl(f, "net.ipv4.a", "1"); f.pod_namespaces().network = 2; }),
    ("config.linux.sysctls[\"kernel.shmmax\"]: would change the host", |f| { sysctl(f, "kernel.shmmax", "1"); f.pod_namespaces().ipc = 2; }),
    ("config.linux.security_context.run_as_group: must not be given without", |f| f.pod_security().run_as_group = int(1)),
    ("config.linux.security_context.run_as_user: -1", |f| f.pod_security().run_as_user = int(-1)),
    ("config.linux.security_context.supplemental_groups[0]: ", |f| f.pod_security().supplemental_groups = vec![1 << 32]),
    ("config.linux.security_context.supplemental_groups_policy: 7", |f| f.pod_security().supplemental_groups_policy = 7),
    ("config.linux.security_context.seccomp.profile_type: 9", |f| f.pod_security().seccomp = Some(SecurityProfile { profile_type: 9, ..Default::default() })),
    ("config.linux.security_context.selinux_options.level: ", |f| f.pod_security().selinux_options = Some(v1::SeLinuxOption { level: "s0 x".into(), ..Default::default() })),
    ("config.linux.security_context.namespace_options.network: CONTAINER", |f| f.pod_namespaces().network = 1),
    ("config.linux.security_context.namespace_options.ipc: TARGET", |f| f.pod_namespaces().ipc = 3),
    ("config.linux.security_context.namespace_options.pid: a pod has no", |f| f.pod_namespaces().pid = 3),
    ("config.linux.security_context.namespace_options.pid: 9", |f| f.pod_namespaces().pid = 9),
    ("config.linux.security_context.namespace_options.userns_options.mode: CONTAINER", |f| userns(f, NamespaceMode::Container, &[])),
    ("config.linux.security_context.namespace_options.userns_options.mode: TARGET", |f| userns(f, NamespaceMode::Target, &[])),
    ("config.linux.security_context.namespace_options.userns_options: mode NODE takes no", |f| userns(f, NamespaceMode::Node, &[])),
    ("config.linux.security_context.namespace_options.userns_options.uids: has 0 mappings", |f| userns(f, NamespaceMode::Pod, &[])),
    ("config.linux.security_context.namespace_options.userns_options.uids: has 2 mappings", |f| userns(f, NamespaceMode::Pod, &[(0, 1, 1), (1, 2, 1)])),
    ("config.linux.security_context.namespace_options.userns_options.uids[0].container_id: has to be 0", |f| userns(f, NamespaceMode::Pod, &[(1, 1000, 5)])),
    ("config.linux.security_context.namespace_options.userns_options.uids[0]: 0 ids", |f| userns(f, NamespaceMode::Pod, &[(0, 1000, 0)])),
    ("config.linux.security_context.namespace_options.userns_options.uids[0]: 10 ids", |f| userns(f, NamespaceMode::Pod, &[(0, u32::MAX - 5, 10)])),
];

#[rustfmt::skip]
const CONTAINER: &[(&str, Spoil)] = &[
    ("config.windows: ", |f| f.container.windows = Some(v1::WindowsContainerConfig::default())),
    ("config.metadata: must be given", |f| f.container.metadata = None),
    ("config.metadata.name: ", |f| f.container.metadata.as_mut().unwrap().name = "a/b".into()),
    ("config.image: must be given", |f| f.container.image = None),
    ("config.image.image: must name an image", |f| f.container.image.as_mut().unwrap().image.clear()),
    ("config.image.user_specified_image: ", |f| f.container.image.as_mut().unwrap().user_specified_image = "a\n".into()),
    ("config.command[1]: must not contain a NUL", |f| f.container.command = strings(&["a", "b\0"])),
    ("config.args[0]: ", |f| f.container.args = vec!["x".repeat(200_000)]),
    ("config.working_dir: ", |f| f.container.working_dir = "data".into()),
    ("config.envs[0]: ", |f| f.container.envs = vec![v1::KeyValue { key: "A=B".into(), value: vec![] }]),
    ("config.envs[0]: the value of \"A\" is not UTF-8", |f| f.container.envs = vec![v1::KeyValue { key: "A".into(), value: vec![0xff] }]),
    ("config.labels: must not have an empty key", |f| { f.container.labels.insert(String::new(), String::new()); }),
    ("config.log_path: \"/etc/passwd\" must be a relative", |f| f.container.log_path = "/etc/passwd".into()),
    ("config.log_path: \"../../x\" must not contain `..`", |f| f.container.log_path = "../../x".into()),
    ("config.stop_signal: 66", |f| f.container.stop_signal = 66),
    ("config.mounts[0].container_path: \"c\"", |f| mount(f).container_path = "c".into()),
    ("config.mounts[0].container_path: must not be the root", |f| mount(f).container_path = "/./".into()),
    ("config.mounts[0].container_path: \"/a/../b\"", |f| mount(f).container_path = "/a/../b".into()),
    ("config.mounts[0].host_path: must not be empty", |f| mount(f).host_path.clear()),
    ("config.mounts[0].host_path: \"h\"", |f| mount(f).host_path = "h".into()),
    ("config.mounts[0].host_path: must be empty", |f| mount(f).image = Some(v1::ImageSpec::default())),
    ("config.mounts[0].readonly: has to be set", |f| {
        let mount = mount(f);
        mount.host_path.clear();
        mount.image = Some(v1::ImageSpec { image: "models:1".into(), ..Default::default() });
    }),
    ("config.mounts[0].image.image: must name", |f| { mount(f).image = Some(v1::ImageSpec::default()); f.container.mounts[0].host_path.clear(); }),
    ("config.mounts[0].image_sub_path: goes with image only", |f| mount(f).image_sub_path = "x".into()),
    ("config.mounts[0].image_sub_path: \"../x\"", |f| {
        let m = mount(f);
        m.host_path.clear();
        m.image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
        m.image_sub_path = "../x".into();
    }),
    ("config.mounts[0].propagation: has to be private", |f| {
        let m = mount(f);
        m.host_path.clear();
        m.image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
        m.propagation = 2;
    }),
    ("config.mounts[0].propagation: 5", |f| mount(f).propagation = 5),
    ("config.mounts[0].recursive_read_only: needs readonly", |f| mount(f).recursive_read_only = true),
    ("config.mounts[0].recursive_read_only: needs private", |f| { let m = mount(f); m.recursive_read_only = true; m.readonly = true; m.propagation = 1; }),
    ("config.mounts[0].uidMappings: and gidMappings", |f| mount(f).uid_mappings = vec![IdMapping::default()]),
    ("config.mounts[0].uidMappings[0]: 0 ids", |f| { let m = mount(f); m.uid_mappings = vec![IdMapping::default()]; m.gid_mappings = vec![IdMapping::default()]; }),
    ("config.mounts[0].gidMappings[1]: overlaps an earlier", |f| {
        let m = mount(f);
        m.uid_mappings = vec![IdMapping { container_id: 0, host_id: 5, length: 5 }];
        m.gid_mappings = vec![IdMapping { container_id: 0, host_id: 5, length: 5 }, IdMapping { container_id: 9, host_id: 9, length: 1 }];
    }),
    ("config.mounts[0].uidMappings: has 341", |f| { let m = mount(f); m.uid_mappings = vec![IdMapping::default(); 341]; m.gid_mappings = vec![IdMapping::default()]; }),
    ("config.mounts[0].mount_options[0]: \"bind\" is not an option", |f| mount(f).mount_options = strings(&["bind"])),
    ("config.mounts[0].mount_options[1]: exec contradicts noexec", |f| mount(f).mount_options = strings(&["noexec", "exec"])),
    ("config.mounts[0].mount_options[0]: is said by the field readonly", |f| mount(f).mount_options = strings(&["ro"])),
    ("config.devices[0].host_path: ", |f| device(f).host_path = "/dev/../etc".into()),
    ("config.devices[0].container_path: ", |f| device(f).container_path = "dev".into()),
    ("config.devices[0]: the root is not", |f| device(f).container_path = "/".into()),
    ("config.devices[0].permissions: \"rx\"", |f| device(f).permissions = "rx".into()),
    ("config.devices[0].permissions: r is given twice", |f| device(f).permissions = "rr".into()),
    ("config.CDI_devices[0].name: ", |f| f.container.cdi_devices = vec![v1::CdiDevice { name: "gpu0".into() }]),
    ("config.CDI_devices[0].name: ", |f| f.container.cdi_devices = vec![v1::CdiDevice { name: "a/b=../c".into() }]),
    ("config.linux.security_context.privileged: needs a pod", |f| f.security().privileged = true),
    ("config.linux.security_context.run_as_group: must not be given without", |f| f.security().run_as_group = int(1)),
    ("config.linux.security_context.run_as_user: 4294967295", |f| f.security().run_as_user = int(4_294_967_295)),
    ("config.linux.security_context.run_as_group: 4294967296", |f| { f.security().run_as_user = int(1); f.security().run_as_group = int(1 << 32); }),
    ("config.linux.security_context.run_as_username: must not be given together", |f| { f.security().run_as_user = int(1); f.security().run_as_username = "a".into(); }),
    ("config.linux.security_context.run_as_username: \"a:b\"", |f| f.security().run_as_username = "a:b".into()),
    ("config.linux.security_context.run_as_username: \"1000\" is a number", |f| f.security().run_as_username = "1000".into()),
    ("config.linux.security_context.supplemental_groups[1]: -5", |f| f.security().supplemental_groups = vec![1, -5]),
    ("config.linux.security_context.supplemental_groups_policy: -1", |f| f.security().supplemental_groups_policy = -1),
    ("config.linux.security_context.capabilities.add_capabilities[0]: \"CAP_X\"", |f| f.security().capabilities = Some(v1::Capability { add_capabilities: strings(&["CAP_X"]), ..Default::default() })),
    ("config.linux.security_context.capabilities.drop_capabilities[0]: ", |f| f.security().capabilities = Some(v1::Capability { drop_capabilities: strings(&[""]), ..Default::default() })),
    ("config.linux.security_context.masked_paths[0]: ", |f| f.security().masked_paths = strings(&["proc"])),
    ("config.linux.security_context.readonly_paths[0]: ", |f| f.security().readonly_paths = strings(&["/a/../b"])),
    ("config.linux.security_context.seccomp.localhost_ref: must be given", |f| f.security().seccomp = Some(SecurityProfile { profile_type: 2, ..Default::default() })),
    ("config.linux.security_context.seccomp.localhost_ref: must be empty", |f| f.security().seccomp = Some(SecurityProfile { profile_type: 0, localhost_ref: "/x".into() })),
    ("config.linux.security_context.seccomp.localhost_ref: \"x\" must be an absolute", |f| f.security().seccomp = Some(SecurityProfile { profile_type: 2, localhost_ref: "x".into() })),
    ("config.linux.security_context.apparmor.localhost_ref: ", |f| f.security().apparmor = Some(SecurityProfile { profile_type: 2, localhost_ref: "a b".into() })),
    ("config.linux.security_context.namespace_options.network: is NODE", |f| f.namespaces().network = 2),
    ("config.linux.security_context.namespace_options.ipc: is NODE", |f| f.namespaces().ipc = 2),
    ("config.linux.security_context.namespace_options.pid: is NODE", |f| f.namespaces().pid = 2),
    ("config.linux.security_context.namespace_options.target_id: must not be empty", |f| f.namespaces().pid = 3),
    ("config.linux.security_context.namespace_options.pid: has to be TARGET", |f| f.namespaces().target_id = "c".into()),
    ("config.linux.security_context.namespace_options.userns_options: differs", |f| {
        let map = vec![IdMapping { container_id: 0, host_id: 1, length: 1 }];
        f.namespaces().userns_options = Some(UserNamespace { mode: 0, uids: map.clone(), gids: map });
    }),
    ("config.linux.resources.cpu_period: -1", |f| f.resources().cpu_period = -1),
    ("config.linux.resources.cpu_period: 999 is outside", |f| f.resources().cpu_period = 999),
    ("config.linux.resources.cpu_quota: 999 is no limit", |f| f.resources().cpu_quota = 999),
    ("config.linux.resources.cpu_quota: ", |f| f.resources().cpu_quota = i64::MIN),
    ("config.linux.resources.cpu_quota: ", |f| f.resources().cpu_quota = i64::MAX),
    ("config.linux.resources.cpu_shares: -2", |f| f.resources().cpu_shares = -2),
    ("config.linux.resources.cpu_shares: 262145", |f| f.resources().cpu_shares = 262_145),
    ("config.linux.resources.memory_limit_in_bytes: -2", |f| f.resources().memory_limit_in_bytes = -2),
    ("config.linux.resources.memory_limit_in_bytes: 1 is no limit", |f| f.resources().memory_limit_in_bytes = 1),
    ("config.linux.resources.memory_swap_limit_in_bytes: 8192 is less", |f| { f.resources().memory_limit_in_bytes = 16_384; f.resources().memory_swap_limit_in_bytes = 8192; }),
    ("config.linux.resources.memory_swap_limit_in_bytes: 8192 is less", |f| { f.resources().memory_limit_in_bytes = -1; f.resources().memory_swap_limit_in_bytes = 8192; }),
    ("config.linux.resources.oom_score_adj: 1001", |f| f.resources().oom_score_adj = 1001),
    ("config.linux.resources.oom_score_adj: ", |f| f.resources().oom_score_adj = i64::MIN),
    ("config.linux.resources.cpuset_cpus: ", |f| f.resources().cpuset_cpus = "0\n1".into()),
    ("config.linux.resources.cpuset_mems: ", |f| f.resources().cpuset_mems = "x".into()),
    ("config.linux.resources.hugepage_limits[0].page_size: ", |f| f.resources().hugepage_limits = vec![v1::HugepageLimit { page_size: "../2MB".into(), limit: 0 }]),
    ("config.linux.resources.hugepage_limits[1].page_size: is given twice", |f| f.resources().hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }; 2]),
    ("config.linux.resources.hugepage_limits[0].limit: ", |f| f.resources().hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".into(), limit: u64::MAX }]),
    ("config.linux.resources.unified[\"../x\"]: ", |f| { f.resources().unified.insert("../x".into(), "1".into()); }),
    ("config.linux.resources.unified[\"cgroup.procs\"]: belongs to the runtime", |f| { f.resources().unified.insert("cgroup.procs".into(), "1".into()); }),
    ("config.linux.resources.unified[\"memory.high\"]: ", |f| { f.resources().unified.insert("memory.high".into(), "1\0".into()); }),
];

#[test]
fn a_bad_pod_is_refused_by_field() {
    for (head, spoil) in POD {
        let mut f = fixture();
        spoil(&mut f);
        let error = f.parse_pod().expect_err(head);
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{head}");
        assert!(error.to_string().starts_with(head), "{head}\n{error}");
    }
}

#[test]
fn a_bad_container_is_refused_by_field() {
    for (head, spoil) in CONTAINER {
        let mut f = fixture();
        spoil(&mut f);
        let pod = f.parse_pod().unwrap_or_else(|error| panic!("{head}: {error}"));
        let error = Container::parse(f.container, &pod).expect_err(head);
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{head}");
        assert!(error.to_string().starts_with(head), "{head}\n{error}");
    }
}
