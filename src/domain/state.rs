//! The state of a video, and which state may follow which.
//!
//! ```text
//!                     request                 claim
//!  generating ───────────────────▶ queued ◀──────────▶ running ──▶ ready
//!   │  (a row, nothing pushed)      ▲ ▲    retry, hand   │ │ │
//!   │                               │ │    back, or a    │ │ └────▶ failed ──┐ claim, for a
//!   │ adopted ─▶ ready              │ │    new request   │ └──────▶ waiting ─┤ configuration
//!   │                               │ │                  └─ expired lease ───┤ failure; claim,
//!   └ verdict ─▶ failed             │ └── request, from ready, failed, ──────┘ when the waiting
//!                                   └──── waiting, queued                      period is over
//! ```
//!
//! [`VideoState::may_become`] is the same as a table. The database only persists: each statement of
//! `db` that writes a state makes one of these transitions, and the scenarios check that no other happens.

use super::spelled::spelled;

spelled! {
    /// Where a video is on its way from the push to the ready row.
    pub enum VideoState {
        /// The app has a row without a video, and nothing was pushed for it: we have no record yet.
        Generating = "generating",
        /// A worker may claim it, now or at its next attempt.
        Queued = "queued",
        /// A worker holds its lease.
        Running = "running",
        /// Its other file or its row has to arrive first.
        Waiting = "waiting",
        /// The stored object was confirmed and the row names it.
        Ready = "ready",
        /// It failed. Configuration failures are claimed again later; the others wait for a request.
        Failed = "failed",
    }
}

impl VideoState {
    /// Whether one committed statement may change a video from this state to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        use VideoState::{Failed, Generating, Queued, Ready, Running, Waiting};
        match (self, next) {
            // Nothing becomes a row without a record again.
            (_, Generating) => false,
            // Every request queues, whatever came before; for a running one it is kept for the end.
            (_, Queued) => true,
            // Claimed: due, or due to be looked at again, or its last worker's lease expired.
            (Queued | Waiting | Failed | Running, Running) => true,
            (Generating | Ready, Running) => false,
            // Only a worker finds out that something has to arrive first.
            (Running, Waiting) => true,
            (_, Waiting) => false,
            // Published by a worker, or adopted by a sweep from whoever made the row ready before us.
            (Running | Generating, Ready) => true,
            (_, Ready) => false,
            // Failed by a worker, or by a sweep's verdict on a row that has no video.
            (Queued, Failed) => false,
            (_, Failed) => true,
        }
    }

    /// Whether a worker has it or will have it without a further request.
    pub const fn is_busy(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: from; columns: to, in the order of `ALL`. `x`: allowed.
    const TABLE: [(&str, &str); 6] = [
        // generating queued running waiting ready failed
        ("generating", ".x..xx"),
        ("queued", ".xx..."),
        ("running", ".xxxxx"),
        ("waiting", ".xx..x"),
        ("ready", ".x...x"),
        ("failed", ".xx..x"),
    ];

    #[test]
    fn every_transition_is_allowed_or_refused() {
        for (from, allowed) in TABLE {
            let from = VideoState::parse(from).unwrap();
            for (to, mark) in VideoState::ALL.iter().zip(allowed.chars()) {
                assert_eq!(from.may_become(*to), mark == 'x', "{from} → {to}");
            }
        }
    }

    #[test]
    fn spellings_are_read_back() {
        for state in VideoState::ALL {
            assert_eq!(VideoState::parse(state.as_str()), Some(*state));
        }
        assert_eq!(VideoState::parse("Ready"), None);
    }
}
