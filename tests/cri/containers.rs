//! The life of a container.

use std::fs;
use std::os::unix::fs::symlink;

use podwright_tests::pod::labels;
use podwright_tests::{Deadline, HostSnapshot, Node, Outcome, PodBuilder, process, v1, watch};
use rustix::process::Signal;
use tonic::Code;

#[test]
fn a_container_is_created_running_exited_and_gone() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "life").run(&node)?;
    let container = pod
        .sh("echo up; while [ ! -e /stop ]; do sleep 0.05; done; exit 3")
        .with(|config| config.labels = labels(&[("app", "x")]))
        .with(|config| config.annotations = labels(&[("note", "kept")]))
        .create()?;
    let created = container.status()?;
    assert_eq!(created.state(), v1::ContainerState::ContainerCreated);
    assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");
    container.start()?;
    container.wait_for_log_line("up")?;
    let running = container.status()?;
    assert_eq!(running.state(), v1::ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at, "{running:?}");
    assert_eq!(running.metadata, container.config.metadata);
    assert_eq!((running.labels["app"].as_str(), running.annotations["note"].as_str()), ("x", "kept"));
    assert_eq!(running.log_path, container.log.to_str().unwrap());
    assert!(running.image_ref.starts_with("sha256:"), "{}", running.image_ref);

    container.exec("touch /stop")?;
    let exited = container.wait()?;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    assert!(exited.finished_at >= exited.started_at, "{exited:?}");
    container.remove()?;
    assert_eq!(container.status().unwrap_err().code(), Code::NotFound);
    assert!(pod.client.containers()?.is_empty());
    Ok(())
}

#[test]
fn success_is_completed_and_a_short_life_keeps_its_times_in_order() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "short").run(&node)?;
    for _ in 0..5 {
        let (status, _) = pod.command(&["true"]).run()?;
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        assert!(
            status.created_at <= status.started_at && status.started_at <= status.finished_at,
            "{status:?}"
        );
    }
    Ok(())
}

#[test]
fn a_signals_exit_code_is_128_and_its_number() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "signal").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    process::signal(container.pid()?, Signal::KILL)?;
    assert_eq!(container.wait()?.exit_code, 137);
    Ok(())
}

#[test]
fn what_cannot_be_executed_fails_at_start_with_the_code_people_know() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "exec").run(&node)?;
    let cases: [(&[&str], i32, &str); 6] = [
        (&["/no/such/program"], 127, "no such file"),
        (&["no-such-program"], 127, "no-such-program"),
        (&["/bin/not-executable"], 126, "permission denied"),
        (&["/bin/not-a-program"], 126, "exec format error"),
        (&["/etc"], 126, "/etc"),
        (&["/bin/sh/below-a-file"], 126, "/bin/sh/below-a-file"),
    ];
    for (command, code, text) in cases {
        let container = pod.command(command).create()?;
        let error = container.start().unwrap_err();
        assert!(error.message().to_lowercase().contains(text), "{command:?}: {}", error.message());
        let status = container.status()?;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited, "{command:?}");
        // ENOTDIR is none of the known ones.
        let wanted = if command[0] == "/bin/sh/below-a-file" { 128 } else { code };
        assert_eq!(status.exit_code, wanted, "{command:?}: {status:?}");
        assert!(!status.message.is_empty(), "{command:?} has a message");
        container.remove()?;
    }
    Ok(())
}

#[test]
fn a_container_starts_once() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "once").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    assert_eq!(container.start().unwrap_err().code(), Code::FailedPrecondition);
    container.stop(0)?;
    assert_eq!(container.start().unwrap_err().code(), Code::FailedPrecondition);
    Ok(())
}

#[test]
fn a_name_in_use_is_refused_and_another_attempt_is_not() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "names").run(&node)?;
    let first = pod.command(&["true"]).name("web").create()?;
    let error = pod.command(&["true"]).name("web").create().unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("web") && error.message().contains(&first.id), "{}", error.message());
    pod.command(&["true"])
        .name("web")
        .with(|config| config.metadata.as_mut().unwrap().attempt = 1)
        .create()?;
    first.remove()?;
    pod.command(&["true"]).name("web").create()?;
    Ok(())
}

#[test]
fn a_stopped_pod_takes_no_container() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stopped").run(&node)?;
    let made = pod.command(&["true"]).create()?;
    pod.stop()?;
    assert_eq!(pod.command(&["true"]).create().unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(made.start().unwrap_err().code(), Code::FailedPrecondition);
    Ok(())
}

#[test]
fn environment_directory_and_arguments_arrive_unchanged() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "env").run(&node)?;
    let output = pod
        .command(&["/bin/sh", "-c"])
        .with(|config| {
            config.args = [
                "for a in \"$A\" \"$B\" \"$PWD\" \"$0\" \"$1\" \"$HOME\"; do echo \"[$a]\"; done",
                "zero",
                "two words",
            ]
            .map(str::to_owned)
            .to_vec();
            config.working_dir = "/var/log".to_owned();
        })
        .env("A", "a=b c")
        .env("B", "")
        .output()?;
    assert_eq!(output, "[a=b c]\n[]\n[/var/log]\n[zero]\n[two words]\n[/root]\n");
    // A directory that is not there is made, as containerd does.
    let output = pod.sh("pwd").with(|config| config.working_dir = "/new/one".to_owned()).output()?;
    assert_eq!(output, "/new/one\n");
    Ok(())
}

#[test]
fn stop_sends_the_signal_and_waits_only_as_long_as_needed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stop").run(&node)?;
    let polite = pod.sh("trap 'echo bye; exit 7' TERM; echo up; while true; do sleep 0.05; done").start()?;
    polite.wait_for_log_line("up")?;
    let deadline = Deadline::in_seconds(20);
    polite.stop(600)?;
    assert!(deadline.left().is_some(), "it did not wait for the whole grace period");
    let status = polite.status()?;
    assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 7));
    assert!(polite.log_lines()?.iter().any(|line| line.text == "bye"));
    polite.stop(1)?;

    let deaf = pod.sh("trap '' TERM; echo up; while true; do sleep 0.05; done").start()?;
    deaf.wait_for_log_line("up")?;
    deaf.stop(1)?;
    assert_eq!(deaf.status()?.exit_code, 137);
    Ok(())
}

#[test]
fn a_sigstopped_container_can_be_stopped() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stopped").run(&node)?;
    let container = pod.sh("echo up; sleep 1000").start()?;
    container.wait_for_log_line("up")?;
    process::signal(container.pid()?, Signal::STOP)?;
    container.stop(1)?;
    assert_eq!(container.status()?.exit_code, 137);
    Ok(())
}

#[test]
fn stop_and_remove_may_be_said_of_what_is_not_there() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    client.stop("0123456789abcdef", 0)?;
    client.remove("0123456789abcdef")?;
    let pod = PodBuilder::new(&node, "x").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).create()?;
    container.remove()?;
    container.remove()?;
    let running = pod.command(&["sleep", "1000"]).start()?;
    running.remove()?;
    assert_eq!(running.status().unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[test]
fn lists_are_filtered() -> Outcome {
    let node = Node::start()?;
    let one = PodBuilder::new(&node, "one").run(&node)?;
    let two = PodBuilder::new(&node, "two").run(&node)?;
    let running =
        one.command(&["sleep", "1000"]).with(|config| config.labels = labels(&[("l", "1")])).start()?;
    let created = two.command(&["true"]).create()?;
    let list = |filter: v1::ContainerFilter| -> anyhow::Result<Vec<String>> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(one
            .client
            .list_containers(request)?
            .containers
            .into_iter()
            .map(|container| container.id)
            .collect())
    };
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state as i32 });
    let default = v1::ContainerFilter::default;
    assert_eq!(
        list(v1::ContainerFilter { id: running.id[..10].to_owned(), ..default() })?,
        std::slice::from_ref(&running.id)
    );
    assert_eq!(
        list(v1::ContainerFilter { pod_sandbox_id: two.id.clone(), ..default() })?,
        std::slice::from_ref(&created.id)
    );
    assert_eq!(
        list(v1::ContainerFilter { label_selector: labels(&[("l", "1")]), ..default() })?,
        std::slice::from_ref(&running.id)
    );
    let wanted = state(v1::ContainerState::ContainerCreated);
    assert_eq!(list(v1::ContainerFilter { state: wanted, ..default() })?, std::slice::from_ref(&created.id));
    let wanted = state(v1::ContainerState::ContainerRunning);
    assert_eq!(list(v1::ContainerFilter { state: wanted, ..default() })?, std::slice::from_ref(&running.id));
    Ok(())
}

#[test]
fn mounts_are_bound_with_their_options() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "mounts").run(&node)?;
    let data = node.path().join("data");
    fs::create_dir_all(data.join("inner"))?;
    fs::write(data.join("file"), "from the host\n")?;
    symlink(&data, node.path().join("link"))?;
    let output = pod
        .sh("cat /rw/file; echo new >/rw/made; touch /ro/x 2>&1 | grep -c Read-only; cat /one; cat /linked/file; cat /deep/er/file")
        .mount(&data, "/rw", false)
        .mount(&data, "/ro", true)
        .mount(&data.join("file"), "/one", true)
        .mount(&node.path().join("link"), "/linked", false)
        .mount(&data, "/deep/er", false)
        .output()?;
    assert_eq!(output, "from the host\n1\nfrom the host\nfrom the host\nfrom the host\n");
    assert_eq!(fs::read_to_string(data.join("made"))?, "new\n");
    let container = pod.command(&["true"]).mount(&data, "/m", true).create()?;
    assert_eq!(container.status()?.mounts, container.config.mounts);
    assert!(!node.roots().join("busybox/deep").exists(), "the entry is untouched");
    Ok(())
}

#[test]
fn a_host_path_that_is_not_there_becomes_a_directory() -> Outcome {
    // As containerd does, and as the public test suite of the CRI wants it.
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "made").run(&node)?;
    let host = node.path().join("not/there/yet");
    pod.sh("touch /data/x").mount(&host, "/data", false).output()?;
    assert!(host.join("x").exists());
    Ok(())
}

#[test]
fn a_mount_point_that_is_a_symlink_stays_inside() -> Outcome {
    let node = Node::start()?;
    // The root's own directory points at a path of the host.
    let outside = node.path().join("outside");
    fs::create_dir(&outside)?;
    let entry = node.roots().join("busybox");
    symlink(&outside, entry.join("escape"))?;
    let pod = PodBuilder::new(&node, "escape").run(&node)?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    fs::write(data.join("x"), "x")?;
    let result = pod.sh("ls /escape/sub; true").mount(&data, "/escape/sub", false).output();
    // Whether it is refused or made inside the root, the host's directory is untouched.
    assert_eq!(fs::read_dir(&outside)?.count(), 0, "{result:?}");
    Ok(())
}

#[test]
fn each_container_writes_into_a_layer_of_its_own() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "layers").run(&node)?;
    let before = tree(&node.roots().join("busybox"))?;
    pod.sh("echo changed >/etc/passwd; rm /bin/vi; mkdir /made; chmod 700 /tmp; ln -sf x /etc/group")
        .output()?;
    let output = pod
        .sh("cat /etc/passwd | head -1; ls -d /bin/vi; ls -d /made 2>/dev/null; stat -c %a /tmp")
        .output()?;
    assert_eq!(output, "root:x:0:0:root:/root:/bin/sh\n/bin/vi\n1777\n");
    assert_eq!(tree(&node.roots().join("busybox"))?, before, "nothing changes an entry");
    Ok(())
}

/// Every path below a directory with its mode, size and times.
fn tree(directory: &std::path::Path) -> anyhow::Result<Vec<String>> {
    use std::os::linux::fs::MetadataExt as _;
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            found.push(format!(
                "{} {:o} {} {}.{}",
                path.display(),
                metadata.st_mode(),
                metadata.st_size(),
                metadata.st_mtime(),
                metadata.st_mtime_nsec()
            ));
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_terminal_is_a_terminal() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "tty").run(&node)?;
    let (status, lines) =
        pod.sh("test -t 0 && test -t 1 && test -t 2 && tty").with(|config| config.tty = true).run()?;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    assert!(lines[0].text.starts_with("/dev/"), "{lines:?}");
    assert_eq!(lines[0].stream, "stdout");
    Ok(())
}

#[test]
fn orphans_die_with_their_container() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "orphans").shared_pids().run(&node)?;
    // In a shared PID namespace the kernel does not end them; the runtime has to.
    let (status, _) =
        pod.sh("(trap '' TERM HUP; sleep 4321) >/dev/null 2>&1 & (setsid sleep 4321 &) ; exit 5").run()?;
    assert_eq!(status.exit_code, 5);
    let left = || -> anyhow::Result<usize> {
        Ok(node.pod_processes()?.iter().filter(|process| process.command == "sleep 4321").count())
    };
    pod.stop()?;
    assert_eq!(left()?, 0, "{:?}", node.pod_processes()?);
    Ok(())
}

#[test]
fn a_root_that_vanished_is_an_error_and_leaves_nothing() -> Outcome {
    let node = Node::start()?;
    podwright_tests::BusyboxRoot::bare(&node.roots(), "gone")?;
    let pod = PodBuilder::new(&node, "vanish").run(&node)?;
    pod.command(&["true"]).image("gone").run()?;
    let before = HostSnapshot::take(&node)?;
    fs::rename(node.roots().join("gone"), node.path().join("elsewhere"))?;
    let error = pod.command(&["true"]).image("gone").create().unwrap_err();
    assert!(matches!(error.code(), Code::NotFound | Code::FailedPrecondition), "{error:?}");
    assert!(error.message().contains("gone"), "{}", error.message());
    let after = HostSnapshot::take(&node)?;
    before.assert_same(&after)
}

#[test]
fn exit_records_are_on_disk_before_the_exit_is_told() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "record").run(&node)?;
    let container = pod.sh("exit 9").start()?;
    let status = container.wait()?;
    assert_eq!(status.exit_code, 9);
    let file = pod.container_records(&container.id).join("exit.json");
    let record: serde_json::Value =
        watch::content(&file, Deadline::in_seconds(1), |bytes| serde_json::from_slice(bytes).ok())?;
    assert_eq!(record["exit_code"], 9, "{record}");
    Ok(())
}
