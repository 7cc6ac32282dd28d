//! What the containers of a pod share: its network namespace, shared memory, and three files of /etc.
//!
//! All of it lies in the pod's run directory, and [`release`] takes away whatever of it is there: after a failure, at
//! the pod's end, and after a reboot.

use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::Directories;
use crate::error::Error;
use crate::translate::{Pod, PodPaths, PodPid, Shared, Userns};

/// The longest file of the host's /etc that is copied, in bytes.
const MAX_ETC_BYTES: u64 = 1024 * 1024;

/// Size of a pod's shared memory, as containerd's users have it.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// Makes a directory that only the daemon reads.
pub(crate) fn private_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| Error::Io {
        action: "make the directory",
        path: path.to_owned(),
        source,
    })
}

/// Makes all of it but the network namespace. The run directory is there.
pub(super) fn make(dirs: &Directories, pod: &Pod) -> Result<(), Error> {
    let host_network = pod.namespaces.host_network();
    let hosts = if host_network { host_file("/etc/hosts")? } else { hosts(&pod.hostname, &[]).into_bytes() };
    let resolv_conf = match &pod.dns {
        Some(dns) => dns.resolv_conf().into_bytes(),
        None => host_file("/etc/resolv.conf")?,
    };
    let root = root_of(pod);
    write(&dirs.run.join("hosts"), &hosts, root)?;
    write(&dirs.run.join("hostname"), format!("{}\n", pod.hostname).as_bytes(), root)?;
    write(&dirs.run.join("resolv.conf"), &resolv_conf, root)?;
    if pod.namespaces.ipc == Shared::Pod {
        mount_shm(&dirs.shm(), pod)?;
    }
    Ok(())
}

/// Makes and pins the pod's own network namespace, with its loopback up.
pub(super) fn make_netns(dirs: &Directories) -> Result<(), Error> {
    let path = dirs.netns();
    runtime::netns::create(&path).map_err(|failure| Error::Engine {
        what: "network namespace",
        id: path.display().to_string(),
        failure,
    })
}

/// Pins the network namespace that pause has made: see [`SandboxRequest::netns`](runtime::monitor::protocol::SandboxRequest).
pub(super) fn pin_netns(dirs: &Directories, pause: i32) -> Result<(), Error> {
    let path = dirs.netns();
    let failed =
        |source: io::Error| Error::Io { action: "pin the network namespace on", path: path.clone(), source };
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    rustix::mount::mount_bind(format!("/proc/{pause}/ns/net"), &path).map_err(|errno| failed(errno.into()))
}

/// Where containers find it all. `pause` is None only before there is one.
pub(super) fn paths(dirs: &Directories, pod: &Pod, pause: Option<i32>) -> PodPaths {
    let of_pause = |kind: &str| pause.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/{kind}")));
    let namespaces = &pod.namespaces;
    let own_network = namespaces.network == Shared::Pod;
    let own_ipc = namespaces.ipc == Shared::Pod;
    PodPaths {
        network_ns: own_network.then(|| dirs.netns()),
        uts_ns: own_network.then(|| of_pause("uts")).flatten(),
        ipc_ns: own_ipc.then(|| of_pause("ipc")).flatten(),
        pid_ns: (namespaces.pid == PodPid::Pod).then(|| of_pause("pid")).flatten(),
        user_ns: (namespaces.userns != Userns::None).then(|| of_pause("user")).flatten(),
        target_pid_ns: None,
        shm: own_ipc.then(|| dirs.shm()),
        hosts: Some(dirs.run.join("hosts")),
        hostname: Some(dirs.run.join("hostname")),
        resolv_conf: Some(dirs.run.join("resolv.conf")),
    }
}

/// Unmounts and removes all of it, and the run directory. What is not there is released already.
pub(crate) fn release(dirs: &Directories) -> Result<(), Error> {
    let shm = dirs.shm();
    match rustix::mount::unmount(&shm, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL: not a mount point.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(Error::Io { action: "unmount", path: shm, source: errno.into() }),
    }
    let netns = dirs.netns();
    runtime::netns::remove(&netns).map_err(|failure| Error::Engine {
        what: "network namespace",
        id: netns.display().to_string(),
        failure,
    })?;
    match fs::remove_dir_all(&dirs.run) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove", path: dirs.run.clone(), source })
        }
        _ => Ok(()),
    }
}

/// Writes the pod's addresses into its /etc/hosts, before any container reads it. kubelet mounts one of its own.
pub(super) fn write_addresses(dirs: &Directories, pod: &Pod, addresses: &[IpAddr]) -> Result<(), Error> {
    write(&dirs.run.join("hosts"), hosts(&pod.hostname, addresses).as_bytes(), root_of(pod))
}

/// A pod's /etc/hosts. One without an address has the loopback's.
fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    const LOOPBACK: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let addresses = if addresses.is_empty() { &LOOPBACK } else { addresses };
    // The short name beside a full one, as hosts(5) wants it.
    let names = match hostname.split_once('.') {
        Some((short, _)) => format!("{hostname} {short}"),
        None => hostname.to_owned(),
    };
    let own = addresses.iter().fold(String::new(), |text, address| format!("{text}{address}\t{names}\n"));
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n\
         {own}"
    )
}

/// A file of the host's /etc; empty where the host has none.
fn host_file(path: &'static str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(MAX_ETC_BYTES).read_to_end(&mut bytes)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { action: "read", path: path.into(), source })
        }
        _ => Ok(bytes),
    }
}

/// The pod's root as the host knows it: uid, gid.
fn root_of(pod: &Pod) -> (u32, u32) {
    match &pod.namespaces.userns {
        Userns::None => (0, 0),
        Userns::Mapped { uids, gids } => (uids.host, gids.host),
    }
}

/// Readable by every container, whoever it runs as, and the property of the pod's root: no mapping of the mount's is needed then,
/// which not every filesystem supports.
fn write(path: &Path, bytes: &[u8], (uid, gid): (u32, u32)) -> Result<(), Error> {
    let mut options = fs::OpenOptions::new();
    let written =
        options.write(true).create(true).truncate(true).mode(0o644).open(path).and_then(|mut file| {
            io::Write::write_all(&mut file, bytes)?;
            if (uid, gid) == (0, 0) { Ok(()) } else { std::os::unix::fs::fchown(&file, Some(uid), Some(gid)) }
        });
    written.map_err(|source| Error::Io { action: "write", path: path.to_owned(), source })
}

fn mount_shm(path: &Path, pod: &Pod) -> Result<(), Error> {
    private_dir(path)?;
    let (uid, gid) = root_of(pod);
    let options = format!("{SHM_OPTIONS},uid={uid},gid={gid}");
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("shm", path, "tmpfs", flags, Some(options.as_c_str())).map_err(|errno| {
        Error::Io { action: "mount a tmpfs on", path: path.to_owned(), source: errno.into() }
    })?;
    // Nothing the host mounts here later is a pod's business.
    rustix::mount::mount_change(path, rustix::mount::MountPropagationFlags::PRIVATE).map_err(|errno| {
        Error::Io { action: "make private the mount", path: path.to_owned(), source: errno.into() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_finds_its_own_name() {
        assert!(hosts("web-0", &[]).lines().any(|line| line == "127.0.0.1\tweb-0"));
        let own = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let text = hosts("web-0.shop.svc", &own);
        assert!(text.ends_with("10.0.0.5\tweb-0.shop.svc web-0\nfd00::5\tweb-0.shop.svc web-0\n"), "{text}");
    }

    #[test]
    fn releasing_what_was_never_made_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = Directories::new(directory.path(), directory.path(), "none");
        release(&dirs).unwrap();
    }
}
