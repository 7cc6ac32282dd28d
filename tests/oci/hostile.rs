//! Attacks that worked on other runtimes; each must fail here, and the host must be as before.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use podwright_tests::deadline::rounds;
use podwright_tests::oci::Bundle;
use podwright_tests::{Deadline, Outcome, binaries, process};
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
    for number in 0..rounds(64, 16) {
        // As it stands, and as a symlink that the image brings along.
        let (target, link) = (format!("/proc/self/fd/{number}"), bundle.path().join("rootfs/way"));
        let _ = fs::remove_file(&link);
        symlink(&target, &link)?;
        let cwd = if number % 2 == 0 { target } else { "/way".to_owned() };
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
    for number in 0..rounds(64, 16) {
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
    /// A symlink to a directory of the host, by its absolute path.
    Out,
    /// The same by enough `..` to leave any root.
    Climbing,
    Dangling,
    /// A symlink to itself.
    Circle,
    File,
    Fifo,
}

const TRAPS: [Trap; 6] = [Trap::Out, Trap::Climbing, Trap::Dangling, Trap::Circle, Trap::File, Trap::Fifo];

fn lay(path: &Path, trap: Trap, outside: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match trap {
        Trap::Out => symlink(outside, path)?,
        Trap::Climbing => symlink(format!("{}{}", "../".repeat(30), outside.display()), path)?,
        Trap::Dangling => symlink("/nowhere/at/all", path)?,
        Trap::Circle => symlink(path.file_name().unwrap_or_default(), path)?,
        Trap::File => fs::write(path, "")?,
        Trap::Fifo => mkfifoat(CWD, path, Mode::from_raw_mode(0o666))?,
    }
    Ok(())
}

/// Removes what is at `path`, be it what it may.
fn clear(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}

/// Runs `wright ARGUMENTS` to its end, which must come.
fn in_time(bundle: &Bundle, arguments: &[&str], what: &str) -> Outcome {
    let mut command = bundle.command(arguments)?;
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let ended = process::wait_gone(child.id(), Deadline::in_seconds(30));
    if ended.is_err() {
        child.kill()?;
    }
    child.wait()?;
    ended.map_err(|error| error.context(format!("{what} hangs")))
}

#[test]
fn hostile_roots_neither_hang_nor_reach_the_host() -> Outcome {
    let bundle = Bundle::new("echo ran")?;
    let (root, aside) = (bundle.path().join("rootfs"), bundle.path().join("aside"));
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("witness"), "intact")?;
    for name in ["dev", "proc", "sys", "etc", "run", "etc/passwd", "dev/null", "dev/pts", "dev/console"] {
        for trap in TRAPS.into_iter().skip(rounds(0, 3)) {
            let what = format!("{name} as {trap:?}");
            let (path, kept) = (root.join(name), fs::rename(root.join(name), &aside).is_ok());
            lay(&path, trap, &outside)?;
            in_time(&bundle, &["run", &bundle.id], &what)?;
            let left: Vec<_> = fs::read_dir(&outside)?.collect();
            ensure!(left.len() == 1, "{what}: something was made outside: {left:?}");
            ensure!(fs::read_to_string(outside.join("witness"))? == "intact", "{what}");
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(!mounts.contains(&*bundle.path().to_string_lossy()), "{what}: a mount on the host");
            ensure!(podwright_tests::snapshot::cgroups(&bundle.id).is_empty(), "{what}: a cgroup is left");
            clear(&path)?;
            if kept {
                fs::rename(&aside, &path)?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_exec_survives_what_the_container_made_of_its_files() -> Outcome {
    let bundle = Bundle::new(FOREVER)?;
    crate::start(&bundle)?;
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside)?;
    for name in ["etc/passwd", "etc/group", "etc"] {
        for trap in TRAPS {
            let path = bundle.path().join("rootfs").join(name);
            clear(&path)?;
            lay(&path, trap, &outside)?;
            // HOME is looked up in passwd: whatever that is, the command runs or is refused, and soon.
            in_time(&bundle, &["exec", &bundle.id, "true"], &format!("exec with {name} as {trap:?}"))?;
            clear(&path)?;
        }
    }
    ensure!(fs::read_dir(&outside)?.next().is_none());
    Ok(())
}

/// Swaps two names until the closure has returned.
fn while_swapping(one: &Path, other: &Path, work: impl FnOnce() -> Outcome) -> Outcome {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        done
    })
}

#[test]
fn a_mount_target_that_is_swapped_meanwhile_stays_inside() -> Outcome {
    // The targets' parent and a symlink to the host change places without end (CVE-2021-30465, CVE-2024-45310).
    let bundle = Bundle::new("cat /proc/self/mountinfo")?;
    let root = bundle.path().join("rootfs");
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside)?;
    for name in ["swap/target", "swap/ro", "swap/masked"] {
        fs::create_dir_all(root.join(name))?;
    }
    symlink(&outside, root.join("link"))?;
    let source = bundle.path().join("source");
    fs::create_dir(&source)?;
    bundle.edit(|spec| {
        spec["linux"]["maskedPaths"] = json!(["/swap/masked"]);
        spec["linux"]["readonlyPaths"] = json!(["/swap/ro"]);
        if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
            mounts.push(
                json!({"destination": "/swap/target/deep", "type": "tmpfs", "source": "swapped-tmpfs"}),
            );
            mounts.push(
                json!({"destination": "/swap/bound", "type": "none", "source": source, "options": ["rbind"]}),
            );
        }
    })?;
    while_swapping(&root.join("swap"), &root.join("link"), || {
        let mut complete = 0;
        for _ in 0..rounds(60, 12) {
            let ran = bundle.wright(&["run", &bundle.id])?;
            ensure!(fs::read_dir(&outside)?.next().is_none(), "something was made outside the root");
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(!mounts.contains(&*outside.to_string_lossy()), "a mount outside the root");
            if ran.code == 0 {
                // A container that runs has its mounts, inside its root: what lies outside is not in its table.
                let (tmpfs, bound) =
                    (ran.stdout.matches("swapped-tmpfs").count(), ran.stdout.contains("/source "));
                ensure!(tmpfs == 1 && bound, "a mount went elsewhere: {}", ran.stdout);
                complete += 1;
            }
        }
        // Not all may be lost to the race, or nothing was tried.
        ensure!(complete > 0, "no run got through");
        Ok(())
    })
}

#[test]
fn the_mask_of_a_path_is_the_real_null_device() -> Outcome {
    // /dev is a directory of the host that somebody else writes to while the container is made: /dev/null and a
    // symlink to a secret change places (CVE-2025-31133, CVE-2025-52565).
    let bundle = Bundle::new("cat /etc/masked; stat -c %t:%T /etc/masked")?;
    let (root, dev) = (bundle.path().join("rootfs"), bundle.path().join("dev"));
    fs::create_dir(&dev)?;
    fs::write(bundle.path().join("secret"), "SECRET")?;
    fs::write(root.join("etc/secret"), "SECRET")?;
    fs::write(root.join("etc/masked"), "SECRET")?;
    symlink("/etc/secret", dev.join("trap"))?;
    rustix::fs::mknodat(
        CWD,
        dev.join("null"),
        rustix::fs::FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )?;
    bundle.edit(|spec| {
        spec["linux"]["maskedPaths"] = json!(["/etc/masked"]);
        if let Some(Value::Array(mounts)) = spec.get_mut("mounts") {
            mounts
                .retain(|mount| mount["destination"].as_str().is_some_and(|path| !path.starts_with("/dev")));
            mounts.push(json!({"destination": "/dev", "type": "none", "source": dev, "options": ["rbind"]}));
        }
    })?;
    while_swapping(&dev.join("null"), &dev.join("trap"), || {
        for _ in 0..rounds(60, 12) {
            let ran = bundle.wright(&["run", &bundle.id])?;
            ensure!(!ran.stdout.contains("SECRET"), "the mask is another file: {ran:?}");
            ensure!(ran.code != 0 || ran.stdout == "1:3\n", "{ran:?}");
            ensure!(fs::read_to_string(bundle.path().join("secret"))? == "SECRET");
        }
        Ok(())
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
fn a_procfs_that_the_container_covered_is_not_written_through() -> Outcome {
    // The container has replaced its /proc: what an exec writes of its own (score, label, groups) must not land there (CVE-2025-52881).
    let cover = "mount -t tmpfs fake /proc && mkdir -p /proc/self/attr/apparmor /proc/self/fd && \
                 for f in oom_score_adj setgroups uid_map attr/exec attr/apparmor/exec attr/keycreate; do echo intact > /proc/self/$f; done && \
                 ln -s self /proc/thread-self; echo up; sleep 100000";
    let bundle = privileged(cover)?;
    bundle.edit(|spec| spec["process"]["oomScoreAdj"] = json!(321))?;
    crate::start(&bundle)?;
    let process = bundle.path().join("process.json");
    let wanted = json!({
        "cwd": "/", "args": ["cat", "/proc/self/oom_score_adj", "/proc/self/attr/exec", "/proc/self/attr/apparmor/exec"],
        "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0, "additionalGids": [5]}, "oomScoreAdj": 321
    });
    fs::write(&process, wanted.to_string())?;
    let ran = bundle.wright(&["exec", "--process", &process.to_string_lossy(), &bundle.id])?;
    ensure!(ran.code != 0 || ran.stdout == "intact\nintact\nintact\n", "{ran:?}");
    let files = bundle.wright(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "cat /proc/self/oom_score_adj /proc/self/setgroups",
    ])?;
    ensure!(files.code != 0 || files.stdout == "intact\nintact\n", "{files:?}");
    Ok(())
}

#[test]
fn a_huge_passwd_and_huge_users_are_refused_or_ignored() -> Outcome {
    let bundle = Bundle::new("echo $HOME")?;
    let passwd = fs::OpenOptions::new().write(true).open(bundle.path().join("rootfs/etc/passwd"))?;
    passwd.set_len(4 << 30)?;
    in_time(&bundle, &["run", &bundle.id], "a sparse passwd of 4 GiB")?;
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
    for _ in 0..rounds(20, 5) {
        assert_eq!(bundle.wright(&["run", &bundle.id])?.code, 137);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&*bundle.path().to_string_lossy()), "{mounts}");
    assert!(podwright_tests::snapshot::cgroups(&bundle.id).is_empty());
    Ok(())
}
