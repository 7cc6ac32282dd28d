//! Devices of the host, and devices by name (the Container Device Interface).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use podwright_tests::{HostSnapshot, Node, NodeOptions, Outcome, PodBuilder, pod, temporary, v1};
use tonic::Code;

fn device(host: &str, container: &str, permissions: &str) -> v1::Device {
    v1::Device {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    }
}

/// Whether the device cgroup lets a node be opened. The number 240:77 is for local use and nobody's: what may be opened has no driver.
const TRY: &str =
    "try() { if eval \": $2\" 2>&1 | grep -q 'not permitted'; then echo no $1; else echo $1; fi; }";

#[test]
fn permissions_of_a_device_are_the_kernels_to_keep() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "permissions").run(&node)?;
    let own = node.path().join("device");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let number = rustix::fs::makedev(240, 77);
    rustix::fs::mknodat(rustix::fs::CWD, &own, rustix::fs::FileType::CharacterDevice, mode, number)?;
    let path = own.to_string_lossy().into_owned();
    let script = format!("{TRY}; try read '</dev/it'; try write '>>/dev/it'");
    for (permissions, expected) in [
        ("r", "read\nno write\n"),
        ("w", "no read\nwrite\n"),
        ("rw", "read\nwrite\n"),
        ("rwm", "read\nwrite\n"),
        ("", "read\nwrite\n"),
        ("m", "no read\nno write\n"),
    ] {
        let output = pod
            .sh(&script)
            .with(|config| config.devices.push(device(&path, "/dev/it", permissions)))
            .output()?;
        assert_eq!(output, expected, "{permissions:?}");
    }
    let missing = pod
        .command(&["true"])
        .with(|config| config.devices.push(device("/dev/no-such-device", "/dev/x", "rwm")))
        .create()
        .unwrap_err();
    assert_eq!(missing.code(), Code::FailedPrecondition, "{missing:?}");
    assert!(missing.message().contains("/dev/no-such-device"), "{missing:?}");
    Ok(())
}

#[test]
fn links_and_directories_of_devices_are_followed() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "links").run(&node)?;
    let link = node.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link)?;
    let directory = node.path().join("many/below");
    fs::create_dir_all(&directory)?;
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    for (name, minor) in [("zero", 5), ("full", 7)] {
        let number = rustix::fs::makedev(1, minor);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, directory.join(name), kind, mode, number)?;
    }
    let output = pod
        .sh("ls -l /dev/linked | cut -c1; ls /dev/many/below; head -c 2 /dev/many/below/zero | wc -c")
        .with(|config| {
            config.devices.push(device(&link.to_string_lossy(), "/dev/linked", "rwm"));
            let many = node.path().join("many").to_string_lossy().into_owned();
            config.devices.push(device(&many, "/dev/many", "rw"));
        })
        .output()?;
    assert_eq!(output, "c\nfull\nzero\n2\n");
    Ok(())
}

/// A node with an own directory for CDI files in the place of the host's.
fn cdi_node() -> anyhow::Result<(Node, tempfile::TempDir)> {
    let place = temporary::directory()?;
    let extra_config =
        format!("[devices]\ncdi_spec_dirs = [\"{0}/etc\", \"{0}/run\"]\n", place.path().display());
    fs::create_dir_all(place.path().join("etc"))?;
    let node = Node::with(&NodeOptions { extra_config, ..Default::default() })?;
    Ok((node, place))
}

fn asks(names: &[&str]) -> impl FnOnce(&mut v1::ContainerConfig) {
    let devices = names.iter().map(|&name| v1::CdiDevice { name: name.to_owned() }).collect();
    move |config| config.cdi_devices = devices
}

#[test]
fn a_cdi_device_brings_nodes_mounts_variables_and_hooks() -> Outcome {
    let (node, directory) = cdi_node()?;
    let place = directory.path();
    let data = place.join("data");
    fs::create_dir(&data)?;
    fs::write(data.join("library"), "of the vendor\n")?;
    let trace = place.join("trace");
    let hook = place.join("hook");
    fs::write(&hook, format!("#!/bin/sh\ncat >/dev/null\necho \"$1 $FROM\" >>{}\n", trace.display()))?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let hooks: Vec<_> = ["createRuntime", "poststart", "poststop"]
        .map(|name| {
            format!(
                "{{\"hookName\": \"{name}\", \"path\": \"{}\", \"args\": [\"hook\", \"{name}\"], \"env\": [\"FROM=cdi\"]}}",
                hook.display()
            )
        })
        .into();
    let file = format!(
        r#"{{"cdiVersion": "1.0.0", "kind": "vendor.example/card",
            "containerEdits": {{"env": ["DRIVER=7"], "additionalGids": [4242],
                "mounts": [{{"hostPath": "{data}", "containerPath": "/opt/vendor", "options": ["ro", "bind"]}}],
                "hooks": [{hooks}]}},
            "devices": [
                {{"name": "card0", "containerEdits": {{"env": ["CARD=0"],
                    "deviceNodes": [{{"path": "/dev/card0", "type": "c", "major": 240, "minor": 77, "permissions": "r"}}]}}}},
                {{"name": "card1", "containerEdits": {{"env": ["CARD=1"],
                    "deviceNodes": [{{"path": "/dev/card1", "hostPath": "/dev/null"}}]}}}}]}}"#,
        data = data.display(),
        hooks = hooks.join(", "),
    );
    fs::write(place.join("etc/vendor.json"), file)?;

    let pod = PodBuilder::new(&node, "cdi").run(&node)?;
    let script = "TRY; cat /opt/vendor/library; (: >/opt/vendor/x) 2>/dev/null || echo read-only; echo $DRIVER $CARD; id -G; \
                  try read '</dev/card0'; try write '>>/dev/card0'; ls /dev/card*; sleep 1000"
        .replace("TRY", TRY);
    let container =
        pod.sh(&script).with(asks(&["vendor.example/card=card0", "vendor.example/card=card1"])).start()?;
    container.wait_for_log_line("/dev/card1")?;
    let lines: Vec<_> = container.log_lines()?.into_iter().map(|line| line.text).collect();
    assert_eq!(
        lines,
        ["of the vendor", "read-only", "7 1", "0 4242", "read", "no write", "/dev/card0", "/dev/card1"]
    );
    let ran = || fs::read_to_string(&trace);
    assert_eq!(ran()?, "createRuntime cdi\npoststart cdi\n", "once for both devices");
    container.stop(0)?;
    container.remove()?;
    assert_eq!(ran()?, "createRuntime cdi\npoststart cdi\npoststop cdi\n");

    // Without the device there is nothing of it.
    assert_eq!(pod.sh("ls /dev/card* /opt 2>/dev/null; echo $DRIVER").output()?, "\n");
    Ok(())
}

#[test]
fn annotations_ask_for_cdi_devices_too_and_each_comes_once() -> Outcome {
    let (node, directory) = cdi_node()?;
    let place = directory.path();
    let yaml = "cdiVersion: \"0.6.0\"\nkind: vendor.example/card\ndevices:\n- name: all\n  containerEdits:\n    env:\n    - BY=yaml\n    \
                deviceNodes:\n    - path: /dev/card\n      hostPath: /dev/zero\n";
    fs::write(place.join("etc/vendor.yaml"), yaml)?;
    let pod = PodBuilder::new(&node, "annotated").run(&node)?;
    let output = pod
        .sh("echo $BY; head -c 3 /dev/card | wc -c")
        .with(asks(&["vendor.example/card=all"]))
        .with(|config| {
            config.annotations = pod::labels(&[("cdi.k8s.io/plugin_0", "vendor.example/card=all")]);
        })
        .output()?;
    assert_eq!(output, "yaml\n3\n");
    Ok(())
}

#[test]
fn cdi_directories_are_read_anew_and_an_unknown_device_is_refused() -> Outcome {
    let (node, directory) = cdi_node()?;
    let place = directory.path();
    let pod = PodBuilder::new(&node, "anew").run(&node)?;
    pod.command(&["true"]).create()?.remove()?;
    let before = HostSnapshot::take(&node)?;
    let create = || pod.sh("echo $FROM").name("asks").with(asks(&["vendor.example/card=0"]));
    let error = create().create().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    let directory = place.join("etc").to_string_lossy().into_owned();
    for text in ["vendor.example/card=0", &directory] {
        assert!(error.message().contains(text), "{error:?}");
    }
    fs::write(place.join("etc/broken.json"), "{")?;
    let error = create().create().unwrap_err();
    assert!(error.message().contains("broken.json"), "a file that cannot be used is told: {error:?}");
    before.assert_same(&HostSnapshot::take(&node)?)?;

    let file = |from: &str| {
        format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "vendor.example/card", "devices": [{{"name": "0", "containerEdits": {{"env": ["FROM={from}"]}}}}]}}"#
        )
    };
    fs::write(place.join("etc/a.json"), file("etc"))?;
    let run = create().start()?;
    run.wait()?;
    assert_eq!(run.log_lines()?[0].text, "etc");
    run.remove()?;
    fs::create_dir(place.join("run"))?;
    fs::write(place.join("run/a.json"), file("run"))?;
    let run = create().start()?;
    run.wait()?;
    assert_eq!(run.log_lines()?.last().map(|line| line.text.clone()).as_deref(), Some("run"));
    run.remove()?;
    for bad in ["card", "vendor.example/card", "vendor.example/card=../0", ""] {
        let error = pod.command(&["true"]).with(asks(&[bad])).create().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{bad}: {error:?}");
    }
    Ok(())
}

/// The runtime-spec's lifecycle, step 9.
#[test]
fn a_container_whose_poststart_hook_fails_is_stopped() -> Outcome {
    let (node, place) = cdi_node()?;
    let file = r#"{"cdiVersion": "1.0.0", "kind": "vendor.example/card",
        "containerEdits": {"hooks": [{"hookName": "poststart", "path": "/bin/false"}]},
        "devices": [{"name": "card0", "containerEdits": {"env": ["CARD=0"]}}]}"#;
    fs::write(place.path().join("etc/vendor.json"), file)?;
    let pod = PodBuilder::new(&node, "poststart").run(&node)?;
    let container = pod.sh("sleep 1000; true").with(asks(&["vendor.example/card=card0"])).create()?;
    let refused = container.start().map_err(|status| status.message().to_owned());
    assert!(refused.as_ref().is_err_and(|text| text.contains("poststart hook #0")), "{refused:?}");
    assert_eq!(container.wait()?.reason, "StartError");
    Ok(())
}
