//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The program `name`: in `PODWRIGHT_BIN_DIR`, or beside the test executable's own build
/// (`target/<triple>/<profile>/deps/../name`).
pub fn find(name: &str) -> Result<PathBuf> {
    let directory = if let Some(directory) = std::env::var_os("PODWRIGHT_BIN_DIR") {
        // Callers start programs with other working directories.
        std::path::absolute(directory)?
    } else {
        let mut path = std::env::current_exe()?;
        path.pop();
        if path.ends_with("deps") {
            path.pop();
        }
        path
    };
    let path = directory.join(name);
    if !path.is_file() {
        bail!("{} is not built (make build, or set PODWRIGHT_BIN_DIR)", path.display());
    }
    Ok(path)
}
