//! What is on the host: taken before and after, two snapshots show what a node left behind.
//!
//! Restricted to what bears the node's unique name or lies in its directory, because other tests run
//! at the same time; network links are all those of the node's network namespace, where it has one of its own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::Node;

/// Files that the daemon writes beside the requests, whenever it gets to it, and which are no pod's: what it remembers of
/// images (their sizes), its AppArmor profile, compiled and loaded from its start on, and what its first collection of the networks'
/// garbage found. The last is written under another name first, as every record is.
const OF_THE_DAEMON: &[&str] =
    &["state/images/", "state/apparmor/", "run/apparmor-loaded", "run/network-collection.json"];

/// What a node has on the host at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    /// Mount points below the node's directory.
    pub mounts: BTreeSet<String>,
    /// Its cgroups, in every hierarchy.
    pub cgroups: BTreeSet<String>,
    /// The network namespaces its processes are in. The names in `/run/netns` are the host's, and nobody's here.
    pub network_namespaces: BTreeSet<String>,
    /// Network links where the daemon is; on the host only those with a name that the daemon gives.
    pub links: BTreeSet<String>,
    /// Its processes but the daemon, as `name: arguments`.
    pub processes: BTreeSet<String>,
    /// Its files below `state` and `run`.
    pub files: BTreeSet<String>,
    /// What the daemon's file descriptors refer to, with their numbers replaced, and how often.
    pub descriptors: Vec<(String, usize)>,
}

impl HostSnapshot {
    /// Looks at the host now.
    pub fn take(node: &Node) -> Result<Self> {
        let directory = node.path().to_string_lossy().into_owned();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = mountinfo
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|target| target.starts_with(&directory))
            .map(str::to_owned)
            .collect();
        let processes = node.pod_processes()?;
        let mut network_namespaces = BTreeSet::new();
        for process in &processes {
            if let Ok(target) = fs::read_link(format!("/proc/{}/ns/net", process.pid)) {
                network_namespaces.insert(target.to_string_lossy().into_owned());
            }
        }
        let mut files = BTreeSet::new();
        for part in ["state", "run"] {
            list_files(&node.path().join(part), node.path(), &mut files)?;
        }
        files.retain(|file| !OF_THE_DAEMON.iter().any(|own| file.starts_with(own)));
        Ok(Self {
            mounts,
            cgroups: cgroups(node.unique())
                .into_iter()
                .map(|path| path.to_string_lossy().into_owned())
                .collect(),
            network_namespaces,
            links: own_links(node)?,
            processes: processes
                .into_iter()
                .map(|process| format!("{}: {}", process.name, process.command))
                .collect(),
            files,
            descriptors: descriptors(node.daemon_pid()?)?,
        })
    }

    /// Fails, naming every difference, unless the host is as it was.
    pub fn assert_same(&self, now: &Self) -> Result<()> {
        let mut text = String::new();
        let sets = [
            ("mount", &self.mounts, &now.mounts),
            ("cgroup", &self.cgroups, &now.cgroups),
            ("network namespace", &self.network_namespaces, &now.network_namespaces),
            ("link", &self.links, &now.links),
            ("process", &self.processes, &now.processes),
            ("file", &self.files, &now.files),
        ];
        for (kind, before, after) in sets {
            for name in after.difference(before) {
                let _ = writeln!(text, "new {kind}: {name}");
            }
            for name in before.difference(after) {
                let _ = writeln!(text, "lost {kind}: {name}");
            }
        }
        for (target, count) in &now.descriptors {
            let before =
                self.descriptors.iter().find(|(name, _)| name == target).map_or(0, |(_, count)| *count);
            // A connection that was closed a moment ago may not have been noticed yet.
            if *count > before + 3 {
                let _ = writeln!(text, "descriptors of {target}: {before} before, {count} now");
            }
        }
        if text.is_empty() { Ok(()) } else { bail!("the host is not as it was:\n{text}") }
    }
}

/// The cgroup directories whose path contains `unique`, parents before children, of every hierarchy.
#[must_use]
pub fn cgroups(unique: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        walk(&hierarchy, &mut |path| {
            if path.to_string_lossy().contains(unique) {
                found.push(path.to_owned());
            }
        });
    }
    found
}

/// Where the cgroup hierarchies are mounted, of either version.
#[must_use]
pub fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(target))
        })
        .collect()
}

/// True where the only cgroup hierarchy is version 2.
#[must_use]
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            visit(&path);
            walk(&path, visit);
        }
    }
}

/// In a network namespace that others are in too, theirs come and go.
fn own_links(node: &Node) -> Result<BTreeSet<String>> {
    let mut links = links(node.daemon_pid()?)?;
    if node.namespace().is_err() {
        links.retain(|link| link.starts_with("pw") || link.starts_with("podwright"));
    }
    Ok(links)
}

fn list_files(directory: &Path, base: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        // It has gone since its name was read.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        found.insert(path.strip_prefix(base)?.to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_files(&path, base, found)?;
        }
    }
    Ok(())
}

/// The network links that a process sees.
pub fn links(pid: u32) -> Result<BTreeSet<String>> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    Ok(table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect())
}

/// What a process's descriptors refer to, digits replaced by `N`, counted.
pub fn descriptors(pid: u32) -> Result<Vec<(String, usize)>> {
    let mut targets: Vec<String> = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if let Ok(target) = fs::read_link(entry?.path()) {
            let text = target.to_string_lossy();
            targets.push(text.chars().map(|sign| if sign.is_ascii_digit() { 'N' } else { sign }).collect());
        }
    }
    targets.sort();
    let mut counted: Vec<(String, usize)> = Vec::new();
    for target in targets {
        match counted.last_mut() {
            Some((name, count)) if *name == target => *count += 1,
            _ => counted.push((target, 1)),
        }
    }
    Ok(counted)
}
