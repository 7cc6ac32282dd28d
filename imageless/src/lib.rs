//! From an image reference to a root filesystem directory to an OCI bundle.
#![forbid(unsafe_code)]

mod atomic;
mod beneath;
pub mod bundle;
pub mod entry;
pub mod image_config;
pub mod reference;
pub mod rootfs;
mod tree;
pub mod users;

pub use beneath::{FileError, WalkError};
pub use entry::{Entry, Form};
pub use image_config::ImageConfig;
pub use reference::Reference;
