//! One directory that can be run from, in one of its forms, and what identifies it.
//!
//! How a directory is recognised as an entry (a directory that only holds other entries, such as `registry.k8s.io/`,
//! must not be one):
//!
//! | It holds | Form | Tree |
//! |---|---|---|
//! | `rootfs/` and `image.json`, or `rootfs/` and a `config.json` of the image-spec | [`Form::Sidecar`] | `rootfs/` |
//! | `rootfs/` and a `config.json` of the runtime-spec | [`Form::Bundle`] | `rootfs/` |
//! | `bin`, `sbin`, `usr`, `etc`, `lib`, `lib64`, `nix/store` or `gnu/store` | [`Form::Bare`] | itself |
//! | `rootfs/` and nothing of the above | [`Form::Bare`] | `rootfs/` |
//! | an executable file, and no directory but those of the file system hierarchy | [`Form::Bare`] | itself |
//!
//! The last row is for static programs: `/pause` beside empty `dev`, `proc`, `sys`. A tree of data alone is made an entry
//! by putting it into a `rootfs/`, or by an alias: what the configuration names is an entry whatever it holds.
//!
//! `rootfs` and the configuration may be links, as long as they stay beneath the entry.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::beneath::{self, FileError, Links, Only, WalkError};
use crate::image_config::{CONFIG_MAX_BYTES, ConfigError, Dialect, ImageConfig};

const TREE: &str = "rootfs";
const SIDECAR: &str = "image.json";
const BUNDLE: &str = "config.json";
/// Names that a root file system has and a registry's directory has not.
const ROOT_MARKS: [&str; 8] = ["etc", "usr", "bin", "sbin", "lib", "lib64", "nix/store", "gnu/store"];
/// Directories that a root with nothing but a static program may have.
const BARE_DIRS: [&[u8]; 17] = [
    b"app",
    b"boot",
    b"data",
    b"dev",
    b"home",
    b"media",
    b"mnt",
    b"opt",
    b"proc",
    b"root",
    b"run",
    b"srv",
    b"sys",
    b"tmp",
    b"var",
    b"work",
    b"workspace",
];
/// Names looked at when an executable is searched for.
const NAMES_MAX: usize = 4096;

/// What a directory is an entry by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A root filesystem without a configuration.
    Bare,
    /// An OCI bundle: `rootfs/` and a runtime-spec `config.json`.
    Bundle,
    /// `rootfs/` and an OCI image configuration.
    Sidecar,
}

/// An entry, found and open. Holding it pins the directory: a version switch after this does not affect it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `sha256:` and 64 digits; see [`crate::library`] for what it covers.
    pub id: String,
    /// The configured root it is below.
    pub root: PathBuf,
    /// Its real path below that root, links resolved.
    pub path: PathBuf,
    /// What it is.
    pub form: Form,
    /// Its defaults; empty for a bare directory.
    pub config: Arc<ImageConfig>,
    /// The part of `path` that holds the tree: empty, or `rootfs`.
    pub(crate) tree_path: PathBuf,
    tree: Arc<OwnedFd>,
}

/// Why a directory that was found is not a usable entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// It is a directory, but nothing marks it as a root filesystem, bundle or sidecar.
    #[error("nothing in it marks a root filesystem (etc, usr, bin, …), a bundle or a sidecar")]
    NotAnEntry,
    /// Its `rootfs` does not lead to a directory beneath it.
    #[error("its rootfs cannot be opened")]
    Tree(#[source] WalkError),
    /// Its configuration cannot be read.
    #[error("its configuration cannot be read")]
    File(#[from] FileError),
    /// Its configuration was refused.
    #[error("its {name} is refused")]
    Config {
        /// `image.json` or `config.json`.
        name: &'static str,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// Its path cannot be written down in a record or a message.
    #[error("its path is not UTF-8")]
    NotUtf8,
    /// The directory could not be looked at.
    #[error("it cannot be read")]
    Os(#[from] Errno),
}

impl Entry {
    /// A handle on the directory that becomes the container's root. It is the entry itself: open it for reading only.
    pub fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// The path of the tree, for messages and records; using it again may find another directory.
    pub fn location(&self) -> PathBuf {
        let entry = self.root.join(&self.path);
        if self.tree_path.as_os_str().is_empty() { entry } else { entry.join(&self.tree_path) }
    }

    /// What records about this entry are kept under: the entry's place, whatever its configuration says.
    pub(crate) fn key(&self) -> String {
        key(&self.root, &self.path)
    }
}

/// Hash of an entry's place: file name of its record.
pub(crate) fn key(root: &Path, path: &Path) -> String {
    let mut hash = Sha256::new();
    field(&mut hash, b"podwright entry 1");
    field(&mut hash, root.as_os_str().as_bytes());
    field(&mut hash, path.as_os_str().as_bytes());
    hex(&hash.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Feeds one length-prefixed field, so that no two lists of fields hash alike.
pub(crate) fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Whether a directory is an entry; cheap enough to be asked for every component of a look-up.
pub(crate) fn is_entry(dir: BorrowedFd<'_>) -> bool {
    has_tree(dir) || has_root_marks(dir) || is_static_root(dir).unwrap_or(false)
}

/// Opens the entry whose directory is `dir`. `named_by_config`: an alias names it, so it needs no marks.
pub(crate) fn open(
    dir: BorrowedFd<'_>,
    root: &Path,
    path: &Path,
    named_by_config: bool,
) -> Result<Entry, EntryError> {
    if path.to_str().is_none() {
        return Err(EntryError::NotUtf8);
    }
    let (form, tree_path, name, bytes, config) = read_forms(dir, named_by_config)?;
    let (tree_path, tree) = if tree_path.is_empty() {
        (PathBuf::new(), rustix::io::fcntl_dupfd_cloexec(dir, 3)?)
    } else {
        let place = beneath::walk(&Only(dir), 0, Path::new(tree_path)).map_err(EntryError::Tree)?;
        (place.path, place.dir)
    };
    let mut hash = Sha256::new();
    field(&mut hash, b"podwright image 1");
    field(&mut hash, root.as_os_str().as_bytes());
    field(&mut hash, path.as_os_str().as_bytes());
    field(&mut hash, tree_path.as_os_str().as_bytes());
    field(&mut hash, name.as_bytes());
    field(&mut hash, &bytes);
    Ok(Entry {
        id: format!("sha256:{}", hex(&hash.finalize())),
        root: root.to_owned(),
        path: path.to_owned(),
        form,
        config: Arc::new(config),
        tree_path,
        tree: Arc::new(tree),
    })
}

type Read = (Form, &'static str, &'static str, Vec<u8>, ImageConfig);

fn read_forms(dir: BorrowedFd<'_>, named_by_config: bool) -> Result<Read, EntryError> {
    let bare = |tree| (Form::Bare, tree, "", Vec::new(), ImageConfig::default());
    if has_tree(dir) {
        for name in [SIDECAR, BUNDLE] {
            let bytes = beneath::read_regular(dir, Path::new(name), Links::Beneath, CONFIG_MAX_BYTES)?;
            let Some(bytes) = bytes else { continue };
            let (config, dialect) =
                ImageConfig::parse(&bytes).map_err(|source| EntryError::Config { name, source })?;
            let form = match dialect {
                Dialect::Runtime => Form::Bundle,
                Dialect::Image => Form::Sidecar,
            };
            return Ok((form, TREE, name, bytes, config));
        }
        return Ok(bare(if has_root_marks(dir) { "" } else { TREE }));
    }
    if named_by_config || has_root_marks(dir) || is_static_root(dir)? {
        return Ok(bare(""));
    }
    Err(EntryError::NotAnEntry)
}

fn has_tree(dir: BorrowedFd<'_>) -> bool {
    beneath::open_dir(dir, Path::new(TREE), Links::Beneath).is_ok()
}

/// A directory or a link of one of the names: merged-/usr roots have `bin -> usr/bin`, maybe absolute. Never followed.
fn has_root_marks(dir: BorrowedFd<'_>) -> bool {
    ROOT_MARKS.iter().any(|name| {
        rustix::fs::statat(dir, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            matches!(FileType::from_raw_mode(stat.st_mode), FileType::Directory | FileType::Symlink)
        })
    })
}

fn is_static_root(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut executable = false;
    let mut other_directory = false;
    for_each_name(dir, NAMES_MAX, |dir, name, kind| {
        match kind {
            FileType::Directory if !BARE_DIRS.contains(&name.as_bytes()) => other_directory = true,
            FileType::RegularFile if !executable => {
                executable = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR));
            }
            _ => {}
        }
        !other_directory
    })?;
    Ok(executable && !other_directory)
}

/// Calls `each` for at most `max` names of a directory until it says false, with the type the directory tells (asked for
/// where the filesystem does not tell). Answers whether it got to see all names.
pub(crate) fn for_each_name(
    dir: BorrowedFd<'_>,
    max: usize,
    mut each: impl FnMut(BorrowedFd<'_>, &OsStr, FileType) -> bool,
) -> Result<bool, Errno> {
    let readable = rustix::fs::openat(
        dir,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut names = RawDir::new(&readable, &mut buffer);
    let mut seen = 0;
    while let Some(item) = names.next() {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if seen == max {
            return Ok(false);
        }
        seen += 1;
        let name = OsStr::from_bytes(name);
        let kind = match item.file_type() {
            FileType::Unknown => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            kind => kind,
        };
        if !each(dir, name, kind) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn open_at(dir: &Path) -> Result<Entry, EntryError> {
        let fd = beneath::open_trusted_dir(dir).unwrap();
        open(fd.as_fd(), Path::new("/root"), Path::new("x"), false)
    }

    #[test]
    fn each_form_is_recognised() {
        let temp = tempfile::tempdir().unwrap();
        let make = |name: &str, dirs: &[&str]| {
            let dir = temp.path().join(name);
            for sub in dirs {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let form =
            |dir: &Path| open_at(dir).map(|entry| (entry.form, entry.tree_path.to_str().unwrap().to_owned()));

        let bare = make("bare", &["etc"]);
        assert_eq!(form(&bare).unwrap(), (Form::Bare, String::new()));
        let tree = make("tree", &["rootfs/data"]);
        assert_eq!(form(&tree).unwrap(), (Form::Bare, "rootfs".to_owned()));
        let both = make("both", &["rootfs", "usr"]);
        assert_eq!(form(&both).unwrap(), (Form::Bare, String::new()));

        let bundle = make("bundle", &["rootfs"]);
        fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#).unwrap();
        assert_eq!(form(&bundle).unwrap(), (Form::Bundle, "rootfs".to_owned()));
        let before = open_at(&bundle).unwrap().id;
        fs::write(bundle.join("config.json"), r#"{"architecture":"amd64","config":{}}"#).unwrap();
        assert_eq!(form(&bundle).unwrap(), (Form::Sidecar, "rootfs".to_owned()));
        assert_ne!(open_at(&bundle).unwrap().id, before, "the id covers the configuration");
        fs::write(bundle.join("image.json"), r#"{"config":{"Cmd":["sh"]}}"#).unwrap();
        assert_eq!(open_at(&bundle).unwrap().config.cmd, ["sh"], "image.json goes before config.json");

        let registry = make("registry.k8s.io", &["pause/etc", "dev/app/etc"]);
        fs::write(registry.join("update.sh"), "").unwrap();
        fs::set_permissions(registry.join("update.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(form(&registry), Err(EntryError::NotAnEntry)));

        let program = make("static", &["dev", "proc"]);
        assert!(matches!(form(&program), Err(EntryError::NotAnEntry)));
        fs::write(program.join("pause"), "").unwrap();
        fs::set_permissions(program.join("pause"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(form(&program).unwrap(), (Form::Bare, String::new()));
    }

    #[test]
    fn a_rootfs_that_leads_out_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let entry = temp.path().join("entry");
        fs::create_dir_all(entry.join("v1/etc")).unwrap();
        fs::write(entry.join("image.json"), r#"{"config":{}}"#).unwrap();
        symlink("v1", entry.join("rootfs")).unwrap();
        assert_eq!(open_at(&entry).unwrap().tree_path, Path::new("v1"));
        for target in ["/etc", "..", "../..", "loop"] {
            fs::remove_file(entry.join("rootfs")).unwrap();
            symlink(target, entry.join("rootfs")).unwrap();
            assert!(matches!(open_at(&entry), Err(EntryError::NotAnEntry)), "{target}");
        }
    }

    #[test]
    fn hostile_configurations_neither_hang_nor_grow() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::create_dir(dir.join("rootfs")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("image.json"), Mode::RUSR).unwrap();
        assert!(matches!(open_at(dir), Err(EntryError::File(FileError::NotRegular { .. }))));
        fs::remove_file(dir.join("image.json")).unwrap();
        fs::File::create(dir.join("image.json")).unwrap().set_len(4 << 30).unwrap();
        assert!(matches!(open_at(dir), Err(EntryError::File(FileError::TooLarge { .. }))));
        fs::remove_file(dir.join("image.json")).unwrap();
        symlink("/etc/passwd", dir.join("image.json")).unwrap();
        assert!(matches!(open_at(dir), Err(EntryError::File(FileError::Open { .. }))));
        fs::remove_file(dir.join("image.json")).unwrap();
        fs::write(dir.join("image.json"), "{").unwrap();
        assert!(matches!(open_at(dir), Err(EntryError::Config { name: "image.json", .. })));
    }
}
