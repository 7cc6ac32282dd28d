//! Whatever a client sends is answered: with an error that names a field, or with a spec that serialises.

use std::collections::HashMap;

use proptest::collection::{hash_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Text with a liking for what hurts.
fn text() -> BoxedStrategy<String> {
    prop_oneof![
        4 => Just(String::new()),
        4 => select(vec![
            "web", "busybox", "/data", "/etc/hosts", "/dev", "a/b.log", "0-3", "2MB", "ALL", "NET_ADMIN",
            "kernel.shmmax", "net.ipv4.x", "memory.high", "10.0.0.1", "rw", "noexec", "/kubepods/pod1",
            "c1", "nobody", "1000", "s0:c1", "vendor.com/gpu=0", "..", "/..", "../../etc", "\0", "a\nb",
            "/a/../../b", "\u{1b}[2J", "-1", "99999999999999999999",
        ])
        .prop_map(str::to_owned),
        2 => any::<String>(),
        1 => (0_usize..300_000).prop_map(|length| "x".repeat(length)),
    ]
    .boxed()
}

/// Numbers with a liking for edges.
fn number() -> BoxedStrategy<i64> {
    prop_oneof![
        4 => Just(0),
        3 => select(vec![1, -1, 2, 1000, 4096, 100_000, 262_144, -1001, i64::from(u32::MAX), i64::MIN, i64::MAX]),
        2 => any::<i64>(),
    ].boxed()
}

/// Enum values, legal ones mostly.
fn mode() -> BoxedStrategy<i32> {
    prop_oneof![8 => 0..4_i32, 1 => any::<i32>()].boxed()
}

fn texts() -> BoxedStrategy<Vec<String>> {
    vec(text(), 0..3).boxed()
}

fn map() -> BoxedStrategy<HashMap<String, String>> {
    hash_map(text(), text(), 0..3).boxed()
}

fn int64() -> BoxedStrategy<Option<v1::Int64Value>> {
    option::of(number().prop_map(|value| v1::Int64Value { value })).boxed()
}

fn image() -> BoxedStrategy<v1::ImageSpec> {
    (text(), text())
        .prop_map(|(image, user_specified_image)| v1::ImageSpec {
            image,
            user_specified_image,
            ..Default::default()
        })
        .boxed()
}

prop_compose! {
    fn resources()(
        numbers in vec(number(), 6),
        cpuset_cpus in text(),
        cpuset_mems in text(),
        huge in vec((text(), any::<u64>()), 0..3),
        unified in map(),
    ) -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            cpu_period: numbers[0],
            cpu_quota: numbers[1],
            cpu_shares: numbers[2],
            memory_limit_in_bytes: numbers[3],
            oom_score_adj: numbers[4],
            cpuset_cpus,
            cpuset_mems,
            hugepage_limits:
                huge.into_iter().map(|(page_size, limit)| v1::HugepageLimit { page_size, limit }).collect(),
            unified,
            memory_swap_limit_in_bytes: numbers[5],
        }
    }
}

fn mappings() -> BoxedStrategy<Vec<v1::IdMapping>> {
    let one = (any::<u32>(), prop_oneof![Just(0), any::<u32>()], any::<u32>());
    vec(one.prop_map(|(host_id, container_id, length)| v1::IdMapping { host_id, container_id, length }), 0..3)
        .boxed()
}

prop_compose! {
    fn namespaces()(
        modes in vec(mode(), 4),
        target_id in text(),
        userns in option::of((mappings(), mappings())),
    ) -> v1::NamespaceOption {
        v1::NamespaceOption {
            network: modes[0],
            pid: modes[1],
            ipc: modes[2],
            target_id,
            userns_options: userns.map(|(uids, gids)| v1::UserNamespace { mode: modes[3], uids, gids }),
        }
    }
}

fn profile() -> BoxedStrategy<Option<v1::SecurityProfile>> {
    option::of(
        (mode(), text())
            .prop_map(|(profile_type, localhost_ref)| v1::SecurityProfile { profile_type, localhost_ref }),
    )
    .boxed()
}

fn selinux() -> BoxedStrategy<Option<v1::SeLinuxOption>> {
    option::of(vec(text(), 4).prop_map(|parts| v1::SeLinuxOption {
        user: parts[0].clone(),
        role: parts[1].clone(),
        r#type: parts[2].clone(),
        level: parts[3].clone(),
    }))
    .boxed()
}

prop_compose! {
    fn security()(
        (capabilities, privileged, namespace_options) in (
            option::of(vec(texts(), 3)),
            any::<bool>(),
            option::weighted(0.3, namespaces().boxed()),
        ),
        (selinux_options, seccomp, apparmor) in (selinux(), profile(), profile()),
        (run_as_user, run_as_group, run_as_username) in (int64(), int64(), text()),
        (supplemental_groups, supplemental_groups_policy) in (vec(number(), 0..3), mode()),
        (readonly_rootfs, no_new_privs) in any::<(bool, bool)>(),
        (masked_paths, readonly_paths) in (texts(), texts()),
    ) -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext {
            capabilities: capabilities.map(|lists| v1::Capability {
                add_capabilities: lists[0].clone(),
                drop_capabilities: lists[1].clone(),
                add_ambient_capabilities: lists[2].clone(),
            }),
            privileged,
            namespace_options,
            selinux_options,
            run_as_user,
            run_as_group,
            run_as_username,
            readonly_rootfs,
            supplemental_groups,
            supplemental_groups_policy,
            no_new_privs,
            masked_paths,
            readonly_paths,
            seccomp,
            apparmor,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn mount()(
        (container_path, host_path, image_sub_path) in (text(), text(), text()),
        (readonly, selinux_relabel, recursive_read_only) in any::<(bool, bool, bool)>(),
        propagation in mode(),
        (uid_mappings, gid_mappings) in (mappings(), mappings()),
        image in option::weighted(0.2, image()),
        mount_options in texts(),
    ) -> v1::Mount {
        v1::Mount {
            container_path,
            host_path,
            readonly,
            selinux_relabel,
            propagation,
            uid_mappings,
            gid_mappings,
            recursive_read_only,
            image,
            image_sub_path,
            mount_options,
        }
    }
}

prop_compose! {
    fn container()(
        (name, attempt, image) in (text(), any::<u32>(), option::weighted(0.9, image())),
        (command, args, working_dir, log_path) in (texts(), texts(), text(), text()),
        envs in vec((text(), vec(any::<u8>(), 0..20)), 0..3),
        mounts in vec(mount().boxed(), 0..3),
        devices in vec(vec(text(), 3), 0..2),
        (labels, annotations) in (map(), map()),
        (stdin, stdin_once, tty) in any::<(bool, bool, bool)>(),
        cdi in texts(),
        stop_signal in prop_oneof![0..70_i32, any::<i32>()],
        linux in option::of((option::of(resources().boxed()), option::of(security().boxed()))),
    ) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name, attempt }),
            image,
            command,
            args,
            working_dir,
            envs: envs.into_iter().map(|(key, value)| v1::KeyValue { key, value }).collect(),
            mounts,
            devices: devices
                .into_iter()
                .map(|parts| v1::Device {
                    container_path: parts[0].clone(),
                    host_path: parts[1].clone(),
                    permissions: parts[2].clone(),
                })
                .collect(),
            labels,
            annotations,
            log_path,
            stdin,
            stdin_once,
            tty,
            linux: linux.map(|(resources, security_context)| v1::LinuxContainerConfig {
                resources,
                security_context,
            }),
            cdi_devices: cdi.into_iter().map(|name| v1::CdiDevice { name }).collect(),
            stop_signal,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn pod()(
        names in vec(text(), 3),
        (hostname, log_directory, cgroup_parent) in (text(), text(), text()),
        dns in option::of(vec(texts(), 3)),
        ports in vec((mode(), number(), number(), text()), 0..2),
        (labels, annotations, sysctls) in (map(), map(), map()),
        (privileged, namespace_options) in (any::<bool>(), option::weighted(0.3, namespaces().boxed())),
        (resources, overhead) in (option::weighted(0.2, resources().boxed()), option::weighted(0.2, resources().boxed())),
        (run_as_user, run_as_group, seccomp, selinux_options) in (int64(), int64(), profile(), selinux()),
    ) -> v1::PodSandboxConfig {
        #[allow(clippy::cast_possible_truncation, reason = "any number will do")]
        let port_mappings = ports
            .into_iter()
            .map(|(protocol, container_port, host_port, host_ip)| v1::PortMapping {
                protocol,
                container_port: container_port as i32,
                host_port: host_port as i32,
                host_ip,
            })
            .collect();
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: names[0].clone(),
                uid: names[1].clone(),
                namespace: names[2].clone(),
                attempt: 0,
            }),
            hostname,
            log_directory,
            dns_config: dns.map(|lists| v1::DnsConfig {
                servers: lists[0].clone(),
                searches: lists[1].clone(),
                options: lists[2].clone(),
            }),
            port_mappings,
            labels,
            annotations,
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent,
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    privileged,
                    namespace_options,
                    run_as_user,
                    run_as_group,
                    seccomp,
                    selinux_options,
                    ..Default::default()
                }),
                sysctls,
                overhead,
                resources,
            }),
            windows: None,
        }
    }
}

/// An answer a client can use: one line, of bounded length, that starts with a field or names its subject.
fn usable(error: Error) -> Result<(), TestCaseError> {
    let status = tonic::Status::from(error);
    let codes = [tonic::Code::InvalidArgument, tonic::Code::FailedPrecondition];
    prop_assert!(codes.contains(&status.code()), "{status:?}");
    let message = status.message();
    prop_assert!(message.len() < 1500 && !message.contains(|c: char| c.is_control()), "{message:?}");
    prop_assert!(message.contains(": "), "{message:?}");
    Ok(())
}

/// What holds for every spec that comes out.
fn sound(spec: &Spec) -> Result<(), TestCaseError> {
    let json = serde_json::to_string(spec).unwrap();
    let again: Spec = serde_json::from_str(&json).unwrap();
    prop_assert_eq!(&again, spec);
    prop_assert!(!json.contains("\\u0000"));
    for mount in spec.mounts().as_ref().unwrap() {
        let destination = mount.destination().to_str().unwrap();
        prop_assert!(destination.starts_with('/') && !destination.contains("/.."), "{destination}");
    }
    let linux = spec.linux().as_ref().unwrap();
    for namespace in linux.namespaces().as_ref().unwrap() {
        prop_assert!(namespace.path().as_ref().is_none_or(|path| path.is_absolute()));
    }
    if let Err(error) = plan(spec) {
        return Err(TestCaseError::fail(format!("{error:?}")));
    }
    let process = spec.process().as_ref().unwrap();
    prop_assert!(process.cwd().is_absolute() && !process.args().as_ref().unwrap().is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_pod_and_container_are_answered(pod in pod().boxed(), container in container().boxed()) {
        let mut f = fixture();
        // Most random pods are refused, so the container is tried in an ordinary one as well.
        let ordinary = std::mem::replace(&mut f.pod, pod);
        f.container = container;
        for pod in [None, Some(ordinary)] {
            if let Some(pod) = pod {
                f.pod = pod;
            }
            match f.try_spec() {
                Ok(spec) => sound(&spec)?,
                Err(error) => usable(error)?,
            }
        }
    }

    /// One field at a time, so that what is accepted reaches the spec.
    #[test]
    fn any_single_field_is_answered(
        resources in option::of(resources().boxed()),
        security in option::of(security().boxed()),
        mount in option::of(mount().boxed()),
        (command, log_path, hostname) in (texts(), text(), text()),
        field in 0..6,
    ) {
        let mut f = fixture();
        match field {
            0 => f.container.linux.get_or_insert_default().resources = resources,
            1 => f.container.linux.get_or_insert_default().security_context = security,
            2 => f.container.mounts.extend(mount),
            3 => f.container.command = command,
            4 => f.container.log_path = log_path,
            _ => f.pod.hostname = hostname,
        }
        match f.try_spec() {
            Ok(spec) => sound(&spec)?,
            Err(error) => usable(error)?,
        }
    }

    #[test]
    fn any_update_is_answered(raw in resources().boxed()) {
        let parsed = Resources::parse("linux", raw);
        match parsed.and_then(|parsed| parsed.to_oci(&HostFacts::default())) {
            Ok(update) => drop(serde_json::to_string(&update).unwrap()),
            Err(error) => usable(error)?,
        }
    }

    /// A list of masked paths, devices or env of legal values is kept as it is.
    #[test]
    fn legal_arguments_and_variables_are_kept(
        args in vec("[^\\x00]{0,40}", 1..6),
        values in vec("[^\\x00]{0,40}", 0..6),
    ) {
        let mut f = fixture();
        f.container.command = args.clone();
        f.container.envs = values
            .iter()
            .enumerate()
            .map(|(i, value)| v1::KeyValue { key: format!("V{i}"), value: value.clone().into_bytes() })
            .collect();
        let process = f.process();
        prop_assert_eq!(process.args().as_ref().unwrap(), &args);
        let env = process.env().as_ref().unwrap();
        for (i, value) in values.iter().enumerate() {
            let entry = format!("V{i}={value}");
            prop_assert!(env.contains(&entry), "{}", entry);
        }
    }
}
