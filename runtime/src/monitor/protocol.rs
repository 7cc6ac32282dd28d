//! What the daemon and a pod's monitor say to each other.
//!
//! Transport: a `SOCK_SEQPACKET` unix socket, so that one packet is one message and descriptors travel with
//! the message they belong to (`SCM_RIGHTS`). A message is one JSON object of at most [`MAX_MESSAGE_BYTES`].
//!
//! ```text
//! daemon                                   monitor
//!   | {"id":1,"op":{"hello":{...}}}           |     every connection starts with hello;
//!   |---------------------------------------->|     events flow only after it
//!   |       {"id":1,"result":{"ok":{...}}}    |
//!   |<----------------------------------------|
//!   | {"id":2,"op":{"create":{...}}} + fds    |     requests are answered in any order,
//!   |---------------------------------------->|     each exactly once
//!   |       {"event":{"exited":{...}}}        |     the exit record is on disk before this
//!   |<----------------------------------------|
//! ```
//!
//! A monitor outlives daemons, so a newer daemon must understand it: [`PROTOCOL`] is raised on any change
//! that an older peer would misread, and a daemon speaks [`PROTOCOL`] and the one before it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;

/// The longest message in bytes, well below the kernel's default socket buffer of 208 KiB.
pub const MAX_MESSAGE_BYTES: usize = 128 * 1024;

/// The most processes exec'd into a pod's containers at once.
pub const MAX_EXECS: usize = 1024;

/// The most descriptors on one message: stdin, stdout, stderr, and two for what the operation needs.
pub const MAX_MESSAGE_FDS: usize = 5;

/// A request of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon, unique on its connection; the reply carries it.
    pub id: u64,
    /// What the daemon's log calls this request: the monitor's log lines name it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// What is asked.
    pub op: Op,
}

/// The operations of a monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// First on every connection: agrees on the version and answers [`Reply::Hello`] with all that lives here.
    Hello {
        /// The versions the daemon speaks.
        protocols: Vec<u32>,
        /// Exec'd processes whose end the daemon waits for since a connection that has broken; at most [`MAX_EXECS`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        execs: Vec<String>,
    },
    /// Makes the sandbox: its namespaces, held by a new pause process. Once per monitor. Answers [`Reply::Started`].
    Sandbox(SandboxRequest),
    /// Takes a container up to its start gate. fds: as [`CreateRequest::fds`] says. Answers [`Reply::Started`].
    Create(CreateRequest),
    /// Opens a container's start gate. Answers [`Reply::Running`] when it has executed its program.
    Start {
        /// The container's id.
        container: String,
    },
    /// Sends a signal to a container's init, or to every process of its cgroup. Answers [`Reply::Done`], also for
    /// one that has exited already.
    Kill {
        /// The container's id.
        container: String,
        /// The signal's number.
        signal: i32,
        /// True: every process of the container, also a frozen one (SIGKILL only).
        all: bool,
    },
    /// Runs one more process in a container. fds: first a memfd holding `process` of the runtime-spec as JSON (which can be
    /// larger than a message), then stdin, stdout, stderr in this order as far as `stdio` says.
    /// Answers [`Reply::Started`], with the master of its pseudo-terminal as the answer's only descriptor where `process` wants
    /// one: nothing of an exec'd process's input and output passes through the monitor. Its end is an [`Event::ExecExited`].
    Exec(ExecRequest),
    /// Kills an exec'd process: with its whole subtree where it has a cgroup of its own. Answers [`Reply::Done`].
    KillExec {
        /// The id the daemon gave in [`ExecRequest::exec`].
        exec: String,
        /// The signal's number.
        signal: i32,
    },
    /// Sets the size of a container's terminal. Answers [`Reply::Done`]. (An exec'd process's is set on its master.)
    Resize {
        /// The container's id.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Connects a client to a container's running stdio. fds: stdin (where `stdin`), stdout, stderr (where not a tty).
    /// Output from now on is copied to them; a client that does not read is dropped, never waited for. Answers [`Reply::Done`].
    Attach {
        /// The container's id.
        container: String,
        /// Names this client.
        attach: String,
        /// Whether the first descriptor is the client's stdin.
        stdin: bool,
        /// Whether stdout is wanted.
        stdout: bool,
        /// Whether stderr is wanted.
        stderr: bool,
    },
    /// Closes a container's log and opens its path again. Answers [`Reply::Done`] when the new file exists.
    ReopenLog {
        /// The container's id.
        container: String,
    },
    /// Applies resource limits. Answers [`Reply::Done`].
    Update {
        /// The container's id.
        container: String,
        /// `linux.resources` of the runtime-spec, as JSON.
        resources: serde_json::Value,
    },
    /// Freezes a container. Answers [`Reply::Done`].
    Pause {
        /// The container's id.
        container: String,
    },
    /// Thaws a container. Answers [`Reply::Done`].
    Resume {
        /// The container's id.
        container: String,
    },
    /// Kills what is left of a container, removes its cgroups and forgets it; unknown ids too. Answers [`Reply::Done`].
    Delete {
        /// The container's id.
        container: String,
    },
    /// Kills every container and pause, waits for their exits (records are written), answers [`Reply::Done`] and keeps
    /// serving: exited containers can still be asked for.
    StopSandbox,
    /// Ends the monitor, which must have no running container or is made to have none. Answers [`Reply::Done`] first.
    Shutdown,
}

/// The namespaces of a sandbox and where its files are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRequest {
    /// The pinned network namespace to join; None: the host's. With a user namespace of its own it is where the pod's
    /// network namespace is to be pinned by the daemon: pause makes it, so that the user namespace owns it.
    pub netns: Option<PathBuf>,
    /// True: the pod has an IPC namespace of its own; false: the host's.
    pub ipc: bool,
    /// True: the pod has a UTS namespace of its own (always, unless it uses the host's network).
    pub uts: bool,
    /// True: containers share one PID namespace whose PID 1, and reaper, is pause.
    pub pid: bool,
    /// Set in the new UTS namespace.
    pub hostname: Option<String>,
    /// Namespaced sysctls in dotted form, written in pause once its namespaces stand.
    pub sysctls: Vec<(String, String)>,
    /// uid and gid maps of the pod's user namespace; None: the host's.
    pub user_namespace: Option<UserNamespaceMaps>,
}

/// The maps of a pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespaceMaps {
    /// uid maps: (container id, host id, length).
    pub uids: Vec<(u32, u32, u32)>,
    /// gid maps: (container id, host id, length).
    pub gids: Vec<(u32, u32, u32)>,
}

/// A container to create.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The container's id, unique on the node.
    pub container: String,
    /// The OCI bundle: `config.json`, an empty `rootfs`, and where `exit.json` is written.
    pub bundle: PathBuf,
    /// The CRI log file; None: output is read and dropped.
    pub log_path: Option<PathBuf>,
    /// The longest log part in bytes before a `P` line; 0: the default of 16384.
    pub log_part_bytes: u32,
    /// Keep stdin open for attach clients.
    pub stdin: bool,
    /// Close stdin when the first attach client leaves.
    pub stdin_once: bool,
    /// What the descriptors of this message are, in order.
    pub fds: Vec<CreateFd>,
}

/// One descriptor passed with [`Op::Create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreateFd {
    /// A detached mount that becomes the container's root.
    Root,
    /// A memfd holding a compiled seccomp program ([`crate::seccomp`]).
    Seccomp,
}

/// A process to run in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container's id.
    pub container: String,
    /// The daemon's id for this process, unique on the node.
    pub exec: String,
    /// Which of stdin, stdout, stderr are passed, in this order; those that are not are /dev/null. None with a terminal.
    pub stdio: [bool; 3],
    /// True: the process gets a cgroup of its own below the container's so that [`Op::KillExec`] reaches its whole subtree.
    pub own_cgroup: bool,
    /// How long it may run, in milliseconds; then the monitor kills it as by [`Op::KillExec`], whether or not any daemon is there.
    /// None: as long as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
}

/// A message of the monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to the request with this id.
    Reply {
        /// [`Request::id`].
        id: u64,
        /// How it went.
        result: Result<Reply, Failure>,
    },
    /// Something happened.
    Event(Event),
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Op::Hello`].
    Hello(Hello),
    /// A process exists: pause, a container's init before its gate, or an exec'd process.
    Started {
        /// Its pid in the host's PID namespace.
        pid: i32,
    },
    /// A container executes its program.
    Running {
        /// When, in nanoseconds since the epoch.
        started_at_ns: i64,
    },
    /// Done; nothing to tell.
    Done,
}

/// All that lives in a monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The version both ends speak from now on.
    pub protocol: u32,
    /// The monitor's own pid.
    pub pid: i32,
    /// Pause's pid; None: no sandbox yet, or pause has died (the sandbox is not ready).
    pub pause: Option<i32>,
    /// Every container not deleted.
    pub containers: Vec<ContainerReport>,
    /// Those of the processes asked for that run, or have ended not too long ago.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub execs: Vec<ExecReport>,
}

/// An exec'd process as its monitor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecReport {
    /// The daemon's id for it.
    pub exec: String,
    /// As in [`Event::ExecExited`]. None: it runs, and its end will be told.
    pub exit_code: Option<i32>,
}

impl Hello {
    /// Leaves out ends where all of them are too long for one packet: first those that are on disk, by id, to be read there; then, which
    /// takes hundreds of containers on a full disk, all; at last the exec'd processes. An end may be unknown, its pod must not be.
    #[must_use]
    pub(super) fn fit(mut self, is_on_disk: impl Fn(&str) -> bool) -> Self {
        // What is around it in its packet.
        const AROUND_BYTES: usize = 256;
        let fits = |hello: &Self| {
            serde_json::to_vec(hello).is_ok_and(|bytes| bytes.len() + AROUND_BYTES <= MAX_MESSAGE_BYTES)
        };
        for all in [false, true] {
            if fits(&self) {
                break;
            }
            for report in self.containers.iter_mut().filter(|report| all || is_on_disk(&report.id)) {
                report.exit = None;
            }
        }
        if !fits(&self) {
            self.execs.clear();
        }
        self
    }
}

/// A container as its monitor sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Its id.
    pub id: String,
    /// Its init's pid, while that lives.
    pub pid: Option<i32>,
    /// Created (waiting at its gate), running or exited.
    pub state: ContainerState,
    /// When it executed its program, in nanoseconds since the epoch.
    pub started_at_ns: Option<i64>,
    /// Its end. None for one that has exited: it is to be read from disk.
    pub exit: Option<ExitRecord>,
}

/// The states of a container in its monitor.
///
/// ```text
/// create -> Created --start--> Running --exit--> Exited --delete--> gone
///              \--kill, or the program cannot be executed--^
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Init waits at its start gate.
    Created,
    /// The program runs.
    Running,
    /// Init has exited, and its record is on disk.
    Exited,
}

/// The end of a container: `exit.json` in its bundle, written before the event that tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// As a shell tells it: the exit status, or 128 + the signal that killed it.
    pub exit_code: i32,
    /// The signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel's OOM killer killed a process of its cgroup, and the container did not end well.
    pub oom_killed: bool,
    /// When it executed its program, in nanoseconds since the epoch; None: it never did.
    pub started_at_ns: Option<i64>,
    /// When it was seen to have exited, in nanoseconds since the epoch; never before `started_at_ns`.
    pub finished_at_ns: i64,
    /// Why it never ran, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_failure: Option<Failure>,
}

/// What happened without being asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container's init has exited; its record is on disk.
    Exited {
        /// The container's id.
        container: String,
        /// Its end.
        record: ExitRecord,
    },
    /// An exec'd process has exited. Its output may still be in the pipes.
    ExecExited {
        /// The daemon's id for it.
        exec: String,
        /// As a shell tells it: the exit status, or 128 + the signal that killed it.
        exit_code: i32,
    },
    /// Pause has died: the sandbox is not ready any more.
    PauseExited,
    /// The kernel killed a process of the container for memory; init may live on.
    Oom {
        /// The container's id.
        container: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_documented() {
        let request = Request { id: 7, trace: None, op: Op::Start { container: "c1".into() } };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"id":7,"op":{"start":{"container":"c1"}}}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }

    fn hello(ends: usize, message_bytes: usize, execs: usize) -> Hello {
        let exit = ExitRecord {
            exit_code: 127,
            signal: None,
            oom_killed: false,
            started_at_ns: None,
            finished_at_ns: 1_800_000_000_000_000_000,
            start_failure: Some(Failure::because(crate::Step::Exec, "x".repeat(message_bytes))),
        };
        let report = |number| ContainerReport {
            id: format!("{number:064}"),
            pid: None,
            state: ContainerState::Exited,
            started_at_ns: None,
            exit: Some(exit.clone()),
        };
        Hello {
            protocol: PROTOCOL,
            pid: i32::MAX,
            pause: Some(i32::MAX),
            containers: (0..ends).map(report).collect(),
            execs: (0..execs)
                .map(|number| ExecReport { exec: format!("{number:064}"), exit_code: Some(137) })
                .collect(),
        }
    }

    #[test]
    fn a_hello_fits_its_packet_whatever_has_ended() {
        let told = |hello: &Hello| hello.containers.iter().filter(|report| report.exit.is_some()).count();
        let fits = |hello: &Hello| {
            let message = Message::Reply { id: u64::MAX, result: Ok(Reply::Hello(hello.clone())) };
            super::super::wire::encode(&message).is_ok()
        };
        let most = super::super::pod::MAX_CONTAINERS;
        let few = hello(20, 1000, 0).fit(|_| true);
        assert_eq!(told(&few), 20);
        let odd = |id: &str| id.ends_with(['1', '3', '5', '7', '9']);
        let some_on_disk = hello(40, 5000, 0).fit(odd);
        assert!(fits(&some_on_disk));
        assert_eq!(told(&some_on_disk), 20);
        let none_on_disk = hello(most, 60_000, 0).fit(|_| false);
        assert!(fits(&none_on_disk));
        assert_eq!((told(&none_on_disk), none_on_disk.containers.len()), (0, most));
        let execs = hello(40, 5000, MAX_EXECS).fit(|_| true);
        assert!(fits(&execs));
        assert_eq!((told(&execs), execs.execs.len()), (0, MAX_EXECS));
        let too_many = hello(most, 60_000, MAX_EXECS).fit(|_| true);
        assert!(fits(&too_many));
        assert_eq!((too_many.containers.len(), too_many.execs.len()), (most, 0));
    }
}
