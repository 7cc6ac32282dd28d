//! `podwright` with streams: exec, run and attach at a terminal, and port-forward.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use podwright_tests::{Container, Deadline, Node, Outcome, Pod, PodBuilder, binaries, process, watch};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

fn command(node: &Node, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binaries::find("podwright")?);
    command
        .env("PODWRIGHT_SOCKET", node.socket())
        .env("PODWRIGHT_LOG_DIR", node.path().join("log"))
        .args(arguments);
    Ok(command)
}

/// `podwright` at a terminal of its own.
struct Typed {
    master: OwnedFd,
    slave: File,
    child: Child,
}

impl Typed {
    fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?.into_string()?;
        let slave = File::options().read(true).write(true).open(name)?;
        let typed_size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, typed_size)?;
        let mut command = command(node, arguments)?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        let child = command.spawn()?;
        Ok(Self { master, slave, child })
    }

    fn read_until(&self, wanted: &str) -> Result<String> {
        let deadline = Deadline::in_seconds(30);
        let mut text = String::new();
        let mut file = File::from(self.master.try_clone()?);
        while !text.contains(wanted) {
            watch::readable(self.master.as_fd(), deadline).with_context(|| format!("so far: {text:?}"))?;
            let mut buffer = [0; 1024];
            let length = file.read(&mut buffer).with_context(|| format!("so far: {text:?}"))?;
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        Ok(text)
    }

    fn send(&self, text: &str) -> Outcome {
        File::from(self.master.try_clone()?).write_all(text.as_bytes())?;
        Ok(())
    }

    fn resize(&self, columns: u16, rows: u16) -> Outcome {
        tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        // It is not this program's controlling terminal, so the kernel tells nobody.
        process::signal(self.child.id(), Signal::WINCH)
    }

    fn is_raw(&self) -> Result<bool> {
        Ok(!tcgetattr(&self.slave)?.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// Its exit code, with the terminal as it was.
    fn end(mut self) -> Result<Option<i32>> {
        let code = self.child.wait()?.code();
        assert!(!self.is_raw()?, "the terminal was left raw");
        Ok(code)
    }
}

fn sleeping(pod: &Pod) -> Result<Container<'_>> {
    pod.command(&["sleep", "1000"]).start()
}

#[test]
fn exec_at_a_terminal() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "web").run(&node)?;
    sleeping(&pod)?;
    // The first size comes once the command runs.
    let script = "until [ \"$(stty size)\" = '33 77' ]; do sleep 0.05; done; echo small; \
                  until [ \"$(stty size)\" = '44 111' ]; do sleep 0.05; done; echo large; \
                  read line; echo got $line; exit 6";
    let typed = Typed::start(&node, &["exec", "-it", "web", "sh", "-c", script])?;
    typed.read_until("small")?;
    assert!(typed.is_raw()?);
    typed.resize(111, 44)?;
    typed.read_until("large")?;
    typed.send("typed\r")?;
    typed.read_until("got typed\r\n")?;
    assert_eq!(typed.end()?, Some(6));
    // Whatever ends it.
    let typed = Typed::start(&node, &["exec", "-it", "web", "sh", "-c", "echo up; sleep 1000"])?;
    typed.read_until("up")?;
    process::signal(typed.child.id(), Signal::TERM)?;
    assert_eq!(typed.end()?, Some(128 + 15));
    let typed = Typed::start(&node, &["exec", "-it", "web", "/no/such/program"])?;
    typed.read_until("/no/such/program")?;
    assert_eq!(typed.end()?, Some(125));
    Ok(())
}

#[test]
fn exec_with_piped_input() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "web").run(&node)?;
    sleeping(&pod)?;
    let mut child = command(&node, &["exec", "-i", "web", "sh", "-c", "wc -c; echo err >&2; exit 3"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(&vec![b'x'; 300_000])?;
    drop(stdin);
    let output = child.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "300000");
    assert_eq!((output.stderr.as_slice(), output.status.code()), (b"err\n".as_slice(), Some(3)));
    Ok(())
}

#[test]
fn run_at_a_terminal_can_be_left_and_taken_up_again() -> Outcome {
    let node = Node::start()?;
    let script = "echo up; while read line; do [ $line = end ] && exit 4; echo got $line; done";
    let typed = Typed::start(&node, &["run", "-it", "--name", "talk", "busybox", "sh", "-c", script])?;
    typed.read_until("up\r\n")?;
    typed.send("one\r")?;
    typed.read_until("got one\r\n")?;
    typed.send("\x10\x11")?;
    assert_eq!(typed.end()?, Some(0));
    let typed = Typed::start(&node, &["attach", "talk"])?;
    typed.send("two\r")?;
    typed.read_until("got two\r\n")?;
    typed.send("end\r")?;
    assert_eq!(typed.end()?, Some(4));
    Ok(())
}

#[test]
fn run_with_piped_input_shows_all_and_ends_with_its_code() -> Outcome {
    let node = Node::start()?;
    let arguments = ["run", "-i", "--rm", "busybox", "sh", "-c", "echo first; cat; echo err >&2; exit 5"];
    let mut child = command(&node, &arguments)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(b"piped\n")?;
    let output = child.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "first\npiped\n");
    assert_eq!((output.stderr.as_slice(), output.status.code()), (b"err\n".as_slice(), Some(5)));
    assert!(node.client()?.pods()?.is_empty(), "--rm");
    Ok(())
}

#[test]
fn port_forward_serves_local_connections() -> Outcome {
    let node = Node::start()?;
    let pod = PodBuilder::new(&node, "web").own_network().run(&node)?;
    let port = crate::port_forward::serve(&node, &pod, "127.0.0.1:0", crate::port_forward::echo)?;
    let mut child = command(&node, &["port-forward", "web", &format!("0:{port}")])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    let address = line.split(' ').next().context("an address")?;
    let connections: Vec<TcpStream> =
        (0..10).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    for (number, mut stream) in connections.into_iter().enumerate() {
        stream.set_read_timeout(Some(podwright_tests::seconds(30)))?;
        stream.write_all(format!("{number}").as_bytes())?;
        let mut answer = vec![0; number.to_string().len()];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, number.to_string().as_bytes());
    }
    process::signal(child.id(), Signal::TERM)?;
    assert_eq!(child.wait()?.code(), Some(0));
    Ok(())
}
