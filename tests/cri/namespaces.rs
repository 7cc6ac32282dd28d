//! Whose namespaces a pod and its containers are in: the host's, the pod's, their own, another container's.

use std::fs;

use podwright_tests::{Container, ContainerBuilder, Node, Outcome, Pod, PodBuilder, v1};
use tonic::Code;

/// A namespace of a process on the host, such as `pid:[4026531836]`.
fn namespace(pid: u32, kind: &str) -> anyhow::Result<String> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/{kind}"))?.to_string_lossy().into_owned())
}

fn own(kind: &str) -> anyhow::Result<String> {
    namespace(std::process::id(), kind)
}

fn targeting<'pod>(builder: ContainerBuilder<'pod>, target: &str) -> ContainerBuilder<'pod> {
    builder.security(|security| {
        let options = security.namespace_options.get_or_insert_default();
        options.pid = v1::NamespaceMode::Target as i32;
        target.clone_into(&mut options.target_id);
    })
}

fn sleeper(pod: &Pod) -> anyhow::Result<Container<'_>> {
    pod.command(&["sleep", "1000"]).start()
}

#[test]
fn the_hosts_processes_are_seen_only_where_asked_for() -> Outcome {
    let node = Node::start()?;
    let host = v1::NamespaceMode::Node as i32;
    let pod = PodBuilder::new(&node, "host-pid").namespaces(|options| options.pid = host).run(&node)?;
    let container = sleeper(&pod)?;
    assert_eq!(namespace(container.pid()?, "pid")?, own("pid")?);
    let script = format!("test -d /proc/{} && echo seen", std::process::id());
    assert_eq!(container.exec(&script)?.stdout, "seen\n");
    // Without a PID namespace that ends with its init, what it left behind is ended all the same.
    let leaver = pod.sh("(setsid sleep 4322 &); exit 0").run()?;
    assert_eq!(leaver.0.exit_code, 0);
    pod.stop()?;
    let left: Vec<_> =
        node.pod_processes()?.into_iter().filter(|process| process.command == "sleep 4322").collect();
    assert!(left.is_empty(), "{left:?}");
    let options = pod.status()?.linux.and_then(|linux| linux.namespaces?.options).unwrap_or_default();
    assert_eq!((options.pid, options.network, options.ipc), (host, host, 0));
    Ok(())
}

#[test]
fn the_hosts_ipc_is_joined_only_where_asked_for() -> Outcome {
    let node = Node::start()?;
    let host = v1::NamespaceMode::Node as i32;
    let pod = PodBuilder::new(&node, "host-ipc").namespaces(|options| options.ipc = host).run(&node)?;
    let container = sleeper(&pod)?;
    assert_eq!(namespace(container.pid()?, "ipc")?, own("ipc")?);
    if fs::metadata("/dev/shm").is_ok_and(|shm| shm.is_dir()) {
        // A name of this test's own: the directory is everybody's.
        let name = node.unique();
        let script = format!("echo note >/dev/shm/{name}");
        let code = container.exec(&script)?.code;
        let file = std::path::Path::new("/dev/shm").join(name);
        let text = fs::read_to_string(&file);
        let _ = fs::remove_file(&file);
        assert_eq!((code, text?.as_str()), (0, "note\n"));
    }
    let private = PodBuilder::new(&node, "own-ipc").run(&node)?;
    assert_ne!(namespace(sleeper(&private)?.pid()?, "ipc")?, own("ipc")?);
    Ok(())
}

#[test]
fn the_name_goes_with_the_network() -> Outcome {
    let node = Node::start()?;
    let host =
        PodBuilder::new(&node, "host-net").with(|config| config.hostname = "ignored".into()).run(&node)?;
    let container = sleeper(&host)?;
    for kind in ["net", "uts"] {
        assert_eq!(namespace(container.pid()?, kind)?, own(kind)?);
    }
    let pod = PodBuilder::new(&node, "own-net")
        .own_network()
        .with(|config| config.hostname = "named".into())
        .run(&node)?;
    let (one, two) = (sleeper(&pod)?, sleeper(&pod)?);
    for kind in ["net", "uts", "ipc"] {
        assert_ne!(namespace(one.pid()?, kind)?, own(kind)?, "{kind}");
        assert_eq!(namespace(one.pid()?, kind)?, namespace(two.pid()?, kind)?, "{kind} is the pod's");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(one.pid()?, kind)?, namespace(two.pid()?, kind)?, "{kind} is its own");
    }
    assert_eq!(one.exec("hostname; cat /etc/hostname")?.stdout, "named\nnamed\n");
    Ok(())
}

#[test]
fn pause_reaps_what_is_left_in_a_shared_pid_namespace() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "reaper").shared_pids().run(&node)?;
    let script = "i=0; while [ $i -lt 50 ]; do (true & ) ; i=$((i+1)); done; \
                  while grep -q '^State:.*Z' /proc/[0-9]*/status 2>/dev/null; do :; done; \
                  echo reaped; cat /proc/1/comm; echo $$";
    let (status, lines) = pod.sh(script).run()?;
    let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(status.exit_code, 0, "{texts:?}");
    assert_eq!(texts[..2], ["reaped", "podwright-pause"]);
    assert_ne!(texts[2], "1");
    // A container may still ask for one of its own.
    let own = pod
        .sh("echo $$")
        .security(|security| {
            security.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Container as i32;
        })
        .output()?;
    assert_eq!(own, "1\n");
    Ok(())
}

#[test]
fn a_debug_container_joins_its_target() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "debug").run(&node)?;
    let target = pod.command(&["sleep", "4323"]).user(1000).start()?;
    let script = "tr '\\0' ' ' </proc/1/cmdline; echo; ls /proc/1/root/bin/busybox; sleep 1000";
    let debugger = targeting(pod.sh(script), &target.id)
        .security(|security| {
            security.capabilities = Some(v1::Capability {
                add_capabilities: vec!["SYS_PTRACE".to_owned()],
                ..Default::default()
            });
        })
        .start()?;
    debugger.wait_for_log_line("sleep 4323 ")?;
    debugger.wait_for_log_line("/proc/1/root/bin/busybox")?;
    assert_eq!(namespace(debugger.pid()?, "pid")?, namespace(target.pid()?, "pid")?);
    assert_ne!(namespace(debugger.pid()?, "mnt")?, namespace(target.pid()?, "mnt")?);
    assert_eq!(debugger.exec("kill -0 1 && echo reaches")?.stdout, "reaches\n");
    // The kernel ends everything in a PID namespace with its first process.
    target.stop(0)?;
    let status = debugger.wait()?;
    assert_eq!(status.exit_code, 137, "{status:?}");
    Ok(())
}

#[test]
fn a_target_that_cannot_be_joined_is_told() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "targets").run(&node)?;
    let other = PodBuilder::new(&node, "others").run(&node)?;
    let gone = pod.command(&["true"]).start()?;
    gone.wait()?;
    let error = targeting(pod.command(&["true"]), &gone.id).create().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains(&gone.id) && error.message().contains("is not running"), "{error:?}");
    let foreign = sleeper(&other)?;
    for target in [foreign.id.as_str(), "0123456789abcdef", ""] {
        let error = targeting(pod.command(&["true"]), target).create().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{target}: {error:?}");
        assert!(error.message().contains("namespace_options.target_id"), "{target}: {error:?}");
    }
    Ok(())
}

#[test]
fn sysctls_of_the_hosts_namespaces_are_refused() -> Outcome {
    let node = Node::start()?;
    let host = v1::NamespaceMode::Node as i32;
    let ip_forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    for (name, own_network, host_ipc) in [
        ("net.ipv4.ip_forward", false, false),
        ("net/ipv4/ip_forward", false, false),
        ("kernel.shm_rmid_forced", true, true),
        ("fs.mqueue.msg_max", true, true),
        ("kernel.pid_max", true, false),
        ("kernel.core_pattern", true, false),
        ("kernel/core_pattern", true, false),
        ("vm.swappiness", true, false),
        ("net.ipv4.../../../kernel/core_pattern", true, false),
        ("kernel.hostname", true, false),
    ] {
        let mut builder = PodBuilder::new(&node, "sysctl").linux(|linux| {
            linux.sysctls.insert(name.to_owned(), "1".to_owned());
        });
        if own_network {
            builder = builder.own_network();
        }
        if host_ipc {
            builder = builder.namespaces(|options| options.ipc = host);
        }
        let error = node.client()?.run_pod(&builder.config).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error:?}");
        assert!(error.message().contains("config.linux.sysctls["), "{name}: {error:?}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?, ip_forward);
    // A value that the kernel refuses fails the pod and leaves nothing.
    let builder = PodBuilder::new(&node, "sysctl").own_network().linux(|linux| {
        linux.sysctls.insert("net.ipv4.ip_forward".to_owned(), "nonsense".to_owned());
    });
    let error = node.client()?.run_pod(&builder.config).unwrap_err();
    assert!(error.message().contains("net.ipv4.ip_forward"), "{error:?}");
    assert!(node.client()?.pods()?.is_empty());
    Ok(())
}

#[test]
fn a_container_gets_no_more_of_the_host_than_its_pod() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "more").own_network().run(&node)?;
    let host = v1::NamespaceMode::Node as i32;
    for kind in ["network", "ipc", "pid"] {
        let builder = pod.command(&["true"]).security(|security| {
            let options = security.namespace_options.get_or_insert_default();
            match kind {
                "network" => options.network = host,
                "ipc" => options.ipc = host,
                _ => options.pid = host,
            }
        });
        let error = builder.create().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{kind}: {error:?}");
        assert!(error.message().contains(&format!("namespace_options.{kind}")), "{kind}: {error:?}");
    }
    Ok(())
}
