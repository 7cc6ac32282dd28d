//! Mounts.

use super::*;

/// A bind mount of a request.
fn bind(container_path: &str, host_path: &str) -> v1::Mount {
    v1::Mount { container_path: container_path.into(), host_path: host_path.into(), ..Default::default() }
}

fn shared(path: &str) -> MountSource {
    MountSource { path: path.into(), propagation: SourcePropagation::Shared }
}

#[test]
fn every_container_has_the_kernels_filesystems_and_the_pods_files() {
    let f = fixture();
    let mounts: Vec<String> = f
        .mounts()
        .iter()
        .map(|mount| format!("{} {}", mount.destination().display(), mount.typ().as_deref().unwrap()))
        .collect();
    assert_eq!(
        mounts,
        [
            "/proc proc",
            "/dev tmpfs",
            "/dev/pts devpts",
            "/dev/mqueue mqueue",
            "/sys sysfs",
            "/sys/fs/cgroup cgroup",
            "/dev/shm bind",
            "/etc/hostname bind",
            "/etc/hosts bind",
            "/etc/resolv.conf bind",
        ]
    );
    assert_eq!(options(&f.mount("/proc")), "nosuid,noexec,nodev");
    assert_eq!(options(&f.mount("/dev")), "nosuid,strictatime,mode=755,size=65536k");
    assert_eq!(options(&f.mount("/dev/pts")), "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5");
    assert_eq!(options(&f.mount("/sys")), "nosuid,noexec,nodev,ro");
    assert_eq!(options(&f.mount("/sys/fs/cgroup")), "nosuid,noexec,nodev,relatime,ro");
    assert_eq!(options(&f.mount("/dev/shm")), "rbind,rprivate,rw,nosuid,noexec,nodev");
    assert_eq!(options(&f.mount("/etc/hosts")), "rbind,rprivate,rw");
    assert_eq!(f.mount("/etc/hosts").source(), &Some("/run/p/hosts".into()));
}

#[test]
fn the_pods_files_follow_the_roots_mode_and_may_be_absent() {
    let mut f = fixture();
    f.security().readonly_rootfs = true;
    assert_eq!(options(&f.mount("/etc/hosts")), "rbind,rprivate,ro");
    assert_eq!(options(&f.mount("/dev/shm")), "rbind,rprivate,rw,nosuid,noexec,nodev");
    f.paths = PodPaths { hosts: None, shm: None, ..f.paths };
    assert!(!f.mounts().iter().any(|mount| mount.destination() == "/etc/hosts"));
    assert_eq!(f.mount("/dev/shm").typ().as_deref(), Some("tmpfs"));
    f.pod_namespaces().ipc = v1::NamespaceMode::Node.into();
    assert_eq!(f.mount("/dev/shm").source(), &Some("/dev/shm".into()));
}

#[test]
fn a_request_mounts_over_the_defaults() {
    let mut f = fixture();
    f.container.mounts =
        vec![bind("/etc/hosts", "/var/lib/kubelet/pods/1/etc-hosts"), bind("/dev/shm/", "/shm")];
    assert_eq!(f.mount("/etc/hosts").source(), &Some("/var/lib/kubelet/pods/1/etc-hosts".into()));
    assert_eq!(f.mount("/dev/shm").source(), &Some("/shm".into()));
    f.container.mounts = vec![bind("/dev", "/dev"), bind("/sys/fs/cgroup", "/sys/fs/cgroup")];
    let below: Vec<_> = f
        .mounts()
        .iter()
        .filter(|mount| mount.destination().starts_with("/dev"))
        .map(|mount| mount.destination().clone())
        .collect();
    assert_eq!(below, [PathBuf::from("/dev")]);
    assert_eq!(f.mount("/sys/fs/cgroup").typ().as_deref(), Some("bind"));
}

#[test]
fn binds_are_ordered_by_depth() {
    let mut f = fixture();
    f.container.mounts = vec![bind("/a/b/c", "/1"), bind("/a", "/2"), bind("/z", "/3"), bind("/a/b", "/4")];
    let order: Vec<_> = f
        .mounts()
        .iter()
        .map(|mount| mount.destination().display().to_string())
        .filter(|path| !path.starts_with("/dev") && !path.starts_with("/etc"))
        .skip(3)
        .collect();
    assert_eq!(order, ["/a", "/z", "/a/b", "/a/b/c"]);
}

#[test]
fn mode_and_propagation_become_options() {
    let private = v1::MountPropagation::PropagationPrivate;
    let inwards = v1::MountPropagation::PropagationHostToContainer;
    let both = v1::MountPropagation::PropagationBidirectional;
    // readonly, recursive, propagation, options, root
    let cases = [
        (false, false, private, "rbind,rprivate,rw", None),
        (true, false, private, "rbind,rprivate,ro", None),
        (true, true, private, "rbind,rprivate,rro", None),
        (false, false, inwards, "rbind,rslave,rw", Some("rslave")),
        (true, false, both, "rbind,rshared,ro", Some("rshared")),
    ];
    for (readonly, recursive_read_only, propagation, expected, root) in cases {
        let mut f = fixture();
        f.container.mounts = vec![v1::Mount {
            readonly,
            recursive_read_only,
            propagation: propagation.into(),
            ..bind("/data", "/link")
        }];
        f.sources = vec![shared("/real")];
        assert_eq!(options(&f.mount("/data")), expected);
        assert_eq!(f.mount("/data").source(), &Some("/real".into()));
        assert_eq!(f.linux().rootfs_propagation().as_deref(), root);
    }
}

#[test]
fn propagation_needs_a_source_that_propagates() {
    let mut f = fixture();
    f.container.mounts = vec![v1::Mount { propagation: 2, ..bind("/data", "/data") }];
    assert!(f.error().contains("cannot propagate to /data"), "{}", f.error());
    f.sources = vec![MountSource { path: "/data".into(), propagation: SourcePropagation::Slave }];
    assert!(f.error().contains("cannot propagate to /data"), "{}", f.error());
    f.container.mounts[0].propagation = 1;
    assert_eq!(options(&f.mount("/data")), "rbind,rslave,rw");
    f.sources[0].propagation = SourcePropagation::Private;
    assert!(f.error().contains("mounts below /data cannot propagate"), "{}", f.error());
}

#[test]
fn recursive_readonly_needs_the_kernel() {
    let mut f = fixture();
    f.host.recursive_readonly = false;
    f.container.mounts =
        vec![v1::Mount { readonly: true, recursive_read_only: true, ..bind("/data", "/data") }];
    assert!(f.error().contains("RROUnsupported"), "{}", f.error());
}

#[test]
fn an_image_volume_is_read_only_and_may_be_executed() {
    let mut f = fixture();
    f.container.mounts = vec![v1::Mount {
        container_path: "/models".into(),
        image: Some(v1::ImageSpec { image: "models:1".into(), ..Default::default() }),
        image_sub_path: "v1/small".into(),
        readonly: true,
        ..Default::default()
    }];
    let request = f.parse().unwrap().1.mounts.remove(0);
    assert_eq!(
        request.source,
        RequestedSource::Image { reference: "models:1".into(), sub_path: Some("v1/small".into()) }
    );
    assert_eq!(options(&f.mount("/models")), "rbind,rprivate,ro");
}

#[test]
fn mount_options_and_mappings_reach_the_spec() {
    let mut f = fixture();
    let mapping = v1::IdMapping { container_id: 0, host_id: 5000, length: 10 };
    f.container.mounts = vec![v1::Mount {
        mount_options: strings(&["noexec", "nosuid", "nodev", "noatime", "noexec"]),
        uid_mappings: vec![mapping],
        gid_mappings: vec![mapping, v1::IdMapping { container_id: 10, host_id: 7000, length: 1 }],
        ..bind("/data", "/data")
    }];
    let mount = f.mount("/data");
    assert_eq!(options(&mount), "rbind,rprivate,rw,noexec,nosuid,nodev,noatime");
    assert_eq!(mount.uid_mappings().as_ref().unwrap()[0].host_id(), 5000);
    assert_eq!(mount.gid_mappings().as_ref().unwrap().len(), 2);
}

#[test]
fn sources_have_to_match_requests() {
    let mut f = fixture();
    f.container.mounts = vec![bind("/a", "/a"), bind("/b", "/b")];
    f.sources = vec![shared("/a")];
    assert_eq!(f.try_spec().unwrap_err().code(), tonic::Code::Internal);
}
