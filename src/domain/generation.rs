//! Responses of the OpenHands API (V1 and V0), and the generation status that follows from them.
//!
//! `Finished` does not mean that a video exists, only a push does. Fields that are not listed here, such as
//! prompts and session keys, are never deserialized.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use uuid::Uuid;

/// Versions of the OpenHands API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHandsVersion {
    /// `/api/conversations`. Available on self-hosted servers only.
    V0,
    /// `/api/v1/app-conversations`
    V1,
}

/// The status of a generation. Reasons are short phrases for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerationStatus {
    /// The agent is working.
    Generating,
    /// The agent has finished. The video may not have been pushed.
    Finished,
    /// The agent has failed.
    Failed {
        /// The cause.
        reason: String,
    },
    /// The agent cannot continue until a person acts.
    Blocked {
        /// What it is waiting for.
        reason: String,
    },
    /// The response does not determine the status.
    Unknown {
        /// The cause.
        reason: String,
    },
}

/// The start of the reason of an unknown status, if the agent was blocked. Only in statuses that were stored
/// before there was a kind of its own for that.
const BLOCKED_PREFIX: &str = "blocked: ";

impl GenerationStatus {
    /// Parses the database's form. An unrecognized kind is unknown.
    pub fn from_stored(kind: &str, reason: String) -> Self {
        match kind {
            "generating" => Self::Generating,
            "finished" => Self::Finished,
            "failed" => Self::Failed { reason },
            "blocked" => Self::Blocked { reason },
            _ => match reason.strip_prefix(BLOCKED_PREFIX) {
                Some(reason) => Self::blocked(reason),
                None => Self::Unknown { reason },
            },
        }
    }

    /// Whether the agent cannot continue until a person acts.
    pub const fn needs_person(&self) -> bool {
        matches!(self, Self::Blocked { .. })
    }

    /// Whether two statuses are equal except for the reason.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }

    /// The status as a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::Generating => "The agent is working on it.".to_owned(),
            Self::Finished => "The agent finished; its push has not arrived yet.".to_owned(),
            Self::Failed { reason } | Self::Unknown { reason } => sentence(reason),
            Self::Blocked { reason } => sentence(&format!(
                "{reason}; open its conversation in OpenHands to let it continue"
            )),
        }
    }

    /// The kind in the form of the database.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Generating => "generating",
            Self::Finished => "finished",
            Self::Failed { .. } => "failed",
            Self::Blocked { .. } => "blocked",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// The cause of a failed, blocked or unknown status; empty otherwise.
    pub fn reason(&self) -> &str {
        match self {
            Self::Generating | Self::Finished => "",
            Self::Failed { reason } | Self::Blocked { reason } | Self::Unknown { reason } => reason,
        }
    }

    /// Creates a failed status.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
        }
    }

    /// Creates a blocked status.
    pub fn blocked(reason: impl Into<String>) -> Self {
        Self::Blocked {
            reason: reason.into(),
        }
    }

    /// Creates an unknown status.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown {
            reason: reason.into(),
        }
    }

    /// The status if the API has neither a conversation nor a start task with the id.
    pub fn not_known() -> Self {
        Self::unknown("OpenHands has no conversation with this ID")
    }

    fn awaiting_confirmation() -> Self {
        Self::blocked("the agent is waiting for confirmation")
    }

    fn unrecognized(word: &str) -> Self {
        Self::unknown(format!(
            "OpenHands reported an unrecognized status: {}",
            Word(word)
        ))
    }
}

/// What a conversation's response determines before its stored events are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The status. The events are not needed.
    Says(GenerationStatus),
    /// The agent is running. Its newest state is the status.
    Live,
    /// The sandbox is off. The last state counts if it is final; otherwise, this status applies.
    Over(GenerationStatus),
}

/// The newest state in the stored events of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastState {
    /// The newest state.
    Is(GenerationStatus),
    /// No event contains a state.
    Never,
    /// No event within the page limit of one look-up contains a state.
    OutOfReach,
}

impl Status {
    /// The generation status, given the newest state.
    pub fn settle(self, last: LastState) -> GenerationStatus {
        match (self, last) {
            (Self::Says(reading), _) => reading,
            (_, LastState::OutOfReach) => {
                GenerationStatus::unknown("the agent's most recent events do not include its state")
            }
            (Self::Live, LastState::Is(reading)) => reading,
            (Self::Live, LastState::Never) => {
                GenerationStatus::unknown("the agent has not reported its state")
            }
            (
                Self::Over(_),
                LastState::Is(end @ (GenerationStatus::Finished | GenerationStatus::Failed { .. })),
            ) => end,
            // The reason for which the agent was waiting is more helpful than "paused".
            (
                Self::Over(GenerationStatus::Blocked { .. }),
                LastState::Is(why @ GenerationStatus::Blocked { .. }),
            ) => why,
            (Self::Over(otherwise), _) => otherwise,
        }
    }
}

/// The time for which a running sandbox counts as generating although its execution status is `idle` or
/// missing.
pub const QUIET_GRACE: Duration = Duration::from_secs(10 * 60);

/// An item of `GET /api/v1/app-conversations?ids=…` (V1).
#[derive(Debug, Default, Deserialize)]
pub struct Conversation {
    /// 32 hexadecimal digits.
    #[serde(default, deserialize_with = "lenient")]
    pub id: Option<String>,
    /// `STARTING`, `RUNNING`, `PAUSED`, `ERROR` or `MISSING`.
    #[serde(default, deserialize_with = "lenient")]
    pub sandbox_status: Option<String>,
    /// Up to date only while the sandbox is running.
    #[serde(default, deserialize_with = "lenient")]
    pub execution_status: Option<String>,
    /// ISO 8601. Without an offset, the time is in UTC.
    #[serde(default, deserialize_with = "lenient")]
    pub created_at: Option<String>,
    /// In the format of `created_at`.
    #[serde(default, deserialize_with = "lenient")]
    pub updated_at: Option<String>,
}

impl Conversation {
    /// The status at `now_ms`, in milliseconds since the Unix epoch.
    pub fn status(&self, now_ms: i64) -> Status {
        let sandbox = self.sandbox_status.as_deref().unwrap_or_default();
        match sandbox.to_ascii_uppercase().as_str() {
            "STARTING" => Status::Says(GenerationStatus::Generating),
            "RUNNING" => Status::Says(self.while_running(now_ms)),
            "PAUSED" => Status::Over(GenerationStatus::blocked(
                "the agent's sandbox was paused before the agent finished",
            )),
            "ERROR" => Status::Over(GenerationStatus::failed("the agent's sandbox failed")),
            "MISSING" => Status::Over(GenerationStatus::failed("the agent's sandbox is missing")),
            _ => Status::Says(GenerationStatus::unrecognized(sandbox)),
        }
    }

    fn while_running(&self, now_ms: i64) -> GenerationStatus {
        match &self.execution_status {
            Some(word) if !word.eq_ignore_ascii_case("idle") => execution(word),
            _ if self.is_fresh(now_ms) => GenerationStatus::Generating,
            Some(_) => GenerationStatus::blocked("the agent is idle and has not finished"),
            None => GenerationStatus::unknown("the agent has not reported its state"),
        }
    }

    /// Whether the conversation changed less than [`QUIET_GRACE`] ago. Without times, it did not.
    fn is_fresh(&self, now_ms: i64) -> bool {
        let times = [&self.created_at, &self.updated_at];
        let newest = times.into_iter().flatten().filter_map(|t| time_ms(t)).max();
        newest.is_some_and(|t| now_ms.saturating_sub(t) < QUIET_GRACE.as_millis() as i64)
    }
}

/// Parses an execution status of V1. Conversations and events use different case.
fn execution(word: &str) -> GenerationStatus {
    match word.to_ascii_lowercase().as_str() {
        "running" | "idle" => GenerationStatus::Generating,
        "finished" => GenerationStatus::Finished,
        "error" => GenerationStatus::failed("the agent stopped with an error"),
        "stuck" => GenerationStatus::failed("the agent got stuck"),
        "paused" => GenerationStatus::blocked("the agent was paused"),
        "deleting" => GenerationStatus::unknown("the conversation is being deleted"),
        "waiting_for_confirmation" => GenerationStatus::awaiting_confirmation(),
        _ => GenerationStatus::unrecognized(word),
    }
}

/// A page of `…/events/search?kind__eq=ConversationStateUpdateEvent` (V1), newest event first.
#[derive(Debug, Deserialize)]
pub struct EventPage {
    /// Required, so that an unrelated object is not parsed as an empty page.
    pub items: Vec<StateUpdate>,
    /// Absent on the last page.
    #[serde(default, deserialize_with = "lenient")]
    pub next_page_id: Option<String>,
}

/// A change of a field of the conversation's state.
#[derive(Debug, Deserialize)]
pub struct StateUpdate {
    /// The field's name.
    #[serde(default, deserialize_with = "lenient")]
    pub key: Option<String>,
    /// The new value, if it is a string.
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

/// A task that starts a conversation (V1). Its id differs from that of the conversation.
#[derive(Debug, Default, Deserialize)]
pub struct StartTask {
    /// 32 hexadecimal digits.
    #[serde(default, deserialize_with = "lenient")]
    pub id: Option<String>,
    /// `WORKING` … `READY`, or `ERROR`.
    #[serde(default, deserialize_with = "lenient")]
    pub status: Option<String>,
    /// The description of an error.
    #[serde(default, deserialize_with = "lenient")]
    pub detail: Option<String>,
    /// The id of the conversation, once the status is `READY`.
    #[serde(default, deserialize_with = "lenient")]
    pub app_conversation_id: Option<String>,
}

/// The result of a start task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// There is no conversation. This is the status.
    Says(GenerationStatus),
    /// The conversation that was started.
    Conversation(Uuid),
}

impl StartTask {
    /// The result of the task.
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
                None => GenerationStatus::unknown(
                    "the agent started without reporting its conversation",
                ),
            },
            "ERROR" => match self.detail.as_deref().and_then(displayable) {
                Some(detail) => {
                    GenerationStatus::failed(format!("the agent could not start: {detail}"))
                }
                None => GenerationStatus::failed("the agent could not start"),
            },
            _ => GenerationStatus::unrecognized(status),
        })
    }
}

/// The response of `GET /api/conversations/{id}` (V0).
#[derive(Debug, Default, Deserialize)]
pub struct V0Conversation {
    /// `STARTING`, `RUNNING`, `STOPPED`, `ARCHIVED` or `ERROR`.
    #[serde(default, deserialize_with = "lenient")]
    pub status: Option<String>,
}

impl V0Conversation {
    /// The status. `RUNNING` means that the agent is working, waiting or has finished.
    pub fn status(&self) -> Status {
        let status = self.status.as_deref().unwrap_or_default();
        match status.to_ascii_uppercase().as_str() {
            "STARTING" => Status::Says(GenerationStatus::Generating),
            "RUNNING" => Status::Live,
            "STOPPED" | "ARCHIVED" => Status::Over(GenerationStatus::blocked(
                "the agent was stopped before it finished",
            )),
            "ERROR" => Status::Over(GenerationStatus::failed("the agent stopped with an error")),
            _ => Status::Says(GenerationStatus::unrecognized(status)),
        }
    }
}

/// A page of `…/events?reverse=true` (V0), newest event first.
#[derive(Debug, Deserialize)]
pub struct V0EventPage {
    /// Required, so that an unrelated object is not parsed as an empty page.
    pub events: Vec<V0Event>,
    /// Whether there are older events.
    #[serde(default, deserialize_with = "lenient")]
    pub has_more: Option<bool>,
}

/// An event of any kind (V0).
#[derive(Debug, Deserialize)]
pub struct V0Event {
    /// Increases from 0 within a conversation.
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
        // At the end of a run, V0 waits for further instructions instead of finishing.
        "finished" | "awaiting_user_input" => GenerationStatus::Finished,
        "error" => GenerationStatus::failed("the agent stopped with an error"),
        "rejected" => GenerationStatus::failed("the agent rejected the task"),
        "paused" | "stopped" => GenerationStatus::blocked("the agent was paused"),
        "awaiting_user_confirmation" => GenerationStatus::awaiting_confirmation(),
        _ => GenerationStatus::unrecognized(word),
    }
}

/// `reason` as a sentence: with a capital letter and a full stop.
fn sentence(reason: &str) -> String {
    let mut chars = reason.chars();
    let first = chars.next().map(|first| first.to_uppercase());
    let mut text: String = first.into_iter().flatten().chain(chars).collect();
    if !text.ends_with(['.', '!', '?', '…']) {
        text.push('.');
    }
    text
}

/// The web page of a conversation; `None` if `id` is not the id of one, or `api_url` is not an HTTP URL.
///
/// Only for the browser of a person: the page requires the sign-in of OpenHands.
pub fn conversation_url(api_url: &str, id: &str) -> Option<String> {
    let id = conversation_id(id)?.simple();
    let is_http = ["http://", "https://"].iter().any(|scheme| {
        let start = api_url.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let api_url = api_url.trim_end_matches('/');
    is_http.then(|| format!("{api_url}/conversations/{id}"))
}

/// Parses the id of a conversation: 32 hexadecimal digits or a hyphenated UUID.
pub fn conversation_id(text: &str) -> Option<Uuid> {
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok())?
}

/// The longest text of the server that a reason contains, in characters.
const DETAIL_CHARS_MAX: usize = 80;

/// The longest word that is shown, in characters. Longer ones are likely keys, hashes or paths.
const WORD_CHARS_MAX: usize = 30;

/// The part of a text of the server that can be shown: the first line without addresses and keys; `None` if
/// it contains markup.
///
/// Only the first line, because the following lines of validation errors repeat the input, such as prompts.
fn displayable(text: &str) -> Option<String> {
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

/// An unrecognized status. Displayed only if it has the form of a status.
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

/// Treats a field of an unexpected type as absent, because the API changes between releases.
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

    /// A file of test cases.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Row {
        meaning: String,
        now: jiff::Timestamp,
        cases: Vec<Case>,
    }

    /// Responses of the API and the expected status.
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
        /// The status, and whether the events are required for it.
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
                _ => panic!("a case has one response"),
            };
            let needs_events = !matches!(status, Status::Says(_));
            let v1 = self.events.as_ref().and_then(EventPage::state);
            let last = v1.or_else(|| self.v0_events.as_ref().and_then(V0EventPage::state));
            (
                status.settle(last.map_or(LastState::Never, LastState::Is)),
                needs_events,
            )
        }
    }

    #[test]
    fn every_fixture_has_its_expected_status() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/openhands");
        let mut cases = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let row: Row = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            for (number, case) in row.cases.iter().enumerate() {
                let at = format!("{path:?}, case {number} ({})", row.meaning);
                let (reading, needs_events) = case.read(row.now.as_millisecond());
                let actual = (reading.as_str(), reading.reason());
                assert_eq!(actual, (&*case.reading, &*case.reason), "{at}");
                let has_events = case.events.is_some() || case.v0_events.is_some();
                assert_eq!(
                    needs_events, has_events,
                    "{at}: events are read only if required"
                );
                cases += 1;
            }
        }
        assert_eq!(cases, FIXTURE_CASES, "a fixture is missing");
    }

    const FIXTURE_CASES: usize = 74;

    #[test]
    fn every_status_is_one_sentence_without_a_prefix() {
        let stored = GenerationStatus::from_stored;
        let next = "open its conversation in OpenHands to let it continue.";
        for (kind, reason, expected) in [
            ("generating", "", "The agent is working on it.".to_owned()),
            (
                "failed",
                "the agent got stuck",
                "The agent got stuck.".into(),
            ),
            (
                "failed",
                "OpenHands said: no!",
                "OpenHands said: no!".into(),
            ),
            (
                "blocked",
                "the agent's sandbox was paused",
                format!("The agent's sandbox was paused; {next}"),
            ),
            (
                "unknown",
                "the agent has not reported its state",
                "The agent has not reported its state.".into(),
            ),
            // As stored by earlier releases.
            (
                "unknown",
                "blocked: the agent is waiting for confirmation",
                format!("The agent is waiting for confirmation; {next}"),
            ),
        ] {
            let status = stored(kind, reason.into());
            assert_eq!(status.sentence(), expected);
            assert_eq!(status.needs_person(), expected.ends_with(next));
        }
        let read = stored("unknown", "blocked: x".into());
        assert_eq!((read.as_str(), read.reason()), ("blocked", "x"));
    }

    #[test]
    fn a_conversation_has_a_web_page() {
        let id = "4F1C2B7E-9d3a-4c5f-8e6b-0a1d2c3b4a59";
        let page = |url: &str| conversation_url(url, id);
        let expected = "https://app.example/conversations/4f1c2b7e9d3a4c5f8e6b0a1d2c3b4a59";
        assert_eq!(page("https://app.example").as_deref(), Some(expected));
        assert_eq!(page("https://app.example/").as_deref(), Some(expected));
        assert!(page("HTTP://127.0.0.1:3000").is_some());
        for other in ["javascript:alert(1)//", "", "ftp://app.example", "é"] {
            assert_eq!(page(other), None, "{other}");
        }
        assert_eq!(conversation_url("https://app.example", "../admin"), None);
    }

    #[test]
    fn a_state_beyond_the_page_limit_is_unknown() {
        for status in [Status::Live, Status::Over(GenerationStatus::failed("gone"))] {
            let reading = status.settle(LastState::OutOfReach);
            assert_eq!(reading.as_str(), "unknown");
        }
    }

    #[test]
    fn fields_of_unexpected_types_are_absent() {
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
    fn only_plain_text_of_the_server_is_shown() {
        let shown = |text: &str| displayable(text).unwrap_or_default();
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
            assert_eq!(displayable(nothing), None, "{nothing}");
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
