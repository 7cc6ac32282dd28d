//! The images of a node: everything below the configured roots, by reference and by id.
//!
//! # Names
//! A reference is looked for among the aliases, then by its path below each root in order, then among the names that
//! configurations give themselves ([`crate::image_config::NAME_LABEL`]). An entry that an alias or its own configuration
//! names is listed under those names only; its path still works.
//!
//! # Ids
//! An id is the sha256 of the entry's place (root, real path below it, its tree) and the bytes of its configuration. So it
//! is the same after a restart and by every name, differs between entries, and changes when a version link is switched or a
//! sidecar is edited. It says nothing about the files in the tree: [`crate::seal`] does.
//!
//! # Registration
//! Everything present is an image. Removing one hides it, by all its names, until any of them is pulled again; the
//! directory is never touched.
//!
//! # Cost
//! A look-up by reference or id is a few dozen system calls and no scan. A list, a status or an unknown id asks whether a
//! directory has changed, which is one stat(2) for each that was looked at, and scans again if so. All methods block on
//! file systems: call them from threads that may.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::beneath::WalkError;
use crate::entry::{Entry, EntryError, Form};
use crate::error::{OpenError, ResolveError};
use crate::image_config::ImageConfig;
use crate::index::{Index, Indexed, Sources};
use crate::places::{Blocked, Found, Roots};
use crate::records::{Records, Registration, Size};
use crate::reference::Reference;
use crate::seal::{self, Seal, Verification};
use crate::size::{self, Job, Measurer, UNMEASURED_BYTES};

/// Shortest part of an id that is understood as one.
const PREFIX_MIN: usize = 4;

/// Where images come from and what is remembered about them where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Absolute directories, searched in order. One that is not there yet is searched when it is.
    pub roots: Vec<PathBuf>,
    /// Reference -> path below a root. Several references may name one entry.
    pub aliases: BTreeMap<String, String>,
    /// Directory of the records: `<state>/images`. Made if absent.
    pub state: PathBuf,
}

/// One image, as lists and statuses show it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Image {
    /// `sha256:` and 64 digits.
    pub id: String,
    /// Its names with a tag, in normal form.
    pub repo_tags: Vec<String>,
    /// Its names with a digest, in normal form.
    pub repo_digests: Vec<String>,
    /// Never 0; [`UNMEASURED_BYTES`] until it was measured.
    pub size_bytes: u64,
    /// The user it runs as, where its configuration gives a number.
    pub uid: Option<u32>,
    /// The user it runs as, where its configuration gives a name.
    pub username: Option<String>,
    /// Always true: there is nothing to collect, the directory stays.
    pub pinned: bool,
    /// Whether it was pulled, rather than only being there.
    pub pulled: bool,
    /// The directory that becomes a container's root.
    pub location: PathBuf,
    /// What it is.
    pub form: Form,
    /// Its defaults and labels.
    #[serde(serialize_with = "the_config")]
    pub config: Arc<ImageConfig>,
    /// Its content digest, where it was sealed.
    pub seal: Option<Seal>,
}

fn the_config<S: serde::Serializer>(config: &Arc<ImageConfig>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(config.as_ref(), serializer)
}

/// The images of a node.
#[derive(Debug)]
pub struct Library {
    roots: Arc<Roots>,
    aliases: BTreeMap<Reference, PathBuf>,
    records: Arc<Records>,
    /// Swapped whole: nobody waits for a scan who does not need it.
    index: RwLock<Arc<Index>>,
    /// Held while scanning, so that many who miss scan once.
    scanning: Mutex<()>,
    measurer: Measurer,
}

impl Library {
    /// Checks the configuration, reads the records and scans the roots. Roots that are not there are no error.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let roots = Arc::new(Roots::new(&config.roots)?);
        let aliases = parse_aliases(&config.aliases)?;
        let records = Records::open(&config.state)
            .map_err(|source| OpenError::State { path: config.state.clone(), source })?;
        let records = Arc::new(records);
        let index = Index::build(&Sources { roots: &roots, aliases: &aliases, records: &records });
        Ok(Self {
            measurer: Measurer::new(Arc::clone(&roots), Arc::clone(&records)),
            roots,
            aliases,
            records,
            index: RwLock::new(Arc::new(index)),
            scanning: Mutex::new(()),
        })
    }

    /// The configured roots, in order, each once.
    pub fn roots(&self) -> &[PathBuf] {
        self.roots.paths()
    }

    /// The entry a reference or an id (whole or its unique beginning) names, open and ready to be mounted.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] names every place that was searched; a removed image is not found either.
    pub fn resolve(&self, reference_or_id: &str) -> Result<Entry, ResolveError> {
        let entry = self.find(reference_or_id)?;
        if self.records.registration(&entry.key()) == Registration::Removed {
            return Err(ResolveError::Removed { reference: shown(reference_or_id), place: entry.location() });
        }
        Ok(entry)
    }

    /// Registers what `reference` names, and answers it. Nothing is fetched: it is there, or it is not found.
    pub fn pull(&self, reference: &str) -> Result<Entry, ResolveError> {
        let entry = self.find(reference)?;
        let key = entry.key();
        self.records
            .register(&entry.root, &entry.path, &key, Registration::Pulled)
            .map_err(|source| ResolveError::State { reference: shown(reference), source })?;
        if self.current().entries.get(&key).is_none_or(|indexed| indexed.id != entry.id) {
            self.scan();
        }
        if let Some(indexed) = self.current().entries.get(&key) {
            self.measure_later(&key, indexed);
        }
        Ok(entry)
    }

    /// Hides the image from now on, by all its names. One that is not there is removed already.
    pub fn remove(&self, reference_or_id: &str) -> Result<(), ResolveError> {
        let entry = match self.find(reference_or_id) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        self.records
            .register(&entry.root, &entry.path, &entry.key(), Registration::Removed)
            .map_err(|source| ResolveError::State { reference: shown(reference_or_id), source })
    }

    /// All images, or the one that `filter` names.
    pub fn list(&self, filter: Option<&str>) -> Result<Vec<Image>, ResolveError> {
        if let Some(filter) = filter {
            return Ok(self.status(filter)?.into_iter().collect());
        }
        let index = self.refreshed();
        let images =
            index.entries.iter().filter(|(key, _)| self.records.registration(key) != Registration::Removed);
        Ok(images.map(|(key, indexed)| self.image(key, indexed)).collect())
    }

    /// The image a reference or an id names; None where there is none, or it was removed.
    pub fn status(&self, reference_or_id: &str) -> Result<Option<Image>, ResolveError> {
        let entry = match self.resolve(reference_or_id) {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        Ok(Some(self.image_of(&entry)))
    }

    /// The image of an entry that was resolved.
    pub fn image_of(&self, entry: &Entry) -> Image {
        let key = entry.key();
        // A link may have been switched since: names are told as they are now.
        let index = self.refreshed();
        let known = index.entries.get(&key).filter(|indexed| indexed.id == entry.id).cloned();
        // Beyond the scan's limits, and in stores: known by its path alone.
        let indexed = known.unwrap_or_else(|| Indexed {
            id: entry.id.clone(),
            root: self.roots.index_of(&entry.root).unwrap_or_default(),
            path: entry.path.clone(),
            location: entry.location(),
            form: entry.form,
            named_by_config: false,
            config: Arc::clone(&entry.config),
            tags: Vec::new(),
            digests: Vec::new(),
        });
        self.image(&key, &indexed)
    }

    /// Measures an image now, walking its tree; for people who ask, not for requests that others wait behind.
    pub fn measure(&self, reference_or_id: &str) -> Result<Option<Size>, ResolveError> {
        let entry = self.resolve(reference_or_id)?;
        let never = AtomicBool::new(false);
        let Some(size) = size::measure(entry.tree(), entry.id.clone(), &never) else { return Ok(None) };
        self.records
            .measured(&entry.root, &entry.path, &entry.key(), size.clone())
            .map_err(|source| ResolveError::State { reference: shown(reference_or_id), source })?;
        Ok(Some(size))
    }

    /// Records the digest of everything in the image's tree. Reads it all.
    pub fn seal(&self, reference_or_id: &str) -> Result<Seal, ResolveError> {
        let entry = self.resolve(reference_or_id)?;
        seal::seal(&entry, self.records.dir())
            .map_err(|source| ResolveError::Seal { reference: shown(reference_or_id), source })
    }

    /// Compares the image's tree with its seal. Reads it all.
    pub fn verify(&self, reference_or_id: &str) -> Result<Verification, ResolveError> {
        let entry = self.resolve(reference_or_id)?;
        seal::verify(&entry, self.records.dir())
            .map_err(|source| ResolveError::Seal { reference: shown(reference_or_id), source })
    }

    /// The entry, registered or not.
    fn find(&self, text: &str) -> Result<Entry, ResolveError> {
        if let Some(prefix) = text.strip_prefix("sha256:") {
            return self.by_id(prefix, text);
        }
        if text.len() == 64 && is_hex(text) {
            return self.by_id(text, text);
        }
        // "cafe" is a name before it is the beginning of an id.
        match self.by_reference(&Reference::parse(text)?, text) {
            Err(ResolveError::NotFound { .. }) if text.len() >= PREFIX_MIN && is_hex(text) => {
                self.by_id(text, text)
            }
            other => other,
        }
    }

    fn by_reference(&self, reference: &Reference, text: &str) -> Result<Entry, ResolveError> {
        let alias = self.aliases.get(reference);
        let found = match alias {
            Some(target) => self.roots.find_alias(target),
            None => self.roots.find(reference),
        };
        let places = match found.map_err(|blocked| refuse(blocked, text))? {
            Found::Entry(entry) => return Ok(entry),
            Found::Nothing(places) => places,
        };
        if alias.is_none()
            && let Some(entry) = self.by_own_name(reference)
        {
            return Ok(entry);
        }
        Err(ResolveError::NotFound { reference: shown(text), places })
    }

    /// The entry whose configuration names it so, now: the index only says where to look.
    fn by_own_name(&self, reference: &Reference) -> Option<Entry> {
        let indexed = |index: &Index| {
            let key = index.by_own_name.get(reference)?;
            index.entries.get(key).cloned()
        };
        let indexed = indexed(&self.current()).or_else(|| indexed(&self.refreshed()))?;
        let entry = self.roots.entry_at(indexed.root, &indexed.path, indexed.named_by_config).ok()?;
        entry.config.names().contains(reference).then_some(entry)
    }

    fn by_id(&self, digits: &str, text: &str) -> Result<Entry, ResolveError> {
        let not_found =
            || ResolveError::NotFound { reference: shown(text), places: self.roots.paths().to_vec() };
        if digits.len() < PREFIX_MIN || digits.len() > 64 || !is_hex(digits) {
            return Err(not_found());
        }
        for index in [Self::current, Self::refreshed] {
            let index = index(self);
            let Some(indexed) = with_prefix(&index, digits, text)? else { continue };
            let entry = self
                .roots
                .entry_at(indexed.root, &indexed.path, indexed.named_by_config)
                .map_err(|blocked| refuse(blocked, text));
            match entry {
                // Its sidecar may have been edited, or its place taken by another: then this id is no more.
                Ok(entry) if entry.id == indexed.id => return Ok(entry),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Err(not_found())
    }

    fn current(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The index, after a scan if anything has changed since the last.
    fn refreshed(&self) -> Arc<Index> {
        let _one_at_a_time = self.scanning.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.current();
        if index.is_current() { index } else { self.replace() }
    }

    fn scan(&self) {
        let _one_at_a_time = self.scanning.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace();
    }

    fn replace(&self) -> Arc<Index> {
        let sources = Sources { roots: &self.roots, aliases: &self.aliases, records: &self.records };
        let index = Arc::new(Index::build(&sources));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&index);
        index
    }

    fn image(&self, key: &str, indexed: &Indexed) -> Image {
        let seal = seal::recorded(self.records.dir(), key);
        let measured = self.records.size(key, &indexed.id).map(|size| size.bytes);
        let size = seal.as_ref().map(|seal| seal.bytes).or(measured);
        if size.is_none() {
            self.measure_later(key, indexed);
        }
        let (uid, username) = indexed.config.cri_user();
        Image {
            id: indexed.id.clone(),
            repo_tags: indexed.tags.clone(),
            repo_digests: indexed.digests.clone(),
            size_bytes: size.unwrap_or(UNMEASURED_BYTES).max(1),
            uid,
            username,
            pinned: true,
            pulled: self.records.registration(key) == Registration::Pulled,
            location: indexed.location.clone(),
            form: indexed.form,
            config: Arc::clone(&indexed.config),
            seal,
        }
    }

    fn measure_later(&self, key: &str, indexed: &Indexed) {
        if self.records.size(key, &indexed.id).is_none() {
            self.measurer.request(Job {
                root: indexed.root,
                path: indexed.path.clone(),
                key: key.to_owned(),
                id: indexed.id.clone(),
                named_by_config: indexed.named_by_config,
            });
        }
    }
}

fn parse_aliases(aliases: &BTreeMap<String, String>) -> Result<BTreeMap<Reference, PathBuf>, OpenError> {
    let mut parsed = BTreeMap::new();
    for (alias, target) in aliases {
        let reference = Reference::parse(alias)
            .map_err(|source| OpenError::AliasName { alias: alias.clone(), source })?;
        let path: PathBuf = Path::new(target).components().collect();
        let plain =
            !target.contains('\0') && path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || path.as_os_str().is_empty() {
            return Err(OpenError::AliasTarget { alias: alias.clone(), target: target.clone() });
        }
        if let Some(other) = parsed.insert(reference.clone(), path.clone())
            && other != path
        {
            return Err(OpenError::AliasTwice { reference: reference.to_string() });
        }
    }
    Ok(parsed)
}

fn refuse(blocked: Blocked, text: &str) -> ResolveError {
    let reference = shown(text);
    match blocked {
        Blocked::Walk(place, WalkError::Missing | WalkError::NotADirectory(_))
        | Blocked::Entry(place, EntryError::NotAnEntry) => {
            ResolveError::NotFound { reference, places: vec![place] }
        }
        Blocked::Walk(place, source) => ResolveError::Refused { reference, place, source },
        Blocked::Entry(place, source) => ResolveError::Unusable { reference, place, source },
    }
}

/// The one entry whose id begins so.
fn with_prefix(index: &Index, digits: &str, text: &str) -> Result<Option<Indexed>, ResolveError> {
    let mut matching = index
        .by_id
        .range(digits.to_owned()..)
        .take_while(|(id, _)| id.starts_with(digits))
        .map(|(_, key)| key);
    let Some(key) = matching.next() else { return Ok(None) };
    match matching.count() {
        0 => Ok(index.entries.get(key).cloned()),
        more => Err(ResolveError::Ambiguous { prefix: shown(text), count: more + 1 }),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What was asked for, short enough for a message.
fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}
