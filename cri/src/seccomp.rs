//! Compiled seccomp profiles: compiled once for each distinct profile, handed to monitors as memfds.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::error::Error;

/// The most programs that are kept; nodes use two or three profiles.
const MAX_PROGRAMS: usize = 32;

/// Programs by the JSON of their profile, most recently used last.
#[derive(Debug, Default)]
pub struct SeccompCache {
    programs: Mutex<VecDeque<(String, Arc<[u8]>)>>,
}

impl SeccompCache {
    /// A sealed memfd with the program of `profile`; None: no profile, no filter. Blocks while it compiles.
    pub fn program(&self, profile: Option<&LinuxSeccomp>, container: &str) -> Result<Option<OwnedFd>, Error> {
        let Some(profile) = profile else { return Ok(None) };
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::internal(format!("prepare the seccomp profile of container {container}"), error)
        };
        let key = serde_json::to_string(profile).map_err(|error| failed(error.into()))?;
        let bytes = match self.take(&key) {
            Some(bytes) => bytes,
            None => runtime::seccomp::compile(profile)
                .map_err(|error| Error::invalid("config.linux.security_context.seccomp", error.to_string()))?
                .to_bytes()
                .into(),
        };
        self.put(key, bytes.clone());
        memfd(&bytes).map(Some).map_err(|error| failed(error.into()))
    }

    fn take(&self, key: &str) -> Option<Arc<[u8]>> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let at = programs.iter().position(|(known, _)| known == key)?;
        programs.remove(at).map(|(_, bytes)| bytes)
    }

    fn put(&self, key: String, bytes: Arc<[u8]>) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.retain(|(known, _)| *known != key);
        programs.push_back((key, bytes));
        if programs.len() > MAX_PROGRAMS {
            programs.pop_front();
        }
    }
}

/// `bytes` in a memfd that nobody can change, at its start.
pub(crate) fn memfd(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("podwright", flags)?);
    file.write_all(bytes)?;
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_cache_keeps_what_was_used_last() {
        let cache = SeccompCache::default();
        for number in 0..=MAX_PROGRAMS {
            cache.put(number.to_string(), Arc::from([]));
        }
        assert!(cache.take("0").is_none());
        assert!(cache.take("1").is_some());
        assert!(cache.take("1").is_none());
    }

    #[test]
    fn a_memfd_is_read_from_its_start() {
        let mut text = String::new();
        File::from(memfd(b"program").unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "program");
    }
}
