//! From an image reference to a root filesystem directory to an OCI bundle.
//!
//! There is no image store: an image is a directory that is already on the node. What other runtimes pull, unpack and
//! snapshot is here a look-up and a mount.
//!
//! ```text
//! "registry.k8s.io/e2e/nginx:1.2"                       ImageSpec of a CRI call
//!       │ reference   checked, one spelling
//!       ▼
//! library ── aliases ─► places ── walk beneath the roots ─► entry: bare | bundle | sidecar
//!       │                 (beneath: openat2, link by link)      │ id, ImageConfig, handle on the tree
//!       │ records: pulled, removed, sizes  <state>/images       │
//!       │ index: ids, lists, own names (a cache of scans)       ├──► users    uid, gid, groups, home inside the tree
//!       │ seal: content digest              <state>/images      │
//!       ▼                                                       ▼
//! Image (ListImages, ImageStatus)        <container dir>: rootfs   upper, work ─► detached overlay (descriptor)
//!                                                         bundle   config.json, rootfs/ (empty: mount point)
//!                                                         usage    of the upper layer, and of the filesystems
//! ```
//!
//! # Invariants
//! - Nothing outside the configured roots is opened as an image, whatever a reference, a link or a sidecar says.
//! - Nothing here writes to an entry. A container writes to its own upper layer; records go to the state directory.
//! - An entry is opened once for a container; from then on only the handle is used. Switching a version link, or renaming a
//!   directory away, affects later containers only.
//! - What is read from an entry is regular, capped, and resolved beneath it; nothing is opened that could hang.
//! - No look-up walks a tree. Sizes, seals and the use of a writable layer do, each within limits and beside the requests.
//!
//! Nothing is asynchronous: every call may wait for a file system, so async callers run it where blocking is allowed. All
//! types can be shared between threads.
#![forbid(unsafe_code)]

mod atomic;
mod beneath;
pub mod bundle;
pub mod diff;
pub mod entry;
pub mod error;
pub mod image_config;
mod index;
pub mod library;
mod places;
mod records;
pub mod reference;
pub mod relabel;
pub mod rootfs;
pub mod seal;
pub mod size;
mod tree;
pub mod usage;
pub mod users;

pub use beneath::{FileError, WalkError};
pub use entry::{Entry, Form};
pub use error::{OpenError, ResolveError};
pub use image_config::ImageConfig;
pub use library::{Config, Image, Library};
pub use places::InvalidRoot;
pub use records::Size;
pub use reference::Reference;

/// Compiles only while the types that travel between the daemon's threads may.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Library>();
    shared::<Entry>();
    shared::<Image>();
    shared::<ResolveError>();
    shared::<rootfs::RootMount>();
    shared::<rootfs::RootError>();
    shared::<usage::WritableLayers>();
    shared::<users::UserError>();
};
