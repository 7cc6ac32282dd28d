//! What can go wrong between a reference and an image, each with what was asked for and the place it went wrong at.

use std::io;
use std::path::PathBuf;

use crate::beneath::WalkError;
use crate::entry::EntryError;
use crate::places::InvalidRoot;
use crate::reference::ReferenceError;
use crate::seal::SealError;

/// Why a library could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A root that cannot be one.
    #[error(transparent)]
    Root(#[from] InvalidRoot),
    /// An alias whose name is no reference.
    #[error("the alias {alias:?} is not an image reference")]
    AliasName {
        /// As configured.
        alias: String,
        /// The rule it breaks.
        #[source]
        source: ReferenceError,
    },
    /// An alias whose target is not a path below a root.
    #[error(
        "the alias {alias:?} must lead to a relative path below a root, without \"..\"; it is {target:?}"
    )]
    AliasTarget {
        /// As configured.
        alias: String,
        /// As configured.
        target: String,
    },
    /// Two spellings of one reference with different targets.
    #[error("{reference} has two aliases")]
    AliasTwice {
        /// The normal form of both.
        reference: String,
    },
    /// The records cannot be read.
    #[error("cannot open the image records in {path}")]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Not a reference at all.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No such entry.
    #[error("no root filesystem for {reference:?}; searched {}", list_of(.places))]
    NotFound {
        /// As given.
        reference: String,
        /// Every directory that would have been it.
        places: Vec<PathBuf>,
    },
    /// Its image was removed; it comes back when it is pulled.
    #[error("the image {reference:?} was removed; its directory {place} is used again after a pull")]
    Removed {
        /// As given.
        reference: String,
        /// Where it is.
        place: PathBuf,
    },
    /// A short id that fits several.
    #[error("the image id {prefix:?} is ambiguous: {count} images begin so")]
    Ambiguous {
        /// As given.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// The way to it leads where it must not.
    #[error("cannot use {place} for {reference:?}")]
    Refused {
        /// As given.
        reference: String,
        /// The place in question.
        place: PathBuf,
        /// What is wrong with the way.
        #[source]
        source: WalkError,
    },
    /// It is there and cannot be used.
    #[error("cannot use {place} for {reference:?}")]
    Unusable {
        /// As given.
        reference: String,
        /// The entry.
        place: PathBuf,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// The registration could not be recorded.
    #[error("cannot record the registration of {reference:?}")]
    State {
        /// As given.
        reference: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be sealed or verified.
    #[error("cannot seal or verify {reference:?}")]
    Seal {
        /// As given.
        reference: String,
        /// Why.
        #[source]
        source: SealError,
    },
}

impl ResolveError {
    /// Whether the image simply is not there: gRPC's `NOT_FOUND`, and a nil image in `ImageStatus`.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Removed { .. })
    }

    /// Whether the caller asked for something that cannot be a name or an id: gRPC's `INVALID_ARGUMENT`.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Reference(_) | Self::Ambiguous { .. })
    }
}

fn list_of(places: &[PathBuf]) -> String {
    match places {
        [] => "nothing: no roots are configured".to_owned(),
        places => places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}
