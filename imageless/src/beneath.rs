//! Opening things beneath a directory and never outside it: openat2(2), one component at a time where the real path
//! matters, in one go where only the file does.
//!
//! Two rules run through all of it. A path is used once: everything after is by descriptor. And a file is first opened
//! as a mere handle (`O_PATH`), which has no side effect on a FIFO or a device, looked at, and only then opened to be
//! read through that very handle.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Symbolic links followed in one look-up before it is called a loop; the kernel's own limit.
const LINKS_MAX: usize = 40;
/// Components in one look-up, links expanded.
const COMPONENTS_MAX: usize = 256;
/// Repetitions of openat2 when a rename anywhere on the machine made it unsure (EAGAIN).
const RETRIES_MAX: usize = 64;

/// Why a file inside a root filesystem or an entry could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be opened beneath its directory: a link that leads out, a loop, no permission.
    #[error("cannot open {path} beneath its directory")]
    Open {
        /// The file, relative to its directory.
        path: PathBuf,
        /// The errno of the call.
        #[source]
        source: Errno,
    },
    /// It is a directory, FIFO, socket or device; reading one could hang or do harm.
    #[error("{path} is not a regular file but a {kind}")]
    NotRegular {
        /// The file, relative to its directory.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// It is larger than anything of its kind.
    #[error("{path} has {size} bytes; at most {max} are read")]
    TooLarge {
        /// The file, relative to its directory.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The cap.
        max: u64,
    },
    /// Reading it failed.
    #[error("cannot read {path}")]
    Read {
        /// The file, relative to its directory.
        path: PathBuf,
        /// What read(2) said.
        #[source]
        source: std::io::Error,
    },
}

/// How links inside a directory are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// As a process whose root is this directory sees them: `/etc` is the directory's own `etc`.
    InRoot,
    /// A link that leads out of the directory is an error.
    Beneath,
}

/// openat2(2) beneath `dir`, repeated while the kernel cannot rule out a race.
pub(crate) fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
    let scope = match links {
        Links::InRoot => ResolveFlags::IN_ROOT,
        Links::Beneath => ResolveFlags::BENEATH,
    };
    let resolve = scope | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RETRIES_MAX {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// A handle on a directory beneath `dir`.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
    open(dir, path, OFlags::PATH | OFlags::DIRECTORY, links)
}

/// A handle on a directory by a path of our own configuration, its links followed.
pub(crate) fn open_trusted_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry(|| rustix::fs::open(path, flags, Mode::empty()))
}

/// A handle on one directory entry, a link itself and not what it points to.
pub(crate) fn open_entry(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    open(dir, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW, Links::Beneath)
}

/// Turns a handle into a descriptor that can be read. The handle is the object itself: nothing is looked up again.
pub(crate) fn reopen(handle: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    retry(|| rustix::fs::open(path.as_str(), flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()))
}

/// The whole of the regular file `path` beneath `dir`; None where there is no such file. At most `max` bytes.
pub(crate) fn read_regular(
    dir: BorrowedFd<'_>,
    path: &Path,
    links: Links,
    max: u64,
) -> Result<Option<Vec<u8>>, FileError> {
    let shown = || path.to_owned();
    let handle = match open(dir, path, OFlags::PATH, links) {
        Ok(handle) => handle,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(source) => return Err(FileError::Open { path: shown(), source }),
    };
    let stat = rustix::fs::fstat(&handle).map_err(|source| FileError::Open { path: shown(), source })?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(FileError::NotRegular { path: shown(), kind: describe(kind) });
    }
    let size = size_of(&stat);
    if size > max {
        return Err(FileError::TooLarge { path: shown(), size, max });
    }
    let file = reopen(handle.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(|source| FileError::Open { path: shown(), source })?;
    let mut bytes = Vec::new();
    // It may have grown since fstat: one byte more than allowed tells.
    std::fs::File::from(file)
        .take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Read { path: shown(), source })?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLarge { path: shown(), size: bytes.len() as u64, max });
    }
    Ok(Some(bytes))
}

/// `st_size`, which is never negative for what has one.
pub(crate) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// A file type in words.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "file of unknown type",
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Where a walk ended: which base, and the real path (no links left in it) below that base.
#[derive(Debug)]
pub(crate) struct Place {
    /// Index of the base, as given to the walk.
    pub(crate) base: usize,
    /// Path below the base, links resolved.
    pub(crate) path: PathBuf,
    /// Handle on the directory.
    pub(crate) dir: OwnedFd,
}

/// Why a walk did not arrive at a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// There is nothing of that name.
    #[error("no such directory")]
    Missing,
    /// A component is a file.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// A link or `..` leads out of the roots.
    #[error("{0} leads outside the configured roots")]
    Outside(PathBuf),
    /// The path goes on inside another entry's tree.
    #[error("it is inside the entry {0}")]
    InsideEntry(PathBuf),
    /// Too many links or components.
    #[error("too many symbolic links or components")]
    TooLong,
    /// A system call failed.
    #[error("cannot open {path}")]
    Os {
        /// What could not be opened.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// The directories a walk may be in.
pub(crate) trait Bases {
    /// A handle on base `index`.
    fn open(&self, index: usize) -> Result<OwnedFd, Errno>;
    /// The base that holds an absolute path, and the rest of the path below it; None is outside.
    fn containing(&self, absolute: &Path) -> Option<(usize, PathBuf)>;
    /// Whether the walk must not go below this directory.
    fn is_closed(&self, dir: BorrowedFd<'_>) -> bool;
}

/// Walks from the base `first` along `path`, link by link, and tells the real place. Unlike openat2 alone it follows an
/// absolute link that leads back into a base, and knows the real path, which is what identifies an entry.
pub(crate) fn walk(bases: &impl Bases, first: usize, path: &Path) -> Result<Place, WalkError> {
    let mut base = first;
    let mut base_dir = bases.open(base).map_err(|errno| missing_or(errno, path))?;
    let mut real: Vec<(OsString, OwnedFd)> = Vec::new();
    let mut pending = reversed(path);
    let (mut links, mut components) = (0, 0);
    while let Some(step) = pending.pop() {
        components += 1;
        if components > COMPONENTS_MAX {
            return Err(WalkError::TooLong);
        }
        let Some(name) = step else {
            // "..": the parent of the real directory, as the kernel does it.
            if real.pop().is_none() {
                return Err(WalkError::Outside(path.to_owned()));
            }
            continue;
        };
        let here = match real.last() {
            Some((_, dir)) if bases.is_closed(dir.as_fd()) => {
                return Err(WalkError::InsideEntry(joined(&real)));
            }
            Some((_, dir)) => dir.as_fd(),
            None => base_dir.as_fd(),
        };
        let at = || joined(&real).join(&name);
        let next = open_entry(here, &name).map_err(|errno| missing_or(errno, &at()))?;
        let stat = rustix::fs::fstat(&next).map_err(|errno| missing_or(errno, &at()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => real.push((name, next)),
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(WalkError::TooLong);
                }
                let target = rustix::fs::readlinkat(&next, c"", Vec::new())
                    .map_err(|errno| missing_or(errno, &at()))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    let (index, rest) = bases.containing(&target).ok_or_else(|| WalkError::Outside(at()))?;
                    base = index;
                    base_dir = bases.open(base).map_err(|errno| missing_or(errno, &target))?;
                    real.clear();
                    pending.extend(reversed(&rest));
                } else {
                    pending.extend(reversed(&target));
                }
            }
            _ => return Err(WalkError::NotADirectory(at())),
        }
    }
    let path = joined(&real);
    let dir = real.pop().map_or(base_dir, |(_, dir)| dir);
    Ok(Place { base, path, dir })
}

fn joined(real: &[(OsString, OwnedFd)]) -> PathBuf {
    real.iter().map(|(name, _)| name).collect()
}

/// The steps of a path, last first: a name, or None for `..`.
fn reversed(path: &Path) -> Vec<Option<OsString>> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(Some(name.to_owned())),
            Component::ParentDir => Some(None),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn missing_or(errno: Errno, path: &Path) -> WalkError {
    match errno {
        Errno::NOENT | Errno::NAMETOOLONG | Errno::INVAL if !path.as_os_str().as_bytes().is_empty() => {
            WalkError::Missing
        }
        Errno::NOTDIR => WalkError::NotADirectory(path.to_owned()),
        source => WalkError::Os { path: path.to_owned(), source },
    }
}

/// One base, and nothing but what is beneath it.
pub(crate) struct Only<'a>(pub(crate) BorrowedFd<'a>);

impl Bases for Only<'_> {
    fn open(&self, _index: usize) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(self.0, 3)
    }

    fn containing(&self, _absolute: &Path) -> Option<(usize, PathBuf)> {
        None
    }

    fn is_closed(&self, _dir: BorrowedFd<'_>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn walk_only(dir: &Path, path: &str) -> Result<PathBuf, WalkError> {
        let fd = open_trusted_dir(dir).unwrap();
        walk(&Only(fd.as_fd()), 0, Path::new(path)).map(|place| place.path)
    }

    #[test]
    fn a_walk_tells_the_real_path_and_stays_inside() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        symlink("a/b", dir.join("link")).unwrap();
        symlink("../link", dir.join("a/again")).unwrap();
        symlink("../../etc", dir.join("a/out")).unwrap();
        symlink("/etc", dir.join("absolute")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        symlink("gone", dir.join("dangling")).unwrap();
        assert_eq!(walk_only(dir, "link").unwrap(), Path::new("a/b"));
        assert_eq!(walk_only(dir, "a/again").unwrap(), Path::new("a/b"));
        assert_eq!(walk_only(dir, "a/b/../../link").unwrap(), Path::new("a/b"));
        assert!(matches!(walk_only(dir, "a/out"), Err(WalkError::Outside(_))));
        assert!(matches!(walk_only(dir, "absolute"), Err(WalkError::Outside(_))));
        assert_eq!(walk_only(dir, "loop"), Err(WalkError::TooLong));
        assert_eq!(walk_only(dir, "dangling"), Err(WalkError::Missing));
        assert_eq!(walk_only(dir, "nothing"), Err(WalkError::Missing));
        assert!(matches!(walk_only(dir, "file"), Err(WalkError::NotADirectory(_))));
        assert!(matches!(walk_only(dir, "file/x"), Err(WalkError::NotADirectory(_))));
    }

    #[test]
    fn only_regular_files_within_the_cap_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::write(dir.join("ok"), "12345").unwrap();
        symlink("/ok", dir.join("rooted")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), Mode::RUSR).unwrap();
        let fd = open_trusted_dir(dir).unwrap();
        let read = |path: &str, links, max| read_regular(fd.as_fd(), Path::new(path), links, max);
        assert_eq!(read("ok", Links::Beneath, 5).unwrap().unwrap(), b"12345");
        assert_eq!(read("rooted", Links::InRoot, 5).unwrap().unwrap(), b"12345");
        assert!(matches!(read("rooted", Links::Beneath, 5), Err(FileError::Open { .. })));
        assert!(matches!(read("ok", Links::Beneath, 4), Err(FileError::TooLarge { .. })));
        assert!(matches!(read("fifo", Links::Beneath, 4), Err(FileError::NotRegular { kind: "FIFO", .. })));
        assert!(matches!(read(".", Links::Beneath, 4), Err(FileError::NotRegular { .. })));
        assert!(read("gone", Links::Beneath, 4).unwrap().is_none());
        assert!(read("ok/x", Links::Beneath, 4).unwrap().is_none());
    }
}
