//! The timeline of a video: what happened to it, step by step.

use super::spelled::spelled;

spelled! {
    /// One kind of entry.
    pub enum Step {
        /// A delivery named the video.
        Received = "received",
        /// A sweep, an operator or a repair requested it.
        Requested = "requested",
        /// The branch was read.
        Listed = "listed",
        /// The bytes were downloaded and hash to their name.
        Fetched = "fetched",
        /// The bytes are a playable video.
        Checked = "checked",
        /// The storage confirmed the object.
        Stored = "stored",
        /// The row is ready.
        Ready = "ready",
        /// The branch holds nothing new.
        Unchanged = "unchanged",
        /// Something has to arrive first.
        Waiting = "waiting",
        /// A transient failure; tried again later.
        Retry = "retry",
        /// It failed.
        Failed = "failed",
    }
}

impl Step {
    /// Whether an attempt begins with it.
    pub const fn begins_attempt(self) -> bool {
        matches!(self, Self::Received | Self::Requested)
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When the step ended, in milliseconds since the Unix epoch.
    pub at: i64,
    /// What happened.
    pub step: Step,
    /// The same for people.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub ms: Option<i64>,
}
