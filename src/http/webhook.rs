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
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::{ErrorCode, Problem, Surface};
use crate::db::Delivery;
use crate::domain::ids::GitSha;
use crate::domain::push::{self, Decision, Push};
use crate::domain::signature::Verifier;

/// The largest JSON body, in bytes. Source: GitHub sends no payload over 25 MB.
const JSON_BYTES_MAX: usize = 25 << 20;

/// The largest form body, in bytes: the same payload, percent-encoded.
const FORM_BYTES_MAX: usize = 40 << 20;

/// Larger bodies, in bytes, are read one at a time.
const SMALL_BODY_BYTES_MAX: usize = 1 << 20;

/// One large body being read and two waiting; the next one is sent away.
pub const LARGE_BODIES_MAX: usize = 3;

/// A body that takes longer is given up: GitHub itself waits for ten seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest delivery GUID that is taken, in bytes; GitHub's have 36.
const GUID_BYTES_MAX: usize = 100;

/// `POST /webhooks/github`: size, signature, headers, body, in this order.
pub async fn receive(
    State(surface): State<Surface>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let form = media_type(&headers) == "application/x-www-form-urlencoded";
    let limit = if form { FORM_BYTES_MAX } else { JSON_BYTES_MAX };
    let read = read_verified(&surface, &headers, body, limit);
    let (body, _large) = timeout(BODY_TIMEOUT, read).await.map_err(|_| {
        Problem::new(
            ErrorCode::Malformed,
            "the body did not arrive within ten seconds",
        )
    })??;

    let event = text(&headers, "x-github-event")?;
    let guid = text(&headers, "x-github-delivery")?;
    let payload: Cow<'_, [u8]> = match media_type(&headers) {
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
        "ping" => return Ok(Json(json!({"status": "pong"})).into_response()),
        other => return Ok(ignored(&format!("event {other} is not push"))),
    }
    let push =
        Push::parse(&payload).map_err(|e| Problem::new(ErrorCode::Malformed, e.to_string()))?;
    match push::decide(
        &push,
        &surface.repository,
        surface.branch.as_deref(),
        &surface.videos_dir,
    ) {
        Decision::Ignored { reason } => Ok(ignored(&reason)),
        Decision::Accepted(intake) => accept(&surface, event, guid, intake).await,
    }
}

async fn accept(
    surface: &Surface,
    event: &str,
    guid: &str,
    intake: push::Intake,
) -> Result<Response, Problem> {
    let delivery = Delivery {
        guid: guid.to_owned(),
        event: event.to_owned(),
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
    surface.intake.record(delivery).await.map_err(|_| {
        Problem::new(
            ErrorCode::DatabaseUnavailable,
            "not recorded: the database does not answer; redeliver",
        )
    })?;
    tracing::info!(delivery.id = guid, videos = videos.len(), scan, %after, "accepted");
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

fn ignored(reason: &str) -> Response {
    Json(json!({"status": "ignored", "reason": reason})).into_response()
}

/// Reads the body while its signature is computed. The permit keeps other large bodies waiting.
async fn read_verified<'a>(
    surface: &'a Surface,
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
) -> Result<(Bytes, Option<(SemaphorePermit<'a>, SemaphorePermit<'a>)>), Problem> {
    let too_large = || {
        Problem::new(
            ErrorCode::PayloadTooLarge,
            format!("more than {limit} bytes"),
        )
    };
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut verifier = Verifier::new(&surface.webhook_secrets);
    let mut bytes = BytesMut::with_capacity(declared.unwrap_or_default().min(SMALL_BODY_BYTES_MAX));
    let mut permits = None;
    if declared.is_some_and(|length| length > SMALL_BODY_BYTES_MAX) {
        permits = Some(large_body(surface).await?);
    }
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Problem::new(ErrorCode::Malformed, "the body was cut off"))?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        if permits.is_none() && bytes.len() + chunk.len() > SMALL_BODY_BYTES_MAX {
            permits = Some(large_body(surface).await?);
        }
        verifier.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    let signature = headers
        .get("x-hub-signature-256")
        .and_then(|value| value.to_str().ok());
    match verifier.verify(signature) {
        true => Ok((bytes.freeze(), permits)),
        false => Err(Problem::new(
            ErrorCode::BadSignature,
            "X-Hub-Signature-256 does not match: set the webhook's secret to GITHUB_WEBHOOK_SECRET",
        )),
    }
}

async fn large_body(
    surface: &Surface,
) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), Problem> {
    let busy = || {
        Problem::new(
            ErrorCode::Busy,
            "other large bodies are being read; redeliver in a moment",
        )
    };
    let queued = surface.large_body_queue.try_acquire().map_err(|_| busy())?;
    let reading = surface.large_body.acquire().await.map_err(|_| busy())?;
    Ok((queued, reading))
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
