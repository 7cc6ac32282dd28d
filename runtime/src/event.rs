//! Events of `tracing` as text for people.

use std::fmt::{self, Write as _};

use tracing::Event;
use tracing::field::{Field, Visit};

/// An event as one sentence: its message, then its fields.
#[must_use]
pub fn sentence(event: &Event<'_>) -> String {
    let mut text = Text::default();
    event.record(&mut text);
    text.message + &text.fields
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{Metadata, Subscriber, span};

    use super::*;

    /// Keeps what it is told.
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Told {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn event(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push(sentence(event));
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn an_event_is_one_sentence_with_its_fields() {
        let told = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(Told(told.clone()), || {
            tracing::warn!(limit = 7, path = %"/x", "clamped");
        });
        assert_eq!(*told.lock().unwrap(), ["clamped limit=7 path=/x"]);
    }
}
