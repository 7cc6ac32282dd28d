//! Attacks that worked on other runtimes; each must fail here, and the host must be as before.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use podwright_tests::oci::Bundle;
use podwright_tests::{Outcome, binaries};
use rustix::fs::{CWD, Mode, RenameFlags, mkfifoat, renameat_with};
use serde_json::{Value, json};

const FOREVER: &str = "echo up; sleep 100000";

/// A digest of a file, to see whether it was touched.
fn digest(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("sha256sum").arg(path).output()?;
    ensure!(output.status.success(), "sha256sum {}", path.display());
    Ok(output.stdout)
}

/// A bundle whose container has every capability and may write everywhere: the attacker at its strongest without another mount.
fn privileged(script: &str) -> Result<Bundle> {
    let bundle = Bundle::new(script)?;
    bundle.edit(|spec| {
        let all: Vec<Value> = (0..41).filter_map(capability).collect();
        for set in ["bounding", "effective", "permitted", "inheritable"] {
            spec["process"]["capabilities"][set] = Value::Array(all.clone());
        }
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    })?;
    Ok(bundle)
}

fn capability(number: u32) -> Option<Value> {
    // Those that an attack on files and processes needs.
    let name = match number {
        0 => "CAP_CHOWN",
        1 => "CAP_DAC_OVERRIDE",
        2 => "CAP_DAC_READ_SEARCH",
        3 => "CAP_FOWNER",
        5 => "CAP_KILL",
        19 => "CAP_SYS_PTRACE",
        21 => "CAP_SYS_ADMIN",
        _ => return None,
    };
    Some(json!(name))
}

#[test]
fn the_runtimes_binary_cannot_be_overwritten() -> Outcome {
    let wright = binaries::find("wright")?;
    let before = digest(&wright)?;
    // While the runtime is exec'd into the container, everything there tries to write to its program.
    let bundle = privileged(
        "echo up; while true; do for p in /proc/[0-9]*; do (echo x > $p/exe) 2>/dev/null && echo WROTE $p; done; done",
    )?;
    crate::start(&bundle)?;
    for _ in 0..10 {
        let _ = bundle.wright(&["exec", &bundle.id, "true"])?;
    }
    assert_eq!(digest(&wright)?, before);
    let out = bundle.stdout()?;
    assert!(!out.contains("WROTE"), "{out}");
    Ok(())
}

#[test]
fn a_program_that_is_the_runtime_itself_cannot_be_written() -> Outcome {
    let wright = binaries::find("wright")?;
    let before = digest(&wright)?;
    let bundle = privileged("true")?;
    let script = bundle.path().join("rootfs/bin/attack");
    fs::write(&script, "#!/proc/self/exe\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let writer = "echo up; /bin/attack >/dev/null 2>&1 & p=$!; for i in 1 2 3 4 5 6 7 8 9; do (cat /bin/busybox > /proc/$p/exe) 2>/dev/null; done; \
                  exec 9</proc/$p/exe; wait; (cat /bin/busybox > /proc/self/fd/9) 2>/dev/null; sleep 0.2";
    bundle.edit(|spec| spec["process"]["args"] = json!(["/bin/sh", "-c", writer]))?;
    let _ = bundle.wright(&["run", &bundle.id])?;
    assert_eq!(digest(&wright)?, before);
    bundle.edit(|spec| spec["process"]["args"] = json!(["/bin/attack"]))?;
    let _ = bundle.wright(&["run", &bundle.id])?;
    bundle.edit(|spec| spec["process"]["args"] = json!(["/proc/self/exe", "list"]))?;
    let _ = bundle.wright(&["run", &bundle.id])?;
    assert_eq!(digest(&wright)?, before);
    let ran = Command::new(&wright).arg("--version").output()?;
    assert!(ran.status.success());
    Ok(())
}

#[test]
fn no_descriptor_is_a_way_out() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    for number in 0..64 {
        let cwd = format!("/proc/self/fd/{number}");
        bundle.edit(|spec| {
            spec["process"]["cwd"] = json!(cwd);
            spec["process"]["args"] =
                json!(["/bin/sh", "-c", "test -e ./etc/shadow -o -e ../../../../etc/shadow && echo ESCAPED"]);
        })?;
        let ran = bundle.wright(&["run", &bundle.id])?;
        assert!(!ran.stdout.contains("ESCAPED"), "{cwd}: {ran:?}");
    }
    bundle.edit(|spec| {
        spec["process"]["cwd"] = json!("/");
        spec["process"]["args"] = json!(["/bin/sh", "-c", FOREVER]);
    })?;
    crate::start(&bundle)?;
    for number in 0..64 {
        let cwd = format!("/proc/self/fd/{number}");
        let arguments =
            ["exec", "--cwd", &cwd, &bundle.id, "sh", "-c", "ls ../../../../etc/shadow && echo ESCAPED"];
        let ran = bundle.wright(&arguments)?;
        assert!(!ran.stdout.contains("ESCAPED"), "{cwd}: {ran:?}");
    }
    Ok(())
}

/// How a name in a hostile root is made.
#[derive(Debug, Clone, Copy)]
enum Trap {
    Out,
    Dangling,
    File,
    Fifo,
}

fn lay(path: &Path, trap: Trap, outside: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        fs::remove_dir_all(path)?;
    } else {
        let _ = fs::remove_file(path);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match trap {
        Trap::Out => symlink(outside, path)?,
        Trap::Dangling => symlink("/nowhere/at/all", path)?,
        Trap::File => fs::write(path, "")?,
        Trap::Fifo => mkfifoat(CWD, path, Mode::from_raw_mode(0o666))?,
    }
    Ok(())
}

#[test]
fn hostile_roots_neither_hang_nor_reach_the_host() -> Outcome {
    for name in ["dev", "proc", "sys", "etc", "run", "etc/passwd", "dev/null", "dev/pts", "dev/console"] {
        for trap in [Trap::Out, Trap::Dangling, Trap::File, Trap::Fifo] {
            let bundle = Bundle::new("echo ran")?;
            let outside = bundle.path().join("outside");
            fs::create_dir(&outside)?;
            fs::write(outside.join("witness"), "intact")?;
            lay(&bundle.path().join("rootfs").join(name), trap, &outside)?;
            let mut command = bundle.command(&["run", &bundle.id])?;
            let child =
                command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
            let pid = child.id();
            podwright_tests::process::wait_gone(pid, podwright_tests::Deadline::in_seconds(30))
                .map_err(|error| error.context(format!("{name} as {trap:?} hangs")))?;
            let mut child = child;
            child.wait()?;
            let left: Vec<_> = fs::read_dir(&outside)?.collect();
            ensure!(left.len() == 1, "{name} as {trap:?}: something was made outside: {left:?}");
            ensure!(fs::read_to_string(outside.join("witness"))? == "intact");
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(
                !mounts.contains(&*bundle.path().to_string_lossy()),
                "{name} as {trap:?}: a mount on the host"
            );
        }
    }
    Ok(())
}

#[test]
fn a_mount_target_that_is_swapped_meanwhile_stays_inside() -> Outcome {
    let bundle = Bundle::new("true")?;
    let root = bundle.path().join("rootfs");
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside)?;
    fs::create_dir_all(root.join("swap/target"))?;
    symlink(&outside, root.join("link"))?;
    bundle.edit(|spec| {
        if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
            mounts.push(json!({"destination": "/swap/target/deep", "type": "tmpfs", "source": "tmpfs"}));
        }
    })?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = renameat_with(CWD, root.join("swap"), CWD, root.join("link"), RenameFlags::EXCHANGE);
            }
        });
        let raced = (0..60).try_for_each(|_| {
            let _ = bundle.wright(&["run", &bundle.id])?;
            ensure!(fs::read_dir(&outside)?.next().is_none(), "something was made outside the root");
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(!mounts.contains(&*outside.to_string_lossy()), "a mount outside the root");
            Ok(())
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        raced
    })
}

#[test]
fn a_redirected_procfs_is_not_written_through() -> Outcome {
    // /proc is the image's, and leads elsewhere; the labels, sysctls and scores that are written must not follow it.
    let bundle = Bundle::new("true")?;
    let outside = bundle.path().join("outside");
    fs::create_dir_all(outside.join("sys/net/ipv4"))?;
    fs::write(outside.join("sys/net/ipv4/ip_forward"), "0")?;
    bundle.edit(|spec| {
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
            mounts.retain(|mount| mount["destination"] != "/proc");
            mounts.insert(
                0,
                json!({"destination": "/proc", "type": "none", "source": outside, "options": ["bind"]}),
            );
        }
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    })?;
    let _ = bundle.wright(&["run", &bundle.id])?;
    assert_eq!(fs::read_to_string(outside.join("sys/net/ipv4/ip_forward"))?, "0");
    Ok(())
}

#[test]
fn a_huge_passwd_and_huge_users_are_refused_or_ignored() -> Outcome {
    let bundle = Bundle::new("echo $HOME")?;
    let passwd = fs::OpenOptions::new().write(true).open(bundle.path().join("rootfs/etc/passwd"))?;
    passwd.set_len(4 << 30)?;
    let mut command = bundle.command(&["run", &bundle.id])?;
    let mut child =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
    podwright_tests::process::wait_gone(child.id(), podwright_tests::Deadline::in_seconds(30))?;
    child.wait()?;
    for uid in [json!(4_294_967_296_u64), json!(4_294_967_295_u64), json!(-1), json!("0"), json!(1.5)] {
        bundle.edit(|spec| spec["process"]["user"]["uid"] = uid.clone())?;
        let ran = bundle.wright(&["run", &bundle.id])?;
        assert!(ran.code == 1 && ran.stderr.contains("process.user.uid"), "{uid}: {ran:?}");
    }
    Ok(())
}

#[test]
fn a_killed_container_leaves_nothing() -> Outcome {
    let bundle = Bundle::new("kill -9 $$")?;
    // PID 1 cannot kill itself.
    bundle.edit(|spec| {
        spec["linux"]["namespaces"] =
            json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}]);
    })?;
    for _ in 0..20 {
        assert_eq!(bundle.wright(&["run", &bundle.id])?.code, 137);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&*bundle.path().to_string_lossy()), "{mounts}");
    assert!(podwright_tests::snapshot::cgroups(&bundle.id).is_empty());
    Ok(())
}
