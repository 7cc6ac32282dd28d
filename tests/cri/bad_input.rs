//! Requests that cannot be served: each a precise code, one sentence that says what is wrong, and nothing left behind.

use podwright_tests::{HostSnapshot, Node, NodeOptions, Outcome, PodBuilder, v1};
use tonic::{Code, Status};

type Change<T> = (&'static str, fn(&mut T), &'static str);

/// A refusal is one line, names the field or value, and has the code.
fn check(what: &str, result: Result<String, Status>, code: Code, names: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.code(), code, "{what}: {error:?}");
    assert!(error.message().contains(names), "{what}: {:?} is not in {:?}", names, error.message());
    assert!(
        !error.message().contains('\n') && !error.message().contains('\0'),
        "{what}: {:?}",
        error.message()
    );
}

const PODS: [Change<v1::PodSandboxConfig>; 16] = [
    ("no metadata", |config| config.metadata = None, "metadata"),
    ("no name", |config| config.metadata.get_or_insert_default().name.clear(), "name"),
    ("a path as a name", |config| config.metadata.get_or_insert_default().name = "../x".into(), "name"),
    ("NUL in a name", |config| config.metadata.get_or_insert_default().name = "a\0b".into(), "name"),
    (
        "newline in a namespace",
        |config| config.metadata.get_or_insert_default().namespace = "a\nb".into(),
        "namespace",
    ),
    ("a path as a uid", |config| config.metadata.get_or_insert_default().uid = "a/../b".into(), "uid"),
    ("a name of 4 KiB", |config| config.metadata.get_or_insert_default().name = "x".repeat(4096), "name"),
    ("newline in the host name", |config| config.hostname = "a\nb".into(), "hostname"),
    ("a host name of 65 bytes", |config| config.hostname = "x".repeat(65), "hostname"),
    ("a relative log directory", |config| config.log_directory = "var/log".into(), "log_directory"),
    ("`..` in the log directory", |config| config.log_directory = "/tmp/../etc".into(), "log_directory"),
    ("NUL in the log directory", |config| config.log_directory = "/tmp/a\0".into(), "log_directory"),
    (
        "`..` in the cgroup parent",
        |config| config.linux.get_or_insert_default().cgroup_parent = "/a/../../b".into(),
        "cgroup_parent",
    ),
    (
        "a sysctl of the host",
        |config| drop(config.linux.get_or_insert_default().sysctls.insert("kernel.panic".into(), "1".into())),
        "sysctl",
    ),
    (
        "a sysctl with a path",
        |config| {
            drop(
                config.linux.get_or_insert_default().sysctls.insert("net/../kernel/panic".into(), "1".into()),
            );
        },
        "sysctl",
    ),
    (
        "a resolver option with a newline",
        |config| {
            config.dns_config = Some(v1::DnsConfig {
                servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()],
                ..Default::default()
            });
        },
        "dns",
    ),
];

fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn mount(config: &mut v1::ContainerConfig, host: &str, container: &str) {
    config.mounts.push(v1::Mount {
        host_path: host.into(),
        container_path: container.into(),
        ..Default::default()
    });
}

const CONTAINERS: [Change<v1::ContainerConfig>; 29] = [
    ("no metadata", |config| config.metadata = None, "metadata"),
    ("no image", |config| config.image = None, "image"),
    ("an empty image", |config| config.image.get_or_insert_default().image.clear(), "image"),
    (
        "a malformed image",
        |config| config.image.get_or_insert_default().image = "UPPER CASE:::".into(),
        "image",
    ),
    ("`..` in an image", |config| config.image.get_or_insert_default().image = "../../etc".into(), "image"),
    (
        "newline in an image",
        |config| config.image.get_or_insert_default().image = "busybox\n".into(),
        "image",
    ),
    ("a path as a name", |config| config.metadata.get_or_insert_default().name = "a/b".into(), "name"),
    ("an absolute log path", |config| config.log_path = "/etc/x".into(), "log_path"),
    ("`..` in the log path", |config| config.log_path = "../x".into(), "log_path"),
    ("NUL in the log path", |config| config.log_path = "a\0b".into(), "log_path"),
    ("NUL in an argument", |config| config.command = vec!["a\0b".into()], "command"),
    ("a relative working directory", |config| config.working_dir = "x".into(), "working_dir"),
    (
        "an environment name with =",
        |config| config.envs = vec![v1::KeyValue { key: "A=B".into(), value: "c".into() }],
        "env",
    ),
    (
        "no environment name",
        |config| config.envs = vec![v1::KeyValue { key: String::new(), value: "c".into() }],
        "env",
    ),
    ("negative memory", |config| resources(config).memory_limit_in_bytes = -2, "memory"),
    ("a negative quota", |config| resources(config).cpu_quota = -100, "cpu_quota"),
    ("an absurd period", |config| resources(config).cpu_period = 10_000_000_000, "cpu_period"),
    ("cpus that are no list", |config| resources(config).cpuset_cpus = "0-".into(), "cpuset"),
    ("an oom score out of range", |config| resources(config).oom_score_adj = 1001, "oom_score_adj"),
    (
        "a negative user",
        |config| security(config).run_as_user = Some(v1::Int64Value { value: -1 }),
        "run_as_user",
    ),
    (
        "a user beyond 32 bits",
        |config| security(config).run_as_user = Some(v1::Int64Value { value: 1 << 32 }),
        "run_as_user",
    ),
    (
        "a group without a user",
        |config| security(config).run_as_group = Some(v1::Int64Value { value: 1 }),
        "run_as_group",
    ),
    (
        "a supplementary group beyond 32 bits",
        |config| security(config).supplemental_groups = vec![1 << 33],
        "supplemental_groups",
    ),
    ("a digit name", |config| security(config).run_as_username = "1000".into(), "run_as_username"),
    (
        "an unknown capability",
        |config| {
            security(config).capabilities =
                Some(v1::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() });
        },
        "FLY",
    ),
    ("a relative mount point", |config| mount(config, "/tmp", "x"), "container_path"),
    ("a mount over the root", |config| mount(config, "/tmp", "/"), "container_path"),
    ("`..` in a host path", |config| mount(config, "/tmp/../etc", "/x"), "host_path"),
    (
        "a device with odd permissions",
        |config| {
            config.devices.push(v1::Device {
                container_path: "/dev/x".into(),
                host_path: "/dev/null".into(),
                permissions: "rx".into(),
            });
        },
        "permissions",
    ),
];

#[test]
fn a_bad_pod_is_refused_and_leaves_nothing() -> Outcome {
    let node = Node::start()?;
    PodBuilder::new(&node, "warm").run(&node)?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let client = node.client()?;
    for (what, change, names) in PODS {
        let config = PodBuilder::new(&node, "bad").own_network().with(change).config;
        check(what, client.run_pod(&config), Code::InvalidArgument, names);
    }
    let handler = v1::RunPodSandboxRequest {
        config: Some(PodBuilder::new(&node, "bad").config),
        runtime_handler: "no-such-handler".to_owned(),
    };
    let error = client.run_pod_sandbox(handler).unwrap_err();
    assert!(error.message().contains("no-such-handler"), "{error:?}");
    let empty = client.run_pod_sandbox(v1::RunPodSandboxRequest::default()).unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn a_bad_container_is_refused_and_leaves_nothing() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "good").run(&node)?;
    pod.command(&["true"]).create()?.remove()?;
    let before = HostSnapshot::take(&node)?;
    for (what, change, names) in CONTAINERS {
        let mut config = pod.command(&["true"]).name("bad").config;
        change(&mut config);
        check(what, pod.client.create(&pod.id, &config, &pod.config), Code::InvalidArgument, names);
    }
    let absent = pod.command(&["true"]).image("no.such/image").create().unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    assert!(absent.message().contains(node.roots().to_str().unwrap()), "{absent:?}");
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn unknown_ids_are_not_found_and_hostile_ones_are_refused() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    assert_eq!(client.container("0123456789").unwrap_err().code(), Code::NotFound);
    assert_eq!(client.pod("0123456789").unwrap_err().code(), Code::NotFound);
    assert_eq!(client.start("0123456789").unwrap_err().code(), Code::NotFound);
    let config = PodBuilder::new(&node, "x").config;
    let error = client.create("0123456789", &v1::ContainerConfig::default(), &config).unwrap_err();
    assert!(matches!(error.code(), Code::NotFound | Code::InvalidArgument), "{error:?}");
    for hostile in ["", "../../etc", "a\0b", "a\nb", "a/b"] {
        for error in [
            client.container(hostile).map(drop).unwrap_err(),
            client.pod(hostile).map(drop).unwrap_err(),
            client.start(hostile).unwrap_err(),
            client.exec_in(hostile, &["true"], 0).map(drop).unwrap_err(),
        ] {
            assert!(matches!(error.code(), Code::InvalidArgument | Code::NotFound), "{hostile:?}: {error:?}");
        }
    }
    Ok(())
}

#[test]
fn a_full_disk_is_an_error_that_says_so_and_passes_by() -> Outcome {
    let node = Node::with(&NodeOptions { state_limit_bytes: Some(4 << 20), ..Default::default() })?;
    PodBuilder::new(&node, "warm").run(&node)?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let filler = node.path().join("state/filler");
    let mut file = std::fs::File::create(&filler)?;
    // Until the tmpfs has not a byte left.
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let client = node.client()?;
    let config = PodBuilder::new(&node, "full").config;
    std::fs::create_dir_all(&config.log_directory)?;
    match client.run_pod(&config) {
        Err(error) => {
            assert!(error.message().to_lowercase().contains("no space left"), "{error:?}");
        }
        // A record may fit into what is left of the last page; then the container's does not.
        Ok(id) => client.remove_pod(&id)?,
    }
    drop(file);
    std::fs::remove_file(&filler)?;
    before.assert_same(&HostSnapshot::take(&node)?)?;
    let pod = PodBuilder::new(&node, "space").run(&node)?;
    assert_eq!(pod.sh("echo again").output()?, "again\n");
    Ok(())
}
