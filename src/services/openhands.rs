//! Client of OpenHands, the agent that generates videos: reads the status of generations. It never
//! starts or stops one.
//!
//! A failed call says something about the API, never about a video: its ids get no status at all.
//! [`crate::domain::generation`] decides what responses mean.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::domain::generation::{
    Conversation, ErrorPage, EventPage, GenerationStatus, LastState, OpenHandsVersion, Start,
    StartTask, Status, V0Conversation, V0EventPage, conversation_id,
};
use crate::domain::redact::Redactor;
use crate::domain::report::ServiceError;
use crate::format::causes;
use crate::services::client::{self, InvalidSetting};

/// The most ids in one call; V1 returns 400 for 100. Source: its `batch_get_app_conversations`.
pub const BATCH_IDS_MAX: usize = 99;

/// The longest response that is read, in bytes.
const RESPONSE_BYTES_MAX: usize = 8 << 20;

/// The longest time to establish a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Events per page: the API's maximum.
const EVENTS_PER_PAGE: &str = "100";

/// The most pages of events that are read for one conversation.
const EVENT_PAGES_MAX: usize = 3;

/// The longest page id that is sent back, in bytes.
const PAGE_ID_BYTES_MAX: usize = 1024;

/// A probe gives up after so many consecutive failures.
const CONSECUTIVE_FAILURES_MAX: u32 = 3;

/// The wait after a 429 without `Retry-After`: the longest window of the API's rate limit.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(60);

/// At most `calls` calls in any period of length `per`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The number of calls.
    pub calls: usize,
    /// The length of the period.
    pub per: Duration,
}

/// How fast and for how long a probe calls the API.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    /// The longest time for one call, from the request to the end of the response.
    pub call: Duration,
    /// The longest time for one probe, excluding its last call. The next probe starts with the ids
    /// that this one did not reach.
    pub probe: Duration,
    /// The rate limits to respect.
    pub rates: [Rate; 2],
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(15),
            probe: Duration::from_secs(90),
            // The API allows a user 10 calls per second and 100 per minute. The periods are a little
            // longer, because calls do not arrive as evenly as they are sent.
            rates: [
                Rate {
                    calls: 10,
                    per: Duration::from_millis(1100),
                },
                Rate {
                    calls: 100,
                    per: Duration::from_secs(61),
                },
            ],
        }
    }
}

/// The result of a probe.
#[derive(Debug, Default)]
pub struct Probed {
    /// By conversation id, spelled as in the call. Ids without a known status are missing.
    pub statuses: HashMap<String, GenerationStatus>,
    /// Why ids are missing; each code once.
    pub errors: Vec<ServiceError>,
}

/// Client for one user's conversations.
#[derive(Debug)]
pub struct OpenHands {
    http: reqwest::Client,
    api_url: String,
    key: SecretString,
    version: OpenHandsVersion,
    redactor: Redactor,
    clock: Clock,
    pacing: Pacing,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sent: SentCalls,
    /// No call before this, in milliseconds since the Unix epoch: the API returned 429.
    paused_until_ms: i64,
    /// The id at which the last probe stopped early.
    resume_at: Uuid,
}

impl OpenHands {
    /// Creates a client for the API at `api_url` (without a slash at the end). Makes no call. `redactor` removes
    /// the secrets of the configuration from the agents' own errors.
    ///
    /// # Errors
    /// This system has no TLS certificates.
    pub fn new(
        api_url: impl Into<String>,
        key: SecretString,
        version: OpenHandsVersion,
        redactor: Redactor,
        clock: Clock,
        pacing: Pacing,
    ) -> Result<Self, InvalidSetting> {
        let builder = client::direct(CONNECT_MAX).timeout(pacing.call);
        Ok(Self {
            http: client::build(builder, "OPENHANDS_API_URL")?,
            api_url: api_url.into(),
            key,
            version,
            redactor,
            clock,
            pacing,
            state: Mutex::default(),
        })
    }

    /// The present status of these conversations or start tasks.
    ///
    /// Takes as long as the API's rate limit demands, up to [`Pacing::probe`]. The caller must not
    /// act on a failed generation before a second probe confirms it.
    pub async fn probe(&self, conversations: &[String]) -> Probed {
        let mut probed = Probed::default();
        // An id may be spelled with or without hyphens. It is asked about once and reported under
        // each spelling.
        let mut spellings: BTreeMap<Uuid, BTreeSet<&String>> = BTreeMap::new();
        for text in conversations {
            if let Some(id) = conversation_id(text) {
                spellings.entry(id).or_default().insert(text);
            } else {
                let status = GenerationStatus::unknown("the row's conversation ID is not a UUID");
                probed.statuses.insert(text.clone(), status);
            }
        }
        let mut ids: Vec<Uuid> = spellings.keys().copied().collect();
        // Starts where the last probe stopped, so that every id gets its turn although one probe
        // cannot reach all of them.
        let resume_at = self.state().resume_at;
        let first = ids.partition_point(|id| *id < resume_at);
        ids.rotate_left(first);

        let mut probe = ProbeRun::new(self);
        let end = match self.version {
            OpenHandsVersion::V1 => probe.v1(&ids).await,
            OpenHandsVersion::V0 => probe.v0(&ids).await,
        };
        self.state().resume_at = match &end {
            Ok(()) => Uuid::nil(),
            Err(Halt) => probe.at,
        };
        let error = |error: &ApiError| ServiceError {
            service: "openhands",
            code: error.code(),
        };
        probed.errors = probe.errors.iter().map(error).collect();
        if end.is_ok() {
            probe.explain_failures().await;
        }
        for (id, status) in probe.statuses {
            for text in spellings.get(&id).into_iter().flatten() {
                probed.statuses.insert((*text).clone(), status.clone());
            }
        }
        probed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the rate limit allows the next call, which must be before `deadline`.
    async fn turn(&self, deadline: Instant) -> Result<(), ApiError> {
        let now = Instant::now();
        if now > deadline {
            return Err(ApiError::Unavailable);
        }
        let turn = {
            let mut state = self.state();
            if self.clock.now_ms() < state.paused_until_ms {
                return Err(ApiError::RateLimited);
            }
            let turn = state.sent.schedule(&self.pacing.rates, now, deadline);
            turn.ok_or(ApiError::RateLimited)?
        };
        tokio::time::sleep_until(turn).await;
        Ok(())
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, ApiError> {
        let url = format!("{}{path}", self.api_url);
        let request = self.http.get(url).query(query);
        let request = request.bearer_auth(self.key.expose_secret());
        let unavailable = |error: reqwest::Error| {
            let error = error.without_url();
            tracing::debug!(path, error = causes(&error), "request to OpenHands failed");
            ApiError::Unavailable
        };
        let mut response = request.send().await.map_err(unavailable)?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let now_ms = self.clock.now_ms();
            let wait = client::retry_after(response.headers(), now_ms);
            let wait = wait.unwrap_or(RETRY_AFTER_DEFAULT);
            self.state().paused_until_ms = now_ms + wait.as_millis() as i64;
        }
        if let Some(error) = ApiError::of_status(status) {
            return Err(error);
        }
        let is_html = response.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes().to_ascii_lowercase();
            kind.starts_with(b"text/html")
        });
        if is_html {
            return Err(ApiError::HtmlAnswer);
        }
        let body = client::body(&mut response, RESPONSE_BYTES_MAX).await;
        let body = body.map_err(unavailable)?.ok_or(ApiError::Malformed)?;
        // A web page without a content type.
        if body.trim_ascii_start().starts_with(b"<") {
            return Err(ApiError::HtmlAnswer);
        }
        if status != StatusCode::OK {
            return Err(ApiError::Malformed);
        }
        serde_json::from_slice(&body).map_err(|_| ApiError::Malformed)
    }
}

/// Why a call has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ApiError {
    /// The API rejects the key.
    Unauthorized,
    /// The key has no access to this.
    Forbidden,
    /// The API returned 429, or its rate limit allows no further call before the probe's deadline.
    RateLimited,
    /// No response, not in time, or a 5xx.
    Unavailable,
    /// A web page, which OpenHands serves for unknown paths.
    HtmlAnswer,
    /// Another response than documented.
    Malformed,
}

impl ApiError {
    /// `None`: the body decides.
    fn of_status(status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::UNAUTHORIZED => Some(Self::Unauthorized),
            StatusCode::FORBIDDEN => Some(Self::Forbidden),
            StatusCode::TOO_MANY_REQUESTS => Some(Self::RateLimited),
            status if status.is_server_error() => Some(Self::Unavailable),
            _ => None,
        }
    }

    const fn code(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::HtmlAnswer => "html_answer",
            Self::Malformed => "malformed",
        }
    }
}

/// When the latest calls were sent or are scheduled, oldest first.
#[derive(Debug, Default)]
struct SentCalls {
    times: VecDeque<Instant>,
}

impl SentCalls {
    /// Schedules a call at the earliest time that respects all rates, unless that is after `latest`.
    fn schedule(&mut self, rates: &[Rate], now: Instant, latest: Instant) -> Option<Instant> {
        let free_again = |rate: &Rate| {
            let nth_last = self.times.len().checked_sub(rate.calls)?;
            Some(*self.times.get(nth_last)? + rate.per)
        };
        let turn = rates.iter().filter_map(free_again).fold(now, Instant::max);
        if turn > latest {
            return None;
        }
        self.times.push_back(turn);
        let kept = rates.iter().map(|rate| rate.calls).max().unwrap_or(0);
        while self.times.len() > kept {
            self.times.pop_front();
        }
        Some(turn)
    }
}

/// Ends a probe early: further calls would fail too.
struct Halt;

/// A probe in progress.
struct ProbeRun<'a> {
    client: &'a OpenHands,
    deadline: Instant,
    now_ms: i64,
    statuses: HashMap<Uuid, GenerationStatus>,
    /// The conversations whose run failed, each with the id in the row.
    failed: Vec<(Uuid, Uuid)>,
    errors: BTreeSet<ApiError>,
    consecutive_failures: u32,
    /// The id of the current call.
    at: Uuid,
}

/// A conversation whose status depends on its events.
struct Undecided {
    /// The id in the row.
    asked: Uuid,
    /// The conversation's own id; another one if the row names a start task.
    conversation: Uuid,
    status: Status,
}

impl<'a> ProbeRun<'a> {
    fn new(client: &'a OpenHands) -> Self {
        Self {
            client,
            deadline: Instant::now() + client.pacing.probe,
            now_ms: client.clock.now_ms(),
            statuses: HashMap::new(),
            failed: Vec::new(),
            errors: BTreeSet::new(),
            consecutive_failures: 0,
            at: Uuid::nil(),
        }
    }

    /// Makes one call; `None` if it failed in a way that does not concern the next ones.
    async fn call<T: DeserializeOwned>(
        &mut self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Option<T>, Halt> {
        let response = match self.client.turn(self.deadline).await {
            Ok(()) => self.client.get(path, query).await,
            Err(error) => Err(error),
        };
        let error = match response {
            Ok(response) => {
                self.consecutive_failures = 0;
                return Ok(Some(response));
            }
            Err(error) => error,
        };
        tracing::debug!(
            path,
            code = error.code(),
            "failed to get the status from OpenHands"
        );
        self.errors.insert(error);
        self.consecutive_failures += 1;
        let is_final = matches!(error, ApiError::Unauthorized | ApiError::RateLimited);
        if is_final || self.consecutive_failures >= CONSECUTIVE_FAILURES_MAX {
            return Err(Halt);
        }
        Ok(None)
    }

    async fn v1(&mut self, ids: &[Uuid]) -> Result<(), Halt> {
        for batch in ids.chunks(BATCH_IDS_MAX) {
            self.at = batch[0];
            let Some(mut rows) = self.v1_conversations(batch).await? else {
                continue;
            };
            let mut undecided = Vec::new();
            let mut not_known = Vec::new();
            for &id in batch {
                match rows.remove(&id) {
                    Some(row) => undecided.extend(self.take(id, id, &row)),
                    None => not_known.push(id),
                }
            }
            if !not_known.is_empty() {
                undecided.extend(self.v1_start_tasks(&not_known).await?);
            }
            for it in undecided {
                self.at = it.asked;
                if let Some(last) = self.v1_last_state(it.conversation).await? {
                    self.report(it.asked, it.conversation, it.status.settle(last));
                }
            }
        }
        Ok(())
    }

    /// Records the status of a conversation.
    fn report(&mut self, asked: Uuid, conversation: Uuid, status: GenerationStatus) {
        if status.has_error_event() {
            self.failed.push((asked, conversation));
        }
        self.statuses.insert(asked, status);
    }

    /// Adds the agents' own errors to the failures, with one call each. This comes after all statuses are known,
    /// so that a call that fails affects none of them.
    async fn explain_failures(&mut self) {
        for (asked, conversation) in std::mem::take(&mut self.failed) {
            let path = events_path(conversation);
            let query = events_query("ConversationErrorEvent", "1");
            let Ok(page) = self.call::<ErrorPage>(&path, &query).await else {
                break;
            };
            let error = page.as_ref().and_then(|page| page.items.first());
            if let (Some(status), Some(error)) = (self.statuses.get_mut(&asked), error) {
                status.explain(error, &self.client.redactor);
            }
        }
    }

    /// Records the status of a conversation, or returns it if its events have to decide.
    fn take(&mut self, asked: Uuid, conversation: Uuid, row: &Conversation) -> Option<Undecided> {
        match row.status(self.now_ms) {
            Status::Says(status) => {
                self.report(asked, conversation, status);
                None
            }
            status => Some(Undecided {
                asked,
                conversation,
                status,
            }),
        }
    }

    async fn v1_conversations(
        &mut self,
        ids: &[Uuid],
    ) -> Result<Option<HashMap<Uuid, Conversation>>, Halt> {
        let path = "/api/v1/app-conversations";
        let rows: Option<Vec<Option<Conversation>>> = self.call(path, &ids_query(ids)).await?;
        Ok(rows.map(|rows| by_id(rows, |row| row.id.as_deref())))
    }

    /// Looks up ids that are not conversations as start tasks, and then the conversations of those.
    async fn v1_start_tasks(&mut self, ids: &[Uuid]) -> Result<Vec<Undecided>, Halt> {
        let path = "/api/v1/app-conversations/start-tasks";
        let tasks: Option<Vec<Option<StartTask>>> = self.call(path, &ids_query(ids)).await?;
        let Some(tasks) = tasks.map(|tasks| by_id(tasks, |task| task.id.as_deref())) else {
            return Ok(Vec::new());
        };
        let mut started = Vec::new();
        for &id in ids {
            let task = tasks.get(&id);
            match task.map(|task| task.outcome(&self.client.redactor)) {
                Some(Start::Conversation(conversation)) => started.push((id, conversation)),
                Some(Start::Says(status)) => _ = self.statuses.insert(id, status),
                None => _ = self.statuses.insert(id, GenerationStatus::not_known()),
            }
        }
        if started.is_empty() {
            return Ok(Vec::new());
        }
        let conversations: Vec<Uuid> = started.iter().map(|(_, id)| *id).collect();
        let Some(rows) = self.v1_conversations(&conversations).await? else {
            return Ok(Vec::new());
        };
        let mut undecided = Vec::new();
        for (asked, conversation) in started {
            match rows.get(&conversation) {
                Some(row) => undecided.extend(self.take(asked, conversation, row)),
                None => _ = self.statuses.insert(asked, GenerationStatus::not_known()),
            }
        }
        Ok(undecided)
    }

    async fn v1_last_state(&mut self, conversation: Uuid) -> Result<Option<LastState>, Halt> {
        let path = events_path(conversation);
        let mut query = events_query("ConversationStateUpdateEvent", EVENTS_PER_PAGE);
        for _ in 0..EVENT_PAGES_MAX {
            let Some(page) = self.call::<EventPage>(&path, &query).await? else {
                return Ok(None);
            };
            if let Some(status) = page.state() {
                return Ok(Some(LastState::Is(status)));
            }
            match page.next_page_id {
                None => return Ok(Some(LastState::Never)),
                Some(page_id) if page_id.len() > PAGE_ID_BYTES_MAX => break,
                Some(page_id) => {
                    query.truncate(3);
                    query.push(("page_id", page_id));
                }
            }
        }
        Ok(Some(LastState::OutOfReach))
    }

    async fn v0(&mut self, ids: &[Uuid]) -> Result<(), Halt> {
        for &id in ids {
            self.at = id;
            let path = format!("/api/conversations/{}", id.simple());
            let Some(row) = self.call::<Option<V0Conversation>>(&path, &[]).await? else {
                continue;
            };
            let status = match row.map(|row| row.status()) {
                None => GenerationStatus::not_known(),
                Some(Status::Says(status)) => status,
                Some(status) => match self.v0_last_state(&path).await? {
                    Some(last) => status.settle(last),
                    None => continue,
                },
            };
            self.statuses.insert(id, status);
        }
        Ok(())
    }

    async fn v0_last_state(&mut self, conversation: &str) -> Result<Option<LastState>, Halt> {
        let path = format!("{conversation}/events");
        let mut query = vec![
            ("reverse", "true".to_owned()),
            ("limit", EVENTS_PER_PAGE.to_owned()),
        ];
        for _ in 0..EVENT_PAGES_MAX {
            let Some(page) = self.call::<V0EventPage>(&path, &query).await? else {
                return Ok(None);
            };
            if let Some(status) = page.state() {
                return Ok(Some(LastState::Is(status)));
            }
            if page.has_more != Some(true) {
                return Ok(Some(LastState::Never));
            }
            let Some(oldest) = page.events.iter().rev().find_map(|event| event.id) else {
                break;
            };
            // Releases differ in whether the page includes `end_id` itself. Reading an event twice
            // does no harm.
            query.truncate(2);
            query.push(("end_id", oldest.to_string()));
        }
        Ok(Some(LastState::OutOfReach))
    }
}

fn ids_query(ids: &[Uuid]) -> Vec<(&'static str, String)> {
    let pair = |id: &Uuid| ("ids", id.simple().to_string());
    ids.iter().map(pair).collect()
}

fn events_path(conversation: Uuid) -> String {
    let conversation = conversation.simple();
    format!("/api/v1/conversation/{conversation}/events/search")
}

/// The newest events of a kind.
fn events_query(kind: &str, limit: &str) -> Vec<(&'static str, String)> {
    let order = "TIMESTAMP_DESC";
    let pairs = [("kind__eq", kind), ("sort_order", order), ("limit", limit)];
    pairs.map(|(name, value)| (name, value.to_owned())).into()
}

/// The rows by their ids. Rows of unknown ids are null, and their order is not relied on.
fn by_id<T>(rows: Vec<Option<T>>, id: impl Fn(&T) -> Option<&str>) -> HashMap<Uuid, T> {
    let keyed = |row: T| Some((id(&row).and_then(conversation_id)?, row));
    rows.into_iter().flatten().filter_map(keyed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_window_holds_at_most_its_calls() {
        let rates = Pacing::default().rates;
        let mut sent = SentCalls::default();
        let start = Instant::now();
        let end = start + Duration::from_secs(600);
        let turns: Vec<Instant> = (0..350)
            .map(|_| sent.schedule(&rates, start, end).unwrap())
            .collect();
        for Rate { calls, per } in rates {
            assert!(turns.windows(calls + 1).all(|w| w[calls] - w[0] >= per));
        }
        assert_eq!(turns[9], start, "a burst within the limit does not wait");
        assert_eq!(turns[10], start + rates[0].per);
        assert_eq!(
            sent.schedule(&rates, start, start),
            None,
            "a turn after the deadline is none"
        );
        assert!(sent.times.len() <= 100);
    }
}
