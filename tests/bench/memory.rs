//! What a pod costs in memory beyond its own processes, and what the daemon does.

use std::fs;

use anyhow::{Context as _, Result};
use podwright_tests::Node;

use crate::containerd::Containerd;
use crate::{cri, report};

/// One field of a `/proc` file of lines `Name:   N kB`, in KiB.
fn field(pid: u32, file: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{name} in {path}"))?;
    Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse()?)
}

fn pss_kib(pid: u32) -> Result<u64> {
    field(pid, "smaps_rollup", "Pss")
}

fn rss_kib(pid: u32) -> Result<u64> {
    field(pid, "status", "VmRSS")
}

/// Starts `pods` pods of one sleeping container each on both daemons and looks at the processes.
pub(crate) fn measure(node: &Node, containerd: &Containerd, pods: usize) -> Result<()> {
    let idle = [rss_kib(node.daemon_pid()?)?, rss_kib(containerd.pid())?];
    cri::keep(node, containerd, pods)?;
    // Monitors and pauses are ours; what a container executes is its own.
    let mut ours = node.pod_processes()?;
    ours.retain(|process| process.name.starts_with("podwright") || process.command.starts_with("podwright"));
    let ours_kib: u64 = ours.iter().map(|process| pss_kib(process.pid)).sum::<Result<u64>>()?;
    let shims = containerd.shims()?;
    let shims_kib: u64 = shims.iter().map(|process| pss_kib(process.pid)).sum::<Result<u64>>()?;
    let busy = [rss_kib(node.daemon_pid()?)?, rss_kib(containerd.pid())?];
    let count = u64::try_from(pods)?.max(1);
    println!("\nmemory with {pods} pods of one sleeping container each, KiB");
    let row = |name: &str, ours: u64, theirs: u64| {
        #[allow(clippy::cast_precision_loss, reason = "kibibytes")]
        let ratio = ours as f64 / theirs.max(1) as f64;
        vec![name.to_owned(), ours.to_string(), theirs.to_string(), format!("{ratio:.2}")]
    };
    report::table(
        &["", "podwright", "containerd+crun", "ratio"],
        &[
            row("PSS a pod (monitor and pause; shim without pause)", ours_kib / count, shims_kib / count),
            row("processes of the runtime", u64::try_from(ours.len())?, u64::try_from(shims.len())?),
            row("RSS of the daemon before", idle[0], idle[1]),
            row("RSS of the daemon now", busy[0], busy[1]),
        ],
    );
    cri::clear(node, containerd)
}
