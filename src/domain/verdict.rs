//! What a sweep says of one video: a pure function of what the branch lists, what the app's row says,
//! what we recorded and what the agent's API last said.

use std::time::Duration;

use super::failure::{Class, Code};
use super::generation::GenerationStatus;
use super::ids::GitSha;

/// After the agent said that it finished, its push has this long to arrive. Source: the contract.
pub const PUSH_AFTER_FINISH: Duration = Duration::from_secs(15 * 60);

/// The blobs of a video's two files.
pub type Blobs = (Option<GitSha>, Option<GitSha>);

/// What we recorded of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// `queued`, `running`, `waiting`, `ready`, `failed`.
    pub state: String,
    /// What it failed of or waits for.
    pub code: Option<Code>,
    /// That, in words.
    pub message: String,
    /// The blobs last looked at.
    pub observed: Blobs,
    /// How often it was asked for; a verdict on an older count is void.
    pub requested: i64,
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
        /// How long ago the row was made.
        age: Duration,
        /// `mime_type` says that it failed, and of what.
        failed: Option<String>,
    },
}

/// What the agent's API says now, and for how long it has been saying so.
#[derive(Clone, Debug, PartialEq)]
pub enum Agent {
    /// Nobody was asked: no key, or the row names no conversation.
    NotAsked,
    /// It was asked and gave no answer; never a reason to change anything.
    NoAnswer,
    /// It said this.
    Said {
        /// What.
        reading: GenerationStatus,
        /// Since when. `None`: for the first time now.
        since: Option<Duration>,
    },
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
    pub agent: Agent,
}

/// What is to be done about a video, and how it is counted.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Ask for it, for this reason.
    Ask(&'static str),
    /// Somebody is at it already.
    Busy,
    /// The old function made it ready; take it over as it is.
    Adopt,
    /// Its other file or its row has to come first.
    Waiting(String),
    /// The agent is at it.
    Generating(String),
    /// It failed; to be written now.
    Fail(Code, String),
    /// It failed before and nothing has changed.
    Failed(String),
    /// Nothing can be said now; nothing is changed.
    Unknown(String),
    /// Ready, and the branch holds nothing else; not counted.
    Settled,
}

/// Decides. `deadline`: the age at which a row without a video is failed.
pub fn verdict(facts: &Facts, deadline: Duration) -> Verdict {
    if let Some(record) = &facts.record
        && matches!(record.state.as_str(), "queued" | "running")
    {
        return Verdict::Busy;
    }
    match facts.listed {
        None => Verdict::Unknown(
            "the branch holds more than one listing; a later sweep looks this video up".into(),
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
            RowState::Missing | RowState::Pending { .. } => Verdict::Ask("found by a sweep"),
        };
    };
    // Without a row of its own nobody looks at a video's files, so nothing is known to have changed.
    if facts.row == RowState::Missing
        && matches!(record.code, Some(Code::NoRow | Code::RowMismatch))
    {
        return match record.state.as_str() {
            "waiting" => Verdict::Waiting(record.message.clone()),
            _ => Verdict::Failed(record.message.clone()),
        };
    }
    if record.observed != listed {
        return Verdict::Ask("found changed by a sweep");
    }
    let pending = matches!(facts.row, RowState::Pending { .. });
    let shows_generating = matches!(facts.row, RowState::Pending { failed: None, .. });
    match (record.state.as_str(), record.code) {
        ("ready", _) if pending => Verdict::Ask("its row has no video"),
        ("ready", _) => Verdict::Settled,
        ("waiting", _) => Verdict::Waiting(record.message.clone()),
        (_, Some(code)) if code.class() == Class::Configuration => {
            Verdict::Ask("tried again by a sweep: it failed of something outside its files")
        }
        (_, Some(Code::NoRow)) if pending => Verdict::Ask("its row has come"),
        // The app made the row anew, or its failure was taken back: it would generate for ever.
        _ if shows_generating => Verdict::Ask("its row does not say that it failed"),
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
            format!("no video was pushed within {}", in_words(deadline)),
        );
    }
    match &facts.agent {
        Agent::NotAsked => Verdict::Generating("nothing pushed yet".into()),
        Agent::NoAnswer => Verdict::Unknown("the agent's API did not answer".into()),
        Agent::Said { reading, since } => match reading {
            GenerationStatus::Generating => Verdict::Generating("the agent is at it".into()),
            GenerationStatus::Finished if since.is_some_and(|since| since >= PUSH_AFTER_FINISH) => {
                Verdict::Fail(
                    Code::FinishedWithoutVideo,
                    format!(
                        "the agent finished, but pushed no video within {}",
                        in_words(PUSH_AFTER_FINISH)
                    ),
                )
            }
            GenerationStatus::Finished => {
                Verdict::Generating("the agent finished; its push is awaited".into())
            }
            GenerationStatus::Failed { reason } if since.is_some() => Verdict::Fail(
                Code::GenerationFailed,
                format!("the agent failed: {reason}"),
            ),
            GenerationStatus::Failed { reason } => Verdict::Unknown(format!(
                "the agent says it failed ({reason}); the next sweep confirms it"
            )),
            GenerationStatus::Unknown { reason } => Verdict::Unknown(reason.clone()),
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
            state: state.into(),
            code,
            message: "as recorded".into(),
            observed,
            requested: 1,
        })
    }

    fn of(listed: Option<Blobs>, row: RowState, record: Option<Record>, agent: Agent) -> Verdict {
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
        let asked = Verdict::Ask;
        let waiting = || Verdict::Waiting("as recorded".into());
        let failed = || Verdict::Failed("as recorded".into());
        let (new, changed) = ("found by a sweep", "found changed by a sweep");
        let outside = "tried again by a sweep: it failed of something outside its files";
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
                asked("its row has come"),
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
                of(Some(listed), row, record, Agent::NotAsked),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn what_is_not_in_the_branch() {
        let said = |reading, since: Option<u64>| Agent::Said {
            reading,
            since: since.map(Duration::from_secs),
        };
        let broken = || GenerationStatus::failed("it broke");
        let generating = |why: &str| Verdict::Generating(why.into());
        let unknown = |why: &str| Verdict::Unknown(why.into());
        let awaited = || generating("the agent finished; its push is awaited");
        let first = "the agent says it failed (it broke); the next sweep confirms it";
        let fail = |code, why: &str| Verdict::Fail(code, why.into());
        let never_pushed = "the agent finished, but pushed no video within 15 min";
        let cases = [
            (Agent::NotAsked, generating("nothing pushed yet")),
            (Agent::NoAnswer, unknown("the agent's API did not answer")),
            (
                said(GenerationStatus::Generating, None),
                generating("the agent is at it"),
            ),
            (
                said(GenerationStatus::Generating, Some(99_999)),
                generating("the agent is at it"),
            ),
            (
                said(GenerationStatus::unknown("who knows"), Some(99_999)),
                unknown("who knows"),
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
                fail(Code::GenerationFailed, "the agent failed: it broke"),
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
        let agent = || Agent::Said {
            reading: GenerationStatus::Generating,
            since: None,
        };
        let before = of(Some(NOTHING), aged(DEADLINE - YOUNG), None, agent());
        assert_eq!(before, Verdict::Generating("the agent is at it".into()));
        let at = of(Some(NOTHING), aged(DEADLINE), None, agent());
        let message = "no video was pushed within 6 h";
        assert_eq!(at, Verdict::Fail(Code::GenerationTimeout, message.into()));
    }

    #[test]
    fn without_files_a_row_that_failed_or_is_ready_stays_as_it_is() {
        let failed = of(Some(NOTHING), failed_row(), None, Agent::NotAsked);
        assert_eq!(failed, Verdict::Failed("of old age".into()));
        for row in [RowState::Ready, RowState::Missing] {
            let record = record("ready", None, both());
            assert_eq!(
                of(Some(NOTHING), row, record, Agent::NotAsked),
                Verdict::Settled
            );
        }
    }

    #[test]
    fn what_was_not_looked_up_is_not_judged() {
        for row in [pending(), failed_row()] {
            let verdict = of(None, row, None, Agent::NoAnswer);
            assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        }
        let busy = of(
            None,
            pending(),
            record("queued", None, NOTHING),
            Agent::NotAsked,
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
