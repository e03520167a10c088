//! The report of a sweep, as returned by `POST /reconcile`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::VideoKey;
use super::string_enum::string_enum;

string_enum! {
    /// The result of a sweep for one video.
    pub enum Outcome {
        /// The video became ready within `wait`.
        Processed = "processed",
        /// The video is queued or running.
        Queued = "queued",
        /// The agent has not finished.
        Generating = "generating",
        /// The video waits for its other file or its row.
        Waiting = "waiting",
        /// The video failed, now or before.
        Failed = "failed",
        /// The facts are incomplete, so nothing was changed.
        Unknown = "unknown",
    }
}

/// The report of a sweep. The names are part of the API. Scripts of the app parse the first six.
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

/// The counts of a sweep, as stored in the database.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "as in SweepReport")]
pub struct SweepCounts {
    pub checked: usize,
    pub found: usize,
    pub failed: usize,
    pub generating: usize,
    /// The service and the code of each entry of `errors`.
    pub errors: Vec<(String, String)>,
}

/// A failed request to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ServiceError {
    /// `openhands`, `storage` or `database`.
    pub service: &'static str,
    /// A failure code, the kind of error of the OpenHands API, or `odd_row`: a row has an unusable value. The
    /// log names it.
    pub code: &'static str,
}

/// The outcome for one video.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SweptVideo {
    /// The id of its lesson.
    pub lesson_id: Uuid,
    /// The id of the video.
    pub video_id: Uuid,
    /// The outcome.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// The reason, for people.
    pub detail: String,
    /// Whether the branch contains new files of the video.
    #[serde(skip)]
    pub found: bool,
    /// `false`: the video failed before this sweep, and nothing has changed since.
    pub is_new: bool,
}

impl SweptVideo {
    /// The video's ids.
    pub fn key(&self) -> VideoKey {
        VideoKey {
            lesson_id: self.lesson_id,
            video_id: self.video_id,
        }
    }
}

impl SweepReport {
    /// The number of videos with this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        let videos = self.videos.iter();
        videos.filter(|video| video.outcome == outcome).count()
    }

    /// The counts that are stored in the database.
    pub fn counts(&self) -> SweepCounts {
        SweepCounts {
            checked: self.checked,
            found: self.found,
            failed: self.failed,
            generating: self.still_generating,
            errors: self
                .errors
                .iter()
                .map(|error| (error.service.to_owned(), error.code.to_owned()))
                .collect(),
        }
    }

    /// Updates the counts from the outcomes of all videos.
    pub fn update_counts(&mut self) {
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
