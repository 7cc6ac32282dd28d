//! The words of a mount's `options`: which are flags, which attributes, which propagation, and which belong to the filesystem.
//! See mount(8), mount_setattr(2), and the runtime-spec's `config.md#linux-mount-options`.

use super::{Propagation, PropagationKind};

/// MS_* bits that belong to a superblock and are given when it is made. See mount(2).
pub mod superblock {
    /// MS_RDONLY.
    pub const RDONLY: u64 = 1;
    /// MS_SYNCHRONOUS.
    pub const SYNCHRONOUS: u64 = 16;
    /// MS_MANDLOCK.
    pub const MANDLOCK: u64 = 64;
    /// MS_DIRSYNC.
    pub const DIRSYNC: u64 = 128;
    /// MS_SILENT.
    pub const SILENT: u64 = 1 << 15;
    /// MS_I_VERSION.
    pub const I_VERSION: u64 = 1 << 23;
    /// MS_LAZYTIME.
    pub const LAZYTIME: u64 = 1 << 25;
}

/// MOUNT_ATTR_* bits. See mount_setattr(2).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id and file capabilities are ignored.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Programs cannot be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The field of the three that follow, of which one is in force; RELATIME is 0.
    pub const ATIME: u64 = 0x70;
    /// Access times are never written.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always written.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are never written.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// What a mount's options come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `bind` or `rbind`; the value is whether it is the latter.
    pub bind: Option<bool>,
    /// Attributes to set.
    pub attr_set: u64,
    /// Attributes to clear.
    pub attr_clear: u64,
    /// Attributes to set on the mounts below too.
    pub attr_set_recursive: u64,
    /// Attributes to clear on the mounts below too.
    pub attr_clear_recursive: u64,
    /// [`superblock`] bits.
    pub superblock_flags: u64,
    /// Propagation changes, in order.
    pub propagation: Vec<Propagation>,
    /// `tmpcopyup`.
    pub tmpcopyup: bool,
    /// `idmap` or `ridmap`; the value is whether it is the latter.
    pub idmap: Option<bool>,
    /// A flag was cleared by name (`rw`, `suid`, …).
    pub explicit: bool,
    /// `remount`.
    pub remount: bool,
    /// What is left, for the filesystem.
    pub data: Vec<(String, Option<String>)>,
}

/// What one word does.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// Nothing.
    Nothing,
    Bind {
        recursive: bool,
    },
    Remount,
    /// Sets attributes.
    Set(u64),
    /// Clears attributes.
    Clear(u64),
    /// Sets superblock bits.
    Super(u64),
    /// Clears superblock bits.
    ClearSuper(u64),
    /// Read-only or not: an attribute of the mount and a flag of a new superblock.
    ReadOnly(bool),
    /// Chooses one of the access time modes.
    Atime(u64),
    /// Takes back that choice.
    NoAtime(u64),
    /// Directories' access times are written as the mode says, which is the default.
    DirAtime,
    /// As `Set`, with the mounts below.
    SetRecursive(u64),
    /// As `Clear`, with the mounts below.
    ClearRecursive(u64),
    /// As `Atime`, with the mounts below.
    AtimeRecursive(u64),
    Propagation(PropagationKind, bool),
    CopyUp,
    IdMap {
        recursive: bool,
    },
}

/// Every word that is not the filesystem's own, by name.
const WORDS: [(&str, Word); 62] = [
    ("async", Word::ClearSuper(superblock::SYNCHRONOUS)),
    ("atime", Word::NoAtime(attr::NOATIME)),
    ("bind", Word::Bind { recursive: false }),
    ("defaults", Word::Nothing),
    ("dev", Word::Clear(attr::NODEV)),
    ("diratime", Word::DirAtime),
    ("dirsync", Word::Super(superblock::DIRSYNC)),
    ("exec", Word::Clear(attr::NOEXEC)),
    ("idmap", Word::IdMap { recursive: false }),
    ("iversion", Word::Super(superblock::I_VERSION)),
    ("lazytime", Word::Super(superblock::LAZYTIME)),
    ("loud", Word::ClearSuper(superblock::SILENT)),
    ("mand", Word::Super(superblock::MANDLOCK)),
    ("noatime", Word::Atime(attr::NOATIME)),
    ("nodev", Word::Set(attr::NODEV)),
    ("nodiratime", Word::Set(attr::NODIRATIME)),
    ("noexec", Word::Set(attr::NOEXEC)),
    ("noiversion", Word::ClearSuper(superblock::I_VERSION)),
    ("nolazytime", Word::ClearSuper(superblock::LAZYTIME)),
    ("nomand", Word::ClearSuper(superblock::MANDLOCK)),
    ("norelatime", Word::NoAtime(0)),
    ("nostrictatime", Word::NoAtime(attr::STRICTATIME)),
    ("nosuid", Word::Set(attr::NOSUID)),
    ("nosymfollow", Word::Set(attr::NOSYMFOLLOW)),
    ("private", Word::Propagation(PropagationKind::Private, false)),
    ("ratime", Word::AtimeRecursive(0)),
    ("rbind", Word::Bind { recursive: true }),
    ("rdev", Word::ClearRecursive(attr::NODEV)),
    ("rdiratime", Word::ClearRecursive(attr::NODIRATIME)),
    ("relatime", Word::Atime(0)),
    ("remount", Word::Remount),
    ("rexec", Word::ClearRecursive(attr::NOEXEC)),
    ("ridmap", Word::IdMap { recursive: true }),
    ("rnoatime", Word::AtimeRecursive(attr::NOATIME)),
    ("rnodev", Word::SetRecursive(attr::NODEV)),
    ("rnodiratime", Word::SetRecursive(attr::NODIRATIME)),
    ("rnoexec", Word::SetRecursive(attr::NOEXEC)),
    ("rnorelatime", Word::AtimeRecursive(0)),
    ("rnostrictatime", Word::AtimeRecursive(0)),
    ("rnosuid", Word::SetRecursive(attr::NOSUID)),
    ("rnosymfollow", Word::SetRecursive(attr::NOSYMFOLLOW)),
    ("ro", Word::ReadOnly(true)),
    ("rprivate", Word::Propagation(PropagationKind::Private, true)),
    ("rrelatime", Word::AtimeRecursive(0)),
    ("rro", Word::SetRecursive(attr::RDONLY)),
    ("rrw", Word::ClearRecursive(attr::RDONLY)),
    ("rshared", Word::Propagation(PropagationKind::Shared, true)),
    ("rslave", Word::Propagation(PropagationKind::Slave, true)),
    ("rstrictatime", Word::AtimeRecursive(attr::STRICTATIME)),
    ("rsuid", Word::ClearRecursive(attr::NOSUID)),
    ("rsymfollow", Word::ClearRecursive(attr::NOSYMFOLLOW)),
    ("runbindable", Word::Propagation(PropagationKind::Unbindable, true)),
    ("rw", Word::ReadOnly(false)),
    ("shared", Word::Propagation(PropagationKind::Shared, false)),
    ("silent", Word::Super(superblock::SILENT)),
    ("slave", Word::Propagation(PropagationKind::Slave, false)),
    ("strictatime", Word::Atime(attr::STRICTATIME)),
    ("suid", Word::Clear(attr::NOSUID)),
    ("symfollow", Word::Clear(attr::NOSYMFOLLOW)),
    ("sync", Word::Super(superblock::SYNCHRONOUS)),
    ("tmpcopyup", Word::CopyUp),
    ("unbindable", Word::Propagation(PropagationKind::Unbindable, false)),
];

/// The options that are understood whatever the filesystem, sorted; for `wright features`.
pub fn known() -> Vec<&'static str> {
    let mut names: Vec<_> = WORDS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// The propagation an option or `rootfsPropagation` names.
pub(super) fn propagation(name: &str) -> Option<Propagation> {
    match find(name)? {
        Word::Propagation(kind, recursive) => Some(Propagation { kind, recursive }),
        _ => None,
    }
}

fn find(name: &str) -> Option<Word> {
    WORDS.iter().find(|(known, _)| *known == name).map(|(_, word)| *word)
}

/// Sorts a mount's options. Later ones win over earlier ones.
pub(super) fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Options {
    let mut options = Options::default();
    for text in words {
        match find(text) {
            Some(word) => options.apply(word),
            // Some tools pass several of the filesystem's options as one word.
            None => options.data.extend(text.split(',').filter(|part| !part.is_empty()).map(|part| {
                match part.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (part.to_owned(), None),
                }
            })),
        }
    }
    options.settle_access_times();
    options
}

impl Options {
    /// As mount(2) has it: naming none of the access time options leaves a bind mount's as its source's are; naming one replaces them all,
    /// relatime being the default.
    fn settle_access_times(&mut self) {
        if (self.attr_clear & attr::ATIME) | (self.attr_set & attr::NODIRATIME) != 0 {
            self.attr_clear |= attr::ATIME | attr::NODIRATIME & !self.attr_set;
        }
    }

    fn apply(&mut self, word: Word) {
        match word {
            Word::Nothing => {}
            Word::Bind { recursive } => self.bind = Some(recursive),
            Word::Remount => self.remount = true,
            Word::Set(bits) => self.set(bits),
            Word::Clear(bits) => self.clear(bits),
            Word::Super(bits) => self.superblock_flags |= bits,
            Word::ClearSuper(bits) => self.superblock_flags &= !bits,
            Word::ReadOnly(true) => {
                self.set(attr::RDONLY);
                self.superblock_flags |= superblock::RDONLY;
            }
            Word::ReadOnly(false) => {
                self.clear(attr::RDONLY);
                self.superblock_flags &= !superblock::RDONLY;
            }
            Word::Atime(mode) => {
                // mount_setattr(2): the whole field is cleared when one of its modes is set.
                self.attr_set = self.attr_set & !attr::ATIME | mode;
                self.attr_clear |= attr::ATIME;
            }
            Word::NoAtime(mode) => {
                if self.attr_clear & attr::ATIME != 0 && self.attr_set & attr::ATIME == mode {
                    self.attr_set &= !attr::ATIME;
                    self.attr_clear &= !attr::ATIME;
                }
            }
            Word::DirAtime => self.attr_set &= !attr::NODIRATIME,
            Word::SetRecursive(bits) => {
                self.attr_set_recursive |= bits;
                self.attr_clear_recursive &= !bits;
            }
            Word::ClearRecursive(bits) => {
                self.attr_clear_recursive |= bits;
                self.attr_set_recursive &= !bits;
            }
            Word::AtimeRecursive(mode) => {
                self.attr_set_recursive = self.attr_set_recursive & !attr::ATIME | mode;
                self.attr_clear_recursive |= attr::ATIME;
            }
            Word::Propagation(kind, recursive) => self.propagation.push(Propagation { kind, recursive }),
            Word::CopyUp => self.tmpcopyup = true,
            Word::IdMap { recursive } => self.idmap = Some(recursive),
        }
    }

    fn set(&mut self, bits: u64) {
        self.attr_set |= bits;
        self.attr_clear &= !bits;
    }

    fn clear(&mut self, bits: u64) {
        self.attr_clear |= bits;
        self.attr_set &= !bits;
        self.explicit = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_options_win() {
        let options = parse(["ro", "nosuid", "rw", "nodev"]);
        assert_eq!(options.attr_set, attr::NOSUID | attr::NODEV);
        assert_eq!(options.attr_clear, attr::RDONLY);
        assert_eq!(options.superblock_flags, 0);
        assert!(options.explicit);
    }

    #[test]
    fn one_access_time_mode_is_left() {
        let options = parse(["noatime", "strictatime"]);
        assert_eq!(options.attr_set, attr::STRICTATIME);
        assert_eq!(options.attr_clear, attr::ATIME | attr::NODIRATIME);
        let options = parse(["rnoatime", "rrelatime", "rro"]);
        assert_eq!(options.attr_set_recursive, attr::RDONLY);
        assert_eq!(options.attr_clear_recursive, attr::ATIME);
    }

    #[test]
    fn access_times_that_are_not_chosen_stay_as_they_are() {
        for words in [&["atime"][..], &["norelatime"], &["diratime"], &["noatime", "atime"], &["rw"]] {
            let options = parse(words.iter().copied());
            assert_eq!((options.attr_set, options.attr_clear & attr::ATIME), (0, 0), "{words:?}");
        }
        let options = parse(["nodiratime"]);
        assert_eq!((options.attr_set, options.attr_clear), (attr::NODIRATIME, attr::ATIME));
    }

    #[test]
    fn what_is_nobodys_is_the_filesystems() {
        let options = parse(["size=65536k,mode=755", "newinstance", "lowerdir=a:b"]);
        let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(
            options.data,
            [
                pair("size", Some("65536k")),
                pair("mode", Some("755")),
                pair("newinstance", None),
                pair("lowerdir", Some("a:b"))
            ]
        );
    }

    #[test]
    fn propagation_keeps_its_order() {
        let options = parse(["rslave", "shared"]);
        assert_eq!(options.propagation[0], propagation("rslave").unwrap());
        assert_eq!(options.propagation[1], Propagation { kind: PropagationKind::Shared, recursive: false });
        assert_eq!(propagation("ro"), None);
    }

    #[test]
    fn the_known_words_are_sorted_and_unique() {
        let known = known();
        assert!(known.windows(2).all(|pair| pair[0] < pair[1]), "{known:?}");
        assert!(known.contains(&"rnosymfollow") && known.contains(&"defaults"));
    }
}
