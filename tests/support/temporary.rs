//! Directories of the tests' own. `PODWRIGHT_TEST_MARK` is in the name of each, and so in that of everything that is named for it (cgroups,
//! containers): what somebody's tests have left behind is seen by it, whoever else's run beside them (`tests/left.sh`).

use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::{Builder, TempDir};

/// A directory below the one for temporary files. Its name is short, because a socket's path may have no more than 107 bytes.
pub fn directory() -> Result<TempDir> {
    directory_in(&std::env::temp_dir())
}

/// One somewhere else.
pub fn directory_in(place: &Path) -> Result<TempDir> {
    let (prefix, random) = match std::env::var("PODWRIGHT_TEST_MARK") {
        Ok(mark) if !mark.is_empty() => (format!("pw{mark}_"), 4),
        _ => ("pw".to_owned(), 6),
    };
    Builder::new().prefix(&prefix).rand_bytes(random).tempdir_in(place).context("temporary directory")
}
