//! Attacks on the daemon and its monitors that worked on other runtimes; each must fail here. Those on the engine alone are in
//! `tests/oci/hostile.rs` and `tests/oci/privilege.rs`.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use podwright_tests::deadline::rounds;
use podwright_tests::{BusyboxRoot, Deadline, HostSnapshot, Node, Outcome, PodBuilder, snapshot, v1};
use rustix::fs::{CWD, Mode, OFlags, SealFlags, fcntl_get_seals, mkfifoat};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};
use serde_json::json;
use tonic::Code;

/// How a name in a hostile root is made.
#[derive(Debug, Clone, Copy)]
enum Trap {
    Out,
    Climbing,
    Dangling,
    File,
    Fifo,
}

fn lay(path: &Path, trap: Trap, outside: &Path) -> Outcome {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => fs::create_dir_all(path.parent().context("a parent")?)?,
    }
    match trap {
        Trap::Out => symlink(outside, path)?,
        Trap::Climbing => symlink(format!("{}{}", "../".repeat(30), outside.display()), path)?,
        Trap::Dangling => symlink("/nowhere/at/all", path)?,
        Trap::File => fs::write(path, "")?,
        Trap::Fifo => mkfifoat(CWD, path, Mode::from_raw_mode(0o666))?,
    }
    Ok(())
}

/// Lays the trap in a root of its own for each of `names`, and runs a container from it, with or without a terminal.
fn spring(names: &[&str], tty: bool) -> Outcome {
    let node = Node::start()?;
    let outside = node.path().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("witness"), "intact")?;
    let pod = PodBuilder::new(&node, "hostile").run(&node)?;
    pod.command(&["true"]).create()?.remove()?;
    let before = HostSnapshot::take(&node)?;
    for name in names {
        // The last two are tried everywhere, all of them where time allows.
        let traps = [Trap::Out, Trap::Dangling, Trap::File, Trap::Climbing, Trap::Fifo];
        for trap in traps.into_iter().skip(rounds(0, 3)) {
            let what = format!("{name} as {trap:?}");
            let root = BusyboxRoot::bare(&node.roots(), "hostile")?;
            lay(&root.path.join(name), trap, &outside)?;
            let deadline = Deadline::in_seconds(30);
            let builder = pod.sh("echo up; sleep 1000").image("hostile").with(|config| config.tty = tty);
            // It runs or is refused; either way soon, and without the host.
            match builder.create() {
                Ok(container) => {
                    if container.start().is_ok() {
                        let _ = container.exec("true");
                    }
                    container.stop(0)?;
                    container.remove()?;
                }
                Err(error) => ensure!(error.code() != Code::DeadlineExceeded, "{what}: {error:?}"),
            }
            ensure!(deadline.left().is_some(), "{what} takes too long");
            ensure!(fs::read_to_string(outside.join("witness"))? == "intact", "{what}");
            let left: Vec<_> = fs::read_dir(&outside)?.collect();
            ensure!(left.len() == 1, "{what}: something was made outside: {left:?}");
            fs::remove_dir_all(node.roots().join("hostile"))?;
        }
    }
    before.assert_same(&HostSnapshot::take(&node)?)
}

#[test]
fn hostile_directories_neither_hang_nor_reach_the_host() -> Outcome {
    spring(&["dev", "proc", "sys", "etc", "run", "dev/shm", "dev/pts", "dev/mqueue"], false)
}

#[test]
fn hostile_files_neither_hang_nor_reach_the_host() -> Outcome {
    spring(&["etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/null"], false)
}

#[test]
fn a_hostile_console_neither_hangs_nor_reaches_the_host() -> Outcome {
    spring(&["dev/console", "dev/tty", "dev/ptmx"], true)
}

#[test]
fn users_of_an_image_are_parsed_strictly() -> Outcome {
    // CVE-2024-40635, CVE-2026-46680, CVE-2026-47262: a user that wraps around, or is taken for another, is root.
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "users").run(&node)?;
    for (number, user) in [
        "4294967296",
        "4294967295",
        "0:4294967296",
        "-1",
        "+0",
        "00x",
        "tester\n",
        "no-such-user",
        "0:no-such-group",
        "a:b:c",
        " 0",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("user{number}");
        BusyboxRoot::with_sidecar(&node.roots(), &name, &json!({"User": user, "Cmd": ["id", "-u"]}))?;
        let result = pod.command(&[]).image(&name).create();
        ensure!(result.is_err(), "{user:?} was taken");
    }
    // A line of passwd that claims the name for an impossible number, or for one beyond 32 bits.
    for (number, line) in ["evil:x:4294967296:0::/:/bin/sh", "evil:x:-1:0::/:/bin/sh", "evil:x::0::/:/bin/sh"]
        .into_iter()
        .enumerate()
    {
        let name = format!("line{number}");
        let root =
            BusyboxRoot::with_sidecar(&node.roots(), &name, &json!({"User": "evil", "Cmd": ["id", "-u"]}))?;
        fs::write(root.path.join("etc/passwd"), format!("{line}\n"))?;
        ensure!(pod.command(&[]).image(&name).create().is_err(), "{line:?} was taken");
    }
    Ok(())
}

#[test]
fn a_passwd_of_4_gib_is_not_read() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "sparse").run(&node)?;
    let root =
        BusyboxRoot::with_sidecar(&node.roots(), "sparse", &json!({"User": "tester", "Cmd": ["id", "-u"]}))?;
    fs::OpenOptions::new().write(true).open(root.path.join("etc/passwd"))?.set_len(4 << 30)?;
    let deadline = Deadline::in_seconds(10);
    let error = pod.command(&[]).image("sparse").create().unwrap_err();
    ensure!(error.message().contains("passwd") && deadline.left().is_some(), "{error:?}");
    let grown = fs::read_to_string(format!("/proc/{}/status", node.daemon_pid()?))?;
    let peak = grown.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    ensure!(peak < 200 << 10, "the daemon took {peak} KiB");
    Ok(())
}

/// Freezes a container's cgroup, whatever the version.
pub(super) fn freeze(pid: u32) -> Outcome {
    set_frozen(pid, "1", "FROZEN")
}

/// Undoes that.
pub(super) fn thaw(pid: u32) -> Outcome {
    set_frozen(pid, "0", "THAWED")
}

fn set_frozen(pid: u32, v2: &str, v1: &str) -> Outcome {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = |prefix: &str| cgroups.lines().find_map(|line| Some(line.split_once(prefix)?.1.to_owned()));
    let (file, value): (PathBuf, &str) = if snapshot::unified() {
        (format!("/sys/fs/cgroup{}/cgroup.freeze", path("0::").context("a cgroup")?).into(), v2)
    } else {
        let own = path(":freezer:").context("a freezer")?;
        (format!("/sys/fs/cgroup/freezer{own}/freezer.state").into(), v1)
    };
    fs::write(&file, value).with_context(|| file.display().to_string())
}

#[test]
fn a_frozen_container_can_be_stopped_and_its_pod_removed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "frozen").run(&node)?;
    let container = pod.sh("echo up; sleep 1000").start()?;
    container.wait_for_log_line("up")?;
    freeze(container.pid()?)?;
    container.stop(1)?;
    assert_eq!(container.status()?.exit_code, 137);
    let second = pod.sh("echo up; sleep 1000").start()?;
    second.wait_for_log_line("up")?;
    freeze(second.pid()?)?;
    let deadline = Deadline::in_seconds(30);
    pod.remove()?;
    ensure!(deadline.left().is_some(), "removing a pod with a frozen container takes too long");
    Ok(())
}

#[test]
fn the_monitors_program_is_sealed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "sealed").run(&node)?;
    let exe = PathBuf::from(format!("/proc/{}/exe", node.monitor_of(&pod.id)?));
    let target = fs::read_link(&exe)?;
    if !target.to_string_lossy().starts_with("/memfd:") {
        // vm.memfd_noexec=2 forbids it: then it is the installed file, which the kernel protects while it runs.
        ensure!(fs::read_to_string("/proc/sys/vm/memfd_noexec")?.trim() == "2", "{}", target.display());
        return Ok(());
    }
    let fd = rustix::fs::open(&exe, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let seals = fcntl_get_seals(&fd)?;
    ensure!(
        seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL),
        "{seals:?}"
    );
    ensure!(fs::OpenOptions::new().write(true).open(&exe).is_err(), "it can be written");
    Ok(())
}

#[test]
fn a_monitor_is_outside_its_pods_limits() -> Outcome {
    // A pod that runs out of memory must not take with it what writes down its end.
    let node = Node::start()?;
    let parent = format!("/{}/kubepods/small", node.unique());
    let pod =
        PodBuilder::new(&node, "small").linux(|linux| linux.cgroup_parent.clone_from(&parent)).run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let cgroups = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    ensure!(cgroups(container.pid()?)?.contains(&parent));
    let monitor = node.monitor_of(&pod.id)?;
    ensure!(!cgroups(monitor)?.contains("kubepods"), "{}", cgroups(monitor)?);
    let score: i32 = fs::read_to_string(format!("/proc/{monitor}/oom_score_adj"))?.trim().parse()?;
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse()?;
    // As low as this machine lets it be: without CAP_SYS_RESOURCE it stays where the caller's is.
    let may_lower =
        rustix::thread::capabilities(None)?.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    ensure!(if may_lower { score <= -998 } else { score <= own }, "{score}, own {own}");
    Ok(())
}

#[test]
fn another_user_is_refused_even_where_the_socket_is_open() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "peer").run(&node)?;
    let monitor = node.path().join("run/pods").join(&pod.id).join("monitor.sock");
    let mode = fs::metadata(&monitor)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "monitor.sock has mode {mode:o}");
    // Somebody has opened all doors on the way.
    for path in [
        node.path().to_owned(),
        node.path().join("run"),
        node.path().join("run/pods"),
        node.path().join("run/pods").join(&pod.id),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    for path in [&monitor, &node.socket()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    }
    std::thread::scope(|scope| {
        let nobody = scope.spawn(|| -> Outcome {
            // The credentials of this thread alone: the kernel notes them when the socket is connected.
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534))?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            connect(&socket, &SocketAddrUnix::new(&monitor)?)?;
            podwright_tests::watch::readable(std::os::fd::AsFd::as_fd(&socket), Deadline::in_seconds(10))?;
            let length = recv(&socket, &mut [0; 64], RecvFlags::empty()).map_or(0, |(length, _)| length);
            ensure!(length == 0, "the monitor speaks to another user");
            let mut stream = UnixStream::connect(node.socket())?;
            let length = stream.read(&mut [0; 64]).unwrap_or(0);
            ensure!(length == 0, "the daemon speaks to another user");
            Ok(())
        });
        nobody.join().map_err(|_| anyhow::anyhow!("the thread failed"))?
    })?;
    pod.client.version(v1::VersionRequest::default())?;
    Ok(())
}

#[test]
fn no_socket_is_abstract() -> Outcome {
    // CVE-2020-15257: an abstract socket belongs to the network namespace, and a pod of the host's network could reach it.
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "abstract").run(&node)?;
    let _container = pod.command(&["sleep", "1000"]).start()?;
    let mut pids = vec![node.daemon_pid()?];
    pids.extend(node.pod_processes()?.into_iter().map(|process| process.pid));
    let sockets = fs::read_to_string("/proc/net/unix")?;
    for pid in pids {
        for (target, _) in inodes(pid) {
            let row = sockets.lines().find(|row| row.split_whitespace().nth(6) == Some(target.as_str()));
            let path = row.and_then(|row| row.split_whitespace().nth(7)).unwrap_or_default();
            ensure!(!path.starts_with('@'), "process {pid} has {path}");
        }
    }
    Ok(())
}

/// The inode numbers of a process's sockets, and its descriptors.
fn inodes(pid: u32) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
            Some((inode, entry.path()))
        })
        .collect()
}

#[test]
fn a_sysctl_of_a_namespace_that_is_the_hosts_is_refused() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    for (name, change) in [
        (
            "net.ipv4.ip_forward",
            v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..Default::default() },
        ),
        ("kernel.shmmax", v1::NamespaceOption { ipc: v1::NamespaceMode::Node as i32, ..Default::default() }),
    ] {
        let config = PodBuilder::new(&node, "sysctl")
            .namespaces(|options| {
                options.network = change.network;
                options.ipc = change.ipc;
            })
            .linux(|linux| drop(linux.sysctls.insert(name.to_owned(), "1".to_owned())))
            .config;
        let error = client.run_pod(&config).unwrap_err();
        ensure!(error.code() == Code::InvalidArgument && error.message().contains(name), "{error:?}");
    }
    ensure!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")? == before);
    Ok(())
}

#[test]
fn no_annotation_of_a_pod_reaches_the_engine() -> Outcome {
    // CVE-2022-0811, CVE-2024-3154: annotations that engines act on, set by whoever may make a pod.
    let node = Node::start()?;
    let keys = [
        "run.oci.keep_original_groups",
        "run.oci.handler",
        "org.systemd.property.ExecStartPre",
        "io.kubernetes.cri-o.Devices",
    ];
    let pod = PodBuilder::new(&node, "annotated")
        .with(|config| config.annotations.extend(keys.map(|key| (key.to_owned(), "x".to_owned()))))
        .run(&node)?;
    let container = pod
        .command(&["sleep", "1000"])
        .with(|config| config.annotations.extend(keys.map(|key| (key.to_owned(), "x".to_owned()))))
        .start()?;
    let spec = fs::read_to_string(pod.container_records(&container.id).join("config.json"))?;
    let spec: serde_json::Value = serde_json::from_str(&spec)?;
    for key in keys {
        ensure!(spec["annotations"].get(key).is_none(), "{key} is in the spec");
    }
    Ok(())
}

#[test]
fn equal_requests_at_once_make_one_container() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "twins").run(&node)?;
    let config = pod.command(&["sleep", "1000"]).config;
    let clients: Vec<_> = (0..4).map(|_| node.client()).collect::<Result<_, _>>()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| client.create(&pod.id, &config, &pod.config)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let made = pod.client.containers()?;
    ensure!(made.len() == 1, "{made:?}");
    for result in &results {
        match result {
            Ok(id) => ensure!(*id == made[0].id, "{id}"),
            // Those that came after the first had answered are told that the name is in use.
            Err(error) => ensure!(error.code() == Code::AlreadyExists, "{error:?}"),
        }
    }
    ensure!(results.iter().any(Result::is_ok));
    Ok(())
}

#[test]
fn a_timeout_ends_other_sessions_too() -> Outcome {
    // A child in another session makes new children all the time and holds the output open.
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "left").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let script = "setsid sh -c 'while true; do sleep 8642; done' & sleep 8642";
    let error = pod.client.exec_in(&container.id, &["/bin/sh", "-c", script], 1).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let left: Vec<_> =
        node.pod_processes()?.into_iter().filter(|process| process.command.contains("sleep 8642")).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn device_paths_do_not_climb() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "climb").run(&node)?;
    for (host, container) in
        [("/dev/null", "/dev/../../x"), ("/dev/../dev/null", "/dev/x"), ("/dev/null", "dev/x")]
    {
        let device = v1::Device {
            host_path: host.into(),
            container_path: container.into(),
            permissions: "rwm".into(),
        };
        let error = pod.command(&["true"]).with(|config| config.devices.push(device)).create().unwrap_err();
        ensure!(error.code() == Code::InvalidArgument, "{host} {container}: {error:?}");
    }
    Ok(())
}
