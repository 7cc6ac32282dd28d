//! One cgroup directory, held open, and the few ways its files are read and written.
//!
//! Every file is reached through the directory's descriptor with one openat(2): the kernel resolves no long
//! path twice, and a directory that was removed and made again by someone else is never mistaken for ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Failure, Step};

use super::Controller;

/// A cgroup's directory in one hierarchy.
#[derive(Debug)]
pub(crate) struct Dir {
    /// For messages and records; not used to reach the files.
    pub(crate) path: PathBuf,
    /// Opened with `O_PATH`.
    pub(crate) fd: OwnedFd,
    /// The controllers of its hierarchy.
    pub(crate) controllers: Vec<Controller>,
    /// The hierarchy's label; see [`super::Hierarchy::label`].
    pub(crate) label: String,
    /// Whether this cgroup is the one to remove it: a light child shares most of its parent's directories.
    pub(crate) owned: bool,
}

impl Dir {
    /// Opens an existing directory.
    pub(crate) fn open(path: PathBuf, controllers: Vec<Controller>, label: String) -> Result<Self, Failure> {
        let fd = open_dir(&path).map_err(|errno| Failure::at(Step::Cgroup, errno, &path))?;
        Ok(Self { path, fd, controllers, label, owned: true })
    }

    /// Another handle on the same directory, which does not remove it.
    pub(crate) fn share(&self) -> Result<Self, Failure> {
        let fd = self.fd.try_clone().map_err(|error| failure(&self.path, &error))?;
        Ok(Self {
            path: self.path.clone(),
            fd,
            controllers: self.controllers.clone(),
            label: self.label.clone(),
            owned: false,
        })
    }

    /// Makes or opens the directory `name` below this one. The result is `owned`.
    pub(crate) fn child(&self, name: &str) -> Result<Self, Failure> {
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::at(Step::Cgroup, errno, path)),
        }
        self.below(name)
    }

    /// Opens the directory `name` below this one. The result is `owned`.
    pub(crate) fn below(&self, name: &str) -> Result<Self, Failure> {
        if name.is_empty() {
            return self.share();
        }
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty())
            .map_err(|errno| Failure::at(Step::Cgroup, errno, &path))?;
        Ok(Self { path, fd, controllers: self.controllers.clone(), label: self.label.clone(), owned: true })
    }

    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// One write(2), as cgroup files want it.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let fd = self.open_file(file, OFlags::WRONLY)?;
        write_whole(&fd, value)
    }

    /// As [`write`](Self::write), with the file named on failure.
    pub(crate) fn set(&self, file: &str, value: &str) -> Result<(), Failure> {
        self.write(file, value).map_err(|errno| self.failed(errno, file))
    }

    /// The file's whole text.
    pub(crate) fn read(&self, file: &str) -> Result<String, Errno> {
        let fd = self.open_file(file, OFlags::RDONLY)?;
        let mut text = Vec::with_capacity(4096);
        loop {
            if text.capacity() - text.len() < 1024 {
                text.reserve(4096);
            }
            if rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut text))? == 0 {
                break;
            }
        }
        String::from_utf8(text).map_err(|_| Errno::ILSEQ)
    }

    /// As [`read`](Self::read), with the file named on failure.
    pub(crate) fn text(&self, file: &str) -> Result<String, Failure> {
        self.read(file).map_err(|errno| self.failed(errno, file))
    }

    /// A file that holds one number; None when it is absent or says `max`.
    pub(crate) fn number(&self, file: &str) -> Option<u64> {
        self.read(file).ok()?.trim().parse().ok()
    }

    pub(crate) fn open_file(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.fd, file, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
    }

    pub(crate) fn failed(&self, errno: Errno, file: &str) -> Failure {
        Failure::at(Step::Cgroup, errno, self.path.join(file))
    }

    /// Names of the cgroups directly below.
    pub(crate) fn children(&self) -> Result<Vec<String>, Errno> {
        let fd = self.open_file(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == rustix::fs::FileType::Directory && name != b"." && name != b".." {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(names)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Opens a directory for reaching what is in it.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

/// One write(2) of the whole value: a cgroup file takes each write as one value.
pub(crate) fn write_whole(fd: impl AsFd, value: &str) -> Result<(), Errno> {
    loop {
        match rustix::io::write(&fd, value.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// An I/O error on `path` as a failure of the cgroup step.
pub(crate) fn failure(path: &Path, error: &std::io::Error) -> Failure {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Failure::at(Step::Cgroup, errno, path)
}

/// The number after `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
