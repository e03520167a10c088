//! The API of the repository's webhooks and their deliveries.
//!
//! Unlike GitHub, a ping or an attempt is over before the call that asked for it returns.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::routes::{Problem, authorize, number, with_rate_limit};
use super::{Delivery, Shared, State, webhooks};

/// The longest body of a call about a hook, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Entries of a page unless `per_page` says otherwise.
const PAGE_ENTRIES: usize = 30;
/// How GitHub shows that there is a secret.
const HIDDEN: &str = "********";

/// A hook and its history.
pub(super) struct Hook {
    id: u64,
    /// As the API shows it.
    json: Value,
    secret: Option<String>,
    /// Every attempt, oldest first, as the API shows it, and what was sent.
    log: Vec<(Value, Delivery)>,
}

impl Hook {
    /// Takes over what a call's body says.
    fn change(&mut self, body: &Value) {
        for name in ["active", "events"] {
            if !body[name].is_null() {
                self.json[name] = body[name].clone();
            }
        }
        let Some(config) = body["config"].as_object() else {
            return;
        };
        for (name, value) in config {
            self.json["config"][name] = value.clone();
        }
        if let Some(secret) = config.get("secret") {
            self.secret = secret.as_str().map(str::to_owned);
            self.json["config"]["secret"] = json!(HIDDEN);
        }
    }
}

impl State {
    /// Adds a hook with GitHub's own defaults and returns its id.
    pub(super) fn add_hook(&mut self, body: &Value) -> u64 {
        let id = webhooks::HOOK_ID + self.hooks.len() as u64;
        let mut hook = Hook {
            id,
            json: json!({
                "type": "Repository", "id": id, "name": "web", "active": true, "events": ["push"],
                "config": {"content_type": "form", "insecure_ssl": "0"},
            }),
            secret: None,
            log: Vec::new(),
        };
        hook.change(body);
        self.hooks.push(hook);
        id
    }

    /// Changes a hook as a `PATCH` with this body would.
    pub fn change_hook(&mut self, id: u64, body: &Value) {
        if let Ok(hook) = self.hook(&id.to_string()) {
            hook.change(body);
        }
    }

    /// Records an attempt with this outcome (`OK`, `timed out`, …) and the receiver's status code.
    pub fn record(&mut self, hook: u64, delivery: &Delivery, status: &str, code: u16) {
        let Ok(hook) = self.hook(&hook.to_string()) else {
            return;
        };
        let redelivery = hook.log.iter().any(|(_, old)| old.guid == delivery.guid);
        let attempt = json!({
            "id": 7_000_000_000_u64 + hook.log.len() as u64, "guid": delivery.guid,
            "delivered_at": crate::clock::Clock::default().now(), "redelivery": redelivery, "duration": 0.03,
            "status": status, "status_code": code, "event": delivery.event, "action": null,
            "installation_id": null, "repository_id": super::REPOSITORY_ID, "throttled_at": null,
        });
        hook.log.push((attempt, delivery.clone()));
    }

    fn hook(&mut self, id: &str) -> Result<&mut Hook, Problem> {
        let id: u64 = id.parse().map_err(|_| Problem::not_found())?;
        let hook = self.hooks.iter_mut().find(|hook| hook.id == id);
        hook.ok_or_else(Problem::not_found)
    }
}

impl Shared {
    /// Sends a delivery to a hook's receiver and records the result.
    pub(super) async fn deliver(&self, id: u64, delivery: Delivery) {
        let (url, secret) = {
            let mut state = self.state();
            let Ok(hook) = state.hook(&id.to_string()) else {
                return;
            };
            let url = hook.json["config"]["url"].as_str().unwrap_or_default();
            (url.to_owned(), hook.secret.clone())
        };
        let headers = match &secret {
            Some(secret) => delivery.signed(secret),
            None => delivery.unsigned(),
        };
        let client = reqwest::Client::builder().no_proxy().build();
        let sent = match client {
            Ok(client) => {
                let mut request = client.post(url).body(delivery.body());
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                request.send().await.ok()
            }
            Err(_) => None,
        };
        let status = sent.map(|answer| answer.status());
        let (said, code) = match status {
            Some(status) if status.is_success() => ("OK".to_owned(), status.as_u16()),
            Some(status) => (
                format!("Invalid HTTP Response: {}", status.as_u16()),
                status.as_u16(),
            ),
            None => ("failed to connect to host".to_owned(), 0),
        };
        self.state().record(id, &delivery, &said, code);
    }
}

/// Everything below `/repos/<owner>/<name>/hooks`.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: Body,
    rest: &[&str],
) -> Response {
    let authorized = match authorize(&shared.state(), parts) {
        // Only administrators see hooks.
        Ok(false) => Err(Problem::not_found()),
        Ok(true) => Ok(()),
        Err(problem) => Err(problem),
    };
    let response = match authorized {
        Ok(()) => route(shared, parts, body, rest).await,
        Err(problem) => Err(problem),
    };
    let response = response.unwrap_or_else(|problem| problem.into_response());
    let quota = shared.state().quota;
    with_rate_limit(response, quota)
}

async fn route(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: Body,
    rest: &[&str],
) -> Result<Response, Problem> {
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let ok = |json: Value| Ok(axum::Json(json).into_response());
    match (&parts.method, rest) {
        (&Method::GET, []) => {
            let state = shared.state();
            ok(state.hooks.iter().map(|hook| hook.json.clone()).collect())
        }
        (&Method::POST, []) => {
            let mut state = shared.state();
            let url = &body["config"]["url"];
            let same = |hook: &Hook| hook.json["config"]["url"] == *url;
            if state.hooks.iter().any(same) {
                return Err(Problem::new(422, "Validation Failed"));
            }
            let id = state.add_hook(&body);
            let json = state.hook(&id.to_string())?.json.clone();
            Ok((StatusCode::CREATED, axum::Json(json)).into_response())
        }
        (&Method::PATCH, [id]) => {
            let mut state = shared.state();
            let hook = state.hook(id)?;
            hook.change(&body);
            ok(hook.json.clone())
        }
        (&Method::POST, [id, "pings"]) => {
            let (id, ping) = {
                let mut state = shared.state();
                (state.hook(id)?.id, state.ping())
            };
            shared.deliver(id, ping).await;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        (&Method::GET, [id, "deliveries"]) => deliveries(&mut shared.state(), parts, id),
        (&Method::POST, [id, "deliveries", attempt, "attempts"]) => {
            let (id, delivery) = {
                let mut state = shared.state();
                let hook = state.hook(id)?;
                let mut log = hook.log.iter();
                let found = log.find(|(json, _)| json["id"].as_u64() == attempt.parse().ok());
                (hook.id, found.ok_or_else(Problem::not_found)?.1.clone())
            };
            shared.deliver(id, delivery).await;
            Ok((StatusCode::ACCEPTED, axum::Json(json!({}))).into_response())
        }
        _ => Err(Problem::not_found()),
    }
}

/// A page, newest first; the cursor of the next one is in `Link`.
fn deliveries(state: &mut State, parts: &Parts, id: &str) -> Result<Response, Problem> {
    let from = number(parts, "cursor").unwrap_or(0);
    let max = number(parts, "per_page").unwrap_or(PAGE_ENTRIES).min(100);
    let address = format!("{}{}", state.url, parts.uri.path());
    let hook = state.hook(id)?;
    let page: Vec<_> = hook
        .log
        .iter()
        .rev()
        .skip(from)
        .take(max)
        .map(|(json, _)| json)
        .collect();
    let next = from + page.len();
    let mut response = axum::Json(&page).into_response();
    if next < hook.log.len() {
        let link = format!("<{address}?per_page={max}&cursor={next}>; rel=\"next\"");
        if let Ok(link) = link.parse() {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    Ok(response)
}
