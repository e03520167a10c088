//! The states of a video and the transitions between them.
//!
//! ```text
//!               request              claim
//!  generating ───────────▶ queued ───────────▶ running ───────────▶ ready
//!       │                   ▲  ▲                │ ▲ │ confirmed
//!       │ adopted           │  └────────────────┘ │ ├──────────────▶ waiting
//!       ├────────▶ ready    │   retry, hand-back, │ │ file or row    │
//!       │                   │   new request       │ │ missing        │
//!       │ verdict           │                     │ └──────────────▶ failed
//!       └────────▶ failed   │                     │                  │
//!                           │                     └── claim when due ┘ (also from ready)
//!                           └──────── request: from waiting, ready or failed
//! ```
//!
//! Not drawn: an expired lease is claimed again (running to running), a queued video can be requested again,
//! and a verdict can fail a waiting, ready or failed video whose row is pending.
//!
//! [`VideoState::may_become`] contains the same transitions as a table. Each statement of `db` that writes
//! a state makes one of them, and the scenarios check that no other transition occurs.

use super::string_enum::string_enum;

string_enum! {
    /// The state of a video between the push and the ready row.
    pub enum VideoState {
        /// The row is pending and nothing was pushed. The video has no record.
        Generating = "generating",
        /// A worker can claim it, immediately or when its next attempt is due.
        Queued = "queued",
        /// A worker has claimed it.
        Running = "running",
        /// It waits for its other file or its row.
        Waiting = "waiting",
        /// The storage has confirmed the object and the row is ready.
        Ready = "ready",
        /// It failed. Configuration failures are retried after hours; other failures wait for a request.
        Failed = "failed",
    }
}

impl VideoState {
    /// Whether a statement may change a video from this state to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        use VideoState::{Failed, Generating, Queued, Ready, Running, Waiting};
        match (self, next) {
            // Records are never deleted.
            (_, Generating) => false,
            // A request queues a video in any state. A running video is queued at the end of its attempt.
            (_, Queued) => true,
            // Claimed: the video is due, its waiting period is over, its lease has expired, or its object is
            // compared again because an upload may have completed late.
            (Queued | Waiting | Failed | Ready | Running, Running) => true,
            (Generating, Running) => false,
            // Only an attempt finds that a file or the row is missing.
            (Running, Waiting) => true,
            (_, Waiting) => false,
            // Published by a worker, or adopted by a sweep because the row was ready before.
            (Running | Generating, Ready) => true,
            (_, Ready) => false,
            // Failed by a worker, or by a sweep whose verdict is that a pending row is overdue.
            (Queued, Failed) => false,
            (_, Failed) => true,
        }
    }

    /// Whether an attempt has ended, and nothing happens before something arrives or a retry is due.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Waiting | Self::Ready | Self::Failed)
    }

    /// Whether a worker processes the video now or will do so without another request.
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
        ("ready", ".xx..x"),
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
    fn strings_round_trip() {
        for state in VideoState::ALL {
            assert_eq!(VideoState::parse(state.as_str()), Some(*state));
        }
        assert_eq!(VideoState::parse("Ready"), None);
    }
}
