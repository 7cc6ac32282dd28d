//! Proof that a tree is what it was: a digest of everything in it that a container could see.
//!
//! Covered are, in the byte order of paths: each object's path, type, permissions and owner, a file's contents, a link's
//! target, a device's number, and the extended attributes of directories and regular files (capabilities and ACLs among
//! them). Not covered: times, hard-link structure, and `security.selinux`, which is the host's view and not the tree's.
//! A copy made with `cp -a` or `rsync -aX` has the same digest, on any machine.
//!
//! The seal is `<state>/images/<key>.seal`, JSON; it also tells the image's size, so a sealed tree is never measured.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic::{self, Durability};
use crate::beneath;
use crate::entry::{Entry, field, hex};
use crate::tree::{self, Limits, Outcome};

/// Largest record of a seal.
const RECORD_MAX_BYTES: u64 = 64 << 10;
/// Largest list of names, or value, of an extended attribute (`XATTR_LIST_MAX` and `XATTR_SIZE_MAX`).
const XATTR_MAX_BYTES: usize = 64 << 10;
/// Labels of the host's policy, not of the tree.
const IGNORED_XATTR: &[u8] = b"security.selinux";

/// The recorded digest of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// `sha256:` and 64 digits, over the tree alone: the same for equal trees anywhere.
    pub digest: String,
    /// Bytes of its regular files.
    pub bytes: u64,
    /// Objects in it.
    pub objects: u64,
}

/// What comparing a tree with its seal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// It was never sealed.
    NotSealed,
    /// It is what it was.
    Intact(Seal),
    /// It is not.
    Changed {
        /// What was recorded.
        sealed: Seal,
        /// What is there.
        found: Seal,
    },
}

/// Why a tree could not be sealed or compared.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Something in it could not be read.
    #[error("cannot read {path}")]
    Tree {
        /// Path inside the tree; empty is the tree itself.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It is nested deeper than is walked.
    #[error("the tree is nested too deeply to be sealed")]
    TooDeep,
    /// The record could not be read or written.
    #[error("cannot use the seal {path}")]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Records the digest of the entry's tree.
pub(crate) fn seal(entry: &Entry, dir: &Path) -> Result<Seal, SealError> {
    let seal = digest(entry.tree())?;
    let path = path_of(dir, &entry.key());
    serde_json::to_vec(&seal)
        .map_err(io::Error::from)
        .and_then(|json| atomic::write(&path, &json, Durability::PowerLoss))
        .map_err(|source| SealError::Record { path, source })?;
    Ok(seal)
}

/// Compares the entry's tree with its seal.
pub(crate) fn verify(entry: &Entry, dir: &Path) -> Result<Verification, SealError> {
    let path = path_of(dir, &entry.key());
    let sealed = match read(&path) {
        Ok(seal) => seal,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Verification::NotSealed),
        // A seal that cannot be read proves nothing, and must not pass for "never sealed".
        Err(source) => return Err(SealError::Record { path, source }),
    };
    let found = digest(entry.tree())?;
    Ok(if sealed == found { Verification::Intact(found) } else { Verification::Changed { sealed, found } })
}

/// The seal of the entry with this key, if there is a readable one.
pub(crate) fn recorded(dir: &Path, key: &str) -> Option<Seal> {
    read(&path_of(dir, key)).ok()
}

fn path_of(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.seal"))
}

fn read(path: &Path) -> io::Result<Seal> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(RECORD_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The digest of the tree below `top`.
pub fn digest(top: BorrowedFd<'_>) -> Result<Seal, SealError> {
    let mut hash = Sha256::new();
    let (mut bytes, mut objects) = (0_u64, 0_u64);
    let mut buffers = Buffers::default();
    field(&mut hash, b"podwright tree 1");
    let root = rustix::fs::fstat(top).and_then(|stat| {
        add_object(&mut hash, b"", &stat);
        add_xattrs(&mut hash, readable(top)?.as_fd(), &mut buffers)
    });
    root.map_err(|source| SealError::Tree { path: PathBuf::new(), source })?;
    let limits = Limits { objects: u64::MAX, deadline: None };
    let outcome = tree::walk(top, limits, |found| {
        objects += 1;
        let handle = beneath::open_entry(found.parent, found.name)?;
        // The object behind the handle counts, not the one the name was a moment ago.
        let stat = rustix::fs::fstat(&handle)?;
        add_object(&mut hash, found.path, &stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                bytes += beneath::size_of(&stat);
                let file = readable(handle.as_fd())?;
                add_xattrs(&mut hash, file.as_fd(), &mut buffers)?;
                add_contents(&mut hash, file.as_fd(), &mut buffers)?;
            }
            FileType::Directory => {
                add_xattrs(&mut hash, readable(handle.as_fd())?.as_fd(), &mut buffers)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&handle, c"", Vec::new())?;
                field(&mut hash, target.as_bytes());
            }
            _ => {}
        }
        Ok(true)
    });
    match outcome {
        Ok(Outcome::Complete) => {
            Ok(Seal { digest: format!("sha256:{}", hex(&hash.finalize())), bytes, objects })
        }
        Ok(Outcome::Partial) => Err(SealError::TooDeep),
        Err(failure) => Err(SealError::Tree {
            path: PathBuf::from(String::from_utf8_lossy(&failure.path).into_owned()),
            source: failure.errno,
        }),
    }
}

fn add_object(hash: &mut Sha256, path: &[u8], stat: &rustix::fs::Stat) {
    field(hash, path);
    hash.update(stat.st_mode.to_le_bytes());
    hash.update(stat.st_uid.to_le_bytes());
    hash.update(stat.st_gid.to_le_bytes());
    let device =
        matches!(FileType::from_raw_mode(stat.st_mode), FileType::CharacterDevice | FileType::BlockDevice);
    hash.update(if device { stat.st_rdev } else { 0 }.to_le_bytes());
}

/// Reused from object to object.
struct Buffers {
    contents: Vec<u8>,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            contents: vec![0; 128 << 10],
            names: vec![0; XATTR_MAX_BYTES],
            value: vec![0; XATTR_MAX_BYTES],
        }
    }
}

/// A mere handle has neither contents nor attributes to ask for. Access times are left alone where we may (the owner, root).
fn readable(handle: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    match beneath::reopen(handle, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => beneath::reopen(handle, flags),
        other => other,
    }
}

fn add_contents(hash: &mut Sha256, file: BorrowedFd<'_>, buffers: &mut Buffers) -> Result<(), Errno> {
    let mut contents = Sha256::new();
    loop {
        match rustix::io::read(file, buffers.contents.as_mut_slice()) {
            Ok(0) => break,
            Ok(length) => contents.update(&buffers.contents[..length]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    field(hash, &contents.finalize());
    Ok(())
}

fn add_xattrs(hash: &mut Sha256, file: BorrowedFd<'_>, buffers: &mut Buffers) -> Result<(), Errno> {
    let length = match rustix::fs::flistxattr(file, buffers.names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut names: Vec<&[u8]> =
        buffers.names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.retain(|name| *name != IGNORED_XATTR);
    hash.update((names.len() as u64).to_le_bytes());
    for name in names {
        let length = rustix::fs::fgetxattr(file, name, buffers.value.as_mut_slice())?;
        field(hash, name);
        field(hash, &buffers.value[..length]);
    }
    Ok(())
}
