//! What a new daemon makes of directories that an old one left, without any monitor: everything that needs none.

use std::path::PathBuf;

use runtime::monitor::protocol::ExitRecord;

use super::*;
use crate::config::Config;
use crate::records::{ImageUse, UNKNOWN_EXIT_CODE};
use crate::translate::Identity;
use crate::v1::{
    ContainerConfig, ContainerMetadata as WireContainerMetadata, ContainerState as WireState,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata, PodSandboxState,
};
use crate::{container, sandbox};

struct Left {
    directory: tempfile::TempDir,
}

impl Left {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.paths.state = self.directory.path().join("state");
        config.paths.run = self.directory.path().join("run");
        // Any program will do: none is started.
        config.paths.monitor = "/proc/self/exe".into();
        config.rootfs.roots = vec![self.directory.path().join("roots")];
        config.cgroup.runtime = format!("/podwright-test-{}", std::process::id());
        config
    }

    fn pod_dir(&self, id: &str) -> PathBuf {
        self.directory.path().join("state/pods").join(id)
    }

    fn pod(&self, id: &str, phase: SandboxPhase, boot_id: &str) {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: id.into(), ..Default::default() }),
            hostname: "h".into(),
            ..Default::default()
        };
        let mut record = SandboxRecord::new(id, boot_id, config, "");
        record.phase = phase;
        fs::create_dir_all(self.pod_dir(id).join("containers")).unwrap();
        record.write(&self.pod_dir(id)).unwrap();
    }

    fn container(&self, pod: &str, id: &str, complete: bool, exit: Option<ExitRecord>) {
        let dir = self.pod_dir(pod).join("containers").join(id);
        fs::create_dir_all(&dir).unwrap();
        let metadata = WireContainerMetadata { name: id.into(), attempt: 0 };
        let record = ContainerRecord {
            version: ContainerRecord::VERSION,
            id: id.into(),
            sandbox: pod.into(),
            complete,
            created_at_ns: 1,
            config: ContainerConfig { metadata: Some(metadata), ..Default::default() },
            image: ImageUse::default(),
            log_path: None,
            identity: Identity { uid: 0, gid: 0, groups: Vec::new() },
            stop_signal: 15,
            resources: crate::v1::LinuxContainerResources::default(),
            cgroups_path: format!("/podwright-test-none/{id}").into(),
            lost: None,
        };
        record.write(&dir).unwrap();
        if let Some(exit) = exit {
            records::write(&dir.join("exit.json"), &exit).unwrap();
        }
    }

    async fn recovered(&self) -> Arc<Daemon> {
        let daemon = Arc::new(Daemon::new(self.config()).unwrap());
        recover(&daemon).await.unwrap();
        daemon
    }
}

fn exit(exit_code: i32) -> ExitRecord {
    ExitRecord {
        exit_code,
        signal: None,
        oom_killed: false,
        started_at_ns: Some(10),
        finished_at_ns: 20,
        start_failure: None,
    }
}

fn states(daemon: &Daemon) -> Vec<(String, PodSandboxState)> {
    let items = sandbox::list(daemon, ListPodSandboxRequest::default());
    items.into_iter().map(|item| (item.id.clone(), item.state())).collect()
}

fn containers(daemon: &Daemon) -> Vec<(String, WireState, i32, String)> {
    let items = container::list(daemon, ListContainersRequest::default());
    items
        .into_iter()
        .map(|item| {
            let found = daemon.store.container(&item.id).unwrap();
            let status = container::status_of(&found.container);
            (item.id.clone(), item.state(), status.exit_code, status.reason)
        })
        .collect()
}

#[tokio::test]
async fn a_stopped_pod_keeps_its_containers_ends() {
    let left = Left::new();
    left.pod("p1", SandboxPhase::Stopped, &crate::host::boot_id().unwrap());
    left.container("p1", "c1", true, Some(exit(3)));
    left.container("p1", "c2", true, None);
    let daemon = left.recovered().await;
    assert_eq!(states(&daemon), [("p1".to_owned(), PodSandboxState::SandboxNotready)]);
    let found = containers(&daemon);
    assert_eq!(found[0], ("c1".into(), WireState::ContainerExited, 3, "Error".into()));
    assert_eq!((found[1].1, found[1].2), (WireState::ContainerExited, UNKNOWN_EXIT_CODE));
}

#[tokio::test]
async fn a_pod_whose_monitor_died_is_not_ready_and_says_why() {
    let left = Left::new();
    left.pod("p1", SandboxPhase::Ready, &crate::host::boot_id().unwrap());
    left.container("p1", "seen", true, Some(exit(0)));
    left.container("p1", "unseen", true, None);
    left.container("p1", "unfinished", false, None);
    let daemon = left.recovered().await;
    assert_eq!(states(&daemon), [("p1".to_owned(), PodSandboxState::SandboxNotready)]);
    assert_eq!(
        containers(&daemon),
        [
            ("seen".to_owned(), WireState::ContainerExited, 0, "Completed".to_owned()),
            ("unseen".to_owned(), WireState::ContainerExited, UNKNOWN_EXIT_CODE, "MonitorLost".to_owned()),
        ]
    );
    assert!(!left.pod_dir("p1").join("containers/unfinished").exists());
    // The next daemon says the same.
    drop(daemon);
    let daemon = left.recovered().await;
    assert_eq!(containers(&daemon)[1].3, "MonitorLost");
}

#[tokio::test]
async fn a_reboot_ends_everything() {
    let left = Left::new();
    left.pod("p1", SandboxPhase::Ready, "another-boot");
    left.container("p1", "c1", true, None);
    let daemon = left.recovered().await;
    assert_eq!(states(&daemon), [("p1".to_owned(), PodSandboxState::SandboxNotready)]);
    assert_eq!(containers(&daemon)[0].3, "NodeRebooted");
    let pod = daemon.store.pod("p1").unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert!(states(&daemon).is_empty());
    assert!(!left.pod_dir("p1").exists());
}

#[tokio::test]
async fn what_was_half_made_is_gone_and_what_is_corrupt_is_set_aside() {
    let left = Left::new();
    let boot = crate::host::boot_id().unwrap();
    left.pod("half", SandboxPhase::Creating, &boot);
    left.pod("good", SandboxPhase::Stopped, &boot);
    left.pod("bad", SandboxPhase::Ready, &boot);
    fs::write(left.pod_dir("bad").join("sandbox.json"), "{").unwrap();
    fs::create_dir_all(left.directory.path().join("run/pods/stray")).unwrap();
    fs::create_dir_all(left.pod_dir("empty")).unwrap();
    let daemon = left.recovered().await;
    assert_eq!(states(&daemon), [("good".to_owned(), PodSandboxState::SandboxNotready)]);
    assert!(!left.pod_dir("half").exists() && !left.pod_dir("empty").exists());
    assert!(!left.directory.path().join("run/pods/stray").exists());
    assert!(!left.pod_dir("bad").exists());
    let aside = fs::read_dir(left.directory.path().join("state/corrupt")).unwrap().count();
    assert_eq!(aside, 1);
    // Its name is free again, and that of the good one is not.
    let name = |id: &str| {
        Name::Pod(crate::translate::PodMetadata {
            name: id.into(),
            uid: String::new(),
            namespace: String::new(),
            attempt: 0,
        })
    };
    assert!(daemon.store.once(name("bad"), || async { Ok("new".to_owned()) }).await.is_ok());
    let taken = daemon.store.once(name("good"), || async { Ok("new".to_owned()) }).await.unwrap_err();
    assert_eq!(taken.code(), tonic::Code::AlreadyExists);
}
