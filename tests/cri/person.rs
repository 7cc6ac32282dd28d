//! `podwright`, as a person uses it.

use std::fs;
use std::process::{Command, Stdio};

use podwright_tests::oci::Ran;
use podwright_tests::{Deadline, Node, Outcome, binaries, process, watch};
use rustix::process::Signal;
use serde_json::Value;

fn command(node: &Node, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(binaries::find("podwright")?);
    command
        .env("PODWRIGHT_SOCKET", node.socket())
        .env("PODWRIGHT_LOG_DIR", node.path().join("log"))
        .args(arguments)
        .stdin(Stdio::null());
    Ok(command)
}

fn podwright(node: &Node, arguments: &[&str]) -> anyhow::Result<Ran> {
    Ok(command(node, arguments)?.output()?.into())
}

fn json(node: &Node, arguments: &[&str]) -> anyhow::Result<Value> {
    let mut all = vec!["--json"];
    all.extend(arguments);
    Ok(serde_json::from_str(&podwright(node, &all)?.ok()?)?)
}

#[test]
fn run_shows_the_output_and_ends_with_its_code() -> Outcome {
    let node = Node::start()?;
    let ran = podwright(&node, &["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 9"])?;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (9, "out\n", "err\n"));
    assert!(node.client()?.pods()?.is_empty(), "--rm");
    assert_eq!(fs::read_dir(node.path().join("log"))?.count(), 1, "only the daemon's log is left");
    Ok(())
}

#[test]
fn run_takes_limits_volumes_and_variables() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let volume = format!("{}:/data", data.display());
    let script = "echo $WHO; touch /data/x; hostname; id -u; pwd";
    let arguments = [
        "run",
        "--rm",
        "-e",
        "WHO=me",
        "-v",
        &volume,
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--hostname",
        "web",
        "-u",
        "1000:1000",
        "-w",
        "/var",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    assert_eq!(podwright(&node, &arguments)?.ok()?, "me\nweb\n1000\n/var\n");
    assert!(data.join("x").exists());
    Ok(())
}

#[test]
fn a_detached_pod_is_listed_read_entered_stopped_and_removed() -> Outcome {
    let node = Node::start()?;
    let script = "n=0; while true; do n=$((n+1)); echo tick $n; sleep 0.05; done";
    let id = podwright(&node, &["run", "-d", "--name", "clock", "busybox", "sh", "-c", script])?.ok()?;
    let listed = json(&node, &["ps"])?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["id"], id.trim());
    assert_eq!((&listed[0]["name"], &listed[0]["pod"]), (&"clock".into(), &"clock".into()));
    let table = podwright(&node, &["ps"])?.ok()?;
    assert!(table.lines().count() == 2 && table.contains("clock") && !table.contains('\x1b'), "{table}");
    assert_eq!(podwright(&node, &["pods"])?.ok()?.lines().count(), 2);
    assert_eq!(podwright(&node, &["exec", "clock", "echo", "inside"])?.ok()?, "inside\n");
    assert_eq!(podwright(&node, &["exec", "clock", "sh", "-c", "exit 5"])?.code, 5);
    let inspected: Value = serde_json::from_str(&podwright(&node, &["inspect", "clock"])?.ok()?)?;
    assert!(inspected.to_string().contains(id.trim()), "{inspected}");

    let client = node.client()?;
    let log = client.container(id.trim())?.log_path;
    watch::content(log.as_ref(), Deadline::in_seconds(20), |bytes| {
        String::from_utf8_lossy(bytes).contains("tick 3").then_some(())
    })?;
    let logs = podwright(&node, &["logs", "clock"])?.ok()?;
    assert!(logs.starts_with("tick 1\ntick 2\ntick 3\n"), "{logs}");
    assert_eq!(podwright(&node, &["logs", "--tail", "1", "clock"])?.ok()?.lines().count(), 1);

    // Following ends with the container.
    let following = command(&node, &["logs", "-f", "clock"])?.stdout(Stdio::piped()).spawn()?;
    podwright(&node, &["stop", "--time", "1", "clock"])?.ok()?;
    let followed = Ran::from(following.wait_with_output()?).ok()?;
    assert!(followed.starts_with("tick 1\n"), "{followed}");
    assert_eq!(podwright(&node, &["ps"])?.ok()?.lines().count(), 1);
    assert_eq!(podwright(&node, &["ps", "-a"])?.ok()?.lines().count(), 2);
    podwright(&node, &["rm", "clock"])?.ok()?;
    assert_eq!(podwright(&node, &["pods"])?.ok()?.lines().count(), 1);
    Ok(())
}

#[test]
fn an_interrupt_stops_the_container() -> Outcome {
    let node = Node::start()?;
    let script = "trap 'echo bye; exit 4' TERM INT; echo up; while true; do sleep 0.05; done";
    let out = node.path().join("out");
    let child = command(&node, &["run", "--rm", "busybox", "sh", "-c", script])?
        .stdout(fs::File::create(&out)?)
        .spawn()?;
    watch::content(&out, Deadline::in_seconds(20), |bytes| (bytes == b"up\n").then_some(()))?;
    process::signal(child.id(), Signal::INT)?;
    let ran = Ran::from(child.wait_with_output()?);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert_eq!(fs::read_to_string(&out)?, "up\nbye\n");
    assert!(node.client()?.pods()?.is_empty());
    Ok(())
}

#[test]
fn errors_are_one_line_and_leave_nothing() -> Outcome {
    let node = Node::start()?;
    let cases: [(&[&str], &str, i32); 8] = [
        (&["run", "--rm", "no-such-root", "true"], "no-such-root", 125),
        (&["run", "--rm", "busybox", "/no/such/program"], "/no/such/program", 127),
        (&["run", "--rm", "busybox", "/etc"], "/etc", 126),
        (&["run", "--memory", "lots", "busybox", "true"], "lots", 125),
        (&["run", "-v", "nonsense", "busybox", "true"], "nonsense", 125),
        (&["logs", "nobody"], "nobody", 125),
        (&["stop", "nobody"], "nobody", 125),
        (&["inspect", "nobody"], "nobody", 125),
    ];
    for (arguments, names, code) in cases {
        let ran = podwright(&node, arguments)?;
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(names), "{arguments:?}: {}", ran.stderr);
    }
    assert!(node.client()?.pods()?.is_empty());
    let nowhere =
        Command::new(binaries::find("podwright")?).args(["--socket", "/no/such.sock", "ps"]).output()?;
    let nowhere = Ran::from(nowhere);
    assert!(nowhere.code != 0 && nowhere.stderr.contains("/no/such.sock"), "{nowhere:?}");
    assert_eq!(nowhere.stderr.lines().count(), 1, "{nowhere:?}");
    Ok(())
}

#[test]
fn a_reader_that_goes_away_is_no_error() -> Outcome {
    let node = Node::start()?;
    for arguments in [
        &["run", "--rm", "busybox", "seq", "1", "100000"][..],
        &["rootfs", "ls"],
        &["--json", "rootfs", "ls"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output =
            command(&node, arguments)?.stdout(writer).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(node.client()?.pods()?.is_empty());
    Ok(())
}

#[test]
fn root_filesystems_are_listed_shown_and_named() -> Outcome {
    let node = Node::start()?;
    let table = podwright(&node, &["rootfs", "ls"])?.ok()?;
    assert!(table.contains("busybox"), "{table}");
    let shown = podwright(&node, &["rootfs", "show", "busybox"])?.ok()?;
    assert!(shown.contains(node.roots().join("busybox").to_str().unwrap()), "{shown}");
    let directory = node.roots().join("busybox");
    podwright(&node, &["rootfs", "add", "example.com/mine:1", directory.to_str().unwrap()])?.ok()?;
    assert_eq!(podwright(&node, &["run", "--rm", "example.com/mine:1", "echo", "named"])?.ok()?, "named\n");
    let outside = podwright(&node, &["rootfs", "add", "example.com/out:1", "/usr"])?;
    assert!(outside.code != 0 && outside.stderr.contains("/usr"), "{outside:?}");
    Ok(())
}

#[test]
fn doctor_and_version_answer_with_and_without_a_daemon() -> Outcome {
    let node = Node::start()?;
    let version = podwright(&node, &["version", "--wait", "20"])?.ok()?;
    assert!(version.contains("podwright") && version.contains("v1"), "{version}");
    let findings = podwright(&node, &["doctor"])?;
    assert!(!findings.stdout.is_empty(), "{findings:?}");
    json(&node, &["doctor"])?;
    let without = Ran::from(
        Command::new(binaries::find("podwright")?).args(["--socket", "/no/such.sock", "doctor"]).output()?,
    );
    assert!(
        without.stdout.contains("/no/such.sock") || without.stderr.contains("/no/such.sock"),
        "{without:?}"
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(podwright(&node, &["completion", shell])?.ok()?.contains("podwright"));
    }
    Ok(())
}
