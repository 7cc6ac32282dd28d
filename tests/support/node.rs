//! A private node: the real `podwrightd` with its own directories, socket and cgroup.
//!
//! It is ready when the daemon says so by `sd_notify(3)`; it ends with SIGTERM, and a node that did not
//! end cleanly fails its test. Whatever a broken daemon leaves (processes, mounts, cgroups) is cleared
//! away afterwards, so that one failure does not spoil the tests that follow.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{PidfdFlags, Signal, pidfd_open};
use tempfile::TempDir;

use crate::{BusyboxRoot, Client, Deadline, NetworkNamespace, binaries, process, temporary};

/// What may be chosen about a node.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// More TOML, appended to the configuration: whole tables only.
    pub extra_config: String,
    /// Lines for the table `[rootfs.aliases]`: a reference and the entry it names.
    pub aliases: Vec<(String, String)>,
    /// Lets systemd make the cgroups, instead of the daemon.
    pub systemd: bool,
    /// Puts the state directory on a tmpfs of so many bytes, which a test can fill.
    pub state_limit_bytes: Option<u64>,
    /// Lines for the table `[network]`. Without any, a node has no plugins, and its pods a loopback interface.
    pub network: Vec<String>,
    /// Puts the daemon into a network namespace of its own.
    pub own_network: bool,
    /// Environment of the daemon beyond the test's own.
    pub environment: Vec<(String, String)>,
}

/// A running daemon of one's own. Dropping it removes its pods, stops it and checks how it ended.
#[derive(Debug)]
pub struct Node {
    directory: TempDir,
    unique: String,
    environment: Vec<(String, String)>,
    namespace: Option<NetworkNamespace>,
    daemon: Mutex<Option<Child>>,
    notify: UnixDatagram,
}

impl Node {
    /// Starts a node with one image, `busybox`, a bare directory.
    pub fn start() -> Result<Self> {
        Self::with(&NodeOptions::default())
    }

    /// Starts a node as the options say.
    pub fn with(options: &NodeOptions) -> Result<Self> {
        let directory = temporary::directory()?;
        let unique = unique_name(&directory);
        for name in ["state", "run", "log", "roots", "cni", "plugins", "config.toml.d"] {
            fs::create_dir(directory.path().join(name))?;
        }
        fs::write(directory.path().join("config.toml"), configuration(directory.path(), &unique, options))?;
        if let Some(limit) = options.state_limit_bytes {
            let size = std::ffi::CString::new(format!("size={limit}"))?;
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", directory.path().join("state"), "tmpfs", flags, size.as_c_str())
                .context("mount a tmpfs")?;
        }
        BusyboxRoot::bare(&directory.path().join("roots"), "busybox")?;
        let notify = UnixDatagram::bind(directory.path().join("notify"))?;
        let node = Self {
            directory,
            unique,
            environment: options.environment.clone(),
            namespace: options.own_network.then(NetworkNamespace::new).transpose()?,
            daemon: Mutex::new(None),
            notify,
        };
        node.launch()?;
        Ok(node)
    }

    /// The directory that holds everything of this node.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The name that is in every cgroup of this node.
    pub fn unique(&self) -> &str {
        &self.unique
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.path().join("run/podwright.sock")
    }

    /// Where the node's root filesystems are.
    pub fn roots(&self) -> PathBuf {
        self.path().join("roots")
    }

    /// The network namespace that the daemon is in, if that is one of its own.
    pub fn namespace(&self) -> Result<&NetworkNamespace> {
        self.namespace.as_ref().context("the node is in the host's network")
    }

    /// The directory of CNI configurations.
    pub fn cni(&self) -> PathBuf {
        self.path().join("cni")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.path().join("config.toml")
    }

    /// The daemon's own log.
    pub fn daemon_log(&self) -> PathBuf {
        self.path().join("log/podwrightd.log")
    }

    /// The directory of a sandbox's records.
    pub fn pod_state(&self, pod: &str) -> PathBuf {
        self.path().join("state/pods").join(pod)
    }

    /// A new connection.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.socket())
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> Result<u32> {
        Ok(self.child().as_ref().context("the daemon is not running")?.id())
    }

    /// The processes of this node's pods: monitors, pauses, containers.
    pub fn pod_processes(&self) -> Result<Vec<process::Process>> {
        let mut found = self.processes()?;
        // The daemon's own are the parser of its AppArmor profile, which runs from its start on beside the requests,
        // and what it forked but what has not executed yet.
        found.retain(|process| {
            process.name != "apparmor_parser" && !process.command.contains("podwrightd --config ")
        });
        Ok(found)
    }

    /// The processes that bear this node's name or directory, but not the daemon.
    fn processes(&self) -> Result<Vec<process::Process>> {
        let daemon = self.child().as_ref().map(Child::id);
        let directory = self.path().to_string_lossy().into_owned();
        let mut found = process::belonging_to(&self.unique)?;
        found.extend(process::belonging_to(&directory)?);
        found.sort();
        found.dedup();
        found.retain(|process| Some(process.pid) != daemon);
        Ok(found)
    }

    /// The monitor of a pod: the process named for it whose descendants are in the pod.
    pub fn monitor_of(&self, pod: &str) -> Result<u32> {
        process::all()?
            .into_iter()
            .filter(|candidate| candidate.command.starts_with("podwright-monitor"))
            .find(|candidate| candidate.command.contains(pod))
            .map(|candidate| candidate.pid)
            .with_context(|| format!("no monitor of pod {pod} among {:#?}", self.pod_processes()))
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.daemon_pid()?, signal)
    }

    /// Kills the daemon on the spot and waits until it is gone. Pods live on.
    pub fn kill9(&self) -> Result<()> {
        let mut child = self.child().take().context("the daemon is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks the daemon to end and returns how it did. Pods live on.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.child().take().context("the daemon is not running")?;
        let ended = process::wait_gone(child.id(), Deadline::in_seconds(20));
        if ended.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        ended.context("podwrightd did not end on SIGTERM")?;
        Ok(status)
    }

    /// Starts the daemon (again) and waits until it serves.
    pub fn launch(&self) -> Result<()> {
        ensure!(self.child().is_none(), "the daemon is running already");
        // What the last daemon said, after a reload for one, says nothing of this one.
        self.notify.set_nonblocking(true)?;
        while self.notify.recv(&mut [0; 1024]).is_ok() {}
        self.notify.set_nonblocking(false)?;
        let log = File::options().create(true).append(true).open(self.daemon_log())?;
        let mut command = Command::new(binaries::find("podwrightd")?);
        command
            .arg("--config")
            .arg(self.config_file())
            .env("NOTIFY_SOCKET", self.path().join("notify"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = match &self.namespace {
            Some(namespace) => namespace.run(|| Ok(command.spawn()?)),
            None => Ok(command.spawn()?),
        };
        let mut child = child.context("start podwrightd")?;
        if let Err(error) = self.wait_ready(&mut child) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error.context(format!("podwrightd did not start; its log:\n{}", self.log_tail())));
        }
        *self.child() = Some(child);
        Ok(())
    }

    /// SIGTERM, then a new daemon over the same directories.
    pub fn restart(&self) -> Result<()> {
        let status = self.terminate()?;
        ensure!(status.success(), "podwrightd ended with {status}");
        self.launch()
    }

    /// Removes every sandbox by CRI.
    pub fn remove_all_pods(&self) -> Result<()> {
        let client = self.client()?;
        for pod in client.pods()? {
            client.stop_pod(&pod.id).with_context(|| format!("stop pod {}", pod.id))?;
            client.remove_pod(&pod.id).with_context(|| format!("remove pod {}", pod.id))?;
        }
        Ok(())
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.daemon_log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Blocks until `READY=1` arrived or the daemon ended.
    fn wait_ready(&self, child: &mut Child) -> Result<()> {
        let deadline = Deadline::in_seconds(20);
        let ended = pidfd_open(process::pid(child.id())?, PidfdFlags::empty())?;
        loop {
            let notify = self.notify.as_fd();
            let mut set = [PollFd::new(&notify, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            if poll(&mut set, Some(&deadline.timespec()))? == 0 {
                bail!("no READY=1 before the deadline");
            }
            if set[0].revents().contains(PollFlags::IN) {
                let mut message = [0; 1024];
                let length = self.notify.recv(&mut message)?;
                if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return Ok(());
                }
            } else if set[1].revents().contains(PollFlags::IN) {
                bail!("it ended with {}", child.wait()?);
            }
        }
    }

    /// Ends everything and reports what was not in order.
    fn finish(&self) -> Result<()> {
        if self.child().is_none() {
            self.launch().context("start podwrightd once more, to clean up")?;
        }
        let removed = self.remove_all_pods();
        let status = self.terminate()?;
        removed?;
        ensure!(status.success(), "podwrightd ended with {status}");
        // A plugin that was being asked how it is was killed by the daemon at its end, and dies when its turn comes.
        let plugins = self.path().join("plugins").to_string_lossy().into_owned();
        process::wait_all_gone(&plugins, Deadline::in_seconds(20))?;
        let left = self.pod_processes()?;
        ensure!(left.is_empty(), "processes left behind: {left:#?}");
        Ok(())
    }

    /// Kills, unmounts and removes whatever still bears this node's name.
    fn sweep(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for _ in 0..3 {
            for process in self.processes().unwrap_or_default() {
                let _ = process::signal(process.pid, Signal::KILL);
                let _ = process::wait_gone(process.pid, Deadline::in_seconds(5));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let prefix = self.path().to_string_lossy().into_owned();
        for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if target.starts_with(&prefix) {
                let _ = unmount(target, UnmountFlags::DETACH);
            }
        }
        for cgroup in crate::snapshot::cgroups(&self.unique).into_iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let finished = self.finish();
        self.sweep();
        let failing = std::thread::panicking();
        if failing || finished.is_err() {
            let text = format!("--- log of podwrightd ({}) ---\n{}\n---\n", self.unique, self.log_tail());
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        }
        if let Err(error) = finished {
            let text = format!("node {} did not end cleanly: {error:#}", self.unique);
            assert!(failing, "{text}");
        }
    }
}

/// A name as unique as the directory's own.
pub(crate) fn unique_name(directory: &TempDir) -> String {
    let name = directory.path().file_name().unwrap_or_default().to_string_lossy();
    format!("podwright-{}", name.to_ascii_lowercase())
}

fn configuration(directory: &Path, unique: &str, options: &NodeOptions) -> String {
    use std::fmt::Write as _;

    let path = |name: &str| format!("{:?}", directory.join(name).to_string_lossy());
    let driver = if options.systemd { "systemd" } else { "cgroupfs" };
    let mut network = options.network.clone();
    for (key, value) in
        [("cni_bin_dirs", format!("[{}]", path("plugins"))), ("default", "\"loopback\"".to_owned())]
    {
        if !network.iter().any(|line| line.starts_with(key)) {
            network.push(format!("{key} = {value}"));
        }
    }
    let network = network.join("\n");
    let mut text = format!(
        "[server]\nsocket = {}\n\n[paths]\nstate = {}\nrun = {}\n\n[network]\ncni_conf_dirs = [{}]\n{network}\n\n\
         [cgroup]\ndriver = {driver:?}\nruntime = \"/{unique}\"\n\n[rootfs]\nroots = [{}]\n\n[rootfs.aliases]\n",
        path("run/podwright.sock"),
        path("state"),
        path("run"),
        path("cni"),
        path("roots"),
    );
    for (reference, entry) in &options.aliases {
        let _ = writeln!(text, "{reference:?} = {entry:?}");
    }
    text.push('\n');
    text.push_str(&options.extra_config);
    text
}
