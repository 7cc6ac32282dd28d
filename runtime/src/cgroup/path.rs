//! `linux.cgroupsPath` of the runtime spec, parsed (config-linux.md, "Cgroups Path").
//!
//! For the cgroupfs driver it is a path: absolute ones start at each hierarchy's root, relative ones at the
//! runtime's own cgroup (v1) or at the parent of that (v2, whose own cgroup holds processes and so cannot
//! have controllers below it), as runc places them. For the systemd driver it is `slice:prefix:name`.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::Hierarchy;

/// Who makes the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// This runtime, by mkdir(2).
    #[default]
    Cgroupfs,
    /// systemd, asked over D-Bus for a transient scope.
    Systemd,
}

/// Where a container's cgroup is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupPath {
    /// From the root of every hierarchy; without the leading slash, without `.` and `..`.
    Absolute(PathBuf),
    /// From the runtime's own place in every hierarchy.
    Relative(PathBuf),
    /// A systemd scope (or, when the name ends in `.slice`, a slice).
    Systemd {
        /// The parent slice, such as `machine.slice`; empty means systemd's default.
        slice: String,
        /// The unit's name in full, such as `wright-id.scope`.
        unit: String,
    },
}

/// Why a `cgroupsPath` was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// It climbs out of where it starts.
    #[error("cgroupsPath {0:?} contains `..`")]
    Climbs(String),
    /// NUL, newline or another control character.
    #[error("cgroupsPath {0:?} contains a control character")]
    ControlCharacter(String),
    /// The hierarchy's root, or the runtime's own cgroup, is no container's.
    #[error("cgroupsPath {0:?} names no cgroup")]
    Empty(String),
    /// Not `slice:prefix:name`.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} instead"
    )]
    NotSystemd(String),
    /// A slice whose name cannot be turned into a path.
    #[error("invalid slice name {0:?}")]
    Slice(String),
}

impl CgroupPath {
    /// `given` as in the spec; without one, the container's `id` names the cgroup (relative, or a scope `wright-<id>`).
    pub fn parse(given: Option<&Path>, id: &str, driver: Driver) -> Result<Self, PathError> {
        let text = given.map(|path| path.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
        if let Some(text) = text.as_ref().filter(|text| text.chars().any(char::is_control)) {
            return Err(PathError::ControlCharacter(text.clone()));
        }
        match (driver, text) {
            (Driver::Cgroupfs, Some(text)) => Self::cgroupfs(&text),
            (Driver::Cgroupfs, None) => Self::cgroupfs(id),
            (Driver::Systemd, Some(text)) => Self::systemd(&text),
            (Driver::Systemd, None) => Self::systemd(&format!(":wright:{id}")),
        }
    }

    fn cgroupfs(text: &str) -> Result<Self, PathError> {
        let clean = normal(text)?;
        Ok(if text.starts_with('/') { Self::Absolute(clean) } else { Self::Relative(clean) })
    }

    fn systemd(text: &str) -> Result<Self, PathError> {
        let mut parts = text.split(':');
        let (Some(slice), Some(prefix), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PathError::NotSystemd(text.to_owned()));
        };
        if name.is_empty() || name.contains('/') || prefix.contains('/') {
            return Err(PathError::NotSystemd(text.to_owned()));
        }
        if !slice.is_empty() {
            expand_slice(slice)?;
        }
        let unit = if name.strip_suffix(".slice").is_some() {
            name.to_owned()
        } else if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        Ok(Self::Systemd { slice: slice.to_owned(), unit })
    }

    /// The directory below (or at) `hierarchy`'s mount. `v2`: the hierarchy is the unified one.
    pub(crate) fn directory(&self, hierarchy: &Hierarchy, v2: bool) -> Result<PathBuf, PathError> {
        Ok(match self {
            Self::Absolute(path) => hierarchy.mount.join(path),
            Self::Relative(path) => {
                let own = hierarchy.own.as_deref().unwrap_or(&hierarchy.mount);
                let start =
                    if v2 && own != hierarchy.mount { own.parent().unwrap_or(&hierarchy.mount) } else { own };
                start.join(path)
            }
            Self::Systemd { slice, unit } => {
                let slice = if slice.is_empty() { "system.slice" } else { slice };
                hierarchy.mount.join(expand_slice(slice)?).join(unit)
            }
        })
    }
}

/// `a/./b//c` as `a/b/c`, relative.
fn normal(text: &str) -> Result<PathBuf, PathError> {
    let mut clean = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => return Err(PathError::Climbs(text.to_owned())),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean.as_os_str().is_empty() {
        return Err(PathError::Empty(text.to_owned()));
    }
    Ok(clean)
}

/// systemd.slice(5): `a-b-c.slice` lives in `a.slice/a-b.slice/a-b-c.slice`; `-.slice` is the root.
pub(crate) fn expand_slice(slice: &str) -> Result<PathBuf, PathError> {
    let bad = || PathError::Slice(slice.to_owned());
    let name = slice.strip_suffix(".slice").ok_or_else(bad)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if name.contains('/') || name.split('-').any(str::is_empty) {
        return Err(bad());
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Ok(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroupfs(text: &str) -> Result<CgroupPath, PathError> {
        CgroupPath::parse(Some(Path::new(text)), "id", Driver::Cgroupfs)
    }

    #[test]
    fn paths_are_cleaned_and_stay_below_their_start() {
        assert_eq!(cgroupfs("/a//./b"), Ok(CgroupPath::Absolute("a/b".into())));
        assert_eq!(cgroupfs("a/b/"), Ok(CgroupPath::Relative("a/b".into())));
        assert_eq!(cgroupfs(""), Ok(CgroupPath::Relative("id".into())));
        assert_eq!(cgroupfs("/a/../b"), Err(PathError::Climbs("/a/../b".into())));
        assert_eq!(cgroupfs(".."), Err(PathError::Climbs("..".into())));
        assert_eq!(cgroupfs("/"), Err(PathError::Empty("/".into())));
        assert_eq!(cgroupfs("./."), Err(PathError::Empty("./.".into())));
        assert!(matches!(cgroupfs("/a\0b"), Err(PathError::ControlCharacter(_))));
        assert!(matches!(cgroupfs("/a\nb"), Err(PathError::ControlCharacter(_))));
    }

    #[test]
    fn a_relative_path_starts_where_runc_starts_it() {
        let at = |own: Option<&str>| Hierarchy {
            mount: "/m".into(),
            own: own.map(PathBuf::from),
            controllers: Vec::new(),
            label: String::new(),
        };
        let path = CgroupPath::Relative("x".into());
        assert_eq!(path.directory(&at(Some("/m/own/here")), false).unwrap(), Path::new("/m/own/here/x"));
        assert_eq!(path.directory(&at(Some("/m/own/here")), true).unwrap(), Path::new("/m/own/x"));
        assert_eq!(path.directory(&at(Some("/m")), true).unwrap(), Path::new("/m/x"));
        assert_eq!(path.directory(&at(None), false).unwrap(), Path::new("/m/x"));
    }

    #[test]
    fn systemd_names() {
        let parse = |text: &str| CgroupPath::parse(Some(Path::new(text)), "id", Driver::Systemd);
        let unit = |slice: &str, unit: &str| CgroupPath::Systemd { slice: slice.into(), unit: unit.into() };
        assert_eq!(parse("machine.slice:libpod:abc"), Ok(unit("machine.slice", "libpod-abc.scope")));
        assert_eq!(parse("a-b.slice::abc"), Ok(unit("a-b.slice", "abc.scope")));
        assert_eq!(parse("a.slice:x:a-pod.slice"), Ok(unit("a.slice", "a-pod.slice")));
        assert_eq!(CgroupPath::parse(None, "id", Driver::Systemd), Ok(unit("", "wright-id.scope")));
        assert!(matches!(parse("/a/b"), Err(PathError::NotSystemd(_))));
        assert!(matches!(parse("a:b:c:d"), Err(PathError::NotSystemd(_))));
        assert!(matches!(parse("a:b:"), Err(PathError::NotSystemd(_))));
        assert!(matches!(parse("a--b.slice:p:n"), Err(PathError::Slice(_))));
        assert!(matches!(parse("../x.slice:p:n"), Err(PathError::Slice(_))));
    }

    #[test]
    fn a_slice_is_nested_by_its_dashes() {
        assert_eq!(expand_slice("a-b-c.slice").unwrap(), Path::new("a.slice/a-b.slice/a-b-c.slice"));
        assert_eq!(expand_slice("-.slice").unwrap(), Path::new(""));
        assert!(expand_slice("-a.slice").is_err());
        assert!(expand_slice("a").is_err());
    }
}
