//! Paths inside the container's root: found, and made where they are missing, without ever leaving it (openat2(2)).
//!
//! What the image's author controls is only ever looked up by the kernel with `RESOLVE_IN_ROOT`: an absolute link and a `..` at the
//! top stay inside, as they will once the root is entered. A look-up ends in a descriptor, and that
//! descriptor is what is mounted on. Handles are `O_PATH`: opening a FIFO or a device that way waits for nobody.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links that lead to nothing yet, followed for one path before it is called a loop; the kernel's own limit.
const LINKS_MAX: usize = 40;
/// Repetitions of openat2 when a rename anywhere on the machine made it unsure (EAGAIN).
const RETRIES_MAX: usize = 128;

/// Whether symbolic links on the way are followed, inside the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Yes.
    Follow,
    /// One anywhere in the path is ELOOP: the path means itself.
    Refuse,
}

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// An empty regular file.
    File,
}

/// A place to mount on.
#[derive(Debug)]
pub(crate) struct Point {
    /// The file or directory.
    pub(crate) fd: OwnedFd,
    /// It was there before.
    pub(crate) existed: bool,
}

/// openat2(2) of `path` as a process whose root is `root` sees it; `O_CLOEXEC` is added.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let mut retries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if retries < RETRIES_MAX => retries += 1,
            other => return other,
        }
    }
}

/// The place at `path`, made with all its parents where it is missing. What exists is taken as it is, whatever its kind.
pub(crate) fn point(root: BorrowedFd<'_>, path: &Path, kind: Kind, links: Links) -> Result<Point, Errno> {
    match open(root, path, OFlags::PATH, links) {
        Ok(fd) => Ok(Point { fd, existed: true }),
        Err(Errno::NOENT) => create(root, path, kind, links).map(|fd| Point { fd, existed: false }),
        Err(errno) => Err(errno),
    }
}

/// The directory that `path` is in, made where it is missing, and the last name of `path`.
pub(crate) fn parent<'a>(root: BorrowedFd<'_>, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let above = path.parent().ok_or(Errno::INVAL)?;
    let directory = point(root, above, Kind::Directory, Links::Follow)?.fd;
    Ok((directory, name))
}

fn create(root: BorrowedFd<'_>, path: &Path, kind: Kind, links: Links) -> Result<OwnedFd, Errno> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match try_create(root, &path, kind, links)? {
            Step::Done(fd) => return Ok(fd),
            Step::Through(elsewhere) => path = elsewhere,
        }
    }
    Err(Errno::LOOP)
}

/// How far one attempt came.
enum Step {
    Done(OwnedFd),
    /// A link that leads to nothing yet: what it stands for, with the rest of the path.
    Through(PathBuf),
}

fn try_create(root: BorrowedFd<'_>, path: &Path, kind: Kind, links: Links) -> Result<Step, Errno> {
    let (mut directory, base) = deepest(root, path, links)?;
    let missing = path.strip_prefix(base).map_err(|_| Errno::INVAL)?;
    let mut so_far = base.to_owned();
    let mut components = missing.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else { return Err(Errno::NOENT) };
        let last = components.peek().is_none();
        let made = if last && kind == Kind::File {
            make_file(directory.as_fd(), name)
        } else {
            make_directory(directory.as_fd(), name)
        };
        match made {
            Ok(fd) => directory = fd,
            Err(errno @ (Errno::NOTDIR | Errno::LOOP | Errno::EXIST)) => {
                let Some(target) = link_target(directory.as_fd(), name) else { return Err(errno) };
                if links == Links::Refuse {
                    return Err(Errno::LOOP);
                }
                // An absolute target replaces what came before it, which makes it the root's own.
                let elsewhere = so_far.join(target).join(components.collect::<PathBuf>());
                return Ok(Step::Through(elsewhere));
            }
            Err(errno) => return Err(errno),
        }
        so_far.push(name);
    }
    Ok(Step::Done(directory))
}

/// The deepest directory above `path` that exists, and which of its ancestors that is.
fn deepest<'a>(root: BorrowedFd<'_>, path: &'a Path, links: Links) -> Result<(OwnedFd, &'a Path), Errno> {
    for ancestor in path.ancestors().skip(1) {
        match open(root, ancestor, OFlags::PATH | OFlags::DIRECTORY, links) {
            Ok(fd) => return Ok((fd, ancestor)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::NOENT)
}

fn make_directory(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
        // Somebody was faster, or it is a link: the next call tells.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn make_file(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))
}

/// Where the link `name` leads; None: it is no link.
fn link_target(directory: BorrowedFd<'_>, name: &OsStr) -> Option<PathBuf> {
    let target = rustix::fs::readlinkat(directory, name, Vec::new()).ok()?;
    Some(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (dir, fd)
    }

    fn make(fd: &OwnedFd, path: &str, kind: Kind) -> Result<Point, Errno> {
        point(fd.as_fd(), Path::new(path), kind, Links::Follow)
    }

    #[test]
    fn missing_parents_and_the_point_itself_are_made() {
        let (dir, fd) = root();
        assert!(!make(&fd, "/a/b/c", Kind::Directory).unwrap().existed);
        assert!(dir.path().join("a/b/c").is_dir());
        make(&fd, "/a/x/file", Kind::File).unwrap();
        assert!(dir.path().join("a/x/file").is_file());
        assert!(make(&fd, "/a/b/c", Kind::File).unwrap().existed);
    }

    #[test]
    fn links_stay_inside_whether_they_lead_somewhere_or_not() {
        let (dir, fd) = root();
        symlink("/run", dir.path().join("var-run")).unwrap();
        symlink("../../../../../etc/deep", dir.path().join("up")).unwrap();
        make(&fd, "/var-run/secrets/x", Kind::Directory).unwrap();
        assert!(dir.path().join("run/secrets/x").is_dir());
        make(&fd, "/up", Kind::File).unwrap();
        assert!(dir.path().join("etc/deep").is_file());
        symlink("/etc/new", dir.path().join("file")).unwrap();
        make(&fd, "/file", Kind::File).unwrap();
        assert!(dir.path().join("etc/new").is_file());
    }

    #[test]
    fn a_link_is_refused_where_the_path_must_mean_itself() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("proc")).unwrap();
        symlink("nothing", dir.path().join("sys")).unwrap();
        for path in ["/proc", "/sys", "/proc/x"] {
            let refused = point(fd.as_fd(), Path::new(path), Kind::Directory, Links::Refuse);
            assert_eq!(refused.unwrap_err(), Errno::LOOP, "{path}");
        }
    }

    #[test]
    fn loops_and_files_on_the_way_end() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(make(&fd, "/a/x", Kind::Directory).unwrap_err(), Errno::LOOP);
        assert_eq!(make(&fd, "/file/x", Kind::Directory).unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn a_fifo_does_not_hang() {
        let (dir, fd) = root();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(make(&fd, "/fifo", Kind::File).unwrap().existed);
    }
}
