//! In a cloned child: warnings go over the handshake to the parent, which logs them.
//!
//! The child has a copy of the parent's subscriber, but soon not its stderr: what it wrote there would end up in the
//! container's output.

use tracing::span;
use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::event::sentence;
use crate::handshake::{End, FromChild};

/// Until the guard is dropped, warnings and errors of this thread are told to the parent, and all else is dropped.
pub(crate) fn to(link: &End) -> Option<DefaultGuard> {
    Some(tracing::subscriber::set_default(Relay(link.share().ok()?)))
}

/// Until the guard is dropped nothing of this thread is logged: the standard streams are no longer the parent's.
pub(crate) fn silence() -> DefaultGuard {
    tracing::subscriber::set_default(NoSubscriber::default())
}

struct Relay(End);

impl Subscriber for Relay {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        // A lost warning is no reason to fail.
        let _ = self.0.tell(&FromChild::Warning(sentence(event)), &[]);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::handshake;

    #[test]
    fn a_warning_is_no_message_of_the_handshake() {
        let (parent, child) = handshake::pair().unwrap();
        let guard = to(&child).unwrap();
        tracing::info!("not this");
        tracing::warn!(limit = 7, "clamped");
        drop((guard, child));
        let soon = Instant::now() + Duration::from_secs(10);
        assert!(parent.next(soon).unwrap().is_none(), "warnings are logged, not returned");
    }
}
