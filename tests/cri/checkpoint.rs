//! CheckpointContainer, with a real criu, and what other tools read in the archive.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podwright_tests::{
    Client, Container, Criu, Deadline, HostSnapshot, Node, NodeOptions, Outcome, PodBuilder, deadline,
    process, root, skip, temporary, v1, watch,
};
use serde_json::Value;
use tonic::{Code, Status};

/// A node whose daemon finds programs here first.
fn node_with_path(path: &str) -> Result<Node> {
    let environment = vec![("PATH".to_owned(), path.to_owned())];
    Node::with(&NodeOptions { environment, ..NodeOptions::default() })
}

/// A program named criu that is none, and the PATH by which it is found.
fn false_criu(node_independent: &tempfile::TempDir, script: &str) -> Result<String> {
    let path = node_independent.path().join("criu");
    root::apart(|| Ok(fs::write(&path, script)?))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(format!("{}:{}", node_independent.path().display(), std::env::var("PATH").unwrap_or_default()))
}

fn checkpoint(
    client: &Client,
    container: &Container<'_>,
    location: &Path,
    timeout: i64,
) -> Result<(), Status> {
    let request = v1::CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: location.to_string_lossy().into_owned(),
        timeout,
    };
    client.checkpoint_container(request).map(drop)
}

/// A directory for archives, beside what the node's snapshots look at.
fn archives(node: &Node) -> Result<PathBuf> {
    let path = node.path().join("archives");
    fs::create_dir(&path)?;
    Ok(path)
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// The entries of a tar file: name, and the start of the content.
fn entries(reader: impl std::io::Read) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut archive = tar::Archive::new(reader);
    let mut found = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.by_ref().take(1 << 20).read_to_end(&mut content)?;
        found.insert(entry.path()?.display().to_string(), content);
    }
    Ok(found)
}

/// The host as it is, but for the containers' comings and goings of `sleep`, and for the `/tmp` in which criu makes a mount point.
fn snapshot(node: &Node) -> Result<HostSnapshot> {
    let mut snapshot = HostSnapshot::take(node)?;
    // By its arguments: busybox's shell starts it as `exe`, and it is called `sleep` a moment later.
    snapshot.processes.retain(|process| !process.ends_with(": sleep 0.1"));
    snapshot.files.retain(|file| !file.ends_with("/upper/tmp"));
    Ok(snapshot)
}

/// How often the container's loop has come round since it was asked.
fn goes_on(container: &Container<'_>) -> Outcome {
    let before = container.log_lines()?.len();
    watch::content(&container.log, Deadline::in_seconds(20), |bytes| {
        (podwright_tests::pod::parse_log(bytes).len() > before + 1).then_some(())
    })
}

#[test]
fn a_running_container_is_archived_and_goes_on() -> Outcome {
    let test = "checkpoint::a_running_container_is_archived_and_goes_on";
    let Some(criu) = Criu::require(test) else { return Ok(()) };
    let node = node_with_path(&criu.path())?;
    let archives = archives(&node)?;
    let pod = PodBuilder::new(&node, "forensic").own_network().run(&node)?;
    let shared = node.path().join("shared");
    fs::create_dir(&shared)?;
    let script = "rm /etc/os-release; echo secret-in-a-file >/changed; mkfifo /fifo; ln -s /etc/shadow /link; \
                  truncate -s 1099511627776 /sparse; secret=secret-in-memory; while true; do echo round; sleep 0.1; done";
    let container = pod.sh(script).name("counter").mount(&shared, "/shared", false).start()?;
    container.wait_for_log_line("round")?;
    let before = snapshot(&node)?;
    let location = archives.join("checkpoint.tar");
    checkpoint(&pod.client, &container, &location, 0)?;
    before.assert_same(&snapshot(&node)?)?;
    goes_on(&container)?;
    assert_eq!(container.exec("cat /changed")?.stdout, "secret-in-a-file\n");

    assert_eq!(fs::metadata(&location)?.mode() & 0o7777, 0o600, "it holds the container's memory");
    assert_eq!(fs::read_dir(&archives)?.count(), 1);
    let found = entries(File::open(&location)?)?;
    for name in [
        "config.dump",
        "spec.dump",
        "status",
        "bind.mounts",
        "dump.log",
        "stats-dump",
        "checkpoint/",
        "checkpoint/inventory.img",
        "checkpoint/descriptors.json",
        "rootfs-diff.tar",
        "deleted.files",
        "container.log",
    ] {
        assert!(found.contains_key(name), "{name} is not among {:?}", found.keys());
    }
    let memory = found.iter().filter(|(name, _)| name.starts_with("checkpoint/pages-"));
    let holds = |pages: &[u8]| pages.windows(16).any(|part| part == b"secret-in-memory");
    assert!(memory.into_iter().any(|(_, pages)| holds(pages)), "its memory is in it");
    let config: Value = serde_json::from_slice(&found["config.dump"])?;
    assert_eq!(config["id"], container.id.as_str());
    assert_eq!(config["rootfsImageName"].as_str(), Some(container.status()?.image.unwrap().image.as_str()));
    let spec: Value = serde_json::from_slice(&found["spec.dump"])?;
    assert_eq!(spec["annotations"]["io.kubernetes.cri.container-name"], "counter");
    let deleted: Value = serde_json::from_slice(&found["deleted.files"])?;
    assert_eq!(deleted, serde_json::json!(["/etc/os-release"]));
    let binds = String::from_utf8_lossy(&found["bind.mounts"]);
    assert!(binds.contains("\"/shared\"") && binds.contains("\"directory\""), "{binds}");
    assert!(String::from_utf8_lossy(&found["container.log"]).contains(" stdout F round\n"));
    let diff = entries(&found["rootfs-diff.tar"][..])?;
    assert_eq!(diff["changed"], b"secret-in-a-file\n");
    assert!(
        diff.contains_key("fifo") && diff.contains_key("link") && diff.contains_key("sparse"),
        "{diff:?}"
    );
    assert!(!diff.contains_key("etc/hosts") && !diff.contains_key("shared/"), "mounts are not its own");

    // Once more, over the first.
    let first = fs::metadata(&location)?.ino();
    checkpoint(&pod.client, &container, &location, 60)?;
    assert_ne!(fs::metadata(&location)?.ino(), first);
    goes_on(&container)?;
    checkpointctl(test, &criu, &location)
}

/// What the tool for such archives reads in ours.
fn checkpointctl(test: &str, criu: &Criu, archive: &Path) -> Outcome {
    let Some(program) = criu.program("checkpointctl") else {
        skip::skip(&format!("{test}::checkpointctl"), "no checkpointctl: tests/deps.sh criu fetches one");
        return Ok(());
    };
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(&program).args(arguments).arg(archive).output()?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "checkpointctl {arguments:?}: {stdout}{stderr}");
        Ok(stdout.into_owned())
    };
    let shown = run(&["show"])?;
    for word in ["counter", "busybox", "podwright", "containerd"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let inspected = run(&["inspect", "--all"])?;
    for word in ["counter", "forensic", "tests", "/shared", "Process tree", "pipe["] {
        assert!(inspected.contains(word), "{word}: {inspected}");
    }
    Ok(())
}

#[test]
fn every_kind_of_container_can_be_archived() -> Outcome {
    let test = "checkpoint::every_kind_of_container_can_be_archived";
    let Some(criu) = Criu::require(test) else { return Ok(()) };
    let node = node_with_path(&criu.path())?;
    let archives = archives(&node)?;
    let count = "while true; do echo round; sleep 0.1; done";
    let shared = PodBuilder::new(&node, "shared-pids").own_network().shared_pids().run(&node)?;
    let beside = shared.sh(count).name("beside").start()?;
    let plain = PodBuilder::new(&node, "plain").run(&node)?;
    let containers = [
        ("shared pids", shared.sh(count).start()?),
        ("host network", plain.sh(count).start()?),
        ("a terminal", plain.sh(count).name("tty").with(|config| config.tty = true).start()?),
        (
            "read-only",
            plain.sh(count).name("readonly").security(|context| context.readonly_rootfs = true).start()?,
        ),
        ("a child", plain.sh(&format!("(sleep 4711) & {count}")).name("child").start()?),
    ];
    let user = if may_see_limits_of_others() {
        Some(("a user", plain.sh(count).name("user").user(1000).start()?))
    } else {
        skip::skip(
            &format!("{test}::a_user"),
            "criu cannot read another user's limits without CAP_SYS_RESOURCE",
        );
        None
    };
    for (kind, container) in containers.iter().chain(&user) {
        // A terminal ends its lines with more than a newline.
        container.wait_for_log_line(if container.config.tty { "round\r" } else { "round" })?;
        let location = archives.join(&container.id);
        checkpoint(&plain.client, container, &location, 60).with_context(|| (*kind).to_owned())?;
        assert!(entries(File::open(&location)?)?.contains_key("checkpoint/inventory.img"), "{kind}");
        goes_on(container).with_context(|| (*kind).to_owned())?;
    }
    // Only the container itself is in its archive, and only it stood still.
    goes_on(&beside)?;
    containers[0].1.stop(0)?;
    goes_on(&beside)
}

/// prlimit(2) of another user's process takes `CAP_SYS_RESOURCE`, capability 24.
fn may_see_limits_of_others() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask & 1 << 24 != 0)
}

#[test]
fn what_cannot_be_archived_is_refused() -> Outcome {
    let directory = temporary::directory()?;
    let node = node_with_path(&false_criu(&directory, "#!/bin/sh\nexit 3\n")?)?;
    let archives = archives(&node)?;
    let location = archives.join("x.tar");
    let pod = PodBuilder::new(&node, "refused").run(&node)?;
    let created = pod.sh("true").name("created").create()?;
    let running = pod.sh("while true; do echo round; sleep 0.1; done").name("running").start()?;
    running.wait_for_log_line("round")?;
    let exited = pod.sh("true").name("exited").start()?;
    exited.wait()?;
    let code = |container: &Container<'_>, location: &Path, timeout| {
        checkpoint(&pod.client, container, location, timeout).map_err(|status| status.code())
    };
    for container in [&created, &exited] {
        assert_eq!(code(container, &location, 0), Err(Code::FailedPrecondition), "{}", container.id);
    }
    for bad in ["", "relative.tar", "/a/../b", "/dev/null", "/no/such/directory/x.tar", "/"] {
        assert_eq!(code(&running, Path::new(bad), 0), Err(Code::InvalidArgument), "{bad:?}");
    }
    assert_eq!(code(&running, &archives, 0), Err(Code::InvalidArgument), "a directory");
    assert_eq!(code(&running, &location, -1), Err(Code::InvalidArgument));
    let unknown = v1::CheckpointContainerRequest { container_id: "f00".into(), ..Default::default() };
    assert_eq!(pod.client.checkpoint_container(unknown).unwrap_err().code(), Code::NotFound);

    // A criu that fails.
    let before = snapshot(&node)?;
    let failed = checkpoint(&pod.client, &running, &location, 0).unwrap_err();
    assert!(failed.code() == Code::Internal && failed.message().contains("criu"), "{failed:?}");
    before.assert_same(&snapshot(&node)?)?;
    assert!(is_empty(&archives)?);
    goes_on(&running)
}

#[test]
fn without_criu_it_is_not_supported() -> Outcome {
    let node = node_with_path("/nowhere")?;
    let pod = PodBuilder::new(&node, "none").run(&node)?;
    let container = pod.sh("echo up; sleep 4711").start()?;
    container.wait_for_log_line("up")?;
    let archives = archives(&node)?;
    let refused = checkpoint(&pod.client, &container, &archives.join("x.tar"), 0).unwrap_err();
    assert!(refused.code() == Code::Unimplemented && refused.message().contains("PATH"), "{refused:?}");
    assert!(is_empty(&archives)?);
    Ok(())
}

#[test]
fn a_criu_that_hangs_is_ended_and_its_time_is_kept() -> Outcome {
    let directory = temporary::directory()?;
    let mark = directory.path().join("started");
    let script = format!("#!/bin/sh\necho $$ >{0}.new\nmv {0}.new {0}\nexec sleep 100000\n", mark.display());
    let node = node_with_path(&false_criu(&directory, &script)?)?;
    let archives = archives(&node)?;
    let pod = PodBuilder::new(&node, "slow").run(&node)?;
    let container = pod.sh("while true; do echo round; sleep 0.1; done").start()?;
    container.wait_for_log_line("round")?;
    let before = snapshot(&node)?;
    let location = archives.join("x.tar");
    // Long enough for criu to have started, and for the second request to find it at work.
    let limit = 5.max(2 * i64::from(deadline::slowness()));
    let (first, second) = std::thread::scope(|scope| -> Result<_> {
        let first = scope.spawn(|| {
            let client = node.client().map_err(|error| Status::internal(error.to_string()))?;
            let request = v1::CheckpointContainerRequest {
                container_id: container.id.clone(),
                location: location.to_string_lossy().into_owned(),
                timeout: limit,
            };
            client.checkpoint_container(request).map(drop)
        });
        watch::file(&mark, Deadline::in_seconds(20))?;
        let second = checkpoint(&pod.client, &container, &archives.join("y.tar"), limit);
        let first = first.join().map_err(|_| anyhow::anyhow!("the first request panicked"))?;
        Ok((first, second))
    })?;
    let first = first.unwrap_err();
    assert!(
        first.code() == Code::DeadlineExceeded && first.message().contains(&format!("{limit}s")),
        "{first:?}"
    );
    let second = second.unwrap_err();
    assert!(second.code() == Code::FailedPrecondition && second.message().contains("already"), "{second:?}");
    let pid = fs::read_to_string(&mark)?.trim().parse()?;
    assert!(process::read(pid).is_none(), "criu is gone");
    assert!(is_empty(&archives)?);
    before.assert_same(&snapshot(&node)?)?;
    goes_on(&container)
}
