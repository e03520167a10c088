//! What to do with one video: pure decisions from what the branch holds, what its row says and what is
//! known of it. The worker carries them out, the database persists their [`End`].

use std::time::Duration;

use uuid::Uuid;

use super::failure::{
    CONFIGURATION_RETRY, Class, Code, Failure, GIVE_UP_AFTER, retry_delay, spread,
};
use super::ids::GitSha;
use super::state::VideoState;
use super::timeline::Step;

/// The blobs of a video's two files: the MP4 and the JSON.
pub type Blobs = (Option<GitSha>, Option<GitSha>);

/// What is known of a claimed video from earlier attempts.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Ingest again even a blob that was rejected.
    pub forced: bool,
    /// Counted attempts before this one.
    pub attempts: u32,
    /// For how long it has been failing with transient failures.
    pub failing: Option<Duration>,
    /// What it last failed with or waited for.
    pub code: Option<Code>,
    /// The message of that.
    pub message: Option<String>,
    /// For how long it has been waiting for what `code` says.
    pub waited: Duration,
    /// The blobs that were last looked at.
    pub observed: Blobs,
    /// What the storage holds.
    pub stored: Option<Published>,
}

impl History {
    /// For how long it has been waiting for this; zero if it waits for something else or for nothing.
    fn waited_for(&self, code: Code) -> Duration {
        if self.code == Some(code) {
            self.waited
        } else {
            Duration::ZERO
        }
    }
}

/// Everything that is known of a video whose bytes are in the storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The head that was read.
    pub commit: GitSha,
    /// The MP4's blob; with LFS the pointer's.
    pub blob_sha: GitSha,
    /// SHA-256 of the video's bytes, hex.
    pub sha256: String,
    /// Size of the video in bytes.
    pub size_bytes: u64,
    /// From the container.
    pub duration_ms: u64,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Path within the bucket.
    pub storage_path: String,
    /// Where the JSON disagrees with the container.
    pub warnings: Vec<String>,
    /// The JSON's fields that may be shown.
    pub metadata: serde_json::Value,
    /// The agent's conversation, if the JSON names a plausible one.
    pub conversation_id: Option<String>,
    /// The JSON's `generated_at`.
    pub generated_at: Option<String>,
}

/// How a claim ends.
#[derive(Clone, Debug)]
pub enum End {
    /// The stored object was confirmed: the row becomes ready if it still is the row that was read.
    Ready {
        /// What goes into the row.
        published: Box<Published>,
        /// The row's owner when the storage path was made.
        user_id: Uuid,
        /// The bucket that holds the object.
        bucket: String,
    },
    /// It was ready before and still is; the branch holds nothing new for it.
    Unchanged,
    /// Something has to arrive first.
    Waiting {
        /// What.
        code: Code,
        /// The same for people.
        message: String,
        /// When to look again if nothing arrives.
        look_again: Duration,
    },
    /// A transient failure: tried again after `wait`.
    Retry {
        /// Why.
        failure: Failure,
        /// From now.
        wait: Duration,
        /// Whether it counts as an attempt.
        counted: bool,
    },
    /// Failed, and the row says so.
    Failed {
        /// Why.
        failure: Failure,
        /// When to look again without a request: for configuration failures, whose cause may be fixed
        /// outside the files.
        look_again: Option<Duration>,
    },
}

impl End {
    /// The state that the video has afterwards, unless more was requested during the attempt.
    pub const fn state(&self) -> VideoState {
        match self {
            Self::Ready { .. } | Self::Unchanged => VideoState::Ready,
            Self::Waiting { .. } => VideoState::Waiting,
            Self::Retry { .. } => VideoState::Queued,
            Self::Failed { .. } => VideoState::Failed,
        }
    }

    /// How the timeline and the metrics call it.
    pub const fn step(&self) -> Step {
        match self {
            Self::Ready { .. } => Step::Ready,
            Self::Unchanged => Step::Unchanged,
            Self::Waiting { .. } => Step::Waiting,
            Self::Retry { .. } => Step::Retry,
            Self::Failed { .. } => Step::Failed,
        }
    }

    /// What it failed with or waits for.
    pub fn reason(&self) -> Option<(Code, &str)> {
        match self {
            Self::Ready { .. } | Self::Unchanged => None,
            Self::Waiting { code, message, .. } => Some((*code, message)),
            Self::Retry { failure, .. } | Self::Failed { failure, .. } => {
                Some((failure.code, &failure.message))
            }
        }
    }

    /// When a worker looks again without a request.
    pub const fn look_again(&self) -> Option<Duration> {
        match self {
            Self::Ready { .. } | Self::Unchanged => None,
            Self::Waiting { look_again, .. } => Some(*look_again),
            Self::Retry { wait, .. } => Some(*wait),
            Self::Failed { look_again, .. } => *look_again,
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

/// How long incomplete videos are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// From the first sight of an MP4 without its JSON; then it is ingested without.
    pub metadata_grace: Duration,
    /// From the first sight of a JSON without its MP4; then it is failed.
    pub generation_deadline: Duration,
}

/// What to do, given what the branch holds.
#[derive(Debug)]
pub enum Plan {
    /// Fetch, check, store and publish this MP4.
    Ingest(GitSha),
    /// Nothing to fetch.
    End(End),
    /// A verdict without a look at the bytes.
    Fail(Failure),
}

/// Decides what to do with a video whose row names `ready_path` (`None`: it is pending) and of which the
/// branch lists these blobs.
pub fn plan(history: &History, ready_path: Option<&str>, listed: Blobs, waits: Waits) -> Plan {
    let (mp4, json) = listed;
    let Some(mp4) = mp4 else {
        return without_mp4(history, ready_path.is_some(), json.is_some(), waits);
    };
    // Seen before and not asked for explicitly: the verdict of that time still holds.
    let settled = !history.forced && listed == history.observed;
    if settled
        && let Some(code) = history.code
        && code.class() == Class::Invalid
        // The row is outside the files: it may have been corrected.
        && code != Code::RowMismatch
    {
        let message = history.message.clone().unwrap_or_default();
        return Plan::Fail(Failure::new(code, message));
    }
    let is_published = history
        .stored
        .as_ref()
        .is_some_and(|stored| stored.blob_sha == mp4 && Some(&*stored.storage_path) == ready_path);
    if settled && history.code.is_none() && is_published {
        return Plan::End(End::Unchanged);
    }
    let waited = history.waited_for(Code::MetadataMissing);
    if json.is_none() && waited < waits.metadata_grace {
        return Plan::End(End::Waiting {
            code: Code::MetadataMissing,
            message: "The JSON has not been pushed yet; waiting for it before the video is ingested without."
                .to_owned(),
            look_again: waits.metadata_grace - waited,
        });
    }
    Plan::Ingest(mp4)
}

fn without_mp4(history: &History, is_ready: bool, has_json: bool, waits: Waits) -> Plan {
    // A ready video is never taken away, whatever happens to its files.
    if is_ready {
        return Plan::End(End::Unchanged);
    }
    let fail = |message| Plan::Fail(Failure::new(Code::VideoMissing, message));
    if !has_json {
        return fail("The video is not in the branch (or no longer); push it again.");
    }
    match left(
        waits.generation_deadline,
        history.waited_for(Code::VideoMissing),
    ) {
        Some(look_again) => Plan::End(End::Waiting {
            code: Code::VideoMissing,
            message: "Only the JSON has been pushed so far; waiting for the MP4.".to_owned(),
            look_again,
        }),
        None => fail("Only the JSON was pushed and the MP4 never came; push it."),
    }
}

/// The end of an attempt at a video that has no row yet.
pub fn wait_for_row(history: &History) -> End {
    match left(GIVE_UP_AFTER, history.waited_for(Code::NoRow)) {
        Some(look_again) => End::Waiting {
            code: Code::NoRow,
            message: "lesson_assets has no row with this id yet; waiting for it.".to_owned(),
            look_again,
        },
        None => End::Failed {
            failure: Failure::new(
                Code::NoRow,
                "No row with this id was inserted within 24 hours of the push; insert it, then retry.",
            ),
            look_again: None,
        },
    }
}

/// What a failure means for the video, by its class. `random` in `[0, 1)` spreads the waits.
pub fn after_failure(history: &History, failure: Failure, random: f64) -> End {
    match (failure.code.class(), failure.retry_after) {
        (Class::Invalid | Class::Expired, _) => End::Failed {
            failure,
            look_again: None,
        },
        (Class::Configuration, _) => End::Failed {
            failure,
            look_again: Some(spread(CONFIGURATION_RETRY, random)),
        },
        // The service named the wait itself: that is not an attempt of ours.
        (Class::Transient, Some(wait)) => End::Retry {
            failure,
            wait,
            counted: false,
        },
        (Class::Transient, None) if history.failing.is_some_and(|time| time >= GIVE_UP_AFTER) => {
            let message = format!(
                "Gave up after 24 hours of attempts. The last failure: {}",
                failure.message
            );
            End::Failed {
                failure: Failure::new(Code::GaveUp, message),
                look_again: None,
            }
        }
        (Class::Transient, None) => End::Retry {
            wait: retry_delay(history.attempts + 1, random),
            failure,
            counted: true,
        },
    }
}

/// What is left of a period; `None`: it is over.
fn left(period: Duration, waited: Duration) -> Option<Duration> {
    period.checked_sub(waited).filter(|rest| !rest.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits {
        metadata_grace: Duration::from_secs(600),
        generation_deadline: Duration::from_secs(6 * 3600),
    };

    fn sha(byte: u8) -> Option<GitSha> {
        Some(GitSha::from_bytes([byte; 20]))
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
            matches!(plan(&history, None, both, WAITS), Plan::Fail(f) if f.code == Code::Truncated)
        );
        assert!(matches!(
            plan(&history, None, (sha(3), sha(2)), WAITS),
            Plan::Ingest(_)
        ));
        let forced = History {
            forced: true,
            ..history
        };
        assert!(matches!(plan(&forced, None, both, WAITS), Plan::Ingest(_)));
        let row = failed(Code::RowMismatch);
        assert!(matches!(plan(&row, None, both, WAITS), Plan::Ingest(_)));
    }

    #[test]
    fn a_ready_video_stays_ready_without_its_files() {
        for listed in [(None, None), (None, sha(2))] {
            let planned = plan(&History::default(), Some("a/b/c.mp4"), listed, WAITS);
            assert!(matches!(planned, Plan::End(End::Unchanged)));
        }
    }

    #[test]
    fn waiting_counts_only_what_is_waited_for() {
        let history = |code, minutes: u64| History {
            code: Some(code),
            waited: Duration::from_secs(minutes * 60),
            ..History::default()
        };
        let look_again = |history: &History| match plan(history, None, (sha(1), None), WAITS) {
            Plan::End(end) => end.look_again(),
            _ => None,
        };
        let minutes = |n: u64| Some(Duration::from_secs(n * 60));
        assert_eq!(look_again(&history(Code::MetadataMissing, 4)), minutes(6));
        assert_eq!(
            look_again(&history(Code::GithubUnavailable, 4)),
            minutes(10)
        );
        assert_eq!(look_again(&history(Code::MetadataMissing, 10)), None);
    }

    #[test]
    fn every_class_ends_in_its_own_way() {
        let end = |code| after_failure(&History::default(), Failure::new(code, ""), 0.5);
        assert_eq!(end(Code::Truncated).look_again(), None);
        assert_eq!(end(Code::NoRow).look_again(), None);
        assert_eq!(end(Code::TooLarge).look_again(), Some(CONFIGURATION_RETRY));
        assert_eq!(end(Code::DiskFull).state(), VideoState::Queued);
        let tired = History {
            failing: Some(GIVE_UP_AFTER),
            ..History::default()
        };
        let gave_up = after_failure(&tired, Failure::new(Code::DiskFull, ""), 0.5);
        assert_eq!(gave_up.reason().map(|(code, _)| code), Some(Code::GaveUp));
        let asked = Failure::new(Code::RateLimited, "").after(Duration::from_secs(9));
        assert!(!after_failure(&tired, asked, 0.5).is_counted());
    }
}
