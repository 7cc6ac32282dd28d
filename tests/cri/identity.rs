//! Who a container's process is: the request, the image, and the image's own passwd and group files.

use std::fs;
use std::os::unix::fs::symlink;

use podwright_tests::{BusyboxRoot, ContainerBuilder, Node, Outcome, Pod, PodBuilder, v1};
use serde_json::json;
use tonic::Code;

const SCRIPT: &str = "echo $(id -u):$(id -g):$(id -G):$HOME";

fn int(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

/// What `SCRIPT` and `ContainerStatus.user` say, which has to be the same.
fn identity(pod: &Pod, builder: ContainerBuilder<'_>) -> anyhow::Result<String> {
    let container = builder.start()?;
    let status = container.wait()?;
    let lines = container.log_lines()?;
    let text = lines.first().map(|line| line.text.clone()).unwrap_or_default();
    let told = status.user.and_then(|user| user.linux).unwrap_or_default();
    let mut fields = text.split(':');
    let mut field = || fields.next().unwrap_or_default().to_owned();
    anyhow::ensure!(
        (field(), field()) == (told.uid.to_string(), told.gid.to_string()),
        "{text}, but {told:?}"
    );
    let mut groups: Vec<i64> = field().split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let mut told_groups = told.supplemental_groups.clone();
    groups.sort_unstable();
    told_groups.sort_unstable();
    anyhow::ensure!(groups == told_groups, "{text}, but {told:?}");
    pod.client.remove(&container.id)?;
    Ok(text)
}

#[test]
fn the_images_user_counts_in_every_form_unless_the_request_says_otherwise() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "image-user").run(&node)?;
    for (number, (user, expected)) in [
        ("tester", "1000:1000:1000 29:/home/tester"),
        ("1000", "1000:1000:1000 29:/home/tester"),
        ("tester:audio", "1000:29:29:/home/tester"),
        ("tester:4242", "1000:4242:4242 29:/home/tester"),
        ("1000:audio", "1000:29:29:/home/tester"),
        ("1000:0", "1000:0:0 29:/home/tester"),
        ("4242", "4242:0:0:/"),
        ("4242:4243", "4242:4243:4243:/"),
        ("tester:", "1000:1000:1000 29:/home/tester"),
        ("", "0:0:0:/root"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("image{number}");
        BusyboxRoot::with_sidecar(&node.roots(), &name, &json!({ "User": user }))?;
        let image = || pod.sh(SCRIPT).image(&name);
        assert_eq!(identity(&pod, image())?, expected, "{user:?}");
        // A user of the request's takes the place of the image's, its group included.
        assert_eq!(identity(&pod, image().user(1))?, "1:1:1:/usr/sbin", "{user:?}");
    }
    for (number, user) in
        ["nosuch", "tester:nosuch", "4294967295", "4294967296", "-1", "a:b:c", "0x0"].into_iter().enumerate()
    {
        let name = format!("bad{number}");
        BusyboxRoot::with_sidecar(&node.roots(), &name, &json!({ "User": user }))?;
        let error = pod.sh(SCRIPT).image(&name).create().unwrap_err();
        assert!(
            matches!(error.code(), Code::InvalidArgument | Code::FailedPrecondition),
            "{user:?}: {error:?}"
        );
    }
    Ok(())
}

#[test]
fn groups_are_merged_or_strictly_those_of_the_request() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "groups").run(&node)?;
    let with = |change: fn(&mut v1::LinuxContainerSecurityContext)| {
        let builder = pod.sh(SCRIPT).security(|security| {
            security.run_as_user = Some(int(1000));
            security.supplemental_groups = vec![1234, 5678];
            change(security);
        });
        identity(&pod, builder)
    };
    assert_eq!(with(|_| ())?, "1000:1000:1000 29 1234 5678:/home/tester");
    let strict = v1::SupplementalGroupsPolicy::Strict as i32;
    assert_eq!(
        with(|security| security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict as i32)?,
        "1000:1000:1000 1234 5678:/home/tester"
    );
    assert_eq!(with(|security| security.run_as_group = Some(int(7)))?, "1000:7:7 29 1234 5678:/home/tester");
    let name = pod.sh(SCRIPT).security(|security| {
        security.run_as_username = "tester".to_owned();
        security.run_as_group = Some(int(7));
        security.supplemental_groups_policy = strict;
        security.supplemental_groups = vec![7, 29];
    });
    assert_eq!(identity(&pod, name)?, "1000:7:7 29:/home/tester");
    Ok(())
}

#[test]
fn a_home_of_the_requests_is_kept_and_exec_has_it_too() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "home").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).user(1000).start()?;
    assert_eq!(container.exec("echo $HOME")?.stdout, "/home/tester\n");
    let given = pod.command(&["sleep", "1000"]).user(1000).env("HOME", "/given").start()?;
    assert_eq!(given.exec("echo $HOME")?.stdout, "/given\n");
    assert_eq!(pod.sh("echo $HOME").user(1000).env("HOME", "/given").output()?, "/given\n");
    Ok(())
}

#[test]
fn hostile_files_neither_hang_nor_lead_out_nor_make_root() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "hostile").run(&node)?;
    let image = |name: &str| -> anyhow::Result<std::path::PathBuf> {
        let root = BusyboxRoot::bare(&node.roots(), name)?;
        let passwd = root.path.join("etc/passwd");
        fs::remove_file(&passwd)?;
        Ok(passwd)
    };
    // Whoever cannot be looked up is refused in bounded time, and the image is named.
    let refused = |name: &str| -> anyhow::Result<()> {
        let error = pod.sh(SCRIPT).image(name).user(1000).create().unwrap_err();
        anyhow::ensure!(error.code() == Code::FailedPrecondition, "{name}: {error:?}");
        anyhow::ensure!(error.message().contains(name), "{name}: {error:?}");
        Ok(())
    };
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, image("fifo")?, rustix::fs::FileType::Fifo, mode, 0)?;
    refused("fifo")?;
    symlink("/dev/zero", image("device")?)?;
    // The host's device is not in the root, so nobody is known there. (What runs inside would read its own for ever.)
    let user = pod.command(&["true"]).image("device").user(1000).start()?.status()?.user;
    let user = user.and_then(|user| user.linux).unwrap_or_default();
    assert_eq!((user.uid, user.gid), (1000, 0));
    fs::File::create(image("huge")?)?.set_len(2 << 20)?;
    refused("huge")?;
    fs::write(image("control")?, "root:x:0:0:\u{1b}[2J:/root:/bin/sh\n")?;
    refused("control")?;
    fs::create_dir(image("directory")?)?;
    refused("directory")?;

    // Links stay inside the root; the host's own files are never read.
    let outside = node.path().join("outside");
    fs::write(&outside, "tester:x:0:0::/:/bin/sh\n")?;
    symlink(&outside, image("link")?)?;
    let builder =
        pod.sh(SCRIPT).image("link").security(|security| security.run_as_username = "tester".into());
    let error = builder.create().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert_eq!(identity(&pod, pod.sh(SCRIPT).image("link").user(1000))?, "1000:0:0:/");

    // Numbers that would wrap to root are no users.
    fs::write(image("wrap")?, "zero:x:4294967296:0::/:/bin/sh\nminus:x:4294967295:0::/:/bin/sh\n")?;
    for name in ["zero", "minus"] {
        let builder =
            pod.sh(SCRIPT).image("wrap").security(|security| security.run_as_username = name.into());
        assert_eq!(builder.create().unwrap_err().code(), Code::InvalidArgument);
    }
    // Without the files everybody is a number.
    image("none")?;
    assert_eq!(identity(&pod, pod.sh(SCRIPT).image("none").user(1000))?, "1000:0:0:/");
    Ok(())
}
