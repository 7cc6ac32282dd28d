//! What a container changed in its root: its writable layer as a tar archive and a list of what it deleted.
//!
//! ```text
//! upper/FILE                 -> an entry FILE
//! upper/WHITEOUT (c 0 0)     -> deleted: /WHITEOUT
//! upper/DIR, opaque          -> an entry DIR; deleted: what the lower tree has in DIR and upper has not
//! ```
//!
//! See Documentation/filesystems/overlayfs.rst. The layer was filled by a container: nothing in it is followed, and nothing but
//! directories and regular files is opened. The container must stand still meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{self, Links};
use crate::entry::for_each_name;
use crate::tree::{self, Found, Limits, Outcome};

/// The most inodes with several links that are told as links of one another; further ones are copied.
const LINKED_MAX: usize = 1_000_000;

/// The most names of one lower directory that an opaque one hides.
const HIDDEN_MAX: usize = 1_000_000;

/// What there was.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Absolute container paths of what was deleted.
    pub deleted: Vec<PathBuf>,
    /// False: the layer is nested deeper than is looked at, or hides what is not known; the rest is told.
    pub complete: bool,
}

/// Why a writable layer could not be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot archive {path} of the writable layer")]
pub struct DiffError {
    /// What, below the layer.
    pub path: PathBuf,
    /// Why; also of the archive's writer.
    #[source]
    pub source: io::Error,
}

/// Writes the entries of `upper` to `archive`, but those that `skip` knows, by their paths below the root. `lower` is the tree below, which tells
/// what opaque directories hide.
///
/// # Errors
/// The first object that cannot be read, or written to `archive`.
pub fn write(
    upper: &Path,
    lower: Option<BorrowedFd<'_>>,
    skip: &dyn Fn(&Path) -> bool,
    archive: &mut tar::Builder<impl Write>,
) -> Result<Diff, DiffError> {
    let failed = |path: &[u8], errno: Errno| DiffError {
        path: PathBuf::from(OsStr::from_bytes(path)),
        source: errno.into(),
    };
    let top = beneath::open_trusted_dir(upper).map_err(|errno| failed(b".", errno))?;
    let mut writer =
        Writer { archive, lower, linked: HashMap::new(), opaque: None, diff: Diff::default(), whole: true };
    let limits = Limits { objects: u64::MAX, deadline: None };
    let outcome = tree::walk(top.as_fd(), limits, |found| {
        if !skip(Path::new(OsStr::from_bytes(found.path))) {
            writer.add(found).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        Ok(true)
    });
    let outcome = outcome.map_err(|failure| failed(&failure.path, failure.errno))?;
    writer.diff.complete = writer.whole && outcome == Outcome::Complete;
    Ok(writer.diff)
}

struct Writer<'a, W: Write> {
    archive: &'a mut tar::Builder<W>,
    lower: Option<BorrowedFd<'a>>,
    /// The first path of each inode with several.
    linked: HashMap<u64, PathBuf>,
    /// The last opaque directory: nothing below it is merged with the lower tree either.
    opaque: Option<PathBuf>,
    diff: Diff,
    whole: bool,
}

impl<W: Write> Writer<'_, W> {
    fn add(&mut self, found: &Found<'_>) -> io::Result<()> {
        let path = Path::new(OsStr::from_bytes(found.path));
        match found.kind {
            FileType::CharacterDevice if found.stat.st_rdev == 0 => {
                self.diff.deleted.push(Path::new("/").join(path));
                Ok(())
            }
            FileType::Directory => {
                self.special(path, tar::EntryType::Directory, found.stat)?;
                self.hidden(found, path)
            }
            FileType::RegularFile => self.regular(found, path),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(found.parent, found.name, Vec::new())?;
                let mut header = header(tar::EntryType::Symlink, found.stat);
                self.archive.append_link(&mut header, path, OsStr::from_bytes(target.as_bytes()))
            }
            FileType::Fifo => self.special(path, tar::EntryType::Fifo, found.stat),
            FileType::CharacterDevice => self.special(path, tar::EntryType::Char, found.stat),
            FileType::BlockDevice => self.special(path, tar::EntryType::Block, found.stat),
            // A socket is nothing without the process that listens; tar has no entry for it.
            _ => Ok(()),
        }
    }

    fn special(&mut self, path: &Path, kind: tar::EntryType, stat: &Stat) -> io::Result<()> {
        let mut header = header(kind, stat);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        }
        self.archive.append_data(&mut header, path, io::empty())
    }

    fn regular(&mut self, found: &Found<'_>, path: &Path) -> io::Result<()> {
        if found.stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&found.stat.st_ino) {
                let mut header = header(tar::EntryType::Link, found.stat);
                return self.archive.append_link(&mut header, path, first);
            }
            if self.linked.len() < LINKED_MAX {
                self.linked.insert(found.stat.st_ino, path.to_owned());
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(found.parent, found.name, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(Errno::AGAIN.into());
        }
        // Holes stay holes: a file that is larger than any disk is no trap.
        self.archive.append_file(path, &mut File::from(file))
    }

    /// What an opaque directory hides of the lower tree is deleted, but for what took its place.
    fn hidden(&mut self, found: &Found<'_>, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(found.parent, found.name, flags, Mode::empty())?;
        let mut value = [0_u8; 1];
        let within = self.opaque.as_deref().is_some_and(|opaque| path.starts_with(opaque));
        let opaque = within
            || match rustix::fs::fgetxattr(&dir, "trusted.overlay.opaque", &mut value[..]) {
                Ok(length) => length == 1 && value[0] == b'y',
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => false,
                Err(errno) => return Err(errno.into()),
            };
        if !opaque {
            return Ok(());
        }
        if !within {
            self.opaque = Some(path.to_owned());
        }
        let Some(lower) = self.lower else {
            self.whole = false;
            return Ok(());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let below = match beneath::open(lower, path, flags, Links::Beneath) {
            Ok(below) => below,
            // New altogether, or in the place of something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let deleted = &mut self.diff.deleted;
        self.whole &= for_each_name(below.as_fd(), HIDDEN_MAX, |_, name, _| {
            let kept = rustix::fs::statat(&dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok();
            if !kept {
                deleted.push(Path::new("/").join(path).join(name));
            }
            true
        })?;
        Ok(())
    }
}

fn header(kind: tar::EntryType, stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, XattrFlags};
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::{FileExt as _, symlink};
    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};

    fn told(upper: &Path, lower: &Path) -> (Diff, Vec<(String, tar::EntryType, Vec<u8>)>) {
        let lower = beneath::open_trusted_dir(lower).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let skip = |path: &Path| path == Path::new("etc/hosts");
        let diff = write(upper, Some(lower.as_fd()), &skip, &mut archive).unwrap();
        let bytes = archive.into_inner().unwrap();
        let mut read = tar::Archive::new(&bytes[..]);
        let entries = read
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut data = Vec::new();
                // As much of it as shows what it is.
                entry.by_ref().take(64).read_to_end(&mut data).unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().entry_type(), data)
            })
            .collect();
        (diff, entries)
    }

    #[test]
    fn a_layer_is_told_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let (upper, lower) = (temp.path().join("upper"), temp.path().join("lower"));
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::create_dir_all(lower.join("opaque/old")).unwrap();
        fs::write(lower.join("opaque/kept"), "").unwrap();
        fs::write(upper.join("etc/hosts"), "bound over").unwrap();
        fs::write(upper.join("etc/new"), "new").unwrap();
        fs::hard_link(upper.join("etc/new"), upper.join("etc/same")).unwrap();
        symlink("/etc/passwd", upper.join("link")).unwrap();
        rustix::fs::mkfifoat(CWD, upper.join("pipe"), Mode::RWXU).unwrap();
        fs::create_dir_all(upper.join("opaque/both")).unwrap();
        fs::create_dir_all(lower.join("opaque/both/below")).unwrap();
        fs::write(upper.join("opaque/kept"), "").unwrap();
        let whiteout =
            rustix::fs::mknodat(CWD, upper.join("gone"), FileType::CharacterDevice, Mode::empty(), 0);
        let opaque =
            rustix::fs::setxattr(upper.join("opaque"), "trusted.overlay.opaque", b"y", XattrFlags::empty());
        if whiteout.is_err() || opaque.is_err() {
            println!("skip: whiteouts cannot be made here");
            return;
        }
        let (diff, entries) = told(&upper, &lower);
        assert_eq!(
            diff,
            Diff {
                deleted: vec!["/gone".into(), "/opaque/old".into(), "/opaque/both/below".into()],
                complete: true
            }
        );
        let names: Vec<_> =
            entries.iter().map(|(name, kind, _)| (name.trim_end_matches('/'), *kind)).collect();
        assert_eq!(
            names,
            [
                ("etc", Directory),
                ("etc/new", Regular),
                ("etc/same", Link),
                ("link", Symlink),
                ("opaque", Directory),
                ("opaque/both", Directory),
                ("opaque/kept", Regular),
                ("pipe", Fifo),
            ]
        );
        assert_eq!(entries[1].2, b"new");
    }

    #[test]
    fn a_hole_larger_than_any_disk_is_a_hole() {
        let temp = tempfile::tempdir().unwrap();
        let upper = temp.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let file = fs::File::create(upper.join("sparse")).unwrap();
        file.write_all_at(b"data", 1 << 40).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        write(&upper, None, &|_| false, &mut archive).unwrap();
        assert!(archive.into_inner().unwrap().len() < 1 << 20);
    }

    #[test]
    fn a_full_disk_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(Errno::NOSPC.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("dir")).unwrap();
        let mut archive = tar::Builder::new(Full);
        let error = write(temp.path(), None, &|_| false, &mut archive).unwrap_err();
        assert_eq!(error.path, Path::new("dir"));
        assert_eq!(Errno::from_io_error(&error.source), Some(Errno::NOSPC));
        // Its end cannot be written either.
        std::mem::forget(archive);
    }
}
