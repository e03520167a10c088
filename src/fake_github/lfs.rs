//! LFS: the batch call at the repository's clone URL, and the storage that its answers point at.

use std::path::Path;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use super::{Shared, State};

/// The most that is read of a batch request, bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long a download link is said to be good for, seconds.
const LINK_SECONDS: u64 = 3600;
/// The media type of the batch call, both ways.
const LFS_JSON: &str = "application/vnd.git-lfs+json";

#[derive(serde::Deserialize)]
struct Batch {
    operation: String,
    objects: Vec<Wanted>,
}

#[derive(serde::Deserialize)]
struct Wanted {
    oid: String,
    size: u64,
}

/// `POST <clone URL>/info/lfs/objects/batch`.
pub(super) async fn batch(
    shared: &Shared,
    repository: &str,
    parts: &Parts,
    body: Body,
) -> Response {
    if repository != format!("{}.git", shared.state().repository.full_name) {
        return refuse(StatusCode::NOT_FOUND, "Not Found");
    }
    if !may_read(&shared.state(), &parts.headers) {
        let mut response = refuse(StatusCode::UNAUTHORIZED, "Credentials needed");
        let challenge = HeaderValue::from_static("Basic realm=\"GitHub\"");
        response.headers_mut().insert("lfs-authenticate", challenge);
        return response;
    }
    let lfs_json = |name| {
        let value = parts.headers.get(name);
        value.is_some_and(|value| value.as_bytes().starts_with(LFS_JSON.as_bytes()))
    };
    if !lfs_json(header::ACCEPT) {
        return refuse(
            StatusCode::NOT_ACCEPTABLE,
            "The Accept header must be application/vnd.git-lfs+json",
        );
    }
    if !lfs_json(header::CONTENT_TYPE) {
        return refuse(
            StatusCode::UNPROCESSABLE_ENTITY,
            "The Content-Type must be application/vnd.git-lfs+json",
        );
    }
    let Ok(body) = axum::body::to_bytes(body, BATCH_BYTES_MAX).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "The request is too large");
    };
    let batch: Batch = match serde_json::from_slice(&body) {
        Ok(batch) => batch,
        Err(_) => return refuse(StatusCode::UNPROCESSABLE_ENTITY, "Invalid JSON"),
    };
    if batch.operation != "download" {
        return refuse(StatusCode::FORBIDDEN, "You must have push access");
    }
    let mut objects = Vec::with_capacity(batch.objects.len());
    for wanted in &batch.objects {
        objects.push(link(shared, wanted).await);
    }
    answer(
        StatusCode::OK,
        &json!({"transfer": "basic", "objects": objects}),
    )
}

/// The link to one object, or what is wrong with it. Either is part of a 200.
async fn link(shared: &Shared, wanted: &Wanted) -> Value {
    let Wanted { oid, size } = wanted;
    let error = |code: u16, message: &str| json!({"oid": oid, "size": size, "error": {"code": code, "message": message}});
    match stored_size(shared, oid).await {
        None => error(404, "Object does not exist on the server"),
        Some(stored) if stored != *size => error(422, "The size does not match the stored object"),
        Some(_) => {
            let storage = shared.state().storage_url.clone();
            let href = format!("{storage}/lfs-storage/{oid}");
            json!({
                "oid": oid,
                "size": size,
                "authenticated": true,
                "actions": {"download": {
                    "href": href,
                    "header": {"Authorization": ticket(oid)},
                    "expires_in": LINK_SECONDS,
                }},
            })
        }
    }
}

async fn stored_size(shared: &Shared, oid: &str) -> Option<u64> {
    let path = {
        let state = shared.state();
        if let Some(object) = state.repository.lfs.get(oid) {
            return object.bytes.as_ref().map(|_| object.size);
        }
        let local = state.local.as_ref().filter(|_| is_oid(oid))?;
        local.lfs_object(oid)
    };
    Some(tokio::fs::metadata(path).await.ok()?.len())
}

/// `GET <storage>/lfs-storage/{oid}`: needs the header that came with the link, and no other credential.
pub(super) async fn download(shared: &Shared, oid: &str, parts: &Parts) -> Response {
    let sent = header_text(&parts.headers, header::AUTHORIZATION);
    let (leaked, bytes, local) = {
        let state = shared.state();
        let leaked = state
            .token
            .as_deref()
            .is_some_and(|token| carries(&sent, token));
        let object = state.repository.lfs.get(oid);
        let bytes = object.and_then(|object| object.bytes.clone());
        let local = state.local.clone();
        (leaked, bytes, local)
    };
    if leaked {
        return refuse(
            StatusCode::BAD_REQUEST,
            "The API token must not be sent to the storage host",
        );
    }
    if sent != ticket(oid) {
        return refuse(
            StatusCode::FORBIDDEN,
            "The request lacks the header that the download link requires",
        );
    }
    let found = match (bytes, local) {
        (Some(bytes), _) => Some(bytes.into_response()),
        (None, Some(local)) if is_oid(oid) => from_disk(&local.lfs_object(oid)).await.ok(),
        (None, _) => None,
    };
    found.unwrap_or_else(|| refuse(StatusCode::NOT_FOUND, "Not Found"))
}

async fn from_disk(path: &Path) -> std::io::Result<Response> {
    let file = tokio::fs::File::open(path).await?;
    let size = HeaderValue::from(file.metadata().await?.len());
    let length = [(header::CONTENT_LENGTH, size)];
    let body = Body::from_stream(ReaderStream::new(file));
    Ok((length, body).into_response())
}

/// The credential that a link carries, good for its object only.
fn ticket(oid: &str) -> String {
    let digest = Sha256::digest(format!("link to {oid}"));
    format!("RemoteAuth {}", hex::encode(digest))
}

/// Git and LFS want HTTP Basic with the token as the password; a bearer token is not looked at.
fn may_read(state: &State, headers: &HeaderMap) -> bool {
    let Some(token) = &state.token else {
        return true;
    };
    let sent = header_text(headers, header::AUTHORIZATION);
    basic_password(&sent).is_some_and(|password| password == *token)
}

fn basic_password(authorization: &str) -> Option<String> {
    let pair = BASE64_STANDARD
        .decode(authorization.strip_prefix("Basic ")?)
        .ok()?;
    let (_user, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(password.to_owned())
}

fn carries(authorization: &str, token: &str) -> bool {
    authorization.contains(token) || basic_password(authorization).is_some_and(|p| p == token)
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> String {
    let value = headers.get(name).map(|value| value.as_bytes());
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

fn is_oid(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn refuse(status: StatusCode, message: &str) -> Response {
    answer(
        status,
        &json!({"message": message, "documentation_url": "https://docs.github.com/repositories/working-with-files/managing-large-files"}),
    )
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, LFS_JSON)];
    (status, content_type, body.to_string()).into_response()
}
