//! The monitor's own log: spans and events of `tracing` as JSON lines on stderr.
//!
//! Small on purpose: one monitor runs per pod and its memory is counted in kilobytes, so there is no registry of
//! spans and no filter language. A span is one line when it ends, with its duration; an event is one line.
//!
//! A cloned child goes on with a copy of this and, soon, with a container's stderr: lines go to a descriptor of our own, and
//! only while that is still what it was. A child that has closed it has nothing more to say here.
//!
//! A line that is not taken at once is dropped, and the next that is taken tells how many were: a reader that has stopped reading
//! must not stop a pod's monitor.
//!
//! ```text
//! {"ts":"2026-11-24T00:35:43.123456789Z","level":"INFO","pod":"…","span":"create_container","trace":"…","container":"c","us":1432}
//! {"ts":"…","level":"WARN","pod":"…","message":"the log cannot be written: output waits","errno":28}
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::Instant;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::log_format::Timestamp;
use super::stdio::realtime_ns;

/// Writes what the monitor does to stderr.
#[derive(Debug)]
pub(crate) struct Logger {
    level: Level,
    /// The pod's id as a JSON string, on every line.
    pod: String,
    /// Where stderr went at the start.
    out: Option<Out>,
    state: Mutex<State>,
}

/// A descriptor for lines.
#[derive(Debug)]
struct Out {
    fd: OwnedFd,
    /// Which file that is.
    id: FileId,
    is_socket: bool,
}

/// Device and inode.
type FileId = (u64, u64);

#[derive(Debug, Default)]
struct State {
    /// Lines that were not taken since the last that was.
    dropped: u64,
    next: u64,
    open: BTreeMap<u64, Span>,
    /// Entered spans, innermost last.
    entered: Vec<u64>,
}

#[derive(Debug)]
struct Span {
    metadata: &'static Metadata<'static>,
    fields: String,
    since: Instant,
    references: usize,
}

impl Logger {
    /// Lines up to `level`, each naming the pod.
    pub(crate) fn new(level: Level, pod: &str) -> Self {
        let out = Out::of(std::io::stderr().as_fd()).ok();
        Self { level, pod: json_string(pod), out, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn line(&self, level: Level, rest: &str) {
        let Some(out) = &self.out else { return };
        if file_id(&out.fd) != Some(out.id) {
            return;
        }
        let ts = Timestamp::from_ns(realtime_ns());
        let ts = String::from_utf8_lossy(ts.as_bytes());
        let mut state = self.state();
        let mut line = format!("{{\"ts\":\"{ts}\",\"level\":\"{level}\",\"pod\":{}{rest}", self.pod);
        if state.dropped > 0 {
            let _ = write!(line, ",\"lines_dropped\":{}", state.dropped);
        }
        line.push_str("}\n");
        // A log that cannot be written cannot say so, until it can again.
        state.dropped = if out.write(line.as_bytes()).is_ok() { 0 } else { state.dropped + 1 };
    }
}

impl Out {
    /// Where `stderr` goes, without ever waiting there. Whoever else writes to it is not concerned: a pipe or a terminal is opened
    /// once more, for the flag belongs to the open file; with a socket it goes with each call; files never wait.
    fn of(stderr: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(stderr)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own = || rustix::io::fcntl_dupfd_cloexec(stderr, 3);
        let fd = match kind {
            FileType::Fifo | FileType::CharacterDevice => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let path = format!("/proc/self/fd/{}", stderr.as_raw_fd());
                rustix::fs::open(path, flags, Mode::empty()).or_else(|_| own())?
            }
            _ => own()?,
        };
        Ok(Self { fd, id: (stat.st_dev, stat.st_ino), is_socket: kind == FileType::Socket })
    }

    fn write(&self, line: &[u8]) -> Result<usize, Errno> {
        if self.is_socket {
            rustix::net::send(&self.fd, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        } else {
            rustix::io::write(&self.fd, line)
        }
    }
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let span =
            Span { metadata: attributes.metadata(), fields: fields.0, since: Instant::now(), references: 1 };
        state.open.insert(id, span);
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = self.state().open.get_mut(&id.into_u64()) {
            span.fields.push_str(&fields.0);
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Where it happened: the fields of the spans around it.
        let around: String = {
            let state = self.state();
            state
                .entered
                .iter()
                .filter_map(|id| state.open.get(id))
                .map(|span| span.fields.as_str())
                .collect()
        };
        self.line(*event.metadata().level(), &format!("{}{around}", fields.0));
    }

    fn enter(&self, id: &Id) {
        self.state().entered.push(id.into_u64());
    }

    fn exit(&self, id: &Id) {
        let mut state = self.state();
        if let Some(place) = state.entered.iter().rposition(|entered| *entered == id.into_u64()) {
            state.entered.remove(place);
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = self.state().open.get_mut(&id.into_u64()) {
            span.references += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let (span, around) = {
            let mut state = self.state();
            let Some(span) = state.open.get_mut(&id.into_u64()) else { return false };
            span.references -= 1;
            if span.references > 0 {
                return false;
            }
            let Some(span) = state.open.remove(&id.into_u64()) else { return false };
            let entered = state.entered.iter().filter_map(|id| state.open.get(id));
            (span, entered.map(|span| span.fields.as_str()).collect::<String>())
        };
        let us = span.since.elapsed().as_micros();
        let name = json_string(span.metadata.name());
        self.line(*span.metadata.level(), &format!(",\"span\":{name}{}{around},\"us\":{us}", span.fields));
        true
    }
}

/// Fields as `,"name":value` after each other.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0, ",{}:{}", json_string(field.name()), json_string(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        let _ = write!(self.0, ",{}:{value}", json_string(field.name()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let _ = write!(self.0, ",{}:{value}", json_string(field.name()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        let _ = write!(self.0, ",{}:{value}", json_string(field.name()));
    }
}

fn file_id(fd: &OwnedFd) -> Option<FileId> {
    rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_stop_when_the_descriptor_is_not_ours_any_more() {
        let mut file = tempfile::tempfile().unwrap();
        let out = OwnedFd::from(file.try_clone().unwrap());
        let id = file_id(&out).unwrap();
        let logger = |id| Logger {
            level: Level::DEBUG,
            pod: json_string("p\"1"),
            out: Some(Out { fd: out.try_clone().unwrap(), id, is_socket: false }),
            state: Mutex::default(),
        };
        tracing::subscriber::with_default(logger(id), || {
            let span = tracing::info_span!("outer", container = "c");
            let _entered = span.enter();
            tracing::warn!(errno = 28, "a \"message\"");
            tracing::trace!("not this");
        });
        tracing::subscriber::with_default(logger((0, 0)), || tracing::warn!("nor this"));
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"], "a \"message\"");
        assert_eq!((&lines[0]["errno"], &lines[0]["container"]), (&28.into(), &"c".into()));
        assert_eq!((&lines[1]["span"], &lines[1]["pod"]), (&"outer".into(), &"p\"1".into()));
        assert!(lines[1]["us"].is_u64());
    }

    /// Lines until one is dropped, then the reader's turn, then one more.
    fn stall(reader: &OwnedFd, writer: &OwnedFd) -> Vec<serde_json::Value> {
        let out = Out::of(writer.as_fd()).unwrap();
        let logger =
            Logger { level: Level::INFO, pod: json_string("p"), out: Some(out), state: Mutex::default() };
        let mut said = 0;
        while logger.state().dropped < 3 {
            logger.line(Level::INFO, &format!(",\"number\":{said}"));
            said += 1;
        }
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        rustix::io::ioctl_fionbio(reader, true).unwrap();
        let mut read = |text: &mut Vec<u8>| {
            while let Ok(count) = rustix::io::read(reader, &mut buffer) {
                text.extend_from_slice(&buffer[..count]);
            }
        };
        read(&mut text);
        logger.line(Level::INFO, ",\"number\":-1");
        read(&mut text);
        let text = String::from_utf8(text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_reader_that_stalls_is_not_waited_for() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let socket =
            || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None).unwrap();
        for (reader, writer) in [rustix::pipe::pipe().unwrap(), socket()] {
            let lines = stall(&reader, &writer);
            let last = lines.last().unwrap();
            assert_eq!((&last["number"], &last["lines_dropped"]), (&(-1).into(), &3.into()));
            assert!(lines.len() > 10);
        }
    }
}
