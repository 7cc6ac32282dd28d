//! What the public CRI test suite expects and a reader of the contract would not guess: a table for each such rule.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use podwright_tests::{BusyboxRoot, Client, Deadline, Node, Outcome, Pod, PodBuilder, process, v1};
use serde_json::json;
use tonic::Code;
use v1::security_profile::ProfileType;

fn spec(reference: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

fn pull(client: &Client, reference: &str) -> anyhow::Result<String> {
    let request = v1::PullImageRequest { image: Some(spec(reference)), ..Default::default() };
    Ok(client.pull_image(request)?.image_ref)
}

fn image(client: &Client, reference: &str) -> anyhow::Result<Option<v1::Image>> {
    let request = v1::ImageStatusRequest { image: Some(spec(reference)), verbose: false };
    Ok(client.image_status(request)?.image)
}

fn remove_image(client: &Client, reference: &str) -> Outcome {
    client.remove_image(v1::RemoveImageRequest { image: Some(spec(reference)) })?;
    Ok(())
}

#[test]
fn one_id_is_told_of_an_image_everywhere() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "ids").run(&node)?;
    let client = &pod.client;
    let id = pull(client, "busybox")?;
    for reference in ["busybox", "busybox:latest", id.as_str()] {
        let image = image(client, reference)?.with_context(|| format!("image {reference}"))?;
        assert_eq!(image.id, id, "{reference}");
        assert!(image.size > 0, "{reference}");
        // kubelet creates containers by the id that ImageStatus gave.
        let container = pod.command(&["true"]).image(reference).create()?;
        assert_eq!(container.status()?.image_ref, id, "{reference}");
        let listed = client.containers()?.into_iter().find(|listed| listed.id == container.id);
        assert_eq!(listed.map(|listed| listed.image_ref).as_deref(), Some(id.as_str()), "{reference}");
        container.remove()?;
    }
    assert!(image(client, "no.such/image")?.is_none(), "a missing image is nil, and no error");
    Ok(())
}

#[test]
fn an_image_is_removed_by_id_and_again_and_by_several_at_once() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let id = pull(&client, "busybox")?;
    for reference in [id.as_str(), id.as_str(), "busybox", "no.such/image"] {
        remove_image(&client, reference).context(reference.to_owned())?;
        let images = client.list_images(v1::ListImagesRequest { filter: None })?.images;
        assert!(images.iter().all(|image| image.id != id), "{reference}: {images:?}");
    }
    assert!(node.roots().join("busybox/bin/busybox").exists(), "the directory stays");
    pull(&client, "busybox")?;
    let removers: Vec<_> = (0..5)
        .map(|_| {
            let (client, id) = (node.client(), id.clone());
            std::thread::spawn(move || remove_image(&client?, &id))
        })
        .collect();
    for remover in removers {
        remover.join().expect("a remover")?;
    }
    Ok(())
}

#[test]
fn what_is_not_there_is_stopped_and_removed_and_has_no_status() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let id = "0123456789abcdef";
    client.stop(id, 1)?;
    client.remove(id)?;
    client.stop_pod(id)?;
    client.remove_pod(id)?;
    remove_image(&client, "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")?;
    assert_eq!(client.container(id).unwrap_err().code(), Code::NotFound);
    assert_eq!(client.pod(id).unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[test]
fn removing_a_running_container_kills_it() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "kill").run(&node)?;
    let container = pod.command(&["sleep", "100000"]).start()?;
    let pid = container.pid()?;
    container.remove()?;
    assert!(!process::all()?.iter().any(|process| process.pid == pid), "process {pid} is gone");
    assert_eq!(container.status().unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[test]
fn an_exec_that_times_out_is_an_error_and_a_stop_is_not_late() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "late").run(&node)?;
    let container = pod.sh("trap '' TERM; echo up; while true; do sleep 0.05; done").start()?;
    container.wait_for_log_line("up")?;
    let error = pod.client.exec_in(&container.id, &["sleep", "77777"], 1).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let left = container.exec("ps | grep -c '[s]leep 77777'")?;
    assert_eq!(left.stdout.trim(), "0", "nothing of it is left");
    let deadline = Deadline::in_seconds(20);
    container.stop(1)?;
    assert!(deadline.left().unwrap_or_default() > Duration::ZERO, "it returns soon after its own timeout");
    Ok(())
}

/// What a container's request must not say: what, how, and a word of the answer.
type Refusal = (&'static str, fn(&mut v1::ContainerConfig), &'static str);

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn read_only(config: &mut v1::ContainerConfig, readonly: bool, propagation: v1::MountPropagation) {
    config.mounts.push(v1::Mount {
        host_path: "/tmp".to_owned(),
        container_path: "/mnt".to_owned(),
        readonly,
        recursive_read_only: true,
        propagation: propagation as i32,
        ..Default::default()
    });
}

const REFUSALS: [Refusal; 6] = [
    (
        "a group without a user",
        |config| security(config).run_as_group = Some(v1::Int64Value { value: 1000 }),
        "run_as_group",
    ),
    (
        "recursive read-only without read-only",
        |config| read_only(config, false, v1::MountPropagation::PropagationPrivate),
        "recursive_read_only",
    ),
    (
        "recursive read-only with propagation from the host",
        |config| read_only(config, true, v1::MountPropagation::PropagationHostToContainer),
        "recursive_read_only",
    ),
    (
        "recursive read-only with propagation both ways",
        |config| read_only(config, true, v1::MountPropagation::PropagationBidirectional),
        "recursive_read_only",
    ),
    (
        "a relative path of a seccomp profile",
        |config| {
            security(config).seccomp = Some(v1::SecurityProfile {
                profile_type: ProfileType::Localhost as i32,
                localhost_ref: "profile.json".to_owned(),
            });
        },
        "localhost_ref",
    ),
    (
        "a reference beside RuntimeDefault",
        |config| {
            security(config).apparmor = Some(v1::SecurityProfile {
                profile_type: ProfileType::RuntimeDefault as i32,
                localhost_ref: "mine".to_owned(),
            });
        },
        "localhost_ref",
    ),
];

#[test]
fn requests_that_contradict_themselves_are_refused() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "refused").run(&node)?;
    for (what, change, word) in REFUSALS {
        let error = pod.command(&["true"]).with(change).create().expect_err(what);
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error:?}");
        assert!(error.message().contains(word), "{what}: {error:?}");
    }
    Ok(())
}

#[test]
fn seccomp_is_unconfined_without_a_word_and_by_default_with_an_empty_one() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "seccomp")
        .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
        .run(&node)?;
    let file = node.path().join("profile.json");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    fs::write(&file, profile.to_string())?;
    let of = |kind: ProfileType, reference: &str| {
        Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() })
    };
    let path = file.to_string_lossy().into_owned();
    let cases = [
        ("no profile", None, false, "0 made"),
        ("an empty profile", Some(v1::SecurityProfile::default()), false, "2 made"),
        ("Unconfined", of(ProfileType::Unconfined, ""), false, "0 made"),
        ("RuntimeDefault", of(ProfileType::RuntimeDefault, ""), false, "2 made"),
        ("Localhost", of(ProfileType::Localhost, &path), false, "2 refused"),
        ("Localhost, privileged", of(ProfileType::Localhost, &path), true, "0 made"),
    ];
    for (what, seccomp, privileged, expected) in cases {
        let script = "echo $(grep Seccomp: /proc/self/status | cut -f2) $(mkdir /tmp/x 2>/dev/null && echo made || echo refused)";
        let output = pod
            .sh(script)
            .security(|security| {
                security.seccomp = seccomp;
                security.privileged = privileged;
            })
            .output()?;
        assert_eq!(output.trim(), expected, "{what}");
    }
    let absent = of(ProfileType::Localhost, "/no/such/profile.json");
    let error = pod.command(&["true"]).security(|security| security.seccomp = absent).create().unwrap_err();
    assert!(error.message().contains("/no/such/profile.json"), "{error:?}");
    Ok(())
}

#[test]
fn a_status_has_the_mounts_of_the_request_and_no_others() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "mounts").run(&node)?;
    let (real, link) = (node.path().join("real"), node.path().join("link"));
    fs::create_dir(&real)?;
    fs::write(real.join("file"), "through the link\n")?;
    std::os::unix::fs::symlink(&real, &link)?;
    assert!(pod.command(&["true"]).create()?.status()?.mounts.is_empty(), "/proc and its like are no mounts");
    let container = pod.sh("cat /mnt/file").mount(&link, "/mnt", true).start()?;
    container.wait()?;
    assert_eq!(container.log_lines()?[0].text, "through the link");
    let mounts = container.status()?.mounts;
    assert_eq!(mounts, container.config.mounts);
    Ok(())
}

#[test]
fn an_image_can_be_a_volume_that_is_executed_and_not_written() -> Outcome {
    let node = Node::start()?;
    BusyboxRoot::bare(&node.roots(), "tools")?;
    let pod = PodBuilder::new(&node, "volume").run(&node)?;
    let volume = |config: &mut v1::ContainerConfig| {
        config.mounts.push(v1::Mount {
            container_path: "/tools".to_owned(),
            readonly: true,
            image: Some(spec("tools")),
            ..Default::default()
        });
    };
    let script = "/tools/bin/busybox echo executed; touch /tools/x 2>/dev/null || echo refused";
    assert_eq!(pod.sh(script).with(volume).output()?, "executed\nrefused\n");
    Ok(())
}

fn log_of(pod: &Pod) -> anyhow::Result<()> {
    let container = pod.sh("echo one; sleep 100000").start()?;
    container.wait_for_log_line("one")?;
    assert_eq!(container.status()?.log_path, container.log.to_string_lossy(), "the real path");
    let old = container.log.with_extension("old");
    fs::rename(&container.log, &old)?;
    let request = v1::ReopenContainerLogRequest { container_id: container.id.clone() };
    pod.client.reopen_container_log(request)?;
    assert!(container.log.exists(), "the new file is there when the call returns");
    assert_eq!(fs::read(&container.log)?, b"");
    let text = fs::read_to_string(&old)?;
    let line = text.lines().next().context("a line")?;
    let fields: Vec<_> = line.splitn(4, ' ').collect();
    assert_eq!(fields[1..], ["stdout", "F", "one"], "{line}");
    Ok(())
}

#[test]
fn a_log_is_where_the_status_says_and_is_reopened_at_once() -> Outcome {
    let node = Node::start()?;
    log_of(&PodBuilder::new(&node, "log").run(&node)?)
}
