//! One execution of a plugin.
//!
//! ```text
//! environment  CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_ARGS, CNI_PATH; the daemon's own, and where iptables is
//! stdin        the configuration: a file, locked for as long as the plugin has it open
//! stdout       the result, or the error; capped
//! stderr       for people; its head is kept for messages
//! ```
//!
//! A plugin is below a parent that is the leader of a process group of its own and that none of its children can get away from
//! ([`runtime::plugin`]); all of that is killed when its deadline comes. A daemon that dies in the middle leaves its plugin running; the lock
//! on its input tells the next daemon, which ends it before it does anything to the same pod: see [`Input`].

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, MemfdFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::result::{self, Reported};
use crate::monitor_client::Program;

/// The longest output of a plugin that is read, in bytes. Results have hundreds.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// How much of what a plugin writes to stderr, or of output that cannot be read, is kept for messages, in bytes.
const MAX_SHOWN_BYTES: usize = 1024;

/// How long output may stay open after the plugin's end: something that it started has inherited it.
const DRAIN: Duration = Duration::from_secs(1);

/// How long what is killed may take to be gone. Only what hangs in the kernel takes longer than milliseconds, or a very busy machine.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How long the plugin of a dead daemon may take to be gone once it is killed.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(30);

/// Where plugins look for iptables and the like beside the daemon's own PATH.
const SBIN: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a plugin did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// There is no such program.
    #[error("plugin {plugin} is not installed: there is none in {}", shown_places(searched))]
    Missing {
        /// Its `type`.
        plugin: String,
        /// Where it was searched.
        searched: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("start plugin {plugin}")]
    Start {
        /// Its `type`.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says why it failed.
    #[error("plugin {plugin} ({verb}): {reported}")]
    Reported {
        /// Its `type`.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// Its words.
        reported: Reported,
    },
    /// It failed without saying why in the specification's way.
    #[error("plugin {plugin} ({verb}) ended with {status} and no error of its own: {output:?}")]
    Failed {
        /// Its `type`.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// Its end.
        status: ExitStatus,
        /// The head of what it wrote.
        output: String,
    },
    /// It was killed, because it took too long.
    #[error("plugin {plugin} ({verb}) did not end within {limit:?} and was killed with its children")]
    Deadline {
        /// Its `type`.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// How long it had.
        limit: Duration,
    },
    /// It was killed, because it wrote too much.
    #[error("plugin {plugin} ({verb}) wrote more than {MAX_OUTPUT_BYTES} bytes and was killed")]
    Endless {
        /// Its `type`.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
    },
    /// It ended well, but what it printed is no result.
    #[error("the result of plugin {plugin} ({verb}) cannot be used: {reason}: {output:?}")]
    NoResult {
        /// Its `type`.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// What is wrong with it.
        reason: String,
        /// The head of what it wrote.
        output: String,
    },
}

/// What a plugin can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is it still attached?
    Check,
    /// Which versions do you speak?
    Version,
    /// Could you attach?
    Status,
    /// Forget all but these.
    Gc,
}

impl std::fmt::Display for Verb {
    /// The value of `CNI_COMMAND`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        })
    }
}

/// One execution.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The plugin's `type`.
    pub plugin: &'a str,
    /// What it is asked for.
    pub verb: Verb,
    /// Where plugins are.
    pub bin_dirs: &'a [PathBuf],
    /// How long it may take.
    pub limit: Duration,
    /// What is its parent. None: the daemon itself, and then what leaves the plugin's process group is not ended with it.
    pub parent: Option<&'a Program>,
    /// Whose interface it is about; None: nobody's (VERSION, STATUS, GC).
    pub subject: Option<Subject<'a>>,
}

/// Whose interface an execution is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The pod sandbox's id.
    pub container: &'a str,
    /// Its network namespace; None: it is gone.
    pub netns: Option<&'a Path>,
    /// The interface in it.
    pub ifname: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// The file that its plugins' input is written to; one plugin at a time has it. None: one that only looks (CHECK).
    pub input: Option<&'a Path>,
}

/// Runs a plugin and returns what it printed.
pub async fn run(call: Call<'_>, config: &[u8]) -> Result<Vec<u8>, PluginError> {
    let Call { plugin, verb, .. } = call;
    let start = |source| PluginError::Start { plugin: plugin.to_owned(), source };
    let program = find(plugin, call.bin_dirs)?;
    let input = match call.subject.and_then(|subject| subject.input) {
        Some(path) => Input::take(path).await.map_err(start)?.0,
        None => {
            File::from(rustix::fs::memfd_create("cni", MemfdFlags::CLOEXEC).map_err(|e| start(e.into()))?)
        }
    };
    fill(&input, config).map_err(start)?;
    let mut child = Running(command(&program, call).stdin(input).spawn().map_err(start)?);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ended = tokio::time::timeout(call.limit, watch(&mut child.0, &mut stdout, &mut stderr)).await;
    let status = match ended {
        Ok(Ok(status)) if call.parent.is_some() => of_the_plugin(status),
        Ok(Ok(status)) => status,
        failed => {
            end(&mut child.0).await;
            return Err(match failed {
                Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                    PluginError::Endless { plugin: plugin.to_owned(), verb }
                }
                Ok(Err(error)) => start(error),
                _ => PluginError::Deadline { plugin: plugin.to_owned(), verb, limit: call.limit },
            });
        }
    };
    if !stderr.is_empty() {
        tracing::debug!(plugin, %verb, stderr = %head(&stderr), "a network plugin writes");
    }
    if status.success() {
        return Ok(stdout);
    }
    if let Some(reported) = result::reported(&stdout) {
        return Err(PluginError::Reported { plugin: plugin.to_owned(), verb, reported });
    }
    let output = head(if stdout.is_empty() { &stderr } else { &stdout });
    Err(PluginError::Failed { plugin: plugin.to_owned(), verb, status, output })
}

/// The program of a plugin.
pub fn find(plugin: &str, bin_dirs: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let programs = bin_dirs.iter().map(|directory| directory.join(plugin));
    programs
        .into_iter()
        .find(|program| program.is_file())
        .ok_or_else(|| PluginError::Missing { plugin: plugin.to_owned(), searched: bin_dirs.to_vec() })
}

fn command(program: &Path, call: Call<'_>) -> Command {
    let mut command = match call.parent {
        Some(parent) => Command::from(parent.parent_of(program)),
        None => Command::new(program),
    };
    let join = |paths: &mut dyn Iterator<Item = String>| paths.collect::<Vec<_>>().join(":");
    let path = std::env::var("PATH").unwrap_or_default();
    command
        // What speaks of the daemon's own service manager is not for them.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .env("PATH", if path.is_empty() { SBIN.to_owned() } else { format!("{path}:{SBIN}") })
        .env("CNI_COMMAND", call.verb.to_string())
        .env("CNI_PATH", join(&mut call.bin_dirs.iter().map(|dir| dir.to_string_lossy().into_owned())));
    if let Some(subject) = call.subject {
        command
            .env("CNI_CONTAINERID", subject.container)
            .env("CNI_NETNS", subject.netns.unwrap_or(Path::new("")))
            .env("CNI_IFNAME", subject.ifname)
            .env("CNI_ARGS", subject.args);
    }
    command
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Waits for the end of a plugin and takes what it writes.
async fn watch(child: &mut Child, stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) -> io::Result<ExitStatus> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut output = Box::pin(async {
        tokio::try_join!(
            async {
                if read_up_to(out, stdout, MAX_OUTPUT_BYTES).await? {
                    return Ok(());
                }
                Err(io::Error::from(io::ErrorKind::FileTooLarge))
            },
            async { read_up_to(err, stderr, MAX_SHOWN_BYTES).await.map(drop) },
        )
    });
    let mut open = true;
    let status = loop {
        tokio::select! {
            read = &mut output, if open => {
                read?;
                open = false;
            }
            status = child.wait() => break status?,
        }
    };
    if open && let Ok(read) = tokio::time::timeout(DRAIN, output).await {
        read?;
    }
    Ok(status)
}

/// Reads to the end and keeps the first `limit` bytes. False: there were more. What is over is read and thrown away, up to
/// as much again; then whoever writes finds a closed pipe.
async fn read_up_to(
    stream: Option<impl AsyncRead + Unpin>,
    kept: &mut Vec<u8>,
    limit: usize,
) -> io::Result<bool> {
    let Some(stream) = stream else { return Ok(true) };
    let mut stream = stream.take(2 * limit as u64);
    let mut buffer = [0; 4096];
    let mut fits = true;
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(fits);
        }
        let room = limit.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&buffer[..room]);
        fits &= room == length;
    }
}

/// A plugin that nobody waits for any more is killed with its process group.
struct Running(Child);

impl Running {
    /// None: it was waited for, and the number may be another's.
    fn pid(child: &Child) -> Option<Pid> {
        child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = Self::pid(&self.0) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

/// How the plugin ended whose parent ended so: see [`runtime::plugin::run`].
fn of_the_plugin(status: ExitStatus) -> ExitStatus {
    match status.code() {
        // Signals have the numbers 1 to 64.
        Some(code @ 129..=192) => ExitStatus::from_raw(code - 128),
        _ => status,
    }
}

/// Kills a plugin with everything below it.
async fn end(child: &mut Child) {
    if let Some(pid) = Running::pid(child) {
        let ended = tokio::task::spawn_blocking(move || end_all(&[pid])).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "what a network plugin has started cannot be ended");
        }
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "a killed network plugin cannot be waited for");
    }
}

/// Ends processes and everything below them. Stopped first they cannot end by themselves, which would set free what is below
/// them; a process whose parent dies meanwhile is below the plugin's parent, and so is found the next time.
fn end_all(tops: &[Pid]) -> io::Result<()> {
    // Who is gone already is as it should be.
    let signal = |pid: &Pid, signal| {
        let _ = rustix::process::kill_process(*pid, signal);
    };
    for top in tops {
        signal(top, Signal::STOP);
    }
    let deadline = Instant::now() + END_DEADLINE;
    let ended = loop {
        let (below, all) = below(tops, &processes()?);
        if below.is_empty() && (all || Instant::now() >= deadline) {
            break Ok(());
        }
        if Instant::now() >= deadline {
            break Err(io::Error::other(format!(
                "{below:?} are still there, {END_DEADLINE:?} after they were killed"
            )));
        }
        for pid in &below {
            signal(pid, Signal::KILL);
        }
        // There is no event for the end of other people's children.
        std::thread::sleep(Duration::from_millis(1));
    };
    for top in tops {
        signal(top, Signal::KILL);
    }
    ended
}

/// A process as it was when it was looked at.
struct Seen {
    pid: Pid,
    /// None: init, the kernel's first thread, or one of another PID namespace.
    parent: Option<Pid>,
    dead: bool,
}

/// All processes, by proc_pid_stat(5), one after the other.
fn processes() -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let Some(pid) = name.parse().ok().and_then(Pid::from_raw) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{name}/stat")) else { continue };
        // The name before the fields may hold anything, also spaces and parentheses.
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        let mut fields = fields.split_whitespace();
        let dead = matches!(fields.next(), Some("Z" | "X"));
        let parent = fields.next().and_then(|parent| parent.parse().ok()).and_then(Pid::from_raw);
        seen.push(Seen { pid, parent, dead });
    }
    Ok(seen)
}

/// The living descendants of processes, and whether these are all: a process whose parent was gone when its turn came has another by
/// now, which may be one of them.
fn below(tops: &[Pid], seen: &[Seen]) -> (Vec<Pid>, bool) {
    let pids: HashSet<Pid> = seen.iter().map(|process| process.pid).collect();
    let all = seen.iter().filter_map(|process| process.parent).all(|parent| pids.contains(&parent));
    let mut children: HashMap<Pid, Vec<&Seen>> = HashMap::new();
    for process in seen {
        if let Some(parent) = process.parent {
            children.entry(parent).or_default().push(process);
        }
    }
    let (mut found, mut looked_at) = (Vec::new(), tops.to_vec());
    while let Some(parent) = looked_at.pop() {
        for process in children.remove(&parent).unwrap_or_default() {
            looked_at.push(process.pid);
            if !process.dead && !tops.contains(&process.pid) {
                found.push(process.pid);
            }
        }
    }
    (found, all)
}

/// The head of output, for messages.
pub(super) fn head(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&output[..output.len().min(MAX_SHOWN_BYTES)]);
    text.trim_end().to_owned()
}

fn shown_places(searched: &[PathBuf]) -> String {
    searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The file that a pod's plugins read their configuration from, held.
///
/// flock(2) belongs to the open file, which the plugin has inherited as its standard input: it is held until the daemon
/// and the plugin have both closed it. So a daemon that gets it knows that no plugin of an earlier one is still at the pod.
#[derive(Debug)]
pub struct Input(File);

impl Input {
    /// Takes the file; ends a plugin that still has it, which nobody waits for any more.
    pub async fn take(path: &Path) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let deadline = tokio::time::Instant::now() + ORPHAN_DEADLINE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {
                    let path = path.to_owned();
                    let killed = tokio::task::spawn_blocking(move || kill_holders(&path)).await;
                    killed.map_err(io::Error::other)??;
                    // There is no event for the end of a process that is nobody's child here.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// As [`take`](Self::take), where there has been a plugin; what is not there is held by none.
    pub async fn settle(path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => Self::take(path).await.map(drop),
        }
    }
}

fn fill(mut file: &File, config: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(config)?;
    file.rewind()
}

/// Ends those whose standard input is `path`, with everything below them.
fn kill_holders(path: &Path) -> io::Result<()> {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let input = identity(path)?;
    let own = rustix::process::getpid();
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let Some(pid) = name.parse().ok().and_then(Pid::from_raw) else { continue };
        if pid != own && identity(format!("/proc/{name}/fd/0").as_ref()).is_ok_and(|found| found == input) {
            tracing::warn!(pid = %name, "a network plugin of an earlier daemon is still running: it is killed");
            holders.push(pid);
        }
    }
    end_all(&holders)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_process_whose_parent_has_gone_makes_a_look_inconclusive() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let seen = |number, parent| Seen { pid: pid(number), parent: Pid::from_raw(parent), dead: false };
        let mut table =
            vec![seen(1, 0), seen(2, 0), seen(3, 2), seen(10, 1), seen(11, 10), seen(12, 11), seen(13, 1)];
        assert_eq!(below(&[pid(10)], &table), (vec![pid(11), pid(12)], true));
        table.retain(|process| process.pid != pid(11));
        assert_eq!(below(&[pid(10)], &table), (vec![], false), "12 is somebody's, and maybe 10's by now");
    }

    async fn run_script(text: &str, limit: Duration) -> Result<String, PluginError> {
        let directory = tempfile::tempdir().unwrap();
        script(directory.path(), "stub", text);
        let (dirs, input) = ([directory.path().to_owned()], directory.path().join("input"));
        let subject = Subject {
            container: "id1",
            netns: None,
            ifname: "eth0",
            args: "IgnoreUnknown=1",
            input: Some(&input),
        };
        let call = Call {
            plugin: "stub",
            verb: Verb::Add,
            bin_dirs: &dirs,
            limit,
            parent: None,
            subject: Some(subject),
        };
        run(call, b"{\"name\":\"n\"}").await.map(|out| String::from_utf8(out).unwrap())
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_plugin_is_told_everything_and_its_output_comes_back() {
        let script = "echo $CNI_COMMAND $CNI_CONTAINERID [$CNI_NETNS] $CNI_IFNAME $CNI_ARGS; cat";
        let output = run_script(script, LONG).await.unwrap();
        assert_eq!(output, "ADD id1 [] eth0 IgnoreUnknown=1\n{\"name\":\"n\"}");
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_plugins_words() {
        let error =
            run_script("echo '{\"code\":11,\"msg\":\"full\",\"details\":\"/30\"}'; exit 1", LONG).await;
        assert_eq!(error.unwrap_err().to_string(), "plugin stub (ADD): full (/30) (code 11)");
        let error = run_script("echo oops >&2; exit 3", LONG).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("oops"), "{error}");
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", note.display());
        let error = run_script(&script, Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, PluginError::Deadline { .. }), "{error}");
        let pid = fs::read_to_string(&note).unwrap();
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "the child lives: {state}");
    }

    #[test]
    fn the_end_of_a_parent_is_told_as_the_plugins() {
        assert_eq!(of_the_plugin(ExitStatus::from_raw((128 + 11) << 8)).signal(), Some(11));
        for code in [0, 1, 127, 128, 255] {
            assert_eq!(of_the_plugin(ExitStatus::from_raw(code << 8)).code(), Some(code));
        }
    }

    #[tokio::test]
    async fn endless_output_is_cut_off() {
        let error = run_script("exec cat /dev/zero", LONG).await.unwrap_err();
        assert!(matches!(error, PluginError::Endless { .. }), "{error}");
        let output = run_script("head -c 3000000 /dev/zero >&2; echo done", LONG).await;
        // Closing its stderr may kill it; it must not hang, nor fill the memory.
        assert!(output.is_ok() || matches!(output, Err(PluginError::Failed { .. })));
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_is_not_waited_for() {
        let started = std::time::Instant::now();
        let output = run_script("echo result; sleep 20 &", LONG).await.unwrap();
        assert_eq!(output, "result\n");
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_missing_plugin_is_told_with_the_places() {
        let dirs = [PathBuf::from("/no/one"), PathBuf::from("/no/two")];
        let call = Call {
            plugin: "x",
            verb: Verb::Version,
            bin_dirs: &dirs,
            limit: LONG,
            parent: None,
            subject: None,
        };
        let error = run(call, b"").await.unwrap_err().to_string();
        assert_eq!(error, "plugin x is not installed: there is none in /no/one, /no/two");
    }

    #[tokio::test]
    async fn who_still_has_the_input_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("input");
        let held = Input::take(&path).await.unwrap();
        // The command is gone with the statement, and with it the test's own hold on the file.
        let mut orphan = Command::new("sleep").arg("1000").stdin(held.0).process_group(0).spawn().unwrap();
        Input::settle(&path).await.unwrap();
        let status = orphan.wait().await.unwrap();
        assert!(!status.success(), "{status}");
    }
}
