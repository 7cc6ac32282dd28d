//! SELinux labels of files: a volume is given the label that its container may use, as `security.selinux` (xattr(7)).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::tree::{self, Limits, Outcome};

/// Where the kernel keeps a file's label.
const LABEL: &str = "security.selinux";

/// Directories that are the system's: who asks for them to be relabelled has made a mistake that would lock everybody out.
const SYSTEM: [&str; 22] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/etc/pki", "/home", "/lib", "/lib64", "/media", "/opt", "/proc",
    "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log",
];

/// Why files could not be given a label.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    /// It is a directory of the system's.
    #[error("{} is the system's own", .0.display())]
    System(PathBuf),
    /// There is too much of it.
    #[error("{} has more files than could be labelled in time", .0.display())]
    Late(PathBuf),
    /// The kernel refused.
    #[error("label {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Errno,
    },
}

/// Labels `path` and everything below it. Follows no link below; `path` itself has none left in it. A filesystem that has no labels is
/// no error. Blocks.
pub fn relabel(path: &Path, label: &str, deadline: Instant) -> Result<(), RelabelError> {
    if SYSTEM.iter().any(|system| path == Path::new(system)) {
        return Err(RelabelError::System(path.to_owned()));
    }
    let failed = |path: &Path, source| RelabelError::Kernel { path: path.to_owned(), source };
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let top = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(path, errno))?;
    let set = |parent: BorrowedFd<'_>, name: &std::ffi::OsStr| {
        // There is no such call with a directory's descriptor before Linux 6.13; a link as the last part is not followed.
        let at = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
        match rustix::fs::lsetxattr(&at, LABEL, label.as_bytes(), XattrFlags::empty()) {
            Err(errno) if errno != Errno::OPNOTSUPP => Err(errno),
            _ => Ok(()),
        }
    };
    let stat = rustix::fs::fstat(&top).map_err(|errno| failed(path, errno))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
        let at = Path::new("/proc/self/fd").join(top.as_raw_fd().to_string());
        // Its link in /proc is followed: it leads to the very file.
        return match rustix::fs::setxattr(&at, LABEL, label.as_bytes(), XattrFlags::empty()) {
            Err(errno) if errno != Errno::OPNOTSUPP => Err(failed(path, errno)),
            _ => Ok(()),
        };
    }
    set(top.as_fd(), ".".as_ref()).map_err(|errno| failed(path, errno))?;
    let limits = Limits { objects: u64::MAX, deadline: Some(deadline) };
    let walked = tree::walk(top.as_fd(), limits, |found| match set(found.parent, found.name) {
        // It has gone since.
        Err(Errno::NOENT) | Ok(()) => Ok(true),
        Err(errno) => Err(errno),
    });
    match walked {
        Ok(Outcome::Complete) => Ok(()),
        Ok(Outcome::Partial) => Err(RelabelError::Late(path.to_owned())),
        Err(failure) => Err(failed(&path.join(std::ffi::OsString::from_vec(failure.path)), failure.errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Duration;

    fn label_of(path: &Path) -> Option<String> {
        let mut buffer = [0_u8; 256];
        let length = rustix::fs::lgetxattr(path, LABEL, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn everything_below_is_labelled_and_nothing_a_link_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, volume) = (dir.path().join("outside"), dir.path().join("volume"));
        File::create(&outside).unwrap();
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        File::create(volume.join("a/b/file")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let probe = rustix::fs::lsetxattr(&outside, LABEL, b"before", XattrFlags::empty());
        if probe.is_err() {
            println!("SKIP relabel: {probe:?}: no such attributes may be set here");
            return;
        }
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        let soon = || Instant::now() + Duration::from_secs(60);
        relabel(&volume, label, soon()).unwrap();
        for path in ["", "a", "a/b", "a/b/file"] {
            assert_eq!(label_of(&volume.join(path)).as_deref(), Some(label), "{path}");
        }
        assert_eq!(label_of(&outside).as_deref(), Some("before"));
        relabel(&volume.join("a/b/file"), "other", soon()).unwrap();
        assert_eq!(label_of(&volume.join("a/b/file")).as_deref(), Some("other"));
        assert_eq!(label_of(&volume.join("a/b")).as_deref(), Some(label));
    }

    #[test]
    fn what_is_the_systems_is_left_alone_and_time_is_kept() {
        let soon = Instant::now() + Duration::from_secs(60);
        for path in ["/", "/etc", "/usr", "/var/lib"] {
            assert!(matches!(relabel(Path::new(path), "x", soon), Err(RelabelError::System(_))), "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        for number in 0..5000 {
            File::create(dir.path().join(number.to_string())).unwrap();
        }
        let late = relabel(dir.path(), "x", Instant::now());
        // Without the right to set such an attribute there is another reason.
        assert!(matches!(late, Err(RelabelError::Late(_) | RelabelError::Kernel { .. })), "{late:?}");
        let gone = relabel(&dir.path().join("gone"), "x", soon);
        assert!(matches!(gone, Err(RelabelError::Kernel { source: Errno::NOENT, .. })), "{gone:?}");
    }
}
