//! Namespaces, sysctls, confinement, privileged containers, devices.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, LinuxSeccompAction};

use super::*;
use crate::v1::{NamespaceMode, SecurityProfile, security_profile::ProfileType};

/// The namespaces of the spec as `kind` or `kind=path`.
fn namespaces(f: &Fixture) -> Vec<String> {
    let namespaces = f.linux().namespaces().clone().unwrap();
    let mut list: Vec<String> = namespaces
        .iter()
        .map(|namespace| match namespace.path() {
            Some(path) => format!("{}={}", namespace.typ(), path.display()),
            None => namespace.typ().to_string(),
        })
        .collect();
    list.sort();
    list
}

#[test]
fn namespaces_follow_the_modes() {
    let pod = ["ipc=/proc/7/ns/ipc", "net=/run/p/netns", "uts=/proc/7/ns/uts"];
    let with = |more: &[&str]| {
        let mut list: Vec<String> = pod.iter().chain(more).map(|&text| text.to_owned()).collect();
        list.sort();
        list
    };
    let mut f = fixture();
    // What crictl's samples say, which is nothing: one PID namespace for all.
    assert_eq!(namespaces(&f), with(&["cgroup", "mnt", "pid=/proc/7/ns/pid"]));

    f.namespaces().pid = NamespaceMode::Container.into();
    assert_eq!(namespaces(&f), with(&["cgroup", "mnt", "pid"]));
    f.namespaces().pid = NamespaceMode::Target.into();
    f.namespaces().target_id = "c0".into();
    assert_eq!(namespaces(&f), with(&["cgroup", "mnt", "pid=/proc/9/ns/pid"]));
    assert_eq!(f.parse().unwrap().1.pid, ContainerPid::Target("c0".into()));

    let mut f = fixture();
    f.pod_namespaces().pid = NamespaceMode::Container.into();
    assert_eq!(namespaces(&f), with(&["cgroup", "mnt", "pid"]));
    f.host.cgroup = CgroupVersion::V1;
    assert_eq!(namespaces(&f), with(&["mnt", "pid"]));

    let mut f = fixture();
    let node = i32::from(NamespaceMode::Node);
    *f.pod_namespaces() = v1::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() };
    assert_eq!(namespaces(&f), ["cgroup", "mnt"]);
    // A container that says POD has what its pod has.
    *f.namespaces() = v1::NamespaceOption::default();
    assert_eq!(namespaces(&f), ["cgroup", "mnt"]);
    *f.namespaces() = v1::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() };
    assert_eq!(namespaces(&f), ["cgroup", "mnt"]);
    f.privileged();
    assert_eq!(namespaces(&f), ["mnt"]);
}

#[test]
fn a_missing_namespace_of_the_pod_is_named() {
    let mut f = fixture();
    f.paths.uts_ns = None;
    let error = f.try_spec().unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert_eq!(error.to_string(), "pod sandbox p1: has no uts namespace that container server could join");
}

/// A user namespace of 65536 ids from 100000 on.
fn mapped() -> v1::UserNamespace {
    let mapping = v1::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 };
    v1::UserNamespace { mode: 0, uids: vec![mapping], gids: vec![mapping] }
}

#[test]
fn a_user_namespace_maps_the_container() {
    let mut f = fixture();
    f.pod_namespaces().userns_options = Some(mapped());
    f.namespaces().userns_options = Some(mapped());
    let linux = f.linux();
    let [mapping] = linux.uid_mappings().as_deref().unwrap() else { panic!("one") };
    assert_eq!((mapping.container_id(), mapping.host_id(), mapping.size()), (0, 100_000, 65_536));
    assert_eq!(linux.gid_mappings(), linux.uid_mappings());
    assert!(namespaces(&f).contains(&"user=/proc/7/ns/user".to_owned()));
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        assert_eq!(f.mount(file).uid_mappings(), &None, "{file} belongs to the pod's root already");
    }
    assert_eq!(f.mount("/dev/shm").uid_mappings(), &None);
    // With the host's network, sysfs can only be bound.
    assert_eq!(f.mount("/sys").typ().as_deref(), Some("sysfs"));
    f.pod_namespaces().network = NamespaceMode::Node.into();
    assert_eq!(f.mount("/sys").typ().as_deref(), Some("bind"));
    assert_eq!(options(&f.mount("/sys")), "rbind,rro,nosuid,noexec,nodev");
    // A container that says nothing about it has its pod's.
    f.namespaces().userns_options = None;
    assert!(f.linux().uid_mappings().is_some());
    let mut small = mapped();
    small.gids[0].length = 5;
    f.pod_namespaces().userns_options = Some(small);
    assert!(!options(&f.mount("/dev/pts")).contains("gid=5"));
}

#[test]
fn node_mode_is_no_user_namespace() {
    let mut f = fixture();
    let node = v1::UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
    f.pod_namespaces().userns_options = Some(node.clone());
    f.namespaces().userns_options = Some(node);
    assert_eq!(f.linux().uid_mappings(), &None);
}

#[test]
fn sysctls_of_the_pods_own_namespaces() {
    let mut f = fixture();
    let sysctls = |f: &Fixture| f.parse_pod().unwrap().sysctls;
    assert_eq!(sysctls(&f)["net.ipv4.ip_unprivileged_port_start"], "0");
    assert_eq!(sysctls(&f)["net.ipv4.ping_group_range"], "0 2147483647");
    for (name, value) in [
        ("kernel.shm_rmid_forced", "1"),
        ("net/ipv4/ip_local_port_range", "1024 65535"),
        ("net.ipv4.conf.eth0/1.forwarding", "1"),
        ("fs.mqueue.msg_max", "20"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
    ] {
        f.pod_linux().sysctls.insert(name.into(), value.into());
    }
    let given = sysctls(&f);
    assert_eq!(given["net.ipv4.ip_local_port_range"], "1024 65535");
    assert_eq!(given["net.ipv4.ip_unprivileged_port_start"], "80");
    assert_eq!(given.len(), 6);

    let mut f = fixture();
    f.pod_namespaces().userns_options = Some(mapped());
    assert!(!sysctls(&f).contains_key("net.ipv4.ping_group_range"));
    f.pod_namespaces().network = NamespaceMode::Node.into();
    assert!(sysctls(&f).is_empty());
}

#[allow(clippy::unnecessary_wraps, reason = "the fields it is written to are optional")]
fn profile(kind: ProfileType, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() })
}

#[test]
fn seccomp_is_what_was_chosen() {
    let choice = |f: &Fixture| f.parse().unwrap().1.security.seccomp;
    let mut f = fixture();
    assert_eq!(choice(&f), Seccomp::Unconfined);
    f.security().seccomp = Some(SecurityProfile::default());
    assert_eq!(choice(&f), Seccomp::RuntimeDefault);
    let filter = f.linux().seccomp().clone().unwrap();
    assert_eq!(filter.default_action(), LinuxSeccompAction::ScmpActErrno);
    let admin = |f: &Fixture| {
        let filter = f.linux().seccomp().clone().unwrap();
        filter.syscalls().as_ref().unwrap().iter().any(|rule| rule.names().iter().any(|name| name == "mount"))
    };
    assert!(!admin(&f));
    f.security().capabilities =
        Some(v1::Capability { add_capabilities: strings(&["SYS_ADMIN"]), ..Default::default() });
    assert!(admin(&f));
    f.security().seccomp = profile(ProfileType::Unconfined, "");
    assert_eq!(f.linux().seccomp(), &None);
    f.security().seccomp = profile(ProfileType::Localhost, "/var/lib/kubelet/seccomp/p.json");
    assert_eq!(choice(&f), Seccomp::Localhost("/var/lib/kubelet/seccomp/p.json".into()));
    assert!(f.error().contains("/var/lib/kubelet/seccomp/p.json was not loaded"), "{}", f.error());
    f.localhost_seccomp = Some(LinuxSeccomp::default());
    assert_eq!(f.linux().seccomp(), &Some(LinuxSeccomp::default()));
    f.privileged();
    assert_eq!(f.linux().seccomp(), &None);
}

#[test]
#[allow(deprecated, reason = "the old fields are what is tested")]
fn the_older_strings_for_profiles_still_work() {
    let mut f = fixture();
    f.host.apparmor = true;
    for (text, choice) in [
        ("runtime/default", Seccomp::RuntimeDefault),
        ("docker/default", Seccomp::RuntimeDefault),
        ("unconfined", Seccomp::Unconfined),
        ("localhost//etc/p.json", Seccomp::Localhost("/etc/p.json".into())),
    ] {
        f.security().seccomp_profile_path = text.into();
        assert_eq!(f.parse().unwrap().1.security.seccomp, choice, "{text}");
    }
    f.security().seccomp_profile_path.clear();
    for (text, profile) in [
        ("", Some("podwright-default")),
        ("runtime/default", Some("podwright-default")),
        ("unconfined", None),
        ("localhost/mine", Some("mine")),
    ] {
        f.security().apparmor_profile = text.into();
        assert_eq!(f.process().apparmor_profile().as_deref(), profile, "{text}");
    }
}

#[test]
fn apparmor_is_what_was_chosen_where_there_is_any() {
    let mut f = fixture();
    let name = |f: &Fixture| f.process().apparmor_profile().clone();
    assert_eq!(name(&f), None);
    f.security().apparmor = profile(ProfileType::Localhost, "mine");
    assert!(f.error().contains("AppArmor is off on this node"), "{}", f.error());
    f.host.apparmor = true;
    f.apparmor_missing = Some("no parser".to_owned());
    assert_eq!(name(&f).as_deref(), Some("mine"));
    f.security().apparmor = None;
    assert_eq!(name(&f), None, "nothing was asked for, and the default profile is not loaded");
    f.security().apparmor = profile(ProfileType::RuntimeDefault, "");
    assert!(f.error().contains("podwright-default is not loaded on this node: no parser"), "{}", f.error());
    f.apparmor_missing = None;
    assert_eq!(name(&f).as_deref(), Some("podwright-default"));
    f.security().apparmor = None;
    assert_eq!(name(&f).as_deref(), Some("podwright-default"));
    f.security().apparmor = profile(ProfileType::Unconfined, "");
    assert_eq!(name(&f), None);
    f.security().apparmor = profile(ProfileType::Localhost, "localhost/mine");
    f.privileged();
    assert_eq!(name(&f).as_deref(), Some("mine"), "by name it is meant, whatever else is allowed");
    f.security().apparmor = profile(ProfileType::RuntimeDefault, "");
    assert_eq!(name(&f), None);
    f.security().apparmor = None;
    assert_eq!(name(&f), None);
}

#[test]
fn selinux_labels_are_completed() {
    let labels = |f: &Fixture| (f.process().selinux_label().clone(), f.linux().mount_label().clone());
    let mut f = fixture();
    f.security().selinux_options = Some(v1::SeLinuxOption { r#type: "spc_t".into(), ..Default::default() });
    assert_eq!(labels(&f), (None, None));
    f.host.selinux = true;
    let both = |process: &str, mount: &str| (Some(process.to_owned()), Some(mount.to_owned()));
    assert_eq!(
        labels(&f),
        both("system_u:system_r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")
    );
    f.security().selinux_options = None;
    f.pod_security().selinux_options =
        Some(v1::SeLinuxOption { user: "u".into(), level: "s0:c7".into(), ..Default::default() });
    assert_eq!(labels(&f), both("u:system_r:container_t:s0:c7", "u:object_r:container_file_t:s0:c7"));
    f.privileged();
    assert_eq!(labels(&f), (None, None));
    let mut f = fixture();
    f.host.selinux = true;
    assert_eq!(labels(&f), (None, None), "nobody asks for it");
}

#[test]
fn masked_and_readonly_paths_are_as_given() {
    let mut f = fixture();
    let paths = |f: &Fixture| (f.linux().masked_paths().clone(), f.linux().readonly_paths().clone());
    assert!(paths(&f).0.unwrap().contains(&"/proc/kcore".to_owned()));
    assert!(paths(&f).1.unwrap().contains(&"/proc/sys".to_owned()));
    // A security context without lists: procMount Unmasked.
    f.security().no_new_privs = false;
    assert_eq!(paths(&f), (None, None));
    f.security().masked_paths = strings(&["/bin/ls"]);
    f.security().readonly_paths = strings(&["/tmp"]);
    assert_eq!(paths(&f), (Some(strings(&["/bin/ls"])), Some(strings(&["/tmp"]))));
    f.privileged();
    assert_eq!(paths(&f), (None, None));
}

#[test]
fn a_privileged_container_has_the_host() {
    let mut f = fixture();
    let device = |path: &str| DeviceNode {
        path: path.into(),
        kind: DeviceKind::Block,
        major: 8,
        minor: 0,
        mode: 0o60_660,
        uid: 0,
        gid: 6,
        access: Access::ALL,
    };
    f.host.devices = vec![device("/dev/sda"), device("/dev/null"), device("/dev/pts/0"), device("/dev/tty1")];
    assert_eq!(f.linux().devices(), &None);
    f.privileged();
    let linux = f.linux();
    let paths: Vec<_> =
        linux.devices().as_ref().unwrap().iter().map(|device| device.path().display().to_string()).collect();
    assert_eq!(paths, ["/dev/sda", "/dev/tty1"]);
    assert_eq!(linux.devices().as_ref().unwrap()[0].file_mode(), Some(0o660));
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(rules.len(), 1);
    assert!(rules[0].allow() && rules[0].typ().is_none());
    assert_eq!(options(&f.mount("/sys")), "nosuid,noexec,nodev,rw");
    assert_eq!(options(&f.mount("/sys/fs/cgroup")), "nosuid,noexec,nodev,relatime,rw");
    f.host.cgroup2_options = strings(&["nsdelegate", "memory_recursiveprot"]);
    assert!(options(&f.mount("/sys/fs/cgroup")).ends_with("rw,nsdelegate,memory_recursiveprot"));
}

#[test]
fn devices_are_denied_but_for_the_usual_and_the_requested() {
    let mut f = fixture();
    f.container.devices = vec![v1::Device {
        container_path: "/dev/my".into(),
        host_path: "/dev/fuse".into(),
        permissions: "rw".into(),
    }];
    let request = f.parse().unwrap().1.devices.remove(0);
    assert_eq!(request.access.to_string(), "rw");
    f.devices = vec![DeviceNode {
        path: request.container_path,
        kind: DeviceKind::Char,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: request.access,
    }];
    let linux = f.linux();
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    let text = |rule: &LinuxDeviceCgroup| format!("{} {rule}", rule.allow());
    assert_eq!(text(&rules[0]), "false a *:* rwm");
    assert_eq!(text(rules.last().unwrap()), "true c 10:229 rw");
    let texts: Vec<_> = rules.iter().map(text).collect();
    for rule in ["true c *:* m", "true b *:* m", "true c 1:3 rwm", "true c 5:2 rwm", "true c 136:* rwm"] {
        assert!(texts.iter().any(|text| text == rule), "{rule}");
    }
    assert_eq!(rules.len(), 13);
    let [node] = linux.devices().as_deref().unwrap() else { panic!("one") };
    assert_eq!((node.typ(), node.major(), node.minor()), (LinuxDeviceType::C, 10, 229));
    assert_eq!(LinuxNamespaceType::Mount.to_string(), "mnt");
}
