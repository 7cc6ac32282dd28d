//! From an image reference to a root filesystem directory to an OCI bundle.
#![forbid(unsafe_code)]

mod atomic;
mod beneath;
pub mod bundle;
pub mod entry;
pub mod image_config;
mod index;
pub mod library;
mod places;
mod records;
pub mod reference;
pub mod rootfs;
pub mod seal;
pub mod size;
mod tree;
pub mod users;

pub use beneath::{FileError, WalkError};
pub use entry::{Entry, Form};
pub use image_config::ImageConfig;
pub use library::{Config, Image, Library, ResolveError};
pub use places::InvalidRoot;
pub use records::Size;
pub use reference::Reference;
