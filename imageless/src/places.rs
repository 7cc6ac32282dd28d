//! The configured roots, and finding an entry below them.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::beneath::{self, Bases, WalkError};
use crate::entry::{self, Entry, EntryError};
use crate::reference::{Candidates, Reference};

/// The roots, in the order they are searched.
#[derive(Debug)]
pub(crate) struct Roots(Vec<PathBuf>);

/// What a look-up found.
#[derive(Debug)]
pub(crate) enum Found {
    /// The entry.
    Entry(Entry),
    /// None of these places holds one.
    Nothing(Vec<PathBuf>),
}

/// A look-up that must not go on: the place, and what is wrong with it.
#[derive(Debug)]
pub(crate) enum Blocked {
    /// The way to it.
    Walk(PathBuf, WalkError),
    /// The entry itself.
    Entry(PathBuf, EntryError),
}

/// A root that is no root: relative, or with `..` in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rootfs root {0} must be an absolute path without \"..\", and not \"/\"")]
pub struct InvalidRoot(pub PathBuf);

impl Roots {
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self, InvalidRoot> {
        let mut roots = Vec::new();
        for path in paths {
            let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
            // Collecting takes doubled and trailing slashes away: one root, one spelling, one id.
            let clean: PathBuf = path.components().collect();
            if !plain || clean.parent().is_none() {
                return Err(InvalidRoot(path.clone()));
            }
            if !roots.contains(&clean) {
                roots.push(clean);
            }
        }
        Ok(Self(roots))
    }

    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    pub(crate) fn index_of(&self, root: &Path) -> Option<usize> {
        self.0.iter().position(|path| path == root)
    }

    /// Opens the entry at `path` below root `index`.
    pub(crate) fn entry_at(
        &self,
        index: usize,
        path: &Path,
        named_by_config: bool,
    ) -> Result<Entry, Blocked> {
        let shown = || self.0[index].join(path);
        let place = beneath::walk(self, index, path).map_err(|error| Blocked::Walk(shown(), error))?;
        if place.path.as_os_str().is_empty() {
            // A link to a root, or to the parent of everything: never an entry.
            return Err(Blocked::Entry(shown(), EntryError::NotAnEntry));
        }
        entry::open(place.dir.as_fd(), &self.0[place.base], &place.path, named_by_config)
            .map_err(|error| Blocked::Entry(shown(), error))
    }

    /// Searches the roots in order for the first entry at one of the reference's places.
    pub(crate) fn find(&self, reference: &Reference) -> Result<Found, Blocked> {
        match reference.candidates() {
            Candidates::Below(paths) => self.first_of(&paths, false, reference.digest()),
            Candidates::Absolute(path) => match self.containing(&path) {
                Some((index, rest)) => self
                    .entry_at(index, &rest, false)
                    .map(Found::Entry)
                    .or_else(|blocked| absent(blocked).map(|place| Found::Nothing(vec![place]))),
                None => Ok(Found::Nothing(vec![path])),
            },
        }
    }

    /// Searches the roots for an alias's target, which is an entry whatever it holds.
    pub(crate) fn find_alias(&self, target: &Path) -> Result<Found, Blocked> {
        self.first_of(&[target.to_owned()], true, None)
    }

    fn first_of(
        &self,
        paths: &[PathBuf],
        named_by_config: bool,
        digest: Option<&str>,
    ) -> Result<Found, Blocked> {
        let mut searched = Vec::new();
        for index in 0..self.0.len() {
            for path in paths {
                match self.entry_at(index, path, named_by_config) {
                    // A digest names one content: only the entry whose id it is can be meant.
                    Ok(entry) if digest.is_none_or(|digest| digest == entry.id) => {
                        return Ok(Found::Entry(entry));
                    }
                    Ok(_) => searched.push(self.0[index].join(path)),
                    Err(blocked) => searched.push(absent(blocked)?),
                }
            }
        }
        Ok(Found::Nothing(searched))
    }
}

/// The place, where there simply is no entry; what needs a person's attention goes on as an error.
fn absent(blocked: Blocked) -> Result<PathBuf, Blocked> {
    match blocked {
        Blocked::Walk(
            place,
            WalkError::Missing | WalkError::NotADirectory(_) | WalkError::InsideEntry(_),
        )
        | Blocked::Entry(place, EntryError::NotAnEntry) => Ok(place),
        other => Err(other),
    }
}

impl Bases for Roots {
    fn open(&self, index: usize) -> Result<OwnedFd, Errno> {
        beneath::open_trusted_dir(&self.0[index])
    }

    /// As configured, or as the kernel calls it: a link may be absolute in either spelling.
    fn containing(&self, absolute: &Path) -> Option<(usize, PathBuf)> {
        let below = |root: &Path| absolute.strip_prefix(root).ok().map(Path::to_owned);
        let configured = self.0.iter().enumerate().find_map(|(index, root)| Some((index, below(root)?)));
        configured.or_else(|| {
            self.0
                .iter()
                .enumerate()
                .find_map(|(index, root)| Some((index, below(&fs::canonicalize(root).ok()?)?)))
        })
    }

    fn is_closed(&self, dir: BorrowedFd<'_>) -> bool {
        entry::is_entry(dir)
    }
}
