//! Processes seen from outside: waiting for one to end, and finding those that belong to a node.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::fd::AsFd as _;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use crate::{Deadline, watch};

/// A process id of the form the kernel's calls want.
pub fn pid(number: u32) -> Result<Pid> {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{number} is not a process id"))
}

/// Sends `signal` to exactly this process.
pub fn signal(number: u32, signal: Signal) -> Result<()> {
    kill_process(pid(number)?, signal).with_context(|| format!("signal process {number}"))
}

/// Blocks until the process is gone (also when it is not our child).
pub fn wait_gone(number: u32, deadline: Deadline) -> Result<()> {
    match pidfd_open(pid(number)?, PidfdFlags::empty()) {
        Ok(fd) => watch::readable(fd.as_fd(), deadline).with_context(|| format!("process {number} lives on")),
        Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("pidfd_open"),
    }
}

/// Blocks until nobody whose cgroup or arguments contain `unique` is left but the caller.
pub fn wait_all_gone(unique: &str, deadline: Deadline) -> Result<()> {
    // Who ends may have started another before.
    while let Some(process) = belonging_to(unique)?.first() {
        wait_gone(process.pid, deadline).with_context(|| format!("{process:?}"))?;
    }
    Ok(())
}

/// Shuts down every connection of packets (unix(7), `SOCK_SEQPACKET`) that the process has, from under it.
pub fn break_connections(number: u32) -> Result<()> {
    let sockets = fs::read_to_string("/proc/net/unix")?;
    // Num RefCount Protocol Flags Type St Inode Path; type 5 is SOCK_SEQPACKET, state 3 is connected.
    let connected: Vec<String> = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 6 && fields[4] == "0005" && fields[5] == "03")
        .map(|fields| format!("socket:[{}]", fields[6]))
        .collect();
    let process = pidfd_open(pid(number)?, PidfdFlags::empty())?;
    let mut broken = 0;
    for entry in fs::read_dir(format!("/proc/{number}/fd"))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        if connected.iter().any(|socket| target.as_os_str() == socket.as_str())
            && let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            let socket = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?;
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both)?;
            broken += 1;
        }
    }
    ensure!(broken > 0, "process {number} has no connection");
    Ok(())
}

/// One process of `/proc`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its name, as in `comm`.
    pub name: String,
    /// Its arguments, joined by spaces.
    pub command: String,
    /// Its line or lines of `/proc/PID/cgroup`.
    pub cgroups: String,
}

/// All processes but kernel threads and zombies.
pub fn all() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|text| text.parse().ok())
            && let Some(process) = read(number)
        {
            found.push(process);
        }
    }
    found.sort();
    Ok(found)
}

/// The processes whose cgroup or arguments contain `unique`, the caller excepted.
pub fn belonging_to(unique: &str) -> Result<Vec<Process>> {
    let own = std::process::id();
    Ok(all()?
        .into_iter()
        .filter(|process| process.pid != own)
        .filter(|process| process.cgroups.contains(unique) || process.command.contains(unique))
        .collect())
}

/// Reads one process; None when it is gone, a zombie or a kernel thread.
#[must_use]
pub fn read(number: u32) -> Option<Process> {
    let directory = Path::new("/proc").join(number.to_string());
    let command = fs::read(directory.join("cmdline")).ok().filter(|bytes| !bytes.is_empty())?;
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if fields.next() == Some("Z") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let cgroups = fs::read_to_string(directory.join("cgroup")).ok()?;
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    Some(Process { pid: number, parent, name: name.to_owned(), command, cgroups })
}

/// The descendants of a process, nearest first.
pub fn descendants(ancestor: u32) -> Result<Vec<Process>> {
    let everyone = all()?;
    let mut family = vec![ancestor];
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        next += 1;
        for child in everyone.iter().filter(|process| process.parent == parent) {
            family.push(child.pid);
            found.push(child.clone());
        }
    }
    Ok(found)
}
