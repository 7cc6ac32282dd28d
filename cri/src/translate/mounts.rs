//! Mounts of the request: `Mount`, parsed, and one bind mount of the spec for each.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::inputs::{ContainerInputs, MountSource, SourcePropagation};
use super::namespaces::{self, IdRange, Userns};
use crate::check;
use crate::error::Error;
use crate::v1::{self, MountPropagation};

/// Options of `mount_options`, in groups of which one mount can have one. See `mount_setattr(2)`.
const OPTIONS: &[&[&str]] = &[
    &["exec", "noexec"],
    &["suid", "nosuid"],
    &["dev", "nodev"],
    &["atime", "noatime", "relatime", "strictatime"],
    &["diratime", "nodiratime"],
    &["symfollow", "nosymfollow"],
];

/// One mount of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Where in the container: absolute, never the root itself.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: RequestedSource,
    /// Not writable. Always so for images; a request that says otherwise is refused.
    pub readonly: bool,
    /// Nor anything that is mounted below it.
    pub recursive_readonly: bool,
    /// Which way later mounts travel.
    pub propagation: Propagation,
    /// Give the source the container's SELinux label.
    pub selinux_relabel: bool,
    /// Owners as they are on disk and as the container's user namespace sees them; empty: unchanged.
    pub uid_mappings: Vec<IdRange>,
    /// Groups, likewise.
    pub gid_mappings: Vec<IdRange>,
    /// More flags, each one of those known here.
    pub options: Vec<&'static str>,
}

/// What a request wants to see mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedSource {
    /// An absolute path of the host; a symbolic link is followed, a missing path made a directory.
    Host(PathBuf),
    /// The root filesystem of an image.
    Image {
        /// Reference or id.
        reference: String,
        /// Inside it; None: its root.
        sub_path: Option<PathBuf>,
    },
}

/// Which way later mounts travel. See `mount_namespaces(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the host into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// Parses `mounts`.
pub(super) fn parse(field: &str, mounts: Vec<v1::Mount>) -> Result<Vec<MountRequest>, Error> {
    let one = |(i, mount): (usize, v1::Mount)| parse_one(&format!("{field}[{i}]"), mount);
    check::list(field, mounts)?.into_iter().enumerate().map(one).collect()
}

/// Parses one mount.
fn parse_one(field: &str, mount: v1::Mount) -> Result<MountRequest, Error> {
    let at = |name: &str| format!("{field}.{name}");
    let destination = check::absolute_path(&at("container_path"), &mount.container_path)?;
    if destination == Path::new("/") {
        return Err(Error::invalid(at("container_path"), "must not be the root of the container"));
    }
    let propagation = match MountPropagation::try_from(mount.propagation) {
        Ok(MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            let reason = format!("{} is not a propagation", mount.propagation);
            return Err(Error::invalid(at("propagation"), reason));
        }
    };
    if mount.recursive_read_only && !mount.readonly {
        return Err(Error::invalid(at("recursive_read_only"), "needs readonly"));
    }
    if mount.recursive_read_only && propagation != Propagation::Private {
        return Err(Error::invalid(at("recursive_read_only"), "needs private propagation"));
    }
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(Error::invalid(at("uidMappings"), "and gidMappings must be given together"));
    }
    let image = mount.image.is_some();
    let source = parse_source(field, mount.image, &mount.host_path, &mount.image_sub_path)?;
    if image && propagation != Propagation::Private {
        return Err(Error::invalid(at("propagation"), "has to be private for an image"));
    }
    if image && !mount.readonly {
        return Err(Error::invalid(at("readonly"), "has to be set for an image: nothing writes to one"));
    }
    Ok(MountRequest {
        destination,
        source,
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        uid_mappings: ranges(&at("uidMappings"), mount.uid_mappings)?,
        gid_mappings: ranges(&at("gidMappings"), mount.gid_mappings)?,
        options: parse_options(&at("mount_options"), &mount.mount_options)?,
    })
}

/// A host path or an image, never both.
fn parse_source(
    field: &str,
    image: Option<v1::ImageSpec>,
    host_path: &str,
    sub_path: &str,
) -> Result<RequestedSource, Error> {
    let sub_field = format!("{field}.image_sub_path");
    let host_field = format!("{field}.host_path");
    let Some(image) = image else {
        if !sub_path.is_empty() {
            return Err(Error::invalid(sub_field, "goes with image only"));
        }
        return Ok(RequestedSource::Host(check::absolute_path(&host_field, host_path)?));
    };
    if !host_path.is_empty() {
        return Err(Error::invalid(host_field, "must be empty where an image is given"));
    }
    Ok(RequestedSource::Image {
        reference: check::image(&format!("{field}.image.image"), &image.image)?,
        sub_path: match sub_path {
            "" => None,
            path => Some(check::relative_path(&sub_field, path)?),
        },
    })
}

/// Known options that do not contradict each other.
fn parse_options(field: &str, raw: &[String]) -> Result<Vec<&'static str>, Error> {
    let mut chosen: Vec<(usize, &'static str)> = Vec::new();
    for (i, option) in raw.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let known = OPTIONS
            .iter()
            .enumerate()
            .find_map(|(group, names)| names.iter().find(|name| *name == option).map(|name| (group, *name)));
        let Some((group, name)) = known else {
            let reason = match option.as_str() {
                "ro" | "rw" => "is said by the field readonly".to_owned(),
                other => format!("{} is not an option of a bind mount", check::shown(other)),
            };
            return Err(Error::invalid(field, reason));
        };
        match chosen.iter().find(|(other, _)| *other == group) {
            Some((_, other)) if *other != name => {
                return Err(Error::invalid(field, format!("{name} contradicts {other}")));
            }
            Some(_) => {}
            None => chosen.push((group, name)),
        }
    }
    Ok(chosen.into_iter().map(|(_, name)| name).collect())
}

/// Mappings of one mount. The kernel takes at most 340 lines.
fn ranges(field: &str, mappings: Vec<v1::IdMapping>) -> Result<Vec<IdRange>, Error> {
    const LINES: usize = 340;
    if mappings.len() > LINES {
        return Err(Error::invalid(field, format!("has {} mappings; {LINES} are allowed", mappings.len())));
    }
    let mut ranges: Vec<IdRange> = Vec::with_capacity(mappings.len());
    for (i, mapping) in mappings.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        let range = namespaces::range(&field, mapping)?;
        if ranges.iter().any(|earlier| earlier.overlaps(range)) {
            return Err(Error::invalid(field, "overlaps an earlier mapping"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// The bind mounts of the request, in its order.
pub(super) fn to_oci(inputs: &ContainerInputs<'_>) -> Result<Vec<Mount>, Error> {
    let requests = &inputs.container.mounts;
    if requests.len() != inputs.mount_sources.len() {
        let text = format!("{} mounts but {} sources", requests.len(), inputs.mount_sources.len());
        return Err(Error::internal(format!("container {}", inputs.container.metadata.name), text));
    }
    requests.iter().zip(inputs.mount_sources).map(|(request, source)| bind(inputs, request, source)).collect()
}

/// One bind mount of the spec.
fn bind(inputs: &ContainerInputs<'_>, request: &MountRequest, source: &MountSource) -> Result<Mount, Error> {
    let refused = |reason: String| Error::FailedPrecondition {
        what: "container",
        id: inputs.container.metadata.name.clone(),
        reason,
    };
    let mut options = vec!["rbind"];
    let path = source.path.display();
    options.push(match (request.propagation, source.propagation) {
        (Propagation::Private, _) => "rprivate",
        (Propagation::HostToContainer, SourcePropagation::Private) => {
            return Err(refused(format!(
                "mounts below {path} cannot propagate: it is not on a shared mount"
            )));
        }
        (Propagation::HostToContainer, _) => "rslave",
        (Propagation::Bidirectional, SourcePropagation::Shared) => "rshared",
        (Propagation::Bidirectional, _) => {
            return Err(refused(format!("mounts cannot propagate to {path}: it is not on a shared mount")));
        }
    });
    options.push(match (request.readonly, request.recursive_readonly) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) if inputs.host.recursive_readonly => "rro",
        // The word is what kubelet looks for in the message.
        (true, true) => {
            return Err(refused(format!("RROUnsupported: {path} cannot be made read-only recursively here")));
        }
    });
    options.extend(&request.options);
    let mut mount = super::filesystem(&request.destination, "bind", &source.path, &options);
    match (&request.source, &inputs.pod.namespaces.userns) {
        // An image's root is the pod's root, as in the container's own.
        (RequestedSource::Image { .. }, Userns::Mapped { uids, gids }) if request.uid_mappings.is_empty() => {
            set_mappings(&mut mount, &[*uids], &[*gids]);
        }
        _ => set_mappings(&mut mount, &request.uid_mappings, &request.gid_mappings),
    }
    Ok(mount)
}

/// Maps the owners of a mount; no mapping leaves them as they are.
fn set_mappings(mount: &mut Mount, uids: &[IdRange], gids: &[IdRange]) {
    let oci = |ranges: &[IdRange]| {
        (!ranges.is_empty()).then(|| ranges.iter().map(|range| range.to_oci()).collect::<Vec<_>>())
    };
    mount.set_uid_mappings(oci(uids)).set_gid_mappings(oci(gids));
}
