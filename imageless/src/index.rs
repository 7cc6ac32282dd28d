//! What is below the roots, and by which names: a cache of directory scans.
//!
//! References are found without it, by their path. It answers the other questions: which entry has this id, which names
//! itself so in its sidecar, and what is there at all. A scan lists the directories that lead to entries, never an entry's
//! tree, and is bounded in depth and number; a Nix or Guix store, with its hundred thousand paths, is not scanned: what
//! was pulled from it is known from its record.
//!
//! Each directory and configuration that was looked at leaves a stamp (device, inode, change time). While all stamps are
//! the same the index is current, so asking again costs one stat(2) per stamp; a stamp so young that a change in the same
//! clock tick could hide behind it is never trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;

use crate::beneath;
use crate::entry::{self, Entry, EntryError, Form};
use crate::image_config::ImageConfig;
use crate::places::{Blocked, Found, Roots};
use crate::records::Records;
use crate::reference::Reference;

/// Directories above an entry: `host/a/b/c/d/tag`.
const DEPTH_MAX: usize = 8;
/// Entries in all roots together.
const ENTRIES_MAX: usize = 10_000;
/// Names in one directory.
const NAMES_MAX: usize = 20_000;
/// Directories listed in one scan.
const DIRECTORIES_MAX: usize = 20_000;
/// Roots whose last components are these are stores: entries in them are known when they are named, not by listing.
const STORES: [&str; 2] = ["nix/store", "gnu/store"];
/// Age under which a change time proves nothing: the coarsest kernel clock tick is 10 ms.
const RACY: Duration = Duration::from_millis(50);

/// One entry as the index knows it.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    pub(crate) id: String,
    /// Which root, and the real path below it.
    pub(crate) root: usize,
    pub(crate) path: PathBuf,
    pub(crate) location: PathBuf,
    pub(crate) form: Form,
    pub(crate) named_by_config: bool,
    pub(crate) config: Arc<ImageConfig>,
    /// Its names with a tag, normal form, sorted.
    pub(crate) tags: Vec<String>,
    /// Its names with a digest.
    pub(crate) digests: Vec<String>,
}

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// By the key of the entry's place.
    pub(crate) entries: BTreeMap<String, Indexed>,
    /// id without `sha256:` -> key.
    pub(crate) by_id: BTreeMap<String, String>,
    /// Names that entries give themselves in their configuration -> key.
    pub(crate) by_own_name: BTreeMap<Reference, String>,
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
    /// A stamp was too young when it was taken.
    racy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    ctime: (i64, i64),
}

/// What the index is made from.
pub(crate) struct Sources<'a> {
    pub(crate) roots: &'a Roots,
    pub(crate) aliases: &'a BTreeMap<Reference, PathBuf>,
    pub(crate) records: &'a Records,
}

impl Index {
    /// Whether nothing that was looked at has changed since.
    pub(crate) fn is_current(&self) -> bool {
        !self.racy
            && !self.stamps.is_empty()
            && self.stamps.iter().all(|(path, stamp)| Stamp::of(path) == *stamp)
    }

    /// Scans everything.
    pub(crate) fn build(sources: &Sources<'_>) -> Self {
        let mut scan = Scan {
            sources,
            drafts: BTreeMap::new(),
            index: Self::default(),
            directories: 0,
            truncated: false,
            began: SystemTime::now(),
        };
        scan.aliases();
        for root in 0..sources.roots.paths().len() {
            scan.root(root);
        }
        scan.pulled();
        if scan.truncated {
            tracing::warn!(
                entries = scan.drafts.len(),
                "the rootfs roots hold more than is listed; entries can still be used by their path"
            );
        }
        scan.finish()
    }
}

impl Stamp {
    /// None where there is nothing to look at.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { dev: meta.dev(), ino: meta.ino(), ctime: (meta.ctime(), meta.ctime_nsec()) })
    }

    fn time(self) -> SystemTime {
        let seconds = u64::try_from(self.ctime.0).unwrap_or(0);
        let nanos = u64::try_from(self.ctime.1).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanos)
    }
}

/// An entry before its names are settled.
struct Draft {
    entry: Entry,
    root: usize,
    named_by_config: bool,
    /// Aliases, which decide.
    aliases: BTreeSet<Reference>,
    /// Paths below a root that lead to it: its own, and links.
    paths: BTreeSet<(usize, PathBuf)>,
}

struct Scan<'a> {
    sources: &'a Sources<'a>,
    drafts: BTreeMap<String, Draft>,
    index: Index,
    directories: usize,
    truncated: bool,
    began: SystemTime,
}

impl Scan<'_> {
    fn stamp(&mut self, path: PathBuf) {
        let stamp = Stamp::of(&path);
        if let Some(stamp) = stamp {
            self.index.racy |= stamp.time() + RACY > self.began;
        }
        self.index.stamps.insert(path, stamp);
    }

    fn aliases(&mut self) {
        for (reference, target) in self.sources.aliases {
            for root in self.sources.roots.paths() {
                self.stamp(root.join(target));
            }
            match self.sources.roots.find_alias(target) {
                Ok(Found::Entry(entry)) => {
                    if let Some(draft) = self.add(entry, true) {
                        draft.aliases.insert(reference.clone());
                    }
                }
                Ok(Found::Nothing(_)) => {}
                Err(blocked) => report(&blocked),
            }
        }
    }

    fn root(&mut self, root: usize) {
        let path = self.sources.roots.paths()[root].clone();
        self.stamp(path.clone());
        if STORES.iter().any(|store| path.ends_with(store)) {
            return;
        }
        match beneath::open_trusted_dir(&path) {
            Ok(dir) => self.directory(root, dir.as_fd(), Path::new(""), 0),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => tracing::warn!(root = %path.display(), %error, "cannot open a rootfs root"),
        }
    }

    fn directory(&mut self, root: usize, dir: BorrowedFd<'_>, path: &Path, depth: usize) {
        self.directories += 1;
        if self.directories > DIRECTORIES_MAX || depth > DEPTH_MAX {
            self.truncated = true;
            return;
        }
        let mut names = Vec::new();
        let listed = entry::for_each_name(dir, NAMES_MAX, |_, name, kind| {
            let hidden = name.to_str().is_none_or(|name| name.starts_with('.'));
            if !hidden && matches!(kind, FileType::Directory | FileType::Symlink) {
                names.push((name.to_owned(), kind));
            }
            true
        });
        self.truncated |= !matches!(listed, Ok(true));
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, kind) in names {
            if self.drafts.len() >= ENTRIES_MAX {
                self.truncated = true;
                return;
            }
            self.child(root, dir, path, &name, kind, depth);
        }
    }

    fn child(
        &mut self,
        root: usize,
        parent: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
        kind: FileType,
        depth: usize,
    ) {
        let path = path.join(name);
        let full = self.sources.roots.paths()[root].join(&path);
        match self.sources.roots.entry_at(root, &path, false) {
            Ok(entry) => {
                self.stamp(full);
                if let Some(draft) = self.add(entry, false) {
                    draft.paths.insert((root, path));
                }
            }
            Err(Blocked::Entry(_, EntryError::NotAnEntry)) => {
                self.stamp(full);
                // A link is not descended into: what it leads to is below a root, and found there.
                if kind == FileType::Directory
                    && let Ok(dir) = beneath::open_entry(parent, name)
                {
                    self.directory(root, dir.as_fd(), &path, depth + 1);
                }
            }
            // Dangling links and links to files are nobody's entries; the rest is worth a line.
            Err(blocked @ Blocked::Entry(..)) => {
                self.stamp(full);
                report(&blocked);
            }
            Err(blocked) => {
                tracing::debug!(place = %full.display(), ?blocked, "not an entry");
            }
        }
    }

    fn pulled(&mut self) {
        for (root, path) in self.sources.records.pulled() {
            let known = self.drafts.contains_key(&entry::key(&root, &path));
            let Some(index) = self.sources.roots.index_of(&root).filter(|_| !known) else { continue };
            self.stamp(root.join(&path));
            if let Ok(entry) = self.sources.roots.entry_at(index, &path, false)
                && let Some(draft) = self.add(entry, false)
            {
                draft.paths.insert((index, path));
            }
        }
    }

    fn add(&mut self, entry: Entry, named_by_config: bool) -> Option<&mut Draft> {
        let key = entry.key();
        let root = self.sources.roots.index_of(&entry.root)?;
        let real = entry.root.join(&entry.path);
        if !self.drafts.contains_key(&key) {
            self.stamp(real.clone());
            if entry.form != Form::Bare || !entry.tree_path.as_os_str().is_empty() {
                for name in ["image.json", "config.json"] {
                    self.stamp(real.join(name));
                }
            }
        }
        Some(self.drafts.entry(key).or_insert_with(|| Draft {
            entry,
            root,
            named_by_config,
            aliases: BTreeSet::new(),
            paths: BTreeSet::new(),
        }))
    }

    /// Settles who has which name: an alias before a path, a path before a configuration's own word. A sidecar can so
    /// never take a name away from another entry.
    fn finish(mut self) -> Index {
        let drafts = std::mem::take(&mut self.drafts);
        for (key, draft) in drafts {
            let mut names = draft.aliases.clone();
            for name in draft.entry.config.names() {
                if self.may_claim(&name, &key) {
                    self.index.by_own_name.insert(name.clone(), key.clone());
                    names.insert(name);
                }
            }
            if names.is_empty() {
                names.extend(draft.paths.iter().filter_map(|(root, path)| self.path_name(*root, path, &key)));
            }
            let (digests, tags): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| name.digest().is_some());
            let print = |names: Vec<Reference>| names.iter().map(ToString::to_string).collect();
            let indexed = Indexed {
                id: draft.entry.id.clone(),
                root: draft.root,
                location: draft.entry.location(),
                form: draft.entry.form,
                named_by_config: draft.named_by_config,
                tags: print(tags),
                digests: print(digests),
                config: draft.entry.config,
                path: draft.entry.path,
            };
            self.index.by_id.insert(indexed.id.trim_start_matches("sha256:").to_owned(), key.clone());
            self.index.entries.insert(key, indexed);
        }
        self.index
    }

    fn may_claim(&self, name: &Reference, key: &str) -> bool {
        !self.sources.aliases.contains_key(name)
            && !self.index.by_own_name.contains_key(name)
            && match self.sources.roots.find(name) {
                Ok(Found::Entry(entry)) => entry.key() == key,
                Ok(Found::Nothing(_)) => true,
                Err(_) => false,
            }
    }

    /// The implicit name of a path, where that name leads back to this entry and not to an alias or another root.
    fn path_name(&self, root: usize, path: &Path, key: &str) -> Option<Reference> {
        let components: Vec<&str> = path.iter().map(OsStr::to_str).collect::<Option<_>>()?;
        let root = &self.sources.roots.paths()[root];
        let store = STORES.iter().any(|store| root.ends_with(store));
        let absolute = root.join(path);
        let names = [
            if store {
                Reference::store_of_path(absolute.to_str()?)
            } else {
                Reference::of_path(&components)
            },
            Reference::local_of_path(&components),
        ];
        names.into_iter().flatten().find(|name| {
            !self.sources.aliases.contains_key(name)
                && matches!(self.sources.roots.find(name), Ok(Found::Entry(entry)) if entry.key() == key)
        })
    }
}

fn report(blocked: &Blocked) {
    let (place, error): (_, &dyn std::error::Error) = match blocked {
        Blocked::Walk(place, error) => (place, error),
        Blocked::Entry(place, error) => (place, error),
    };
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    tracing::warn!(place = %place.display(), %error, cause, "a directory below a rootfs root cannot be used");
}
