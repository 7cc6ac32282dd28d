//! Users and groups as a root filesystem's own `/etc/passwd` and `/etc/group` define them (passwd(5), group(5)).
//!
//! The files belong to whoever made the root and are hostile input: they are resolved as the container would see them
//! but never outside its root, must be regular and at most 1 MiB, and a control character in one refuses it. Numbers
//! must be real ids: 4294967296 does not wrap to root, and 4294967295 (`-1`, "leave unchanged" to setresuid(2)) is not
//! an id at all. No libc look-up is used: it would read the host's files.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::beneath::{self, FileError, Links};

/// Largest passwd or group file.
pub const DATABASE_MAX_BYTES: u64 = 1 << 20;
/// Longest line in one; a group line lists its members.
const LINE_MAX_BYTES: usize = 64 << 10;
/// Longest user or group name.
const NAME_MAX_BYTES: usize = 256;
/// Most supplementary groups of a process (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// A user or a group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// A number, used whether or not the root's files know it.
    Id(u32),
    /// A name, which the root's files must know.
    Name(String),
}

/// Who a process is to run as: `uid`, `name`, `uid:gid`, `name:group` and the two mixed forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// The user.
    pub user: Account,
    /// The primary group; None is the one of the user's passwd line, and 0 where there is no such line.
    pub group: Option<Account>,
}

/// A user resolved inside a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// The groups whose lines list the user, in file order, without the primary one; the CRI's Merge policy adds them, also
    /// when the group was given, and Strict does not.
    pub additional_gids: Vec<u32>,
    /// The home directory of the passwd line, `/` without one; always absolute.
    pub home: String,
    /// The name of the passwd line; None for a number that has none.
    pub username: Option<String>,
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A number that is no user or group id.
    #[error("{0:?} is not an id between 0 and 4294967294")]
    Range(String),
    /// An empty, overlong or unprintable name, or one with a `:` too many.
    #[error("{0:?} is not a user or group name")]
    Name(String),
    /// The name is not in the root's passwd.
    #[error("no user {0:?} in the root filesystem's /etc/passwd")]
    NoSuchUser(String),
    /// The name is not in the root's group.
    #[error("no group {0:?} in the root filesystem's /etc/group")]
    NoSuchGroup(String),
    /// The file cannot be read safely.
    #[error("the root filesystem's users cannot be read")]
    File(#[from] FileError),
    /// A line that is too long, or holds a control character.
    #[error("/{path} line {line} is refused: {reason}")]
    Line {
        /// The file, relative to the root.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The rule it breaks.
        reason: &'static str,
    },
}

impl Account {
    /// All digits is a number and must be an id; anything else is a name.
    pub fn parse(text: &str) -> Result<Self, UserError> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return parse_id(text.as_bytes()).map(Self::Id).ok_or_else(|| UserError::Range(shortened(text)));
        }
        let valid = !text.is_empty()
            && text.len() <= NAME_MAX_BYTES
            && !text.chars().any(|char| char.is_control() || char == ':' || char == ',');
        if valid { Ok(Self::Name(text.to_owned())) } else { Err(UserError::Name(shortened(text))) }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl UserSpec {
    /// Parses `user` or `user:group`; an empty group is as none, as in `www-data:`.
    pub fn parse(text: &str) -> Result<Self, UserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        Ok(Self { user: Account::parse(user)?, group: group.map(Account::parse).transpose()? })
    }

    /// A user by number, with the group its passwd line has.
    pub fn uid(uid: u32) -> Self {
        Self { user: Account::Id(uid), group: None }
    }
}

impl FromStr for UserSpec {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        Self::parse(text)
    }
}

impl fmt::Display for UserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}:{group}", self.user),
            None => self.user.fmt(f),
        }
    }
}

/// Resolves `spec` with the files inside `root`.
///
/// # Errors
/// A name that the files do not know, or a file that is not safe to read; a missing file knows nobody.
pub fn lookup(root: BorrowedFd<'_>, spec: &UserSpec) -> Result<User, UserError> {
    let passwd = Database::read(root, "etc/passwd")?;
    let line = passwd.passwd_lines().find(|line| match &spec.user {
        Account::Id(uid) => line.uid == *uid,
        Account::Name(name) => line.name == name.as_bytes(),
    });
    let (uid, name, home) = match (&line, &spec.user) {
        (Some(line), _) => (line.uid, text(line.name), text(line.home)),
        (None, Account::Id(uid)) => (*uid, None, None),
        (None, Account::Name(name)) => return Err(UserError::NoSuchUser(name.clone())),
    };
    let group = Database::read(root, "etc/group")?;
    let gid = match &spec.group {
        Some(Account::Id(gid)) => *gid,
        Some(Account::Name(wanted)) => group
            .group_lines()
            .find(|line| line.name == wanted.as_bytes())
            .map(|line| line.gid)
            .ok_or_else(|| UserError::NoSuchGroup(wanted.clone()))?,
        None => line.as_ref().map_or(0, |line| line.gid),
    };
    let mut additional_gids = Vec::new();
    if let Some(line) = &line {
        for member_of in group.group_lines().filter(|group| group.has(line.name)) {
            if member_of.gid != gid
                && !additional_gids.contains(&member_of.gid)
                && additional_gids.len() < GROUPS_MAX
            {
                additional_gids.push(member_of.gid);
            }
        }
    }
    let home = home.filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    Ok(User { uid, gid, additional_gids, home, username: name })
}

/// Resolves a group of its own, as supplementary groups given by name need it.
pub fn lookup_group(root: BorrowedFd<'_>, group: &Account) -> Result<u32, UserError> {
    match group {
        Account::Id(gid) => Ok(*gid),
        Account::Name(wanted) => Database::read(root, "etc/group")?
            .group_lines()
            .find(|line| line.name == wanted.as_bytes())
            .map(|line| line.gid)
            .ok_or_else(|| UserError::NoSuchGroup(wanted.clone())),
    }
}

/// A passwd or group file whose every line was looked at.
struct Database(Vec<u8>);

struct PasswdLine<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupLine<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupLine<'_> {
    fn has(&self, user: &[u8]) -> bool {
        !user.is_empty() && self.members.split(|byte| *byte == b',').any(|member| member == user)
    }
}

impl Database {
    fn read(root: BorrowedFd<'_>, path: &str) -> Result<Self, UserError> {
        let path = Path::new(path);
        let bytes = beneath::read_regular(root, path, Links::InRoot, DATABASE_MAX_BYTES)?.unwrap_or_default();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let refuse = |reason| Err(UserError::Line { path: path.to_owned(), line: index + 1, reason });
            if line.len() > LINE_MAX_BYTES {
                return refuse("it is too long");
            }
            if line.iter().any(u8::is_ascii_control) {
                return refuse("it holds a control character");
            }
        }
        Ok(Self(bytes))
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#')
    }

    /// The lines with all seven fields (the shell may be missing) and real ids; others are no users.
    fn passwd_lines(&self) -> impl Iterator<Item = PasswdLine<'_>> {
        self.lines().filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let _password = fields.next()?;
            let uid = parse_id(fields.next()?)?;
            let gid = parse_id(fields.next()?)?;
            let _comment = fields.next();
            let home = fields.next().unwrap_or_default();
            Some(PasswdLine { name, uid, gid, home })
        })
    }

    fn group_lines(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.lines().filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let _password = fields.next()?;
            let gid = parse_id(fields.next()?)?;
            Some(GroupLine { name, gid, members: fields.next().unwrap_or_default() })
        })
    }
}

/// Decimal digits that are an id: below 4294967295.
fn parse_id(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a remark\nwww-data:x:33:33::/var/www:/bin/false\n\
        default-user:x:1000:1000::/home:/bin/sh\nwrap:x:4294967296:0::/:\nminus:x:4294967295:0::/:\n\
        short:x:7\nrelative:x:8:8::home:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:www-data\ng:x:101:\ndefault-user:x:1000:\n\
        more:x:50000:other,default-user\nprimary-too:x:1000:default-user\nwide:x:4294967296:default-user\n";

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("etc")).unwrap();
            fs::write(temp.path().join("etc/passwd"), PASSWD).unwrap();
            fs::write(temp.path().join("etc/group"), GROUP).unwrap();
            Self(temp)
        }

        fn lookup(&self, spec: &str) -> Result<User, UserError> {
            let root = beneath::open_trusted_dir(self.0.path()).unwrap();
            lookup(root.as_fd(), &UserSpec::parse(spec)?)
        }

        fn ids(&self, spec: &str) -> (u32, u32, Vec<u32>) {
            let user = self.lookup(spec).unwrap();
            (user.uid, user.gid, user.additional_gids)
        }
    }

    #[test]
    fn every_form_of_a_user() {
        let root = Root::new();
        assert_eq!(root.ids("0"), (0, 0, vec![]));
        assert_eq!(root.ids("www-data"), (33, 33, vec![100]));
        assert_eq!(root.ids("www-data:g"), (33, 101, vec![100]));
        assert_eq!(root.ids("www-data:100"), (33, 100, vec![]));
        assert_eq!(root.ids("1000"), (1000, 1000, vec![50000]));
        assert_eq!(root.ids("1000:2000"), (1000, 2000, vec![50000, 1000]));
        assert_eq!(root.ids("1002"), (1002, 0, vec![]));
        assert_eq!(root.ids("1003:g"), (1003, 101, vec![]));
        assert_eq!(root.ids("www-data:"), (33, 33, vec![100]));
        let user = root.lookup("www-data").unwrap();
        assert_eq!((user.home.as_str(), user.username.as_deref()), ("/var/www", Some("www-data")));
        let user = root.lookup("1002").unwrap();
        assert_eq!((user.home.as_str(), user.username), ("/", None));
        assert_eq!(root.lookup("relative").unwrap().home, "/");
    }

    #[test]
    fn ids_beyond_32_bits_are_never_root() {
        let root = Root::new();
        for spec in
            ["4294967296", "4294967295", "18446744073709551616", "0:4294967296", "99999999999999999999999"]
        {
            assert!(matches!(root.lookup(spec), Err(UserError::Range(_))), "{spec}");
        }
        for spec in ["wrap", "minus", "short", "nobody-here", "-1", "+1", "0x0"] {
            assert!(matches!(root.lookup(spec), Err(UserError::NoSuchUser(_))), "{spec}");
        }
        assert!(matches!(root.lookup("0:wide"), Err(UserError::NoSuchGroup(_))));
        for spec in ["", ":0", "a\nb", "a\0", "a:b:c", "a\u{85}"] {
            assert!(matches!(root.lookup(spec), Err(UserError::Name(_))), "{spec:?}");
        }
    }

    #[test]
    fn a_root_without_files_knows_numbers_only() {
        let temp = tempfile::tempdir().unwrap();
        let root = beneath::open_trusted_dir(temp.path()).unwrap();
        let user = lookup(root.as_fd(), &UserSpec::uid(5)).unwrap();
        assert_eq!((user.uid, user.gid), (5, 0));
        assert!(lookup(root.as_fd(), &UserSpec::parse("root").unwrap()).is_err());
    }

    #[test]
    fn a_sparse_passwd_of_4_gib_is_refused_at_once() {
        let root = Root::new();
        fs::File::create(root.0.path().join("etc/passwd")).unwrap().set_len(4 << 30).unwrap();
        assert!(matches!(root.lookup("0"), Err(UserError::File(FileError::TooLarge { .. }))));
    }

    #[test]
    fn control_characters_refuse_the_file() {
        let root = Root::new();
        fs::write(root.0.path().join("etc/passwd"), "app:x:1:1::/home\r\n").unwrap();
        assert!(matches!(root.lookup("1"), Err(UserError::Line { line: 1, .. })));
        fs::write(root.0.path().join("etc/passwd"), format!("a:x:1:1:{}:/:\n", "g".repeat(70_000))).unwrap();
        assert!(matches!(root.lookup("1"), Err(UserError::Line { .. })));
    }

    #[test]
    fn links_are_seen_as_the_container_sees_them() {
        let root = Root::new();
        let etc = root.0.path().join("etc");
        fs::rename(etc.join("passwd"), etc.join("real")).unwrap();
        symlink("/etc/real", etc.join("passwd")).unwrap();
        assert_eq!(root.ids("www-data").0, 33);
        fs::remove_file(etc.join("passwd")).unwrap();
        symlink("../../../../../../../../etc/real", etc.join("passwd")).unwrap();
        assert_eq!(root.ids("www-data").0, 33);
        fs::remove_file(etc.join("passwd")).unwrap();
        // The host's passwd has a root user; this root's view of that link has none.
        symlink("/proc/self/root/etc/passwd", etc.join("passwd")).unwrap();
        assert!(matches!(root.lookup("root"), Err(UserError::NoSuchUser(_))));
    }

    proptest! {
        #[test]
        fn any_file_is_answered(passwd in proptest::collection::vec(any::<u8>(), 0..400), spec in "\\PC{0,12}") {
            let root = Root::new();
            fs::write(root.0.path().join("etc/passwd"), passwd).unwrap();
            if let Ok(user) = root.lookup(&spec) {
                prop_assert!(user.uid != u32::MAX && user.home.starts_with('/'));
            }
        }

        #[test]
        fn a_spec_prints_as_it_parses(uid in 0..u32::MAX, gid in 0..u32::MAX) {
            let text = format!("{uid}:{gid}");
            prop_assert_eq!(UserSpec::parse(&text).unwrap().to_string(), text);
        }
    }
}
