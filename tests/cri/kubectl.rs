//! Real kubectl, of two ages, through a small API server: exec, attach, cp and port-forward.
//!
//! Debian bookworm's (1.20) speaks SPDY only. Trixie's (1.32) speaks WebSocket: v5.channel.k8s.io for exec and attach, SPDY in a
//! WebSocket for port-forward.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use podwright_tests::apiserver::{ApiServer, TTY, kubectl};
use podwright_tests::{Deadline, Node, Outcome, Pod, PodBuilder, process, skip, v1, watch};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use sha2::{Digest as _, Sha256};

const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// A file that is copied, in bytes.
const COPIED_BYTES: u64 = 200 << 20;

/// The name of the pod of each test.
const POD: &str = "streams";

/// A node with an API server, and kubectl.
struct Cluster {
    // Dropped before the node, which checks that nothing holds on to it.
    api: ApiServer,
    kubectl: PathBuf,
    node: Node,
}

impl Cluster {
    /// Runs the test with each kubectl there is.
    fn each(test: &str, check: impl Fn(&Self) -> Outcome) -> Outcome {
        for suite in SUITES {
            let Some(kubectl) = kubectl(suite) else {
                skip::skip(test, &format!("no kubectl of {suite} (tests/kubectl.sh fetches it)"));
                continue;
            };
            let node = Node::start()?;
            let cluster = Self { api: ApiServer::start(&node)?, kubectl, node };
            check(&cluster).with_context(|| format!("with {suite}'s kubectl"))?;
        }
        Ok(())
    }

    fn pod(&self) -> Result<Pod> {
        PodBuilder::new(&self.node, POD).run(&self.node)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .env("HOME", self.node.path())
            .env("KUBECONFIG", "/dev/null")
            .args(["--server", &self.api.url(), "--namespace", "tests"])
            .args(arguments);
        command
    }

    /// Runs kubectl with this input to its end.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let input = input.to_owned();
        // It may end before it has read everything.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output()?;
        feeding.join().ok().context("the feeding thread")?;
        Ok(output)
    }

    /// The same, and it succeeds.
    fn ok(&self, arguments: &[&str], input: &[u8]) -> Result<String> {
        let output = self.run(arguments, input)?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts kubectl on a terminal of 77 columns and 33 lines.
    fn on_terminal(&self, arguments: &[&str]) -> Result<(Killed, OwnedFd)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(&master, Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 })?;
        let slave =
            File::options().read(true).write(true).open(ptsname(&master, Vec::new())?.into_string()?)?;
        let mut command = self.command(arguments);
        command.env("TERM", "xterm").stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        Ok((Killed(command.spawn()?), master))
    }
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Killed {
    /// Waits for its end.
    fn code(&mut self) -> Result<Option<i32>> {
        let ended = process::wait_gone(self.0.id(), Deadline::in_seconds(60));
        if ended.is_err() {
            self.0.kill()?;
        }
        let status = self.0.wait()?;
        ended?;
        Ok(status.code())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads until the text has come.
fn read_until(terminal: &OwnedFd, wanted: &str) -> Result<String> {
    let deadline = Deadline::in_seconds(60);
    let (mut file, mut text, mut buffer) = (File::from(terminal.try_clone()?), String::new(), [0; 4096]);
    while !text.contains(wanted) {
        watch::readable(terminal.as_fd(), deadline).with_context(|| format!("no {wanted:?} in {text:?}"))?;
        let count = file.read(&mut buffer).with_context(|| format!("no {wanted:?} in {text:?}"))?;
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    Ok(text)
}

#[test]
fn kubectl_exec_runs_commands() -> Outcome {
    Cluster::each("kubectl_exec_runs_commands", |cluster| {
        let pod = cluster.pod()?;
        let _container = pod.sh("exec sleep 1000").start()?;
        let output = cluster.run(&["exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"")?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with("err\n") && stderr.contains("exit code 7"), "{stderr}");
        assert_eq!(output.status.code(), Some(7));

        let killed = cluster.run(&["exec", POD, "--", "sh", "-c", "kill -KILL $$"], b"")?;
        assert_eq!(killed.status.code(), Some(137));

        let missing = cluster.run(&["exec", POD, "--", "/no/such"], b"")?;
        assert!(!missing.status.success());
        assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such"), "{missing:?}");

        // The end of the input is the end of the command's; its output comes after it.
        let counted =
            cluster.ok(&["exec", "-i", POD, "--", "sh", "-c", "wc -c; echo after"], &vec![b'x'; 300_000])?;
        assert_eq!(counted, "300000\nafter\n");
        // A command that ends without reading all is not waited for.
        assert_eq!(cluster.ok(&["exec", "-i", POD, "--", "head", "-c", "3"], &vec![b'x'; 3_000_000])?, "xxx");
        Ok(())
    })
}

#[test]
fn kubectl_exec_has_a_terminal() -> Outcome {
    Cluster::each("kubectl_exec_has_a_terminal", |cluster| {
        let pod = cluster.pod()?;
        let _container = pod.sh("exec sleep 1000").start()?;
        let (mut child, terminal) = cluster.on_terminal(&["exec", "-it", POD, "--", "sh"])?;
        read_until(&terminal, "# ")?;
        let mut keyboard = File::from(terminal.try_clone()?);
        keyboard.write_all(b"stty size; tty; echo o''k\n")?;
        let text = read_until(&terminal, "ok\r\n")?;
        assert!(text.contains("33 77") && text.contains("/dev/pts/"), "{text}");
        tcsetwinsize(&terminal, Winsize { ws_row: 44, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 })?;
        process::signal(child.0.id(), rustix::process::Signal::WINCH)?;
        // The size arrives when it arrives.
        keyboard.write_all(b"until stty size | grep '44 99'; do sleep 0.05; done; echo s''een\n")?;
        read_until(&terminal, "seen\r\n")?;
        keyboard.write_all(b"exit 9\n")?;
        assert_eq!(child.code()?, Some(9));
        Ok(())
    })
}

#[test]
fn kubectl_cp_copies_200_mb_both_ways() -> Outcome {
    Cluster::each("kubectl_cp_copies_200_mb_both_ways", |cluster| {
        let pod = cluster.pod()?;
        let _container = pod.sh("exec sleep 1000").start()?;
        let (there, back) = (cluster.node.path().join("there"), cluster.node.path().join("back"));
        let wanted = pattern(&there)?;
        let there = there.to_string_lossy().into_owned();
        cluster.ok(&["cp", &there, &format!("{POD}:/tmp/copied")], b"")?;
        let sum = cluster.ok(&["exec", POD, "--", "sha256sum", "/tmp/copied"], b"")?;
        assert_eq!(sum.split(' ').next(), Some(wanted.as_str()));
        cluster.ok(&["cp", &format!("{POD}:/tmp/copied"), &back.to_string_lossy()], b"")?;
        let mut hash = Sha256::new();
        std::io::copy(&mut File::open(back)?, &mut hash)?;
        assert_eq!(hex(&hash.finalize()), wanted);
        Ok(())
    })
}

/// Writes a file in which no two blocks are alike, and returns its digest.
fn pattern(path: &std::path::Path) -> Result<String> {
    let (mut file, mut hash) = (File::create(path)?, Sha256::new());
    for block in 0..COPIED_BYTES >> 20 {
        let words = (0..1_u64 << 17)
            .flat_map(|word| (block << 17 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let bytes: Vec<u8> = words.collect();
        hash.update(&bytes);
        file.write_all(&bytes)?;
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn kubectl_attach_sees_output_and_gives_input() -> Outcome {
    Cluster::each("kubectl_attach_sees_output_and_gives_input", |cluster| {
        let pod = cluster.pod()?;
        let script = "while read line; do echo got $line; [ $line != last ] || exit 0; done";
        let stdin = |config: &mut v1::ContainerConfig| {
            config.stdin = true;
            config.tty = true;
            config.annotations.insert(TTY.to_owned(), "true".to_owned());
        };
        let _container = pod.sh(script).with(stdin).start()?;
        let (mut child, terminal) = cluster.on_terminal(&["attach", "-it", POD])?;
        // kubectl says this before it is attached; what is typed is kept by its terminal.
        read_until(&terminal, "If you don't see a command prompt")?;
        let mut keyboard = File::from(terminal.try_clone()?);
        keyboard.write_all(b"one\n")?;
        read_until(&terminal, "got one\r\n")?;
        keyboard.write_all(b"last\n")?;
        read_until(&terminal, "got last\r\n")?;
        assert_eq!(child.code()?, Some(0));
        Ok(())
    })
}

#[test]
fn kubectl_port_forward_carries_100_requests_at_once() -> Outcome {
    Cluster::each("kubectl_port_forward_carries_100_requests_at_once", |cluster| {
        let pod = PodBuilder::new(&cluster.node, POD).own_network().run(&cluster.node)?;
        let page = vec![b'p'; 200_000];
        let site = cluster.node.path().join("site");
        std::fs::create_dir(&site)?;
        std::fs::write(site.join("page"), &page)?;
        let script = "ip link set lo up; httpd -p 127.0.0.1:8080 -h /site; echo up; exec sleep 1000";
        let container = pod.sh(script).mount(&site, "/site", true).start()?;
        container.wait_for_log_line("up")?;
        let mut child = Killed(
            cluster
                .command(&["port-forward", POD, ":8080", ":9"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?,
        );
        let mut lines = BufReader::new(child.0.stdout.take().context("stdout")?).lines();
        let mut local = |port: &str| -> Result<String> {
            for line in lines.by_ref() {
                let line = line?;
                if let Some(address) = line.strip_prefix("Forwarding from 127.0.0.1:")
                    && let Some(local) = address.strip_suffix(&format!(" -> {port}"))
                {
                    return Ok(format!("127.0.0.1:{local}"));
                }
            }
            anyhow::bail!("port {port} is not forwarded")
        };
        let (http, closed) = (local("8080")?, local("9")?);
        let ask = || -> Result<Vec<u8>> {
            let mut stream = TcpStream::connect(&http)?;
            stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..100).map(|_| scope.spawn(ask)).collect();
            for asked in asking {
                let answer = asked.join().ok().context("a thread panicked")??;
                ensure!(
                    answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&page),
                    "{} bytes",
                    answer.len()
                );
            }
            Ok(())
        })?;
        // Nobody listens there. It is the last thing asked: newer kubectl gives up the whole session for it.
        let mut refused = Vec::new();
        let _ = TcpStream::connect(&closed)?.read_to_end(&mut refused);
        assert!(refused.is_empty());
        let mut told = String::new();
        for line in BufReader::new(child.0.stderr.take().context("stderr")?).lines() {
            told = line?;
            if told.contains("Connection refused") {
                break;
            }
        }
        assert!(told.contains("port 9") && told.contains("Connection refused"), "{told}");
        Ok(())
    })
}
