//! What a sweep says of one video: a pure function of what the branch lists, what the app's row says,
//! what we recorded and what OpenHands last said.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::failure::{Class, Code};
use super::generation::GenerationStatus;
use super::ids::VideoKey;
use super::plan::Blobs;
use super::report::Outcome;
use super::state::VideoState;

/// After the agent said that it finished, its push has this long to arrive. Source: the contract.
pub const PUSH_AFTER_FINISH: Duration = Duration::from_secs(15 * 60);

/// What we recorded of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it is on its way.
    pub state: VideoState,
    /// What it failed with or waits for.
    pub code: Option<Code>,
    /// The message of that.
    pub message: String,
    /// The blobs last looked at.
    pub observed: Blobs,
    /// How often it was requested; a verdict on an older count is void.
    pub requested: i64,
}

/// A row of the app that has no video.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingRow {
    /// Its ids.
    pub key: VideoKey,
    /// How long ago it was inserted.
    pub age: Duration,
    /// The agent's conversation.
    pub conversation_id: Option<String>,
    /// The reason in `mime_type`, if it has failed.
    pub failed: Option<String>,
}

/// The app's row of a video, as far as a sweep needs it.
#[derive(Clone, Debug, PartialEq)]
pub enum RowState {
    /// There is none.
    Missing,
    /// It has a video.
    Ready,
    /// It has none yet.
    Pending {
        /// How long ago the row was inserted.
        age: Duration,
        /// `mime_type` says that it failed, and of what.
        failed: Option<String>,
    },
}

/// What OpenHands says now, and for how long it has been saying so.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentStatus {
    /// It was not asked: no key, or the row names no conversation.
    NotAsked,
    /// It was asked and did not respond; never a reason to change anything.
    NoAnswer,
    /// It said this.
    Said {
        /// What.
        status: GenerationStatus,
        /// Since when. `None`: for the first time now.
        since: Option<Duration>,
    },
}

/// What a sweep compares: the listing, our records and the app's rows.
#[derive(Debug)]
pub struct Snapshot {
    /// What the branch holds.
    pub listed: HashMap<VideoKey, Blobs>,
    /// Whether everything that is not listed is not in the branch.
    pub complete: bool,
    /// What we recorded.
    pub records: HashMap<VideoKey, Record>,
    /// Rows without a video, the oldest first.
    pub pending: Vec<PendingRow>,
    /// Videos whose rows are ready.
    pub ready: HashSet<VideoKey>,
}

impl Snapshot {
    /// What the branch holds of a video; `None`: it was not looked up.
    pub fn blobs(&self, key: &VideoKey) -> Option<Blobs> {
        match self.listed.get(key) {
            None if self.complete => Some((None, None)),
            found => found.copied(),
        }
    }

    /// The verdict on each of these videos, given what OpenHands says of some of them.
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
            agent: agent.get(&key).cloned().unwrap_or(AgentStatus::NotAsked),
        };
        let keys = keys.into_iter();
        keys.map(|key| (key, verdict(&facts(key), deadline)))
            .collect()
    }
}

/// Everything a verdict is made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the branch holds; nothing: `Some((None, None))`. `None`: it was not looked up yet, since
    /// the branch holds more than one listing.
    pub listed: Option<Blobs>,
    /// The app's row.
    pub row: RowState,
    /// Our record.
    pub record: Option<Record>,
    /// The agent.
    pub agent: AgentStatus,
}

/// What to do about a video, and how it is counted.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Request it, for this reason.
    Request(&'static str),
    /// It is queued or running already.
    Busy,
    /// It was made ready before we kept records: record it as it is.
    Adopt,
    /// Its other file or its row has to arrive first.
    Waiting(String),
    /// The agent is working on it.
    Generating(String),
    /// It failed, and this sweep is the one to say so.
    Fail(Code, String),
    /// It failed before and nothing has changed.
    Failed(String),
    /// Nothing can be said now; nothing is changed.
    Unknown(String),
    /// Ready, and the branch holds nothing else; not counted.
    Settled,
}

impl Verdict {
    /// How a sweep reports it; `None`: not at all.
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

/// Decides. `deadline`: the age at which a row without a video is failed.
pub fn verdict(facts: &Facts, deadline: Duration) -> Verdict {
    if let Some(record) = &facts.record
        && record.state.is_busy()
    {
        return Verdict::Busy;
    }
    match facts.listed {
        None => Verdict::Unknown(
            "The branch holds more files than one listing returns; a later sweep looks this video up.".into(),
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
            RowState::Missing | RowState::Pending { .. } => Verdict::Request("found by a sweep"),
        };
    };
    // Files are not looked at before the row exists, so nothing is known to have changed.
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
        return Verdict::Request("found changed by a sweep");
    }
    let pending = matches!(facts.row, RowState::Pending { .. });
    let shows_generating = matches!(facts.row, RowState::Pending { failed: None, .. });
    match (record.state, record.code) {
        (VideoState::Ready, _) if pending => Verdict::Request("its row has no video"),
        (VideoState::Ready, _) => Verdict::Settled,
        (VideoState::Waiting, _) => Verdict::Waiting(record.message.clone()),
        (_, Some(code)) if code.class() == Class::Configuration => {
            Verdict::Request("tried again by a sweep: a configuration failure")
        }
        (_, Some(Code::NoRow)) if pending => Verdict::Request("its row was inserted"),
        // The app inserted the row again or removed its failure: it would show "generating" for ever.
        _ if shows_generating => Verdict::Request("its row does not say that it failed"),
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
            format!("No video was pushed within {}.", in_words(deadline)),
        );
    }
    match &facts.agent {
        AgentStatus::NotAsked => Verdict::Generating("Nothing has been pushed yet.".into()),
        AgentStatus::NoAnswer => Verdict::Unknown("The OpenHands API did not respond.".into()),
        AgentStatus::Said { status, since } => match status {
            GenerationStatus::Generating => Verdict::Generating(status.sentence()),
            GenerationStatus::Finished if since.is_some_and(|since| since >= PUSH_AFTER_FINISH) => {
                Verdict::Fail(
                    Code::FinishedWithoutVideo,
                    format!(
                        "The agent finished, but pushed no video within {}.",
                        in_words(PUSH_AFTER_FINISH)
                    ),
                )
            }
            GenerationStatus::Finished => Verdict::Generating(status.sentence()),
            GenerationStatus::Failed { reason } if since.is_some() => Verdict::Fail(
                Code::GenerationFailed,
                format!("The generation failed: {reason}."),
            ),
            GenerationStatus::Failed { reason } => Verdict::Unknown(format!(
                "OpenHands reports a failure ({reason}); the next sweep confirms it."
            )),
            GenerationStatus::Unknown { .. } => Verdict::Unknown(status.sentence()),
        },
    }
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
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
        };
        verdict(&facts, DEADLINE)
    }

    #[test]
    fn what_is_in_the_branch() {
        use Code::*;
        use RowState::{Missing, Ready};
        let asked = Verdict::Request;
        let waiting = || Verdict::Waiting("as recorded".into());
        let failed = || Verdict::Failed("as recorded".into());
        let (new, changed) = ("found by a sweep", "found changed by a sweep");
        let outside = "tried again by a sweep: a configuration failure";
        let (json, mp4) = ((None, sha(2)), (sha(1), None));
        let old = (sha(9), sha(2));
        let cases = [
            // Never seen.
            (both(), pending(), None, asked(new)),
            (both(), failed_row(), None, asked(new)),
            (json, pending(), None, asked(new)),
            (both(), Missing, None, asked(new)),
            (both(), Ready, None, Verdict::Adopt),
            (mp4, Ready, None, Verdict::Adopt),
            (json, Ready, None, Verdict::Settled),
            // Somebody is at it, whatever else is true.
            (
                both(),
                pending(),
                record("queued", None, old),
                Verdict::Busy,
            ),
            (both(), Missing, record("running", None, old), Verdict::Busy),
            // Another file than the one last looked at.
            (both(), Ready, record("ready", None, old), asked(changed)),
            (mp4, Ready, record("ready", None, both()), asked(changed)),
            (
                both(),
                failed_row(),
                record("failed", Some(Truncated), old),
                asked(changed),
            ),
            (
                both(),
                pending(),
                record("waiting", Some(VideoMissing), json),
                asked(changed),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(GenerationTimeout), NOTHING),
                asked(changed),
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
                asked("its row has no video"),
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
                asked(outside),
            ),
            (
                both(),
                Ready,
                record("failed", Some(StorageDenied), both()),
                asked(outside),
            ),
            (
                both(),
                pending(),
                record("failed", Some(Truncated), both()),
                asked("its row does not say that it failed"),
            ),
            // Without a row nobody looked at the files.
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
                asked(changed),
            ),
            (
                both(),
                failed_row(),
                record("failed", Some(NoRow), both()),
                asked("its row was inserted"),
            ),
            (
                both(),
                Ready,
                record("waiting", Some(NoRow), NOTHING),
                asked(changed),
            ),
        ];
        for (listed, row, record, expected) in cases {
            let case = format!("{listed:?} {row:?} {record:?}");
            assert_eq!(
                of(Some(listed), row, record, AgentStatus::NotAsked),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn what_is_not_in_the_branch() {
        let said = |status, since: Option<u64>| AgentStatus::Said {
            status,
            since: since.map(Duration::from_secs),
        };
        let broken = || GenerationStatus::failed("it broke");
        let generating = |why: &str| Verdict::Generating(why.into());
        let unknown = |why: &str| Verdict::Unknown(why.into());
        let awaited = || generating("The agent finished; its push has not arrived yet.");
        let first = "OpenHands reports a failure (it broke); the next sweep confirms it.";
        let fail = |code, why: &str| Verdict::Fail(code, why.into());
        let never_pushed = "The agent finished, but pushed no video within 15 min.";
        let cases = [
            (
                AgentStatus::NotAsked,
                generating("Nothing has been pushed yet."),
            ),
            (
                AgentStatus::NoAnswer,
                unknown("The OpenHands API did not respond."),
            ),
            (
                said(GenerationStatus::Generating, None),
                generating("The agent is working on it."),
            ),
            (
                said(GenerationStatus::Generating, Some(99_999)),
                generating("The agent is working on it."),
            ),
            (
                said(GenerationStatus::unknown("who knows"), Some(99_999)),
                unknown("The status of the generation is unknown: who knows."),
            ),
            (said(GenerationStatus::Finished, None), awaited()),
            (said(GenerationStatus::Finished, Some(899)), awaited()),
            (
                said(GenerationStatus::Finished, Some(900)),
                fail(Code::FinishedWithoutVideo, never_pushed),
            ),
            (said(broken(), None), unknown(first)),
            (
                said(broken(), Some(0)),
                fail(Code::GenerationFailed, "The generation failed: it broke."),
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
        let agent = || AgentStatus::Said {
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
    fn without_files_a_row_that_failed_or_is_ready_stays_as_it_is() {
        let failed = of(Some(NOTHING), failed_row(), None, AgentStatus::NotAsked);
        assert_eq!(failed, Verdict::Failed("of old age".into()));
        for row in [RowState::Ready, RowState::Missing] {
            let record = record("ready", None, both());
            assert_eq!(
                of(Some(NOTHING), row, record, AgentStatus::NotAsked),
                Verdict::Settled
            );
        }
    }

    #[test]
    fn what_was_not_looked_up_is_not_judged() {
        for row in [pending(), failed_row()] {
            let verdict = of(None, row, None, AgentStatus::NoAnswer);
            assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        }
        let busy = of(
            None,
            pending(),
            record("queued", None, NOTHING),
            AgentStatus::NotAsked,
        );
        assert_eq!(busy, Verdict::Busy);
    }

    #[test]
    fn times_read_as_people_say_them() {
        let words = [(6 * 3600, "6 h"), (900, "15 min"), (90, "90 s")];
        for (seconds, text) in words {
            assert_eq!(in_words(Duration::from_secs(seconds)), text);
        }
    }
}
