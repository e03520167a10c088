//! Requests that were refused, and deliveries that could not be recorded. Clients can cause any number of
//! them, so they are counted and logged in one line per second at most.

use std::fmt::{Display, Write as _};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use metrics::counter;

use super::metrics::REFUSED;

/// The minimum time between two lines of the same kind.
pub const LINE_EVERY: Duration = Duration::from_secs(1);

/// The reason why a request or a connection was refused. Where the response is an error, its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The signature of a delivery is missing or wrong.
    BadSignature,
    /// The request does not have the expected form.
    Malformed,
    /// The content type of a delivery is not supported.
    UnsupportedMediaType,
    /// The request body is larger than the limit.
    TooLarge,
    /// The server was reading too many large request bodies.
    Busy,
    /// The bearer token or the token of a sign-in is wrong.
    WrongToken,
    /// The client was the slowest one when there were too many connections.
    ConnectionsFull,
}

impl Reason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::BadSignature,
        Self::Malformed,
        Self::UnsupportedMediaType,
        Self::TooLarge,
        Self::Busy,
        Self::WrongToken,
        Self::ConnectionsFull,
    ];

    /// The reason in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadSignature => "bad_signature",
            Self::Malformed => "malformed",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::TooLarge => "payload_too_large",
            Self::Busy => "busy",
            Self::WrongToken => "wrong_token",
            Self::ConnectionsFull => "connections_full",
        }
    }
}

/// Collects events, so that they are logged in one line per [`LINE_EVERY`] at most.
struct Collected<T> {
    line_at: Option<Instant>,
    unlogged: Option<T>,
}

impl<T: Default> Collected<T> {
    const EMPTY: Self = Self {
        line_at: None,
        unlogged: None,
    };

    /// Adds an event. Returns the events to log now.
    fn add(&mut self, now: Instant, add: impl FnOnce(&mut T)) -> Option<T> {
        add(self.unlogged.get_or_insert_default());
        self.due(now)
    }

    /// Returns the events that were not logged yet, unless the last line is too recent.
    fn due(&mut self, now: Instant) -> Option<T> {
        let is_recent = |at| now.saturating_duration_since(at) < LINE_EVERY;
        if self.line_at.is_some_and(is_recent) {
            return None;
        }
        let events = self.unlogged.take()?;
        self.line_at = Some(now);
        Some(events)
    }
}

/// The number of refused requests by reason.
type Refused = [u64; Reason::ALL.len()];

/// Deliveries that could not be recorded.
#[derive(Default)]
struct NotRecorded {
    deliveries: usize,
    /// The GUID of the last one.
    delivery: String,
    /// The cause of the last one.
    error: String,
}

static REFUSALS: Mutex<Collected<Refused>> = Mutex::new(Collected::EMPTY);
static NOT_RECORDED: Mutex<Collected<NotRecorded>> = Mutex::new(Collected::EMPTY);

/// Counts a refused request or connection, and logs it at once if no other one was logged within a second.
/// Otherwise, it is part of the next line.
pub fn refused(reason: Reason) {
    counter!(REFUSED, "reason" => reason.as_str()).increment(1);
    let now = Instant::now();
    let due = lock(&REFUSALS).add(now, |counts| counts[reason as usize] += 1);
    log_refused(due);
}

/// Logs that deliveries, of which `delivery` is the GUID of one, could not be recorded because of the
/// database. They are collected like [`refused`] requests, but are an error, because an operator must look.
pub fn not_recorded(deliveries: usize, delivery: &str, error: impl Display) {
    let due = lock(&NOT_RECORDED).add(Instant::now(), |all| {
        *all = NotRecorded {
            deliveries: all.deliveries + deliveries,
            delivery: delivery.to_owned(),
            error: error.to_string(),
        };
    });
    log_not_recorded(due);
}

/// Logs what was not logged yet and is due. It must be called once per [`LINE_EVERY`].
pub fn flush() {
    let now = Instant::now();
    log_refused(lock(&REFUSALS).due(now));
    log_not_recorded(lock(&NOT_RECORDED).due(now));
}

/// Logs everything that was not logged yet. It must be called at shutdown.
pub fn finish() {
    log_refused(lock(&REFUSALS).unlogged.take());
    log_not_recorded(lock(&NOT_RECORDED).unlogged.take());
}

fn lock<T>(collected: &Mutex<Collected<T>>) -> MutexGuard<'_, Collected<T>> {
    collected.lock().expect("no panic while held")
}

fn log_refused(counts: Option<Refused>) {
    let Some(counts) = counts else {
        return;
    };
    let mut reasons = String::new();
    for (reason, count) in Reason::ALL
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
    {
        let separator = if reasons.is_empty() { "" } else { ", " };
        let _ = write!(reasons, "{separator}{} {count}", reason.as_str());
    }
    let count: u64 = counts.iter().sum();
    tracing::warn!(count, reasons, "requests refused");
}

fn log_not_recorded(due: Option<NotRecorded>) {
    let Some(NotRecorded {
        deliveries,
        delivery,
        error,
    }) = due
    else {
        return;
    };
    tracing::error!(
        deliveries,
        delivery.id = delivery,
        error,
        "failed to record deliveries"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let counts = Refused::default();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(counts.get(index).is_some());
        }
    }

    #[test]
    fn there_is_at_most_one_line_a_second_and_no_event_is_lost() {
        let mut collected = Collected::<u64>::EMPTY;
        let start = Instant::now();
        let (mut lines, mut logged) = (Vec::new(), 0);
        // Ten seconds of an event every 10 ms, and then none.
        for n in 0..1000 {
            let at = Duration::from_millis(10 * n);
            if let Some(events) = collected.add(start + at, |count| *count += 1) {
                lines.push(at);
                logged += events;
            }
        }
        assert_eq!(
            lines[0],
            Duration::ZERO,
            "the first event is logged at once"
        );
        assert!(lines.windows(2).all(|pair| pair[1] - pair[0] == LINE_EVERY));
        assert_eq!(lines.len(), 10);
        assert_eq!(collected.due(start + Duration::from_millis(9_999)), None);
        logged += collected.due(start + Duration::from_secs(10)).unwrap();
        assert_eq!(logged, 1000);
        assert_eq!(collected.due(start + Duration::from_secs(11)), None);
        let later = start + Duration::from_secs(20);
        assert_eq!(collected.add(later, |count| *count += 1), Some(1));
    }
}
