//! The units of `manifests/`, as they are installed: started, restarted, activated by their socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use podwright_tests::{BusyboxRoot, Client, Outcome, v1};

use crate::{present, property, systemctl};

const SERVICE: &str = "podwrightd.service";
const SOCKET: &str = "podwrightd.socket";

/// There is one installation, so its tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The installed daemon, stopped and without pods when it is dropped.
struct Installed(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Installed {
    /// With the given `[cgroup]` driver.
    fn new(driver: &str) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all("/etc/podwright")?;
        fs::write("/etc/podwright/config.toml", format!("[cgroup]\ndriver = {driver:?}\n"))?;
        let roots = Path::new("/var/lib/podwright/rootfs");
        if !roots.join("busybox").exists() {
            fs::create_dir_all(roots)?;
            BusyboxRoot::bare(roots, "busybox")?;
        }
        Ok(Self(turn))
    }
}

/// A connection to the installed daemon.
fn connect() -> Result<Client> {
    Client::connect(Path::new("/run/podwright/podwright.sock"))
}

impl Drop for Installed {
    fn drop(&mut self) {
        if let Ok(client) = connect() {
            for pod in client.pods().unwrap_or_default() {
                let _ = client.remove_pod(&pod.id);
            }
        }
        let _ = systemctl(&["stop", SOCKET, SERVICE]);
        let _ = systemctl(&["reset-failed", SOCKET, SERVICE]);
    }
}

fn sandbox(parent: &str) -> v1::PodSandboxConfig {
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "unit".to_owned(),
            uid: "unit-uid".to_owned(),
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        log_directory: "/var/log/pods/unit".to_owned(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: parent.to_owned(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "busybox".to_owned(), ..Default::default() }),
        command: ["sh", "-c", "trap 'exit 9' TERM; n=0; while true; do echo $n; n=$((n+1)); sleep 0.2; done"]
            .map(str::to_owned)
            .to_vec(),
        log_path: "c.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    network: v1::NamespaceMode::Node as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn first_process(client: &Client, id: &str) -> Result<u64> {
    let info = client.container_info(id)?;
    let value: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
    value["pid"].as_u64().context("a pid")
}

/// Starts the service, makes a pod, restarts the service, and finds the pod as it was.
fn survives_restarts(driver: &str, parent: &str) -> Outcome {
    let _installed = Installed::new(driver)?;
    systemctl(&["start", SERVICE])?;
    assert_eq!(property(SERVICE, "ActiveState")?, "active");
    let daemon = property(SERVICE, "MainPID")?;
    let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    assert_eq!(score(&daemon)?, "-999\n");
    let client = connect()?;
    let config = sandbox(parent);
    fs::create_dir_all(&config.log_directory)?;
    let pod = client.run_pod(&config)?;
    let id = client.create(&pod, &container(), &config)?;
    client.start(&id)?;
    let pid = first_process(&client, &id)?;
    // What the daemon has for itself is not handed to containers.
    assert_eq!(score(&pid.to_string())?, "0\n");

    systemctl(&["restart", SERVICE])?;
    assert_ne!(property(SERVICE, "MainPID")?, daemon);
    let client = connect()?;
    let status = client.container(&id)?;
    assert_eq!((status.state(), first_process(&client, &id)?), (v1::ContainerState::ContainerRunning, pid));
    assert_eq!(client.exec_in(&id, &["echo", "alive"], 0)?.stdout, "alive\n");

    // A daemon that dies is started again by systemd.
    let daemon = property(SERVICE, "MainPID")?;
    systemctl(&["kill", "--kill-whom=main", "--signal=KILL", SERVICE])?;
    systemctl(&["reload-or-restart", SERVICE]).or_else(|_| systemctl(&["start", SERVICE]))?;
    assert_ne!(property(SERVICE, "MainPID")?, daemon);
    let client = connect()?;
    assert_eq!(client.container(&id)?.state(), v1::ContainerState::ContainerRunning);

    systemctl(&["reload", SERVICE])?;
    assert_eq!(property(SERVICE, "ActiveState")?, "active");
    client.stop(&id, 10)?;
    assert_eq!(client.container(&id)?.exit_code, 9);
    client.remove_pod(&pod)?;

    systemctl(&["stop", SERVICE])?;
    assert_eq!(property(SERVICE, "ActiveState")?, "inactive");
    // It is not there to be asked, and no process of it is left.
    assert_eq!(property(SERVICE, "MainPID")?, "0");
    ensure!(podwright_tests::process::belonging_to("podwright-monitor")?.is_empty());
    Ok(())
}

#[test]
fn pods_survive_restarts_of_the_unit() -> Outcome {
    if !present("units::pods_survive_restarts_of_the_unit") {
        return Ok(());
    }
    survives_restarts("cgroupfs", "/podwright-units/pod1")
}

#[test]
fn pods_survive_restarts_of_the_unit_with_systemds_cgroups() -> Outcome {
    if !present("units::pods_survive_restarts_of_the_unit_with_systemds_cgroups") {
        return Ok(());
    }
    survives_restarts("systemd", "kubepods-besteffort-podunits.slice")?;
    systemctl(&["stop", "kubepods-besteffort-podunits.slice"]).map(drop)
}

#[test]
fn the_socket_starts_the_daemon() -> Outcome {
    if !present("units::the_socket_starts_the_daemon") {
        return Ok(());
    }
    let _installed = Installed::new("cgroupfs")?;
    systemctl(&["start", SOCKET])?;
    assert_eq!(property(SERVICE, "ActiveState")?, "inactive");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata("/run/podwright/podwright.sock")?.permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    connect()?.version(v1::VersionRequest::default())?;
    assert_eq!(property(SERVICE, "ActiveState")?, "active");
    // The socket outlives the service, and starts it again.
    systemctl(&["stop", SERVICE])?;
    assert_eq!(property(SOCKET, "ActiveState")?, "active");
    connect()?.version(v1::VersionRequest::default())?;
    assert_eq!(property(SERVICE, "ActiveState")?, "active");
    systemctl(&["restart", SERVICE])?;
    connect()?.version(v1::VersionRequest::default())?;
    Ok(())
}

#[test]
fn the_units_are_valid() -> Outcome {
    if !present("units::the_units_are_valid") {
        return Ok(());
    }
    for unit in [SERVICE, SOCKET] {
        let path = PathBuf::from("/etc/systemd/system").join(unit);
        let output = Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<_> = said.lines().filter(|line| line.contains("podwright")).collect();
        ensure!(output.status.success() && ours.is_empty(), "{said}");
    }
    Ok(())
}
