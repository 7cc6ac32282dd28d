//! SPDY clients that do everything wrong, and many of them: the daemon's memory stays bounded, and others are not harmed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::Context as _;
use podwright_tests::deadline::rounds;
use podwright_tests::spdy::{Spdy, V5, kind};
use podwright_tests::{Container, Deadline, HostSnapshot, Node, Outcome, Pod, PodBuilder, seconds, v1};

/// How much the daemon may grow by what one test does to it, in KiB.
const GROWTH_KIB: u64 = 48 * 1024;

fn url(pod: &Pod, container: &Container<'_>, script: &str) -> anyhow::Result<String> {
    let request = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    Ok(pod.client.exec(request)?.url)
}

fn open(pod: &Pod, container: &Container<'_>, script: &str) -> anyhow::Result<Spdy> {
    Spdy::open(&url(pod, container, script)?, &[V5])
}

/// The daemon's memory, in KiB.
fn rss(node: &Node) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The daemon's threads.
fn threads(node: &Node) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/task", node.daemon_pid()?))?.count())
}

/// Runs `abuse` beside a session that goes on, and checks that it does and that the daemon did not grow.
fn beside_a_session(abuse: impl FnOnce(&Node, &Pod, &Container<'_>) -> Outcome) -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "spdy").run(&node)?;
    let container = pod.command(&["sleep", "1000"]).start()?;
    let mut other = open(&pod, &container, "cat; exit 3")?;
    let streams = other.streams(true, true)?;
    let stdin = streams.stdin.context("stdin")?;
    other.data(stdin, b"before", false)?;
    assert_eq!(other.read(streams.stdout, 6)?, b"before");
    let before = rss(&node)?;

    abuse(&node, &pod, &container)?;

    let after = rss(&node)?;
    assert!(after < before + GROWTH_KIB, "the daemon grew from {before} to {after} KiB");
    other.data(stdin, b"after", true)?;
    let ended = other.finish()?;
    assert_eq!(ended.text(streams.stdout), "after");
    assert!(ended.text(streams.error).contains(r#""message":"3""#), "{ended:?}");
    assert_eq!(ended.goaway, Some(0));
    Ok(())
}

#[test]
fn an_unknown_protocol_is_refused_with_those_that_are_known() -> Outcome {
    beside_a_session(|_, pod, container| {
        let refused =
            Spdy::open(&url(pod, container, "true")?, &["v9.channel.k8s.io"]).unwrap_err().to_string();
        assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains(V5), "{refused}");
        let once = url(pod, container, "true")?;
        drop(Spdy::open(&once, &[V5])?);
        let again = Spdy::open(&once, &[V5]).unwrap_err().to_string();
        assert!(again.starts_with("HTTP/1.1 404 "), "{again}");
        Ok(())
    })
}

#[test]
fn frames_that_are_none_end_their_connection_with_goaway() -> Outcome {
    beside_a_session(|_, pod, container| {
        type Abuse = fn(&mut Spdy) -> Outcome;
        let abuses: [(&str, Abuse); 8] = [
            ("a control frame of 16 MiB", |spdy| spdy.raw(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])),
            ("another version", |spdy| spdy.raw(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1])),
            ("a short payload", |spdy| spdy.control(kind::RST_STREAM, 0, &[0; 4])),
            ("data for stream 0", |spdy| spdy.data(0, b"x", false)),
            ("a damaged name/value block", |spdy| spdy.control(kind::SYN_STREAM, 0, &[0xff; 40])),
            ("headers beyond the limit", |spdy| {
                let text: String =
                    (0..20_000_u32).map(|number| char::from(b'a' + (number * 7 % 26) as u8)).collect();
                spdy.syn(&[("streamtype", &text)]).map(drop)
            }),
            ("a zlib bomb", |spdy| {
                let mut payload = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0].to_vec();
                payload.extend(spdy.compress(&vec![0; 8 << 20])?);
                spdy.control(kind::SYN_STREAM, 0, &payload)
            }),
            ("a window that is too large", |spdy| spdy.pair(kind::WINDOW_UPDATE, 0, 0x7fff_ffff)),
        ];
        for (what, abuse) in abuses {
            let mut spdy = open(pod, container, "true")?;
            abuse(&mut spdy).context(what)?;
            assert_eq!(spdy.finish().context(what)?.goaway, Some(1), "{what}");
        }
        Ok(())
    })
}

#[test]
fn streams_are_reset_in_every_state() -> Outcome {
    beside_a_session(|_, pod, container| {
        for opened in 0..=4 {
            // Before its answer, after it, with data in it, finished: at each stage of the session's beginning.
            for stage in 0..4 {
                let mut spdy = open(pod, container, "cat")?;
                let mut last = None;
                for kind in ["error", "stdin", "stdout", "stderr"].iter().take(opened) {
                    last = Some(spdy.stream(&[("streamtype", kind)])?);
                }
                let stream = match (stage, last) {
                    (0, _) => spdy.syn(&[("streamtype", "stdin")])?,
                    (_, None) => continue,
                    (_, Some(stream)) => stream,
                };
                if stage > 1 {
                    spdy.data(stream, b"data", stage == 3)?;
                }
                spdy.reset(stream)?;
                spdy.reset(stream)?;
                spdy.data(stream, b"late", false)?;
                drop(spdy);
            }
        }
        Ok(())
    })
}

#[test]
fn a_client_that_never_reads_holds_up_itself_only() -> Outcome {
    beside_a_session(|node, pod, container| {
        let before = rss(node)?;
        let mut deaf = Vec::new();
        for _ in 0..20 {
            let mut spdy = open(pod, container, "yes")?;
            spdy.streams(false, true)?;
            spdy.socket().set_nonblocking(true)?;
            // It asks and asks, until nothing is taken any more.
            let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1].repeat(1000);
            let mut asked = 0;
            while let Ok(count) = spdy.socket().write(&ping) {
                asked += count;
                anyhow::ensure!(asked < 64 << 20, "a client that does not listen can ask without end");
            }
            deaf.push(spdy);
        }
        // What they are sent is bounded too. Another client's whole session passes meanwhile.
        let mut reader = open(pod, container, "head -c 50000000 /dev/zero")?;
        let streams = reader.streams(true, true)?;
        assert_eq!(reader.finish()?.data[&streams.stdout].len(), 50_000_000);
        let after = rss(node)?;
        assert!(after < before + GROWTH_KIB, "the daemon grew from {before} to {after} KiB");
        Ok(())
    })
}

#[test]
fn input_that_nobody_reads_is_not_taken_without_end() -> Outcome {
    beside_a_session(|_, pod, container| {
        let mut spdy = open(pod, container, "exec sleep 1000")?;
        let stdin = spdy.streams(true, true)?.stdin.context("stdin")?;
        spdy.socket().set_write_timeout(Some(seconds(2)))?;
        let taken = (0..2000).take_while(|_| spdy.data(stdin, &vec![0; 1 << 16], false).is_ok()).count();
        assert!(taken < 2000, "{taken} times 64 KiB were taken");
        Ok(())
    })
}

#[test]
fn a_thousand_idle_connections_cost_little() -> Outcome {
    beside_a_session(|node, pod, container| {
        let count = rounds(1000, 100);
        let authority = url(pod, container, "true")?;
        let authority =
            authority.trim_start_matches("http://").split('/').next().context("authority")?.to_owned();
        let before = rss(node)?;
        // Half of them stop in the middle of the request, half have an upgraded connection and say nothing more.
        let mut idle = Vec::new();
        for number in 0..count {
            if number % 2 == 0 {
                let mut socket = TcpStream::connect(&authority)?;
                socket.write_all(b"POST /exec/")?;
                idle.push(socket);
            } else {
                idle.push(open(pod, container, "true")?.socket().try_clone()?);
            }
        }
        let during = rss(node)?;
        assert!(during < before + GROWTH_KIB, "the daemon grew from {before} to {during} KiB");
        assert_eq!(container.exec("echo alive")?.stdout, "alive\n");
        let mut session = open(pod, container, "echo alive")?;
        let streams = session.streams(true, true)?;
        assert_eq!(session.finish()?.text(streams.stdout), "alive\n");
        // Those that stopped in their request are thrown out.
        let mut half = idle.swap_remove(0);
        half.set_read_timeout(Some(seconds(60)))?;
        let _ = half.read_to_end(&mut Vec::new())?;
        Ok(())
    })
}

/// Twenty times as many by hand: `PODWRIGHT_TEST_STREAMS=full`.
fn sessions(many: usize) -> usize {
    let full = std::env::var_os("PODWRIGHT_TEST_STREAMS").is_some_and(|value| value == "full");
    if full { many } else { rounds(many / 20, many / 500) }
}

/// Thousands of sessions, after which the daemon has the memory, the threads and the descriptors that it had.
pub(super) fn leave_nothing(
    node: &Node,
    exec: impl Fn() -> Outcome,
    attach: impl Fn() -> Outcome,
) -> Outcome {
    // What is made once and kept is there before.
    for _ in 0..20 {
        exec()?;
        attach()?;
    }
    let state = || -> anyhow::Result<_> { Ok((rss(node)?, threads(node)?, HostSnapshot::take(node)?)) };
    let (memory, threads, snapshot) = state()?;
    for _ in 0..sessions(10_000) {
        exec()?;
    }
    for _ in 0..sessions(1000) {
        attach()?;
    }
    // The last sessions end, and threads that were needed at once go, a moment after their clients: it is looked again and again, with
    // a call of the daemon's each time.
    let deadline = Deadline::in_seconds(60);
    loop {
        let (memory_after, threads_after, snapshot_after) = state()?;
        assert!(memory_after < memory + 4096, "the daemon grew from {memory} to {memory_after} KiB");
        let same = snapshot.assert_same(&snapshot_after);
        if same.is_ok() && threads_after <= threads + 2 {
            return Ok(());
        }
        if deadline.left().is_none() {
            same?;
            anyhow::bail!("{threads} threads became {threads_after}");
        }
        node.client()?.version(v1::VersionRequest::default())?;
    }
}

#[test]
fn thousands_of_sessions_leave_nothing() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "many").run(&node)?;
    let listen = |config: &mut v1::ContainerConfig| config.stdin = true;
    let container = pod.sh("while read line; do echo $line; done").with(listen).start()?;
    let exec = || -> Outcome {
        let mut spdy = open(&pod, &container, "echo out")?;
        let streams = spdy.streams(true, true)?;
        let ended = spdy.finish()?;
        anyhow::ensure!(ended.text(streams.stdout) == "out\n", "{ended:?}");
        Ok(())
    };
    let attach = || -> Outcome {
        let mut spdy = Spdy::open(&pod.client.attach(container.attach_request())?.url, &[V5])?;
        let streams = spdy.streams(true, true)?;
        spdy.data(streams.stdin.context("stdin")?, b"line\n", false)?;
        anyhow::ensure!(spdy.read(streams.stdout, 5)? == b"line\n");
        Ok(())
    };
    leave_nothing(&node, exec, attach)
}
