//! Failures of a video, their classes and the retry schedule.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::string_enum::string_enum;

string_enum! {
/// The class of a failure, which determines when the video is retried.
pub enum Class {
    /// The content of the pushed files is invalid. Retried when one of their blobs changes, on a redelivery
    /// and on request.
    Invalid = "invalid",
    /// A setting or a resource outside of the files is wrong. Reported immediately. Retried according to
    /// [`configuration_delay`], and by a sweep that finds that the cause may have changed.
    Configuration = "configuration",
    /// Likely to resolve without a change. Retried according to [`retry_delay`].
    Transient = "transient",
    /// Something that was expected did not arrive in time. Retried when a file is pushed.
    Expired = "expired",
}
}

string_enum! {
    /// Why a video is not ready. The strings are part of the API.
    pub enum Code {
        /// The JSON is not an object with the required fields, or is larger than 64 KiB.
        BadMetadata = "bad_metadata",
        /// The JSON names another lesson or video than the file name.
        MetadataMismatch = "metadata_mismatch",
        /// The file has fewer than 8 bytes, or its first box is not `ftyp`.
        NotAnMp4 = "not_an_mp4",
        /// A box extends beyond the end of the file, or the index is missing or damaged.
        Truncated = "truncated",
        /// The file has no video track.
        NoVideoTrack = "no_video_track",
        /// The row with this id belongs to another lesson or is not a video.
        RowMismatch = "row_mismatch",
        /// The storage bucket does not exist.
        BucketMissing = "bucket_missing",
        /// The bucket's allowed MIME types do not include `video/mp4`.
        MimeNotAllowed = "mime_not_allowed",
        /// The storage rejects our key.
        StorageDenied = "storage_denied",
        /// The project's storage or billing quota is used up (402).
        StorageQuota = "storage_quota",
        /// The Supabase project is paused (540).
        StoragePaused = "storage_paused",
        /// GitHub rejects our token, or the repository is not visible to it.
        GithubDenied = "github_denied",
        /// The video exceeds the bucket's limit or `MAX_VIDEO_BYTES`.
        TooLarge = "too_large",
        /// The branch contains an LFS pointer whose object does not exist.
        LfsObjectMissing = "lfs_object_missing",
        /// The repository's LFS bandwidth or budget is used up.
        LfsQuota = "lfs_quota",
        /// The row exists, but our database role cannot read or update it.
        RowDenied = "row_denied",
        /// The downloaded bytes differ from the pushed ones.
        CorruptDownload = "corrupt_download",
        /// GitHub or its LFS storage is unavailable or returned an unexpected response.
        GithubUnavailable = "github_unavailable",
        /// GitHub limited the rate of our requests.
        RateLimited = "rate_limited",
        /// The storage is unavailable or returned an unexpected response.
        StorageUnavailable = "storage_unavailable",
        /// The database is unavailable or returned an error.
        DatabaseUnavailable = "database_unavailable",
        /// `DATA_DIR` has too little free space for the download.
        DiskFull = "disk_full",
        /// The process that held the lease stopped before it finished.
        LeaseExpired = "lease_expired",
        /// A bug in this server. The log contains the details.
        Internal = "internal",
        /// Transient failures lasted for [`GIVE_UP_AFTER`].
        GaveUp = "gave_up",
        /// No row with this id exists.
        NoRow = "no_row",
        /// The MP4 was not pushed or was deleted.
        VideoMissing = "video_missing",
        /// The JSON has not been pushed yet.
        MetadataMissing = "metadata_missing",
        /// The agent reported a failure.
        GenerationFailed = "generation_failed",
        /// Nothing was pushed before the deadline.
        GenerationTimeout = "generation_timeout",
        /// The agent finished, but nothing was pushed.
        FinishedWithoutVideo = "finished_without_video",
    }
}

impl Code {
    /// Whether the video failed before anything was pushed, because of its generation.
    pub const fn is_of_generation(self) -> bool {
        matches!(
            self,
            Self::GenerationFailed | Self::GenerationTimeout | Self::FinishedWithoutVideo
        )
    }

    /// The class of this code.
    pub const fn class(self) -> Class {
        match self {
            Self::BadMetadata
            | Self::MetadataMismatch
            | Self::NotAnMp4
            | Self::Truncated
            | Self::NoVideoTrack
            | Self::RowMismatch => Class::Invalid,
            Self::BucketMissing
            | Self::MimeNotAllowed
            | Self::StorageDenied
            | Self::StorageQuota
            | Self::StoragePaused
            | Self::GithubDenied
            | Self::TooLarge
            | Self::LfsObjectMissing
            | Self::LfsQuota
            | Self::RowDenied => Class::Configuration,
            Self::CorruptDownload
            | Self::GithubUnavailable
            | Self::RateLimited
            | Self::StorageUnavailable
            | Self::DatabaseUnavailable
            | Self::DiskFull
            | Self::LeaseExpired
            | Self::Internal => Class::Transient,
            Self::GaveUp
            | Self::NoRow
            | Self::VideoMissing
            | Self::MetadataMissing
            | Self::GenerationFailed
            | Self::GenerationTimeout
            | Self::FinishedWithoutVideo => Class::Expired,
        }
    }
}

impl Code {
    /// Whether it is a configuration failure of the storage.
    pub const fn is_of_storage(self) -> bool {
        matches!(
            self,
            Self::BucketMissing
                | Self::MimeNotAllowed
                | Self::StorageDenied
                | Self::StorageQuota
                | Self::StoragePaused
                | Self::TooLarge
        )
    }
}

/// A failed attempt.
///
/// The message is shown to all users who may see the video. It must not contain secrets or internal
/// addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code, which determines the class.
    pub code: Code,
    /// The cause and, where it is not obvious, what to do. Full sentences.
    pub message: String,
    /// The wait that the service requested. A retry after it does not count as an attempt.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Creates a failure without a requested wait.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// Sets the wait that the service requested, clamped to [`RETRY_AFTER_MIN`] and [`RETRY_AFTER_MAX`].
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(clamp_retry_after(wait));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl Error for Failure {}

/// The shortest wait that a service can request. Without it, `Retry-After: 0` would cause a busy loop.
pub const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// The longest wait that a service can request.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(6 * 3600);

/// Limits a wait that a service requested to [`RETRY_AFTER_MIN`]..=[`RETRY_AFTER_MAX`].
pub fn clamp_retry_after(wait: Duration) -> Duration {
    wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
}

/// The period after which transient failures are no longer retried automatically.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The wait after the first configuration failure. It doubles each time.
pub const CONFIGURATION_RETRY: Duration = Duration::from_secs(3600);

/// The longest wait after a configuration failure.
pub const CONFIGURATION_RETRY_MAX: Duration = Duration::from_secs(24 * 3600);

/// The waits after the first, second, … counted attempt, in seconds. The last one repeats.
const RETRY_SECONDS: [u64; 6] = [5, 15, 60, 300, 900, 3600];

/// Adds jitter of up to 10 % in both directions, so that videos that failed together are not retried
/// together. `random` is in `[0, 1)`.
pub fn jittered(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(0.9 + random * 0.2)
}

/// The wait after a transient failure of the `attempts`-th attempt, counted from 1, with jitter.
///
/// `random` is in `[0, 1)`.
pub fn retry_delay(attempts: u32, random: f64) -> Duration {
    let step = (attempts.max(1) as usize - 1).min(RETRY_SECONDS.len() - 1);
    jittered(Duration::from_secs(RETRY_SECONDS[step]), random)
}

/// The wait after the `attempts`-th configuration failure, counted from 1, with jitter.
///
/// `random` is in `[0, 1)`.
pub fn configuration_delay(attempts: u32, random: f64) -> Duration {
    // 16 hours is the last power of two below the limit.
    let doubled = CONFIGURATION_RETRY * (1 << attempts.saturating_sub(1).min(5));
    jittered(doubled.min(CONFIGURATION_RETRY_MAX), random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_an_hour() {
        let seconds: Vec<u64> = (1..=8)
            .map(|n| retry_delay(n, 0.5).as_secs_f64().round() as u64)
            .collect();
        assert_eq!(seconds, [5, 15, 60, 300, 900, 3600, 3600, 3600]);
    }

    #[test]
    fn configuration_failures_are_retried_less_and_less_often() {
        let hours: Vec<u64> = [1, 2, 3, 4, 5, 6, 7, u32::MAX]
            .map(|n| configuration_delay(n, 0.5).as_secs_f64().round() as u64 / 3600)
            .to_vec();
        assert_eq!(hours, [1, 2, 4, 8, 16, 24, 24, 24]);
    }

    #[test]
    fn the_jitter_stays_within_a_tenth() {
        assert_eq!(retry_delay(3, 0.0), Duration::from_secs(54));
        assert!(retry_delay(3, 0.999_999) < Duration::from_secs(66));
    }

    #[test]
    fn codes_are_unique() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
