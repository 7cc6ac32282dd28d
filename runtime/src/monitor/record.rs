//! Exit records on disk: `exit.json` in a container's bundle, whole or not there.
//!
//! Written to a temporary name and renamed, without fsync: a record must survive the death of the daemon and
//! of the monitor, not the loss of power, after which no container runs anyway.

use std::fs;
use std::path::Path;

use super::protocol::ExitRecord;
use crate::{Failure, Step};

/// The record's name in the bundle.
pub const EXIT_RECORD: &str = "exit.json";

/// Writes the record of a container's end.
pub(crate) fn write(bundle: &Path, record: &ExitRecord) -> Result<(), Failure> {
    let path = bundle.join(EXIT_RECORD);
    let failed = |error: &std::io::Error| {
        let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
        Failure::at(Step::State, errno, &path)
    };
    let text =
        serde_json::to_vec(record).map_err(|error| Failure::because(Step::State, error.to_string()))?;
    let temporary = bundle.join("exit.json.tmp");
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(&error)
    })
}

/// Reads the record of a container's end. None: it has none yet.
///
/// # Errors
/// The file cannot be read, or is not a record.
pub fn read(bundle: &Path) -> Result<Option<ExitRecord>, Failure> {
    let path = bundle.join(EXIT_RECORD);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
            return Err(Failure::at(Step::State, errno, &path));
        }
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let failure = Failure::because(Step::State, error.to_string());
        Failure { path: Some(path.to_string_lossy().into_owned()), ..failure }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let record = ExitRecord {
            exit_code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at_ns: Some(1),
            finished_at_ns: 2,
            start_failure: None,
        };
        write(dir.path(), &record).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(record));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(EXIT_RECORD), "{").unwrap();
        assert_eq!(read(dir.path()).unwrap_err().step, Step::State);
    }
}
