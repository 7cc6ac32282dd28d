//! A criu that works on this kernel: the one that `tests/criu.sh` unpacked, or the machine's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::skip;

/// A directory to put before the others of PATH.
#[derive(Clone, Debug)]
pub struct Criu {
    directory: PathBuf,
}

impl Criu {
    /// None: there is none, or the kernel lacks what it needs, which has been said.
    #[must_use]
    pub fn require(test: &str) -> Option<Self> {
        static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        match FOUND.get_or_init(find) {
            Ok(directory) => Some(Self { directory: directory.clone() }),
            Err(reason) => {
                skip::skip(test, reason);
                None
            }
        }
    }

    /// The value for PATH under which criu, and what was unpacked with it, is found.
    #[must_use]
    pub fn path(&self) -> String {
        let rest = std::env::var("PATH").unwrap_or_default();
        format!("{}:{rest}", self.directory.display())
    }

    /// A program that was unpacked with criu. None: criu is the machine's own, and this is not there.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join(name)).filter(|path| path.is_file())
    }
}

fn find() -> Result<PathBuf, String> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.criu-cache/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where an image of a virtual machine may have it.
    let places = [unpacked, PathBuf::from("/opt/criu/bin")].into_iter().chain(std::env::split_paths(&path));
    let mut reason = "no criu: tests/deps.sh criu fetches one".to_owned();
    for directory in places.filter(|directory| directory.join("criu").is_file()) {
        let directory = directory.canonicalize().unwrap_or(directory);
        match Command::new(directory.join("criu")).arg("check").output() {
            Ok(output) if output.status.success() => return Ok(directory),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let line = text.lines().last().unwrap_or_default();
                reason = format!("{} does not work here: {line}", directory.join("criu").display());
            }
            Err(error) => reason = format!("{}: {error}", directory.join("criu").display()),
        }
    }
    Err(reason)
}
