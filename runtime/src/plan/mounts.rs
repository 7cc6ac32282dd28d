//! The spec's `mounts` and `root`. See the runtime-spec's `config.md#mounts`.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount as SpecMount, Spec};

use super::error::{PlanError, no_nul};
use super::namespaces::id_maps;
use super::options::{self, Options};
use super::{Mount, MountIdmap, MountSource, NamespaceKind, Namespaces, Rootfs};

/// The most mounts of one spec.
const MAX_MOUNTS: usize = 4096;

/// The root filesystem, its path made absolute against the bundle.
pub(super) fn rootfs(spec: &Spec, bundle: &Path) -> Result<Rootfs, PlanError> {
    let root = spec.root().as_ref().ok_or_else(|| PlanError::missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(PlanError::missing("root.path"));
    }
    no_nul(|| "root.path".into(), &root.path().to_string_lossy())?;
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let propagation = match propagation {
        None | Some("") => None,
        Some(name) => Some(options::propagation(name).ok_or_else(|| {
            PlanError::invalid(
                "linux.rootfsPropagation",
                format!("rootfsPropagation={name} is not supported"),
            )
        })?),
    };
    Ok(Rootfs {
        path: bundle.join(root.path()),
        readonly: root.readonly().unwrap_or(false),
        propagation,
        no_pivot: false,
    })
}

/// The mounts of a spec, in its order.
pub(super) fn from_spec(
    spec: &Spec,
    namespaces: &Namespaces,
    bundle: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<Mount>, PlanError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    if mounts.len() > MAX_MOUNTS {
        return Err(PlanError::invalid("mounts", format!("more than {MAX_MOUNTS}")));
    }
    let root = spec.root().as_ref().map(|root| bundle.join(root.path()));
    let place = Place { namespaces, bundle, root: root.as_deref() };
    mounts.iter().enumerate().map(|(index, mount)| one(index, mount, &place, warnings)).collect()
}

/// What a mount is resolved against.
struct Place<'a> {
    namespaces: &'a Namespaces,
    bundle: &'a Path,
    /// The host path of the root.
    root: Option<&'a Path>,
}

fn one(
    index: usize,
    mount: &SpecMount,
    place: &Place<'_>,
    warnings: &mut Vec<String>,
) -> Result<Mount, PlanError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let words = mount.options().iter().flatten().map(String::as_str);
    for word in words.clone() {
        no_nul(|| field("options"), word)?;
    }
    let options = options::parse(words);
    let destination = destination(&field("destination"), mount.destination(), warnings)?;
    let destination = below_root(destination, place.root);
    let source = source(&field, mount, &options, place.bundle)?;
    let idmap = idmap(&field, mount, &options, &source, place.namespaces)?;
    if options.tmpcopyup && !matches!(&source, MountSource::Filesystem { fstype, .. } if fstype == "tmpfs") {
        return Err(PlanError::invalid(field("options"), "tmpcopyup is for tmpfs only"));
    }
    Ok(Mount {
        destination,
        source,
        attr_set: options.attr_set,
        attr_clear: options.attr_clear,
        attr_set_recursive: options.attr_set_recursive,
        attr_clear_recursive: options.attr_clear_recursive,
        propagation: options.propagation,
        tmpcopyup: options.tmpcopyup,
        idmap,
        attr_explicit: options.explicit,
    })
}

/// The destination as an absolute path without `.`, `..` and doubled slashes; `..` at the root stays there.
fn destination(field: &str, path: &Path, warnings: &mut Vec<String>) -> Result<PathBuf, PlanError> {
    no_nul(|| field.to_owned(), &path.to_string_lossy())?;
    if path.as_os_str().is_empty() {
        return Err(PlanError::missing(field));
    }
    if !path.is_absolute() {
        warnings.push(format!("{field}: relative destination {} is taken from /", path.display()));
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// A destination that is given as the host sees it, below `root.path`, as the container sees it: some tools write that.
fn below_root(destination: PathBuf, root: Option<&Path>) -> PathBuf {
    match root.filter(|root| *root != Path::new("/")).and_then(|root| destination.strip_prefix(root).ok()) {
        Some(inside) => Path::new("/").join(inside),
        None => destination,
    }
}

fn source(
    field: &dyn Fn(&str) -> String,
    mount: &SpecMount,
    options: &Options,
    bundle: &Path,
) -> Result<MountSource, PlanError> {
    let source = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty());
    if let Some(source) = source {
        no_nul(|| field("source"), &source.to_string_lossy())?;
    }
    let fstype = mount.typ().as_deref().unwrap_or_default();
    no_nul(|| field("type"), fstype)?;
    if options.remount {
        // Whoever else has the filesystem mounted, the host above all, is to go on writing to it.
        let superblock_flags = options.superblock_flags & !options::superblock::RDONLY;
        return Ok(MountSource::Remount { options: options.data.clone(), superblock_flags });
    }
    // The type of a bind mount means nothing; "bind" as a type without the option is what docker's tools write.
    let bind = options.bind.or_else(|| (fstype == "bind").then_some(false));
    if let Some(recursive) = bind {
        let source = source.ok_or_else(|| PlanError::missing(field("source")))?;
        if let Some((key, _)) = options.data.first() {
            let problem = format!("bind mounts cannot have any filesystem-specific options applied ({key})");
            return Err(PlanError::invalid(field("options"), problem));
        }
        return Ok(MountSource::Bind { path: bundle.join(source), recursive });
    }
    match fstype {
        // Without a type only the propagation or the attributes of what is there can be meant, and runc has no such mount.
        "" => Err(PlanError::missing(field("type"))),
        "cgroup" | "cgroup2" => Ok(MountSource::Cgroup),
        _ => Ok(MountSource::Filesystem {
            fstype: fstype.to_owned(),
            source: source.map(|source| source.to_string_lossy().into_owned()),
            options: options.data.clone(),
            superblock_flags: options.superblock_flags,
        }),
    }
}

fn idmap(
    field: &dyn Fn(&str) -> String,
    mount: &SpecMount,
    options: &Options,
    source: &MountSource,
    namespaces: &Namespaces,
) -> Result<Option<MountIdmap>, PlanError> {
    let uid_maps = id_maps(&field("uidMappings"), mount.uid_mappings().as_deref())?;
    let gid_maps = id_maps(&field("gidMappings"), mount.gid_mappings().as_deref())?;
    let mapped = !uid_maps.is_empty() || !gid_maps.is_empty();
    if options.idmap.is_none() && !mapped {
        return Ok(None);
    }
    if !matches!(source, MountSource::Bind { .. }) {
        return Err(PlanError::invalid(
            field("options"),
            "id-mapped mounts are only supported for bind-mounts",
        ));
    }
    if mapped && (uid_maps.is_empty() || gid_maps.is_empty()) {
        let missing = if uid_maps.is_empty() { "uidMappings" } else { "gidMappings" };
        return Err(PlanError::conflict(
            field(missing),
            "id-mapped mounts must have both uid and gid mappings specified",
        ));
    }
    if !mapped && !namespaces.contains(NamespaceKind::User) {
        return Err(PlanError::conflict(field("options"), "idmap without mappings needs a user namespace"));
    }
    Ok(Some(MountIdmap { uid_maps, gid_maps, recursive: options.idmap.unwrap_or(false) }))
}

/// `maskedPaths` or `readonlyPaths`, possible only in a mount namespace. A relative one, which the spec does not know, is taken from `/`, as in
/// runc.
pub(super) fn guarded_paths(
    field: &str,
    paths: Option<&[String]>,
    namespaces: &Namespaces,
) -> Result<Vec<PathBuf>, PlanError> {
    let paths = paths.unwrap_or_default();
    if !paths.is_empty() && !namespaces.contains(NamespaceKind::Mount) {
        return Err(PlanError::conflict(
            field,
            "unable to restrict sys entries without a private MNT namespace",
        ));
    }
    let mut guarded = Vec::with_capacity(paths.len());
    let mut seen = HashSet::with_capacity(paths.len());
    for (index, path) in paths.iter().enumerate() {
        no_nul(|| format!("{field}[{index}]"), path)?;
        if path.is_empty() {
            return Err(PlanError::missing(format!("{field}[{index}]")));
        }
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            return Err(PlanError::invalid(format!("{field}[{index}]"), format!("{path} contains \"..\"")));
        }
        // A second mount over the first would guard nothing more.
        if seen.insert(path) {
            guarded.push(Path::new("/").join(path));
        }
    }
    Ok(guarded)
}
