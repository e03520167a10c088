//! What a sweep says of one video: a pure function of what the branch lists, what the app's row says,
//! what we recorded and what the agent's API last said.

use std::time::Duration;

use super::agent::Reading;
use super::failure::{Class, Code};
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
        reading: Reading,
        /// Since when. `None`: for the first time now.
        since: Option<Duration>,
    },
}

/// Everything a verdict is made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the branch holds; nothing: `(None, None)`.
    pub listed: Blobs,
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
        (None, None) => not_pushed(facts, deadline),
        _ => pushed(facts),
    }
}

fn pushed(facts: &Facts) -> Verdict {
    let Some(record) = &facts.record else {
        return match facts.row {
            RowState::Ready if facts.listed.0.is_some() => Verdict::Adopt,
            RowState::Ready => Verdict::Settled,
            RowState::Missing | RowState::Pending { .. } => Verdict::Ask("found by a sweep"),
        };
    };
    if record.observed != facts.listed {
        return Verdict::Ask("found changed by a sweep");
    }
    let pending = matches!(facts.row, RowState::Pending { .. });
    match (record.state.as_str(), record.code) {
        ("ready", _) if pending => Verdict::Ask("its row has no video"),
        ("ready", _) => Verdict::Settled,
        ("waiting", _) => Verdict::Waiting(record.message.clone()),
        (_, Some(code)) if code.class() == Class::Environment => {
            Verdict::Ask("tried again by a sweep: it failed of something outside its files")
        }
        (_, Some(Code::NoRow)) if pending => Verdict::Ask("its row has come"),
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
            Reading::Generating => Verdict::Generating("the agent is at it".into()),
            Reading::Finished if since.is_some_and(|since| since >= PUSH_AFTER_FINISH) => {
                Verdict::Fail(
                    Code::FinishedWithoutVideo,
                    format!(
                        "the agent finished, but pushed no video within {}",
                        in_words(PUSH_AFTER_FINISH)
                    ),
                )
            }
            Reading::Finished => {
                Verdict::Generating("the agent finished; its push is awaited".into())
            }
            Reading::Failed { reason } if since.is_some() => Verdict::Fail(
                Code::GenerationFailed,
                format!("the agent failed: {reason}"),
            ),
            Reading::Failed { reason } => Verdict::Unknown(format!(
                "the agent says it failed ({reason}); the next sweep confirms it"
            )),
            Reading::Unknown { reason } => Verdict::Unknown(reason.clone()),
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
