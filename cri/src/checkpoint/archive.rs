//! The archive of a checkpoint: a tar file that is there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::io::Errno;

use super::open_regular;
use crate::error::Error;
use crate::ids;

/// The mode of an archive and of all in it that is ours: it holds a container's memory.
const PRIVATE: u32 = 0o600;

/// How the names of unfinished archives begin.
const TEMPORARY: &str = ".podwright-";

/// Removes an archive that was never finished.
pub(super) fn remove_unfinished(path: &Path) {
    let ours = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()));
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    if path.is_absolute()
        && ours
        && is_file
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "a checkpoint that was not finished cannot be removed");
    }
}

/// When work on an archive is of no use any more.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    /// The time that it may take is over then.
    pub(super) deadline: Instant,
    /// Who asked for it has left.
    pub(super) left: Arc<AtomicBool>,
}

impl Stop {
    fn check(&self) -> io::Result<()> {
        match (self.left.load(Ordering::Relaxed), Instant::now() >= self.deadline) {
            (true, _) => Err(Errno::CANCELED.into()),
            (_, true) => Err(Errno::TIMEDOUT.into()),
            _ => Ok(()),
        }
    }
}

/// A file whose writing ends when it is of no use any more.
#[derive(Debug)]
pub(super) struct Stoppable {
    file: File,
    stop: Stop,
}

impl Write for Stoppable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A tar file under way.
pub(super) type Tar = tar::Builder<BufWriter<Stoppable>>;

/// A new private file to write a tar archive to.
pub(super) fn file(path: &Path, stop: Stop) -> io::Result<Tar> {
    let file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)?;
    Ok(tar::Builder::new(BufWriter::new(Stoppable { file, stop })))
}

/// An archive under way. Dropping it removes it.
pub(super) struct Archive {
    /// None: it is finished.
    tar: Option<Tar>,
    temporary: PathBuf,
    location: PathBuf,
    now: u64,
}

impl Archive {
    /// Begins one beside its location. Only a regular file is ever replaced, and only in the end. `note` writes down the name it has
    /// until then, before there is such a file.
    pub(super) fn create(
        location: &Path,
        stop: Stop,
        note: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        match fs::symlink_metadata(location) {
            Ok(there) if !there.is_file() => {
                let reason = format!("{} is there and is no regular file", location.display());
                return Err(Error::invalid("location", reason));
            }
            _ => {}
        }
        let Some(parent) = location.parent() else {
            return Err(Error::invalid("location", "must name a file"));
        };
        if !parent.is_dir() {
            return Err(Error::invalid("location", format!("{} is no directory", parent.display())));
        }
        let temporary = parent.join(format!("{TEMPORARY}{}", ids::random()?));
        note(&temporary)?;
        let tar = file(&temporary, stop).map_err(|source| Error::Io {
            action: "make",
            path: temporary.clone(),
            source,
        })?;
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Ok(Self { tar: Some(tar), temporary, location: location.to_owned(), now })
    }

    fn header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.now);
        header.set_size(size);
        header
    }

    fn append(&mut self, name: &Path, add: impl FnOnce(&mut Tar) -> io::Result<()>) -> Result<(), Error> {
        let written = match &mut self.tar {
            Some(tar) => add(tar),
            None => Err(Errno::BADF.into()),
        };
        written.map_err(|source| Error::Io { action: "archive", path: name.to_owned(), source })
    }

    /// A directory.
    pub(super) fn directory(&mut self, name: &Path) -> Result<(), Error> {
        let mut header = self.header(tar::EntryType::Directory, 0o700, 0);
        self.append(name, |tar| tar.append_data(&mut header, name.join(""), io::empty()))
    }

    /// A file of these bytes.
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut header = self.header(tar::EntryType::Regular, PRIVATE, bytes.len() as u64);
        self.append(Path::new(name), |tar| tar.append_data(&mut header, name, bytes))
    }

    /// A file of the node's, as it is.
    pub(super) fn file(&mut self, name: &Path, path: &Path) -> Result<(), Error> {
        self.append(name, |tar| tar.append_file(name, &mut open_regular(path)?))
    }

    /// A file that is written to meanwhile: what it holds now. One that is not there, or is no file, is left out.
    pub(super) fn growing(&mut self, name: &Path, path: &Path) -> Result<(), Error> {
        let Ok(file) = open_regular(path) else { return Ok(()) };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let mut header = self.header(tar::EntryType::Regular, PRIVATE, length);
        // Exactly as long as the header says, should it become shorter.
        let content = file.take(length).chain(io::repeat(0)).take(length);
        self.append(name, |tar| tar.append_data(&mut header, name, content))
    }

    /// Puts it in its place.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let failed = |action, path: &Path, source| Error::Io { action, path: path.to_owned(), source };
        let Some(tar) = self.tar.take() else { return Ok(()) };
        let written = tar
            .into_inner()
            .and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error))
            .and_then(|stoppable| stoppable.stop.check().and_then(|()| stoppable.file.sync_all()));
        let placed = written.map_err(|error| failed("write", &self.temporary, error)).and_then(|()| {
            fs::rename(&self.temporary, &self.location)
                .map_err(|error| failed("place the archive at", &self.location, error))
        });
        if placed.is_err() {
            // The failure is what is told.
            let _ = fs::remove_file(&self.temporary);
        }
        placed
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Not through the builder, which would write the archive's end.
        if let Some(tar) = self.tar.take() {
            let removed = fs::remove_file(&self.temporary);
            drop(tar);
            if let Err(error) = removed {
                tracing::warn!(path = %self.temporary.display(), %error, "a checkpoint that failed cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::time::Duration;

    fn stop(after: Duration) -> Stop {
        Stop { deadline: Instant::now() + after, left: Arc::default() }
    }

    #[test]
    fn an_archive_is_there_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("archive.tar");
        fs::write(&location, "an earlier one").unwrap();
        fs::write(dir.path().join("log"), "a line\n").unwrap();
        let mut archive = Archive::create(&location, stop(Duration::from_secs(60)), |_| Ok(())).unwrap();
        archive.directory(Path::new("checkpoint")).unwrap();
        archive.bytes("config.dump", b"{}").unwrap();
        archive.growing(Path::new("container.log"), &dir.path().join("log")).unwrap();
        archive.growing(Path::new("gone"), &dir.path().join("none")).unwrap();
        assert_eq!(fs::read(&location).unwrap(), b"an earlier one");
        archive.finish().unwrap();
        assert_eq!(fs::metadata(&location).unwrap().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(File::open(&location).unwrap());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["checkpoint/", "config.dump", "container.log"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_late_or_unwanted_archive_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("archive.tar");
        let mut archive = Archive::create(&location, stop(Duration::ZERO), |_| Ok(())).unwrap();
        let big = vec![0; 1 << 20];
        let error = archive.bytes("config.dump", &big).unwrap_err();
        assert!(error.sentence().contains("timed out"), "{}", error.sentence());
        drop(archive);
        let unwanted = stop(Duration::from_secs(60));
        let archive = Archive::create(&location, unwanted.clone(), |_| Ok(())).unwrap();
        unwanted.left.store(true, Ordering::Relaxed);
        assert!(archive.finish().is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        for bad in
            [dir.path().join("link"), dir.path().to_owned(), "/dev/null".into(), dir.path().join("no/file")]
        {
            let error = Archive::create(&bad, stop(Duration::from_secs(60)), |_| Ok(())).err().unwrap();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{}", bad.display());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
