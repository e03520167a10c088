//! The deliveries that this process refused or ignored, for the status page. They are kept in memory only:
//! nothing is recorded before a signature is verified, and ignored deliveries are none of ours.

use std::sync::{Mutex, MutexGuard};

use crate::domain::push::Ignored;

use super::refused::Reason;

/// The maximum number of entries. A further one replaces the oldest.
const ENTRIES_MAX: usize = 100;

/// Why a delivery was not processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was refused. Nothing else is kept of it, because its sender may be unauthenticated.
    Refused(Reason),
    /// It was refused and does not have the headers of GitHub's deliveries, so it says nothing about the
    /// webhook.
    NotGithub(Reason),
    /// Its signature is valid, but it does not concern this server.
    Ignored(Ignored),
}

/// Deliveries that were not processed for the same reason.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The kind of reason.
    pub why: Why,
    /// The reason of ignored deliveries; empty for refused ones.
    pub reason: String,
    /// The time of the first one, in milliseconds since the Unix epoch.
    pub first_ms: i64,
    /// The time of the last one, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Their number.
    pub count: u64,
}

/// The deliveries that this process did not process, one entry per reason.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Vec<Refusal>>);

impl Refusals {
    /// Adds a delivery.
    pub fn add(&self, why: Why, reason: &str, now_ms: i64) {
        let mut entries = self.entries();
        let known = entries
            .iter_mut()
            .find(|entry| entry.why == why && entry.reason == reason);
        if let Some(entry) = known {
            entry.at_ms = now_ms;
            entry.count += 1;
            return;
        }
        if entries.len() >= ENTRIES_MAX {
            let oldest = entries.iter().enumerate().min_by_key(|(_, e)| e.at_ms);
            if let Some((at, _)) = oldest {
                entries.swap_remove(at);
            }
        }
        entries.push(Refusal {
            why,
            reason: reason.to_owned(),
            first_ms: now_ms,
            at_ms: now_ms,
            count: 1,
        });
    }

    /// All entries, newest first.
    pub fn newest_first(&self) -> Vec<Refusal> {
        let mut entries = self.entries().clone();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.at_ms));
        entries
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Refusal>> {
        self.0.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_the_oldest_is_replaced() {
        let refusals = Refusals::default();
        let refused = Why::Refused(Reason::BadSignature);
        refusals.add(refused, "", 1);
        refusals.add(refused, "", 5_000);
        for n in 0..ENTRIES_MAX as i64 {
            refusals.add(
                Why::Ignored(Ignored::Branch),
                &format!("branch {n}"),
                10 + n,
            );
        }
        let entries = refusals.newest_first();
        assert_eq!(entries.len(), ENTRIES_MAX);
        assert_eq!(
            (entries[0].why, entries[0].count, entries[0].first_ms),
            (refused, 2, 1)
        );
        assert!(entries.iter().all(|entry| entry.reason != "branch 0"));
    }
}
