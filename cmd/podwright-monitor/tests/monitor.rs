//! The real monitor on the real kernel: what a daemon may rely on.
#![allow(missing_docs, clippy::unwrap_used, clippy::format_collect)]

#[allow(unreachable_pub)]
mod support;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runtime::monitor::protocol::{ContainerState, Event, ExecRequest, Op, PROTOCOL, Reply};
use runtime::monitor::record;
use rustix::io::Errno;
use serde_json::json;
use support::{
    Connection, Monitor, Spec, exec_request, parse_log, process, read_to_end, read_until, wait_for_file,
};

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// A connected pair: one end for the monitor.
fn stream_pair() -> (OwnedFd, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

#[test]
fn a_container_lives_and_dies() {
    let mut monitor = Monitor::start();
    let pid = monitor.create("c", &Spec::sh("echo out; echo err >&2; printf 'no newline'; exit 7")).unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(monitor.log("c"), [], "nothing runs before the start");
    let started_at = monitor.start_container("c").unwrap();
    let record = monitor.connection.exit_of("c");
    assert_eq!((record.exit_code, record.signal, record.oom_killed), (7, None, false));
    assert_eq!(record.started_at_ns, Some(started_at));
    assert!(record.finished_at_ns >= started_at);
    assert_eq!(record::read(&monitor.bundle("c")).unwrap(), Some(record));
    let mut log = monitor.log("c");
    log.sort();
    let line = |stream: &str, tag: &str, text: &str| (stream.to_owned(), tag.to_owned(), text.to_owned());
    let expected =
        [line("stderr", "F", "err"), line("stdout", "F", "out"), line("stdout", "P", "no newline")];
    assert_eq!(log, expected);
    assert_eq!(threads(monitor.pid()), 1);
    assert_eq!(monitor.connection.ask(Op::Delete { container: "c".into() }), Ok(Reply::Done));
    assert_eq!(monitor.connection.ask(Op::Delete { container: "c".into() }), Ok(Reply::Done));
    monitor.end();
}

#[test]
fn it_is_set_apart_from_whoever_started_it() {
    let monitor = Monitor::start();
    let stat = fs::read_to_string(format!("/proc/{}/stat", monitor.pid())).unwrap();
    let session: u32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, monitor.pid());
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", monitor.pid())).unwrap();
    for hierarchy in ["memory", "pids", "freezer"] {
        let line = cgroups.lines().find(|line| line.split(':').nth(1) == Some(hierarchy));
        if let Some(line) = line {
            assert!(line.ends_with(&format!("/{}/monitors", monitor.unique)), "{line}");
        }
    }
    let pause = fs::read_to_string(format!("/proc/{}/status", monitor.pause)).unwrap();
    assert!(pause.contains(&format!("PPid:\t{}\n", monitor.pid())), "{pause}");
    monitor.end();
}

#[test]
fn a_program_that_cannot_run_fails_the_start() {
    let mut monitor = Monitor::start();
    for (name, program, errno, code) in
        [("a", "/no/such", Errno::NOENT, 127), ("b", "/bin/noexec", Errno::ACCESS, 126)]
    {
        let mut spec = Spec::sh("");
        spec.args = vec![program.into()];
        monitor.create(name, &spec).unwrap();
        let failure = monitor.start_container(name).unwrap_err();
        assert_eq!((failure.errno(), failure.path.as_deref()), (Some(errno), Some(program)));
        let record = monitor.connection.exit_of(name);
        assert_eq!((record.exit_code, record.started_at_ns), (code, None));
        assert_eq!(record.start_failure, Some(failure));
    }
    monitor.end();
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    let mut monitor = Monitor::start();
    monitor.create("c", &Spec::sh("echo no")).unwrap();
    monitor.kill("c", 9);
    let record = monitor.connection.exit_of("c");
    assert_eq!((record.exit_code, record.signal, record.started_at_ns), (137, Some(9), None));
    assert!(monitor.start_container("c").is_err());
    monitor.create("d", &Spec::sh("echo no")).unwrap();
    assert_eq!(monitor.connection.ask(Op::Delete { container: "d".into() }), Ok(Reply::Done));
    assert_eq!(monitor.connection.exit_of("d").exit_code, 137);
    assert_eq!(monitor.log("d"), []);
    monitor.end();
}

#[test]
fn requests_that_make_no_sense_are_refused_and_leave_nothing() {
    let mut monitor = Monitor::start();
    let unknown = monitor.start_container("nobody").unwrap_err();
    assert_eq!(unknown.errno(), Some(Errno::NOENT));
    let kill = Op::Kill { container: "nobody".into(), signal: 9, all: true };
    assert_eq!(monitor.connection.ask(kill), Ok(Reply::Done));
    let kill = Op::Kill { container: "nobody".into(), signal: 0, all: false };
    assert_eq!(monitor.connection.ask(kill).unwrap_err().errno(), Some(Errno::INVAL));
    monitor.create("c", &Spec::sh("sleep 1000")).unwrap();
    let twice = monitor.create("c", &Spec::sh("")).unwrap_err();
    assert_eq!(twice.errno(), Some(Errno::EXIST));
    // A FIFO where the log is to be neither hangs the monitor nor is written to.
    let fifo = monitor.log_path("fifo");
    fs::create_dir_all(fifo.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    let refused = monitor.create("fifo", &Spec::sh("")).unwrap_err();
    assert!(refused.to_string().contains("not a regular file"), "{refused}");
    // What cannot be made leaves neither a cgroup nor a log.
    let mut impossible = Spec::sh("true");
    impossible.edit = |config| config["mounts"][0]["type"] = json!("nosuchfs");
    monitor.create("impossible", &impossible).unwrap_err();
    assert!(!monitor.log_path("impossible").exists());
    assert!(!Path::new(&format!("/sys/fs/cgroup/pids/{}/impossible", monitor.unique)).exists());
    monitor.end();
}

#[test]
fn a_new_daemon_finds_everything_that_happened_meanwhile() {
    let mut monitor = Monitor::start();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 3";
    monitor.run("writer", &Spec::sh(script));
    monitor.run("sleeper", &Spec::sh("sleep 1000"));
    monitor.create("waiter", &Spec::sh("true")).unwrap();
    // The daemon dies in the middle of it.
    monitor.connection = Connection::open(&monitor.socket_path());
    let record = monitor.bundle("writer").join(record::EXIT_RECORD);
    let deadline = std::time::Instant::now() + support::PATIENCE;
    wait_for_file(&monitor.log_path("writer"), |log| log.ends_with(b"line 19999\n"));
    let hello = loop {
        let hello = monitor.reconnect();
        if hello.containers.iter().any(|c| c.id == "writer" && c.state == ContainerState::Exited) {
            break hello;
        }
        assert!(std::time::Instant::now() < deadline);
    };
    assert!(record.exists());
    assert_eq!(hello.pause, Some(monitor.pause));
    let state = |id: &str| hello.containers.iter().find(|c| c.id == id).unwrap();
    assert_eq!(state("writer").exit.as_ref().unwrap().exit_code, 3);
    assert_eq!(state("sleeper").state, ContainerState::Running);
    assert!(state("sleeper").pid.is_some() && state("sleeper").started_at_ns.is_some());
    assert_eq!(state("waiter").state, ContainerState::Created);
    let expected: String = (0..20000).map(|i| format!("line {i}\n")).collect();
    assert!(monitor.logged("writer") == expected, "every line, once, in order");
    monitor.start_container("waiter").unwrap();
    assert_eq!(monitor.connection.exit_of("waiter").exit_code, 0);
    monitor.end();
}

#[test]
fn two_daemons_are_both_told() {
    let mut monitor = Monitor::start();
    let mut other = Connection::greeted(&monitor.socket_path());
    monitor.run("c", &Spec::sh("exit 5"));
    assert_eq!(monitor.connection.exit_of("c").exit_code, 5);
    assert_eq!(other.exit_of("c").exit_code, 5);
    monitor.end();
}

#[test]
fn a_connection_that_breaks_the_protocol_is_closed() {
    let mut monitor = Monitor::start();
    let mut rude = Connection::open(&monitor.socket_path());
    let refused = rude.ask(Op::StopSandbox).unwrap_err();
    assert!(refused.to_string().contains("hello"), "{refused}");
    assert!(rude.ask(Op::Hello { protocols: vec![PROTOCOL + 7], execs: Vec::new() }).is_err());
    rustix::net::send(rude.socket(), b"{\"noise\":1}", rustix::net::SendFlags::empty()).unwrap();
    assert!(rude.receive().is_none());
    monitor.run("c", &Spec::sh("true"));
    assert_eq!(monitor.connection.exit_of("c").exit_code, 0);
    monitor.end();
}

#[test]
fn rotation_loses_no_line() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done"));
    let mut old = Vec::new();
    for turn in 1..=5 {
        wait_for_file(&monitor.log_path("c"), |log| !log.is_empty());
        let rotated = monitor.bundle("c").join(format!("0.log.{turn}"));
        fs::rename(monitor.log_path("c"), &rotated).unwrap();
        assert_eq!(monitor.connection.ask(Op::ReopenLog { container: "c".into() }), Ok(Reply::Done));
        assert!(monitor.log_path("c").exists());
        let then = fs::read(&rotated).unwrap();
        old.push((rotated, then));
    }
    assert_eq!(monitor.connection.exit_of("c").exit_code, 0);
    let mut lines = Vec::new();
    for (path, then) in &old {
        assert!(fs::read(path).unwrap() == *then, "a rotated log does not change");
        lines.extend(parse_log(then));
    }
    lines.extend(monitor.log("c"));
    let numbers: Vec<String> = lines.into_iter().map(|(_, _, text)| text).collect();
    let expected: Vec<String> = (0..30000).map(|i| i.to_string()).collect();
    assert!(numbers == expected);
    monitor.end();
}

#[test]
fn a_full_disk_makes_the_container_wait_and_loses_nothing() {
    let mut monitor = Monitor::start();
    // 64 pages of log, most of them taken by another file.
    let small = monitor.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount =
        rustix::mount::mount("tmpfs", &small, "tmpfs", rustix::mount::MountFlags::empty(), c"size=1m");
    mount.unwrap();
    fs::write(small.join("filler"), vec![0; 1024 * 1024 - 16384]).unwrap();
    fs::create_dir_all(monitor.bundle("c")).unwrap();
    let log = monitor.log_path("c");
    fs::hard_link(small.join("filler"), small.join("other")).unwrap();
    let bind = small.join("log");
    fs::write(&bind, "").unwrap();
    fs::write(&log, "").unwrap();
    rustix::mount::mount_bind(&bind, &log).unwrap();
    monitor.run("c", &Spec::sh("i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done"));
    wait_for_file(&monitor.dir.path().join("monitor.log"), |text| {
        text.windows(24).any(|window| window == b"the log cannot be writte")
    });
    fs::remove_file(small.join("filler")).unwrap();
    fs::remove_file(small.join("other")).unwrap();
    assert_eq!(monitor.connection.exit_of("c").exit_code, 0);
    wait_for_file(&log, |log| log.ends_with(b" 4999\n"));
    let expected: String = (0..5000).map(|i| format!("{i}\n")).collect();
    assert!(monitor.logged("c") == expected);
    assert_eq!(monitor.connection.ask(Op::Delete { container: "c".into() }), Ok(Reply::Done));
    rustix::mount::unmount(&log, rustix::mount::UnmountFlags::empty()).unwrap();
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::empty()).unwrap();
    monitor.end();
}

#[test]
fn output_of_what_init_leaves_behind_does_not_delay_its_exit() {
    let mut monitor = Monitor::start();
    // Its own PID namespace: everything dies with init, and what it wrote is there.
    monitor.run("own", &Spec::sh("(sleep 1000; echo late) & echo now"));
    assert_eq!(monitor.connection.exit_of("own").exit_code, 0);
    assert_eq!(monitor.logged("own"), "now\n");
    // The host's: what it leaves behind is killed.
    let mut spec = Spec::sh("(sleep 1000; echo late) & echo now");
    spec.own_pids = false;
    monitor.run("shared", &spec);
    assert_eq!(monitor.connection.exit_of("shared").exit_code, 0);
    assert_eq!(monitor.logged("shared"), "now\n");
    monitor.end();
}

#[test]
fn exec_gets_the_daemons_descriptors_themselves() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    let (stdin, type_in) = pipe();
    let (output, stdout) = pipe();
    rustix::io::write(&type_in, b"typed\n").unwrap();
    drop(type_in);
    let request = exec_request("c", "e", [true, true, false]);
    let script = "read line; echo got $line; echo lost >&2; exit 9";
    monitor.exec(&request, &process(script), &[stdin.as_fd(), stdout.as_fd()]).unwrap();
    drop(stdout);
    assert_eq!(monitor.connection.exec_exit_of("e"), 9);
    assert_eq!(read_to_end(output), "got typed\n");
    assert_eq!(monitor.logged("c"), "", "an exec's output is not the container's");
    let missing = json!({"args": ["/no/such"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    let failure = monitor.exec(&exec_request("c", "f", [false; 3]), &missing, &[]).unwrap_err();
    assert_eq!(failure.errno(), Some(Errno::NOENT));
    monitor.end();
}

#[test]
fn a_killed_exec_takes_its_whole_subtree_along() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    // A background child in a session of its own holds stdout; its parent has exited already.
    let (output, stdout) = pipe();
    let request = exec_request("c", "e", [false, true, false]);
    let script = "(trap '' HUP TERM; sleep 1000) & echo up";
    monitor.exec(&request, &process(script), &[stdout.as_fd()]).unwrap();
    drop(stdout);
    let mut text = Vec::new();
    read_until(output.as_fd(), &mut text, |text| text == b"up\n");
    assert_eq!(monitor.connection.exec_exit_of("e"), 0);
    let kill = Op::KillExec { exec: "e".into(), signal: 9 };
    assert_eq!(monitor.connection.ask(kill.clone()), Ok(Reply::Done));
    assert_eq!(read_to_end(output), "", "nobody holds it any more");
    assert_eq!(monitor.connection.ask(kill), Ok(Reply::Done));
    // The container is not touched.
    let hello = monitor.reconnect();
    assert_eq!(hello.containers[0].state, ContainerState::Running);
    monitor.end();
}

#[test]
fn an_exec_is_known_to_the_next_connection_and_ends_at_its_limit_without_any() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    let (output, stdout) = pipe();
    let limited = ExecRequest { limit_ms: Some(100), ..exec_request("c", "e", [false, true, false]) };
    monitor
        .exec(&limited, &process("(trap '' HUP TERM; sleep 1000) & sleep 1000"), &[stdout.as_fd()])
        .unwrap();
    drop(stdout);
    monitor.exec(&exec_request("c", "f", [false; 3]), &process("sleep 1000"), &[]).unwrap();
    monitor.connection = Connection::open(&monitor.socket_path());
    assert_eq!(read_to_end(output), "", "all of it is killed");
    let asked = ["f", "e", "never"].map(str::to_owned).to_vec();
    let hello = monitor.connection.ask(Op::Hello { protocols: vec![PROTOCOL], execs: asked }).unwrap();
    let Reply::Hello(hello) = hello else { panic!("{hello:?}") };
    let known: Vec<_> = hello.execs.iter().map(|report| report.exec.as_str()).collect();
    assert_eq!((known, hello.execs[0].exit_code), (vec!["f", "e"], None));
    // Its output ends a moment before it does: then that is still to be told.
    let code = hello.execs[1].exit_code.unwrap_or_else(|| monitor.connection.exec_exit_of("e"));
    assert_eq!(code, 137);
    monitor.connection.ask(Op::KillExec { exec: "f".into(), signal: 15 }).unwrap();
    assert_eq!(monitor.connection.exec_exit_of("f"), 143);
    monitor.end();
}

#[test]
fn an_exec_with_a_terminal() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    let mut process = process("stty -echo; echo ready; read line; stty size; exit 4");
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"width": 80, "height": 24});
    monitor.exec(&exec_request("c", "e", [false; 3]), &process, &[]).unwrap();
    let master = monitor.connection.passed.pop().expect("the master comes with the answer");
    assert!(monitor.connection.passed.is_empty());
    let mut text = Vec::new();
    read_until(master.as_fd(), &mut text, |text| text.ends_with(b"ready\r\n"));
    let size = rustix::termios::Winsize { ws_row: 43, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    rustix::io::write(&master, b"go\n").unwrap();
    assert_eq!(monitor.connection.exec_exit_of("e"), 4);
    assert_eq!(read_to_end(master), "43 132\r\n");
    // With a terminal there is nothing to pass.
    let (_output, stdout) = pipe();
    let request = exec_request("c", "f", [false, true, false]);
    assert!(monitor.exec(&request, &process, &[stdout.as_fd()]).is_err());
    monitor.end();
}

#[test]
fn a_container_with_a_terminal() {
    let mut monitor = Monitor::start();
    let mut spec = Spec::sh("tty; stty size; read line; echo got $line");
    (spec.terminal, spec.stdin) = (true, true);
    spec.edit = |config| config["process"]["consoleSize"] = json!({"width": 100, "height": 30});
    monitor.run("c", &spec);
    let (stdin, type_in) = stream_pair();
    let (stdout, output) = stream_pair();
    let attach =
        Op::Attach { container: "c".into(), attach: "a".into(), stdin: true, stdout: true, stderr: false };
    let attached = monitor.connection.ask_with(attach, &[stdin.as_fd(), stdout.as_fd()]);
    assert_eq!(attached, Ok(Reply::Done));
    drop((stdin, stdout));
    // Typed before, its echo would come in between.
    wait_for_file(&monitor.log_path("c"), |log| log.ends_with(b"30 100\r\n"));
    rustix::io::write(&type_in, b"me\n").unwrap();
    assert_eq!(monitor.connection.exit_of("c").exit_code, 0);
    assert!(read_to_end(output).contains("got me\r\n"));
    let log = monitor.logged("c");
    assert!(log.contains("/dev/pts/0\r\n30 100\r\n") && log.ends_with("got me\r\n"), "{log:?}");
    assert!(monitor.log("c").iter().all(|(stream, _, _)| stream == "stdout"));
    monitor.end();
}

#[test]
fn attach_copies_both_ways_and_drops_the_slow() {
    let mut monitor = Monitor::start();
    let mut spec = Spec::sh("while read line; do echo out $line; echo err $line >&2; done; echo end");
    (spec.stdin, spec.stdin_once) = (true, true);
    monitor.run("c", &spec);
    let attach = |name: &str, stdin| Op::Attach {
        container: "c".into(),
        attach: name.into(),
        stdin,
        stdout: true,
        stderr: true,
    };
    let (stdin, type_in) = stream_pair();
    let (stdout, output) = stream_pair();
    let (stderr, errors) = stream_pair();
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    assert_eq!(monitor.connection.ask_with(attach("a", true), &fds), Ok(Reply::Done));
    drop((stdin, stdout, stderr));
    rustix::io::write(&type_in, b"one\n").unwrap();
    let mut text = Vec::new();
    read_until(output.as_fd(), &mut text, |text| text == b"out one\n");
    // The first client leaves: stdin_once ends the container's stdin.
    drop(type_in);
    assert_eq!(monitor.connection.exit_of("c").exit_code, 0);
    assert_eq!(read_to_end(output), "end\n");
    assert_eq!(read_to_end(errors), "err one\n");

    monitor.run("flood", &Spec::sh("read _ < /dev/null; seq 1 200000"));
    let (stdout, output) = stream_pair();
    let flood = Op::Attach {
        container: "flood".into(),
        attach: "slow".into(),
        stdin: false,
        stdout: true,
        stderr: false,
    };
    // It may be over already: then there is nothing to attach to.
    let _ = monitor.connection.ask_with(flood, &[stdout.as_fd()]);
    assert_eq!(monitor.connection.exit_of("flood").exit_code, 0);
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    assert!(monitor.logged("flood") == expected, "the log does not wait for a client, nor lose a line");
    drop(output);
    monitor.end();
}

#[test]
fn stopping_the_sandbox_kills_what_ignores_signals_and_what_is_frozen() {
    let mut monitor = Monitor::start();
    monitor.run("stubborn", &Spec::sh("trap '' TERM INT; while :; do sleep 1; done"));
    monitor.run("frozen", &Spec::sh("sleep 1000"));
    assert_eq!(monitor.connection.ask(Op::Pause { container: "frozen".into() }), Ok(Reply::Done));
    assert_eq!(monitor.connection.ask(Op::StopSandbox), Ok(Reply::Done));
    let hello = monitor.reconnect();
    assert_eq!(hello.pause, None);
    for container in &hello.containers {
        assert_eq!(container.exit.as_ref().unwrap().exit_code, 137, "{container:?}");
    }
    assert!(!Path::new(&format!("/proc/{}", monitor.pause)).exists());
    monitor.end();
}

#[test]
fn pausing_and_resuming() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("while :; do echo tick; sleep 0.01; done"));
    let log = monitor.log_path("c");
    wait_for_file(&log, |text| text.len() > 100);
    assert_eq!(monitor.connection.ask(Op::Pause { container: "c".into() }), Ok(Reply::Done));
    // What was in the pipe is logged with the next request at the latest.
    monitor.connection.ask(Op::KillExec { exec: "nobody".into(), signal: 9 }).unwrap();
    let then = fs::metadata(&log).unwrap().len();
    monitor.connection.ask(Op::KillExec { exec: "nobody".into(), signal: 9 }).unwrap();
    assert_eq!(fs::metadata(&log).unwrap().len(), then);
    let refused = monitor.exec(&exec_request("c", "e", [false; 3]), &process("true"), &[]).unwrap_err();
    assert!(refused.to_string().contains("paused"), "{refused}");
    assert_eq!(monitor.connection.ask(Op::Resume { container: "c".into() }), Ok(Reply::Done));
    wait_for_file(&log, |text| text.len() as u64 > then);
    monitor.end();
}

#[test]
fn an_oom_kill_is_told_and_recorded() {
    let mut monitor = Monitor::start();
    let mut spec = Spec::sh("tail /dev/zero");
    spec.edit = |config| {
        config["linux"]["resources"] =
            json!({"memory": {"limit": 16 * 1024 * 1024, "swap": 16 * 1024 * 1024}});
    };
    monitor.run("c", &spec);
    // The notice may come before the exit, or be overtaken by it.
    let record = monitor.connection.exit_of("c");
    // sh forks for tail, or not: either init was killed, or it reports its child's end.
    assert_eq!(record.exit_code, 137);
    assert_eq!(record.oom_killed, record.signal == Some(9));
    monitor.end();
}

#[test]
fn limits_of_a_running_container_change() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    let update = |resources| Op::Update { container: "c".into(), resources };
    assert_eq!(monitor.connection.ask(update(json!({"pids": {"limit": 77}}))), Ok(Reply::Done));
    let file = format!("/sys/fs/cgroup/pids/{}/c/pids.max", monitor.unique);
    if Path::new(&file).exists() {
        assert_eq!(fs::read_to_string(&file).unwrap(), "77\n");
    }
    assert!(monitor.connection.ask(update(json!({"pids": {"limit": "many"}}))).is_err());
    monitor.end();
}

#[test]
fn sigterm_is_ignored_while_the_pod_lives() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(monitor.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let hello = monitor.reconnect();
    assert_eq!(hello.containers[0].state, ContainerState::Running);
    assert_eq!(monitor.connection.ask(Op::StopSandbox), Ok(Reply::Done));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(monitor.child.wait().unwrap().success());
    assert!(!monitor.socket_path().exists());
    // A signal ends the monitor, not the record of what it held: the container's cgroup is the daemon's to remove.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
        let _ = fs::remove_dir(hierarchy.unwrap().path().join(&monitor.unique).join("c"));
    }
}

#[test]
fn the_death_of_pause_is_told() {
    let mut monitor = Monitor::start();
    let pid = rustix::process::Pid::from_raw(monitor.pause).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(monitor.connection.event(), Event::PauseExited);
    assert!(monitor.create("c", &Spec::sh("true")).is_err());
    monitor.end();
}

#[test]
fn a_shared_pid_namespace_is_reaped_by_pause() {
    let mut monitor = Monitor::start_with(true);
    let mut spec = Spec::sh("(sleep 0.2; exit 0) & exit 0");
    spec.shared_pids = true;
    monitor.run("c", &spec);
    assert_eq!(monitor.connection.exit_of("c").exit_code, 0);
    let inside = fs::read_to_string(format!("/proc/{}/status", monitor.pause)).unwrap();
    let line = inside.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert!(line.ends_with("\t1"), "{line}");
    monitor.run("d", &Spec { shared_pids: true, ..Spec::sh("sleep 1000") });
    monitor.end();
}

#[test]
fn nothing_grows_over_many_containers() {
    let mut monitor = Monitor::start();
    let fds = |pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = fds(monitor.pid());
    for turn in 0..20 {
        let id = format!("c{turn}");
        monitor.run(&id, &Spec::sh("echo $$"));
        assert_eq!(monitor.connection.exit_of(&id).exit_code, 0);
        assert_eq!(monitor.logged(&id), "1\n");
        assert_eq!(monitor.connection.ask(Op::Delete { container: id.clone() }), Ok(Reply::Done));
    }
    assert_eq!(fds(monitor.pid()), before);
    monitor.end();
}

/// Monitor and pause are what every pod costs, whatever it runs.
#[test]
fn thirty_pods_are_small() {
    const PODS: u64 = 30;
    const LIMIT_KIB: u64 = 300;
    let pods: Vec<Monitor> = (0..PODS)
        .map(|_| {
            let mut monitor = Monitor::start();
            monitor.run("c", &Spec::sh("sleep 1000"));
            monitor
        })
        .collect();
    let pss = |pid: u64| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let all: u64 = pods.iter().map(|pod| pss(pod.pid().into()) + pss(pod.pause.unsigned_abs().into())).sum();
    println!("monitor and pause: {} KiB of PSS per pod", all / PODS);
    if cfg!(debug_assertions) {
        println!("skipped: the limit is for release builds");
    } else {
        assert!(all / PODS < LIMIT_KIB);
    }
    pods.into_iter().for_each(Monitor::end);
}

#[test]
fn nothing_grows_over_many_execs() {
    let mut monitor = Monitor::start();
    monitor.run("c", &Spec::sh("sleep 1000"));
    let fds = |pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut before = 0;
    for turn in 0..60 {
        let name = format!("e{turn}");
        monitor.exec(&exec_request("c", &name, [false; 3]), &process("true"), &[]).unwrap();
        assert_eq!(monitor.connection.exec_exit_of(&name), 0);
        if turn == 10 {
            before = fds(monitor.pid());
        }
    }
    assert_eq!(fds(monitor.pid()), before);
    assert_eq!(threads(monitor.pid()), 1);
    monitor.end();
}

#[test]
fn its_dependencies_have_no_threads_and_no_runtime() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--edges", "normal", "--prefix", "none", "--offline", "--manifest-path"])
        .arg(manifest)
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    for line in tree.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let forbidden = ["tokio", "async-std", "smol", "rayon", "tonic", "hyper", "crossbeam"];
        assert!(!forbidden.contains(&name), "{line}");
    }
}
