//! Debian's containerd with crun, with directories, a socket and cgroups of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use podwright_tests::{Client, Deadline, process, watch};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::image;

/// The image of the benchmark's containers.
pub(crate) const IMAGE: &str = "podwright.test/busybox:1";
const PAUSE: &str = "podwright.test/pause:1";

/// A running containerd.
pub(crate) struct Containerd {
    directory: TempDir,
    daemon: Child,
    /// What `containerd --version` says.
    pub(crate) version: String,
    /// What `crun --version` says.
    pub(crate) runtime: String,
}

impl Containerd {
    /// Starts it and imports the tree at `root` as its images.
    pub(crate) fn start(root: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("pwbench").tempdir()?;
        let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        fs::create_dir(directory.path().join("cni"))?;
        let crun = find("crun")?;
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             [grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\nrestrict_oom_score_adj = true\n\
             stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {cni:?}\nconf_dir = {cni:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"overlayfs\"\ndefault_runtime_name = \"crun\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun.options]\nBinaryName = {crun:?}\nRoot = {runs:?}\n",
            root = at("root"),
            state = at("state"),
            socket = at("containerd.sock"),
            opt = at("opt"),
            cni = at("cni"),
            runs = at("crun"),
            crun = crun.to_string_lossy(),
        );
        fs::write(directory.path().join("config.toml"), config)?;
        let log = File::create(directory.path().join("log"))?;
        let daemon = Command::new(find("containerd")?)
            .args(["--config", &at("config.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let containerd =
            Self { directory, daemon, version: first_line("containerd")?, runtime: first_line("crun")? };
        // The line that says that its sockets are served.
        watch::content(&containerd.path("log"), Deadline::in_seconds(60), |bytes| {
            String::from_utf8_lossy(bytes).contains("containerd successfully booted").then_some(())
        })?;
        for (reference, entrypoint) in [(IMAGE, &["/bin/sh"][..]), (PAUSE, &["/bin/sleep", "1000000"])] {
            let tar = containerd.path("image.tar");
            image::write(root, reference, entrypoint, &tar)?;
            let socket = containerd.socket();
            let imported = Command::new(find("ctr")?)
                .args(["--address", &socket.to_string_lossy(), "--namespace", "k8s.io", "images", "import"])
                .arg(&tar)
                .output()?;
            ensure!(imported.status.success(), "ctr: {}", String::from_utf8_lossy(&imported.stderr));
        }
        Ok(containerd)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its CRI socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// A connection to it.
    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(&self.socket())
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// The processes of its shims.
    pub(crate) fn shims(&self) -> Result<Vec<process::Process>> {
        let mine = self.socket().to_string_lossy().into_owned();
        let mut all = process::all()?;
        all.retain(|process| process.name.starts_with("containerd-shim") && process.command.contains(&mine));
        Ok(all)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Ok(client) = self.client() {
            for pod in client.pods().unwrap_or_default() {
                let _ = client.stop_pod(&pod.id);
                let _ = client.remove_pod(&pod.id);
            }
        }
        let _ = process::signal(self.daemon.id(), Signal::TERM);
        let _ = process::wait_gone(self.daemon.id(), Deadline::in_seconds(20));
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for shim in self.shims().unwrap_or_default() {
            let _ = process::signal(shim.pid, Signal::KILL);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(target).starts_with(self.directory.path()) {
                let _ = unmount(target, UnmountFlags::DETACH);
            }
        }
    }
}

/// A program on PATH or where Debian keeps those of root.
pub(crate) fn find(name: &str) -> Result<PathBuf> {
    for directory in ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"] {
        let path = Path::new(directory).join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("{name} is not installed (make deps)")
}

fn first_line(name: &str) -> Result<String> {
    let output =
        Command::new(find(name)?).arg("--version").output().with_context(|| format!("{name} --version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    // containerd adds a URL and a commit.
    Ok(line.split_whitespace().filter(|word| !word.contains('/')).take(3).collect::<Vec<_>>().join(" "))
}
