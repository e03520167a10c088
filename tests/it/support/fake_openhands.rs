//! A fake OpenHands: its API, V1 and V0, with the conversations that a test sets.
//!
//! It reproduces these quirks:
//!
//! - V1 takes fewer than 100 ids per call and returns `null` for unknown ones; V0 is on self-hosted servers only;
//! - every path that the API lacks returns 200 and the web app's HTML page;
//! - events come newest first, in pages: V1 by `page_id`, V0 by `end_id`;
//! - every answer contains secrets that the service must not show: a session key and a prompt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The only valid key.
pub const KEY: &str = "key-canary";
/// A credential in every conversation.
pub const SESSION_KEY: &str = "session-canary";
/// The prompt of every conversation.
pub const PROMPT: &str = "prompt-canary";
/// The web app's page: the answer to every path that the API does not have.
pub const PAGE: &str = "<!doctype html><html><body>OpenHands</body></html>";

/// Which server this is.
#[derive(Clone, Copy, PartialEq)]
pub enum Server {
    /// Speaks V1 only.
    Cloud,
    /// Speaks V0 as well.
    SelfHosted,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// 200 with an HTML page.
    Html,
    /// An HTML page with the content type of JSON.
    HtmlAsJson,
    /// This status, with an error in JSON.
    Status(u16),
    /// 429, asking to wait for so many seconds, or without saying how long.
    TooMany(Option<u32>),
    /// 302 to the web app's login.
    Login,
    /// 200 with this text as JSON.
    Json(&'static str),
    /// 200 with JSON that is valid for every call, but larger than any client should read.
    Endless,
    /// No answer.
    Stall,
}

/// The running fake; it stops when dropped.
pub struct FakeOpenHands {
    pub url: String,
    model: Arc<Mutex<Model>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Model {
    speaks_v0: bool,
    conversations: HashMap<Uuid, Value>,
    tasks: HashMap<Uuid, Value>,
    /// Newest first.
    events: HashMap<Uuid, Vec<Value>>,
    v0: HashMap<Uuid, Value>,
    faults: Vec<(String, Fault)>,
    calls: Vec<String>,
    gate: Arc<tokio::sync::RwLock<()>>,
}

impl FakeOpenHands {
    pub async fn start(server: Server) -> Self {
        let model = Arc::new(Mutex::new(Model {
            speaks_v0: server == Server::SelfHosted,
            ..Model::default()
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(model.clone());
        let server = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self { url, model, server }
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Adds a V1 conversation that has just changed.
    pub fn conversation(&self, id: Uuid, sandbox: &str, execution: Option<&str>) {
        let now = video_ingest::clock::Clock::default().now();
        let row = json!({
            "id": id.simple().to_string(), "sandbox_id": "sb-1", "sandbox_status": sandbox,
            "execution_status": execution, "title": PROMPT, "session_api_key": SESSION_KEY,
            "created_at": now, "updated_at": now,
        });
        self.model().conversations.insert(id, row);
    }

    /// Deletes a V1 conversation.
    pub fn forget(&self, id: Uuid) {
        self.model().conversations.remove(&id);
    }

    /// Changes a V1 conversation's execution status.
    pub fn state(&self, id: Uuid, status: &str) {
        self.update(id, "execution_status", json!(status));
    }

    /// Adds events about other parts of a V1 conversation's state.
    pub fn chatter(&self, id: Uuid, times: usize) {
        for _ in 0..times {
            self.update(id, "stats", json!({"last_prompt": PROMPT}));
        }
    }

    fn update(&self, id: Uuid, key: &str, value: Value) {
        let event = json!({"kind": "ConversationStateUpdateEvent", "key": key, "value": value});
        self.model().events.entry(id).or_default().insert(0, event);
    }

    /// Adds the error of a V1 conversation's run.
    pub fn error(&self, id: Uuid, code: &str, kind: &str, detail: &str) {
        let classification = json!({"kind": kind, "retryable": false});
        let event = json!({"kind": "ConversationErrorEvent", "source": "environment", "code": code,
            "detail": detail, "classification": classification});
        self.model().events.entry(id).or_default().insert(0, event);
    }

    /// Adds a V1 start task.
    pub fn start_task(&self, id: Uuid, status: &str, detail: Option<&str>, led_to: Option<Uuid>) {
        let request = json!({"initial_message": {"content": [{"type": "text", "text": PROMPT}]}});
        let task = json!({
            "id": id.simple().to_string(), "status": status, "detail": detail,
            "app_conversation_id": led_to.map(|id| id.simple().to_string()), "request": request,
        });
        self.model().tasks.insert(id, task);
    }

    /// Adds a V0 conversation.
    pub fn v0(&self, id: Uuid, status: &str) {
        let row = json!({
            "conversation_id": id.simple().to_string(), "status": status, "title": PROMPT,
            "session_api_key": SESSION_KEY,
        });
        self.model().v0.insert(id, row);
    }

    /// Changes a V0 agent's state.
    pub fn v0_state(&self, id: Uuid, state: &str) {
        let extras = json!({"agent_state": state, "reason": ""});
        self.v0_event(
            id,
            json!({"observation": "agent_state_changed", "extras": extras}),
        );
    }

    /// Adds other events of a V0 agent.
    pub fn v0_chatter(&self, id: Uuid, times: usize) {
        for _ in 0..times {
            self.v0_event(
                id,
                json!({"action": "message", "args": {"content": PROMPT}}),
            );
        }
    }

    fn v0_event(&self, id: Uuid, mut event: Value) {
        let mut model = self.model();
        let events = model.events.entry(id).or_default();
        event["id"] = json!(events.len());
        events.insert(0, event);
    }

    /// Injects a fault into every call whose path or query contains `part`.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.model().faults.push((part.to_owned(), fault));
    }

    /// Removes every fault.
    pub fn clear_faults(&self) {
        self.model().faults.clear();
    }

    /// Holds all answers until the guard is dropped.
    pub async fn hold(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        let gate = self.model().gate.clone();
        gate.write_owned().await
    }

    /// Path and query of each call since the last time that this was called.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.model().calls)
    }
}

impl Drop for FakeOpenHands {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(model): State<Arc<Mutex<Model>>>, uri: Uri, headers: HeaderMap) -> Response {
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    let (fault, gate) = {
        let mut model = model.lock().unwrap();
        let call = uri.to_string();
        model.calls.push(call.clone());
        let hit = model.faults.iter().find(|(part, _)| call.contains(part));
        (hit.map(|(_, fault)| *fault), model.gate.clone())
    };
    let _open = gate.read().await;
    if let Some(fault) = fault {
        return fail(fault).await;
    }
    let key = headers.get(header::AUTHORIZATION);
    if key.is_none_or(|key| *key != format!("Bearer {KEY}")) {
        return error(
            StatusCode::UNAUTHORIZED,
            json!({"error": "Invalid API key"}),
        );
    }
    let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let model = model.lock().unwrap();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments[..] {
        ["api", "v1", "app-conversations"] => by_ids(&model.conversations, &query),
        ["api", "v1", "app-conversations", "start-tasks"] => by_ids(&model.tasks, &query),
        ["api", "v1", "conversation", id, "events", "search"] => model.event_page(id, &query),
        ["api", "conversations", id] if model.speaks_v0 => {
            let row = id.parse().ok().and_then(|id: Uuid| model.v0.get(&id));
            json(&json!(row))
        }
        ["api", "conversations", id, "events"] if model.speaks_v0 => {
            model.v0_event_page(id, &query)
        }
        _ => page(),
    }
}

fn by_ids(rows: &HashMap<Uuid, Value>, query: &[(String, String)]) -> Response {
    let ids = query.iter().filter(|(name, _)| name == "ids");
    let ids: Result<Vec<Uuid>, _> = ids.map(|(_, id)| id.parse()).collect();
    match ids {
        Ok(ids) if ids.len() < 100 => json(&ids.iter().map(|id| rows.get(id)).collect::<Vec<_>>()),
        Ok(_) => error(StatusCode::BAD_REQUEST, json!({"detail": "Too many ids"})),
        Err(_) => error(StatusCode::BAD_REQUEST, json!({"detail": "Invalid UUID"})),
    }
}

impl Model {
    fn event_page(&self, id: &str, query: &[(String, String)]) -> Response {
        let kind = value(query, "kind__eq").unwrap();
        assert_eq!(value(query, "sort_order"), Some("TIMESTAMP_DESC"));
        let limit: usize = value(query, "limit").unwrap().parse().unwrap();
        let from: usize = value(query, "page_id").map_or(0, |id| id.parse().unwrap());
        let none = Vec::new();
        let events = self.events.get(&id.parse().unwrap()).unwrap_or(&none);
        let events: Vec<_> = events
            .iter()
            .filter(|event| event["kind"] == kind)
            .collect();
        let items: Vec<_> = events.iter().skip(from).take(limit).collect();
        let next = from + items.len();
        let next = (next < events.len()).then(|| next.to_string());
        json(&json!({"items": items, "next_page_id": next}))
    }

    fn v0_event_page(&self, id: &str, query: &[(String, String)]) -> Response {
        assert_eq!(value(query, "reverse"), Some("true"));
        let limit: usize = value(query, "limit").unwrap().parse().unwrap();
        let end: Option<usize> = value(query, "end_id").map(|id| id.parse().unwrap());
        let none = Vec::new();
        let events = self.events.get(&id.parse().unwrap()).unwrap_or(&none);
        let from = end.map_or(0, |end| events.len() - 1 - end);
        let page: Vec<_> = events.iter().skip(from).take(limit).collect();
        let has_more = from + page.len() < events.len();
        json(&json!({"events": page, "has_more": has_more}))
    }
}

fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = query.iter().find(|(key, _)| key == name)?;
    Some(&found.1)
}

fn json(body: &impl serde::Serialize) -> Response {
    axum::Json(body).into_response()
}

fn error(status: StatusCode, body: Value) -> Response {
    (status, axum::Json(body)).into_response()
}

fn page() -> Response {
    axum::response::Html(PAGE).into_response()
}

async fn fail(fault: Fault) -> Response {
    let as_json = [(header::CONTENT_TYPE, "application/json")];
    match fault {
        Fault::Html => axum::response::Html("Sign in to OpenHands").into_response(),
        Fault::HtmlAsJson => (as_json, PAGE).into_response(),
        Fault::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap();
            error(status, json!({"error": PROMPT}))
        }
        Fault::TooMany(wait) => {
            let mut response = error(StatusCode::TOO_MANY_REQUESTS, json!({"error": "slow down"}));
            if let Some(seconds) = wait {
                let headers = response.headers_mut();
                headers.insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
        Fault::Login => Redirect::to("/login").into_response(),
        Fault::Json(text) => (as_json, text).into_response(),
        Fault::Endless => (as_json, format!("[null{}]", " ".repeat(9 << 20))).into_response(),
        Fault::Stall => std::future::pending().await,
    }
}
