//! `POST /webhooks/github`: reads a delivery, verifies its signature, records it and responds with the requested
//! videos. No network call is made before the response.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::{AppState, ErrorCode, Problem, header_value};
use crate::db::Delivery;
use crate::domain::ids::GitSha;
use crate::domain::push::{self, Decision, Push};
use crate::domain::signature::Verifier;
use crate::telemetry::metrics;
use crate::telemetry::refused::refused;

/// The maximum size of a JSON body, in bytes. GitHub limits payloads to 25 MB.
const JSON_BYTES_MAX: usize = 25 << 20;

/// The maximum size of a form body, in bytes: the same payload, percent-encoded.
const FORM_BYTES_MAX: usize = 40 << 20;

/// Bodies up to this size, in bytes, are read without a permit. Most of GitHub's are smaller.
const SMALL_BODY_BYTES_MAX: usize = 16 << 10;

/// Up to [`MEDIUM_BODIES_MAX`] bodies of at most this size, in bytes, are read at once. Larger bodies are
/// read one at a time.
const MEDIUM_BODY_BYTES_MAX: usize = 1 << 20;

/// See [`MEDIUM_BODY_BYTES_MAX`].
const MEDIUM_BODIES_MAX: usize = 16;

/// One large body that is being read and two that wait; further ones are rejected at once.
const LARGE_BODIES_MAX: usize = 3;

/// How long a body waits for a permit before it is rejected.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum time to receive a body. GitHub waits ten seconds for a response.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum length of the event's name and of the delivery's GUID, in bytes. GitHub's GUIDs have 36.
const HEADER_BYTES_MAX: usize = 100;

/// The media type of a form body.
const FORM: &str = "application/x-www-form-urlencoded";

/// Limits the memory of bodies whose signature is not verified yet.
#[derive(Debug)]
pub struct BodyPermits {
    medium: Semaphore,
    large: Semaphore,
    large_queue: Semaphore,
}

impl Default for BodyPermits {
    fn default() -> Self {
        Self {
            medium: Semaphore::new(MEDIUM_BODIES_MAX),
            large: Semaphore::new(1),
            large_queue: Semaphore::new(LARGE_BODIES_MAX),
        }
    }
}

/// Permission to hold a body of up to `bytes_max` bytes. It must outlive the body.
struct BodyPermit<'a> {
    bytes_max: usize,
    _permits: Vec<SemaphorePermit<'a>>,
}

impl BodyPermit<'_> {
    const SMALL: Self = Self {
        bytes_max: SMALL_BODY_BYTES_MAX,
        _permits: Vec::new(),
    };
}

impl BodyPermits {
    /// Waits for a permit for a body of `bytes`. `limit` is the maximum size of large bodies.
    async fn acquire(&self, bytes: usize, limit: usize) -> Result<BodyPermit<'_>, Problem> {
        if bytes <= MEDIUM_BODY_BYTES_MAX {
            return Ok(BodyPermit {
                bytes_max: MEDIUM_BODY_BYTES_MAX,
                _permits: vec![acquire(&self.medium).await?],
            });
        }
        let queued = self.large_queue.try_acquire().map_err(|_| busy())?;
        Ok(BodyPermit {
            bytes_max: limit,
            _permits: vec![queued, acquire(&self.large).await?],
        })
    }
}

async fn acquire(permits: &Semaphore) -> Result<SemaphorePermit<'_>, Problem> {
    let permit = timeout(PERMIT_TIMEOUT, permits.acquire()).await;
    permit.ok().and_then(Result::ok).ok_or_else(busy)
}

fn busy() -> Problem {
    Problem::new(
        ErrorCode::Busy,
        "The server is reading too many large request bodies. Redeliver the webhook in a few seconds.",
    )
}

/// `POST /webhooks/github`
pub async fn receive(State(app): State<AppState>, request: Request) -> Response {
    let started = Instant::now();
    let result = handle(&app, request).await;
    if let Err(problem) = &result
        && let Some(reason) = problem.code().refusal()
    {
        // Without the GUID, which an unauthenticated client may have invented.
        refused(reason);
    }
    let response = result.into_response();
    metrics::delivery(response.status().as_u16(), started.elapsed());
    response
}

async fn handle(app: &AppState, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    // `read` drops the body and its permit, so that neither is held while the database is called.
    match read(app, &parts.headers, body).await? {
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
    headers: &'h HeaderMap,
    body: Body,
) -> Result<Event<'h>, Problem> {
    let media_type = media_type(headers);
    let form = media_type == FORM;
    let limit = if form { FORM_BYTES_MAX } else { JSON_BYTES_MAX };
    let read = read_verified(app, headers, body, limit);
    let (body, _permit) = timeout(BODY_TIMEOUT, read).await.map_err(|_| {
        Problem::malformed(
            "The request body took longer than 10 seconds to arrive. Redeliver the webhook.",
        )
    })??;

    let event = required_header(headers, "x-github-event")?;
    let guid = required_header(headers, "x-github-delivery")?;
    let decoded;
    let payload = match media_type {
        "application/json" => &body[..],
        FORM => {
            decoded = push::payload_of_form(&body)?;
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
        "ping" => return Ok(Event::Other(json!({"status": "pong"}))),
        other => {
            return Ok(ignored(&format!("event {other} is not supported")));
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
        Decision::Ignored { reason } => ignored(&reason),
        Decision::Accepted(intake) => Event::Push(guid, intake),
    })
}

fn ignored<'h>(reason: &str) -> Event<'h> {
    Event::Other(json!({"status": "ignored", "reason": reason}))
}

async fn record(app: &AppState, guid: &str, intake: push::Intake) -> Result<Response, Problem> {
    let delivery = Delivery {
        guid: guid.to_owned(),
        event: "push".to_owned(),
        before: intake.before.unwrap_or(GitSha::from_bytes([0; 20])),
        after: intake.after,
        scan: intake.scan,
        videos: intake.videos,
        ignored: json!(intake.ignored),
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

/// Reads the body and computes its signature. The buffer grows with the bytes received, not with the
/// declared length, so that clients that declare much and send little use little memory.
async fn read_verified<'a>(
    app: &'a AppState,
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
) -> Result<(Bytes, BodyPermit<'a>), Problem> {
    let too_large = || {
        Problem::new(
            ErrorCode::PayloadTooLarge,
            format!("The request body is larger than {limit} bytes. Send a smaller body."),
        )
    };
    let declared = header_value(headers, header::CONTENT_LENGTH)
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    if declared > limit {
        return Err(too_large());
    }
    let mut verifier = Verifier::new(&app.webhook_secrets);
    let mut permit = if declared > MEDIUM_BODY_BYTES_MAX {
        // If there is no permit, a large body is rejected before the client sends it.
        app.body_permits.acquire(declared, limit).await?
    } else {
        BodyPermit::SMALL
    };
    let mut bytes = BytesMut::with_capacity(declared.min(SMALL_BODY_BYTES_MAX));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::malformed("The request body is incomplete. Redeliver the webhook.")
        })?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        let length = bytes.len() + chunk.len();
        if length > limit {
            return Err(too_large());
        }
        if length > permit.bytes_max {
            permit = app
                .body_permits
                .acquire(length.max(declared), limit)
                .await?;
            bytes.reserve(declared.saturating_sub(bytes.len()));
        }
        verifier.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    let signature = header_value(headers, "x-hub-signature-256");
    if !verifier.verify(signature) {
        return Err(Problem::new(
            ErrorCode::BadSignature,
            "X-Hub-Signature-256 does not match the request body. Set the webhook's secret to the value of GITHUB_WEBHOOK_SECRET.",
        ));
    }
    Ok((bytes.freeze(), permit))
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
