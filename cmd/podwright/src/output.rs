//! What is printed: aligned tables, JSON, one-line errors. Colours only on a terminal.
#![allow(clippy::print_stderr, reason = "this is where a command line prints")]

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

/// A table without lines: a heading and rows, columns two spaces apart.
pub(crate) struct Columns(Table);

impl Columns {
    /// An empty table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.iter().copied());
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(table)
    }

    /// Adds a row; a cell that names a state is coloured by it.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.0.add_row(cells.into_iter().map(|text| {
            let colour = match text.as_str() {
                "running" | "ready" | "ok" => Some(Color::Green),
                "created" | "warning" => Some(Color::Yellow),
                "unknown" | "not ready" | "missing" => Some(Color::Red),
                _ => None,
            };
            let cell = Cell::new(text);
            match colour {
                Some(colour) => cell.fg(colour),
                None => cell,
            }
        }));
    }

    /// Prints it.
    pub(crate) fn print(self) {
        for text in self.0.lines() {
            line(text.trim_end());
        }
    }
}

/// Prints a line. A reader that has gone away (`podwright ps | head -1`) ends this program without a word.
pub(crate) fn line(text: &str) {
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// True where standard output's reader has gone away, and not the daemon.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    };
    error.chain().any(pipe)
        && !error.chain().any(|cause| cause.is::<tonic::Status>() || cause.is::<tonic::transport::Error>())
}

/// Prints an error line, red on a terminal.
pub(crate) fn error(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[31m{text}\x1b[0m");
    } else {
        eprintln!("{text}");
    }
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(ExitCode::SUCCESS)
}

/// The first 12 digits of an id, as people read them.
pub(crate) fn short(id: &str) -> String {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.chars().take(12).collect()
}

/// How long ago a time in nanoseconds since the epoch was: `3s`, `5m`, `2h`, `9d`.
pub(crate) fn age(created_at_ns: i64) -> String {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let created_ns = u128::try_from(created_at_ns).unwrap_or_default();
    let seconds = now_ns.saturating_sub(created_ns) / 1_000_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size in bytes as people read it: `17.2 MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, 0);
    while whole >= 1000 && unit + 1 < UNITS.len() {
        tenths = whole % 1000 / 100;
        whole /= 1000;
        unit += 1;
    }
    if unit == 0 { format!("{whole} B") } else { format!("{whole}.{tenths} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(17_290_000), "17.2 MB");
        assert_eq!(size(u64::MAX), "18446744.0 TB");
    }

    #[test]
    fn ids_are_short() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("0123"), "0123");
    }
}
