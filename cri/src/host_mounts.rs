//! The sources of a container's mounts, found on the host.
//!
//! As containerd does: a symbolic link is followed, and a path that does not exist becomes a directory. An image volume is
//! another entry's tree, bound read-only from where it lies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imageless::Library;
use imageless::relabel::{self, RelabelError};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::Error;
use crate::image;
use crate::translate::{MountRequest, MountSource, Propagation, RequestedSource, SourcePropagation};

/// How long a container's mounts may take to be labelled: less than kubelet waits.
const RELABEL_DEADLINE: Duration = Duration::from_secs(90);

/// A source, and the id of the image that it is of.
#[derive(Debug)]
pub struct Found {
    /// For translation.
    pub source: MountSource,
    /// None: a path of the host.
    pub image: Option<String>,
}

/// One source for each request, in their order.
pub fn sources(library: &Library, requests: &[MountRequest]) -> Result<Vec<Found>, Error> {
    // Read only where somebody asks for propagation: the file is long on a node with many pods.
    let needed = requests.iter().any(|request| request.propagation != Propagation::Private);
    let mountinfo = if needed { read_mountinfo()? } else { String::new() };
    requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let (path, image) = match &request.source {
                RequestedSource::Host(path) => (host_path(index, path)?, None),
                RequestedSource::Image { reference, sub_path } => {
                    let (path, id) = image_path(library, index, reference, sub_path.as_deref())?;
                    (path, Some(id))
                }
            };
            let propagation = match request.propagation {
                Propagation::Private => SourcePropagation::Private,
                _ => propagation_of(&mountinfo, &path),
            };
            Ok(Found { source: MountSource { path, propagation }, image })
        })
        .collect()
}

/// Gives the sources that ask for it the label of the container's files. What asks in vain is said in the log: kubelet asks only
/// where SELinux is on.
pub fn relabel(requests: &[MountRequest], sources: &[MountSource], label: Option<&str>) -> Result<(), Error> {
    let deadline = Instant::now() + RELABEL_DEADLINE;
    for (index, (request, source)) in requests.iter().zip(sources).enumerate() {
        if !request.selinux_relabel {
            continue;
        }
        let field = format!("config.mounts[{index}].selinux_relabel");
        let path = &source.path;
        match (&request.source, label) {
            (RequestedSource::Image { .. }, _) => {
                tracing::warn!(field, path = %path.display(), "ignored: no image is ever changed");
            }
            (RequestedSource::Host(_), None) => {
                tracing::warn!(field, path = %path.display(), "ignored: the container has no SELinux label");
            }
            (RequestedSource::Host(_), Some(label)) => {
                relabel::relabel(path, label, deadline).map_err(|error| match error {
                    RelabelError::System(_) => Error::invalid(field, error.to_string()),
                    RelabelError::Late(_) => {
                        Error::DeadlineExceeded { what: error.to_string(), limit: RELABEL_DEADLINE }
                    }
                    RelabelError::Kernel { path, source } => {
                        Error::Io { action: "label", path, source: source.into() }
                    }
                })?;
            }
        }
    }
    Ok(())
}

/// The path with its links followed, made if it is not there.
fn host_path(index: usize, path: &Path) -> Result<PathBuf, Error> {
    let failed = |source: io::Error| {
        Error::invalid(format!("config.mounts[{index}].host_path"), format!("{}: {source}", path.display()))
    };
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::canonicalize(path).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// The tree of an image, or what lies in it at `sub_path`, and the image's id. No link in it leads out of it.
fn image_path(
    library: &Library,
    index: usize,
    reference: &str,
    sub_path: Option<&Path>,
) -> Result<(PathBuf, String), Error> {
    let entry = library.resolve(reference).map_err(|error| image::resolve_error(reference, error))?;
    let sub_path = sub_path.unwrap_or(Path::new("."));
    let field = format!("config.mounts[{index}].image_sub_path");
    let opened = rustix::fs::openat2(
        entry.tree(),
        sub_path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let opened = opened.map_err(|errno| {
        Error::invalid(field.clone(), format!("{} in {reference}: {errno}", sub_path.display()))
    })?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let path = fs::read_link(link).map_err(|error| Error::invalid(field, error.to_string()))?;
    Ok((path, entry.id))
}

fn read_mountinfo() -> Result<String, Error> {
    let path = Path::new("/proc/self/mountinfo");
    fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

/// How the mount that `path` lies on propagates: the longest mount point above it, the last one mounted there.
fn propagation_of(mountinfo: &str, path: &Path) -> SourcePropagation {
    let mut best = (0, SourcePropagation::Private);
    for line in mountinfo.lines() {
        let Some((head, _)) = line.split_once(" - ") else { continue };
        let mut fields = head.split(' ').skip(4);
        let Some(point) = fields.next() else { continue };
        let point = PathBuf::from(unescape(point));
        let depth = point.components().count();
        if depth < best.0 || !path.starts_with(&point) {
            continue;
        }
        // After the mount options come the optional fields.
        let optional: Vec<&str> = fields.skip(1).collect();
        let has = |head: &str| optional.iter().any(|field| field.starts_with(head));
        let propagation = match (has("shared:"), has("master:")) {
            (true, _) => SourcePropagation::Shared,
            (false, true) => SourcePropagation::Slave,
            (false, false) => SourcePropagation::Private,
        };
        best = (depth, propagation);
    }
    best.1
}

/// Undoes mountinfo's octal escapes.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:30 / /mnt rw,relatime shared:5 - tmpfs tmpfs rw
31 30 0:31 / /mnt/slave rw master:5 - tmpfs tmpfs rw
32 30 0:32 / /mnt/with\\040space rw shared:7 master:5 - tmpfs tmpfs rw
";

    #[test]
    fn the_nearest_mount_decides() {
        let of = |path: &str| propagation_of(MOUNTINFO, Path::new(path));
        assert_eq!(of("/srv"), SourcePropagation::Private);
        assert_eq!(of("/mnt/x"), SourcePropagation::Shared);
        assert_eq!(of("/mnt/slave/x"), SourcePropagation::Slave);
        assert_eq!(of("/mnt/slavery"), SourcePropagation::Shared);
        assert_eq!(of("/mnt/with space/x"), SourcePropagation::Shared);
    }

    #[test]
    fn a_missing_source_becomes_a_directory_and_a_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        assert_eq!(host_path(0, &root.join("a/b")).unwrap(), root.join("a/b"));
        assert!(root.join("a/b").is_dir());
        std::os::unix::fs::symlink("a/b", root.join("link")).unwrap();
        assert_eq!(host_path(0, &root.join("link")).unwrap(), root.join("a/b"));
        fs::write(root.join("file"), "").unwrap();
        let error = host_path(3, &root.join("file/below")).unwrap_err();
        assert!(error.to_string().starts_with("config.mounts[3].host_path: "), "{error}");
    }
}
