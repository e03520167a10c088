//! Client of Supabase Storage's REST API.
//!
//! The comments about the server's behaviour were measured on supabase/storage 4fa61fba (2026-08-21).

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use reqwest::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, RANGE,
};
use reqwest::{Client, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    BodyStream, BucketLimits, Digests, Hashing, ObjectInfo, ObjectPath, SIGNED_URL_SECONDS,
    VIDEO_MIME,
};
use crate::clock::Clock;
use crate::domain::failure::{Code, Failure};
use crate::format::{Unreachable, causes};
use crate::services::client::{self, InvalidSetting};

/// The longest response that is read, in bytes.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;

/// How much of an error response is logged, in bytes.
const LOGGED_BYTES_MAX: usize = 1024;

/// An upload is sent in pieces of this size, in bytes, so that a stall differs from a slow connection.
const PIECE_BYTES: usize = 64 * 1024;

/// The server closes idle connections after 61 s. They are closed here first, so that no request is
/// sent on a connection that is being closed.
const POOL_IDLE: Duration = Duration::from_secs(45);

/// How long to wait for the storage.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection is established.
    pub connect: Duration,
    /// Until the next byte of an upload is sent: the server has no such limit of its own.
    pub stall: Duration,
    /// Until the last byte of an upload of so many bytes is sent.
    pub transfer: fn(u64) -> Duration,
    /// Until the response, from the last byte of an upload on.
    pub answer: Duration,
    /// For a whole request other than an upload.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            transfer: client::transfer_max,
            answer: Duration::from_secs(60),
            request: Duration::from_secs(20),
        }
    }
}

/// Objects in a project's Supabase Storage.
#[derive(Clone, Debug)]
pub struct SupabaseStore {
    base: Url,
    clock: Clock,
    timeouts: Timeouts,
    /// Reuses no connection: after some error responses the server never reads the rest of the
    /// body, and the next request on that connection would hang until it is reset a minute later.
    uploads: Client,
    calls: Client,
    /// Removed from logged responses.
    key: SecretString,
    /// Whether the key is an `sb_` key, which the gateway translates into a JWT for the server.
    secret_key: bool,
}

impl SupabaseStore {
    /// Creates a client for the project at `supabase_url` (without `/storage/v1`), with its service
    /// key. Makes no call.
    ///
    /// # Errors
    /// The URL is not http(s), the key cannot be sent as a header, or TLS is unavailable.
    pub fn new(
        supabase_url: &Url,
        key: &SecretString,
        clock: Clock,
        timeouts: Timeouts,
    ) -> Result<Self, InvalidSetting> {
        let mut base = supabase_url.clone();
        base.path_segments_mut()
            .map_err(|()| InvalidSetting {
                name: "SUPABASE_URL",
                problem: "must be an HTTP or HTTPS URL",
            })?
            .pop_if_empty()
            .extend(["storage", "v1"]);

        let kept = key.clone();
        let key = key.expose_secret();
        let sensitive = |text: &str| {
            client::sensitive(text).map_err(|_| InvalidSetting {
                name: "SUPABASE_SERVICE_ROLE_KEY",
                problem: "contains invalid characters, such as a line break",
            })
        };
        let secret_key = key.starts_with("sb_");
        let mut headers = HeaderMap::new();
        headers.insert("apikey", sensitive(key)?);
        // An `sb_` key is not a JWT: the server would reject it as a bearer token.
        if !secret_key {
            headers.insert(AUTHORIZATION, sensitive(&format!("Bearer {key}"))?);
        }
        let builder = || client::direct(timeouts.connect).default_headers(headers.clone());
        let uploads = builder()
            .pool_max_idle_per_host(0)
            // After an early error response, unsent bytes are stuck and no code waits for them: the
            // system closes that connection. `upload` has returned by then.
            .tcp_user_timeout(timeouts.stall);
        let calls = builder()
            .pool_idle_timeout(POOL_IDLE)
            .timeout(timeouts.request);
        Ok(Self {
            base,
            clock,
            timeouts,
            uploads: client::build(uploads, "SUPABASE_URL")?,
            calls: client::build(calls, "SUPABASE_URL")?,
            key: kept,
            secret_key,
        })
    }

    pub(super) fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    pub(super) async fn info(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>, Failure> {
        #[derive(Deserialize)]
        struct Info {
            size: u64,
            metadata: Option<Value>,
        }
        // Without `authenticated`, the server reports an invalid key as a missing bucket.
        let url = self.object_url(&["info", "authenticated"], path);
        let request = self.calls.get(url);
        let Some(info) = self.call::<Info>(request).await? else {
            return Ok(None);
        };
        let metadata = info.metadata.unwrap_or_default();
        let text = |field: &str| metadata[field].as_str();
        Ok(Some(ObjectInfo {
            size: info.size,
            sha256: text("sha256").map(str::to_owned),
            blob_sha: text("blob_sha").and_then(|sha| sha.parse().ok()),
        }))
    }

    pub(super) async fn is_readable(&self, path: &ObjectPath, size: u64) -> Result<bool, Failure> {
        let last = size.saturating_sub(1);
        let request = self
            .calls
            .get(self.object_url(&["authenticated"], path))
            .header(RANGE, format!("bytes={last}-{last}"));
        let response = request.send().await.map_err(|error| unreached(&error))?;
        Ok(self.accept(response).await?.is_some())
    }

    pub(super) async fn digests(
        &self,
        path: &ObjectPath,
        size: u64,
    ) -> Result<Option<Digests>, Failure> {
        let request = self
            .calls
            .get(self.object_url(&["authenticated"], path))
            .timeout((self.timeouts.transfer)(size));
        let mut response = request.send().await.map_err(|error| unreached(&error))?;
        if !response.status().is_success() {
            self.accept(response).await?;
            return Ok(None);
        }
        let mut hashing = Hashing::new(size);
        while let Some(chunk) = response.chunk().await.map_err(|error| unreached(&error))? {
            if !hashing.add(&chunk) {
                return Ok(None);
            }
        }
        Ok(hashing.finish())
    }

    /// Uploads an object. If the response is lost, asks what is stored: the server completes an upload
    /// even if the client is gone.
    pub(super) async fn put(
        &self,
        path: &ObjectPath,
        size: u64,
        digests: &Digests,
        body: BodyStream,
    ) -> Result<(), Failure> {
        let sent = self.upload(path, size, digests, body).await;
        if !matches!(&sent, Err(failure) if failure.code == Code::StorageUnavailable) {
            return sent;
        }
        let wanted = ObjectInfo {
            size,
            sha256: Some(digests.sha256.clone()),
            blob_sha: Some(digests.blob_sha),
        };
        match self.info(path).await {
            Ok(Some(stored)) if stored == wanted => Ok(()),
            _ => sent,
        }
    }

    pub(super) async fn delete(&self, path: &ObjectPath) -> Result<(), Failure> {
        // No Content-Type: with one, the server requires a body.
        let request = self.calls.delete(self.object_url(&[], path));
        let response = request.send().await.map_err(|error| unreached(&error))?;
        self.accept(response).await.map(|_| ())
    }

    pub(super) async fn limits(&self, bucket: &str) -> Result<BucketLimits, Failure> {
        #[derive(Deserialize)]
        struct Bucket {
            #[serde(default)]
            public: bool,
            file_size_limit: Option<u64>,
            allowed_mime_types: Option<Vec<String>>,
        }
        let request = self.calls.get(self.url(&["bucket", bucket]));
        let Some(found) = self.call::<Bucket>(request).await? else {
            return Err(bucket_missing());
        };
        let types = found.allowed_mime_types.unwrap_or_default();
        Ok(BucketLimits {
            max_bytes: found.file_size_limit,
            public: found.public,
            mp4_allowed: types.is_empty()
                || types
                    .iter()
                    // The server does not know `*/*` and rejects all uploads to such a bucket.
                    .any(|t| [VIDEO_MIME, "video/*"].contains(&t.as_str())),
        })
    }

    pub(super) async fn sign(&self, path: &ObjectPath) -> Result<Option<String>, Failure> {
        #[derive(Deserialize)]
        struct Signed {
            #[serde(rename = "signedURL")]
            signed_url: String,
        }
        let request = self
            .calls
            .post(self.object_url(&["sign"], path))
            .json(&json!({ "expiresIn": SIGNED_URL_SECONDS }));
        let signed = self.call::<Signed>(request).await?;
        // The server's URL lacks the gateway's prefix `/storage/v1`.
        Ok(signed.map(|signed| format!("{}{}", self.base, signed.signed_url)))
    }

    /// Makes one standard upload: atomic, and one request for any size.
    async fn upload(
        &self,
        path: &ObjectPath,
        size: u64,
        digests: &Digests,
        body: BodyStream,
    ) -> Result<(), Failure> {
        let metadata = json!({ "blob_sha": digests.blob_sha, "sha256": digests.sha256 });
        let (taken, mut so_far) = watch::channel(0);
        // `taken` itself lives until the end: without a sender, `changed` below would return at once,
        // again and again.
        let counter = taken.clone();
        let pieces = body.map_ok(pieces).try_flatten().inspect_ok(move |piece| {
            counter.send_modify(|taken| *taken += piece.len() as u64);
        });
        let request = self
            .uploads
            .post(self.object_url(&[], path))
            .header(CONTENT_TYPE, VIDEO_MIME)
            // Without it the body would be sent chunked, which bypasses the bucket's size limit.
            .header(CONTENT_LENGTH, size)
            .header(CACHE_CONTROL, "no-cache")
            .header("x-upsert", "true")
            .header("x-metadata", BASE64_STANDARD.encode(metadata.to_string()))
            .body(reqwest::Body::wrap_stream(pieces));

        let mut sending = std::pin::pin!(request.send());
        let end = Instant::now() + (self.timeouts.transfer)(size);
        let response = loop {
            let all_taken = *so_far.borrow_and_update() >= size;
            let left = end.saturating_duration_since(Instant::now());
            let (timeout, message) = if all_taken {
                let answer = self.timeouts.answer;
                (answer, "Supabase Storage did not respond to the upload.")
            } else if left < self.timeouts.stall {
                (left, "The upload to Supabase Storage was too slow.")
            } else {
                let stall = self.timeouts.stall;
                (stall, "The upload to Supabase Storage stalled.")
            };
            tokio::select! {
                // May arrive while bytes are still being sent; the rest is not sent then.
                response = &mut sending => break response.map_err(|error| unreached(&error))?,
                // Every piece restarts the timeout for a stall.
                _ = so_far.changed() => {}
                () = tokio::time::sleep(timeout) => return Err(unavailable(message)),
            }
        };
        tokio::time::timeout(self.timeouts.answer, self.accept(response))
            .await
            .unwrap_or_else(|_| {
                Err(unavailable(
                    "The response from Supabase Storage was incomplete.",
                ))
            })?
            .ok_or_else(|| unavailable("Supabase Storage returned \"not found\" for an upload."))?;
        Ok(())
    }

    /// Sends a small request and deserializes its response; `None` = no such object.
    async fn call<T: for<'de> Deserialize<'de>>(
        &self,
        request: RequestBuilder,
    ) -> Result<Option<T>, Failure> {
        let response = request.send().await.map_err(|error| unreached(&error))?;
        let Some(body) = self.accept(response).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&body).map(Some).map_err(|error| {
            tracing::warn!(%error, "unexpected response from Supabase Storage");
            unavailable("The response did not come from Supabase Storage; check SUPABASE_URL.")
        })
    }

    /// The body of a successful response; `None` = no such object.
    async fn accept(&self, mut response: Response) -> Result<Option<Vec<u8>>, Failure> {
        let body = client::body(&mut response, RESPONSE_BYTES_MAX).await;
        let body = body.map_err(|error| unreached(&error))?;
        // No response of the server is that long, and no part of one could be interpreted.
        let body = body.unwrap_or_default();
        let status = response.status();
        if status.is_success() {
            return Ok(Some(body));
        }
        let refusal = refusal(status.as_u16(), &body);
        if matches!(refusal, Refusal::NoObject) {
            // Not an error: the object does not exist before its first upload.
            return Ok(None);
        }
        // Only logged, because the text may contain internal addresses. Without the key, because a
        // gateway may repeat the request.
        let text = String::from_utf8_lossy(&body).replace(self.key.expose_secret(), "[key]");
        tracing::warn!(
            %status,
            ?refusal,
            answer = text.get(..text.floor_char_boundary(LOGGED_BYTES_MAX)),
            "Supabase Storage returned an error"
        );
        Err(self.failure(refusal, status.as_u16(), response.headers()))
    }

    fn failure(&self, refusal: Refusal, status: u16, headers: &HeaderMap) -> Failure {
        let (code, message) = match refusal {
            Refusal::NoBucket => return bucket_missing(),
            Refusal::Mime => (
                Code::MimeNotAllowed,
                "The bucket does not allow video/mp4; add it to the bucket's allowed MIME types.",
            ),
            Refusal::TooLarge => (
                Code::TooLarge,
                "The video exceeds the storage size limit; raise the limit of the bucket (and of the project), or render a smaller video.",
            ),
            Refusal::UnknownKey if self.secret_key => (
                Code::StorageDenied,
                "Supabase rejected the sb_ key: either it belongs to another project, or the gateway does not translate sb_ keys; in the latter case, set SUPABASE_SERVICE_ROLE_KEY to the service_role JWT.",
            ),
            Refusal::Denied | Refusal::UnknownKey => (
                Code::StorageDenied,
                "Supabase Storage rejected the key; check SUPABASE_SERVICE_ROLE_KEY.",
            ),
            Refusal::Quota => (
                Code::StorageQuota,
                "The Supabase project is restricted because a quota is used up or a payment is overdue; check the organization's billing settings.",
            ),
            Refusal::Paused => (
                Code::StoragePaused,
                "The Supabase project is paused; restore it in Supabase's dashboard.",
            ),
            Refusal::NoRoute => (
                Code::StorageUnavailable,
                "Supabase Storage was not found at the configured URL; check SUPABASE_URL.",
            ),
            Refusal::NoObject | Refusal::Transient => {
                let failure = unavailable(&format!(
                    "Supabase Storage is temporarily unavailable (HTTP status {status})."
                ));
                return match client::retry_after(headers, self.clock.now_ms()) {
                    Some(wait) => failure.after(wait),
                    None => failure,
                };
            }
        };
        Failure::new(code, message)
    }

    fn object_url(&self, action: &[&str], path: &ObjectPath) -> Url {
        let [user, lesson, file] = path.segments();
        let mut url = self.url(&["object"]);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .extend(action)
                .extend([path.bucket(), &user, &lesson, &file]);
        }
        url
    }

    /// Percent-encodes each segment, so that a bucket's name stays one segment.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(segments);
        }
        url
    }
}

/// The meaning of an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NoObject,
    NoBucket,
    NoRoute,
    Mime,
    TooLarge,
    Denied,
    UnknownKey,
    Quota,
    Paused,
    Transient,
}

/// Classifies an error response by its `code`, else by its `statusCode`, else by its HTTP status.
/// Nearly every error has HTTP status 400 and the real status as a string in the body. Older servers
/// and gateways leave out one or the other, and some return HTML, plain text or no body.
fn refusal(http_status: u16, body: &[u8]) -> Refusal {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| body[field].as_str().unwrap_or_default();
    let message = text("message");
    if message == "Invalid Compact JWS" || message.contains("required property 'authorization'") {
        return Refusal::UnknownKey;
    }
    match text("code") {
        "NoSuchKey" => return Refusal::NoObject,
        "NoSuchBucket" => return Refusal::NoBucket,
        "InvalidMimeType" => return Refusal::Mime,
        "EntityTooLarge" => return Refusal::TooLarge,
        "AccessDenied" | "InvalidJWT" => return Refusal::Denied,
        // Their `statusCode` is that of a backend, and says nothing about the request.
        "S3Error" | "DatabaseError" | "DatabaseTimeout" | "InternalError" | "SlowDown"
        | "LockTimeout" | "ResourceLocked" | "TransactionError" => return Refusal::Transient,
        _ => {}
    }
    let inner = &body["statusCode"];
    let status = match inner.as_str() {
        Some(text) => text.parse().ok(),
        None => inner.as_u64(),
    };
    match status.unwrap_or(http_status.into()) {
        404 if message == "Bucket not found" => Refusal::NoBucket,
        404 if message == "Object not found" || text("error") == "not_found" => Refusal::NoObject,
        404 => Refusal::NoRoute,
        401 | 403 => Refusal::Denied,
        // From the gateway of a restricted or paused project.
        // Source: supabase.com/docs/guides/platform/http-status-codes
        402 => Refusal::Quota,
        540 => Refusal::Paused,
        413 => Refusal::TooLarge,
        415 => Refusal::Mime,
        _ => Refusal::Transient,
    }
}

/// Splits a long chunk into pieces, without copying.
fn pieces(
    mut bytes: Bytes,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::iter(std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(Ok(piece))
    }))
}

fn unreached(error: &reqwest::Error) -> Failure {
    tracing::warn!(error = causes(error), "no response from Supabase Storage");
    if error.is_timeout() {
        unavailable("Supabase Storage did not respond in time.")
    } else if error.is_connect() {
        let reason = Unreachable::of(error);
        unavailable(&format!(
            "Supabase Storage could not be reached: {reason}; check SUPABASE_URL if this persists."
        ))
    } else {
        unavailable("The connection to Supabase Storage was lost.")
    }
}

fn unavailable(message: &str) -> Failure {
    Failure::new(Code::StorageUnavailable, message)
}

fn bucket_missing() -> Failure {
    Failure::new(
        Code::BucketMissing,
        "This video's storage bucket does not exist; create it, or correct the row's storage_bucket.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_by_code_then_inner_status_then_http_status() {
        use Refusal::*;
        for (status, body, expected) in [
            // As measured: the real status is in the body.
            (
                400,
                r#"{"statusCode":"404","error":"not_found","message":"Object not found","code":"NoSuchKey"}"#,
                NoObject,
            ),
            (
                400,
                r#"{"statusCode":"404","error":"Bucket not found","message":"Bucket not found","code":"NoSuchBucket"}"#,
                NoBucket,
            ),
            (
                400,
                r#"{"statusCode":"415","error":"invalid_mime_type","message":"mime type application/pdf is not supported","code":"InvalidMimeType"}"#,
                Mime,
            ),
            (
                400,
                r#"{"statusCode":"413","error":"Payload too large","message":"The object exceeded the maximum allowed size","code":"EntityTooLarge"}"#,
                TooLarge,
            ),
            (
                400,
                r#"{"statusCode":"403","error":"Unauthorized","message":"signature verification failed","code":"AccessDenied"}"#,
                Denied,
            ),
            (
                400,
                r#"{"statusCode":"403","error":"Unauthorized","message":"Invalid Compact JWS","code":"AccessDenied"}"#,
                UnknownKey,
            ),
            (
                400,
                r#"{"statusCode":"400","error":"Error","message":"headers must have required property 'authorization'","code":"InvalidRequest"}"#,
                UnknownKey,
            ),
            (
                500,
                r#"{"statusCode":"500","error":"Internal","message":"Internal Server Error","code":"InternalError"}"#,
                Transient,
            ),
            (
                400,
                r#"{"error":"Bad Request","message":"Client Error","statusCode":400}"#,
                Transient,
            ),
            (
                404,
                r#"{"message":"Route GET:/x not found","error":"Not Found","statusCode":404}"#,
                NoRoute,
            ),
            // The code wins over the status of the backend.
            (
                400,
                r#"{"statusCode":"403","error":"x","message":"Error","code":"S3Error"}"#,
                Transient,
            ),
            // Older servers send no code.
            (
                400,
                r#"{"statusCode":"404","error":"not_found","message":"Object not found"}"#,
                NoObject,
            ),
            (
                400,
                r#"{"statusCode":"404","error":"Bucket not found","message":"Bucket not found"}"#,
                NoBucket,
            ),
            // From a gateway.
            (413, "<html>413 Request Entity Too Large</html>", TooLarge),
            (401, r#"{"message":"Invalid API key"}"#, Denied),
            (404, "", NoRoute),
            (402, "<html>Payment Required</html>", Quota),
            (540, "", Paused),
            (540, r#"{"message":"project paused"}"#, Paused),
            (502, "<html>Bad Gateway</html>", Transient),
            (544, "", Transient),
            (429, "slow down", Transient),
            (302, "", Transient),
            (400, "[1,2]", Transient),
            (400, r#"{"statusCode":{"a":1},"code":7}"#, Transient),
        ] {
            assert_eq!(
                refusal(status, body.as_bytes()),
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn the_key_is_in_no_debug_output() {
        for key in ["sb_secret_hush", "eyJh.hush.x"] {
            let url = "http://127.0.0.1:1".parse().unwrap();
            let store =
                SupabaseStore::new(&url, &key.into(), Clock::default(), Timeouts::default());
            let store = store.unwrap();
            assert!(!format!("{store:?}").contains("hush"));
        }
    }
}
