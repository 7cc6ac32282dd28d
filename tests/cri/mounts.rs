//! Mounts of a request: which way mounts travel, what is read-only, what may be a source, images as volumes.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};

use podwright_tests::{BusyboxRoot, ContainerBuilder, Node, Outcome, Pod, PodBuilder, skip, v1};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use tonic::{Code, Status};

/// A tmpfs of the host's for as long as this lives.
struct HostMount(PathBuf);

impl HostMount {
    fn new(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        mount("podwright-test", path, "tmpfs", MountFlags::empty(), c"size=1m")?;
        let mounted = Self(path.to_owned());
        mount_change(path, MountPropagationFlags::PRIVATE)?;
        Ok(mounted)
    }

    fn shared(path: &Path) -> anyhow::Result<Self> {
        let mounted = Self::new(path)?;
        mount_change(path, MountPropagationFlags::SHARED)?;
        Ok(mounted)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn with_mount(builder: ContainerBuilder<'_>, change: impl FnOnce(&mut v1::Mount)) -> ContainerBuilder<'_> {
    builder.with(|config| {
        let mut mount = v1::Mount { container_path: "/data".to_owned(), ..Default::default() };
        change(&mut mount);
        config.mounts.push(mount);
    })
}

fn propagated<'pod>(
    builder: ContainerBuilder<'pod>,
    host: &Path,
    propagation: v1::MountPropagation,
) -> ContainerBuilder<'pod> {
    with_mount(builder, |mount| {
        mount.host_path = host.to_string_lossy().into_owned();
        mount.propagation = propagation as i32;
    })
}

#[test]
fn mounts_travel_the_ways_that_were_asked_for() -> Outcome {
    use v1::MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "propagation")
        .linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
        .run(&node)?;
    let host = node.path().join("shared");
    let _shared = HostMount::shared(&host)?;
    fs::create_dir(host.join("inner"))?;
    fs::create_dir(host.join("outer"))?;
    let start = |propagation| {
        let builder = pod.command(&["sleep", "1000"]).security(|security| security.privileged = true);
        propagated(builder, &host, propagation).start()
    };
    let private = start(PropagationPrivate)?;
    let downward = start(PropagationHostToContainer)?;
    let both = start(PropagationBidirectional)?;

    let _late = HostMount::new(&host.join("inner"))?;
    fs::write(host.join("inner/late"), "")?;
    let sees = "test -e /data/inner/late && echo seen || echo unseen";
    assert_eq!(private.exec(sees)?.stdout, "unseen\n");
    assert_eq!(downward.exec(sees)?.stdout, "seen\n");
    assert_eq!(both.exec(sees)?.stdout, "seen\n");

    let mounts = "mount -t tmpfs from-inside /data/outer && touch /data/outer/made && echo mounted";
    assert_eq!(private.exec(mounts)?.stdout, "mounted\n");
    assert!(!host.join("outer/made").exists(), "nothing leaves a private mount");
    assert_eq!(downward.exec(mounts)?.stdout, "mounted\n");
    assert!(!host.join("outer/made").exists(), "nothing goes up a slave");
    assert_eq!(both.exec(mounts)?.stdout, "mounted\n");
    assert!(host.join("outer/made").exists(), "it comes back to the host");
    unmount(host.join("outer"), UnmountFlags::DETACH)?;
    assert_eq!(both.exec("test -e /data/outer/made || echo gone")?.stdout, "gone\n");
    for (container, propagation) in [(&private, 0), (&downward, 1), (&both, 2)] {
        assert_eq!(container.status()?.mounts[0].propagation, propagation);
    }
    Ok(())
}

#[test]
fn a_source_that_cannot_propagate_is_refused_by_name() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "refused").run(&node)?;
    let host = node.path().join("alone");
    let _private = HostMount::new(&host)?;
    for propagation in
        [v1::MountPropagation::PropagationHostToContainer, v1::MountPropagation::PropagationBidirectional]
    {
        let error = propagated(pod.command(&["true"]), &host, propagation).create().unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        assert!(error.message().contains(&*host.to_string_lossy()), "{error:?}");
    }
    Ok(())
}

#[test]
fn read_only_is_for_the_mount_and_recursively_for_those_below() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "read-only").run(&node)?;
    let host = node.path().join("tree");
    fs::create_dir(&host)?;
    let _below = HostMount::new(&host.join("below"))?;
    let script =
        "for d in /data /data/below; do touch $d/x 2>/dev/null && echo written || echo refused; done";
    let output = |readonly, recursive| {
        let builder = with_mount(pod.sh(script), |mount| {
            mount.host_path = host.to_string_lossy().into_owned();
            mount.readonly = readonly;
            mount.recursive_read_only = recursive;
        });
        builder.output()
    };
    assert_eq!(output(false, false)?, "written\nwritten\n");
    assert_eq!(output(true, false)?, "refused\nwritten\n");
    assert_eq!(output(true, true)?, "refused\nrefused\n");
    for (readonly, propagation) in [(false, 0), (true, 1), (true, 2)] {
        let builder = with_mount(pod.sh("true"), |mount| {
            mount.host_path = host.to_string_lossy().into_owned();
            mount.readonly = readonly;
            mount.recursive_read_only = true;
            mount.propagation = propagation;
        });
        let error = builder.create().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains("config.mounts[0].recursive_read_only"), "{error:?}");
    }
    Ok(())
}

#[test]
fn sockets_fifos_and_devices_are_sources_too() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "sources").run(&node)?;
    let socket = node.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let fifo = node.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)?;
    assert!(fs::metadata(&fifo)?.file_type().is_fifo());
    let file = node.path().join("file");
    fs::write(&file, "before\n")?;
    // A file that is written by its name keeps being the same file inside.
    let container = pod
        .sh("test -S /run/one && test -p /run/two && test -c /run/three && echo kinds; echo x >/run/three; \
             cat /run/two; echo after >>/run/four; sleep 1000")
        .mount(&socket, "/run/one", false)
        .mount(&fifo, "/run/two", false)
        .mount(Path::new("/dev/null"), "/run/three", false)
        .mount(&file, "/run/four", false)
        .start()?;
    container.wait_for_log_line("kinds")?;
    fs::write(&fifo, "through the fifo\n")?;
    container.wait_for_log_line("through the fifo")?;
    podwright_tests::watch::content(&file, podwright_tests::Deadline::in_seconds(30), |bytes| {
        (bytes == b"before\nafter\n").then_some(())
    })?;
    drop(listener);
    Ok(())
}

#[test]
fn links_on_the_host_are_followed_and_dangling_ones_are_told() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "links").run(&node)?;
    let real = node.path().join("real");
    fs::create_dir(&real)?;
    fs::write(real.join("file"), "real\n")?;
    symlink("real", node.path().join("relative"))?;
    symlink(node.path().join("relative"), node.path().join("twice"))?;
    symlink("file", real.join("alias"))?;
    let output = pod
        .sh("cat /a/file /b/file /c")
        .mount(&node.path().join("relative"), "/a", true)
        .mount(&node.path().join("twice"), "/b", true)
        .mount(&node.path().join("twice/alias"), "/c", true)
        .output()?;
    assert_eq!(output, "real\nreal\nreal\n");
    let dangling = node.path().join("dangling");
    symlink(node.path().join("nowhere"), &dangling)?;
    let error = pod.sh("true").mount(&dangling, "/data", false).create().unwrap_err();
    assert!(error.message().contains("config.mounts[0].host_path"), "{error:?}");
    assert!(!node.path().join("nowhere").exists());
    Ok(())
}

#[test]
fn shared_memory_has_its_size_and_is_the_pods_alone() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "shm").run(&node)?;
    let other = PodBuilder::new(&node, "shm-other").run(&node)?;
    let script = "grep ' /dev/shm ' /proc/mounts | cut -d' ' -f3,4 | tr ',' '\\n' | grep -E 'tmpfs|nosuid|nodev|noexec|size'; \
                  stat -c %a /dev/shm; echo here >/dev/shm/note";
    assert_eq!(pod.sh(script).output()?, "tmpfs rw\nnosuid\nnodev\nnoexec\nsize=65536k\n1777\n");
    assert_eq!(pod.sh("cat /dev/shm/note").user(1000).output()?, "here\n");
    assert_eq!(other.sh("ls /dev/shm").output()?, "");
    // A volume of the request's takes its place.
    let own = node.path().join("own-shm");
    fs::create_dir(&own)?;
    assert_eq!(pod.sh("ls /dev/shm; touch /dev/shm/mine").mount(&own, "/dev/shm", false).output()?, "");
    assert!(own.join("mine").exists());
    Ok(())
}

/// What the newest CRI has and the binding of these tests does not: a request with just the fields that are needed.
#[derive(Clone, PartialEq, prost::Message)]
struct NewerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<NewerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<v1::PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NewerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<v1::ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<v1::ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<NewerMount>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<v1::LinuxContainerConfig>,
}

/// As the contract has it: <https://github.com/kubernetes/cri-api>, `Mount`.
#[derive(Clone, PartialEq, prost::Message)]
struct NewerMount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    readonly: bool,
    #[prost(message, optional, tag = "9")]
    image: Option<v1::ImageSpec>,
    #[prost(string, tag = "10")]
    image_sub_path: String,
    #[prost(string, repeated, tag = "11")]
    mount_options: Vec<String>,
}

/// Makes and runs a shell with `mounts`; what it wrote.
fn run_newer(pod: &Pod, script: &str, mounts: &[NewerMount]) -> Result<String, Status> {
    let config = pod.sh(script).config;
    let log = Path::new(&pod.config.log_directory).join(&config.log_path);
    let request = NewerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(NewerConfig {
            metadata: config.metadata,
            image: config.image,
            command: config.command,
            mounts: mounts.to_vec(),
            log_path: config.log_path,
            linux: config.linux,
        }),
        sandbox_config: Some(pod.config.clone()),
    };
    let path = "/runtime.v1.RuntimeService/CreateContainer";
    let made: v1::CreateContainerResponse = pod.client.call(path, request)?;
    pod.client.start(&made.container_id)?;
    let deadline = podwright_tests::Deadline::in_seconds(30);
    let ended = pod.client.wait_for_exit(&made.container_id, deadline);
    ended.map_err(|error| Status::internal(format!("{error:#}")))?;
    let bytes = fs::read(log).map_err(|error| Status::internal(error.to_string()))?;
    let mut text = String::new();
    for line in podwright_tests::pod::parse_log(&bytes) {
        text.push_str(&line.text);
        text.push('\n');
    }
    Ok(text)
}

fn image_volume(sub_path: &str) -> NewerMount {
    NewerMount {
        container_path: "/volume".to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec { image: "tools".to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

#[test]
fn mount_options_are_set() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "options").run(&node)?;
    let host = node.path().join("volume");
    fs::create_dir(&host)?;
    fs::copy(node.roots().join("busybox/bin/busybox"), host.join("true"))?;
    let with = |options: &[&str], script: &str| {
        let mount = NewerMount {
            container_path: "/data".to_owned(),
            host_path: host.to_string_lossy().into_owned(),
            mount_options: options.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        run_newer(&pod, script, &[mount])
    };
    let runs = "/data/true 2>/dev/null && echo runs || echo refused";
    assert_eq!(with(&[], runs)?, "runs\n");
    assert_eq!(with(&["noexec"], runs)?, "refused\n");
    let shown = "grep ' /data ' /proc/mounts | cut -d' ' -f4 | tr ',' '\\n' | grep -E '^no(exec|suid|dev|symfollow|atime)$' | sort";
    assert_eq!(
        with(&["nodev", "noatime", "nosuid", "noexec", "nosymfollow"], shown)?,
        "noatime\nnodev\nnoexec\nnosuid\nnosymfollow\n"
    );
    for (options, said) in [
        (&["noexec", "exec"][..], "contradicts"),
        (&["ro"], "readonly"),
        (&["bind"], "is not an option"),
        (&["size=1m"], "is not an option"),
        (&[""], "is not an option"),
    ] {
        let error = with(options, "true").unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{options:?}: {error:?}");
        assert!(error.message().contains("config.mounts[0].mount_options["), "{error:?}");
        assert!(error.message().contains(said), "{error:?}");
    }
    Ok(())
}

#[test]
fn an_image_is_a_read_only_volume_that_may_be_executed() -> Outcome {
    let node = Node::start()?;
    let tools = BusyboxRoot::bare(&node.roots(), "tools")?;
    fs::create_dir_all(tools.path.join("opt/inner"))?;
    fs::write(tools.path.join("opt/inner/file"), "from the image\n")?;
    symlink("inner", tools.path.join("opt/alias"))?;
    symlink("/opt/inner", tools.path.join("absolute"))?;
    symlink("/../../../../etc", tools.path.join("out"))?;
    symlink("/proc/self/root", tools.path.join("magic"))?;
    let pod = PodBuilder::new(&node, "image-volume").run(&node)?;
    let script =
        "cat /volume/opt/inner/file; /volume/bin/busybox echo runs; touch /volume/x 2>&1 | grep -c Read-only";
    assert_eq!(run_newer(&pod, script, &[image_volume("")])?, "from the image\nruns\n1\n");
    for sub_path in ["opt/inner", "opt/alias", "absolute", "opt/inner/../inner"] {
        let listed = run_newer(&pod, "cat /volume/file", &[image_volume(sub_path)]);
        match listed {
            Ok(output) => assert_eq!(output, "from the image\n", "{sub_path}"),
            Err(error) => assert!(sub_path.contains(".."), "{sub_path}: {error:?}"),
        }
    }
    assert_eq!(run_newer(&pod, "cat /volume", &[image_volume("opt/inner/file")])?, "from the image\n");

    // A path that leads out stays inside or is refused.
    let own = run_newer(&pod, "cat /volume/passwd", &[image_volume("out")])?;
    assert_eq!(own, fs::read_to_string(tools.path.join("etc/passwd"))?, "the image's own /etc");
    for sub_path in ["../tools", "/opt", "opt/../../..", "magic", "opt/missing", "opt/inner/file/x"] {
        let error = run_newer(&pod, "true", &[image_volume(sub_path)]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{sub_path}: {error:?}");
        assert!(error.message().contains("config.mounts[0].image_sub_path"), "{sub_path}: {error:?}");
    }
    let missing = NewerMount {
        image: Some(v1::ImageSpec { image: "absent".into(), ..Default::default() }),
        ..image_volume("")
    };
    assert_eq!(run_newer(&pod, "true", &[missing]).unwrap_err().code(), Code::NotFound);
    let writable = NewerMount { readonly: false, ..image_volume("") };
    assert_eq!(run_newer(&pod, "true", &[writable]).unwrap_err().code(), Code::InvalidArgument);
    assert!(!tools.path.join("x").exists());
    Ok(())
}

#[test]
fn the_status_of_an_image_volume_tells_the_image() -> Outcome {
    let node = Node::start()?;
    BusyboxRoot::bare(&node.roots(), "tools")?;
    let pod = PodBuilder::new(&node, "image-status").run(&node)?;
    let builder = with_mount(pod.command(&["sleep", "1000"]), |mount| {
        mount.readonly = true;
        mount.image = Some(v1::ImageSpec { image: "tools".to_owned(), ..Default::default() });
    });
    let status = builder.start()?.status()?;
    let mount = &status.mounts[0];
    assert_eq!((mount.container_path.as_str(), mount.host_path.as_str()), ("/data", ""));
    assert_eq!(mount.image.as_ref().map(|image| image.image.as_str()), Some("tools"));
    Ok(())
}

#[test]
fn hugetlbfs_can_be_a_volume_and_a_termination_log_is_one_file() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "huge").run(&node)?;
    let message = node.path().join("message");
    fs::write(&message, "")?;
    let script = "echo why >/dev/termination-log; ls -l /dev/termination-log | cut -c1";
    assert_eq!(pod.sh(script).mount(&message, "/dev/termination-log", false).output()?, "-\n");
    assert_eq!(fs::read_to_string(&message)?, "why\n");

    let huge = node.path().join("huge");
    fs::create_dir(&huge)?;
    if let Err(errno) = mount("podwright-test", &huge, "hugetlbfs", MountFlags::empty(), None) {
        podwright_tests::skip::skip(
            "mounts::hugetlbfs_can_be_a_volume",
            &format!("no hugetlbfs here: {errno}"),
        );
        return Ok(());
    }
    let _huge = HostMount(huge.clone());
    let output = pod.sh("grep -c ' /data hugetlbfs ' /proc/mounts").mount(&huge, "/data", false).output()?;
    assert_eq!(output, "1\n");
    Ok(())
}

#[test]
fn labels_that_mean_nothing_here_are_said_to_be_ignored() -> Outcome {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        skip::skip("labels_that_mean_nothing_here_are_said_to_be_ignored", "SELinux is on here");
        return Ok(());
    }
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "labels").run(&node)?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let relabelled = with_mount(pod.sh("touch /data/made && echo done"), |mount| {
        mount.container_path = "/data".to_owned();
        mount.host_path = data.to_string_lossy().into_owned();
        mount.selinux_relabel = true;
    });
    let container = relabelled.security(|security| {
        security.selinux_options =
            Some(v1::SeLinuxOption { r#type: "spc_t".to_owned(), ..Default::default() });
    });
    let container = container.start()?;
    assert_eq!(container.wait()?.exit_code, 0);
    assert!(container.status()?.mounts[0].selinux_relabel, "told back as it was asked for");
    assert!(data.join("made").exists());
    let log = fs::read_to_string(node.daemon_log())?;
    for wanted in ["config.mounts[0].selinux_relabel", "its selinux_options are ignored"] {
        assert!(log.contains(wanted), "{wanted} is not in the log");
    }
    Ok(())
}
