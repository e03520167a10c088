//! Bytes in, verified, recorded, answered. Nothing else happens before the answer: no network call,
//! nothing read from GitHub.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::{AppState, ErrorCode, Problem};
use crate::db::Delivery;
use crate::domain::ids::GitSha;
use crate::domain::push::{self, Decision, Push};
use crate::domain::signature::Verifier;

/// The largest JSON body, in bytes. Source: GitHub sends no payload over 25 MB.
const JSON_BYTES_MAX: usize = 25 << 20;

/// The largest form body, in bytes: the same payload, percent-encoded.
const FORM_BYTES_MAX: usize = 40 << 20;

/// Bodies up to this size, in bytes, are read however many come at once: nearly all of GitHub's.
const SMALL_BODY_BYTES_MAX: usize = 16 << 10;

/// Bodies up to this size, in bytes, are read [`MEDIUM_BODIES_MAX`] at a time, larger ones one at a time.
const MEDIUM_BODY_BYTES_MAX: usize = 1 << 20;

/// See [`MEDIUM_BODY_BYTES_MAX`].
const MEDIUM_BODIES_MAX: usize = 16;

/// One large body being read and two waiting; the next one is sent away.
const LARGE_BODIES_MAX: usize = 3;

/// A body waits for its place for so long, then it is sent away.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);

/// A body that takes longer is given up: GitHub itself waits for ten seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest delivery GUID that is taken, in bytes; GitHub's have 36.
const GUID_BYTES_MAX: usize = 100;

/// Who may hold how much of a body whose signature is not known yet.
#[derive(Debug)]
pub struct Places {
    medium: Semaphore,
    large: Semaphore,
    large_queue: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            medium: Semaphore::new(MEDIUM_BODIES_MAX),
            large: Semaphore::new(1),
            large_queue: Semaphore::new(LARGE_BODIES_MAX),
        }
    }
}

/// A body's place; dropped with the body.
struct Place<'a> {
    bytes_max: usize,
    _permits: Vec<SemaphorePermit<'a>>,
}

impl Place<'_> {
    const SMALL: Self = Self {
        bytes_max: SMALL_BODY_BYTES_MAX,
        _permits: Vec::new(),
    };
}

impl Places {
    /// A place for a body of `bytes`, which is at most `limit`, once there is one.
    async fn take(&self, bytes: usize, limit: usize) -> Result<Place<'_>, Problem> {
        if bytes <= MEDIUM_BODY_BYTES_MAX {
            return Ok(Place {
                bytes_max: MEDIUM_BODY_BYTES_MAX,
                _permits: vec![free(&self.medium).await?],
            });
        }
        let queued = self.large_queue.try_acquire().map_err(|_| busy())?;
        Ok(Place {
            bytes_max: limit,
            _permits: vec![queued, free(&self.large).await?],
        })
    }
}

async fn free(places: &Semaphore) -> Result<SemaphorePermit<'_>, Problem> {
    let free = timeout(PLACE_TIMEOUT, places.acquire()).await;
    free.map_err(|_| busy())?.map_err(|_| busy())
}

fn busy() -> Problem {
    Problem::new(
        ErrorCode::Busy,
        "other large bodies are being read; redeliver in a moment",
    )
}

/// `POST /webhooks/github`: size, signature, headers, body, in this order.
pub async fn receive(State(app): State<AppState>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    // The body and its place are gone before anything is waited for.
    let (guid, intake) = match read(&app, &headers, body).await? {
        Asked::Pong => return Ok(Json(json!({"status": "pong"})).into_response()),
        Asked::Nothing(reason) => {
            return Ok(Json(json!({"status": "ignored", "reason": reason})).into_response());
        }
        Asked::Videos(guid, intake) => (guid, intake),
    };
    accept(&app, guid, intake).await
}

/// What a delivery wants.
enum Asked<'h> {
    Pong,
    /// For this reason.
    Nothing(String),
    /// Under this GUID.
    Videos(&'h str, push::Intake),
}

async fn read<'h>(
    app: &AppState,
    headers: &'h HeaderMap,
    body: Body,
) -> Result<Asked<'h>, Problem> {
    let form = media_type(headers) == "application/x-www-form-urlencoded";
    let limit = if form { FORM_BYTES_MAX } else { JSON_BYTES_MAX };
    let read = read_verified(app, headers, body, limit);
    let (body, _place) = timeout(BODY_TIMEOUT, read).await.map_err(|_| {
        Problem::new(
            ErrorCode::Malformed,
            "the body did not arrive within ten seconds",
        )
    })??;

    let event = text(headers, "x-github-event")?;
    let guid = text(headers, "x-github-delivery")?;
    let payload: Cow<'_, [u8]> = match media_type(headers) {
        "application/json" => Cow::Borrowed(&body),
        "application/x-www-form-urlencoded" => match push::payload_of_form(&body) {
            Ok(Cow::Borrowed(payload)) => Cow::Borrowed(payload.as_bytes()),
            Ok(Cow::Owned(payload)) => Cow::Owned(payload.into_bytes()),
            Err(error) => return Err(Problem::new(ErrorCode::Malformed, error.to_string())),
        },
        _ => {
            return Err(Problem::new(
                ErrorCode::UnsupportedMediaType,
                "set the webhook's content type to application/json",
            ));
        }
    };
    match event {
        "push" => {}
        "ping" => return Ok(Asked::Pong),
        other => return Ok(Asked::Nothing(format!("event {other} is not push"))),
    }
    let push =
        Push::parse(&payload).map_err(|e| Problem::new(ErrorCode::Malformed, e.to_string()))?;
    let decision = push::decide(
        &push,
        &app.repository,
        app.branch.as_deref(),
        &app.videos_dir,
    );
    Ok(match decision {
        Decision::Ignored { reason } => Asked::Nothing(reason),
        Decision::Accepted(intake) => Asked::Videos(guid, intake),
    })
}

async fn accept(app: &AppState, guid: &str, intake: push::Intake) -> Result<Response, Problem> {
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
    let answer = json!({
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
            "not recorded: the database does not answer; redeliver",
        )
    })?;
    tracing::info!(delivery.id = guid, videos = videos.len(), scan, %after, "accepted");
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Reads the body while its signature is computed. It grows with what arrives and not with what was
/// announced: who announces much and sends little holds little.
async fn read_verified<'a>(
    app: &'a AppState,
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
) -> Result<(Bytes, Place<'a>), Problem> {
    let too_large = || {
        Problem::new(
            ErrorCode::PayloadTooLarge,
            format!("more than {limit} bytes"),
        )
    };
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or_default();
    if declared > limit {
        return Err(too_large());
    }
    let mut verifier = Verifier::new(&app.webhook_secrets);
    let mut place = match declared > MEDIUM_BODY_BYTES_MAX {
        // Sent away before it is sent, if there is no place for it.
        true => app.places.take(declared, limit).await?,
        false => Place::SMALL,
    };
    let mut bytes = BytesMut::with_capacity(declared.min(SMALL_BODY_BYTES_MAX));
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Problem::new(ErrorCode::Malformed, "the body was cut off"))?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        let length = bytes.len() + chunk.len();
        if length > limit {
            return Err(too_large());
        }
        if length > place.bytes_max {
            place = app.places.take(length.max(declared), limit).await?;
            bytes.reserve(declared.saturating_sub(bytes.len()));
        }
        verifier.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    let signature = headers
        .get("x-hub-signature-256")
        .and_then(|value| value.to_str().ok());
    match verifier.verify(signature) {
        true => Ok((bytes.freeze(), place)),
        false => Err(Problem::new(
            ErrorCode::BadSignature,
            "X-Hub-Signature-256 does not match: set the webhook's secret to GITHUB_WEBHOOK_SECRET",
        )),
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
}

fn text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Problem> {
    let value = headers.get(name).and_then(|v| v.to_str().ok());
    value
        .filter(|v| !v.is_empty() && v.len() <= GUID_BYTES_MAX)
        .ok_or_else(|| {
            Problem::new(
                ErrorCode::Malformed,
                format!("the header {name} is missing or unusable"),
            )
        })
}
