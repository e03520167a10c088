//! What the agent's API (OpenHands, V1 and V0) says about a generation, read into four answers.
//!
//! `Finished` never means that a video exists: the pushed file is the deliverable. What the server
//! sends beside the fields here (prompts, session keys) is never deserialised.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use uuid::Uuid;

/// Generations of the OpenHands API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHandsVersion {
    /// `/api/conversations`: self-hosted servers only, the cloud removed it.
    V0,
    /// `/api/v1/app-conversations`
    V1,
}

/// What is known about one generation. Reasons are short and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerationStatus {
    /// The agent is at work.
    Generating,
    /// The agent says it is done; whether there is a video, the repository tells.
    Finished,
    /// The agent will not deliver.
    Failed {
        /// What happened.
        reason: String,
    },
    /// The answer decides nothing.
    Unknown {
        /// Why not; `blocked: …` where a person must act.
        reason: String,
    },
}

impl GenerationStatus {
    /// Reads what the database keeps; an unfamiliar spelling is unknown.
    pub fn stored(kind: &str, reason: String) -> Self {
        match kind {
            "generating" => Self::Generating,
            "finished" => Self::Finished,
            "failed" => Self::Failed { reason },
            _ => Self::Unknown { reason },
        }
    }

    /// Whether two statuses say the same, apart from the reason.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }

    /// The status in a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::Generating => "The agent is working on it.".to_owned(),
            Self::Finished => "The agent finished; its push has not arrived yet.".to_owned(),
            Self::Failed { reason } => format!("OpenHands reports a failure: {reason}."),
            Self::Unknown { reason } => {
                format!("The status of the generation is unknown: {reason}.")
            }
        }
    }

    /// The kind as the database spells it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Generating => "generating",
            Self::Finished => "finished",
            Self::Failed { .. } => "failed",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Why it failed or is unknown; empty otherwise.
    pub fn reason(&self) -> &str {
        match self {
            Self::Generating | Self::Finished => "",
            Self::Failed { reason } | Self::Unknown { reason } => reason,
        }
    }

    /// A failure with this reason.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
        }
    }

    /// An answer that decides nothing, for this reason.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown {
            reason: reason.into(),
        }
    }

    /// The API knows neither a conversation nor a start task of that id.
    pub fn not_known() -> Self {
        Self::unknown("the agent's API does not know this conversation")
    }

    fn waits_for_confirmation() -> Self {
        Self::unknown("blocked: waits for a confirmation")
    }

    fn unfamiliar(word: &str) -> Self {
        Self::unknown(format!("unfamiliar status {}", Word(word)))
    }
}

/// What a status tells, before the stored events are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// All there is to know.
    Says(GenerationStatus),
    /// The agent is alive: its newest state is what it is doing.
    Live,
    /// The agent's machine is off: its last state counts if it decides something, else this.
    Over(GenerationStatus),
}

/// The newest state among a conversation's stored events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastState {
    /// It says this.
    Is(GenerationStatus),
    /// No event names a state.
    Never,
    /// None within the pages that one look-up may read.
    OutOfReach,
}

impl Status {
    /// The reading, given the newest state.
    pub fn settle(self, last: LastState) -> GenerationStatus {
        match (self, last) {
            (Self::Says(reading), _) => reading,
            (_, LastState::OutOfReach) => {
                GenerationStatus::unknown("no state among the agent's newest events")
            }
            (Self::Live, LastState::Is(reading)) => reading,
            (Self::Live, LastState::Never) => {
                GenerationStatus::unknown("the agent has not said what it is doing")
            }
            (
                Self::Over(_),
                LastState::Is(end @ (GenerationStatus::Finished | GenerationStatus::Failed { .. })),
            ) => end,
            // A machine that is paused while it waits for somebody still waits for somebody.
            (
                Self::Over(GenerationStatus::Unknown { .. }),
                LastState::Is(why @ GenerationStatus::Unknown { .. }),
            ) => why,
            (Self::Over(otherwise), _) => otherwise,
        }
    }
}

/// How long a running machine may show `idle` or no execution status and still count as generating.
pub const QUIET_GRACE: Duration = Duration::from_secs(10 * 60);

/// One row of V1's `GET /api/v1/app-conversations?ids=…`.
#[derive(Debug, Default, Deserialize)]
pub struct Conversation {
    /// 32 hexadecimal digits.
    #[serde(default, deserialize_with = "lenient")]
    pub id: Option<String>,
    /// `STARTING`, `RUNNING`, `PAUSED`, `ERROR` or `MISSING`.
    #[serde(default, deserialize_with = "lenient")]
    pub sandbox_status: Option<String>,
    /// Live only while the sandbox runs.
    #[serde(default, deserialize_with = "lenient")]
    pub execution_status: Option<String>,
    /// ISO 8601; without an offset it is UTC.
    #[serde(default, deserialize_with = "lenient")]
    pub created_at: Option<String>,
    /// Like `created_at`.
    #[serde(default, deserialize_with = "lenient")]
    pub updated_at: Option<String>,
}

impl Conversation {
    /// What the row tells at `now_ms` (milliseconds since the Unix epoch).
    pub fn status(&self, now_ms: i64) -> Status {
        let sandbox = self.sandbox_status.as_deref().unwrap_or_default();
        match sandbox.to_ascii_uppercase().as_str() {
            "STARTING" => Status::Says(GenerationStatus::Generating),
            "RUNNING" => Status::Says(self.while_running(now_ms)),
            "PAUSED" => Status::Over(GenerationStatus::unknown(
                "the agent's sandbox was paused before the agent finished",
            )),
            "ERROR" => Status::Over(GenerationStatus::failed("the agent's sandbox failed")),
            "MISSING" => Status::Over(GenerationStatus::failed("the agent's sandbox is gone")),
            _ => Status::Says(GenerationStatus::unfamiliar(sandbox)),
        }
    }

    fn while_running(&self, now_ms: i64) -> GenerationStatus {
        match &self.execution_status {
            Some(word) if !word.eq_ignore_ascii_case("idle") => execution(word),
            _ if self.is_fresh(now_ms) => GenerationStatus::Generating,
            Some(_) => GenerationStatus::unknown("the agent is idle and has not finished"),
            None => GenerationStatus::unknown("the agent has not said what it is doing"),
        }
    }

    /// Changed less than [`QUIET_GRACE`] ago; a row without times is not.
    fn is_fresh(&self, now_ms: i64) -> bool {
        let times = [&self.created_at, &self.updated_at];
        let newest = times.into_iter().flatten().filter_map(|t| time_ms(t)).max();
        newest.is_some_and(|t| now_ms.saturating_sub(t) < QUIET_GRACE.as_millis() as i64)
    }
}

/// V1's execution status, from a row or from a stored event. Its case differs between the two.
fn execution(word: &str) -> GenerationStatus {
    match word.to_ascii_lowercase().as_str() {
        "running" | "idle" => GenerationStatus::Generating,
        "finished" => GenerationStatus::Finished,
        "error" => GenerationStatus::failed("the agent stopped with an error"),
        "stuck" => GenerationStatus::failed("the agent got stuck"),
        "paused" => GenerationStatus::unknown("the agent was paused"),
        "deleting" => GenerationStatus::unknown("the conversation is being deleted"),
        "waiting_for_confirmation" => GenerationStatus::waits_for_confirmation(),
        _ => GenerationStatus::unfamiliar(word),
    }
}

/// One page of V1's `…/events/search?kind__eq=ConversationStateUpdateEvent`, newest first.
#[derive(Debug, Deserialize)]
pub struct EventPage {
    /// Required, so that some other object is not taken for "no events".
    pub items: Vec<StateUpdate>,
    /// Absent on the last page.
    #[serde(default, deserialize_with = "lenient")]
    pub next_page_id: Option<String>,
}

/// A changed field of the conversation's state.
#[derive(Debug, Deserialize)]
pub struct StateUpdate {
    /// The field's name.
    #[serde(default, deserialize_with = "lenient")]
    pub key: Option<String>,
    /// Its value, where that is text.
    #[serde(default, deserialize_with = "lenient")]
    pub value: Option<String>,
}

impl EventPage {
    /// The newest execution status on this page.
    pub fn state(&self) -> Option<GenerationStatus> {
        let named = |update: &&StateUpdate| update.key.as_deref() == Some("execution_status");
        let newest = self.items.iter().find(named)?;
        Some(execution(newest.value.as_deref().unwrap_or_default()))
    }
}

/// V1's record of how a conversation is being started; its id is not the conversation's.
#[derive(Debug, Default, Deserialize)]
pub struct StartTask {
    /// 32 hexadecimal digits.
    #[serde(default, deserialize_with = "lenient")]
    pub id: Option<String>,
    /// `WORKING` … `READY`, or `ERROR`.
    #[serde(default, deserialize_with = "lenient")]
    pub status: Option<String>,
    /// What went wrong.
    #[serde(default, deserialize_with = "lenient")]
    pub detail: Option<String>,
    /// Set once `READY`.
    #[serde(default, deserialize_with = "lenient")]
    pub app_conversation_id: Option<String>,
}

/// Where a start task leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// No further than this.
    Says(GenerationStatus),
    /// To this conversation.
    Conversation(Uuid),
}

impl StartTask {
    /// What the task tells.
    pub fn outcome(&self) -> Start {
        let status = self.status.as_deref().unwrap_or_default();
        Start::Says(match status.to_ascii_uppercase().as_str() {
            "WORKING"
            | "WAITING_FOR_SANDBOX"
            | "PREPARING_REPOSITORY"
            | "RUNNING_SETUP_SCRIPT"
            | "SETTING_UP_GIT_HOOKS"
            | "SETTING_UP_SKILLS"
            | "STARTING_CONVERSATION" => GenerationStatus::Generating,
            "READY" => match self
                .app_conversation_id
                .as_deref()
                .and_then(conversation_id)
            {
                Some(id) => return Start::Conversation(id),
                None => {
                    GenerationStatus::unknown("the agent started without naming its conversation")
                }
            },
            "ERROR" => match self.detail.as_deref().and_then(for_people) {
                Some(detail) => {
                    GenerationStatus::failed(format!("the agent could not start: {detail}"))
                }
                None => GenerationStatus::failed("the agent could not start"),
            },
            _ => GenerationStatus::unfamiliar(status),
        })
    }
}

/// V0's `GET /api/conversations/{id}`.
#[derive(Debug, Default, Deserialize)]
pub struct V0Conversation {
    /// `STARTING`, `RUNNING`, `STOPPED`, `ARCHIVED` or `ERROR`.
    #[serde(default, deserialize_with = "lenient")]
    pub status: Option<String>,
}

impl V0Conversation {
    /// What the answer tells. `RUNNING` covers working, waiting and finished alike.
    pub fn status(&self) -> Status {
        let status = self.status.as_deref().unwrap_or_default();
        match status.to_ascii_uppercase().as_str() {
            "STARTING" => Status::Says(GenerationStatus::Generating),
            "RUNNING" => Status::Live,
            "STOPPED" | "ARCHIVED" => Status::Over(GenerationStatus::unknown(
                "the agent was stopped before it finished",
            )),
            "ERROR" => Status::Over(GenerationStatus::failed("the agent stopped with an error")),
            _ => Status::Says(GenerationStatus::unfamiliar(status)),
        }
    }
}

/// One page of V0's `…/events?reverse=true`, newest first.
#[derive(Debug, Deserialize)]
pub struct V0EventPage {
    /// Required, so that some other object is not taken for "no events".
    pub events: Vec<V0Event>,
    /// Whether there are older ones.
    #[serde(default, deserialize_with = "lenient")]
    pub has_more: Option<bool>,
}

/// One event of any kind.
#[derive(Debug, Deserialize)]
pub struct V0Event {
    /// Counts up from 0 within its conversation.
    #[serde(default, deserialize_with = "lenient")]
    pub id: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    observation: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    extras: Option<V0Extras>,
}

#[derive(Debug, Deserialize)]
struct V0Extras {
    #[serde(default, deserialize_with = "lenient")]
    agent_state: Option<String>,
}

impl V0EventPage {
    /// The newest state of the agent on this page.
    pub fn state(&self) -> Option<GenerationStatus> {
        let named = |event: &&V0Event| event.observation.as_deref() == Some("agent_state_changed");
        let extras = self.events.iter().find(named)?.extras.as_ref();
        let word = extras.and_then(|extras| extras.agent_state.as_deref());
        Some(agent_state(word.unwrap_or_default()))
    }
}

fn agent_state(word: &str) -> GenerationStatus {
    match word.to_ascii_lowercase().as_str() {
        "loading" | "running" | "user_confirmed" | "user_rejected" | "rate_limited" => {
            GenerationStatus::Generating
        }
        // V0 asks "anything else?" at the end of a run instead of finishing it.
        "finished" | "awaiting_user_input" => GenerationStatus::Finished,
        "error" => GenerationStatus::failed("the agent stopped with an error"),
        "rejected" => GenerationStatus::failed("the agent rejected the task"),
        "paused" | "stopped" => GenerationStatus::unknown("the agent was paused"),
        "awaiting_user_confirmation" => GenerationStatus::waits_for_confirmation(),
        _ => GenerationStatus::unfamiliar(word),
    }
}

/// A conversation's id in either of its spellings, 32 hexadecimal digits or a UUID; nothing else.
pub fn conversation_id(text: &str) -> Option<Uuid> {
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok())?
}

/// Most characters of the server's own words that a reason takes in.
const DETAIL_CHARS_MAX: usize = 80;

/// Longest word that can be somebody's language; longer ones are keys, hashes and paths.
const WORD_CHARS_MAX: usize = 30;

/// What of the server's text can be shown: its first line without markup, addresses or keys.
///
/// The first line, because validation errors repeat their input, and with it prompts, below it.
fn for_people(text: &str) -> Option<String> {
    let line = text.trim().lines().next()?;
    if line.contains(['<', '>', '{']) {
        return None;
    }
    let shown = |word: &str| !word.contains("://") && word.chars().count() <= WORD_CHARS_MAX;
    let words = line.split_whitespace();
    let words: Vec<_> = words.map(|w| if shown(w) { w } else { "…" }).collect();
    let text = words.join(" ").replace(char::is_control, "");
    Some(match text.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    })
    .filter(|text| !text.is_empty())
}

/// A status that this version does not know, shown only if it looks like one.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match self.0 {
            "" => f.write_str("(none)"),
            word if word.len() <= WORD_CHARS_MAX && word.chars().all(plain) => f.write_str(word),
            _ => f.write_str("(unreadable)"),
        }
    }
}

fn time_ms(text: &str) -> Option<i64> {
    let with_offset = text.parse::<jiff::Timestamp>().ok();
    let in_utc = || {
        let local: jiff::civil::DateTime = text.parse().ok()?;
        Some(local.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    with_offset.or_else(in_utc).map(|t| t.as_millisecond())
}

/// A field of a type that we do not expect counts as absent: the API changes between releases.
fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Maybe<T> {
        Is(T),
        Not(serde::de::IgnoredAny),
    }
    Ok(match Maybe::deserialize(deserializer)? {
        Maybe::Is(value) => Some(value),
        Maybe::Not(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row of a table of what the API says and what that means.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Row {
        meaning: String,
        now: jiff::Timestamp,
        cases: Vec<Case>,
    }

    /// One answer, verbatim, and the reading it leads to.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        conversation: Option<Conversation>,
        events: Option<EventPage>,
        start_task: Option<StartTask>,
        v0_conversation: Option<V0Conversation>,
        v0_events: Option<V0EventPage>,
        reading: String,
        reason: String,
    }

    impl Case {
        /// What we make of it, and whether the events had to be asked for.
        fn read(&self, now_ms: i64) -> (GenerationStatus, bool) {
            let status = match (&self.conversation, &self.start_task, &self.v0_conversation) {
                (Some(row), None, None) => row.status(now_ms),
                (None, Some(task), None) => match task.outcome() {
                    Start::Says(reading) => Status::Says(reading),
                    Start::Conversation(id) => {
                        Status::Says(GenerationStatus::unknown(format!("follow {}", id.simple())))
                    }
                },
                (None, None, Some(row)) => row.status(),
                _ => panic!("a case is about one answer"),
            };
            let asks = !matches!(status, Status::Says(_));
            let v1 = self.events.as_ref().and_then(EventPage::state);
            let last = v1.or_else(|| self.v0_events.as_ref().and_then(V0EventPage::state));
            (
                status.settle(last.map_or(LastState::Never, LastState::Is)),
                asks,
            )
        }
    }

    #[test]
    fn every_row_of_the_tables_reads_as_it_means() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/openhands");
        let mut cases = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let row: Row = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            for (number, case) in row.cases.iter().enumerate() {
                let at = format!("{path:?}, case {number} ({})", row.meaning);
                let (reading, asks) = case.read(row.now.as_millisecond());
                let said = (reading.as_str(), reading.reason());
                assert_eq!(said, (&*case.reading, &*case.reason), "{at}");
                let has_events = case.events.is_some() || case.v0_events.is_some();
                assert_eq!(
                    asks, has_events,
                    "{at}: events are asked for where they decide"
                );
                cases += 1;
            }
        }
        assert_eq!(cases, FIXTURE_CASES, "no row got lost");
    }

    const FIXTURE_CASES: usize = 74;

    #[test]
    fn a_state_out_of_reach_fails_nothing() {
        for status in [Status::Live, Status::Over(GenerationStatus::failed("gone"))] {
            let reading = status.settle(LastState::OutOfReach);
            assert_eq!(reading.as_str(), "unknown");
        }
    }

    #[test]
    fn fields_of_other_types_are_absent_fields() {
        let text = r#"{"id":7,"sandbox_status":"RUNNING","execution_status":{"a":1},"extra":[]}"#;
        let row: Conversation = serde_json::from_str(text).unwrap();
        assert_eq!(row.id, None);
        assert_eq!(
            row.status(0),
            Conversation {
                sandbox_status: Some("RUNNING".into()),
                ..Default::default()
            }
            .status(0)
        );
    }

    #[test]
    fn only_the_servers_plain_words_are_shown() {
        let shown = |text: &str| for_people(text).unwrap_or_default();
        assert_eq!(shown("Sandbox quota reached"), "Sandbox quota reached");
        assert_eq!(
            shown("1 validation error\n  input_value='Make a video'"),
            "1 validation error"
        );
        assert_eq!(
            shown("401 for url https://10.0.0.7/x?key=k"),
            "401 for url …"
        );
        assert_eq!(shown(&format!("bad key {}", "k".repeat(31))), "bad key …");
        assert_eq!(
            shown(&"é ".repeat(200)).chars().count(),
            DETAIL_CHARS_MAX + 1
        );
        for nothing in [
            "",
            " \n ",
            "<html><body>502</body></html>",
            "{\"prompt\":\"x\"}",
        ] {
            assert_eq!(for_people(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn an_id_is_32_digits_or_a_uuid() {
        let id = Uuid::from_u128(0x34b9_a0c7_62d7_4002_a642_0048_8b2c_7f7c);
        for spelling in [
            id.simple().to_string(),
            id.to_string(),
            id.to_string().to_uppercase(),
        ] {
            assert_eq!(conversation_id(&spelling), Some(id), "{spelling}");
        }
        for other in [
            id.braced().to_string(),
            id.urn().to_string(),
            "../../admin".into(),
            "é".repeat(16),
        ] {
            assert_eq!(conversation_id(&other), None, "{other}");
        }
    }
}
