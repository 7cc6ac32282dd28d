//! Walking and removing directory trees that somebody else filled.
//!
//! A container may leave names of any bytes, directories nested by the ten thousand and files that refuse to be unlinked.
//! Everything here goes by descriptor, follows no link, opens nothing but directories, and keeps a bounded number of
//! descriptors open.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::entry::for_each_name;

/// Deepest directory that is walked or removed in place; each level holds a descriptor.
const DEPTH_MAX: usize = 128;

/// Where a walk gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most objects.
    pub(crate) objects: u64,
    /// The moment after which it stops; None is no limit.
    pub(crate) deadline: Option<Instant>,
}

/// What a walk says about one object.
pub(crate) struct Found<'a> {
    /// The directory it is in.
    pub(crate) parent: BorrowedFd<'a>,
    /// Its name there.
    pub(crate) name: &'a OsStr,
    /// Its path below the top, components joined with `/`.
    pub(crate) path: &'a [u8],
    /// lstat(2) of it.
    pub(crate) stat: &'a Stat,
    /// Its type.
    pub(crate) kind: FileType,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was seen.
    Complete,
    /// A limit was reached, or the visitor stopped it.
    Partial,
}

/// Why a walk failed: the path below the top, and the errno.
#[derive(Debug)]
pub(crate) struct WalkFailure {
    pub(crate) path: Vec<u8>,
    pub(crate) errno: Errno,
}

struct Level {
    dir: OwnedFd,
    /// Names still to be visited, last first.
    names: Vec<OsString>,
    path_len: usize,
}

/// Visits every object below `top` in the byte order of names, parents before children. An object that vanishes in
/// between is skipped: the tree may be in use. A visitor that answers false ends the walk.
pub(crate) fn walk(
    top: BorrowedFd<'_>,
    limits: Limits,
    mut visit: impl FnMut(&Found<'_>) -> Result<bool, Errno>,
) -> Result<Outcome, WalkFailure> {
    let mut path: Vec<u8> = Vec::new();
    let mut seen = 0;
    let first = open_level(top, OsStr::new("."), 0, limits.objects)
        .map_err(|errno| WalkFailure { path: Vec::new(), errno })?;
    let (first, mut complete) = first;
    let mut levels = vec![first];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        path.truncate(level.path_len);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        seen += 1;
        if seen > limits.objects || limits.deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Ok(Outcome::Partial);
        }
        let failure = |errno| WalkFailure { path: path.clone(), errno };
        let stat = match rustix::fs::statat(&level.dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failure(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let found = Found { parent: level.dir.as_fd(), name: &name, path: &path, stat: &stat, kind };
        if !visit(&found).map_err(failure)? {
            return Ok(Outcome::Partial);
        }
        if kind == FileType::Directory {
            if levels.len() == DEPTH_MAX {
                complete = false;
                continue;
            }
            let dir = levels.last().map(|level| level.dir.as_fd());
            let dir = dir.unwrap_or(top);
            match open_level(dir, &name, path.len(), limits.objects) {
                Ok((level, whole)) => {
                    complete &= whole;
                    levels.push(level);
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failure(errno)),
            }
        }
    }
    Ok(if complete { Outcome::Complete } else { Outcome::Partial })
}

fn open_level(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    path_len: usize,
    max: u64,
) -> Result<(Level, bool), Errno> {
    let dir = open_directory(parent, name)?;
    let mut names = Vec::new();
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let whole = for_each_name(dir.as_fd(), max, |_, name, _| {
        names.push(name.to_owned());
        true
    })?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok((Level { dir, names, path_len }, whole))
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Removes `name` in `parent` and everything below it; absent is removed. Directories nested deeper than the number of
/// descriptors we allow ourselves are first moved up; immutable and append-only flags, which a container with the
/// capability may set, are taken off.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), WalkFailure> {
    let fail = |path: &[u8], errno| WalkFailure { path: path.to_vec(), errno };
    match unlink(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(fail(name.as_bytes(), errno)),
    }
    let top = open_directory(parent, name).map_err(|errno| fail(name.as_bytes(), errno))?;
    let mut hoisted: u64 = 0;
    // Each round removes what is there; rounds go on only while something was moved up to the top.
    loop {
        let before = hoisted;
        remove_below(top.as_fd(), &mut hoisted).map_err(|errno| fail(name.as_bytes(), errno))?;
        if hoisted == before {
            break;
        }
    }
    match unlink(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(fail(name.as_bytes(), errno)),
    }
}

struct Removing {
    dir: OwnedFd,
    /// Name in its parent, to remove it by once it is empty.
    name: CString,
    /// Sub-directories still to be emptied.
    directories: Vec<CString>,
}

fn remove_below(top: BorrowedFd<'_>, hoisted: &mut u64) -> Result<(), Errno> {
    let first = open_directory(top, OsStr::new("."))?;
    let directories = unlink_files(first.as_fd())?;
    let mut levels = vec![Removing { dir: first, name: CString::default(), directories }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.directories.pop() {
            let name_os = OsString::from_vec(name.as_bytes().to_vec());
            if levels.len() >= DEPTH_MAX {
                // Out of the depth: a direct child of the top is shallow again.
                let parent = levels.last().map_or(top, |level| level.dir.as_fd());
                *hoisted += 1;
                let higher = format!(".podwright-removing-{hoisted}");
                retry_mutable(parent, &name_os, || {
                    rustix::fs::renameat(parent, &name, top, higher.as_str())
                })?;
                continue;
            }
            let parent = levels.last().map_or(top, |level| level.dir.as_fd());
            let dir = match open_directory(parent, &name_os) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let directories = unlink_files(dir.as_fd())?;
            levels.push(Removing { dir, name, directories });
        } else if let Some(done) = levels.pop() {
            let Some(parent) = levels.last() else { break };
            match unlink(parent.dir.as_fd(), OsStr::from_bytes(done.name.as_bytes()), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Unlinks all that is not a directory and answers the directories.
fn unlink_files(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for_each_name(dir, usize::MAX, |_, name, kind| {
        names.push((name.to_owned(), kind));
        true
    })?;
    let mut directories = Vec::new();
    for (name, kind) in names {
        let unlinked = match kind {
            FileType::Directory => Err(Errno::ISDIR),
            _ => unlink(dir, &name, AtFlags::empty()),
        };
        match unlinked {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => directories.extend(CString::new(name.into_vec())),
            Err(errno) => return Err(errno),
        }
    }
    Ok(directories)
}

fn unlink(parent: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
    retry_mutable(parent, name, || rustix::fs::unlinkat(parent, name, flags))
}

/// Tries again after taking the immutable and append-only flags off the object and its directory (EPERM says so).
fn retry_mutable(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    mut call: impl FnMut() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match call() {
        Err(Errno::PERM) => {
            let _ = make_mutable(parent, OsStr::new("."));
            let _ = make_mutable(parent, name);
            call()
        }
        other => other,
    }
}

fn make_mutable(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    // Only these two kinds carry the flags, and opening them has no side effect.
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory) {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut inode = rustix::fs::ioctl_getflags(&file)?;
    inode.remove(IFlags::IMMUTABLE | IFlags::APPEND);
    rustix::fs::ioctl_setflags(&file, inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beneath::open_trusted_dir;
    use std::fs;
    use std::os::unix::fs::symlink;

    const NO_LIMITS: Limits = Limits { objects: u64::MAX, deadline: None };

    #[test]
    fn a_walk_is_in_order_and_follows_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("b/c")).unwrap();
        fs::write(temp.path().join("a"), "1").unwrap();
        fs::write(temp.path().join("b/c/d"), "1").unwrap();
        symlink("b", temp.path().join("z")).unwrap();
        let top = open_trusted_dir(temp.path()).unwrap();
        let mut seen = Vec::new();
        let outcome = walk(top.as_fd(), NO_LIMITS, |found| {
            seen.push(String::from_utf8(found.path.to_vec()).unwrap());
            Ok(true)
        })
        .unwrap();
        assert_eq!(outcome, Outcome::Complete);
        assert_eq!(seen, ["a", "b", "b/c", "b/c/d", "z"]);
        let outcome = walk(top.as_fd(), Limits { objects: 2, deadline: None }, |_| Ok(true)).unwrap();
        assert_eq!(outcome, Outcome::Partial);
    }

    #[test]
    fn a_tree_nested_by_the_thousand_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = open_trusted_dir(temp.path()).unwrap();
        rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
        dir = open_directory(dir.as_fd(), OsStr::new("deep")).unwrap();
        for level in 0..3000 {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            if level % 100 == 0 {
                rustix::fs::symlinkat("/etc/passwd", &dir, "link").unwrap();
                rustix::fs::mkfifoat(&dir, "fifo", Mode::RWXU).unwrap();
            }
            dir = open_directory(dir.as_fd(), OsStr::new("d")).unwrap();
        }
        let top = open_trusted_dir(temp.path()).unwrap();
        let outcome = walk(top.as_fd(), NO_LIMITS, |_| Ok(true)).unwrap();
        assert_eq!(outcome, Outcome::Partial, "deeper than descriptors are held");
        remove(top.as_fd(), OsStr::new("deep")).unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        remove(top.as_fd(), OsStr::new("deep")).unwrap();
    }

    #[test]
    fn an_immutable_file_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("tree")).unwrap();
        let file = fs::File::create(temp.path().join("tree/file")).unwrap();
        let set = rustix::fs::ioctl_getflags(&file)
            .and_then(|flags| rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE));
        if let Err(errno) = set {
            println!("skip: immutable files cannot be made here: {errno}");
            return;
        }
        let top = open_trusted_dir(temp.path()).unwrap();
        remove(top.as_fd(), OsStr::new("tree")).unwrap();
        assert!(!temp.path().join("tree").exists());
    }
}
