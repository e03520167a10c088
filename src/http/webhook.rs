//! `POST /webhooks/github`: reads a delivery, verifies its signature, records it and responds with the requested
//! videos. No network call is made before the response.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::ReceivedBody;
use super::connections::Connection;
use super::{AppState, ErrorCode, Problem, header_value};
use crate::db::Delivery;
use crate::domain::ids::GitSha;
use crate::domain::push::{self, Decision, Ignored, Push};
use crate::domain::signature::{Verifier, is_nonce, proof};
use crate::telemetry::metrics;
use crate::telemetry::refusals::Why;
use crate::telemetry::refused::refused;

/// The maximum size of a JSON body, in bytes. GitHub limits payloads to 25 MB.
const JSON_BYTES_MAX: usize = 25 << 20;

/// The maximum size of a form body, in bytes: the same payload, percent-encoded.
const FORM_BYTES_MAX: usize = 40 << 20;

/// The maximum length of the event's name and of the delivery's GUID, in bytes. GitHub's GUIDs have 36.
const HEADER_BYTES_MAX: usize = 100;

/// The media type of a form body.
const FORM: &str = "application/x-www-form-urlencoded";

/// `POST /webhooks/github`
pub async fn receive(
    State(app): State<AppState>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let is_github = request.headers().contains_key("x-github-event");
    let result = handle(&app, &connection, request).await;
    if let Err(problem) = &result
        && let Some(reason) = problem.code().refusal()
    {
        // Without the GUID, which an unauthenticated client may have invented.
        refused(reason);
        let why = if is_github {
            Why::Refused(reason)
        } else {
            Why::NotGithub(reason)
        };
        app.refusals.add(why, "", app.clock.now_ms());
    }
    let response = result.into_response();
    metrics::delivery(response.status().as_u16(), started.elapsed());
    response
}

async fn handle(
    app: &AppState,
    connection: &Connection,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    // `read` drops the body and its memory, so that neither is held while the database is called.
    match read(app, connection, &parts.headers, body).await? {
        Event::Other(response) => Ok(Json(response).into_response()),
        Event::Push(guid, intake) => record(app, guid, intake).await,
    }
}

/// A delivery with a valid signature.
enum Event<'h> {
    /// Nothing has to be recorded. Contains the response.
    Other(Value),
    /// The delivery's GUID and the work it requests.
    Push(&'h str, push::Intake),
}

/// Checks size, signature, headers and payload, in this order.
async fn read<'h>(
    app: &AppState,
    connection: &Connection,
    headers: &'h HeaderMap,
    body: Body,
) -> Result<Event<'h>, Problem> {
    let media_type = media_type(headers);
    let form = media_type == FORM;
    let limit = if form { FORM_BYTES_MAX } else { JSON_BYTES_MAX };
    let received = read_verified(app, connection, headers, body, limit).await?;
    let body = received.bytes();
    connection.trust();

    let event = required_header(headers, "x-github-event")?;
    let guid = required_header(headers, "x-github-delivery")?;
    let decoded;
    let payload = match media_type {
        "application/json" => body,
        FORM => {
            decoded = push::payload_of_form(body)?;
            &decoded[..]
        }
        _ => {
            return Err(Problem::new(
                ErrorCode::UnsupportedMediaType,
                "The content type is not supported. Set the webhook's content type to application/json.",
            ));
        }
    };
    match event {
        "push" => {}
        "ping" => return Ok(Event::Other(pong(app, payload))),
        other => {
            let reason = format!("event {other} is not supported");
            return Ok(ignored(app, Ignored::Other, &reason));
        }
    }
    let push = Push::parse(payload)?;
    let decision = push::decide(
        &push,
        &app.repository,
        app.branch.as_deref(),
        &app.videos_dir,
    )?;
    Ok(match decision {
        Decision::Ignored { kind, reason } => ignored(app, kind, &reason),
        Decision::Accepted(intake) => Event::Push(guid, intake),
    })
}

/// The response to a `ping`. One from `doctor` has a nonce, and gets the proof that this server has the secret.
fn pong(app: &AppState, payload: &[u8]) -> Value {
    #[derive(Deserialize)]
    struct Ping {
        nonce: String,
    }
    let ping: Option<Ping> = serde_json::from_slice(payload).ok();
    match ping.filter(|ping| is_nonce(&ping.nonce)) {
        Some(ping) => {
            json!({"status": "pong", "proof": proof(&app.webhook_secrets[0], &ping.nonce)})
        }
        None => json!({"status": "pong"}),
    }
}

fn ignored<'h>(app: &AppState, kind: Ignored, reason: &str) -> Event<'h> {
    // Everybody who can push chooses names of branches and files, and one may contain a secret by mistake.
    let reason = &app.redactor.without_secrets(reason);
    app.refusals
        .add(Why::Ignored(kind), reason, app.clock.now_ms());
    Event::Other(json!({"status": "ignored", "reason": reason}))
}

async fn record(app: &AppState, guid: &str, intake: push::Intake) -> Result<Response, Problem> {
    let ignored = json!(intake.ignored).to_string();
    let ignored = app.redactor.without_secrets(&ignored);
    let mut others = intake.ignored.iter();
    if let Some(mp4) = others.find(|file| file.path.ends_with(".mp4")) {
        let reason = format!("{} is {}", mp4.path, mp4.reason);
        let reason = app.redactor.without_secrets(&reason);
        let why = Why::Ignored(Ignored::Name);
        app.refusals.add(why, &reason, app.clock.now_ms());
    }
    let delivery = Delivery {
        guid: guid.to_owned(),
        event: "push".to_owned(),
        before: intake.before.unwrap_or(GitSha::from_bytes([0; 20])),
        after: intake.after,
        scan: intake.scan,
        videos: intake.videos,
        ignored: serde_json::from_str(&ignored).unwrap_or_default(),
    };
    let videos: Vec<_> = delivery
        .videos
        .iter()
        .map(|key| json!({"lesson_id": key.lesson_id, "video_id": key.video_id}))
        .collect();
    let body = json!({
        "delivery": guid,
        "status": "accepted",
        "scan": delivery.scan,
        "videos": videos,
        "ignored": delivery.ignored,
    });
    let (scan, after) = (delivery.scan, delivery.after);
    app.intake.record(delivery).await.map_err(|_| {
        Problem::new(
            ErrorCode::DatabaseUnavailable,
            "The delivery was not recorded because the database is unavailable. Redeliver the webhook.",
        )
    })?;
    tracing::info!(delivery.id = guid, videos = videos.len(), scan, %after, "delivery accepted");
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// Reads the body and verifies its signature.
async fn read_verified<'a>(
    app: &'a AppState,
    connection: &Connection,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<ReceivedBody<'a>, Problem> {
    let declared = header_value(headers, header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.parse().ok());
    let mut verifier = Verifier::new(&app.webhook_secrets);
    let inspect = |part: &[u8]| verifier.update(part);
    let read = app
        .body_memory
        .read(connection, body, declared, limit, inspect);
    let received = read.await?;
    let signature = header_value(headers, "x-hub-signature-256");
    if !verifier.verify(signature) {
        return Err(Problem::new(
            ErrorCode::BadSignature,
            "X-Hub-Signature-256 does not match the request body. Set the webhook's secret to the value of GITHUB_WEBHOOK_SECRET.",
        ));
    }
    Ok(received)
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = header_value(headers, header::CONTENT_TYPE).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

fn required_header<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Problem> {
    header_value(headers, name)
        .filter(|value| (1..=HEADER_BYTES_MAX).contains(&value.len()))
        .ok_or_else(|| {
            Problem::malformed(format!(
                "The {name} header is missing or invalid. Send it the way GitHub does."
            ))
        })
}
