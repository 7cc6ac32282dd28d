//! Mounts beyond the common ones: what is there already mounted anew, layers of an overlay.

use std::fs;

use podwright_tests::Outcome;
use podwright_tests::oci::Bundle;
use serde_json::{Value, json};

/// A bundle that runs `script` with more mounts.
fn with_mounts(script: &str, mounts: &[Value]) -> anyhow::Result<Bundle> {
    let bundle = Bundle::new(script)?;
    bundle.edit(|spec| {
        if let Some(Value::Array(present)) = spec.get_mut("mounts") {
            present.extend_from_slice(mounts);
        }
    })?;
    Ok(bundle)
}

/// The options of what is mounted at `path`, as a container's /proc/mounts told them, comma-separated.
fn options<'a>(text: &'a str, path: &str) -> Vec<&'a str> {
    let line = text.lines().rfind(|line| line.split(' ').nth(1) == Some(path));
    line.and_then(|line| line.split(' ').nth(3)).unwrap_or_default().split(',').collect()
}

#[test]
fn a_remount_changes_what_is_mounted_already() -> Outcome {
    let script = "cat /proc/mounts; touch /tmp/x 2>&1; touch /run/x && echo written";
    let tmpfs = |place: &str, options: &[&str]| json!({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options});
    let bundle = with_mounts(
        script,
        &[
            tmpfs("/tmp", &["nosuid", "size=1m"]),
            tmpfs("/run", &["ro", "nodev"]),
            tmpfs("/tmp", &["remount", "ro", "noexec", "size=2m"]),
            tmpfs("/run", &["remount", "rw"]),
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["remount", "nosuid"]}),
        ],
    )?;
    fs::create_dir_all(bundle.path().join("rootfs/run"))?;
    let text = bundle.wright(&["run", &bundle.id])?.ok()?;
    let tmp = options(&text, "/tmp");
    for (word, expected) in [("ro", true), ("noexec", true), ("size=2048k", true), ("nosuid", false)] {
        assert_eq!(tmp.contains(&word), expected, "{word}: {tmp:?}");
    }
    let run = options(&text, "/run");
    assert!(run.contains(&"rw") && !run.contains(&"nodev"), "{run:?}");
    assert!(options(&text, "/proc").contains(&"nosuid"), "{text}");
    assert!(text.contains("/tmp/x: Read-only file system") && text.contains("written"), "{text}");
    Ok(())
}

#[test]
fn a_remount_of_nothing_or_of_the_root_is_refused() -> Outcome {
    for place in ["/tmp", "/up", "/dev/null"] {
        let remount =
            json!({"destination": place, "type": "tmpfs", "source": "x", "options": ["remount", "nosuid"]});
        let bundle = with_mounts("true", &[remount])?;
        std::os::unix::fs::symlink("/", bundle.path().join("rootfs/up"))?;
        let ran = bundle.wright(&["run", &bundle.id])?;
        let words = format!("mount {place}: ");
        assert!(ran.code == 1 && ran.stderr.contains(&words), "{place}: {ran:?}");
    }
    Ok(())
}

/// fsconfig(2) takes 255 bytes, mount(2) a page: podman's overlay volumes have long paths.
#[test]
fn the_layers_of_an_overlay_may_have_long_paths() -> Outcome {
    let bundle = Bundle::new("cat /tmp/file /tmp/other; touch /tmp/new; cat /proc/mounts")?;
    let long = bundle.path().join("l".repeat(200)).join("m".repeat(100));
    let [lower, below, upper, work] = ["lower", "below", "upper", "work"].map(|name| long.join(name));
    for directory in [&lower, &below, &upper, &work] {
        fs::create_dir_all(directory)?;
    }
    fs::write(lower.join("file"), "of a layer\n")?;
    fs::write(below.join("other"), "of another\n")?;
    let options = [
        format!("lowerdir={}:{}", lower.display(), below.display()),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    bundle.edit(|spec| {
        if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
            mounts.push(
                json!({"destination": "/tmp", "type": "overlay", "source": "overlay", "options": options}),
            );
        }
    })?;
    let text = bundle.wright(&["run", &bundle.id])?.ok()?;
    assert!(text.starts_with("of a layer\nof another\n"), "{text}");
    assert!(upper.join("new").exists(), "{text}");
    let missing = long.join("none").display().to_string();
    bundle.edit(|spec| {
        if let Some(mount) = spec["mounts"].as_array_mut().and_then(|mounts| mounts.last_mut()) {
            mount["options"][0] = json!(format!("lowerdir={missing}:{}", below.display()));
        }
    })?;
    let ran = bundle.wright(&["run", &bundle.id])?;
    let named = ran.stderr.contains(&format!("lowerdir {missing}: no such file or directory"));
    assert!(ran.code == 1 && named, "{ran:?}");
    Ok(())
}
