//! Files that are there whole or not at all: written under a temporary name, then renamed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What a file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The death of this process: the rename is enough.
    Crash,
    /// The loss of power: file and directory are synced.
    PowerLoss,
}

/// Replaces `path` by `bytes`, mode 0600. The temporary name beside it is the writing thread's own, so that of several writers one
/// wins whole: sizes are found out, and written down, beside the requests.
pub(crate) fn write(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let parent = path.parent().ok_or_else(invalid)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or_else(invalid)?);
    name.push(format!(".{}-{:?}.tmp", std::process::id(), std::thread::current().id()));
    let temporary = parent.join(name);
    let written = write_new(&temporary, bytes, durability).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The write's error is the one to tell.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    if durability == Durability::PowerLoss {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if durability == Durability::PowerLoss { file.sync_all() } else { Ok(()) }
}
