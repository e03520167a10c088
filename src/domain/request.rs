//! Requests for videos. Nothing else starts work.

use std::collections::BTreeMap;

use super::ids::{GitSha, VideoKey};
use super::string_enum::string_enum;

string_enum! {
    /// The origin of a request.
    pub enum Source {
        /// A push named the video.
        Push = "push",
        /// A sweep or scan found that the video has to be processed.
        Sweep = "sweep",
        /// An operator requested a retry.
        Retry = "retry",
        /// A worker lost its lease during an upload, which may have replaced a newer object.
        Repair = "repair",
    }
}

string_enum! {
    /// Why GitHub is called.
    pub enum Purpose {
        /// A video that a push named.
        Push = "push",
        /// A sweep, or a video that it found.
        Sweep = "sweep",
        /// A video that an operator retries, or a repair.
        Retry = "retry",
        /// A scan.
        Scan = "scan",
        /// A check or a command.
        Other = "other",
    }
}

impl Source {
    /// The purpose of the calls for a request of this origin.
    pub const fn purpose(self) -> Purpose {
        match self {
            Self::Push => Purpose::Push,
            Self::Sweep => Purpose::Sweep,
            Self::Retry | Self::Repair => Purpose::Retry,
        }
    }
}

/// A request to process a video: compare its files in the branch with the storage and ingest them if they
/// differ.
#[derive(Clone, Debug)]
pub struct Request {
    /// The video.
    pub key: VideoKey,
    /// The origin.
    pub source: Source,
    /// The reason, for the timeline.
    pub detail: String,
    /// Whether blobs that were rejected before are ingested again.
    pub forced: bool,
    /// The GUIDs of the deliveries that request the video. A redelivery sets `forced`.
    pub deliveries: Vec<String>,
}

impl Request {
    /// Creates a request for a video that a push named.
    pub fn pushed(key: VideoKey, after: GitSha, guid: &str) -> Self {
        Self {
            deliveries: vec![guid.to_owned()],
            ..Self::new(key, Source::Push, format!("pushed with {}", after.short()))
        }
    }

    /// Creates a request without a push: from a sweep, an operator or a repair.
    pub fn new(key: VideoKey, source: Source, detail: impl Into<String>) -> Self {
        Self {
            key,
            source,
            detail: detail.into(),
            forced: matches!(source, Source::Retry | Source::Repair),
            deliveries: Vec::new(),
        }
    }

    /// Merges the requests for each video, because an SQL statement must not upsert a row twice.
    pub fn merged(requests: impl IntoIterator<Item = Self>) -> BTreeMap<VideoKey, Self> {
        let mut by_video: BTreeMap<VideoKey, Self> = BTreeMap::new();
        for request in requests {
            by_video
                .entry(request.key)
                .and_modify(|known| {
                    known.forced |= request.forced;
                    known.deliveries.extend_from_slice(&request.deliveries);
                })
                .or_insert(request);
        }
        by_video
    }
}
