//! What a container may see and do.

use std::os::unix::net::UnixListener;

use podwright_tests::seccomp::agent;
use podwright_tests::{ContainerBuilder, Node, Outcome, Pod, PodBuilder, v1};
use serde_json::json;

fn profile(kind: v1::security_profile::ProfileType) -> v1::SecurityProfile {
    v1::SecurityProfile { profile_type: kind as i32, ..Default::default() }
}

fn drop_all(builder: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    builder.security(|security| {
        security.capabilities = Some(v1::Capability {
            add_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            drop_capabilities: vec!["ALL".to_owned()],
            ..Default::default()
        });
    })
}

fn confined(builder: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    builder.security(|security| {
        security.no_new_privs = true;
        security.seccomp = Some(profile(v1::security_profile::ProfileType::RuntimeDefault));
    })
}

fn unconfined(builder: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    builder
        .security(|security| security.seccomp = Some(profile(v1::security_profile::ProfileType::Unconfined)))
}

fn masked(builder: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    builder.security(|security| {
        security.masked_paths = ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).to_vec();
        security.readonly_paths = ["/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec();
    })
}

fn privileged(builder: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    builder.security(|security| security.privileged = true)
}

fn plain(builder: ContainerBuilder<'_>) -> ContainerBuilder<'_> {
    builder
}

/// The numbers of one line of `/proc/self/status`.
fn status_line(
    pod: &Pod,
    builder: impl for<'pod> FnOnce(ContainerBuilder<'pod>) -> ContainerBuilder<'pod>,
    line: &str,
) -> anyhow::Result<String> {
    let output = builder(pod.command(&["grep", &format!("^{line}:"), "/proc/self/status"])).output()?;
    Ok(output.trim_start_matches(line).trim_start_matches(':').trim().to_owned())
}

#[test]
fn capabilities_are_those_of_the_request_and_none_are_inherited() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "caps").run(&node)?;
    // The default set of containerd and Docker.
    assert_eq!(status_line(&pod, plain, "CapEff")?, "00000000a80425fb");
    assert_eq!(status_line(&pod, plain, "CapBnd")?, "00000000a80425fb");
    assert_eq!(status_line(&pod, plain, "CapInh")?, "0000000000000000");
    assert_eq!(status_line(&pod, plain, "CapAmb")?, "0000000000000000");
    assert_eq!(status_line(&pod, drop_all, "CapEff")?, "0000000000000400");
    assert_eq!(status_line(&pod, |builder| builder.user(1000), "CapEff")?, "0000000000000000");
    let container = pod.command(&["sleep", "1000"]).start()?;
    let output = container.exec("grep CapEff /proc/self/status; grep CapInh /proc/self/status")?;
    assert_eq!(output.stdout, "CapEff:\t00000000a80425fb\nCapInh:\t0000000000000000\n", "in exec too");
    Ok(())
}

#[test]
fn no_new_privileges_and_seccomp_are_set_where_asked_for() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "nnp").run(&node)?;
    assert_eq!(status_line(&pod, confined, "NoNewPrivs")?, "1");
    assert_eq!(status_line(&pod, confined, "Seccomp")?, "2");
    assert_eq!(status_line(&pod, unconfined, "Seccomp")?, "0");
    assert_eq!(status_line(&pod, plain, "Seccomp")?, "0", "nil is unconfined");
    // A call of the default profile's deny list: a new user namespace without CAP_SYS_ADMIN.
    let denied = confined(pod.sh("unshare -U true; echo $?")).run()?.1;
    assert_ne!(
        denied.iter().find(|line| line.stream == "stdout").map(|line| line.text.as_str()),
        Some("0"),
        "{denied:?}"
    );
    let container = confined(pod.command(&["sleep", "1000"])).start()?;
    assert_eq!(
        container.exec("grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr -d '\\n'")?.stdout,
        "NoNewPrivs:\t1Seccomp:\t2"
    );
    Ok(())
}

/// A profile of the node's whose calls an agent decides, execve included: the monitor must not wait for what the agent has yet to hear of.
#[test]
fn a_localhost_profile_may_have_an_agent() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "agent").run(&node)?;
    let socket = node.path().join("agent.sock");
    let listener = UnixListener::bind(&socket)?;
    let file = node.path().join("agent.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "of a pod",
        "syscalls": [{"names": ["execve", "recvmsg", "poll", "close_range", "openat"], "action": "SCMP_ACT_NOTIFY"}]
    });
    std::fs::write(&file, profile.to_string())?;
    let of_init = agent(listener.try_clone()?);
    let container = pod
        .command(&["sleep", "1000"])
        .security(|security| {
            security.seccomp = Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Localhost as i32,
                localhost_ref: file.to_string_lossy().into_owned(),
            });
        })
        .start()?;
    let of_exec = agent(listener);
    assert_eq!(container.exec("echo in")?.stdout, "in\n");
    let asked = of_exec.join().expect("the agent's thread")?;
    assert!(asked > 1, "{asked} calls");
    pod.stop()?;
    let asked = of_init.join().expect("the agent's thread")?;
    assert!(asked > 1, "{asked} calls");
    Ok(())
}

#[test]
fn users_and_groups_are_exact() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "users").run(&node)?;
    let id = "echo $(id -u):$(id -g):$(id -G)";
    let with = |change: fn(&mut v1::LinuxContainerSecurityContext)| pod.sh(id).security(change).output();
    assert_eq!(pod.sh(id).output()?, "0:0:0\n");
    assert_eq!(pod.sh(id).user(1000).output()?, "1000:1000:1000 29\n", "groups of /etc/group are merged");
    assert_eq!(pod.sh(id).user(4242).output()?, "4242:0:0\n", "an unknown uid is in root's group");
    let strict = |security: &mut v1::LinuxContainerSecurityContext| {
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.run_as_group = Some(v1::Int64Value { value: 1000 });
        security.supplemental_groups = vec![7];
        security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict as i32;
    };
    let output = with(strict)?;
    assert_eq!(output, "1000:1000:1000 7\n");
    let name =
        |security: &mut v1::LinuxContainerSecurityContext| security.run_as_username = "tester".to_owned();
    assert_eq!(with(name)?, "1000:1000:1000 29\n");
    let container = pod.sh("sleep 1000").security(strict).start()?;
    let user = container.status()?.user.and_then(|user| user.linux).unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    let mut groups = user.supplemental_groups.clone();
    groups.sort_unstable();
    assert_eq!(groups, [7, 1000]);
    assert_eq!(container.exec(id)?.stdout, "1000:1000:1000 7\n", "in exec too");
    Ok(())
}

#[test]
fn sensitive_paths_are_masked_and_read_only() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "masked").run(&node)?;
    let script = "wc -c </proc/keys; ls /sys/firmware | wc -l; echo 1 >/proc/sys/kernel/core_uses_pid 2>/dev/null || echo refused; \
                  touch /sys/x 2>/dev/null || echo refused";
    assert_eq!(masked(pod.sh(script)).output()?, "0\n0\nrefused\nrefused\n");
    Ok(())
}

#[test]
fn a_read_only_root_is_read_only() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "readonly").run(&node)?;
    let data = node.path().join("data");
    std::fs::create_dir(&data)?;
    let output = pod
        .sh("touch /x 2>/dev/null || echo refused; touch /data/x && echo written; touch /dev/shm/x && echo shm")
        .security(|security| security.readonly_rootfs = true)
        .mount(&data, "/data", false)
        .output()?;
    assert_eq!(output, "refused\nwritten\nshm\n");
    Ok(())
}

#[test]
fn devices_are_the_usual_ones_and_those_asked_for() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "devices").run(&node)?;
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  ls -l /dev/fd /dev/stdin | grep -c proc; ls /dev/asked; echo x >/dev/null && head -c 3 /dev/zero | wc -c; \
                  ls /dev/kmsg 2>/dev/null || echo no kmsg";
    let output = pod
        .sh(script)
        .with(|config| {
            config.devices.push(v1::Device {
                container_path: "/dev/asked".to_owned(),
                host_path: "/dev/null".to_owned(),
                permissions: "rwm".to_owned(),
            });
        })
        .output()?;
    assert_eq!(output, "2\n/dev/asked\n3\nno kmsg\n");
    // A device that is made but not asked for cannot be opened.
    let output =
        pod.sh("mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg 2>&1 | grep -c 'not permitted'").output()?;
    assert_eq!(output, "1\n");
    Ok(())
}

#[test]
fn a_privileged_container_has_everything() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "privileged")
        .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
        .run(&node)?;
    let own = std::fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    assert_eq!(status_line(&pod, privileged, "CapEff")?, own);
    assert_eq!(status_line(&pod, privileged, "Seccomp")?, "0");
    let output =
        privileged(pod.sh("test -w /proc/sys/kernel/hostname && mount -t tmpfs x /mnt && echo mounted"))
            .output()?;
    assert_eq!(output, "mounted\n");
    Ok(())
}

#[test]
fn nothing_of_the_runtime_is_open_in_a_container() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "fds").run(&node)?;
    // ls has its own: 0, 1, 2 and the directory.
    assert_eq!(pod.command(&["ls", "/proc/self/fd"]).output()?, "0\n1\n2\n3\n");
    let container = pod.command(&["sleep", "1000"]).start()?;
    assert_eq!(container.exec("ls /proc/self/fd")?.stdout, "0\n1\n2\n3\n");
    assert_eq!(container.exec("ls /proc/1/fd")?.stdout, "0\n1\n2\n");
    let mounts = pod.command(&["cat", "/proc/self/mountinfo"]).output()?;
    let directory = node.path().join("run").to_string_lossy().into_owned();
    let foreign: Vec<_> = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|target| target.starts_with(&directory)))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    Ok(())
}

#[test]
fn the_host_is_not_seen() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "unseen").own_network().run(&node)?;
    let output = pod.sh("ls -d /proc/[0-9]* | wc -l; ls /; mount | grep -c ' / type overlay'").output()?;
    let count: usize = output.lines().next().unwrap_or_default().parse()?;
    assert!(count <= 3, "{output}");
    assert!(output.ends_with("\n1\n"), "{output}");
    Ok(())
}
