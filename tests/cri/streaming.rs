//! `Exec` over WebSocket: what kubectl and crictl do with its URL.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use podwright_tests::skip::skip;
use podwright_tests::spdy::{self, Spdy};
use podwright_tests::streaming::{Streaming, V5, address, channel, raw_request};
use podwright_tests::{
    Container, Deadline, Node, NodeOptions, Outcome, Pod, PodBuilder, binaries, seconds, snapshot, temporary,
    v1, watch,
};
use rustix::process::Signal;
use tonic::Code;

/// What an exec is to have.
#[derive(Clone, Copy, Default)]
struct Want {
    stdin: bool,
    tty: bool,
}

const OUTPUT: Want = Want { stdin: false, tty: false };
const INPUT: Want = Want { stdin: true, tty: false };
const TERMINAL: Want = Want { stdin: true, tty: true };

fn request(container: &str, command: &[&str], want: Want) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(ToString::to_string).collect(),
        tty: want.tty,
        stdin: want.stdin,
        stdout: true,
        stderr: !want.tty,
    }
}

fn exec_url(pod: &Pod, container: &Container<'_>, script: &str, want: Want) -> anyhow::Result<String> {
    Ok(pod.client.exec(request(&container.id, &["/bin/sh", "-c", script], want))?.url)
}

fn exec(pod: &Pod, container: &Container<'_>, script: &str, want: Want) -> anyhow::Result<Streaming> {
    Streaming::open(&exec_url(pod, container, script, want)?, Some(V5))
}

#[test]
fn output_and_exit_codes_come_back() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "stream").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let ended = exec(&pod, &container, "echo out; echo err >&2; exit 42", OUTPUT)?.finish()?;
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code()?), ("out\n", "err\n", 42));
    assert!(ended.status.contains(r#""reason":"NonZeroExitCode""#), "{}", ended.status);
    let ended = exec(&pod, &container, "true", OUTPUT)?.finish()?;
    assert_eq!((ended.status.as_str(), ended.code()?), (r#"{"metadata":{},"status":"Success"}"#, 0));
    assert_eq!(exec(&pod, &container, "kill -9 $$", OUTPUT)?.finish()?.code()?, 137, "128 + the signal");
    let missing = pod.client.exec(request(&container.id, &["/no/such/program"], OUTPUT))?.url;
    let ended = Streaming::open(&missing, Some(V5))?.finish()?;
    assert!(ended.status.contains("InternalError") && ended.status.contains("/no/such/program"), "{ended:?}");
    Ok(())
}

#[test]
fn input_ends_when_the_client_says_so() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "input").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let mut stream = exec(&pod, &container, "cat; echo end; exit 3", INPUT)?;
    stream.send(channel::STDIN, b"one\n")?;
    stream.read_text(channel::STDOUT, "one\n")?;
    stream.send(channel::STDIN, b"two\n")?;
    stream.close_stdin()?;
    let ended = stream.finish()?;
    assert_eq!((ended.stdout.as_str(), ended.code()?), ("two\nend\n", 3));
    Ok(())
}

#[test]
fn much_goes_both_ways_at_once_and_arrives_whole() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "much").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let data: Vec<u8> = (0..8_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut stream = exec(&pod, &container, "cat", INPUT)?;
    stream.pour(channel::STDIN, &data)?;
    stream.close_stdin()?;
    let echoed = stream.read_until(channel::STDOUT, |bytes| bytes.len() >= data.len())?;
    assert!(echoed == data, "{} bytes came back of {}", echoed.len(), data.len());
    assert_eq!(stream.finish()?.code()?, 0);
    // What a process wrote before its exit is not lost, however slowly it is read.
    let stream = exec(&pod, &container, "head -c 3000000 /dev/zero | tr '\\0' x; echo e >&2", OUTPUT)?;
    let ended = stream.finish()?;
    assert_eq!((ended.stdout.len(), ended.stderr.as_str()), (3_000_000, "e\n"));
    Ok(())
}

#[test]
fn input_that_is_not_read_blocks_nothing_else() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "unread").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    // It closes its stdin, and then there is still much to come.
    let mut stream = exec(&pod, &container, "exec <&-; echo closed; sleep 0.2; exit 5", INPUT)?;
    stream.read_text(channel::STDOUT, "closed")?;
    stream.pour(channel::STDIN, &vec![b'x'; 500_000])?;
    assert_eq!(stream.finish()?.code()?, 5);
    Ok(())
}

#[test]
fn a_terminal_has_a_size_and_one_output() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "tty").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let script = "tty; echo $TERM; echo to stderr >&2; read go; stty size; exit 7";
    let mut stream = exec(&pod, &container, script, TERMINAL)?;
    let text = stream.read_text(channel::STDOUT, "to stderr\r\n")?;
    assert!(text.contains("/dev/pts/") && text.contains("xterm\r\n"), "{text:?}");
    stream.resize(132, 43)?;
    stream.send(channel::STDIN, b"go\n")?;
    let ended = stream.finish()?;
    assert!(ended.stdout.ends_with("43 132\r\n"), "{ended:?}");
    assert_eq!((ended.stderr.as_str(), ended.code()?), ("", 7));
    // A terminal's end of input is typed.
    let mut stream = exec(&pod, &container, "cat; echo over", TERMINAL)?;
    stream.send(channel::STDIN, b"\x04")?;
    assert!(stream.finish()?.stdout.contains("over\r\n"));
    Ok(())
}

#[test]
fn a_background_child_holds_nobody_up() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "holder").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let deadline = Deadline::in_seconds(15);
    let ended = exec(&pod, &container, "echo first; sleep 300 & exit 0", OUTPUT)?.finish()?;
    assert_eq!((ended.stdout.as_str(), ended.code()?), ("first\n", 0));
    let ended = exec(&pod, &container, "(while :; do echo y; done) & exit 4", OUTPUT)?.finish()?;
    assert_eq!(ended.code()?, 4, "a child that writes for ever");
    assert!(deadline.left().is_some());
    Ok(())
}

#[test]
fn a_process_outlives_its_client() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "vanish").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    // With a pipe its input ends, with a terminal it does not; what it writes is dropped, and it is not killed.
    let script = "echo up; cat >/dev/null; yes | head -c 1000000; echo done > /$0";
    for (want, name) in [(INPUT, "piped"), (TERMINAL, "typed")] {
        let command = ["/bin/sh", "-c", script, name];
        let url = pod.client.exec(request(&container.id, &command, want))?.url;
        let mut stream = Streaming::open(&url, Some(V5))?;
        stream.read_text(channel::STDOUT, "up")?;
        if want.tty {
            stream.send(channel::STDIN, b"\x04")?;
        }
        drop(stream);
        let waited = container.exec(&format!("while ! [ -s /{name} ]; do sleep 0.05; done; cat /{name}"))?;
        assert_eq!(waited.stdout, "done\n");
    }
    Ok(())
}

#[test]
fn a_client_that_vanishes_is_noticed_at_once() -> Outcome {
    let node = Node::start()?;
    let data = node.path().join("data");
    fs::create_dir(&data)?;
    let pod = PodBuilder::new(&node, "silent").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).mount(&data, "/data", false).start()?;
    // Neither of these writes anything: its input ends, and nothing of the connection is kept, while it runs on.
    let script = "cat >/dev/null; touch /data/$0; exec sleep 2000";
    for name in ["fin", "rst"] {
        let url = pod.client.exec(request(&container.id, &["/bin/sh", "-c", script, name], INPUT))?.url;
        let mut stream = Streaming::open(&url, Some(V5))?;
        stream.ready()?;
        match name {
            "fin" => stream.hang_up()?,
            _ => stream.reset()?,
        }
        watch::file(&data.join(name), Deadline::in_seconds(30))?;
    }
    assert_eq!(container.exec("ps")?.stdout.matches("sleep 2000").count(), 2);
    exec(&pod, &container, "exec sleep 3000", OUTPUT)?.hang_up()?;
    Ok(())
}

#[test]
fn every_version_speaks_its_form() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "versions").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let url = exec_url(&pod, &container, "echo hi; exit 2", OUTPUT)?;
        let ended = Streaming::open(&url, Some(protocol))?.finish()?;
        assert_eq!((ended.stdout.as_str(), ended.code()?), ("hi\n", 2), "{protocol}");
    }
    // The first ones tell a failure as text, and a success not at all. Without a name it is the binary one.
    for protocol in [Some("channel.k8s.io"), None] {
        let url = exec_url(&pod, &container, "echo hi; exit 2", OUTPUT)?;
        let ended = Streaming::open(&url, protocol)?.finish()?;
        assert_eq!(ended.stdout, "hi\n", "{protocol:?}");
        assert_eq!(ended.status, "command terminated with non-zero exit code: 2");
        let url = exec_url(&pod, &container, "true", OUTPUT)?;
        assert_eq!(Streaming::open(&url, protocol)?.finish()?.status, "");
    }
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let url = exec_url(&pod, &container, "read line; echo got $line", INPUT)?;
        let mut stream = Streaming::open(&url, Some(protocol))?;
        stream.send_message("0eW91Cg==".into())?;
        // "got you\n" on the channel called 1.
        let text = stream.read_until(b'1', |bytes| bytes == b"Z290IHlvdQo=")?;
        assert_eq!(text, b"Z290IHlvdQo=");
        stream.finish()?;
    }
    Ok(())
}

#[test]
fn a_url_is_good_once_and_nothing_else_answers() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "once").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let url = exec_url(&pod, &container, "echo hi", OUTPUT)?;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let host = address(&url)?;
    let get = |path: &str| raw_request(&host, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let path = url.strip_prefix(&format!("http://{host}")).unwrap();
    let wrong = path.replace(&path[path.len() - 4..], "0000");
    for nothing in ["/", "/exec", "/exec/", "/healthz", "/exec/../exec/x", &wrong] {
        assert!(get(nothing)?.starts_with("HTTP/1.1 404 "), "{nothing}");
    }
    assert!(raw_request(&host, &format!("DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n"))?.contains(" 404 "));
    assert_eq!(Streaming::open(&url, Some(V5))?.finish()?.stdout, "hi\n");
    let again = Streaming::open(&url, Some(V5)).unwrap_err();
    assert!(again.to_string().starts_with("404"), "{again:?}");
    // A request that is not upgraded uses its URL up as well.
    let url = exec_url(&pod, &container, "echo hi", OUTPUT)?;
    let path = url.strip_prefix(&format!("http://{host}")).unwrap();
    assert!(get(path)?.starts_with("HTTP/1.1 400 "));
    assert!(get(path)?.starts_with("HTTP/1.1 404 "));
    let url = exec_url(&pod, &container, "echo hi", OUTPUT)?;
    let unknown = Streaming::open(&url, Some("chat")).unwrap_err().to_string();
    assert!(unknown.starts_with("400") && unknown.contains("v4.channel.k8s.io"), "{unknown}");
    Ok(())
}

#[test]
fn what_cannot_be_streamed_is_an_error_of_the_call() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "refused").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let client = &pod.client;
    let code = |request: v1::ExecRequest| client.exec(request).unwrap_err().code();
    let good = request(&container.id, &["true"], OUTPUT);
    assert_eq!(code(v1::ExecRequest { container_id: "0123456789".into(), ..good.clone() }), Code::NotFound);
    assert_eq!(code(v1::ExecRequest { cmd: Vec::new(), ..good.clone() }), Code::InvalidArgument);
    assert_eq!(code(v1::ExecRequest { tty: true, ..good.clone() }), Code::InvalidArgument);
    let silent = v1::ExecRequest { stdout: false, stderr: false, ..good.clone() };
    assert_eq!(code(silent), Code::InvalidArgument);
    let created = pod.command(&["true"]).create()?;
    assert_eq!(code(request(&created.id, &["true"], OUTPUT)), Code::FailedPrecondition);
    // Between the call and its request the container may end.
    let url = client.exec(good.clone())?.url;
    container.stop(0)?;
    let ended = Streaming::open(&url, Some(V5))?.finish()?;
    assert!(ended.status.contains("is not running"), "{ended:?}");
    assert_eq!(code(good), Code::FailedPrecondition);
    Ok(())
}

#[test]
fn urls_that_nobody_uses_are_bounded() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "bounded").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let good = request(&container.id, &["true"], OUTPUT);
    let mut last = String::new();
    let start = Instant::now();
    for _ in 0..1000 {
        last = pod.client.exec(good.clone())?.url;
    }
    let one_more = pod.client.exec(good.clone());
    // A URL is good for a minute: on a slow machine the first may be no more by then.
    if one_more.is_ok() && start.elapsed().as_secs() >= 60 {
        skip("streaming::urls_that_nobody_uses_are_bounded", "a thousand calls took more than a minute here");
        return Ok(());
    }
    assert_eq!(one_more.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(Streaming::open(&last, Some(V5))?.finish()?.code()?, 0);
    pod.client.exec(good)?;
    Ok(())
}

#[test]
fn connections_that_say_nothing_are_closed_and_keep_nobody_out() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "idle").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let url = exec_url(&pod, &container, "echo served", OUTPUT)?;
    let host = address(&url)?;
    let idle: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(&host)).collect::<Result<_, _>>()?;
    assert_eq!(Streaming::open(&url, Some(V5))?.finish()?.stdout, "served\n");
    // One that has begun its headers is no better.
    assert_eq!(raw_request(&host, "GET /exec/x HTTP/1.1\r\nHost: ")?, "");
    let long = format!("GET /exec/x HTTP/1.1\r\nHost: x\r\nLong: {}\r\n\r\n", "x".repeat(100_000));
    assert!(!raw_request(&host, &long)?.contains(" 101 "));
    drop(idle);
    Ok(())
}

#[test]
fn nothing_grows_over_many_sessions() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "grow").run(&node)?;
    let listen = |config: &mut v1::ContainerConfig| config.stdin = true;
    let container = pod.sh("while read line; do echo $line; done").with(listen).start()?;
    let terminal = std::cell::Cell::new(false);
    let session = || -> Outcome {
        let want = if terminal.replace(!terminal.get()) { TERMINAL } else { OUTPUT };
        let ended = exec(&pod, &container, "echo hi", want)?.finish()?;
        anyhow::ensure!(ended.stdout.trim_end() == "hi", "{ended:?}");
        Ok(())
    };
    let attach = || -> Outcome {
        let mut session = Streaming::open(&pod.client.attach(container.attach_request())?.url, Some(V5))?;
        session.ready()?;
        session.send(channel::STDIN, b"line\n")?;
        session.read_text(channel::STDOUT, "line\n")?;
        Ok(())
    };
    crate::spdy::leave_nothing(&node, session, attach)
}

/// A CA and two certificates of it, made by openssl: `ca.pem`, `server.pem`, `client.pem`, each with its `.key`.
fn certificates(directory: &Path) -> Outcome {
    let openssl = |arguments: &str| -> Outcome {
        let status = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory)
            .stderr(Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "openssl {arguments}: {status}");
        Ok(())
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::create_dir_all(directory)?;
    openssl(&format!("req -x509 {new} -subj /CN=ca -days 2 -keyout ca.key -out ca.pem"))?;
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n")?;
    for name in ["server", "client"] {
        openssl(&format!("req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        ))?;
    }
    Ok(())
}

#[test]
fn tls_is_spoken_where_it_is_configured_and_clients_need_their_certificate() -> Outcome {
    if Command::new("openssl").arg("version").output().is_err() {
        skip(
            "streaming::tls_is_spoken_where_it_is_configured",
            "there is no openssl to make certificates with",
        );
        return Ok(());
    }
    let directory = temporary::directory()?;
    certificates(directory.path())?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    let extra_config = format!(
        "[streaming]\ntls_cert = '{}'\ntls_key = '{}'\ntls_client_ca = '{}'\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem"),
    );
    let node = Node::with(&NodeOptions { extra_config, ..Default::default() })?;
    let pod = PodBuilder::new(&node, "tls").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let url = exec_url(&pod, &container, "true", OUTPUT)?;
    let host = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).expect("an https URL");
    let path = url.strip_prefix(&format!("https://{host}")).expect("a path");
    let ask = |more: &[&str]| -> anyhow::Result<String> {
        let mut client = Command::new("openssl")
            .args([
                "s_client",
                "-quiet",
                "-verify_return_error",
                "-CAfile",
                &file("ca.pem"),
                "-connect",
                host,
            ])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = client.stdin.take().expect("it is piped");
        // Who is refused may be gone before this is written.
        let _ = stdin.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        Ok(String::from_utf8_lossy(&client.wait_with_output()?.stdout).into_owned())
    };
    assert_eq!(ask(&[])?, "", "nobody is answered without a certificate");
    let known = ["-cert", &file("client.pem"), "-key", &file("client.key")];
    // The URL is not used up by who was refused; without an upgrade it is a bad request.
    assert!(ask(&known)?.starts_with("HTTP/1.1 400 "));
    let plain = raw_request(host, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))?;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    Ok(())
}

/// The certificate that a TLS server shows, as PEM.
fn shown(host: &str) -> anyhow::Result<String> {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", host])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----").with_context(|| text.clone())?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----").context("a whole certificate")?;
    Ok(body.split_whitespace().collect())
}

/// The same of a file.
fn written(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let body = text.replace("-----BEGIN CERTIFICATE-----", "").replace("-----END CERTIFICATE-----", "");
    Ok(body.split_whitespace().collect())
}

#[test]
fn a_certificate_that_is_rotated_is_shown_from_then_on() -> Outcome {
    let test = "streaming::a_certificate_that_is_rotated_is_shown_from_then_on";
    if Command::new("openssl").arg("version").output().is_err() {
        skip(test, "there is no openssl to make certificates with");
        return Ok(());
    }
    let directory = temporary::directory()?;
    let at = |name: &str| directory.path().join(name);
    for name in ["old", "new"] {
        certificates(&at(name))?;
    }
    // As kubelet has them: a symlink that is turned, and is never absent.
    let turn = |name: &str, to: &str| -> Outcome {
        std::os::unix::fs::symlink(at(to), at("next"))?;
        Ok(std::fs::rename(at("next"), at(name))?)
    };
    turn("cert", "old/server.pem")?;
    turn("key", "old/server.key")?;
    let extra_config = format!("[streaming]\ntls_cert = {:?}\ntls_key = {:?}\n", at("cert"), at("key"));
    let node = Node::with(&NodeOptions { extra_config, ..Default::default() })?;
    let pod = PodBuilder::new(&node, "rotated").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let url = exec_url(&pod, &container, "true", OUTPUT)?;
    let host = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).expect("an https URL");
    let (old, new) = (written(&at("old/server.pem"))?, written(&at("new/server.pem"))?);
    assert_eq!(shown(host)?, old);
    // Half way a certificate has no key: the old one stays.
    turn("cert", "new/server.pem")?;
    assert_eq!(shown(host)?, old);
    turn("key", "new/server.key")?;
    assert_eq!(shown(host)?, new);
    // A reload changes nothing about that, and nothing else than the files has to be told.
    node.signal(Signal::HUP)?;
    assert_eq!(shown(host)?, new);
    Ok(())
}

#[test]
fn a_session_on_which_nothing_moves_ends() -> Outcome {
    // That what moves keeps it is tested where time can be stopped.
    // Longer than it takes to open them all.
    let idle = seconds(5);
    let extra_config = format!("[streaming]\nidle_timeout_seconds = {}\n", idle.as_secs());
    let node = Node::with(&NodeOptions { extra_config, ..Default::default() })?;
    let pod = PodBuilder::new(&node, "idle").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let start = Instant::now();
    let mut websocket = exec(&pod, &container, "echo on; exec sleep 2000", OUTPUT)?;
    websocket.read_text(channel::STDOUT, "on\n")?;
    let request = request(&container.id, &["sleep", "3000"], INPUT);
    let mut spdy = Spdy::open(&pod.client.exec(request)?.url, &[spdy::V5])?;
    spdy.streams(true, true)?;
    let forwarded =
        pod.client.port_forward(v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![] })?;
    let forward = Spdy::open(&forwarded.url, &["portforward.k8s.io"])?;
    assert_eq!(spdy.finish()?.goaway, Some(0));
    assert!(start.elapsed() >= idle);
    // Closed without a word of how it ended, because it has not: what runs goes on.
    assert!(websocket.finish().map_or(true, |ended| ended.status.is_empty()));
    forward.finish()?;
    assert!(start.elapsed() < seconds(60));
    let running = container.exec("ps")?.stdout;
    assert!(running.contains("sleep 2000") && running.contains("sleep 3000"), "{running}");
    Ok(())
}

#[test]
fn a_daemon_without_its_certificate_does_not_start() -> Outcome {
    let directory = temporary::directory()?;
    let here = directory.path().display();
    let cgroup = format!("/podwright-{}", std::process::id());
    let config = directory.path().join("config.toml");
    let text = format!(
        "[server]\nsocket = '{here}/s'\n[paths]\nstate = '{here}/state'\nrun = '{here}/run'\n[rootfs]\nroots = []\n\
         [cgroup]\nruntime = '{cgroup}'\n[streaming]\ntls_cert = '{here}/none.pem'\ntls_key = '{here}/none.key'\n"
    );
    std::fs::write(&config, text)?;
    let output = Command::new(binaries::find("podwrightd")?)
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("streaming.tls_key") && said.contains("none.key"),
        "{said}"
    );
    let left = snapshot::cgroups(&cgroup);
    assert!(left.is_empty(), "a daemon that did not start left {left:?}");
    Ok(())
}
