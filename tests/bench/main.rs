//! `make bench`: podwright beside Debian's containerd, crun and runc, on this machine, at this moment.
//!
//! Rounds are interleaved, so that what else the machine does hits everybody alike. Ratios hold; absolute times do
//! not. Everything is private: directories, sockets, cgroups. Needs root, and the packages of `tests/deps.sh bench`.
//!
//! ```text
//! bench [--rounds N] [--pods N] [cri] [throughput] [memory] [oci] [network] [streams]     all by default
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a report is what this program is for")]

mod containerd;
mod cri;
mod image;
mod memory;
mod network;
mod oci;
mod report;
mod streams;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use podwright_tests::Node;

use containerd::Containerd;

/// What can be measured.
const PARTS: [&str; 6] = ["cri", "throughput", "memory", "oci", "network", "streams"];

/// What was asked for on the command line.
struct Arguments {
    rounds: usize,
    pods: usize,
    parts: Vec<String>,
}

impl Arguments {
    fn parse() -> Result<Self> {
        let mut arguments = Self { rounds: 25, pods: 30, parts: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number =
                || words.next().and_then(|text| text.parse().ok()).context("a number is missing");
            match word.as_str() {
                "--rounds" => arguments.rounds = number()?,
                "--pods" => arguments.pods = number()?,
                part if PARTS.contains(&part) => arguments.parts.push(word),
                other => bail!("unknown argument {other:?}"),
            }
        }
        if arguments.parts.is_empty() {
            arguments.parts = PARTS.map(str::to_owned).to_vec();
        }
        Ok(arguments)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }
}

/// Where a hybrid host mounts its empty cgroup v2 hierarchy.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// On a hybrid host, runs this program again in a mount namespace without the cgroup v2 hierarchy: Debian's crun
/// refuses to work beside it. Everybody is measured there, and containerd's mounts go with it.
fn leave_hybrid_host() -> Result<()> {
    if !Path::new(UNIFIED).join("cgroup.procs").exists() {
        return Ok(());
    }
    let script = format!("umount {UNIFIED} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1));
    Err(command.exec()).context("run unshare")
}

fn main() -> Result<()> {
    leave_hybrid_host()?;
    let arguments = Arguments::parse()?;
    println!("{}", report::machine());
    if arguments.wants("oci") {
        oci::measure(arguments.rounds * 2)?;
    }
    if arguments.wants("network") {
        network::measure(arguments.rounds * 2)?;
    }
    if !["cri", "throughput", "memory", "streams"].iter().any(|part| arguments.wants(part)) {
        return Ok(());
    }
    let node = Node::start().context("start podwrightd")?;
    let containerd = Containerd::start(&node.roots().join("busybox")).context("start containerd")?;
    println!("\npodwrightd against {} with {}", containerd.version, containerd.runtime);
    if arguments.wants("cri") {
        cri::measure(&node, &containerd, arguments.rounds)?;
    }
    if arguments.wants("throughput") {
        cri::throughput(&node, &containerd)?;
    }
    if arguments.wants("memory") {
        memory::measure(&node, &containerd, arguments.pods)?;
    }
    if arguments.wants("streams") {
        streams::measure(&node, &containerd, 5)?;
    }
    Ok(())
}
