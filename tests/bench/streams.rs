//! How fast a gigabyte comes out of a container: `exec cat` over WebSocket and over SPDY, beside containerd's and beside a bare pipe
//! that is passed on through a TCP connection of the loopback.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podwright_tests::spdy::{self, Frame, Spdy};
use podwright_tests::streaming::{V5, address, channel};
use podwright_tests::{Client, Node, v1};

use crate::containerd::{Containerd, IMAGE};
use crate::report::{self, Samples};

/// How much is sent.
const BYTES: u64 = 1 << 30;

/// The name of the file that is sent, which both runtimes mount.
const NAME: &str = "gigabyte";

/// One read of a client.
const READ_BYTES: usize = 256 * 1024;

/// A stream has at least so much of the bare pipe's rate.
const SHARE: f64 = 0.5;

/// A container that runs and mounts the file.
struct Subject {
    client: Client,
    pod: String,
    container: String,
}

impl Subject {
    fn start(client: Client, image: &str, unique: &str, directory: &Path) -> Result<Self> {
        let network = v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..Default::default() };
        let sandbox = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                uid: format!("{unique}-streams"),
                name: "streams".to_owned(),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(network.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
            command: ["/bin/sleep", "100000"].map(str::to_owned).to_vec(),
            mounts: vec![v1::Mount {
                container_path: "/from".to_owned(),
                host_path: directory.to_string_lossy().into_owned(),
                readonly: true,
                ..Default::default()
            }],
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(network.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pod = client.run_pod(&sandbox)?;
        let id = client.create(&pod, &container, &sandbox)?;
        client.start(&id)?;
        Ok(Self { client, pod, container: id })
    }

    /// The URL of `cat`.
    fn url(&self) -> Result<String> {
        let request = v1::ExecRequest {
            container_id: self.container.clone(),
            cmd: vec!["/bin/cat".to_owned(), format!("/from/{NAME}")],
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        Ok(self.client.exec(request)?.url)
    }

    fn end(&self) -> Result<()> {
        self.client.stop_pod(&self.pod)?;
        Ok(self.client.remove_pod(&self.pod)?)
    }
}

/// Receives standard output of a SPDY session; the bytes of it.
fn receive_spdy(url: &str) -> Result<u64> {
    let mut session = Spdy::open(url, &["v4.channel.k8s.io"])?;
    let streams: spdy::Streams = session.streams(false, true)?;
    let mut received = 0;
    while let Some(frame) = session.next_frame()? {
        match frame {
            Frame::Data(stream, bytes, _) if stream == streams.stdout => received += bytes.len() as u64,
            Frame::Data(stream, bytes, _) if stream == streams.error && !bytes.is_empty() => {
                let status = String::from_utf8_lossy(&bytes).into_owned();
                ensure!(status.contains("Success"), "{status}");
                break;
            }
            // This client shows windows to those that want them, as a browser's would.
            _ => {}
        }
    }
    Ok(received)
}

/// The same over WebSocket. Messages are read as they are: a library would measure itself.
fn receive_websocket(url: &str) -> Result<u64> {
    let address = address(url)?;
    let path = url.split_once(&address).context("a path")?.1;
    let mut socket = TcpStream::connect(&address)?;
    socket.write_all(
        format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {V5}\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let mut socket = BufReader::with_capacity(READ_BYTES, socket);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let (mut received, mut payload) = (0, Vec::new());
    loop {
        let mut head = [0; 2];
        socket.read_exact(&mut head)?;
        let length = match head[1] {
            short @ ..126 => u64::from(short),
            126 => {
                let mut length = [0; 2];
                socket.read_exact(&mut length)?;
                u16::from_be_bytes(length).into()
            }
            _ => {
                let mut length = [0; 8];
                socket.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
        };
        payload.resize(usize::try_from(length)?, 0);
        socket.read_exact(&mut payload)?;
        match (head[0] & 0x0f, payload.first()) {
            (8, _) => bail!("closed without a status"),
            (_, Some(&channel::STDOUT)) => received += length - 1,
            (_, Some(&channel::ERROR)) => {
                let status = String::from_utf8_lossy(&payload[1..]).into_owned();
                ensure!(status.contains("Success"), "{status}");
                return Ok(received);
            }
            _ => {}
        }
    }
}

/// The same program on the same file, its pipe passed on by one thread: the kernel splices it.
fn receive_bare(cat: &Path, file: &Path) -> Result<u64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    let (mut sender, _) = listener.accept()?;
    let mut child = Command::new(cat).args(["cat".as_ref(), file]).stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdout.take().context("no stdout")?;
    let passing = std::thread::spawn(move || io::copy(&mut pipe, &mut sender));
    let (mut received, mut buffer) = (0, vec![0; READ_BYTES]);
    loop {
        match socket.read(&mut buffer)? {
            0 => break,
            count => received += count as u64,
        }
    }
    child.wait()?;
    passing.join().map_err(|_| io::Error::other("the passing thread panicked"))??;
    Ok(received)
}

fn timed(receive: impl FnOnce() -> Result<u64>) -> Result<Duration> {
    let start = Instant::now();
    let received = receive()?;
    ensure!(received == BYTES, "{received} bytes came of {BYTES}");
    Ok(start.elapsed())
}

/// A gigabyte each, in turn, and a table of rates.
pub(crate) fn measure(node: &Node, containerd: &Containerd, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Holes: no disk is measured.
    let file = directory.path().join(NAME);
    File::create(&file)?.set_len(BYTES)?;
    let cat = node.roots().join("busybox/bin/busybox");
    let ours = Subject::start(node.client()?, "busybox", node.unique(), directory.path())?;
    let theirs = Subject::start(containerd.client()?, IMAGE, node.unique(), directory.path())?;
    let names = ["bare pipe through TCP", "podwright, WebSocket", "podwright, SPDY", "containerd+crun, SPDY"];
    let mut samples = names.map(|_| Samples::default());
    for round in 0..=rounds {
        let times = [
            timed(|| receive_bare(&cat, &file))?,
            timed(|| receive_websocket(&ours.url()?))?,
            timed(|| receive_spdy(&ours.url()?))?,
            timed(|| receive_spdy(&theirs.url()?)).context("containerd")?,
        ];
        // The first one fills the page cache.
        if round > 0 {
            samples.iter_mut().zip(times).for_each(|(samples, time)| samples.add(time));
        }
    }
    ours.end()?;
    theirs.end()?;
    println!("\nexec cat of 1 GiB, {rounds} rounds in turn");
    let bare = samples[0].median();
    let share = |samples: &Samples| bare / samples.median();
    let rows: Vec<Vec<String>> = names
        .iter()
        .zip(&samples)
        .map(|(name, samples)| {
            #[allow(clippy::cast_precision_loss, reason = "a rate")]
            let rate = BYTES as f64 / 1e6 / (samples.median() / 1000.0);
            vec![
                (*name).to_owned(),
                report::cell(samples),
                format!("{rate:.0}"),
                format!("{:.2}", share(samples)),
            ]
        })
        .collect();
    report::table(&["", "ms (median/p95)", "MB/s", "of the pipe"], &rows);
    let least = share(&samples[1]).min(share(&samples[2]));
    println!("{} half of the bare pipe's rate ({least:.2})", if least >= SHARE { "at least" } else { "NOT" });
    Ok(())
}
