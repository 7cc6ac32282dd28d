//! How long a wait may take. A machine that emulates its processor is some ten times slower, so every
//! wait is multiplied by `PODWRIGHT_TEST_SLOWNESS`.

use std::time::{Duration, Instant};

use rustix::event::Timespec;

/// The factor of `PODWRIGHT_TEST_SLOWNESS`; 1 where it is unset or not a number.
#[must_use]
pub fn slowness() -> u32 {
    std::env::var("PODWRIGHT_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// `count` seconds on a usual machine, more on a slow one.
#[must_use]
pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count) * slowness()
}

/// A point in time after which a wait has failed.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `count` (slowed) seconds from now.
    #[must_use]
    pub fn in_seconds(count: u64) -> Self {
        Self(Instant::now() + seconds(count))
    }

    /// What is left, or None once it has passed.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// What is left in the form `poll(2)` wants; zero once it has passed.
    #[must_use]
    pub fn timespec(self) -> Timespec {
        let left = self.left().unwrap_or_default();
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    }
}

/// How often to try something: `many` times, or `few` where everything takes ten times as long.
#[must_use]
pub fn rounds(many: usize, few: usize) -> usize {
    if slowness() > 1 { few } else { many }
}
