//! What a sweep or scan has read (listing, records, pending and ready rows), and its verdict about each video:
//! a pure function of the listing, the app's row, our record and the generation status.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::failure::Code;
use super::generation::GenerationStatus;
use super::ids::VideoKey;
use super::plan::Blobs;
use super::report::Outcome;
use super::state::VideoState;
use crate::format::duration;

/// The longest time between the end of a generation and the arrival of its push.
pub const PUSH_AFTER_FINISH: Duration = Duration::from_secs(15 * 60);

/// The parts of a record that a verdict needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The state.
    pub state: VideoState,
    /// The reason why it failed or waits.
    pub code: Option<Code>,
    /// The message for `code`.
    pub message: String,
    /// The blobs that the last attempt found in the branch.
    pub observed: Blobs,
    /// The count of requests. If it increases before a verdict is written, the verdict is discarded.
    pub requested: i64,
}

/// A pending row.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingRow {
    /// The video's ids.
    pub key: VideoKey,
    /// The time since it was inserted.
    pub age: Duration,
    /// The id of the agent's conversation.
    pub conversation_id: Option<String>,
    /// The reason in `mime_type`, if the video failed.
    pub failed: Option<String>,
}

/// The parts of the app's row that a verdict needs.
#[derive(Clone, Debug, PartialEq)]
pub enum RowState {
    /// There is no row.
    Missing,
    /// The row is ready.
    Ready,
    /// The row is pending.
    Pending {
        /// The time since the row was inserted.
        age: Duration,
        /// The reason in `mime_type`, if the video failed.
        failed: Option<String>,
    },
}

/// The current generation status.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentStatus {
    /// Not requested: there is no API key, or the row has no conversation.
    NotRequested,
    /// OpenHands did not respond. Never a reason to change anything.
    Unavailable,
    /// OpenHands reported a status.
    Reported {
        /// The status.
        status: GenerationStatus,
        /// The time since it was first reported; `None`: reported for the first time.
        since: Option<Duration>,
    },
}

/// The input of a sweep or scan: the listing, our records and the app's rows.
#[derive(Debug)]
pub struct Snapshot {
    /// The files in the branch.
    pub listed: HashMap<VideoKey, Blobs>,
    /// Whether the listing is complete and current. If not, a video that is not listed may be in the branch.
    pub complete: bool,
    /// Our records.
    pub records: HashMap<VideoKey, Record>,
    /// The pending rows, the oldest first.
    pub pending: Vec<PendingRow>,
    /// The pending rows that are skipped, each with its ids (`None` if they are unusable) and the column that
    /// contains the unusable value.
    pub odd: Vec<(Option<VideoKey>, &'static str)>,
    /// The videos that failed because of a row that this server inserted for a file with another lesson. The
    /// file is gone, so the row can be moved.
    pub released: HashSet<VideoKey>,
    /// The videos whose rows are ready.
    pub ready: HashSet<VideoKey>,
    /// The failed videos whose cause may have changed: see [`Circumstances::may_differ`].
    pub changed: HashSet<VideoKey>,
}

/// A failed video that is retried when the cause of its failure may have changed.
#[derive(Clone, Debug)]
pub struct Blocked {
    /// The video.
    pub key: VideoKey,
    /// The code of the failure.
    pub code: Code,
    /// What the failure depends on, as it was then; `None` if unknown.
    pub cause: Option<String>,
    /// The bucket in the row; `None` if there is no row.
    pub bucket: Option<String>,
}

impl Blocked {
    /// The bucket whose state decides whether the video is retried.
    pub fn depends_on_bucket(&self) -> Option<&str> {
        let gave_up = self.code == Code::GaveUp
            && self.cause.as_deref() == Some(Code::StorageUnavailable.as_str());
        let bucket = self.bucket.as_deref();
        bucket.filter(|_| gave_up || self.code.is_of_storage())
    }
}

/// The current state of what failures depend on, as read by a sweep.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Identifies the token for GitHub, without revealing it.
    pub github: String,
    /// What each bucket accepts, or why it cannot be used. Without those that did not respond.
    pub buckets: HashMap<String, String>,
}

impl Circumstances {
    /// Whether the cause of a failure may be gone: it has changed since the failure, or the service whose
    /// outage led to `gave_up` is available again. GitHub is available, because the sweep has just listed the
    /// branch.
    pub fn may_differ(&self, blocked: &Blocked) -> bool {
        let cause = blocked.cause.as_deref();
        let bucket = blocked.depends_on_bucket();
        let now = bucket.and_then(|bucket| self.buckets.get(bucket));
        match blocked.code {
            Code::RowDenied => false,
            Code::GaveUp if bucket.is_some() => now.is_some(),
            Code::GaveUp => cause != Some(Code::CorruptDownload.as_str()),
            code if code.is_of_storage() => now.is_some_and(|now| cause != Some(now)),
            _ => cause != Some(&self.github),
        }
    }
}

/// The reason of a request for a video that has no record.
pub const NEW_FILES: &str = "found by a sweep";

/// The reason of a request for a video whose files have changed.
pub const CHANGED_FILES: &str = "changes found by a sweep";

/// The reason of a request after the cause of a failure has changed.
pub const CAUSE_CHANGED: &str = "the cause of its failure may have changed";

impl Snapshot {
    /// The video's files in the branch; `None` if unknown, because the listing is incomplete.
    pub fn blobs(&self, key: &VideoKey) -> Option<Blobs> {
        match self.listed.get(key) {
            None if self.complete => Some((None, None)),
            found => found.copied(),
        }
    }

    /// The verdicts for these videos. `agent`: the known generation statuses.
    pub fn verdicts(
        &self,
        keys: impl IntoIterator<Item = VideoKey>,
        agent: &HashMap<VideoKey, AgentStatus>,
        deadline: Duration,
    ) -> Vec<(VideoKey, Verdict)> {
        let pending: HashMap<_, _> = self.pending.iter().map(|row| (row.key, row)).collect();
        let facts = |key| Facts {
            listed: self.blobs(&key),
            row: match pending.get(&key) {
                Some(row) => RowState::Pending {
                    age: row.age,
                    failed: row.failed.clone(),
                },
                None if self.ready.contains(&key) => RowState::Ready,
                None => RowState::Missing,
            },
            record: self.records.get(&key).cloned(),
            agent: agent
                .get(&key)
                .cloned()
                .unwrap_or(AgentStatus::NotRequested),
            cause_changed: self.changed.contains(&key),
        };
        let verdict = |key| match verdict(&facts(key), deadline) {
            Verdict::Failed(_) if self.released.contains(&key) => {
                Verdict::Request("the file with another lesson is gone")
            }
            verdict => verdict,
        };
        let keys = keys.into_iter();
        keys.map(|key| (key, verdict(key))).collect()
    }
}

/// The input of a verdict.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The files in the branch; `None` if unknown, because the listing is incomplete.
    pub listed: Option<Blobs>,
    /// The app's row.
    pub row: RowState,
    /// Our record.
    pub record: Option<Record>,
    /// The generation status.
    pub agent: AgentStatus,
    /// Whether the cause of its failure may have changed.
    pub cause_changed: bool,
}

/// The decision about a video.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Request it for this reason.
    Request(&'static str),
    /// It is queued or running already.
    Busy,
    /// The row was ready before this server was installed. Add a record without ingesting the video.
    Adopt,
    /// It waits for its other file or its row.
    Waiting(String),
    /// The agent has not finished.
    Generating(String),
    /// It is overdue or the agent failed. Fail the row.
    Fail(Code, String),
    /// It failed before and nothing has changed since.
    Failed(String),
    /// The facts are incomplete. Change nothing.
    Unknown(String),
    /// The row is ready and up to date, or there is no pending row. Not reported.
    Settled,
}

impl Verdict {
    /// The outcome and detail in the report; `None` if the video is not reported.
    pub fn outcome(&self) -> Option<(Outcome, &str)> {
        Some(match self {
            Self::Request(reason) => (Outcome::Queued, *reason),
            Self::Busy => (Outcome::Queued, "already queued or running"),
            Self::Waiting(detail) => (Outcome::Waiting, detail),
            Self::Generating(detail) => (Outcome::Generating, detail),
            Self::Fail(_, detail) | Self::Failed(detail) => (Outcome::Failed, detail),
            Self::Unknown(detail) => (Outcome::Unknown, detail),
            Self::Adopt | Self::Settled => return None,
        })
    }
}

/// The verdict about a video. `deadline`: the age at which a pending row fails.
pub fn verdict(facts: &Facts, deadline: Duration) -> Verdict {
    if let Some(record) = &facts.record
        && record.state.is_busy()
    {
        return Verdict::Busy;
    }
    match facts.listed {
        None => Verdict::Unknown(
            "GitHub does not list this video, but its list is incomplete or outdated; a later sweep will check again.".into(),
        ),
        Some((None, None)) => not_pushed(facts, deadline),
        Some(listed) => pushed(listed, facts),
    }
}

fn pushed(listed: Blobs, facts: &Facts) -> Verdict {
    let Some(record) = &facts.record else {
        return match facts.row {
            RowState::Ready if listed.0.is_some() => Verdict::Adopt,
            RowState::Ready => Verdict::Settled,
            RowState::Missing | RowState::Pending { .. } => Verdict::Request(NEW_FILES),
        };
    };
    // Attempts without a matching row end before the listing, so `observed` is unknown.
    if facts.row == RowState::Missing
        && matches!(record.code, Some(Code::NoRow | Code::RowMismatch))
    {
        return if record.state == VideoState::Waiting {
            Verdict::Waiting(record.message.clone())
        } else {
            Verdict::Failed(record.message.clone())
        };
    }
    if record.observed != listed {
        return Verdict::Request(CHANGED_FILES);
    }
    let pending = matches!(facts.row, RowState::Pending { .. });
    let shows_generating = matches!(facts.row, RowState::Pending { failed: None, .. });
    match (record.state, record.code) {
        (VideoState::Ready, _) if pending => Verdict::Request("its row has no video"),
        (VideoState::Ready, _) => Verdict::Settled,
        (VideoState::Waiting, _) => Verdict::Waiting(record.message.clone()),
        (VideoState::Failed, _) if facts.cause_changed => Verdict::Request(CAUSE_CHANGED),
        (_, Some(Code::NoRow)) if pending => Verdict::Request("its row was inserted"),
        // A row with other ids would be another video's.
        (_, Some(Code::RowMismatch)) => Verdict::Request("its row has its lesson again"),
        // The app inserted the row again or removed the failure. Without a request, the app would show
        // "generating" indefinitely.
        _ if shows_generating => Verdict::Request("its row does not contain the failure"),
        _ => Verdict::Failed(record.message.clone()),
    }
}

fn not_pushed(facts: &Facts, deadline: Duration) -> Verdict {
    let RowState::Pending { age, failed } = &facts.row else {
        return Verdict::Settled;
    };
    if let Some(reason) = failed {
        return Verdict::Failed(reason.clone());
    }
    if *age >= deadline {
        return Verdict::Fail(
            Code::GenerationTimeout,
            format!("No video was pushed within {}.", duration(deadline)),
        );
    }
    match &facts.agent {
        AgentStatus::NotRequested => Verdict::Generating("Nothing has been pushed yet.".into()),
        AgentStatus::Unavailable => Verdict::Unknown("The OpenHands API did not respond.".into()),
        AgentStatus::Reported { status, since } => match status {
            GenerationStatus::Generating => Verdict::Generating(status.sentence()),
            GenerationStatus::Finished if since.is_some_and(|since| since >= PUSH_AFTER_FINISH) => {
                Verdict::Fail(
                    Code::FinishedWithoutVideo,
                    format!(
                        "The agent finished but did not push a video within {}.",
                        duration(PUSH_AFTER_FINISH)
                    ),
                )
            }
            GenerationStatus::Finished => Verdict::Generating(status.sentence()),
            GenerationStatus::Failed { .. } if since.is_some() => {
                Verdict::Fail(Code::GenerationFailed, status.failure())
            }
            GenerationStatus::Failed { .. } => Verdict::Unknown(format!(
                "{} If the next sweep gets the same status, the video fails.",
                status.sentence()
            )),
            GenerationStatus::Blocked { .. } | GenerationStatus::Unknown { .. } => {
                Verdict::Unknown(status.sentence())
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::GitSha;

    const DEADLINE: Duration = Duration::from_secs(6 * 3600);
    const YOUNG: Duration = Duration::from_secs(60);
    const NOTHING: Blobs = (None, None);

    fn sha(byte: u8) -> Option<GitSha> {
        Some(GitSha::from_bytes([byte; 20]))
    }

    fn both() -> Blobs {
        (sha(1), sha(2))
    }

    fn pending() -> RowState {
        RowState::Pending {
            age: YOUNG,
            failed: None,
        }
    }

    fn failed_row() -> RowState {
        RowState::Pending {
            age: DEADLINE * 9,
            failed: Some("of old age".into()),
        }
    }

    fn record(state: &str, code: Option<Code>, observed: Blobs) -> Option<Record> {
        Some(Record {
            state: VideoState::parse(state).unwrap(),
            code,
            message: "as recorded".into(),
            observed,
            requested: 1,
        })
    }

    fn of(
        listed: Option<Blobs>,
        row: RowState,
        record: Option<Record>,
        agent: AgentStatus,
    ) -> Verdict {
        let facts = Facts {
            listed,
            row,
            record,
            agent,
            cause_changed: false,
        };
        verdict(&facts, DEADLINE)
    }

    #[test]
    fn what_is_in_the_branch() {
        use Code::*;
        use RowState::{Missing, Ready};
        let request = Verdict::Request;
        let waiting = || Verdict::Waiting("as recorded".into());
        let failed = || Verdict::Failed("as recorded".into());
        let (new, changed) = ("found by a sweep", "changes found by a sweep");
        let (json, mp4) = ((None, sha(2)), (sha(1), None));
        let old = (sha(9), sha(2));
        let cases = [
            // Never seen.
            (both(), pending(), None, request(new)),
            (both(), failed_row(), None, request(new)),
            (json, pending(), None, request(new)),
            (both(), Missing, None, request(new)),
            (both(), Ready, None, Verdict::Adopt),
            (mp4, Ready, None, Verdict::Adopt),
            (json, Ready, None, Verdict::Settled),
            // Queued or running, regardless of all other facts.
            (
                both(),
                pending(),
                record("queued", None, old),
                Verdict::Busy,
            ),
            (both(), Missing, record("running", None, old), Verdict::Busy),
            // Other files than the last attempt found.
            (both(), Ready, record("ready", None, old), request(changed)),
            (mp4, Ready, record("ready", None, both()), request(changed)),
            (
                both(),
                failed_row(),
                record("failed", Some(Truncated), old),
                request(changed),
            ),
            (
                both(),
                pending(),
                record("waiting", Some(VideoMissing), json),
                request(changed),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(GenerationTimeout), NOTHING),
                request(changed),
            ),
            // The same files.
            (
                both(),
                Ready,
                record("ready", None, both()),
                Verdict::Settled,
            ),
            (
                both(),
                Missing,
                record("ready", None, both()),
                Verdict::Settled,
            ),
            (
                both(),
                pending(),
                record("ready", None, both()),
                request("its row has no video"),
            ),
            (
                json,
                pending(),
                record("waiting", Some(VideoMissing), json),
                waiting(),
            ),
            (
                mp4,
                pending(),
                record("waiting", Some(MetadataMissing), mp4),
                waiting(),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(Truncated), both()),
                failed(),
            ),
            (
                both(),
                Ready,
                record("failed", Some(Truncated), both()),
                failed(),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(GaveUp), both()),
                failed(),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(TooLarge), both()),
                failed(),
            ),
            (
                both(),
                Ready,
                record("failed", Some(StorageDenied), both()),
                failed(),
            ),
            (
                both(),
                pending(),
                record("failed", Some(Truncated), both()),
                request("its row does not contain the failure"),
            ),
            // Without a row, no attempt has listed the files.
            (
                both(),
                Missing,
                record("waiting", Some(NoRow), NOTHING),
                waiting(),
            ),
            (
                both(),
                Missing,
                record("failed", Some(NoRow), NOTHING),
                failed(),
            ),
            (
                both(),
                Missing,
                record("failed", Some(RowMismatch), NOTHING),
                failed(),
            ),
            (
                both(),
                pending(),
                record("failed", Some(NoRow), NOTHING),
                request(changed),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(NoRow), both()),
                request("its row was inserted"),
            ),
            (
                both(),
                Ready,
                record("failed", Some(RowMismatch), both()),
                request("its row has its lesson again"),
            ),
            (
                both(),
                Missing,
                record("failed", Some(RowMismatch), both()),
                failed(),
            ),
            (
                both(),
                Ready,
                record("waiting", Some(NoRow), NOTHING),
                request(changed),
            ),
        ];
        for (listed, row, record, expected) in cases {
            let case = format!("{listed:?} {row:?} {record:?}");
            assert_eq!(
                of(Some(listed), row, record, AgentStatus::NotRequested),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn a_failure_is_retried_when_its_cause_may_have_changed() {
        use Code::*;
        let now = Circumstances {
            github: "token".into(),
            buckets: HashMap::from([("a".to_owned(), "8000".to_owned())]),
        };
        for (code, cause, bucket, expected) in [
            (TooLarge, Some("8000"), Some("a"), false),
            (TooLarge, Some("7000"), Some("a"), true),
            (TooLarge, None, Some("a"), true),
            (BucketMissing, Some("missing"), Some("a"), true),
            (StoragePaused, Some("paused"), Some("silent"), false),
            (StorageQuota, Some("402"), None, false),
            (LfsObjectMissing, Some("token"), Some("a"), false),
            (GithubDenied, Some("another"), Some("a"), true),
            (RowDenied, None, Some("a"), false),
            (GaveUp, Some("github_unavailable"), Some("silent"), true),
            (GaveUp, Some("internal"), None, true),
            (GaveUp, Some("storage_unavailable"), Some("a"), true),
            (GaveUp, Some("storage_unavailable"), Some("silent"), false),
            (GaveUp, Some("corrupt_download"), Some("a"), false),
            (GaveUp, None, None, true),
        ] {
            let blocked = Blocked {
                key: VideoKey {
                    lesson_id: uuid::Uuid::nil(),
                    video_id: uuid::Uuid::nil(),
                },
                code,
                cause: cause.map(str::to_owned),
                bucket: bucket.map(str::to_owned),
            };
            assert_eq!(now.may_differ(&blocked), expected, "{blocked:?}");
        }
        let facts = Facts {
            listed: Some(both()),
            row: failed_row(),
            record: record("failed", Some(TooLarge), both()),
            agent: AgentStatus::NotRequested,
            cause_changed: true,
        };
        assert_eq!(verdict(&facts, DEADLINE), Verdict::Request(CAUSE_CHANGED));
    }

    #[test]
    fn what_is_not_in_the_branch() {
        let reported = |status, since: Option<u64>| AgentStatus::Reported {
            status,
            since: since.map(Duration::from_secs),
        };
        let broken = || GenerationStatus::failed("it broke");
        let generating = |why: &str| Verdict::Generating(why.into());
        let unknown = |why: &str| Verdict::Unknown(why.into());
        let awaited = || generating("The agent finished; its push has not arrived yet.");
        let first = "It broke. If the next sweep gets the same status, the video fails.";
        let fail = |code, why: &str| Verdict::Fail(code, why.into());
        let never_pushed = "The agent finished but did not push a video within 15 min.";
        let cases = [
            (
                AgentStatus::NotRequested,
                generating("Nothing has been pushed yet."),
            ),
            (
                AgentStatus::Unavailable,
                unknown("The OpenHands API did not respond."),
            ),
            (
                reported(GenerationStatus::Generating, None),
                generating("The agent is working on it."),
            ),
            (
                reported(GenerationStatus::Generating, Some(99_999)),
                generating("The agent is working on it."),
            ),
            (
                reported(GenerationStatus::unknown("who knows"), Some(99_999)),
                unknown("Who knows."),
            ),
            (
                reported(GenerationStatus::blocked("it waits"), Some(99_999)),
                unknown("It waits; open its conversation in OpenHands to let it continue."),
            ),
            (reported(GenerationStatus::Finished, None), awaited()),
            (reported(GenerationStatus::Finished, Some(899)), awaited()),
            (
                reported(GenerationStatus::Finished, Some(900)),
                fail(Code::FinishedWithoutVideo, never_pushed),
            ),
            (reported(broken(), None), unknown(first)),
            (
                reported(broken(), Some(0)),
                fail(Code::GenerationFailed, "Video generation failed: it broke."),
            ),
        ];
        for (agent, expected) in cases {
            let case = format!("{agent:?}");
            assert_eq!(
                of(Some(NOTHING), pending(), None, agent),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn the_deadline_comes_before_the_agent() {
        let aged = |age| RowState::Pending { age, failed: None };
        let agent = || AgentStatus::Reported {
            status: GenerationStatus::Generating,
            since: None,
        };
        let before = of(Some(NOTHING), aged(DEADLINE - YOUNG), None, agent());
        assert_eq!(
            before,
            Verdict::Generating("The agent is working on it.".into())
        );
        let at = of(Some(NOTHING), aged(DEADLINE), None, agent());
        let message = "No video was pushed within 6 h.";
        assert_eq!(at, Verdict::Fail(Code::GenerationTimeout, message.into()));
    }

    #[test]
    fn without_files_a_failed_or_ready_row_is_unchanged() {
        let failed = of(Some(NOTHING), failed_row(), None, AgentStatus::NotRequested);
        assert_eq!(failed, Verdict::Failed("of old age".into()));
        for row in [RowState::Ready, RowState::Missing] {
            let record = record("ready", None, both());
            assert_eq!(
                of(Some(NOTHING), row, record, AgentStatus::NotRequested),
                Verdict::Settled
            );
        }
    }

    #[test]
    fn what_was_not_looked_up_is_not_judged() {
        for row in [pending(), failed_row()] {
            let verdict = of(None, row, None, AgentStatus::Unavailable);
            assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        }
        let busy = of(
            None,
            pending(),
            record("queued", None, NOTHING),
            AgentStatus::NotRequested,
        );
        assert_eq!(busy, Verdict::Busy);
    }
}
