//! The only source of the current time. Tests advance the clock instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// The system's wall clock plus an offset, which only tests change. Clones share the offset.
///
/// Leases and retries are scheduled by the database's own time plus the same offset (see [`crate::db`]),
/// because replicas share them. This clock is for all other uses.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
}

impl Clock {
    /// The current time, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
        let now = Timestamp::now();
        now.as_millisecond() + self.offset_ms()
    }

    /// The current time as a timestamp, which is displayed in RFC 3339 format.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now_ms()).unwrap_or_default()
    }

    /// How far this clock is ahead of the system's clock, in milliseconds.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Advances this clock and all its clones.
    pub fn advance(&self, by: Duration) {
        self.offset_ms
            .fetch_add(by.as_millis() as i64, Ordering::Relaxed);
    }

    /// Sets this clock and all its clones back.
    pub fn set_back(&self, by: Duration) {
        self.offset_ms
            .fetch_sub(by.as_millis() as i64, Ordering::Relaxed);
    }
}
