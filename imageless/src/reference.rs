//! What a pod spec says where it says "image", checked and in one spelling.
//!
//! ```text
//! busybox                          docker.io/library/busybox:latest
//! team/app:1.2                     docker.io/team/app:1.2
//! registry.k8s.io/pause            registry.k8s.io/pause:latest
//! localhost:5000/app@sha256:9700…  the same: a digest needs no tag
//! app:1.2@sha256:9700…             docker.io/library/app@sha256:9700… (the digest decides; the tag is dropped)
//! rootfs.local/debian/Bookworm     rootfs.local/debian/Bookworm:latest, the directory debian/Bookworm below a root
//! nix:0/nix/store/<hash>-app       nix:0/nix/store/<hash>-app:latest, that store path when /nix/store is a root
//! ```
//!
//! The first four lines are the grammar and the normalisation of the distribution project's `reference` package, which
//! kubelet, containerd and Docker share. The last two are ours. kubelet adds `:latest` to what has no tag before a
//! runtime sees it, so these two take that tag and no other. Their path may hold what directories of people are called
//! (upper case, `+`), as long as it stays one plain path: no empty, `.` or `..` component and no character outside
//! `[A-Za-z0-9._+=?~-]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest reference that is looked at at all; the parts have tighter limits of their own.
pub const REFERENCE_MAX_BYTES: usize = 1024;
/// Longest repository path (distribution: 255, without the registry's host).
const REPOSITORY_MAX_BYTES: usize = 255;
/// Longest host of a registry: a DNS name, and a port.
const DOMAIN_MAX_BYTES: usize = 255 + 6;
/// Longest tag.
const TAG_MAX_BYTES: usize = 128;
/// Longest component of a directory path, as the kernel has it (`NAME_MAX`).
const COMPONENT_MAX_BYTES: usize = 255;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_REPOSITORY: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// The host that means "a directory below a root".
const LOCAL_DOMAIN: &str = "rootfs.local";
/// The host that means "an absolute path of a store": `nix:0` parses as host and port, so that kubelet lets it through.
const STORE_DOMAIN: &str = "nix:0";

/// A checked and normalised image reference. Equal references name the same image; `Display` is the normal form and
/// parses to the same value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(Kind);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    /// A name as registries have it.
    Named { domain: String, repository: String, version: Version },
    /// `rootfs.local/<path>`.
    Local(String),
    /// `nix:0/<path>`: the path without its leading slash.
    Store(String),
}

/// What picks one image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `:1.2`.
    Tag(String),
    /// `@sha256:…`, algorithm and hexadecimal digits.
    Digest(String),
}

/// Why a reference was refused. `reference` is what was given, made printable and cut short.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {reference:?}: {reason}")]
pub struct ReferenceError {
    /// The refused text, cut to 80 characters.
    pub reference: String,
    /// The rule it breaks.
    pub reason: Refusal,
}

/// The rule that a refused reference breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// The whole, or the named part, is too long.
    #[error("the {0} is too long")]
    TooLong(&'static str),
    /// NUL, newline, another control character, a space, or beyond ASCII.
    #[error("it holds a control character, a space or a character beyond ASCII")]
    Character,
    /// The registry's host is not a DNS name or address with an optional port.
    #[error("the registry host is not a valid name")]
    Domain,
    /// A repository component is empty, upper case, `.`, `..` or otherwise outside the grammar.
    #[error("the repository must be lower-case words joined by '.', '_', '__' or '-', with '/' between them")]
    Repository,
    /// The tag is not a word character followed by word characters, dots and dashes.
    #[error("the tag must be letters, digits, '_', '.' and '-', and start with a letter, a digit or '_'")]
    Tag,
    /// The digest is not `algorithm:hex`, or has the wrong number of digits for its algorithm.
    #[error("the digest must be an algorithm, ':' and its hexadecimal digits (sha256: 64 of them)")]
    Digest,
    /// 64 hexadecimal digits: that is an image id, and as a name it would be ambiguous.
    #[error("64 hexadecimal digits are an image id and cannot be a repository name")]
    LooksLikeId,
    /// The path of a `rootfs.local/` or `nix:0/` reference leaves the plain form.
    #[error("the directory path must be plain components of letters, digits and '._+=?~-', without '..'")]
    LocalPath,
    /// A `rootfs.local/` or `nix:0/` reference with a tag other than `latest`, or with a digest.
    #[error("a directory reference takes no digest and no tag but ':latest'")]
    LocalVersion,
}

impl Reference {
    /// Checks and normalises `text`.
    ///
    /// # Errors
    /// [`ReferenceError`] with the rule it breaks; never anything that depends on the machine.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        parse(text)
            .map(Self)
            .map_err(|reason| ReferenceError { reference: text.chars().take(80).collect(), reason })
    }

    /// The implicit name of the entry at `components` below a root; None where no reference can spell it.
    ///
    /// A first component with a dot, a colon or `localhost` is a registry's host. The last component is a tag when it
    /// looks like a version (`1.2`, `v3`, `latest`) or cannot be a repository component, and something is left to be the
    /// repository. What has no spelling in the registries' grammar is named `rootfs.local/…`.
    pub(crate) fn of_path(components: &[&str]) -> Option<Self> {
        let path: PathBuf = components.iter().collect();
        Self::named_of_path(components)
            .filter(|named| matches!(named.candidates(), Candidates::Below(paths) if paths.contains(&path)))
            .or_else(|| Self::local_of_path(components))
    }

    fn named_of_path(components: &[&str]) -> Option<Self> {
        let (last, init) = components.split_last()?;
        let host = components.first().is_some_and(|first| is_explicit_domain(first));
        let repository_left = init.len() > usize::from(host);
        let versioned = repository_left && (looks_like_version(last) || !is_repository_component(last));
        let text =
            if versioned { format!("{}:{last}", init.join("/")) } else { components.join("/") + ":latest" };
        Self::parse(&text).ok().filter(|reference| matches!(reference.0, Kind::Named { .. }))
    }

    /// `rootfs.local/<components>`; None where a component is outside its alphabet.
    pub(crate) fn local_of_path(components: &[&str]) -> Option<Self> {
        Self::parse(&format!("{LOCAL_DOMAIN}/{}", components.join("/"))).ok()
    }

    /// `nix:0/<absolute path>`; None where a component is outside its alphabet.
    pub(crate) fn store_of_path(absolute: &str) -> Option<Self> {
        Self::parse(&format!("{STORE_DOMAIN}{absolute}")).ok()
    }

    /// The digest, where the reference is pinned to one.
    pub fn digest(&self) -> Option<&str> {
        match &self.0 {
            Kind::Named { version: Version::Digest(digest), .. } => Some(digest),
            _ => None,
        }
    }

    /// Host and repository without tag or digest; for a directory reference, all of it.
    pub fn name(&self) -> String {
        match &self.0 {
            Kind::Named { domain, repository, .. } => format!("{domain}/{repository}"),
            Kind::Local(path) => format!("{LOCAL_DOMAIN}/{path}"),
            Kind::Store(path) => format!("{STORE_DOMAIN}/{path}"),
        }
    }

    /// Where to look for it, in order.
    pub(crate) fn candidates(&self) -> Candidates {
        match &self.0 {
            Kind::Local(path) => Candidates::Below(vec![PathBuf::from(path)]),
            Kind::Store(path) => Candidates::Absolute(PathBuf::from("/").join(path)),
            Kind::Named { domain, repository, version } => {
                let mut bases = Vec::new();
                if domain == DEFAULT_DOMAIN {
                    if let Some(official) = repository.strip_prefix("library/") {
                        bases.push(official.to_owned());
                    }
                    bases.push(repository.clone());
                }
                bases.push(format!("{domain}/{repository}"));
                let mut paths = Vec::new();
                for base in bases {
                    match version {
                        Version::Tag(tag) => {
                            // A tag may be called "..": it is never a path then.
                            if is_plain_component(tag) {
                                paths.push(PathBuf::from(&base).join(tag));
                            }
                            if tag == DEFAULT_TAG {
                                paths.push(PathBuf::from(base));
                            }
                        }
                        // A directory has no registry digest; the caller compares what these hold with its id.
                        Version::Digest(_) => paths.push(PathBuf::from(base)),
                    }
                }
                Candidates::Below(paths)
            }
        }
    }
}

/// The directories a reference may name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Candidates {
    /// Paths below each root, the likeliest first.
    Below(Vec<PathBuf>),
    /// One absolute path, which must be inside a root.
    Absolute(PathBuf),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Named { domain, repository, version: Version::Tag(tag) } => {
                write!(f, "{domain}/{repository}:{tag}")
            }
            Kind::Named { domain, repository, version: Version::Digest(digest) } => {
                write!(f, "{domain}/{repository}@{digest}")
            }
            Kind::Local(path) => write!(f, "{LOCAL_DOMAIN}/{path}:{DEFAULT_TAG}"),
            Kind::Store(path) => write!(f, "{STORE_DOMAIN}/{path}:{DEFAULT_TAG}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

fn parse(text: &str) -> Result<Kind, Refusal> {
    if text.is_empty() {
        return Err(Refusal::Empty);
    }
    if text.len() > REFERENCE_MAX_BYTES {
        return Err(Refusal::TooLong("reference"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::Character);
    }
    if let Some(path) = strip_domain(text, LOCAL_DOMAIN) {
        return Ok(Kind::Local(parse_local(path)?));
    }
    if let Some(path) = strip_domain(text, STORE_DOMAIN) {
        return Ok(Kind::Store(parse_local(path)?));
    }
    parse_named(text)
}

fn strip_domain<'a>(text: &'a str, domain: &str) -> Option<&'a str> {
    text.strip_prefix(domain)?.strip_prefix('/')
}

fn parse_local(path: &str) -> Result<String, Refusal> {
    if path.contains('@') {
        return Err(Refusal::LocalVersion);
    }
    let path = match path.rsplit_once(':') {
        Some((path, DEFAULT_TAG)) => path,
        Some(_) => return Err(Refusal::LocalVersion),
        None => path,
    };
    if !path.split('/').all(is_plain_component) {
        return Err(Refusal::LocalPath);
    }
    Ok(path.to_owned())
}

fn parse_named(text: &str) -> Result<Kind, Refusal> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it belongs to the host's port.
    let tag_at = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
    let (name, tag) = match tag_at {
        Some(at) => (&rest[..at], Some(parse_tag(&rest[at + 1..])?)),
        None => (rest, None),
    };
    if name.len() == 64 && name.bytes().all(is_lower_hex) {
        return Err(Refusal::LooksLikeId);
    }
    let (domain, repository) = split_domain(name);
    if domain.len() > DOMAIN_MAX_BYTES {
        return Err(Refusal::TooLong("registry host"));
    }
    if !is_domain(domain) {
        return Err(Refusal::Domain);
    }
    let repository = if domain == DEFAULT_DOMAIN && !repository.contains('/') {
        format!("{OFFICIAL_REPOSITORY}/{repository}")
    } else {
        repository.to_owned()
    };
    if repository.len() > REPOSITORY_MAX_BYTES {
        return Err(Refusal::TooLong("repository"));
    }
    if !repository.split('/').all(is_repository_component) {
        return Err(Refusal::Repository);
    }
    let version = match (tag, digest) {
        (_, Some(digest)) => Version::Digest(digest),
        (Some(tag), None) => Version::Tag(tag),
        (None, None) => Version::Tag(DEFAULT_TAG.to_owned()),
    };
    Ok(Kind::Named { domain: domain.to_owned(), repository, version })
}

fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, repository)) => (DEFAULT_DOMAIN, repository),
        Some((first, repository)) if is_explicit_domain(first) => (first, repository),
        _ => (DEFAULT_DOMAIN, name),
    }
}

/// Docker's rule for telling a host from a user: a dot, a port, upper case, or `localhost`.
fn is_explicit_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) => {
                let valid = !address.is_empty()
                    && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
                if !valid {
                    return false;
                }
                match after.strip_prefix(':') {
                    Some(port) => return is_port(port),
                    None => return after.is_empty(),
                }
            }
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    host.split('.').all(is_domain_component) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('-')
        && !component.ends_with('-')
        && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Words of `[a-z0-9]+` joined by one `.`, one or two `_`, or any number of `-`.
fn is_repository_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes.split(word).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn parse_tag(tag: &str) -> Result<String, Refusal> {
    if tag.len() > TAG_MAX_BYTES {
        return Err(Refusal::TooLong("tag"));
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let valid = tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
    if valid { Ok(tag.to_owned()) } else { Err(Refusal::Tag) }
}

fn parse_digest(digest: &str) -> Result<String, Refusal> {
    let (algorithm, hex) = digest.split_once(':').ok_or(Refusal::Digest)?;
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(Refusal::Digest),
    };
    let valid = hex.len() == digits && hex.bytes().all(is_lower_hex);
    if valid { Ok(digest.to_owned()) } else { Err(Refusal::Digest) }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// One component of a directory path that a reference may name: never empty, `.` or `..`, never an option or hidden.
fn is_plain_component(component: &str) -> bool {
    !component.is_empty()
        && component.len() <= COMPONENT_MAX_BYTES
        && !component.starts_with(['.', '-'])
        && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+=?~-".contains(&byte))
}

fn looks_like_version(component: &str) -> bool {
    let digits = component.strip_prefix('v').unwrap_or(component);
    component == DEFAULT_TAG || digits.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    fn refusal(text: &str) -> Refusal {
        Reference::parse(text).unwrap_err().reason
    }

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (given, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("library/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("team/app", "docker.io/team/app:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("[fe80::1]:5000/app", "[fe80::1]:5000/app:latest"),
            ("HOST/app", "HOST/app:latest"),
            ("a__b/c-d---e/f.g", "docker.io/a__b/c-d---e/f.g:latest"),
            ("rootfs.local/debian/Bookworm", "rootfs.local/debian/Bookworm:latest"),
            ("rootfs.local/debian:latest", "rootfs.local/debian:latest"),
            ("nix:0/nix/store/0c8x-hello-2.12+x", "nix:0/nix/store/0c8x-hello-2.12+x:latest"),
        ] {
            assert_eq!(normal(given), expected);
        }
    }

    #[test]
    fn a_digest_decides_and_drops_the_tag() {
        let digest = format!("sha256:{}", "9".repeat(64));
        let reference = Reference::parse(&format!("app:1@{digest}")).unwrap();
        assert_eq!(reference.to_string(), format!("docker.io/library/app@{digest}"));
        assert_eq!(reference.digest(), Some(digest.as_str()));
        assert_eq!(refusal("app@sha256:abc"), Refusal::Digest);
        assert_eq!(refusal(&format!("app@sha256:{}", "G".repeat(64))), Refusal::Digest);
        assert_eq!(refusal(&format!("app@{digest}@{digest}")), Refusal::Digest);
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        assert_eq!(refusal(""), Refusal::Empty);
        assert_eq!(refusal("Busybox"), Refusal::Repository);
        assert_eq!(refusal("a/../b"), Refusal::Repository);
        assert_eq!(refusal("../etc"), Refusal::Domain);
        assert_eq!(refusal("/etc"), Refusal::Repository);
        assert_eq!(refusal("a//b"), Refusal::Repository);
        assert_eq!(refusal("a/b/"), Refusal::Repository);
        assert_eq!(refusal("a___b"), Refusal::Repository);
        assert_eq!(refusal("a..b"), Refusal::Repository);
        assert_eq!(refusal("bad-.host/a"), Refusal::Domain);
        assert_eq!(refusal("app:"), Refusal::Tag);
        assert_eq!(refusal("app:.x"), Refusal::Tag);
        assert_eq!(refusal(&"a".repeat(64)), Refusal::LooksLikeId);
        assert_eq!(refusal(&format!("app:{}", "t".repeat(129))), Refusal::TooLong("tag"));
        assert_eq!(refusal(&"a".repeat(256)), Refusal::TooLong("repository"));
        assert_eq!(refusal(&"a/".repeat(1000)), Refusal::TooLong("reference"));
        for text in ["a\0b", "a\nb", "a b", "a\u{7f}", "café", "\u{2028}"] {
            assert_eq!(refusal(text), Refusal::Character, "{text:?}");
        }
    }

    #[test]
    fn a_directory_reference_stays_a_plain_path() {
        for path in ["", "..", "a/..", "../a", "a//b", "./a", ".hidden", "a/", "/a", "a*", "a\\b", "-x"] {
            assert_eq!(refusal(&format!("rootfs.local/{path}")), Refusal::LocalPath, "{path:?}");
        }
        assert_eq!(refusal("rootfs.local/a:1.2"), Refusal::LocalVersion);
        assert_eq!(refusal(&format!("rootfs.local/a@sha256:{}", "0".repeat(64))), Refusal::LocalVersion);
    }

    #[test]
    fn candidates_are_in_the_order_people_expect() {
        let paths = |text: &str| match Reference::parse(text).unwrap().candidates() {
            Candidates::Below(paths) => {
                paths.iter().map(|path| path.to_str().unwrap().to_owned()).collect::<Vec<_>>()
            }
            Candidates::Absolute(path) => vec![path.to_str().unwrap().to_owned()],
        };
        assert_eq!(
            paths("busybox"),
            [
                "busybox/latest",
                "busybox",
                "library/busybox/latest",
                "library/busybox",
                "docker.io/library/busybox/latest",
                "docker.io/library/busybox"
            ]
        );
        assert_eq!(paths("registry.k8s.io/e2e/nginx:1.2"), ["registry.k8s.io/e2e/nginx/1.2"]);
        assert_eq!(paths("nix:0/nix/store/x"), ["/nix/store/x"]);
        assert_eq!(paths("rootfs.local/a/b"), ["a/b"]);
    }

    #[test]
    fn an_entry_is_named_after_its_path() {
        let of = |path: &str| Reference::of_path(&path.split('/').collect::<Vec<_>>()).map(|r| r.to_string());
        assert_eq!(of("busybox").as_deref(), Some("docker.io/library/busybox:latest"));
        assert_eq!(of("busybox/1.36").as_deref(), Some("docker.io/library/busybox:1.36"));
        assert_eq!(of("registry.k8s.io/e2e/nginx/1.2").as_deref(), Some("registry.k8s.io/e2e/nginx:1.2"));
        assert_eq!(of("registry.k8s.io/pause").as_deref(), Some("registry.k8s.io/pause:latest"));
        assert_eq!(of("registry.k8s.io/pause/3.9").as_deref(), Some("registry.k8s.io/pause:3.9"));
        assert_eq!(of("team/app").as_deref(), Some("docker.io/team/app:latest"));
        assert_eq!(of("Debian").as_deref(), Some("rootfs.local/Debian:latest"));
        assert_eq!(of("debian/Bookworm").as_deref(), Some("docker.io/library/debian:Bookworm"));
        assert_eq!(of("with space"), None);
    }

    proptest! {
        #[test]
        fn the_normal_form_is_a_fixed_point(text in "[a-zA-Z0-9._:/@+-]{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                let printed = reference.to_string();
                prop_assert_eq!(Reference::parse(&printed).unwrap(), reference);
            }
        }

        #[test]
        fn a_well_formed_name_is_accepted(
            host in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,4}(:[0-9]{1,4})?/)?",
            path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}((-{1,3}|_{1,2}|\\.)[a-z0-9]{1,4}){0,2}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let text = format!("{host}{path}{tag}");
            let reference = Reference::parse(&text);
            prop_assert!(reference.is_ok(), "{}: {:?}", text, reference);
        }

        #[test]
        fn anything_is_answered_and_no_candidate_leaves_its_root(text in "\\PC{0,60}|[a-z./:@]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                let paths = match reference.candidates() {
                    Candidates::Below(paths) => paths,
                    Candidates::Absolute(path) => vec![path.strip_prefix("/").unwrap().to_owned()],
                };
                for path in paths {
                    let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
                    prop_assert!(plain, "{} gives {}", text, path.display());
                }
            }
        }

        #[test]
        fn a_path_name_finds_its_path_again(
            components in proptest::collection::vec("[a-z0-9]{1,6}|[0-9]\\.[0-9]|v[0-9]|[a-z]{2,5}\\.io|[A-Z][a-z]{1,3}", 1..5)
        ) {
            let components: Vec<&str> = components.iter().map(String::as_str).collect();
            if let Some(reference) = Reference::of_path(&components) {
                let Candidates::Below(paths) = reference.candidates() else { panic!("below a root") };
                prop_assert!(paths.contains(&components.iter().collect()), "{} from {:?}", reference, components);
            }
        }
    }
}
