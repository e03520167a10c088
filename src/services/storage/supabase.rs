//! Supabase Storage over its REST interface.
//!
//! What is said here about the server was measured on supabase/storage 4fa61fba (2026-08-21).

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use reqwest::header::{
    self, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue,
    RETRY_AFTER,
};
use reqwest::{Client, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    BodyStream, BucketLimits, Digests, ObjectInfo, ObjectPath, SIGNED_URL_SECONDS, VIDEO_MIME,
};
use crate::clock::Clock;
use crate::domain::failure::{Code, Failure};
use crate::telemetry::causes;

/// The largest answer that is read, in bytes; the rest of a longer one is ignored.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// How much of a refusal's body goes to the log, in bytes.
const LOGGED_ANSWER_BYTES: usize = 1024;

/// An upload's bytes are handed over in pieces of this size, so that a stall can be told from a slow line.
const PIECE_BYTES: usize = 64 * 1024;

/// The server closes idle connections after 61 s; ours go first, so that no request meets a closing one.
const POOL_IDLE: Duration = Duration::from_secs(45);

/// Browsers are refused with secret keys, so this must not look like one.
const USER_AGENT: &str = concat!("video-ingest/", env!("CARGO_PKG_VERSION"));

/// How long to wait for the storage.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection to be made.
    pub connect: Duration,
    /// For any byte of an upload to be taken: the server has no such limit and would hold it for ever.
    pub stall: Duration,
    /// For the answer, from the last byte of an upload on.
    pub answer: Duration,
    /// For a whole request that carries no video.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            request: Duration::from_secs(20),
        }
    }
}

/// Objects in a project's Supabase Storage.
#[derive(Clone, Debug)]
pub struct SupabaseStore {
    base: Url,
    timeouts: Timeouts,
    /// Keeps no connection: after some refusals the server never reads the rest of the body, and
    /// the next request on that connection would hang until it is reset a minute later.
    uploads: Client,
    calls: Client,
    /// Taken out of what is logged.
    key: SecretString,
    /// Whether the key is of the new kind, which the gateway must translate for the server.
    secret_key: bool,
}

impl SupabaseStore {
    /// The storage of the project at `supabase_url` (without `/storage/v1`), with its service key.
    ///
    /// # Errors
    /// [`Code::StorageDenied`] if the key or the URL cannot be one.
    pub fn new(
        supabase_url: &Url,
        key: &SecretString,
        timeouts: Timeouts,
    ) -> Result<Self, Failure> {
        let mut base = supabase_url.clone();
        base.path_segments_mut()
            .map_err(|()| misconfigured("SUPABASE_URL is not an http(s) URL."))?
            .pop_if_empty()
            .extend(["storage", "v1"]);

        // A `sb_` key is no JWT: the server would refuse it as a bearer token.
        let kept = key.clone();
        let key = key.expose_secret();
        let secret_key = key.starts_with("sb_");
        let mut headers = HeaderMap::new();
        headers.insert("apikey", sensitive(key)?);
        if !secret_key {
            headers.insert(AUTHORIZATION, sensitive(&format!("Bearer {key}"))?);
        }
        let client = || {
            Client::builder()
                .default_headers(headers.clone())
                .user_agent(USER_AGENT)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                // The key goes to the storage and to nobody in between, as GitHub's and the agent's.
                .no_proxy()
                .connect_timeout(timeouts.connect)
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder
                .build()
                .map_err(|_| misconfigured("The TLS of this machine could not be set up."))
        };
        Ok(Self {
            base,
            timeouts,
            // After an early refusal, what is left to send is stuck with nobody asking: the
            // system ends that connection. `put` itself has answered by then.
            uploads: build(
                client()
                    .pool_max_idle_per_host(0)
                    .tcp_user_timeout(timeouts.stall),
            )?,
            calls: build(
                client()
                    .pool_idle_timeout(POOL_IDLE)
                    .timeout(timeouts.request),
            )?,
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
        let request = self.calls.get(self.object_url(&["info"], path));
        let Some(info) = self.call::<Info>(request).await? else {
            return Ok(None);
        };
        let sha256 = info.metadata.as_ref().and_then(|m| m["sha256"].as_str());
        Ok(Some(ObjectInfo {
            size: info.size,
            sha256: sha256.map(str::to_owned),
        }))
    }

    /// Uploads. An answer that got lost is settled by asking what is stored: the server commits an
    /// upload even if nobody is left to hear of it.
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
        };
        match self.info(path).await {
            Ok(Some(stored)) if stored == wanted => Ok(()),
            _ => sent,
        }
    }

    pub(super) async fn delete(&self, path: &ObjectPath) -> Result<(), Failure> {
        // Without a Content-Type: with one, the server insists on a body.
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
                    .any(|t| [VIDEO_MIME, "video/*", "*/*"].contains(&t.as_str())),
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
        // The server knows nothing of the gateway's prefix.
        Ok(signed.map(|signed| format!("{}{}", self.base, signed.signed_url)))
    }

    /// One standard upload: atomic, and one request whatever the size.
    async fn upload(
        &self,
        path: &ObjectPath,
        size: u64,
        digests: &Digests,
        body: BodyStream,
    ) -> Result<(), Failure> {
        let metadata = json!({ "blob_sha": digests.blob_sha, "sha256": digests.sha256 });
        let (taken, mut so_far) = watch::channel(0);
        // `taken` itself stays here: without a sender, `changed` below would return at once for ever.
        let counter = taken.clone();
        let pieces = body.map_ok(pieces).try_flatten().inspect_ok(move |piece| {
            counter.send_modify(|taken| *taken += piece.len() as u64);
        });
        let request = self
            .uploads
            .post(self.object_url(&[], path))
            .header(CONTENT_TYPE, VIDEO_MIME)
            // Without it the body would go out chunked, past the bucket's size limit.
            .header(CONTENT_LENGTH, size)
            .header(CACHE_CONTROL, "no-cache")
            .header("x-upsert", "true")
            .header("x-metadata", BASE64_STANDARD.encode(metadata.to_string()))
            .body(reqwest::Body::wrap_stream(pieces));

        let mut answer = std::pin::pin!(request.send());
        let response = loop {
            let all_taken = *so_far.borrow_and_update() >= size;
            let patience = match all_taken {
                true => self.timeouts.answer,
                false => self.timeouts.stall,
            };
            tokio::select! {
                // May come while bytes are still being sent; nothing more is sent then.
                response = &mut answer => break response.map_err(|error| unreached(&error))?,
                _ = so_far.changed() => {}
                () = tokio::time::sleep(patience) => return Err(unavailable(match all_taken {
                    true => "Supabase Storage did not answer the upload.",
                    false => "The upload to Supabase Storage stood still.",
                })),
            }
        };
        tokio::time::timeout(self.timeouts.answer, self.accept(response))
            .await
            .unwrap_or_else(|_| Err(unavailable("Supabase Storage did not finish its answer.")))?
            .ok_or_else(|| unavailable("Supabase Storage answered as if to another question."))?;
        Ok(())
    }

    /// Sends a small request and reads its answer; `None` = no such object.
    async fn call<T: for<'de> Deserialize<'de>>(
        &self,
        request: RequestBuilder,
    ) -> Result<Option<T>, Failure> {
        let response = request.send().await.map_err(|error| unreached(&error))?;
        let Some(body) = self.accept(response).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&body).map(Some).map_err(|error| {
            tracing::warn!(%error, "unexpected answer of Supabase Storage");
            unavailable(
                "Supabase Storage answered something that is not Supabase's; check SUPABASE_URL.",
            )
        })
    }

    /// The body of a good answer; `None` = no such object.
    async fn accept(&self, mut response: Response) -> Result<Option<Vec<u8>>, Failure> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| unreached(&error))? {
            let room = ANSWER_MAX_BYTES - body.len();
            body.extend_from_slice(&piece[..piece.len().min(room)]);
            if body.len() == ANSWER_MAX_BYTES {
                break;
            }
        }
        let status = response.status();
        if status.is_success() {
            return Ok(Some(body));
        }
        let refusal = refusal(status.as_u16(), &body);
        if matches!(refusal, Refusal::NoObject) {
            // Nothing is wrong: there is none before its first upload.
            return Ok(None);
        }
        // The server's own words may name addresses behind it: they are for the log only. A gateway
        // may repeat what it was sent: that is not even for the log.
        let answer = String::from_utf8_lossy(&body).replace(self.key.expose_secret(), "[key]");
        tracing::warn!(
            %status,
            ?refusal,
            answer = answer.get(..answer.floor_char_boundary(LOGGED_ANSWER_BYTES)),
            "Supabase Storage refused"
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
                "The video is over the storage's size limit; raise the bucket's (and the project's) limit or render it smaller.",
            ),
            Refusal::UnknownKey if self.secret_key => (
                Code::StorageDenied,
                "Supabase does not know this sb_ key: it is another project's, or the gateway does not translate sb_ keys; then use the service_role JWT in SUPABASE_SERVICE_ROLE_KEY.",
            ),
            Refusal::Denied | Refusal::UnknownKey => (
                Code::StorageDenied,
                "Supabase Storage refuses our key; check SUPABASE_SERVICE_ROLE_KEY.",
            ),
            Refusal::NoRoute => (
                Code::StorageUnavailable,
                "There is no Supabase Storage at that address; check SUPABASE_URL.",
            ),
            Refusal::NoObject | Refusal::Passing => {
                let failure = unavailable(&format!(
                    "Supabase Storage is not available at the moment (HTTP status {status})."
                ));
                return match retry_after(headers) {
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

    /// Percent-encodes each segment, so that a bucket's name stays one.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(segments);
        }
        url
    }
}

/// What the storage's refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NoObject,
    NoBucket,
    NoRoute,
    Mime,
    TooLarge,
    Denied,
    UnknownKey,
    Passing,
}

/// Reads a refusal by its `code`, else its `statusCode`, else its HTTP status: nearly every one
/// comes as HTTP 400 with the real status as a string inside, older servers and gateways in front
/// leave out one or the other, and some answer HTML, plain text or nothing.
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
        // With the status of what failed behind the server, which says nothing about the request.
        "S3Error" | "DatabaseError" | "DatabaseTimeout" | "InternalError" | "SlowDown"
        | "LockTimeout" | "ResourceLocked" | "TransactionError" => return Refusal::Passing,
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
        413 => Refusal::TooLarge,
        415 => Refusal::Mime,
        _ => Refusal::Passing,
    }
}

/// `Retry-After` in either of its forms (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let wait = until.duration_since(Clock::default().now());
    wait.try_into().ok()
}

/// Cuts a long piece into short ones, without copying.
fn pieces(
    mut bytes: Bytes,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::iter(std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(Ok(piece))
    }))
}

fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text).map_err(|_: header::InvalidHeaderValue| {
        misconfigured("SUPABASE_SERVICE_ROLE_KEY has characters that no key has.")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn unreached(error: &reqwest::Error) -> Failure {
    tracing::warn!(error = causes(error), "no answer of Supabase Storage");
    unavailable(if error.is_timeout() {
        "Supabase Storage did not answer in time."
    } else if error.is_connect() {
        "Supabase Storage could not be reached; check SUPABASE_URL if this lasts."
    } else {
        "The connection to Supabase Storage broke off."
    })
}

fn unavailable(message: &str) -> Failure {
    Failure::new(Code::StorageUnavailable, message)
}

fn misconfigured(message: &str) -> Failure {
    Failure::new(Code::StorageDenied, message)
}

fn bucket_missing() -> Failure {
    Failure::new(
        Code::BucketMissing,
        "The storage bucket of this video does not exist; create it, or correct the row's storage_bucket.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_by_code_then_inner_status_then_http_status() {
        use Refusal::*;
        for (status, body, expected) in [
            // As measured: the real status is inside.
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
                Passing,
            ),
            (
                400,
                r#"{"error":"Bad Request","message":"Client Error","statusCode":400}"#,
                Passing,
            ),
            (
                404,
                r#"{"message":"Route GET:/x not found","error":"Not Found","statusCode":404}"#,
                NoRoute,
            ),
            // The code wins over the status of what is behind the server.
            (
                400,
                r#"{"statusCode":"403","error":"x","message":"Error","code":"S3Error"}"#,
                Passing,
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
            // Whatever is in front of the server.
            (413, "<html>413 Request Entity Too Large</html>", TooLarge),
            (401, r#"{"message":"Invalid API key"}"#, Denied),
            (404, "", NoRoute),
            (502, "<html>Bad Gateway</html>", Passing),
            (544, "", Passing),
            (429, "slow down", Passing),
            (302, "", Passing),
            (400, "[1,2]", Passing),
            (400, r#"{"statusCode":{"a":1},"code":7}"#, Passing),
        ] {
            assert_eq!(
                refusal(status, body.as_bytes()),
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wait = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(wait("17"), Some(Duration::from_secs(17)));
        let far = wait("Thu, 31 Dec 9998 23:59:59 GMT");
        assert!(far > Some(Duration::from_secs(3600)), "{far:?}");
        assert_eq!(wait("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn the_key_is_in_no_debug_output() {
        for key in ["sb_secret_hush", "eyJh.hush.x"] {
            let url = "http://127.0.0.1:1".parse().unwrap();
            let store = SupabaseStore::new(&url, &key.into(), Timeouts::default()).unwrap();
            assert!(!format!("{store:?}").contains("hush"));
        }
    }
}
