//! `podwright logs`: reads the CRI log a container's monitor writes, one line a record:
//!
//! ```text
//! 2026-01-31T10:00:00.123456789Z stdout F the text
//!                                       P: the line goes on in the next record
//! ```
//!
//! Following waits on inotify(7) for the log's directory, which also tells of a rotated log.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the container's output is passed on")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_cri::v1;

use crate::Outcome;
use crate::client::Client;
use crate::names;
use crate::watch::Watch;

/// Arguments of `logs`.
#[derive(Args)]
pub(crate) struct LogsArguments {
    /// Go on with what follows, until the container exits.
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines of what is there.
    #[arg(short = 'n', long)]
    tail: Option<usize>,
    /// Print each line's time.
    #[arg(short, long)]
    timestamps: bool,
    /// The container, or the pod of a single one: name, id or the beginning of one.
    container: String,
}

/// Prints a log.
pub(crate) async fn logs(mut client: Client, arguments: LogsArguments) -> Outcome {
    let container = names::find_container(&mut client, &arguments.container).await?;
    // Subscribed before the state is asked for, so that an exit in between is not missed.
    let exit = Exit::subscribe(&mut client, &container.id).await?;
    let status = client.container_status(&container.id, false).await?.status.unwrap_or_default();
    if status.log_path.is_empty() {
        bail!("container {} has no log: its pod was made without a log directory", arguments.container);
    }
    let mut log = Log::open(Path::new(&status.log_path), arguments.timestamps)?;
    log.print_tail(arguments.tail)?;
    if arguments.follow && status.state != v1::ContainerState::ContainerExited as i32 {
        log.follow(exit.wait()).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for one container's end, by the daemon's events.
pub(crate) struct Exit {
    container: String,
    events: tonic::Streaming<v1::ContainerEventResponse>,
}

impl Exit {
    /// Subscribes; every exit from now on is seen.
    pub(crate) async fn subscribe(client: &mut Client, container: &str) -> Result<Self> {
        let events = client.runtime.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
        Ok(Self { container: container.to_owned(), events })
    }

    /// Returns once the container has stopped or is gone.
    pub(crate) async fn wait(mut self) -> Result<()> {
        while let Some(event) = self.events.message().await? {
            let ended = event.container_event_type == v1::ContainerEventType::ContainerStoppedEvent as i32
                || event.container_event_type == v1::ContainerEventType::ContainerDeletedEvent as i32;
            if ended && event.container_id == self.container {
                return Ok(());
            }
        }
        bail!("podwrightd closed its events (it may be restarting); the container goes on")
    }
}

/// A log being read.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes after the last whole record.
    rest: Vec<u8>,
    timestamps: bool,
    /// The last record ended a line.
    at_line_start: bool,
}

impl Log {
    /// Opens the log at `path`.
    pub(crate) fn open(path: &Path, timestamps: bool) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("log {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, rest: Vec::new(), timestamps, at_line_start: true })
    }

    /// Prints what is there, or the last `tail` lines of it.
    pub(crate) fn print_tail(&mut self, tail: Option<usize>) -> Result<()> {
        let Some(tail) = tail else { return self.drain() };
        // Records of the last lines; a line is whole where its tag is F.
        let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
        let mut lines = 0;
        let mut text = Vec::new();
        self.file.read_to_end(&mut text)?;
        for record in text.split_inclusive(|&b| b == b'\n') {
            if !record.ends_with(b"\n") {
                self.rest = record.to_vec();
                break;
            }
            lines += usize::from(Record::parse(record).is_some_and(|r| r.ends_line));
            kept.push_back(record.to_vec());
            while lines > tail {
                if let Some(gone) = kept.pop_front() {
                    lines -= usize::from(Record::parse(&gone).is_some_and(|r| r.ends_line));
                }
            }
        }
        for record in kept {
            self.print(&record)?;
        }
        Ok(())
    }

    /// Prints what is written until `end` is ready, and then what was written before that.
    pub(crate) async fn follow(&mut self, end: impl Future<Output = Result<()>>) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let mut watch = Watch::directory(directory)?;
        tokio::pin!(end);
        loop {
            self.drain()?;
            self.take_rotated()?;
            tokio::select! {
                ended = &mut end => {
                    self.drain()?;
                    self.take_rotated()?;
                    return ended;
                }
                changed = watch.changed() => changed?,
            }
        }
    }

    /// Goes on with the new file where the log was rotated.
    fn take_rotated(&mut self) -> Result<()> {
        let (Ok(new), old) = (std::fs::metadata(&self.path), self.file.metadata()?) else { return Ok(()) };
        if (new.dev(), new.ino()) != (old.dev(), old.ino()) {
            self.drain()?;
            self.file = File::open(&self.path).with_context(|| format!("log {}", self.path.display()))?;
            self.drain()?;
        }
        Ok(())
    }

    /// Prints every whole record up to the end of the file.
    fn drain(&mut self) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = self.file.read(&mut buffer)?;
            if length == 0 {
                std::io::stdout().flush()?;
                return Ok(());
            }
            self.rest.extend_from_slice(&buffer[..length]);
            let Some(end) = self.rest.iter().rposition(|&b| b == b'\n') else { continue };
            let rest = self.rest.split_off(end + 1);
            let records = std::mem::replace(&mut self.rest, rest);
            for record in records.split_inclusive(|&b| b == b'\n') {
                self.print(record)?;
            }
        }
    }

    /// Prints one record on the stream it came from.
    fn print(&mut self, record: &[u8]) -> Result<()> {
        let Some(record) = Record::parse(record) else { return Ok(()) };
        let mut out: Box<dyn Write> = if record.stderr {
            Box::new(std::io::stderr().lock())
        } else {
            Box::new(std::io::stdout().lock())
        };
        if self.timestamps && self.at_line_start {
            write!(out, "{} ", record.time)?;
        }
        out.write_all(record.text)?;
        if record.ends_line {
            out.write_all(b"\n")?;
        }
        self.at_line_start = record.ends_line;
        Ok(())
    }
}

/// One record of a CRI log.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a str,
    stderr: bool,
    ends_line: bool,
    text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads one record, with or without its newline.
    fn parse(record: &'a [u8]) -> Option<Self> {
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let mut fields = record.splitn(4, |&b| b == b' ');
        let (time, stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self {
            time: std::str::from_utf8(time).ok()?,
            stderr: stream == b"stderr",
            ends_line: tag == b"F",
            text: fields.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_whole() {
        let record = Record::parse(b"2026-01-31T10:00:00.1Z stderr P a b  c\r\n").unwrap();
        assert_eq!(record.time, "2026-01-31T10:00:00.1Z");
        assert!(record.stderr && !record.ends_line);
        assert_eq!(record.text, b"a b  c\r");
        assert_eq!(Record::parse(b"t stdout F \n").unwrap().text, b"");
        assert_eq!(Record::parse(b"nonsense"), None);
    }
}
