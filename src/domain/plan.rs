//! Decisions about one attempt at a video: what to do, how the attempt ends, and when the next one is due.
//! Pure functions of the listing, the row and the results of earlier attempts.

use std::time::Duration;

use uuid::Uuid;

use super::failure::{Class, Code, Failure, GIVE_UP_AFTER, configuration_delay, retry_delay};
use super::ids::{FileKind, GitSha};
use super::state::VideoState;
use super::timeline::Step;

/// The time after which an object is compared again, if an upload of it may still complete.
///
/// The storage can complete an upload whose connection was lost, also after a newer one.
pub const LATE_UPLOAD_LOOK: Duration = Duration::from_secs(5 * 60);

/// The longest lease that the settings allow.
pub const LEASE_MAX: Duration = Duration::from_secs(600);

/// The blobs of the two files of a video: the MP4 and the JSON.
pub type Blobs = (Option<GitSha>, Option<GitSha>);

/// One file at the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The blob's SHA, against which its bytes can be verified.
    pub sha: GitSha,
    /// The blob's size in bytes; for a file in LFS, the pointer's.
    pub size: u64,
}

/// The two files of a video at the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// `<lesson_id>_<video_id>.mp4`
    pub mp4: Option<Entry>,
    /// `<lesson_id>_<video_id>.json`
    pub json: Option<Entry>,
}

impl Pair {
    /// The names of both blobs.
    pub fn blobs(&self) -> Blobs {
        (self.mp4.map(|e| e.sha), self.json.map(|e| e.sha))
    }

    /// The place of the file of this kind.
    pub(crate) fn slot(&mut self, kind: FileKind) -> &mut Option<Entry> {
        match kind {
            FileKind::Video => &mut self.mp4,
            FileKind::Metadata => &mut self.json,
        }
    }
}

/// The results of earlier attempts.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Whether a blob that was rejected before is ingested again.
    pub forced: bool,
    /// The number of counted attempts before this one.
    pub attempts: u32,
    /// The time since the first transient failure; `None` if the last attempt had none.
    pub failing_for: Option<Duration>,
    /// The reason why the last attempt failed or waited.
    pub code: Option<Code>,
    /// The message for `code`.
    pub message: Option<String>,
    /// The time since each missing part was first missed.
    pub waited: Waited,
    /// What the last configuration failure depends on; `None`: there was none since the last request.
    pub cause: Option<String>,
    /// The blobs that the last attempt found in the branch.
    pub observed: Blobs,
    /// The published video.
    pub stored: Option<Published>,
}

/// The time since a part of the video was first found missing; zero if it was not. It continues through
/// everything that happens in between, such as outages, until the video is ready or has failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// For the app's row.
    pub row: Duration,
    /// For the JSON.
    pub json: Duration,
    /// For the MP4.
    pub mp4: Duration,
}

/// A video whose object the storage has confirmed.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The head of the listing.
    pub commit: GitSha,
    /// The blob of the MP4, or of its LFS pointer.
    pub blob_sha: GitSha,
    /// SHA-256 of the MP4, in hexadecimal digits.
    pub sha256: String,
    /// Size of the MP4, in bytes.
    pub size_bytes: u64,
    /// Duration according to the MP4, in milliseconds.
    pub duration_ms: u64,
    /// Width, in pixels.
    pub width: u32,
    /// Height, in pixels.
    pub height: u32,
    /// The object's path within the bucket.
    pub storage_path: String,
    /// Differences between the JSON and the MP4, for people.
    pub warnings: Vec<String>,
    /// The allow-listed fields of the JSON.
    pub metadata: serde_json::Value,
    /// The id of the agent's conversation, if the JSON contains a valid one.
    pub conversation_id: Option<String>,
    /// `generated_at` of the JSON.
    pub generated_at: Option<String>,
}

/// The end of an attempt.
#[derive(Clone, Debug)]
pub enum End {
    /// The storage has confirmed the object. The row becomes ready if it has not changed since it was read.
    Ready {
        /// The published video.
        published: Box<Published>,
        /// The owner of the row when it was read. The storage path contains it.
        user_id: Uuid,
        /// The bucket of the object.
        bucket: String,
        /// The path in the row when it was read; `None` if the row was pending.
        replaces: Option<String>,
    },
    /// The row is ready and the branch contains no new files.
    Unchanged,
    /// A file or the row is missing.
    Waiting {
        /// What is missing.
        code: Code,
        /// The message for people.
        message: String,
        /// The time until the next attempt if nothing arrives.
        recheck_in: Duration,
    },
    /// A transient failure. The video is retried.
    Retry {
        /// The failure.
        failure: Failure,
        /// The time until the next attempt.
        wait: Duration,
        /// Whether it counts as an attempt.
        counted: bool,
    },
    /// The video failed. The failure is written to the row.
    Failed {
        /// The failure.
        failure: Failure,
        /// The time until the next attempt without a request, for configuration failures.
        recheck_in: Option<Duration>,
    },
}

impl End {
    /// The new state, unless the video was requested during the attempt.
    pub const fn state(&self) -> VideoState {
        match self {
            Self::Ready { .. } | Self::Unchanged => VideoState::Ready,
            Self::Waiting { .. } => VideoState::Waiting,
            Self::Retry { .. } => VideoState::Queued,
            Self::Failed { .. } => VideoState::Failed,
        }
    }

    /// The step in the timeline and the metrics.
    pub const fn step(&self) -> Step {
        match self {
            Self::Ready { .. } => Step::Ready,
            Self::Unchanged => Step::Unchanged,
            Self::Waiting { .. } => Step::Waiting,
            Self::Retry { .. } => Step::Retry,
            Self::Failed { .. } => Step::Failed,
        }
    }

    /// The reason why the video failed or waits.
    pub fn reason(&self) -> Option<(Code, &str)> {
        match self {
            Self::Ready { .. } | Self::Unchanged => None,
            Self::Waiting { code, message, .. } => Some((*code, message)),
            Self::Retry { failure, .. } | Self::Failed { failure, .. } => {
                Some((failure.code, &failure.message))
            }
        }
    }

    /// The time until the next attempt if there is no request; `None` if there is no automatic attempt.
    pub const fn recheck_in(&self) -> Option<Duration> {
        match self {
            Self::Ready { .. } | Self::Unchanged => None,
            Self::Waiting { recheck_in, .. } => Some(*recheck_in),
            Self::Retry { wait, .. } => Some(*wait),
            Self::Failed { recheck_in, .. } => *recheck_in,
        }
    }

    /// Whether the video no longer waits for anything: it is ready or has failed for good.
    pub const fn ends_waiting(&self) -> bool {
        match self {
            Self::Ready { .. } | Self::Unchanged => true,
            Self::Failed { recheck_in, .. } => recheck_in.is_none(),
            Self::Waiting { .. } | Self::Retry { .. } => false,
        }
    }

    /// Whether it counts as an attempt.
    pub const fn is_counted(&self) -> bool {
        match self {
            Self::Retry { counted, .. } => *counted,
            Self::Ready { .. } | Self::Failed { .. } => true,
            Self::Unchanged | Self::Waiting { .. } => false,
        }
    }
}

/// The waiting periods for incomplete videos.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// The period after which an MP4 without a JSON is ingested.
    pub metadata_grace: Duration,
    /// The period after which a video with a JSON but no MP4 fails.
    pub generation_deadline: Duration,
}

/// The plan for an attempt.
#[derive(Debug)]
pub enum Plan {
    /// Download, check, store and publish this MP4.
    Ingest(Entry),
    /// End without a download.
    End(End),
    /// Fail without a download.
    Fail(Failure),
}

/// Plans an attempt. `ready_path`: the object's path in the row, `None` if the row is pending. `listed`: the
/// files in the branch.
pub fn plan(history: &History, ready_path: Option<&str>, listed: Pair, waits: Waits) -> Plan {
    let Some(mp4) = listed.mp4 else {
        return without_mp4(history, ready_path.is_some(), listed.json.is_some(), waits);
    };
    // The last attempt found the same files and this one is not forced, so its result is still valid.
    let settled = !history.forced && listed.blobs() == history.observed;
    if settled
        && let Some(code) = history.code
        && code.class() == Class::Invalid
        // The row may have been corrected since.
        && code != Code::RowMismatch
    {
        let message = history.message.clone().unwrap_or_default();
        return Plan::Fail(Failure::new(code, message));
    }
    let is_published = history.stored.as_ref().is_some_and(|stored| {
        stored.blob_sha == mp4.sha && Some(&*stored.storage_path) == ready_path
    });
    if settled && history.code.is_none() && is_published {
        return Plan::End(End::Unchanged);
    }
    let waited = history.waited.json;
    if listed.json.is_none() && waited < waits.metadata_grace {
        return Plan::End(End::Waiting {
            code: Code::MetadataMissing,
            message: "The JSON file has not been pushed yet; if it does not arrive in time, the video will be ingested without it."
                .to_owned(),
            recheck_in: waits.metadata_grace - waited,
        });
    }
    Plan::Ingest(mp4)
}

fn without_mp4(history: &History, is_ready: bool, has_json: bool, waits: Waits) -> Plan {
    // A ready row stays ready, even if its files are deleted.
    if is_ready {
        return Plan::End(End::Unchanged);
    }
    let fail = |message| Plan::Fail(Failure::new(Code::VideoMissing, message));
    if !has_json {
        let was_pushed = history.observed != (None, None) || history.stored.is_some();
        return match history.code {
            // Still nothing was pushed, so the reason is the same as before.
            Some(code) if !was_pushed && code.is_of_generation() => {
                let message = history.message.clone().unwrap_or_default();
                Plan::Fail(Failure::new(code, message))
            }
            _ if was_pushed => fail("The branch no longer contains the MP4; push it again."),
            _ => fail("The branch does not contain the MP4; push it."),
        };
    }
    match remaining(waits.generation_deadline, history.waited.mp4) {
        Some(recheck_in) => Plan::End(End::Waiting {
            code: Code::VideoMissing,
            message: "Only the JSON file has been pushed so far; waiting for the MP4.".to_owned(),
            recheck_in,
        }),
        None => fail("The JSON file was pushed, but the MP4 was not; push the MP4."),
    }
}

/// The end of an attempt at a video without a row.
pub fn wait_for_row(history: &History) -> End {
    match remaining(GIVE_UP_AFTER, history.waited.row) {
        Some(recheck_in) => End::Waiting {
            code: Code::NoRow,
            message: "There is no row with this ID in lesson_assets yet; waiting for it."
                .to_owned(),
            recheck_in,
        },
        None => End::Failed {
            failure: Failure::new(
                Code::NoRow,
                "No row with this ID was inserted within 24 hours of the push; insert it, then retry.",
            ),
            recheck_in: None,
        },
    }
}

/// The end of an attempt that failed. `random`, in `[0, 1)`, adds jitter to the wait.
pub fn after_failure(history: &History, failure: Failure, random: f64) -> End {
    // Attempts with transient failures before the first configuration failure do not count.
    let configured = history.cause.as_ref().map_or(0, |_| history.attempts);
    let delay = || Some(configuration_delay(configured + 1, random));
    match (failure.code.class(), failure.retry_after) {
        (Class::Invalid | Class::Expired, _) => End::Failed {
            failure,
            recheck_in: None,
        },
        (Class::Configuration, _) => End::Failed {
            failure,
            recheck_in: delay(),
        },
        // A wait that the service requested does not count as an attempt.
        (Class::Transient, Some(wait)) => End::Retry {
            failure,
            wait,
            counted: false,
        },
        (Class::Transient, None)
            if history
                .failing_for
                .is_some_and(|time| time >= GIVE_UP_AFTER)
                || (history.code, failure.code) == (Some(Code::GaveUp), Code::CorruptDownload) =>
        {
            // Sweeps retry `gave_up` when the service is available again, but that does not show whether this
            // file is still corrupted, so it is retried on a schedule.
            let recheck_in = (failure.code == Code::CorruptDownload)
                .then(delay)
                .flatten();
            let message = format!(
                "Gave up after retrying for 24 hours. The last failure was: {}",
                failure.message
            );
            End::Failed {
                failure: Failure::new(Code::GaveUp, message),
                recheck_in,
            }
        }
        (Class::Transient, None) => End::Retry {
            wait: retry_delay(history.attempts + 1, random),
            failure,
            counted: true,
        },
    }
}

/// The rest of a period; `None` if it is over.
fn remaining(period: Duration, waited: Duration) -> Option<Duration> {
    period.checked_sub(waited).filter(|rest| !rest.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::CONFIGURATION_RETRY;

    const WAITS: Waits = Waits {
        metadata_grace: Duration::from_secs(600),
        generation_deadline: Duration::from_secs(6 * 3600),
    };

    fn sha(byte: u8) -> Option<GitSha> {
        Some(GitSha::from_bytes([byte; 20]))
    }

    fn listed(blobs: Blobs) -> Pair {
        let entry = |sha| Entry { sha, size: 1 };
        Pair {
            mp4: blobs.0.map(entry),
            json: blobs.1.map(entry),
        }
    }

    fn failed(code: Code) -> History {
        History {
            code: Some(code),
            observed: (sha(1), sha(2)),
            ..History::default()
        }
    }

    #[test]
    fn a_rejected_blob_is_not_fetched_again_unless_forced_or_changed() {
        let history = failed(Code::Truncated);
        let both = (sha(1), sha(2));
        assert!(
            matches!(plan(&history, None, listed(both), WAITS), Plan::Fail(f) if f.code == Code::Truncated)
        );
        assert!(matches!(
            plan(&history, None, listed((sha(3), sha(2))), WAITS),
            Plan::Ingest(_)
        ));
        let forced = History {
            forced: true,
            ..history
        };
        assert!(matches!(
            plan(&forced, None, listed(both), WAITS),
            Plan::Ingest(_)
        ));
        let row = failed(Code::RowMismatch);
        assert!(matches!(
            plan(&row, None, listed(both), WAITS),
            Plan::Ingest(_)
        ));
    }

    #[test]
    fn a_ready_video_stays_ready_without_its_files() {
        for blobs in [(None, None), (None, sha(2))] {
            let planned = plan(&History::default(), Some("a/b/c.mp4"), listed(blobs), WAITS);
            assert!(matches!(planned, Plan::End(End::Unchanged)));
        }
    }

    #[test]
    fn waiting_continues_through_other_failures() {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let recheck_in = |code, waited| {
            let history = History {
                code: Some(code),
                waited,
                ..History::default()
            };
            match plan(&history, None, listed((sha(1), None)), WAITS) {
                Plan::End(end) => end.recheck_in(),
                _ => None,
            }
        };
        let json = |n| Waited {
            json: minutes(n),
            ..Waited::default()
        };
        assert_eq!(recheck_in(Code::MetadataMissing, json(4)), Some(minutes(6)));
        assert_eq!(
            recheck_in(Code::GithubUnavailable, json(4)),
            Some(minutes(6))
        );
        assert_eq!(recheck_in(Code::MetadataMissing, json(10)), None);
        let row = Waited {
            row: minutes(400),
            ..Waited::default()
        };
        assert_eq!(recheck_in(Code::NoRow, row), Some(minutes(10)));
    }

    #[test]
    fn each_class_has_its_own_end() {
        let end = |code| after_failure(&History::default(), Failure::new(code, ""), 0.5);
        assert_eq!(end(Code::Truncated).recheck_in(), None);
        assert_eq!(end(Code::NoRow).recheck_in(), None);
        assert_eq!(end(Code::TooLarge).recheck_in(), Some(CONFIGURATION_RETRY));
        let again = |attempts, cause: Option<&str>| {
            let cause = cause.map(str::to_owned);
            let history = History {
                attempts,
                cause,
                ..History::default()
            };
            after_failure(&history, Failure::new(Code::TooLarge, ""), 0.5).recheck_in()
        };
        assert_eq!(again(2, Some("")), Some(CONFIGURATION_RETRY * 4));
        assert_eq!(
            again(2, None),
            Some(CONFIGURATION_RETRY),
            "transient failures before"
        );
        assert_eq!(end(Code::DiskFull).state(), VideoState::Queued);
        let tired = History {
            failing_for: Some(GIVE_UP_AFTER),
            ..History::default()
        };
        let gave_up = after_failure(&tired, Failure::new(Code::DiskFull, ""), 0.5);
        assert_eq!(gave_up.reason().map(|(code, _)| code), Some(Code::GaveUp));
        assert_eq!(gave_up.recheck_in(), None);
        let corrupt = after_failure(&tired, Failure::new(Code::CorruptDownload, ""), 0.5);
        assert_eq!(corrupt.recheck_in(), Some(CONFIGURATION_RETRY));
        let corrupt = after_failure(
            &failed(Code::GaveUp),
            Failure::new(Code::CorruptDownload, ""),
            0.5,
        );
        assert_eq!(corrupt.state(), VideoState::Failed);
        let asked = Failure::new(Code::RateLimited, "").after(Duration::from_secs(9));
        assert!(!after_failure(&tired, asked, 0.5).is_counted());
    }
}
