//! Starting monitors.
//!
//! The program is copied once into a sealed memfd and executed from there: no container can overwrite it through
//! /proc/PID/exe (CVE-2019-5736), an upgrade of the package changes no running pod, and all monitors share its pages.
//! Where the kernel forbids executable memfds (`vm.memfd_noexec=2`), the installed file is executed and that is logged.
//!
//! The socket is bound and listens before the monitor exists, so that a connect never races with its start.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The name of the monitor's program, and of its process.
const NAME: &str = "podwright-monitor";

/// What the parent of a network plugin is called.
const PLUGIN_NAME: &str = "podwright-plugin";

/// Where packages put programs that are not for people.
const LIBEXEC: [&str; 3] = ["/usr/libexec/podwright", "/usr/local/libexec/podwright", "/usr/lib/podwright"];

/// Connections that wait to be accepted: one daemon, and one that replaces it.
const BACKLOG: i32 = 8;

/// Why a monitor was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No file of that name in the places where it may be.
    #[error("{NAME} was not found beside the daemon, in {} or on PATH; set paths.monitor", LIBEXEC.join(", "))]
    NoProgram,
    /// The program cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its socket cannot be made.
    #[error("make the monitor's socket in {}", path.display())]
    Socket {
        /// The pod's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It cannot be executed.
    #[error("execute {}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the monitor's allocator must not keep: chunks in its caches hold whole pages that nobody uses (a third of a
/// monitor's memory), and speed is of no use to it.
const MALLOC: &str = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0";

/// The monitor's program.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    sealed: Option<OwnedFd>,
}

/// A monitor that was started.
#[derive(Debug)]
pub struct Launched {
    /// The child, to be reaped.
    pub child: tokio::process::Child,
}

impl Program {
    /// Finds the program (`configured`, unless that is empty) and seals a copy of it.
    pub fn load(configured: &Path) -> Result<Self, LaunchError> {
        let path = if configured.as_os_str().is_empty() { search()? } else { configured.to_owned() };
        let mut file =
            File::open(&path).map_err(|source| LaunchError::Read { path: path.clone(), source })?;
        let sealed = match seal(&mut file) {
            Ok(sealed) => Some(sealed),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the monitor is executed from its installed file");
                None
            }
        };
        Ok(Self { path, sealed })
    }

    /// The installed file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to execute.
    fn executable(&self) -> PathBuf {
        match &self.sealed {
            Some(sealed) => PathBuf::from(format!("/proc/self/fd/{}", sealed.as_raw_fd())),
            None => self.path.clone(),
        }
    }

    /// Whether pods can have user namespaces here: the owners of one of the directories can be mapped. The program tries it, since
    /// it takes a process of one thread. Blocks for as long as that takes, which is no longer than a process's start.
    pub fn try_idmap(&self, directories: &[PathBuf]) -> Result<(), String> {
        let mut command = Command::new(self.executable());
        command
            .arg0(NAME)
            .arg("--try-idmap")
            .args(directories)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("execute {}: {error}", self.path.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(said.lines().collect::<Vec<_>>().join("; "))
    }

    /// What runs `plugin` below a parent of its own: see [`runtime::plugin`].
    pub fn parent_of(&self, plugin: &Path) -> Command {
        let mut command = Command::new(self.executable());
        command.arg0(PLUGIN_NAME).arg("--plugin").arg(plugin);
        command
    }

    /// Starts a monitor that listens in `run_dir`, with `args`. Its standard error is the daemon's; it makes itself
    /// a session of its own. The listening socket is its standard input: no code of ours runs between fork and exec.
    pub fn launch(&self, run_dir: &Path, args: &[String]) -> Result<Launched, LaunchError> {
        let socket =
            listen(run_dir).map_err(|source| LaunchError::Socket { path: run_dir.to_owned(), source })?;
        let mut command = Command::new(self.executable());
        command
            .arg0(NAME)
            .args(args)
            .env_clear()
            .env("GLIBC_TUNABLES", MALLOC)
            .current_dir("/")
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let child = tokio::process::Command::from(command)
            .spawn()
            .map_err(|source| LaunchError::Spawn { path: self.path.clone(), source })?;
        Ok(Launched { child })
    }
}

/// Beside the daemon, then libexec, then PATH.
fn search() -> Result<PathBuf, LaunchError> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(LIBEXEC.iter().map(PathBuf::from))
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(NAME))
        .find(|file| file.is_file())
        .ok_or(LaunchError::NoProgram)
}

/// A copy of `file` that nobody can change any more.
fn seal(file: &mut File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the flag, and allow execution.
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags)?,
        other => other?,
    };
    let mut copy = File::from(memfd);
    io::copy(file, &mut copy)?;
    let memfd = OwnedFd::from(copy);
    rustix::fs::fchmod(&memfd, Mode::from_raw_mode(0o500))?;
    rustix::fs::fcntl_add_seals(
        &memfd,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(memfd)
}

/// The socket of a monitor in its pod's directory, listening: of mode 0600 before anybody can connect.
pub(super) fn listen(run_dir: &Path) -> Result<OwnedFd, Errno> {
    let directory = open_dir(run_dir)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(socket_path(&directory))?)?;
    rustix::fs::chmodat(&directory, "monitor.sock", Mode::from_raw_mode(0o600), AtFlags::empty())?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A pod's directory as the start of a path. It is 0700, so nobody else reaches what is in it, whatever its mode.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The socket's path by its directory's descriptor, which is never too long for a socket's address.
pub(super) fn socket_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/monitor.sock", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_cannot_be_written() {
        let mut file = File::open("/proc/self/exe").unwrap();
        let length = file.metadata().unwrap().len();
        let Ok(sealed) = seal(&mut file) else { return };
        let sealed = File::from(sealed);
        assert_eq!(sealed.metadata().unwrap().len(), length);
        let error = std::os::unix::fs::FileExt::write_at(&sealed, b"x", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
    }

    #[test]
    fn a_socket_deep_in_the_tree_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let _listening = listen(&deep).unwrap();
        super::super::dial(&deep).unwrap();
    }
}
