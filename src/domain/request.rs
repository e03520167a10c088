//! The one entry: *look at this video, for this reason, at this commit*. Nothing else starts work.

use std::collections::BTreeMap;

use super::ids::{GitSha, VideoKey};
use super::spelled::spelled;

spelled! {
    /// Where a request comes from.
    pub enum Source {
        /// A push named the video.
        Push = "push",
        /// A sweep, or the scan that a push asked for, found it.
        Sweep = "sweep",
        /// An operator asked.
        Retry = "retry",
        /// A worker lost its lease during an upload: what it wrote late has to be repaired.
        Repair = "repair",
    }
}

/// A request for one video. A push, a redelivery, a sweep, a retry and a repair all make one of these.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which video.
    pub key: VideoKey,
    /// Where it comes from.
    pub source: Source,
    /// The reason, for people who read the timeline.
    pub detail: String,
    /// The pushes that the branch must contain before it is believed; empty: any listing will do.
    pub wanted: Vec<GitSha>,
    /// Ingest again even blobs that were rejected.
    pub forced: bool,
    /// The GUIDs of the deliveries that ask; a GUID that is already known forces.
    pub deliveries: Vec<String>,
}

impl Request {
    /// A push named the video.
    pub fn pushed(key: VideoKey, after: GitSha, guid: &str) -> Self {
        Self {
            wanted: vec![after],
            deliveries: vec![guid.to_owned()],
            ..Self::new(key, Source::Push, format!("pushed with {}", after.short()))
        }
    }

    /// A request without a push: from a sweep, an operator or a repair.
    pub fn new(key: VideoKey, source: Source, detail: impl Into<String>) -> Self {
        Self {
            key,
            source,
            detail: detail.into(),
            wanted: Vec::new(),
            forced: matches!(source, Source::Retry | Source::Repair),
            deliveries: Vec::new(),
        }
    }

    /// One request per video: one SQL statement may touch a row only once.
    pub fn merged(requests: impl IntoIterator<Item = Self>) -> BTreeMap<VideoKey, Self> {
        let mut by_video: BTreeMap<VideoKey, Self> = BTreeMap::new();
        for request in requests {
            by_video
                .entry(request.key)
                .and_modify(|known| {
                    known.forced |= request.forced;
                    known.deliveries.extend_from_slice(&request.deliveries);
                    for sha in &request.wanted {
                        if !known.wanted.contains(sha) {
                            known.wanted.insert(0, *sha);
                        }
                    }
                })
                .or_insert(request);
        }
        by_video
    }
}
