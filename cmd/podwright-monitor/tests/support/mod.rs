//! A real monitor for tests: the binary, its socket, a busybox root given as a detached mount, and a blocking client.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runtime::Failure;
use runtime::monitor::log_format::DEFAULT_PART_BYTES;
use runtime::monitor::protocol::{
    CreateFd, CreateRequest, Event, ExecRequest, ExitRecord, Hello, Message, Op, PROTOCOL, Reply, Request,
    SandboxRequest,
};
use runtime::monitor::wire;
use rustix::mount::OpenTreeFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A monitor, its directories and one connection to it.
pub struct Monitor {
    pub dir: TempDir,
    pub unique: String,
    pub child: Child,
    pub connection: Connection,
    pub pause: i32,
}

/// A connection that has said hello.
pub struct Connection {
    socket: OwnedFd,
    next_id: u64,
    events: VecDeque<Event>,
    buffer: Vec<u8>,
    pub hello: Option<Hello>,
    /// Descriptors that came with messages.
    pub passed: Vec<OwnedFd>,
}

/// A container to be.
#[allow(clippy::struct_excessive_bools)]
pub struct Spec {
    pub args: Vec<String>,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log: bool,
    /// A PID namespace of its own; else the host's.
    pub own_pids: bool,
    /// The pod's PID namespace.
    pub shared_pids: bool,
    pub edit: fn(&mut Value),
}

impl Spec {
    pub fn sh(script: &str) -> Self {
        Self {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            terminal: false,
            stdin: false,
            stdin_once: false,
            log: true,
            own_pids: true,
            shared_pids: false,
            edit: |_| (),
        }
    }
}

impl Connection {
    pub fn open(path: &Path) -> Self {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let buffer = wire::buffer();
        Self { socket, next_id: 0, events: VecDeque::new(), buffer, hello: None, passed: Vec::new() }
    }

    pub fn greeted(path: &Path) -> Self {
        let mut connection = Self::open(path);
        let Ok(Reply::Hello(hello)) =
            connection.ask(Op::Hello { protocols: vec![PROTOCOL], execs: Vec::new() })
        else {
            panic!("no hello");
        };
        connection.hello = Some(hello);
        connection
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn send(&mut self, op: Op, fds: &[BorrowedFd<'_>]) -> u64 {
        self.next_id += 1;
        let request = Request { id: self.next_id, trace: Some("test".into()), op };
        wire::send(self.socket.as_fd(), &request, fds).unwrap();
        self.next_id
    }

    /// None: the monitor has closed the connection.
    pub fn receive(&mut self) -> Option<Message> {
        let packet = wire::receive::<Message>(self.socket.as_fd(), &mut self.buffer).unwrap()?;
        self.passed.extend(packet.fds);
        Some(packet.message)
    }

    pub fn answer(&mut self, asked: u64) -> Result<Reply, Failure> {
        loop {
            match self.receive().expect("the monitor is there") {
                Message::Reply { id, result } => {
                    assert_eq!(id, asked);
                    return result;
                }
                Message::Event(event) => self.events.push_back(event),
            }
        }
    }

    pub fn ask_with(&mut self, op: Op, fds: &[BorrowedFd<'_>]) -> Result<Reply, Failure> {
        let id = self.send(op, fds);
        self.answer(id)
    }

    pub fn ask(&mut self, op: Op) -> Result<Reply, Failure> {
        self.ask_with(op, &[])
    }

    pub fn event(&mut self) -> Event {
        if let Some(event) = self.events.pop_front() {
            return event;
        }
        match self.receive().expect("the monitor is there") {
            Message::Event(event) => event,
            Message::Reply { .. } => panic!("an answer nobody asked for"),
        }
    }

    /// The end of a container, passing over other events.
    pub fn exit_of(&mut self, id: &str) -> ExitRecord {
        loop {
            match self.event() {
                Event::Exited { container, record } if container == id => return record,
                _ => {}
            }
        }
    }

    pub fn exec_exit_of(&mut self, id: &str) -> i32 {
        loop {
            match self.event() {
                Event::ExecExited { exec, exit_code } if exec == id => return exit_code,
                _ => {}
            }
        }
    }
}

impl Monitor {
    /// A monitor with a sandbox of its own IPC and UTS namespaces.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// With one PID namespace for all its containers, or not.
    pub fn start_with(shared_pids: bool) -> Self {
        let mut monitor = Self::start_bare();
        let request = SandboxRequest {
            netns: None,
            ipc: true,
            uts: true,
            pid: shared_pids,
            hostname: Some("pod".into()),
            sysctls: Vec::new(),
            user_namespace: None,
        };
        match monitor.connection.ask(Op::Sandbox(request)) {
            Ok(Reply::Started { pid }) => monitor.pause = pid,
            other => panic!("{other:?}"),
        }
        monitor
    }

    pub fn start_bare() -> Self {
        let dir = TempDir::with_prefix("podwright-monitor-test-").unwrap();
        let unique = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        make_root(&dir.path().join("root"));
        let path = dir.path().join("monitor.sock");
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        let log = fs::File::create(dir.path().join("monitor.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_podwright-monitor"))
            .args(["--pod", "pod", "--run"])
            .arg(dir.path())
            .args(["--cgroup", &format!("/{unique}/monitors"), "--oom-score", "-999", "--log-level", "debug"])
            .env_clear()
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let connection = Connection::greeted(&path);
        Self { dir, unique, child, connection, pause: 0 }
    }

    pub fn socket_path(&self) -> PathBuf {
        self.dir.path().join("monitor.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn reconnect(&mut self) -> Hello {
        self.connection = Connection::greeted(&self.socket_path());
        self.connection.hello.clone().unwrap()
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join("containers").join(id)
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.bundle(id).join("0.log")
    }

    /// (stream, tag, content) of every line of a container's log.
    pub fn log(&self, id: &str) -> Vec<(String, String, String)> {
        parse_log(&fs::read(self.log_path(id)).unwrap())
    }

    /// What the container wrote to stdout, as a reader of the log joins it.
    pub fn logged(&self, id: &str) -> String {
        let mut text = String::new();
        for (_, tag, content) in self.log(id) {
            text.push_str(&content);
            if tag == "F" {
                text.push('\n');
            }
        }
        text
    }

    pub fn monitor_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("monitor.log")).unwrap()
    }

    pub fn create(&mut self, id: &str, spec: &Spec) -> Result<i32, Failure> {
        let bundle = self.bundle(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let config = self.config(id, spec);
        fs::write(bundle.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let root = rustix::mount::open_tree(
            rustix::fs::CWD,
            self.dir.path().join("root"),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .unwrap();
        let request = CreateRequest {
            container: id.into(),
            bundle,
            log_path: spec.log.then(|| self.log_path(id)),
            log_part_bytes: 0,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            fds: vec![CreateFd::Root],
        };
        assert_eq!(DEFAULT_PART_BYTES, 16384);
        match self.connection.ask_with(Op::Create(request), &[root.as_fd()])? {
            Reply::Started { pid } => Ok(pid),
            other => panic!("{other:?}"),
        }
    }

    pub fn run(&mut self, id: &str, spec: &Spec) -> i32 {
        let pid = self.create(id, spec).unwrap();
        self.start_container(id).unwrap();
        pid
    }

    pub fn start_container(&mut self, id: &str) -> Result<i64, Failure> {
        match self.connection.ask(Op::Start { container: id.into() })? {
            Reply::Running { started_at_ns } => Ok(started_at_ns),
            other => panic!("{other:?}"),
        }
    }

    pub fn exec(
        &mut self,
        exec: &ExecRequest,
        process: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<i32, Failure> {
        let description = memfd(&serde_json::to_vec(process).unwrap());
        let mut all = vec![description.as_fd()];
        all.extend_from_slice(fds);
        match self.connection.ask_with(Op::Exec(exec.clone()), &all)? {
            Reply::Started { pid } => Ok(pid),
            other => panic!("{other:?}"),
        }
    }

    pub fn kill(&mut self, id: &str, signal: i32) {
        let op = Op::Kill { container: id.into(), signal, all: false };
        assert_eq!(self.connection.ask(op), Ok(Reply::Done));
    }

    fn config(&self, id: &str, spec: &Spec) -> Value {
        let pause = self.pause;
        let mut namespaces = vec![
            json!({"type": "mount"}),
            json!({"type": "cgroup"}),
            json!({"type": "ipc", "path": format!("/proc/{pause}/ns/ipc")}),
            json!({"type": "uts", "path": format!("/proc/{pause}/ns/uts")}),
        ];
        if spec.shared_pids {
            namespaces.push(json!({"type": "pid", "path": format!("/proc/{pause}/ns/pid")}));
        } else if spec.own_pids {
            namespaces.push(json!({"type": "pid"}));
        }
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": false},
            "process": {
                "terminal": spec.terminal,
                "args": spec.args,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "capabilities": capabilities(),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.unique),
                "namespaces": namespaces,
            },
        });
        (spec.edit)(&mut config);
        config
    }

    /// Ends the monitor as a daemon does, and checks that nothing of it is left.
    pub fn end(mut self) {
        assert_eq!(self.connection.ask(Op::StopSandbox), Ok(Reply::Done));
        assert_eq!(self.connection.ask(Op::Shutdown), Ok(Reply::Done));
        assert!(self.child.wait().unwrap().success());
        assert!(!self.socket_path().exists());
        remove_cgroups(&self.unique);
        assert_eq!(cgroups_named(&self.unique), Vec::<PathBuf>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.unique), "a mount is left");
    }
}

impl Drop for Monitor {
    /// After a failed test: containers and pause die with their cgroups.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.monitor_log());
        }
        if self.child.try_wait().ok().flatten().is_none() {
            let id = self.connection.next_id + 1;
            let request = Request { id, trace: None, op: Op::Shutdown };
            if wire::send(self.connection.socket.as_fd(), &request, &[]).is_ok() {
                while self.connection.receive().is_some() {}
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        remove_cgroups(&self.unique);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev().filter(|line| line.contains(&self.unique)) {
            let place = line.split(' ').nth(4).unwrap_or_default();
            let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub fn capabilities() -> Value {
    let names = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    json!({"bounding": names, "effective": names, "permitted": names})
}

pub fn process(script: &str) -> Value {
    json!({
        "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/",
        "user": {"uid": 0, "gid": 0}, "capabilities": capabilities(),
    })
}

pub fn exec_request(container: &str, exec: &str, stdio: [bool; 3]) -> ExecRequest {
    ExecRequest { container: container.into(), exec: exec.into(), stdio, own_cgroup: true, limit_ms: None }
}

pub fn memfd(bytes: &[u8]) -> OwnedFd {
    let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = fs::File::from(memfd);
    file.write_all(bytes).unwrap();
    file.into()
}

/// Reads to the end, or fails after [`PATIENCE`].
#[allow(clippy::needless_pass_by_value)]
pub fn read_to_end(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    read_until(fd.as_fd(), &mut bytes, |_| false);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `enough` or the end.
pub fn read_until(fd: BorrowedFd<'_>, bytes: &mut Vec<u8>, enough: impl Fn(&[u8]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 65536];
    while !enough(bytes) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(left).unwrap();
        assert_ne!(rustix::event::poll(&mut poll, Some(&timeout)).unwrap(), 0, "too late: {bytes:?}");
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

pub fn parse_log(bytes: &[u8]) -> Vec<(String, String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.strip_suffix('\n').map(|text| text.split('\n'));
    lines
        .into_iter()
        .flatten()
        .map(|line| {
            let mut fields = line.splitn(4, ' ');
            assert_eq!(fields.next().unwrap().len(), 30, "{line}");
            let mut field = || fields.next().unwrap().to_owned();
            (field(), field(), field())
        })
        .collect()
}

/// Waits for an event of the file system: `path`'s content satisfies `enough`.
pub fn wait_for_file(path: &Path, enough: impl Fn(&[u8]) -> bool) {
    use rustix::fs::inotify;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !enough(&fs::read(path).unwrap()) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(left).unwrap();
        assert_ne!(
            rustix::event::poll(&mut poll, Some(&timeout)).unwrap(),
            0,
            "too late: {}",
            path.display()
        );
        let mut buffer = [0; 4096];
        rustix::io::read(&watch, &mut buffer).unwrap();
    }
}

fn make_root(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    for directory in ["proc", "dev", "tmp", "sys", "etc"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "echo", "seq", "dd", "yes", "head", "tty", "stty", "true", "tail"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("bin/noexec"), "x").unwrap();
}

/// Directories of this name in every cgroup hierarchy.
fn cgroups_named(unique: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap();
    let places = hierarchies.map(|entry| entry.unwrap().path().join(unique));
    places.chain([Path::new("/sys/fs/cgroup").join(unique)]).filter(|path| path.is_dir()).collect()
}

/// The monitors' cgroup is the daemon's to remove; there is none here.
fn remove_cgroups(unique: &str) {
    for directory in cgroups_named(unique) {
        let _ = fs::remove_dir(directory.join("monitors"));
        let _ = fs::remove_dir(directory);
    }
}
