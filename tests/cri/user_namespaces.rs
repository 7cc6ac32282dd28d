//! Pods with a user namespace of their own: what root inside is outside, and that nothing else is different.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use podwright_tests::{ContainerBuilder, Node, Outcome, PodBuilder, v1};

/// Where the ids of a pod begin on the host, and how many they are: what kubelet gives one pod.
const HOST_ID: u32 = 131_072;
const LENGTH: u32 = 65_536;

fn mapping() -> v1::IdMapping {
    v1::IdMapping { host_id: HOST_ID, container_id: 0, length: LENGTH }
}

fn mapped(builder: PodBuilder) -> PodBuilder {
    builder.namespaces(|options| {
        options.userns_options = Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod as i32,
            uids: vec![mapping()],
            gids: vec![mapping()],
        });
    })
}

/// A node whose root filesystem directories can be mapped, or the reason why there is none.
fn node(test: &str) -> anyhow::Result<Option<Node>> {
    let node = Node::start()?;
    if advertised(&node)? {
        return Ok(Some(node));
    }
    podwright_tests::skip::skip(
        test,
        "the filesystem of the temporary directory does not support idmapped mounts",
    );
    Ok(None)
}

fn advertised(node: &Node) -> anyhow::Result<bool> {
    let status = node.client()?.status(v1::StatusRequest::default())?;
    let handler = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
    Ok(handler.and_then(|handler| handler.features).is_some_and(|features| features.user_namespaces))
}

/// A bind mount with the mappings that kubelet sends.
fn volume<'pod>(builder: ContainerBuilder<'pod>, host: &Path, container: &str) -> ContainerBuilder<'pod> {
    builder.with(|config| {
        config.mounts.push(v1::Mount {
            container_path: container.to_owned(),
            host_path: host.to_string_lossy().into_owned(),
            uid_mappings: vec![mapping()],
            gid_mappings: vec![mapping()],
            ..Default::default()
        });
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[test]
fn root_inside_is_nobody_in_particular_outside() -> Outcome {
    let Some(node) = node("root_inside_is_nobody_in_particular_outside")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "mapped")).own_network().run(&node)?;
    let map = format!("{:>10} {HOST_ID:>10} {LENGTH:>10}\n", 0);
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u:%g / /bin/busybox /etc/hosts /etc/hostname \
                  /dev/shm /tmp; touch /made; stat -c %u /made; echo more >>/etc/hosts && tail -n 1 /etc/hosts";
    let container = pod.command(&["sleep", "1000"]).start()?;
    let output = container.exec(script)?;
    let expected = format!("{map}{map}0\n{}0\nmore\n", "0:0\n".repeat(6));
    assert_eq!(output.stdout, expected, "{}", output.stderr);

    let status = std::fs::metadata(format!("/proc/{}", container.pid()?))?;
    assert_eq!((status.uid(), status.gid()), (HOST_ID, HOST_ID));
    let made = std::fs::metadata(pod.container_records(&container.id).join("upper/made"))?;
    assert_eq!((made.uid(), made.gid()), (HOST_ID, HOST_ID), "on disk it is the pod's");
    let image = std::fs::metadata(node.roots().join("busybox/bin/busybox"))?;
    assert_eq!(image.uid(), 0, "the image is untouched");

    // All containers of the pod and what is exec'd are in one namespace, and it is the network's owner.
    let one = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    let other = pod.command(&["sleep", "1000"]).start()?;
    assert_eq!(one(container.pid()?)?, one(other.pid()?)?);
    assert_ne!(one(container.pid()?)?, one(std::process::id())?);
    assert_eq!(
        container.exec("readlink /proc/self/ns/user")?.stdout.trim(),
        one(container.pid()?)?.to_string_lossy()
    );
    Ok(())
}

#[test]
fn kernel_filesystems_are_the_pods_own() -> Outcome {
    let Some(node) = node("kernel_filesystems_are_the_pods_own")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "views")).own_network().run(&node)?;
    let script = "grep -E ' /(proc|sys|dev|dev/pts|dev/mqueue|dev/shm) ' /proc/mounts | cut -d' ' -f2,3 | sort; \
                  ls /sys/class/net; for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  echo x >/dev/null && head -c 3 /dev/zero | wc -c; ls -d /proc/[0-9]* | wc -l";
    let output = pod.sh(script).output()?;
    let expected =
        "/dev tmpfs\n/dev/mqueue mqueue\n/dev/pts devpts\n/dev/shm tmpfs\n/proc proc\n/sys sysfs\nlo\n3\n";
    assert!(output.starts_with(expected), "{output}");
    // Capabilities are over the pod's own namespaces, and over nothing of the host's.
    let script = "hostname other && hostname; mount -t tmpfs x /mnt 2>/dev/null || echo no mount; \
                  mknod /tmp/null c 1 3 2>/dev/null || echo no node; \
                  echo 1 2>/dev/null >/proc/sys/kernel/core_uses_pid || echo no sysctl";
    let container = pod
        .sh(script)
        .security(|security| {
            security.capabilities =
                Some(v1::Capability { add_capabilities: vec!["ALL".to_owned()], ..Default::default() });
            // The default profile of AppArmor, where there is one, refuses mounts by itself.
            security.apparmor = Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Unconfined as i32,
                localhost_ref: String::new(),
            });
        })
        .output()?;
    assert_eq!(container, "other\nno node\nno sysctl\n");
    Ok(())
}

#[test]
fn volumes_show_their_owners_as_the_pod_knows_them() -> Outcome {
    let Some(node) = node("volumes_show_their_owners_as_the_pod_knows_them")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "volumes")).run(&node)?;
    let data = node.path().join("data");
    let message = node.path().join("message");
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("roots"), "")?;
    std::fs::write(data.join("users"), "")?;
    std::os::unix::fs::chown(data.join("users"), Some(1000), Some(1001))?;
    std::fs::write(&message, "")?;
    let script =
        "stat -c %u:%g /data/roots /data/users; id -u; touch /data/made; echo done >/dev/termination-log";
    let builder = volume(volume(pod.sh(script), &data, "/data"), &message, "/dev/termination-log");
    assert_eq!(builder.output()?, "0:0\n1000:1001\n0\n");
    let made = std::fs::metadata(data.join("made"))?;
    assert_eq!((made.uid(), made.gid()), (0, 0), "on disk the volume's root is root");
    assert_eq!(std::fs::read_to_string(&message)?, "done\n");

    // Without mappings the owners are the host's: nobody whom the pod knows, and nobody it could be.
    let output = pod
        .sh("stat -c %u /data/roots; touch /data/x 2>/dev/null || echo refused")
        .mount(&data, "/data", false)
        .output()?;
    assert_eq!(output, "65534\nrefused\n");
    Ok(())
}

#[test]
fn users_are_mapped_and_streams_are_theirs() -> Outcome {
    let Some(node) = node("users_are_mapped_and_streams_are_theirs")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "users")).run(&node)?;
    let script = "id -u; echo out >/dev/stdout; echo err >/dev/stderr; touch /tmp/x && stat -c %u /tmp/x";
    assert_eq!(pod.sh(script).output()?, "0\nout\n0\n");
    assert_eq!(pod.sh(script).user(1000).output()?, "1000\nout\n1000\n");
    let container = pod.command(&["sleep", "1000"]).user(1000).start()?;
    let output = container.exec(script)?;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("1000\nout\n1000\n", "err\n"));
    assert_eq!(std::fs::metadata(format!("/proc/{}", container.pid()?))?.uid(), HOST_ID + 1000);
    let user = container.status()?.user.and_then(|user| user.linux).unwrap_or_default();
    assert_eq!((user.uid, user.gid), (1000, 1000), "told as the container knows it");

    let beyond = pod.command(&["true"]).user(i64::from(LENGTH) + 1).start();
    let message = format!("{:#}", beyond.err().map(|error| error.to_string()).unwrap_or_default());
    assert!(!message.is_empty(), "a user that is not mapped is refused");
    Ok(())
}

#[test]
fn life_goes_on_as_in_any_pod() -> Outcome {
    let Some(node) = node("life_goes_on_as_in_any_pod")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "life")).own_network().shared_pids().run(&node)?;
    let container = pod.sh("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done").start()?;
    container.wait_for_log_line("up")?;
    assert_ne!(first_line(&container.exec("echo $$")?.stdout), "1");
    assert_eq!(container.exec("cat /proc/1/comm")?.stdout, "podwright-pause\n");
    node.restart()?;
    let client = node.client()?;
    assert_eq!(client.exec_in(&container.id, &["id", "-u"], 0)?.stdout, "0\n");
    let config = pod.sh("id -u; sleep 1000").config;
    let second = client.create(&pod.id, &config, &pod.config)?;
    client.start(&second)?;
    assert_eq!(client.exec_in(&second, &["id", "-u"], 0)?.stdout, "0\n", "one made by the new daemon");
    client.stop(&container.id, 10)?;
    assert_eq!(client.container(&container.id)?.exit_code, 3);
    container.wait_for_log_line("bye")?;
    client.remove(&container.id)?;
    client.stop_pod(&pod.id)?;
    client.remove_pod(&pod.id)?;
    Ok(())
}

#[test]
fn the_hosts_network_goes_with_a_user_namespace() -> Outcome {
    let Some(node) = node("the_hosts_network_goes_with_a_user_namespace")? else { return Ok(()) };
    let features = node.client()?.status(v1::StatusRequest::default())?;
    assert!(features.features.is_some());
    let pod = mapped(PodBuilder::new(&node, "hostnet")).run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let net = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    assert_eq!(net(container.pid()?)?, net(std::process::id())?);
    let script = "id -u; touch /sys/x 2>/dev/null || echo refused; grep -c ' /sys sysfs ro' /proc/mounts; \
                  test -d /sys/class/net/lo && echo seen; grep ' /proc proc' /proc/mounts | cut -d' ' -f1-3; hostname";
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let output = container.exec(script)?;
    assert_eq!(
        output.stdout,
        format!("0\nrefused\n1\nseen\nproc /proc proc\n{hostname}\n"),
        "{}",
        output.stderr
    );
    Ok(())
}

#[test]
fn sysctls_of_the_pods_own_namespaces_are_set_from_inside() -> Outcome {
    let Some(node) = node("sysctls_of_the_pods_own_namespaces_are_set_from_inside")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "sysctls"))
        .own_network()
        .linux(|linux| {
            for (name, value) in [("net.ipv4.ip_forward", "1"), ("kernel.shm_rmid_forced", "1")] {
                linux.sysctls.insert(name.to_owned(), value.to_owned());
            }
        })
        .run(&node)?;
    let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced \
                  /proc/sys/net/ipv4/ip_unprivileged_port_start";
    assert_eq!(pod.sh(script).output()?, "1\n1\n0\n");
    Ok(())
}

#[test]
fn privileged_is_over_the_pod_only() -> Outcome {
    let Some(node) = node("privileged_is_over_the_pod_only")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "privileged"))
        .own_network()
        .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
        .run(&node)?;
    let output = pod
        .sh("mount -t tmpfs x /mnt && echo mounted; test -c /dev/null && echo devices; \
             echo 1 2>/dev/null >/proc/sys/kernel/core_uses_pid || echo refused")
        .security(|security| security.privileged = true)
        .output()?;
    assert_eq!(output, "mounted\ndevices\nrefused\n");
    Ok(())
}

#[test]
fn a_terminal_is_the_users() -> Outcome {
    let Some(node) = node("a_terminal_is_the_users")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "terminal")).run(&node)?;
    let output = pod
        .sh("test -t 1 && stat -c %u:%g $(tty); echo again >/dev/tty")
        .user(1000)
        .with(|config| config.tty = true)
        .output()?;
    assert_eq!(output.replace('\r', ""), "1000:5\nagain\n");
    Ok(())
}

#[test]
fn a_device_may_have_another_name_inside() -> Outcome {
    let Some(node) = node("a_device_may_have_another_name_inside")? else { return Ok(()) };
    let pod = mapped(PodBuilder::new(&node, "device")).run(&node)?;
    let output = pod
        .sh("test -c /dev/asked && echo x >/dev/asked && echo written; head -c 3 /dev/more/zero | wc -c")
        .with(|config| {
            for (inside, host) in [("/dev/asked", "/dev/null"), ("/dev/more/zero", "/dev/zero")] {
                config.devices.push(v1::Device {
                    container_path: inside.to_owned(),
                    host_path: host.to_owned(),
                    permissions: "rw".to_owned(),
                });
            }
        })
        .output()?;
    assert_eq!(output, "written\n3\n");
    Ok(())
}

#[test]
fn an_image_volume_is_the_pods_too() -> Outcome {
    let Some(node) = node("an_image_volume_is_the_pods_too")? else { return Ok(()) };
    let tools = podwright_tests::BusyboxRoot::bare(&node.roots(), "tools")?;
    std::fs::write(tools.path.join("secret"), "kept\n")?;
    std::fs::set_permissions(tools.path.join("secret"), std::fs::Permissions::from_mode(0o600))?;
    let pod = mapped(PodBuilder::new(&node, "image")).run(&node)?;
    let output = pod
        .sh("stat -c %u /volume/bin/busybox; cat /volume/secret; touch /volume/x 2>/dev/null || echo refused")
        .with(|config| {
            config.mounts.push(v1::Mount {
                container_path: "/volume".to_owned(),
                readonly: true,
                image: Some(v1::ImageSpec { image: "tools".to_owned(), ..Default::default() }),
                ..Default::default()
            });
        })
        .output()?;
    assert_eq!(output, "0\nkept\nrefused\n");
    Ok(())
}
