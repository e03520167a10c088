//! Asks the agent's API (OpenHands) what became of generations. It never starts or stops one.
//!
//! A call that fails says something about the API, never about a video: the ids it was about get
//! no reading at all. What answers mean is decided in [`crate::domain::generation`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::domain::failure::RETRY_AFTER_MAX;
use crate::domain::generation::{
    Conversation, EventPage, GenerationStatus, LastState, OpenHandsVersion, Start, StartTask,
    Status, V0Conversation, V0EventPage, conversation_id,
};
use crate::domain::report::ServiceError;

/// Most ids in one call; V1 answers 400 to a hundred. Source: its `batch_get_app_conversations`.
pub const AGENT_BATCH_IDS_MAX: usize = 99;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Longest time until a connection stands.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Events on one page; the API allows no more.
const EVENTS_PER_PAGE: &str = "100";

/// Most pages of events that are read for one conversation.
const EVENT_PAGES_MAX: usize = 3;

/// Longest page id that is sent back, in bytes.
const PAGE_ID_BYTES_MAX: usize = 1024;

/// Calls that fail one after another before a probe gives up.
const FAILURES_IN_A_ROW_MAX: u32 = 3;

/// The wait after a 429 that names none: the longest window of the API's limit.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(60);

/// At most so many calls in any stretch of time that long.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// How many calls.
    pub calls: usize,
    /// The stretch of time.
    pub per: Duration,
}

/// How much a probe may take of the API and of its caller's time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for one call, from the request to the end of the answer.
    pub answer: Duration,
    /// Longest time for one probe, apart from its last call; what it did not reach comes first next time.
    pub probe: Duration,
    /// How fast calls follow each other.
    pub rates: [Rate; 2],
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(15),
            probe: Duration::from_secs(90),
            // The API allows a user 10 a second and 100 a minute. The windows are a little longer,
            // because calls do not arrive as evenly as they are sent.
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

/// What a probe found out.
#[derive(Debug, Default)]
pub struct Probed {
    /// By conversation, spelled as it was asked for. An id that is missing was not found out about.
    pub statuses: HashMap<String, GenerationStatus>,
    /// Why ids are missing; one for each code.
    pub errors: Vec<ServiceError>,
}

/// The agent's API, as one user.
#[derive(Debug)]
pub struct Agent {
    http: reqwest::Client,
    api_url: String,
    key: SecretString,
    version: OpenHandsVersion,
    clock: Clock,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pace: Pace,
    /// The API asked not to be called before this time, in milliseconds since the Unix epoch.
    quiet_until_ms: i64,
    /// The id at which a probe was cut short.
    resume_at: Uuid,
}

impl Agent {
    /// A client for the API at `api_url` (without a slash at the end).
    ///
    /// Fails if the system's TLS certificates cannot be read.
    pub fn new(
        api_url: impl Into<String>,
        key: SecretString,
        version: OpenHandsVersion,
        clock: Clock,
        limits: Limits,
    ) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .timeout(limits.answer)
            .user_agent(concat!("video-ingest/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            http,
            api_url: api_url.into(),
            key,
            version,
            clock,
            limits,
            state: Mutex::default(),
        })
    }

    /// What is known about these conversations, or start tasks, now.
    ///
    /// Takes as long as the API's rate limit demands, up to [`Limits::probe`]. A failure needs a
    /// second reading to be believed: that is the caller's.
    pub async fn probe(&self, conversations: &[String]) -> Probed {
        let mut probed = Probed::default();
        let mut spellings: BTreeMap<Uuid, BTreeSet<&String>> = BTreeMap::new();
        for text in conversations {
            if let Some(id) = conversation_id(text) {
                spellings.entry(id).or_default().insert(text);
            } else {
                let reading = GenerationStatus::unknown("the row's conversation id is not one");
                probed.statuses.insert(text.clone(), reading);
            }
        }
        let mut ids: Vec<Uuid> = spellings.keys().copied().collect();
        let resume_at = self.state().resume_at;
        let first = ids.partition_point(|id| *id < resume_at);
        ids.rotate_left(first);

        let mut probe = Probe::new(self);
        let end = match self.version {
            OpenHandsVersion::V1 => probe.v1(&ids).await,
            OpenHandsVersion::V0 => probe.v0(&ids).await,
        };
        self.state().resume_at = match end {
            Ok(()) => Uuid::nil(),
            Err(Halt) => probe.at,
        };
        for (id, reading) in probe.statuses {
            for text in spellings.get(&id).into_iter().flatten() {
                probed.statuses.insert((*text).clone(), reading.clone());
            }
        }
        let error = |trouble: Trouble| ServiceError {
            service: "openhands",
            code: trouble.code(),
        };
        probed.errors = probe.troubles.into_iter().map(error).collect();
        probed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this call's turn, which must come before `deadline`.
    async fn turn(&self, deadline: Instant) -> Result<(), Trouble> {
        let now = Instant::now();
        if now > deadline {
            return Err(Trouble::Unavailable);
        }
        let turn = {
            let mut state = self.state();
            if self.clock.now_ms() < state.quiet_until_ms {
                return Err(Trouble::RateLimited);
            }
            let turn = state.pace.take(&self.limits.rates, now, deadline);
            turn.ok_or(Trouble::RateLimited)?
        };
        tokio::time::sleep_until(turn).await;
        Ok(())
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Trouble> {
        let url = format!("{}{path}", self.api_url);
        let request = self.http.get(url).query(query);
        let request = request.bearer_auth(self.key.expose_secret());
        let response = request.send().await.map_err(|_| Trouble::Unavailable)?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let now_ms = self.clock.now_ms();
            let wait = retry_after(response.headers(), now_ms).unwrap_or(RETRY_AFTER_DEFAULT);
            let wait = wait.min(RETRY_AFTER_MAX);
            self.state().quiet_until_ms = now_ms + wait.as_millis() as i64;
        }
        if let Some(trouble) = Trouble::of_status(status) {
            return Err(trouble);
        }
        let says_html = response.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes().to_ascii_lowercase();
            kind.starts_with(b"text/html")
        });
        if says_html {
            return Err(Trouble::HtmlAnswer);
        }
        let body = body(response).await?;
        if body.trim_ascii_start().starts_with(b"<") {
            return Err(Trouble::HtmlAnswer);
        }
        if status != StatusCode::OK {
            return Err(Trouble::Malformed);
        }
        serde_json::from_slice(&body).map_err(|_| Trouble::Malformed)
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Trouble::Unavailable)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Trouble::Malformed);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Seconds, or an HTTP date (whose form is that of RFC 2822).
fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let wait_ms = date.timestamp().as_millisecond().saturating_sub(now_ms);
    Some(Duration::from_millis(wait_ms.max(0) as u64))
}

/// What is wrong with the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// It does not accept our key.
    Unauthorized,
    /// It shows us less than we asked for.
    Forbidden,
    /// It asked us to wait, or its limit leaves no room for more within this probe.
    RateLimited,
    /// It does not answer, not in time, or 5xx.
    Unavailable,
    /// It answered with a web page, as for paths that it does not have (any more).
    HtmlAnswer,
    /// It answered something else than documented.
    Malformed,
}

impl Trouble {
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

/// When calls were sent, or will be.
#[derive(Debug, Default)]
struct Pace {
    sent: VecDeque<Instant>,
}

impl Pace {
    /// The earliest turn that keeps to all the rates, unless that is after `latest`.
    fn take(&mut self, rates: &[Rate], now: Instant, latest: Instant) -> Option<Instant> {
        let free_again = |rate: &Rate| {
            let nth_last = self.sent.len().checked_sub(rate.calls)?;
            Some(*self.sent.get(nth_last)? + rate.per)
        };
        let turn = rates.iter().filter_map(free_again).fold(now, Instant::max);
        if turn > latest {
            return None;
        }
        self.sent.push_back(turn);
        let remembered = rates.iter().map(|rate| rate.calls).max().unwrap_or(0);
        while self.sent.len() > remembered {
            self.sent.pop_front();
        }
        Some(turn)
    }
}

/// No further call makes sense in this probe.
struct Halt;

/// One probe under way.
struct Probe<'a> {
    agent: &'a Agent,
    deadline: Instant,
    now_ms: i64,
    statuses: HashMap<Uuid, GenerationStatus>,
    troubles: BTreeSet<Trouble>,
    failures_in_a_row: u32,
    /// The id that is being asked about.
    at: Uuid,
}

/// A conversation whose events decide.
struct Undecided {
    /// The id we were asked about.
    asked: Uuid,
    /// The conversation's own; another one behind a start task.
    conversation: Uuid,
    status: Status,
}

impl<'a> Probe<'a> {
    fn new(agent: &'a Agent) -> Self {
        Self {
            agent,
            deadline: Instant::now() + agent.limits.probe,
            now_ms: agent.clock.now_ms(),
            statuses: HashMap::new(),
            troubles: BTreeSet::new(),
            failures_in_a_row: 0,
            at: Uuid::nil(),
        }
    }

    /// One call; `None` if it failed in a way that others need not.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Option<T>, Halt> {
        let answer = match self.agent.turn(self.deadline).await {
            Ok(()) => self.agent.get(path, query).await,
            Err(trouble) => Err(trouble),
        };
        let trouble = match answer {
            Ok(answer) => {
                self.failures_in_a_row = 0;
                return Ok(Some(answer));
            }
            Err(trouble) => trouble,
        };
        tracing::debug!(
            path,
            code = trouble.code(),
            "no answer from the agent's API"
        );
        self.troubles.insert(trouble);
        self.failures_in_a_row += 1;
        let hopeless = matches!(trouble, Trouble::Unauthorized | Trouble::RateLimited);
        if hopeless || self.failures_in_a_row >= FAILURES_IN_A_ROW_MAX {
            return Err(Halt);
        }
        Ok(None)
    }

    async fn v1(&mut self, ids: &[Uuid]) -> Result<(), Halt> {
        for batch in ids.chunks(AGENT_BATCH_IDS_MAX) {
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
                    self.statuses.insert(it.asked, it.status.settle(last));
                }
            }
        }
        Ok(())
    }

    /// Keeps what the row says, or hands it back for its events to decide.
    fn take(&mut self, asked: Uuid, conversation: Uuid, row: &Conversation) -> Option<Undecided> {
        match row.status(self.now_ms) {
            Status::Says(reading) => {
                self.statuses.insert(asked, reading);
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
        let rows: Option<Vec<Option<Conversation>>> = self.ask(path, &ids_query(ids)).await?;
        Ok(rows.map(|rows| by_id(rows, |row| row.id.as_deref())))
    }

    /// Follows ids that are no conversations' as start tasks, to the conversations they led to.
    async fn v1_start_tasks(&mut self, ids: &[Uuid]) -> Result<Vec<Undecided>, Halt> {
        let path = "/api/v1/app-conversations/start-tasks";
        let tasks: Option<Vec<Option<StartTask>>> = self.ask(path, &ids_query(ids)).await?;
        let Some(tasks) = tasks.map(|tasks| by_id(tasks, |task| task.id.as_deref())) else {
            return Ok(Vec::new());
        };
        let mut led_to = Vec::new();
        for &id in ids {
            match tasks.get(&id).map(StartTask::outcome) {
                Some(Start::Conversation(conversation)) => led_to.push((id, conversation)),
                Some(Start::Says(reading)) => _ = self.statuses.insert(id, reading),
                None => _ = self.statuses.insert(id, GenerationStatus::not_known()),
            }
        }
        if led_to.is_empty() {
            return Ok(Vec::new());
        }
        let conversations: Vec<Uuid> = led_to.iter().map(|(_, id)| *id).collect();
        let Some(rows) = self.v1_conversations(&conversations).await? else {
            return Ok(Vec::new());
        };
        let mut undecided = Vec::new();
        for (asked, conversation) in led_to {
            match rows.get(&conversation) {
                Some(row) => undecided.extend(self.take(asked, conversation, row)),
                None => _ = self.statuses.insert(asked, GenerationStatus::not_known()),
            }
        }
        Ok(undecided)
    }

    async fn v1_last_state(&mut self, conversation: Uuid) -> Result<Option<LastState>, Halt> {
        let conversation = conversation.simple();
        let path = format!("/api/v1/conversation/{conversation}/events/search");
        let mut query = vec![
            ("kind__eq", "ConversationStateUpdateEvent".to_owned()),
            ("sort_order", "TIMESTAMP_DESC".to_owned()),
            ("limit", EVENTS_PER_PAGE.to_owned()),
        ];
        for _ in 0..EVENT_PAGES_MAX {
            let Some(page) = self.ask::<EventPage>(&path, &query).await? else {
                return Ok(None);
            };
            if let Some(reading) = page.state() {
                return Ok(Some(LastState::Is(reading)));
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
            let Some(row) = self.ask::<Option<V0Conversation>>(&path, &[]).await? else {
                continue;
            };
            let reading = match row.map(|row| row.status()) {
                None => GenerationStatus::not_known(),
                Some(Status::Says(reading)) => reading,
                Some(status) => match self.v0_last_state(&path).await? {
                    Some(last) => status.settle(last),
                    None => continue,
                },
            };
            self.statuses.insert(id, reading);
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
            let Some(page) = self.ask::<V0EventPage>(&path, &query).await? else {
                return Ok(None);
            };
            if let Some(reading) = page.state() {
                return Ok(Some(LastState::Is(reading)));
            }
            if page.has_more != Some(true) {
                return Ok(Some(LastState::Never));
            }
            let Some(oldest) = page.events.iter().rev().find_map(|event| event.id) else {
                break;
            };
            // Releases differ in whether the end is part of the page: meeting it twice does no harm.
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

/// The rows that are there, by the ids they carry: nothing hangs on their order.
fn by_id<T>(rows: Vec<Option<T>>, id: impl Fn(&T) -> Option<&str>) -> HashMap<Uuid, T> {
    let keyed = |row: T| Some((id(&row).and_then(conversation_id)?, row));
    rows.into_iter().flatten().filter_map(keyed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_window_holds_at_most_its_calls() {
        let rates = Limits::default().rates;
        let mut pace = Pace::default();
        let start = Instant::now();
        let end = start + Duration::from_secs(600);
        let turns: Vec<Instant> = (0..350)
            .map(|_| pace.take(&rates, start, end).unwrap())
            .collect();
        for Rate { calls, per } in rates {
            assert!(turns.windows(calls + 1).all(|w| w[calls] - w[0] >= per));
        }
        assert_eq!(turns[9], start, "a burst within the limit does not wait");
        assert_eq!(turns[10], start + rates[0].per);
        assert_eq!(
            pace.take(&rates, start, start),
            None,
            "a turn after the deadline is none"
        );
        assert!(pace.sent.len() <= 100);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now_ms = 1_785_585_600_000; // 2026-08-01T12:00:00Z
        let wait = |value: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after(&headers, now_ms)
        };
        assert_eq!(wait("37"), Some(Duration::from_secs(37)));
        assert_eq!(
            wait("Sat, 01 Aug 2026 12:00:37 GMT"),
            Some(Duration::from_secs(37))
        );
        assert_eq!(wait("Sat, 01 Aug 2026 11:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
    }
}
