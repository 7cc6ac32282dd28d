//! The daemon's log: one line each on stderr, as text or JSON. The end of a span is a line with its
//! durations (busy: computing, idle: waiting): of calls that change something at level info, of their steps at debug.

use cri::config::{Log, LogFormat};
use cri::serve::SetLogLevel;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, reload};

/// Whether `level` is a level or a filter.
pub(crate) fn check(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

/// Starts logging, and gives the way to change its level.
pub(crate) fn start(log: &Log) -> Result<SetLogLevel, String> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_span_events(FmtSpan::CLOSE);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| format!("start logging: {error}"))?;
    Ok(Box::new(move |level| {
        let filter = self::filter(level)?;
        handle.reload(filter).map_err(|error| format!("change the log level: {error}"))
    }))
}

/// The transport's own lines are only of use to who asks for them by name.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,tonic=warn,tower=warn";

fn filter(level: &str) -> Result<EnvFilter, String> {
    // A word alone would be taken for a module's name, and a misspelt level silence everything.
    let bare = level.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    for word in bare {
        word.parse::<LevelFilter>()
            .map_err(|_| format!("{word:?} is not a level: off, error, warn, info, debug or trace"))?;
    }
    EnvFilter::builder().parse(format!("{QUIET},{level}")).map_err(|error| format!("{level}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn levels_and_filters_are_told_from_nonsense() {
        for good in ["info", "debug", "info,cri=trace", "h2=debug,warn"] {
            check(good).unwrap();
        }
        for bad in ["loud", "info,cri=very", "=,="] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
