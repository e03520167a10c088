//! Responses of the OpenHands API (V1 and V0), and the generation status that follows from them.
//!
//! `Finished` does not mean that a video exists, only a push does. Fields that are not listed here, such as
//! prompts and session keys, are never deserialized.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::redact::{Redactor, cut};
use crate::format::capitalized;

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

/// The reason of a run that ended with an error.
const STOPPED: &str = "the agent stopped with an error";

/// The reason of a run in which the agent repeated itself.
const STUCK: &str = "the agent got stuck";

/// The start of a reason that contains the agent's own error.
const REPORTED_ERROR: &str = "OpenHands reported an error";

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

    /// The message of a video that failed with this status.
    pub fn failure(&self) -> String {
        let reason = self.reason();
        if reason.starts_with(REPORTED_ERROR) {
            sentence(reason)
        } else {
            sentence(&format!("Video generation failed: {reason}"))
        }
    }

    /// Whether the agent itself failed, so that its events may contain the error.
    pub fn has_error_event(&self) -> bool {
        matches!(self, Self::Failed { reason } if reason == STOPPED || reason == STUCK)
    }

    /// Adds the error that the agent reported. No other status than one with an error event is changed.
    pub fn explain(&mut self, error: &ErrorEvent, redactor: &Redactor) {
        let is_stuck = self.reason() == STUCK;
        if let (true, Some(error)) = (self.has_error_event(), error.text(redactor)) {
            *self = Self::failed(if is_stuck {
                format!("{STUCK}; {error}")
            } else {
                error
            });
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
        "error" => GenerationStatus::failed(STOPPED),
        "stuck" => GenerationStatus::failed(STUCK),
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

/// A page of `…/events/search?kind__eq=ConversationErrorEvent` (V1), newest event first.
#[derive(Debug, Deserialize)]
pub struct ErrorPage {
    /// Required, so that an unrelated object is not parsed as an empty page.
    pub items: Vec<ErrorEvent>,
}

/// Why a run failed. Source: `ConversationErrorEvent` of the SDK's `event/conversation_error.py`.
#[derive(Debug, Default, Deserialize)]
pub struct ErrorEvent {
    #[serde(default, deserialize_with = "lenient")]
    code: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    detail: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    classification: Option<Classification>,
}

#[derive(Debug, Deserialize)]
struct Classification {
    #[serde(default, deserialize_with = "lenient")]
    kind: Option<String>,
}

impl ErrorEvent {
    /// The error as the rest of a sentence, without credentials; `None` if the event says nothing.
    fn text(&self, redactor: &Redactor) -> Option<String> {
        let kind = self.classification.as_ref().and_then(|c| c.kind.as_ref());
        let names = [self.code.as_ref(), kind].into_iter().flatten();
        let names = names.map(|name| redactor.redact(name));
        let names: Vec<String> = names.filter(|name| is_name(name)).collect();
        let detail = redactor.redact(self.detail.as_deref().unwrap_or_default());
        let mut text = REPORTED_ERROR.to_owned();
        if !names.is_empty() {
            text = format!("{text} ({})", names.join(", "));
        }
        if !detail.is_empty() {
            text = format!("{text}: {}", cut(&detail, ERROR_CHARS_MAX));
        }
        (text != REPORTED_ERROR).then_some(text)
    }
}

/// Whether a code or kind has the form of one: an identifier of at most [`NAME_CHARS_MAX`] characters.
fn is_name(text: &str) -> bool {
    let of_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.chars().all(of_name)
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
    pub fn outcome(&self, redactor: &Redactor) -> Start {
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
            "ERROR" => match displayable(self.detail.as_deref().unwrap_or_default(), redactor) {
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
            "ERROR" => Status::Over(GenerationStatus::failed(STOPPED)),
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
        "error" => GenerationStatus::failed(STOPPED),
        "rejected" => GenerationStatus::failed("the agent rejected the task"),
        "paused" | "stopped" => GenerationStatus::blocked("the agent was paused"),
        "awaiting_user_confirmation" => GenerationStatus::awaiting_confirmation(),
        _ => GenerationStatus::unrecognized(word),
    }
}

/// `reason` as a sentence: with a capital letter and a full stop.
fn sentence(reason: &str) -> String {
    let text = capitalized(reason);
    let is_ended = text.ends_with(['.', '!', '?', '…']);
    if is_ended { text } else { format!("{text}.") }
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

/// The longest detail of a start task that a reason contains, in characters.
const DETAIL_CHARS_MAX: usize = 80;

/// The longest detail of an agent's error that a reason contains, in characters.
const ERROR_CHARS_MAX: usize = 300;

/// The longest code or kind of an agent's error that is shown, in characters.
const NAME_CHARS_MAX: usize = 60;

/// The longest word that is shown, in characters. Longer ones are likely keys, hashes or paths.
const WORD_CHARS_MAX: usize = 30;

/// The part of a text of the server that can be shown: the first line without addresses and keys; `None` if
/// it contains markup.
///
/// Only the first line, because the following lines of validation errors repeat the input, such as prompts.
fn displayable(text: &str, redactor: &Redactor) -> Option<String> {
    let line = text.trim().lines().next()?;
    if line.contains(['<', '>', '{']) {
        return None;
    }
    let line = redactor.redact(line);
    let shown = |word: &str| !word.contains("://") && word.chars().count() <= WORD_CHARS_MAX;
    let words = line.split_whitespace();
    let words: Vec<_> = words.map(|w| if shown(w) { w } else { "…" }).collect();
    let text = cut(&words.join(" "), DETAIL_CHARS_MAX);
    (!text.is_empty()).then_some(text)
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
