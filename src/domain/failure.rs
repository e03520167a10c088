//! What can go wrong with a video, classed by what to do about it, and when to try again.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::spelled::spelled;

spelled! {
/// What may be done about a failure.
pub enum Class {
    /// The pushed files are wrong: tried again when one of their blobs changes, on redelivery or retry.
    Invalid = "invalid",
    /// Something around the files is configured wrong: reported at once, tried again hourly and by every sweep.
    Configuration = "configuration",
    /// Likely to go away without a change: tried again on [`retry_delay`]'s schedule.
    Transient = "transient",
    /// Something that was expected did not arrive in time: tried again when something is pushed.
    Expired = "expired",
}
}

spelled! {
    /// Why a video is not ready. The spellings are part of the API.
    pub enum Code {
        /// The JSON is no object with the agreed fields, or is over 64 KiB.
        BadMetadata = "bad_metadata",
        /// The JSON names another lesson or video than the file's name.
        MetadataMismatch = "metadata_mismatch",
        /// Under 8 bytes, or the first box is not `ftyp`.
        NotAnMp4 = "not_an_mp4",
        /// A top-level box passes the end of the file, or the index is missing.
        Truncated = "truncated",
        /// No track with pictures in it.
        NoVideoTrack = "no_video_track",
        /// The row of that id is another lesson's, or is not a video.
        RowMismatch = "row_mismatch",
        /// The storage bucket does not exist.
        BucketMissing = "bucket_missing",
        /// The bucket's allowed types lack `video/mp4`.
        MimeNotAllowed = "mime_not_allowed",
        /// The storage refuses our key.
        StorageDenied = "storage_denied",
        /// GitHub refuses our token, or shows us no such repository.
        GithubDenied = "github_denied",
        /// Over the bucket's or our own limit.
        TooLarge = "too_large",
        /// The pointer is there, the object is not.
        LfsObjectMissing = "lfs_object_missing",
        /// The bytes that came are not the bytes that were pushed.
        CorruptDownload = "corrupt_download",
        /// GitHub (or its LFS storage) did not answer as it should.
        GithubUnavailable = "github_unavailable",
        /// GitHub asked us to wait.
        RateLimited = "rate_limited",
        /// The storage did not answer as it should.
        StorageUnavailable = "storage_unavailable",
        /// Our own database did not answer as it should.
        DatabaseUnavailable = "database_unavailable",
        /// Too little room for a download in `DATA_DIR`.
        DiskFull = "disk_full",
        /// The process that had the video stopped before it was done.
        LeaseExpired = "lease_expired",
        /// A defect of ours; the log has the details.
        Internal = "internal",
        /// A transient failure that lasted for [`GIVE_UP_AFTER`].
        GaveUp = "gave_up",
        /// No row with that id.
        NoRow = "no_row",
        /// The MP4 was not pushed, or is gone again.
        VideoMissing = "video_missing",
        /// Waiting for the JSON beside the MP4.
        MetadataMissing = "metadata_missing",
        /// The agent failed.
        GenerationFailed = "generation_failed",
        /// The deadline passed and nothing was pushed.
        GenerationTimeout = "generation_timeout",
        /// The agent finished and nothing was pushed.
        FinishedWithoutVideo = "finished_without_video",
    }
}

impl Code {
    /// What may be done about it.
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
            | Self::GithubDenied
            | Self::TooLarge
            | Self::LfsObjectMissing => Class::Configuration,
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

/// Why one attempt at a video ended without it: the code says what to do, the message says it to a person.
///
/// The message may be shown to anybody who may see the video: no secret, no address of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub code: Code,
    /// One sentence for a person, with what to do next where that is not obvious.
    pub message: String,
    /// How long the other side asked us to wait; such a wait is not an attempt.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without a wait asked for by the other side.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// The same failure, not to be tried again before `wait` has passed.
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

/// The shortest wait: a service that asks for none, again and again, would be called in a loop.
pub const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// The longest wait another service may ask of us.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(6 * 3600);

/// Bounds a wait that another service asked for to [`RETRY_AFTER_MIN`]..=[`RETRY_AFTER_MAX`].
pub fn clamp_retry_after(wait: Duration) -> Duration {
    wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
}

/// How long transient failures are tried again before a human must look.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How often a configuration failure is tried again.
pub const CONFIGURATION_RETRY: Duration = Duration::from_secs(3600);

/// The waits after the first, second, … counted attempt, in seconds; the last one repeats.
const RETRY_SECONDS: [u64; 6] = [5, 15, 60, 300, 900, 3600];

/// A wait up to a tenth longer or shorter, by `random` in `[0, 1)`: what failed together must not come
/// back together.
pub fn spread(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(0.9 + random * 0.2)
}

/// How long to wait after the `attempts`-th attempt (from 1) ended in a transient failure.
///
/// `random` in `[0, 1)` spreads the wait.
pub fn retry_delay(attempts: u32, random: f64) -> Duration {
    let step = (attempts.max(1) as usize - 1).min(RETRY_SECONDS.len() - 1);
    spread(Duration::from_secs(RETRY_SECONDS[step]), random)
}

/// An error and its causes in one line, for a field of a log line: JSON would show the error alone.
pub fn causes(error: &(dyn Error + 'static)) -> tracing::field::DisplayValue<String> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let reason = next.to_string();
        // Many errors include the text of their cause.
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = next.source();
    }
    tracing::field::display(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_named_once() {
        let error = anyhow::anyhow!("connection refused")
            .context("cannot connect: connection refused")
            .context("no answer");
        assert_eq!(
            causes(error.as_ref()).to_string(),
            "no answer: cannot connect: connection refused"
        );
    }

    #[test]
    fn the_schedule_is_the_contracts() {
        let seconds: Vec<u64> = (1..=8)
            .map(|n| retry_delay(n, 0.5).as_secs_f64().round() as u64)
            .collect();
        assert_eq!(seconds, [5, 15, 60, 300, 900, 3600, 3600, 3600]);
    }

    #[test]
    fn the_jitter_stays_within_a_tenth() {
        assert_eq!(retry_delay(3, 0.0), Duration::from_secs(54));
        assert!(retry_delay(3, 0.999_999) < Duration::from_secs(66));
    }

    #[test]
    fn codes_are_spelled_once() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
