//! Images, all six calls: here an image is a root filesystem directory that [`imageless::Library`] knows.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imageless::usage::FsUsage;
use imageless::{Entry, Image as Known, Library, ResolveError};
use runtime::failure::sentence;
use serde_json::json;
use tonic::metadata::MetadataMap;
use tracing::debug_span;

use crate::check;
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::records::now_ns;
use crate::translate::Container;
use crate::v1::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoResponse, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, Int64Value, ListImagesRequest, PullImageRequest, RemoveImageRequest, UInt64Value,
};

/// ListImages.
pub async fn list(daemon: &Daemon, request: ListImagesRequest) -> Result<Vec<Image>, Error> {
    let filter = request.filter.and_then(|filter| filter.image).map(|image| image.image);
    let filter = filter.filter(|reference| !reference.is_empty());
    let images = daemon.images();
    blocking(debug_span!("image_list"), move || {
        let images = images.list(filter.as_deref());
        let images = images.map_err(|error| resolve_error(filter.as_deref().unwrap_or_default(), error))?;
        Ok(images.into_iter().map(image).collect())
    })
    .await
}

/// ImageStatus. A missing image is an absent one.
pub async fn status(daemon: &Daemon, request: ImageStatusRequest) -> Result<ImageStatusResponse, Error> {
    let reference = reference(request.image)?;
    let verbose = request.verbose;
    let images = daemon.images();
    blocking(debug_span!("image_status"), move || {
        let known = images.status(&reference).map_err(|error| resolve_error(&reference, error))?;
        let info = known.as_ref().filter(|_| verbose).map(info).unwrap_or_default();
        Ok(ImageStatusResponse { image: known.map(image), info })
    })
    .await
}

/// The shortest time that a caller may give a pull: a registration goes to the disk before it is told.
const PULL_MIN: Duration = Duration::from_millis(2);

/// How long a caller waits for its answer, by the header `grpc-timeout` (gRPC over HTTP/2, "Requests"). None: it does not say.
pub fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        "M" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// PullImage: resolve and register. Credentials are not looked at: nothing is fetched. A caller that has left before an answer can
/// reach it is told so, and nothing is registered for nobody.
#[tracing::instrument(name = "pull_image", skip_all)]
pub async fn pull(
    daemon: &Daemon,
    request: PullImageRequest,
    patience: Option<Duration>,
) -> Result<String, Error> {
    let reference = reference(request.image)?;
    if let Some(limit) = patience.filter(|patience| *patience < PULL_MIN) {
        return Err(Error::DeadlineExceeded { what: format!("the pull of {reference}"), limit });
    }
    let images = daemon.images();
    blocking(debug_span!("image_pull"), move || {
        let entry = images.pull(&reference).map_err(|error| resolve_error(&reference, error))?;
        tracing::info!(reference, id = entry.id, path = %entry.location().display(), "registered");
        Ok(entry.id)
    })
    .await
}

/// RemoveImage: unregister. The directory stays.
#[tracing::instrument(name = "remove_image", skip_all)]
pub async fn remove(daemon: &Daemon, request: RemoveImageRequest) -> Result<(), Error> {
    let reference = reference(request.image)?;
    let images = daemon.images();
    blocking(debug_span!("image_remove"), move || {
        images.remove(&reference).map_err(|error| resolve_error(&reference, error))
    })
    .await
}

/// ImageFsInfo: the filesystems of the roots, and that of the writable layers.
pub async fn fs_info(daemon: &Arc<Daemon>) -> Result<ImageFsInfoResponse, Error> {
    let daemon = daemon.clone();
    blocking(debug_span!("image_fs_info"), move || {
        let usage = imageless::usage::node_usage(daemon.images().roots(), &daemon.state)
            .map_err(|error| Error::internal("look at the filesystems of images and containers", error))?;
        Ok(ImageFsInfoResponse {
            image_filesystems: usage.images.iter().map(filesystem).collect(),
            container_filesystems: vec![filesystem(&usage.containers)],
        })
    })
    .await
}

fn filesystem(usage: &FsUsage) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.path.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes_used }),
    }
}

/// The reference of a request.
fn reference(image: Option<ImageSpec>) -> Result<String, Error> {
    let image = image.ok_or_else(|| Error::invalid("image", "must be given"))?;
    check::image("image.image", &image.image)
}

/// Why an image cannot be used, as the caller sees it.
pub(crate) fn resolve_error(reference: &str, error: ResolveError) -> Error {
    let reference = reference.to_owned();
    match error {
        ResolveError::NotFound { places, .. } => Error::ImageNotFound { reference, searched: places },
        ResolveError::Removed { place, .. } => Error::ImageNotFound { reference, searched: vec![place] },
        error if error.is_invalid() => Error::invalid("image", sentence(&error)),
        error @ (ResolveError::Refused { .. } | ResolveError::Unusable { .. }) => {
            Error::FailedPrecondition { what: "image", id: reference, reason: sentence(&error) }
        }
        other => Error::internal(format!("image {reference}"), other),
    }
}

/// The name a container's status calls its image by: the first of the image's names, or else what the request said.
pub(crate) fn display_name(library: &Library, entry: &Entry, container: &Container) -> String {
    let known = library.image_of(entry);
    let requested = || match container.user_specified_image.as_str() {
        "" => container.image.clone(),
        specified => specified.to_owned(),
    };
    known.repo_tags.into_iter().chain(known.repo_digests).next().unwrap_or_else(requested)
}

/// The image as the API shows it.
fn image(known: Known) -> Image {
    Image {
        spec: Some(ImageSpec { image: known.id.clone(), ..ImageSpec::default() }),
        id: known.id,
        repo_tags: known.repo_tags,
        repo_digests: known.repo_digests,
        size: known.size_bytes,
        uid: known.uid.map(|uid| Int64Value { value: uid.into() }),
        username: known.username.unwrap_or_default(),
        pinned: known.pinned,
    }
}

/// What `crictl inspecti` shows beside the status.
fn info(known: &Known) -> HashMap<String, String> {
    let location: &PathBuf = &known.location;
    let info = json!({
        "location": location,
        "form": known.form,
        "pulled": known.pulled,
        "seal": known.seal,
        "imageSpec": { "config": *known.config },
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_patience_is_read() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            patience(&metadata)
        };
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("1m"), Some(Duration::from_millis(1)));
        assert_eq!(read("998765u"), Some(Duration::from_micros(998_765)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(read("3H"), Some(Duration::from_secs(10_800)));
        for bad in ["", "S", "-1S", "1s", "18446744073709551615H", "1.5S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(patience(&MetadataMap::new()), None);
    }
}
