//! A real root filesystem: Debian's static busybox, with every applet, as hard links.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Where Debian's busybox-static package puts its one file.
const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
                      tester:x:1000:1000::/home/tester:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\naudio:x:29:tester\ntester:x:1000:\nnobody:x:65534:\n";

/// A busybox tree below a directory of roots.
#[derive(Clone, Debug)]
pub struct BusyboxRoot {
    /// The root filesystem itself.
    pub path: PathBuf,
    /// What the daemon knows it by: its path below the roots.
    pub name: String,
}

impl BusyboxRoot {
    /// Makes `<roots>/<name>`, a bare root filesystem directory.
    pub fn bare(roots: &Path, name: &str) -> Result<Self> {
        let path = roots.join(name);
        populate(&path)?;
        Ok(Self { path, name: name.to_owned() })
    }

    /// Makes `<roots>/<name>/rootfs` and beside it `image.json`, an OCI image configuration whose
    /// `config` member is given.
    pub fn with_sidecar(roots: &Path, name: &str, config: &serde_json::Value) -> Result<Self> {
        let path = roots.join(name).join("rootfs");
        populate(&path)?;
        let image = serde_json::json!({
            "created": "2024-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
            "config": config, "rootfs": { "type": "layers", "diff_ids": [] },
        });
        fs::write(roots.join(name).join("image.json"), serde_json::to_vec_pretty(&image)?)?;
        Ok(Self { path, name: name.to_owned() })
    }

    /// Makes `<roots>/<name>/rootfs` and beside it the runtime specification's `config.json`, as
    /// `runc spec` leaves it, with the given process arguments.
    pub fn bundle(roots: &Path, name: &str, args: &[&str]) -> Result<Self> {
        let path = roots.join(name).join("rootfs");
        populate(&path)?;
        let config = serde_json::json!({
            "ociVersion": "1.0.2", "root": { "path": "rootfs" },
            "process": { "args": args, "cwd": "/", "env": ["PATH=/bin", "FROM=bundle"], "user": { "uid": 0, "gid": 0 } },
        });
        fs::write(roots.join(name).join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(Self { path, name: name.to_owned() })
    }
}

/// Fills `root` with a small but complete busybox system.
pub fn populate(root: &Path) -> Result<()> {
    if !Path::new(BUSYBOX).is_file() {
        bail!("{BUSYBOX} is missing: apt-get install busybox-static (make deps does)");
    }
    for directory in [
        "bin",
        "dev",
        "etc",
        "home/tester",
        "lib",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "var/log",
        "var/run",
    ] {
        fs::create_dir_all(root.join(directory))
            .with_context(|| format!("make {}", root.join(directory).display()))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
    let busybox = root.join("bin/busybox");
    apart(|| fs::copy(BUSYBOX, &busybox).context("copy busybox"))?;
    for applet in applets()? {
        let link = root.join("bin").join(&applet);
        if applet != "busybox" && !link.exists() {
            fs::hard_link(&busybox, &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    fs::write(root.join("etc/os-release"), "ID=podwright-test\n")?;
    // Present and not executable: a command that fails with EACCES.
    fs::write(root.join("bin/not-executable"), "#!/bin/sh\n")?;
    fs::set_permissions(root.join("bin/not-executable"), fs::Permissions::from_mode(0o644))?;
    // Executable and of no known format: a command that fails with ENOEXEC.
    fs::write(root.join("bin/not-a-program"), [0_u8, 1, 2, 3])?;
    fs::set_permissions(root.join("bin/not-a-program"), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Writes a program in a thread that shares its descriptors with no other. A file that is open for writing anywhere cannot be executed
/// (execve(2), ETXTBSY), and whatever process another thread forks meanwhile has all of this one's open until it executes its own.
pub fn apart<T: Send>(write: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let alone = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).context("unshare descriptors")?;
        write()
    };
    let written = std::thread::scope(|scope| scope.spawn(alone).join());
    written.unwrap_or_else(|_| bail!("the writing thread panicked"))
}

fn applets() -> Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output().context("run busybox --list")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
