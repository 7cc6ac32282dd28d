//! Messages for people and for the programs that read them, in the two formats of runc's log.
//!
//! No subscriber, no buffer: a run that goes well writes nothing, and pays nothing.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use runtime::event::sentence;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::{Event, Level, Metadata, Subscriber, span};

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `time="…" level=… msg="…"`.
    Text,
    /// `{"level":"…","msg":"…","time":"…"}`.
    Json,
}

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Log {
    /// None: standard error.
    file: Option<File>,
    format: Format,
    debug: bool,
}

impl Log {
    /// Text on standard error: until the flags are known, and when they are wrong.
    pub(crate) fn stderr() -> Self {
        Self { file: None, format: Format::Text, debug: false }
    }

    /// Opens the log; it is appended to.
    pub(crate) fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<Self> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        let file =
            path.map(|path| open(path).with_context(|| format!("open {}", path.display()))).transpose()?;
        Ok(Self { file, format, debug })
    }

    /// What only a person hunting a fault wants to see.
    pub(crate) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.line("debug", &message());
        }
    }

    /// Something that was asked for and will not happen.
    pub(crate) fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    /// Why the command failed; also as plain text on standard error when the log is a file.
    pub(crate) fn error(&self, message: &str) {
        self.line("error", message);
        if self.file.is_some() {
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }

    /// What the container itself has to say about its end, on standard error.
    pub(crate) fn last_word(&self, message: &str) {
        if self.file.is_some() {
            self.line("error", message);
        }
        let _ = writeln!(std::io::stderr(), "{message}");
    }

    fn line(&self, level: &str, message: &str) {
        let line = line(self.format, level, message, OffsetDateTime::now_utc());
        // A log that cannot be written leaves nobody to tell.
        let _ = match self.file.as_ref() {
            Some(mut file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// Lets the engine's warnings (and with --debug all its events) reach the log.
pub(crate) fn hear_engine(log: &Arc<Log>) {
    // Only the first of a process is taken, and this is called once.
    let _ = tracing::subscriber::set_global_default(Engine(Arc::clone(log)));
}

/// What the engine says goes to the log; its spans are nobody's here.
struct Engine(Arc<Log>);

impl Subscriber for Engine {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && (self.0.debug || *metadata.level() <= Level::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR | Level::WARN => "warning",
            Level::INFO => "info",
            _ => "debug",
        };
        self.0.line(level, &sentence(event));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn line(format: Format, level: &str, message: &str, now: OffsetDateTime) -> String {
    let now = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    match format {
        Format::Text => format!("time=\"{now}\" level={level} msg={}\n", quote(message)),
        Format::Json => {
            let quoted = serde_json::Value::from(message);
            format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{now}\"}}\n")
        }
    }
}

/// Quoted so that a message is one line and cannot pass for another field.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_one_line() {
        let message = "run \"x\" failed:\nno";
        assert_eq!(
            line(Format::Text, "error", message, OffsetDateTime::UNIX_EPOCH),
            "time=\"1970-01-01T00:00:00Z\" level=error msg=\"run \\\"x\\\" failed:\\nno\"\n"
        );
        assert_eq!(
            line(Format::Json, "error", message, OffsetDateTime::UNIX_EPOCH),
            "{\"level\":\"error\",\"msg\":\"run \\\"x\\\" failed:\\nno\",\"time\":\"1970-01-01T00:00:00Z\"}\n"
        );
    }
}
