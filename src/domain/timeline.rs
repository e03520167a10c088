//! The timeline of a video: the history of its requests and attempts.

use super::string_enum::string_enum;

string_enum! {
    /// The kind of an entry.
    pub enum Step {
        /// A delivery named the video.
        Received = "received",
        /// A sweep, an operator or a repair requested it.
        Requested = "requested",
        /// The branch was listed.
        Listed = "listed",
        /// The file was downloaded and its hash was verified.
        Fetched = "fetched",
        /// The file is a complete MP4 with a video track.
        Checked = "checked",
        /// The storage has confirmed the object.
        Stored = "stored",
        /// The row is ready.
        Ready = "ready",
        /// The branch contains no new files.
        Unchanged = "unchanged",
        /// The video waits for its other file or its row.
        Waiting = "waiting",
        /// A transient failure occurred. The video will be retried.
        Retry = "retry",
        /// The video failed.
        Failed = "failed",
    }
}

impl Step {
    /// Whether the entry is a request, which begins a new attempt.
    pub const fn begins_attempt(self) -> bool {
        matches!(self, Self::Received | Self::Requested)
    }
}

/// An entry of a timeline.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The end of the step, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The kind of step.
    pub step: Step,
    /// Details for people.
    pub detail: String,
    /// The duration of the step, in milliseconds.
    pub ms: Option<i64>,
}
