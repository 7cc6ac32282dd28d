//! Keeping this binary out of containers' reach.
//!
//! Init is a clone of this process until it executes the container's program, and a program such as
//! `#!/proc/self/exe` makes the container execute this very file. Whoever then opens `/proc/PID/exe` there could wait until it runs
//! no more and write to it, as root, through the host's own mount (CVE-2019-5736). So, before anything of a container exists,
//! this process executes itself again from a place that cannot be written by anybody:
//!
//! - an overlay of nothing but lower layers, never attached to any mount table. Its superblock has no writable layer, so neither
//!   remounting nor mount_setattr(2) through /proc can make it writable, and no page is copied;
//! - where that is not possible (a user without CAP_SYS_ADMIN, a kernel or a lower filesystem that overlayfs does not take), a memfd
//!   sealed against writing, which costs a copy of the file.
//!
//! A read-only bind mount would be cheaper still, but is unsound: a detached mount may be changed by anyone who
//! holds a descriptor below it and has CAP_SYS_ADMIN in the container.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::AtFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::globals::Globals;

/// The link to this process's program.
const EXE: &str = "/proc/self/exe";

/// The name of the sealed copy, as /proc shows it.
const NAME: &str = "wright";

/// All that can be forbidden of a memfd.
const SEALS: SealFlags = SealFlags::from_bits_retain(
    SealFlags::SEAL.bits() | SealFlags::SHRINK.bits() | SealFlags::GROW.bits() | SealFlags::WRITE.bits(),
);

/// statfs(2)'s type of an overlay.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// Returns in a process whose program cannot be written: this one, or never, because it goes on as another from the start.
pub(crate) fn ensure(globals: &Globals) -> Result<()> {
    let exe = rustix::fs::open(EXE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open /proc/self/exe")?;
    if is_sealed(&exe) {
        return Ok(());
    }
    let copy = match overlay() {
        Ok(copy) => copy,
        Err(error) => {
            globals.log.debug(|| format!("sealed overlay of this program: {error:#}; a copy instead"));
            memfd(exe)?
        }
    };
    let arguments: Vec<CString> = std::env::args_os().map(c_string).collect::<Result<_>>()?;
    let environment: Vec<CString> = std::env::vars_os()
        .map(|(key, value)| {
            let mut entry = key.into_vec();
            entry.push(b'=');
            entry.extend_from_slice(value.as_bytes());
            CString::new(entry).context("environment")
        })
        .collect::<Result<_>>()?;
    let Err(errno) =
        nix::unistd::execveat(copy.as_fd(), c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH);
    bail!("execute the sealed copy of this program: {errno}")
}

fn c_string(text: std::ffi::OsString) -> Result<CString> {
    CString::new(text.into_vec()).context("argument")
}

/// By what the kernel says of the file, not by anything the caller could have set.
fn is_sealed(exe: &OwnedFd) -> bool {
    if rustix::fs::fcntl_get_seals(exe).is_ok_and(|seals| seals.contains(SEALS)) {
        return true;
    }
    // The overlay is in no mount table, so its path is the bare file name: below `/` of a mount of its own.
    let read_only = rustix::fs::fstatvfs(exe)
        .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let overlay =
        rustix::fs::fstatfs(exe).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(OVERLAYFS_SUPER_MAGIC));
    let bare = std::fs::read_link(EXE).is_ok_and(|path| path.parent() == Some(Path::new("/")));
    read_only && overlay && bare
}

/// This program's file, opened through a detached overlay without an upper layer.
fn overlay() -> Result<OwnedFd> {
    let path = std::fs::read_link(EXE).context("read /proc/self/exe")?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} has no directory", path.display())
    };
    let options =
        |path: &Path| path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b'\\' | b','));
    if options(directory) {
        bail!("{} is no name for a layer", directory.display());
    }
    let overlay = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen")?;
    // Without an upper layer there must be two lower ones; the second only adds names that are not looked up.
    let mut layers = directory.as_os_str().to_owned();
    layers.push(OsStr::new(":"));
    layers.push(if directory.starts_with("/dev") { "/sys" } else { "/dev" });
    rustix::mount::fsconfig_set_string(overlay.as_fd(), c"lowerdir", layers.as_os_str())
        .context("lowerdir")?;
    rustix::mount::fsconfig_create(overlay.as_fd()).context("create")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = rustix::mount::fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .context("fsmount")?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(&mount, name, flags, Mode::empty()).context("open")?;
    // The path was looked up again: it must still be the file that runs.
    let (running, found) = (rustix::fs::stat(EXE)?, rustix::fs::fstat(&copy)?);
    if (running.st_ino, running.st_size, running.st_mtime) != (found.st_ino, found.st_size, found.st_mtime) {
        bail!("{} is another file by now", path.display());
    }
    Ok(copy)
}

/// A sealed copy of this program's file in memory.
fn memfd(exe: OwnedFd) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Newer kernels want to be told that it will be executed; older ones do not know the flag.
    let copy = rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(NAME, flags))
        .context("memfd_create")?;
    let mut copy = File::from(copy);
    std::io::copy(&mut File::from(exe), &mut copy).context("copy this program")?;
    rustix::fs::fcntl_add_seals(&copy, SEALS).context("seal the copy of this program")?;
    Ok(copy.into())
}
