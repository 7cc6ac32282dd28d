//! What tools built for runc see of the command line itself.

use std::fs;

use podwright_tests::oci::Bundle;
use podwright_tests::{Outcome, binaries};
use serde_json::{Value, json};

fn plain(arguments: &[&str]) -> anyhow::Result<podwright_tests::oci::Ran> {
    Ok(std::process::Command::new(binaries::find("wright")?).args(arguments).output()?.into())
}

#[test]
fn help_and_version_have_runcs_shape() -> Outcome {
    for arguments in
        [&["--help"][..], &["-h"], &["help"], &[], &["create", "--help"], &["help", "exec"], &["ps", "-h"]]
    {
        let ran = plain(arguments)?;
        assert_eq!((ran.code, ran.stdout.lines().next()), (0, Some("NAME:")), "{arguments:?}");
    }
    let version = plain(&["--version"])?.ok()?;
    let mut lines = version.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("wright version ")), "{version}");
    assert!(lines.next().is_some_and(|line| line.starts_with("commit: ")), "{version}");
    assert!(lines.next().is_some_and(|line| line.starts_with("spec: 1.")), "{version}");
    assert_eq!(plain(&["-v"])?.ok()?, version);
    Ok(())
}

#[test]
fn nonsense_is_refused_in_runcs_words() -> Outcome {
    let ran = plain(&["foo"])?;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "No help topic for 'foo'\n"));
    for (arguments, words) in [
        (&["create"][..], "\"create\" requires exactly 1 argument(s)"),
        (&["state", "a", "b"], "\"state\" requires exactly 1 argument(s)"),
        (&["kill"], "\"kill\" requires a minimum of 1 argument(s)"),
        (&["kill", "a", "9", "x"], "\"kill\" requires a maximum of 2 argument(s)"),
        (&["create", "--no-such-flag", "x"], "flag provided but not defined: -no-such-flag"),
    ] {
        let ran = plain(arguments)?;
        assert!(ran.code == 1 && ran.stderr.contains(&words.replace('"', "\\\"")), "{arguments:?}: {ran:?}");
    }
    Ok(())
}

#[test]
fn errors_go_to_the_log_in_its_format_and_to_stderr() -> Outcome {
    let bundle = Bundle::new("true")?;
    let ran = bundle.wright(&["state", "nobody"])?;
    assert!(ran.stderr.starts_with("time=\""), "{ran:?}");
    assert!(ran.stderr.contains("level=error msg=\"container does not exist\""), "{ran:?}");
    let log = bundle.path().join("log");
    let log_path = log.to_string_lossy().into_owned();
    let ran = bundle.wright(&["--log", &log_path, "--log-format", "json", "start", "nobody"])?;
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "container does not exist\n"));
    let record: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    assert_eq!((&record["level"], &record["msg"]), (&json!("error"), &json!("container does not exist")));
    bundle.edit(|spec| spec["process"]["cwd"] = json!("relative"))?;
    let ran = bundle.wright(&["create", &bundle.id])?;
    assert!(ran.stderr.contains("create failed: "), "{ran:?}");
    assert!(ran.stderr.contains("process.cwd"), "{ran:?}");
    Ok(())
}

#[test]
fn a_wrong_field_is_named_and_nothing_is_left() -> Outcome {
    let bundle = Bundle::new("true")?;
    for (pointer, value, words) in [
        ("/linux/namespaces/0/type", json!("hyper"), "linux.namespaces[0].type"),
        ("/process/user/uid", json!(4_294_967_296_u64), "process.user.uid"),
        ("/linux/memoryPolicy", json!({"mode": "MPOL_X"}), "invalid memory policy"),
        ("/linux/sysctl", json!({"kernel.core_pattern": "|/x"}), "is not in a separate kernel namespace"),
        ("/linux/cgroupsPath", json!("/a/../b"), "linux.cgroupsPath"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "errnoRet 1 makes no sense for SCMP_ACT_ALLOW",
        ),
        ("/process/env", json!(["PATH=/bin", "NOVALUE"]), "missing '='"),
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        let mut before = Value::Null;
        bundle.edit(|spec| {
            before = spec.clone();
            if let Some(parent) = spec.pointer_mut(parent) {
                parent[key] = value;
            }
        })?;
        let ran = bundle.wright(&["run", &bundle.id])?;
        assert!(ran.code == 1 && ran.stderr.contains(words), "{pointer}: {ran:?}");
        bundle.edit(|spec| *spec = before)?;
    }
    assert!(!bundle.state_root().join(&bundle.id).exists());
    assert!(podwright_tests::snapshot::cgroups(&bundle.id).is_empty());
    Ok(())
}

#[test]
fn flags_may_follow_the_id() -> Outcome {
    let bundle = Bundle::new("exit 4")?;
    let path = bundle.path().to_string_lossy().into_owned();
    let mut command = bundle.command(&["run", &bundle.id, "--bundle", &path])?;
    let ran: podwright_tests::oci::Ran = command.current_dir("/").output()?.into();
    assert_eq!(ran.code, 4, "{ran:?}");
    Ok(())
}

#[test]
fn features_are_what_the_specification_lists() -> Outcome {
    let features: Value = serde_json::from_str(&plain(&["features"])?.ok()?)?;
    for pointer in [
        "/ociVersionMin",
        "/ociVersionMax",
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/cgroup/v1",
        "/linux/seccomp/actions",
        "/linux/apparmor/enabled",
        "/linux/selinux/enabled",
        "/linux/intelRdt",
        "/linux/memoryPolicy/modes",
        "/linux/mountExtensions/idmap/enabled",
        "/linux/netDevices",
        "/annotations/io.github.seccomp.libseccomp.version",
        "/potentiallyUnsafeConfigAnnotations",
    ] {
        assert!(features.pointer(pointer).is_some(), "{pointer}");
    }
    Ok(())
}
