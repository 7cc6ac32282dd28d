//! Images, which are directories.

use std::fs;

use podwright_tests::{BusyboxRoot, Client, Node, NodeOptions, Outcome, PodBuilder, v1};
use tonic::{Code, Status};

fn spec(reference: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

fn status(client: &Client, reference: &str) -> Result<Option<v1::Image>, Status> {
    Ok(client.image_status(v1::ImageStatusRequest { image: Some(spec(reference)), verbose: false })?.image)
}

fn pull(client: &Client, reference: &str) -> Result<String, Status> {
    let request = v1::PullImageRequest { image: Some(spec(reference)), ..Default::default() };
    Ok(client.pull_image(request)?.image_ref)
}

fn list(client: &Client) -> Result<Vec<v1::Image>, Status> {
    Ok(client.list_images(v1::ListImagesRequest { filter: None })?.images)
}

#[test]
fn a_directory_is_an_image_with_a_stable_id() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let id = pull(&client, "busybox")?;
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let image = status(&client, "busybox")?.unwrap();
    assert_eq!(image.id, id);
    assert!(image.size > 0 && image.pinned, "{image:?}");
    assert_eq!(image.repo_tags.len(), 1, "{image:?}");
    assert!(image.repo_tags[0].ends_with("busybox:latest"), "{image:?}");
    assert_eq!(status(&client, &id)?.unwrap().id, id, "by its id too");
    assert_eq!(status(&client, "docker.io/library/busybox:latest")?.map(|image| image.id), Some(id.clone()));
    assert_eq!(list(&client)?.len(), 1);
    node.restart()?;
    assert_eq!(status(&node.client()?, "busybox")?.unwrap().id, id, "over a restart");
    Ok(())
}

#[test]
fn what_is_not_there_is_nil_and_a_pull_names_the_places() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    assert_eq!(status(&client, "no.such/image:1")?, None);
    let error = pull(&client, "no.such/image:1").unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let places = node.roots().to_string_lossy().into_owned();
    assert!(
        error.message().contains(&places) && error.message().contains("no.such/image:1"),
        "{}",
        error.message()
    );
    Ok(())
}

#[test]
fn remove_unregisters_until_the_next_pull() -> Outcome {
    let node = Node::start()?;
    let client = node.client()?;
    let id = pull(&client, "busybox")?;
    client.remove_image(v1::RemoveImageRequest { image: Some(spec(&id)) })?;
    assert_eq!(status(&client, "busybox")?, None);
    assert!(list(&client)?.is_empty());
    client.remove_image(v1::RemoveImageRequest { image: Some(spec(&id)) })?;
    assert!(node.roots().join("busybox/bin/busybox").exists(), "the directory stays");
    node.restart()?;
    let client = node.client()?;
    assert!(list(&client)?.is_empty(), "remembered over a restart");
    assert_eq!(pull(&client, "busybox")?, id);
    assert_eq!(list(&client)?.len(), 1);
    Ok(())
}

#[test]
fn several_names_are_one_image() -> Outcome {
    let node = Node::with(&NodeOptions {
        aliases: vec![
            ("registry.k8s.io/pause:3.9".to_owned(), "busybox".to_owned()),
            ("k8s.gcr.io/pause:3.9".to_owned(), "busybox".to_owned()),
        ],
        ..Default::default()
    })?;
    let client = node.client()?;
    let id = pull(&client, "registry.k8s.io/pause:3.9")?;
    assert_eq!(pull(&client, "k8s.gcr.io/pause:3.9")?, id);
    assert_eq!(pull(&client, "busybox")?, id);
    let image = status(&client, "busybox")?.unwrap();
    for name in ["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"] {
        assert!(image.repo_tags.iter().any(|tag| tag == name), "{image:?}");
    }
    assert_eq!(list(&client)?.iter().filter(|image| image.id == id).count(), 1);
    Ok(())
}

#[test]
fn names_come_from_the_path_below_a_root() -> Outcome {
    let node = Node::start()?;
    BusyboxRoot::bare(&node.roots(), "registry.k8s.io/e2e/nginx/1.2")?;
    let client = node.client()?;
    let id = pull(&client, "registry.k8s.io/e2e/nginx:1.2")?;
    assert_eq!(status(&client, "registry.k8s.io/e2e/nginx:1.2")?.unwrap().id, id);
    assert_eq!(pull(&client, "rootfs.local/registry.k8s.io/e2e/nginx/1.2")?, id);
    assert_eq!(pull(&client, "registry.k8s.io/e2e/nginx:9").unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[test]
fn a_sidecar_says_what_runs() -> Outcome {
    let node = Node::start()?;
    BusyboxRoot::with_sidecar(
        &node.roots(),
        "app",
        &serde_json::json!({
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo default $FROM; pwd; id -u; id -g"],
            "Env": ["PATH=/bin", "FROM=sidecar"], "WorkingDir": "/var/log", "User": "tester", "StopSignal": "SIGQUIT",
        }),
    )?;
    let client = node.client()?;
    let image = {
        pull(&client, "app")?;
        status(&client, "app")?.unwrap()
    };
    assert_eq!(image.username, "tester", "{image:?}");
    let pod = PodBuilder::new(&node, "sidecar").run(&node)?;
    let default = pod.command(&[]).image("app");
    assert_eq!(default.output()?, "default sidecar\n/var/log\n1000\n1000\n");
    let args = pod.command(&[]).image("app").with(|config| config.args = vec!["echo replaced".to_owned()]);
    assert_eq!(args.output()?, "replaced\n");
    let command = pod.command(&["echo", "mine"]).image("app");
    assert_eq!(command.output()?, "mine\n", "a command takes the place of entry point and arguments");
    let override_env = pod.command(&[]).image("app").env("FROM", "request");
    assert!(override_env.output()?.starts_with("default request\n"));
    // The stop signal is the image's.
    let script = "trap 'echo quit; exit 3' QUIT; trap '' TERM; echo up; while true; do sleep 0.05; done";
    let container = pod.command(&["/bin/sh", "-c", script]).image("app").start()?;
    container.wait_for_log_line("up")?;
    container.stop(20)?;
    assert_eq!(container.status()?.exit_code, 3);
    Ok(())
}

#[test]
fn a_bundle_says_what_runs() -> Outcome {
    let node = Node::start()?;
    BusyboxRoot::bundle(&node.roots(), "bundle", &["/bin/sh", "-c", "echo $FROM"])?;
    let pod = PodBuilder::new(&node, "bundle").run(&node)?;
    pull(&pod.client, "bundle")?;
    assert_eq!(pod.command(&[]).image("bundle").output()?, "bundle\n");
    Ok(())
}

#[test]
fn a_bare_directory_needs_a_command() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "bare").run(&node)?;
    let error = pod.command(&[]).create().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    Ok(())
}

#[test]
fn a_container_keeps_its_root_when_the_entry_is_switched() -> Outcome {
    let node = Node::start()?;
    let roots = node.roots();
    for version in ["v1", "v2"] {
        let root = BusyboxRoot::bare(&roots, &format!(".versions/{version}"))?;
        fs::write(root.path.join("etc/version"), version)?;
    }
    let switch = |to: &str| -> anyhow::Result<()> {
        let next = roots.join(".next");
        std::os::unix::fs::symlink(format!(".versions/{to}"), &next)?;
        Ok(fs::rename(next, roots.join("app"))?)
    };
    switch("v1")?;
    let pod = PodBuilder::new(&node, "switch").run(&node)?;
    let old = pod.command(&["sleep", "1000"]).image("app").start()?;
    switch("v2")?;
    assert_eq!(old.exec("cat /etc/version")?.stdout, "v1");
    assert_eq!(pod.sh("cat /etc/version").image("app").output()?, "v2");
    Ok(())
}

#[test]
fn filesystems_are_told() -> Outcome {
    let node = Node::start()?;
    let info = node.client()?.image_fs_info(v1::ImageFsInfoRequest {})?;
    assert_eq!((info.image_filesystems.len(), info.container_filesystems.len()), (1, 1));
    for filesystem in info.image_filesystems.iter().chain(&info.container_filesystems) {
        assert!(filesystem.used_bytes.is_some() && filesystem.inodes_used.is_some(), "{filesystem:?}");
        assert!(filesystem.timestamp > 0, "{filesystem:?}");
        let mountpoint = &filesystem.fs_id.as_ref().unwrap().mountpoint;
        assert!(fs::metadata(mountpoint).is_ok(), "{mountpoint}");
    }
    Ok(())
}
