//! Facts about this host, read once when the daemon starts.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use oci_spec::runtime::Arch;
use runtime::cgroup::{Controller, Hierarchies, Mode};
use runtime::lsm;

use crate::error::Error;
use crate::translate::{Access, CgroupVersion, DeviceKind, DeviceNode, HostFacts, capabilities};

/// The kernel from which on a layer of an overlay may be idmapped: major and minor.
pub const IDMAPPED_LAYERS: (u32, u32) = (5, 19);

/// What translation has to know of the host; `user_namespaces` was tried already.
pub fn facts(hierarchies: &Hierarchies, user_namespaces: bool) -> Result<HostFacts, Error> {
    let mountinfo = read("/proc/self/mountinfo")?;
    let status = read("/proc/self/status")?;
    Ok(HostFacts {
        cgroup: if hierarchies.mode() == Mode::Unified { CgroupVersion::V2 } else { CgroupVersion::V1 },
        cgroup2_options: cgroup2_options(&mountinfo),
        hugepage_sizes: if hierarchies.with(Controller::Hugetlb).is_some() {
            hugepage_sizes()
        } else {
            BTreeSet::new()
        },
        swap_accounting: swap_accounting(hierarchies),
        apparmor: lsm::apparmor_enabled(),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        recursive_readonly: kernel() >= (5, 12),
        user_namespaces,
        capabilities: capabilities::from_mask(effective_capabilities(&status)),
        devices: devices(),
        arch: if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 },
        kernel: kernel(),
    })
}

/// The host's own name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The id of this boot.
pub fn boot_id() -> Result<String, Error> {
    Ok(read("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The kernel's version: major and minor.
pub fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn read(path: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })
}

/// Superblock options of the cgroup2 mount that one without a cgroup namespace shares with it.
fn cgroup2_options(mountinfo: &str) -> Vec<String> {
    let of_cgroup2 = |line: &&str| line.contains(" - cgroup2 ");
    let Some(line) = mountinfo.lines().find(of_cgroup2) else { return Vec::new() };
    let options = line.rsplit(' ').next().unwrap_or_default();
    let kept = ["nsdelegate", "memory_recursiveprot"];
    options.split(',').filter(|option| kept.contains(option)).map(str::to_owned).collect()
}

/// The page sizes that the kernel has pools of, as the hugetlb controller names them.
fn hugepage_sizes() -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return BTreeSet::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(match kib {
                kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
                kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
                kib => format!("{kib}KB"),
            })
        })
        .collect()
}

/// Whether a limit on swap has a file to go to. On v2 the root has none, so it is asked for in the first child.
fn swap_accounting(hierarchies: &Hierarchies) -> bool {
    let Some(memory) = hierarchies.with(Controller::Memory) else { return false };
    if hierarchies.mode() != Mode::Unified {
        return memory.mount.join("memory.memsw.limit_in_bytes").exists();
    }
    let children = fs::read_dir(&memory.mount).into_iter().flatten().flatten();
    let mut dirs = children.map(|entry| entry.path()).filter(|path| path.join("memory.max").exists());
    dirs.next().is_none_or(|child| child.join("memory.swap.max").exists())
}

/// `CapEff` of a status file.
fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Every device node below /dev, for privileged containers. Filesystems of their own below it are left out.
fn devices() -> Vec<DeviceNode> {
    let mut nodes = Vec::new();
    collect(Path::new("/dev"), Access::ALL, 0, &mut nodes);
    nodes
}

/// The most device nodes that are taken from one directory tree.
const MAX_DEVICES: usize = 4096;
/// How deep below it they are looked for.
const MAX_DEPTH: usize = 8;

/// Adds the nodes below `directory` by their own paths.
pub(crate) fn collect(directory: &Path, access: Access, depth: usize, nodes: &mut Vec<DeviceNode>) {
    let skipped = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/hugepages"];
    if depth > MAX_DEPTH || skipped.iter().any(|path| directory == Path::new(path)) {
        return;
    }
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if nodes.len() >= MAX_DEVICES {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&entry.path(), access, depth + 1, nodes);
        } else if let Some(node) = node(&entry.path(), &entry.path(), access) {
            nodes.push(node);
        }
    }
}

/// The device at `host`, to be had at `inside`. None: it is no device node; a symbolic link is none.
pub(crate) fn node(host: &Path, inside: &Path, access: Access) -> Option<DeviceNode> {
    let metadata = fs::symlink_metadata(host).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Char,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return None,
    };
    Some(DeviceNode {
        path: inside.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_unified_hierarchy_are_found() {
        let mountinfo = "24 1 0:22 / /proc rw - proc proc rw\n\
            30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(cgroup2_options(mountinfo), ["nsdelegate", "memory_recursiveprot"]);
        assert!(cgroup2_options("").is_empty());
    }

    #[test]
    fn capabilities_are_read_as_hexadecimal() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(effective_capabilities(""), 0);
    }

    #[test]
    fn dev_null_is_a_device() {
        let node = node(Path::new("/dev/null"), Path::new("/dev/x"), Access::ALL).unwrap();
        assert_eq!((node.kind, node.major, node.minor), (DeviceKind::Char, 1, 3));
        assert_eq!(node.path, Path::new("/dev/x"));
    }
}
