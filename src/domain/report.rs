//! What a sweep found, as `POST /reconcile` returns it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::VideoKey;
use super::spelled::spelled;

spelled! {
    /// What a sweep says of one video; each video has exactly one.
    pub enum Outcome {
        /// It became ready within `wait`.
        Processed = "processed",
        /// A worker has it or will have it.
        Queued = "queued",
        /// The agent is working on it.
        Generating = "generating",
        /// Its other file or its row has to arrive first.
        Waiting = "waiting",
        /// A verdict: it failed.
        Failed = "failed",
        /// Nothing can be said now, so nothing was changed.
        Unknown = "unknown",
    }
}

/// What a sweep found. The names are part of the API; scripts parse the first six.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct SweepReport {
    pub checked: usize,
    pub still_generating: usize,
    pub found: usize,
    pub processed: usize,
    pub failed: usize,
    pub timestamp: String,
    pub queued: usize,
    pub waiting: usize,
    pub unknown: usize,
    pub orphans: Vec<String>,
    pub errors: Vec<ServiceError>,
    pub videos: Vec<SweptVideo>,
}

/// The counts of the last sweep, as they are kept.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as in SweepReport")]
pub struct SweepCounts {
    pub checked: usize,
    pub found: usize,
    pub failed: usize,
    pub generating: usize,
    pub errors: usize,
}

/// A service that did not respond as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ServiceError {
    /// `openhands` or `storage`.
    pub service: &'static str,
    /// A failure code, or the kind of failure of the OpenHands API.
    pub code: &'static str,
}

/// One video's outcome.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SweptVideo {
    /// Its lesson.
    pub lesson_id: Uuid,
    /// Its id.
    pub video_id: Uuid,
    /// What the sweep says of it.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// The reason, for people.
    pub detail: String,
    /// The branch holds something new for it.
    #[serde(skip)]
    pub found: bool,
}

impl SweptVideo {
    /// Its ids.
    pub fn key(&self) -> VideoKey {
        VideoKey {
            lesson_id: self.lesson_id,
            video_id: self.video_id,
        }
    }
}

impl SweepReport {
    /// How many videos have this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        let videos = self.videos.iter();
        videos.filter(|video| video.outcome == outcome).count()
    }

    /// What is kept of it.
    pub fn counts(&self) -> SweepCounts {
        SweepCounts {
            checked: self.checked,
            found: self.found,
            failed: self.failed,
            generating: self.still_generating,
            errors: self.errors.len(),
        }
    }

    /// Fills in the counts once every video has its final outcome.
    pub fn sum_up(&mut self) {
        self.checked = self.videos.len();
        self.still_generating = self.count(Outcome::Generating);
        self.processed = self.count(Outcome::Processed);
        self.queued = self.count(Outcome::Queued);
        self.waiting = self.count(Outcome::Waiting);
        self.failed = self.count(Outcome::Failed);
        self.unknown = self.count(Outcome::Unknown);
        let found = |video: &&SweptVideo| video.found && video.outcome != Outcome::Waiting;
        self.found = self.videos.iter().filter(found).count();
    }
}
