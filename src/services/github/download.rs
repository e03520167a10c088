//! Downloads: a git blob, or the Git LFS object that a pointer in its place names.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use tokio::time::Instant;

use super::{
    ERROR_BYTES_MAX, Github, REDIRECTS_MAX, Timeouts, contains, denied, says, too_many_redirects,
    unavailable, unexpected_status,
};
use crate::domain::failure::{Code, Failure};
use crate::domain::ids::GitSha;
use crate::domain::lfs::{Pointer, Sha256};
use crate::format::causes;
use crate::services::client;

/// The media type of the LFS batch API, both ways. Source: git-lfs, `docs/api/batch.md`.
const LFS_JSON: HeaderValue = HeaderValue::from_static("application/vnd.git-lfs+json");

/// The longest batch response that is read, in bytes: it describes one object.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A download in progress: exactly [`Download::size`] bytes, or a failure.
#[derive(Debug)]
pub struct Download {
    /// The file's size in bytes.
    pub size: u64,
    left: u64,
    response: Response,
    stall_max: Duration,
    /// When it must have ended.
    end: Instant,
}

#[derive(Deserialize)]
struct Cloneable {
    clone_url: String,
}

#[derive(Serialize)]
struct BatchRequest<'a> {
    operation: &'static str,
    transfers: [&'static str; 1],
    objects: [ObjectId<'a>; 1],
}

#[derive(Serialize)]
struct ObjectId<'a> {
    oid: &'a str,
    size: u64,
}

#[derive(Deserialize)]
struct BatchResponse {
    objects: Vec<LfsObject>,
}

#[derive(Deserialize)]
struct LfsObject {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    download: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: HashMap<String, String>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    #[serde(default)]
    message: String,
}

impl Download {
    fn new(response: Response, size: u64, timeouts: &Timeouts) -> Result<Self, Failure> {
        match response.content_length() {
            Some(length) if length != size => Err(wrong_size()),
            _ => Ok(Self {
                size,
                left: size,
                response,
                stall_max: timeouts.stall,
                end: Instant::now() + (timeouts.transfer)(size),
            }),
        }
    }

    /// The next chunk; `None` after all [`Download::size`] bytes.
    ///
    /// # Errors
    /// The connection broke, stalled or is too slow, or the response is longer or shorter than the file.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(unavailable("The download from GitHub was too slow."));
        }
        let chunk = within(self.stall_max.min(left), self.response.chunk()).await?;
        let length = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        match (self.left.checked_sub(length), &chunk) {
            (None, _) | (Some(1..), None) => Err(wrong_size()),
            (Some(left), _) => {
                self.left = left;
                Ok(chunk)
            }
        }
    }

    /// All bytes, in memory: for small files.
    async fn whole(mut self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

impl Github {
    /// Opens a git blob of `size` bytes. The caller verifies the bytes against `sha`.
    ///
    /// # Errors
    /// GitHub is unavailable, limits the rate, or denies access.
    pub async fn blob(&self, sha: GitSha, size: u64) -> Result<Download, Failure> {
        self.check_pause()?;
        self.keep_reserve()?;
        let url = self.endpoint(["git", "blobs", &sha.to_string()]);
        let accept = HeaderValue::from_static("application/vnd.github.raw+json");
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        let (from, response) = self.open(url, headers, self.authorization.as_ref()).await?;
        if self.is_api(&from) {
            let (status, headers) = (response.status(), response.headers().clone());
            if status == StatusCode::OK {
                self.judge(status, &headers, &[])?;
            } else {
                let body = self.read(response, ERROR_BYTES_MAX).await?;
                self.judge(status, &headers, &body)?;
                // Includes 404: the webhook may arrive before GitHub serves the blob.
                return Err(unexpected_status(status));
            }
        } else if response.status() != StatusCode::OK {
            return Err(self.refused_elsewhere(&response));
        }
        Download::new(response, size, &self.timeouts)
    }

    /// Reads a whole git blob into memory and verifies it against `sha`.
    ///
    /// # Errors
    /// As for [`Github::blob`], and [`Code::CorruptDownload`] if the bytes are not the blob's.
    pub async fn small_blob(&self, sha: GitSha, size: u64) -> Result<Vec<u8>, Failure> {
        let bytes = self.blob(sha, size).await?.whole().await?;
        let hash = Sha1::new_with_prefix(format!("blob {size}\0")).chain_update(&bytes);
        if GitSha::from_bytes(hash.finalize().into()) != sha {
            return Err(wrong_hash());
        }
        Ok(bytes)
    }

    /// Reads a whole LFS object into memory and verifies it against its pointer.
    ///
    /// # Errors
    /// As for [`Github::lfs`], and [`Code::CorruptDownload`] if the bytes are not the object's.
    pub async fn small_lfs(&self, pointer: &Pointer) -> Result<Vec<u8>, Failure> {
        let download = self.lfs(&pointer.oid.to_string(), pointer.size).await?;
        let bytes = download.whole().await?;
        if Sha256::from_bytes(sha2::Sha256::digest(&bytes).into()) != pointer.oid {
            return Err(wrong_hash());
        }
        Ok(bytes)
    }

    /// Opens the LFS object of `size` bytes with the SHA-256 `oid`. The caller verifies the bytes.
    ///
    /// # Errors
    /// As for [`Github::blob`], and [`Code::LfsObjectMissing`].
    pub async fn lfs(&self, oid: &str, size: u64) -> Result<Download, Failure> {
        let action = self.lfs_action(oid, size).await?;
        let href = Url::parse(&action.href)
            .ok()
            .filter(|href| self.is_allowed(href))
            .ok_or_else(|| {
                unavailable("The LFS server returned a download URL that is not allowed.")
            })?;
        let mut headers = HeaderMap::new();
        for (name, value) in action.header {
            // Sensitive, because it is the download's credential.
            let (Ok(name), Ok(value)) = (HeaderName::try_from(name), client::sensitive(&value))
            else {
                return Err(unavailable("The LFS server returned an invalid header."));
            };
            headers.insert(name, value);
        }
        let (_, response) = self.open(href, headers, None).await?;
        match response.status() {
            StatusCode::OK => Download::new(response, size, &self.timeouts),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(object_missing()),
            status => {
                let refused = self.refused_elsewhere(&response);
                let body = self.read(response, ERROR_BYTES_MAX).await;
                let body = body.unwrap_or_default();
                let is_over = is_over_quota(status.as_u16(), |words| says(&body, words));
                Err(if is_over { over_quota() } else { refused })
            }
        }
    }

    /// Asks the LFS batch API for the address to download an object from, and the headers to send.
    async fn lfs_action(&self, oid: &str, size: u64) -> Result<Action, Failure> {
        let clone_url = self.clone_url().await?;
        let mut url = clone_url.clone();
        let path = clone_url.path().trim_end_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        url.set_path(&format!("{path}.git/info/lfs/objects/batch"));
        let request = BatchRequest {
            operation: "download",
            transfers: ["basic"],
            objects: [ObjectId { oid, size }],
        };
        let mut call = self
            .bytes
            .post(url)
            .header(ACCEPT, LFS_JSON)
            // Set before the body: `json` adds its own content type only if there is none.
            .header(CONTENT_TYPE, LFS_JSON)
            .json(&request);
        if let Some(token) = self.token.as_ref().filter(|_| self.is_git_host(&clone_url)) {
            call = call.basic_auth("x-access-token", Some(token.expose_secret()));
        }
        let response = within(self.timeouts.stall, call.send()).await?;
        let status = response.status().as_u16();
        if status != 200 {
            let refused = self.refused_elsewhere(&response);
            let body = self.read(response, ERROR_BYTES_MAX).await;
            let body = body.unwrap_or_default();
            if is_over_quota(status, |words| says(&body, words)) {
                return Err(over_quota());
            }
            // A renamed repository redirects, and a POST is not repeated at another address: the next
            // attempt asks the API for the new one.
            self.forget_clone_url();
            return Err(if matches!(status, 401 | 403 | 404) {
                denied(
                    "The LFS server denied access; check that GITHUB_TOKEN can read the repository's contents.",
                )
            } else {
                refused
            });
        }
        let body = self.read(response, BATCH_BYTES_MAX).await?;
        let batch: BatchResponse = serde_json::from_slice(&body).map_err(|_| {
            unavailable("The LFS server's response does not match its API documentation.")
        })?;
        let object = batch.objects.into_iter().find(|object| object.oid == oid);
        let (actions, error) = object.map_or((None, None), |object| (object.actions, object.error));
        if let Some(error) = &error
            && is_over_quota(error.code, |words| contains(&error.message, words))
        {
            return Err(over_quota());
        }
        match (
            error.map(|error| error.code),
            actions.and_then(|a| a.download),
        ) {
            (None, Some(action)) => Ok(action),
            (Some(404 | 410), _) => Err(object_missing()),
            (Some(401 | 403), _) => Err(denied("The LFS server denied access to the object.")),
            (Some(code), _) => Err(unavailable(format!(
                "The LFS server returned error {code} for the object."
            ))),
            (None, None) => Err(unavailable("The LFS server did not return a download URL.")),
        }
    }

    /// The repository's clone URL, which is also the base of its LFS server.
    async fn clone_url(&self) -> Result<Url, Failure> {
        let known = self.known_clone_url().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let response = self.get(self.endpoint([]), HeaderMap::new()).await?;
        let Cloneable { clone_url } = response.json()?;
        let clone_url = Url::parse(&clone_url)
            .ok()
            .filter(|url| self.is_allowed(url))
            .ok_or_else(|| unavailable("GitHub returned a clone URL that is not allowed."))?;
        *self.known_clone_url() = Some(clone_url.clone());
        Ok(clone_url)
    }

    fn forget_clone_url(&self) {
        *self.known_clone_url() = None;
    }

    fn known_clone_url(&self) -> std::sync::MutexGuard<'_, Option<Url>> {
        self.clone_url.lock().expect("no panic while held")
    }

    /// Whether the token may be sent to this clone URL: `github.com` for `api.github.com`, else the
    /// API's own host (GitHub Enterprise Server), over the same scheme and port.
    pub(super) fn is_git_host(&self, clone_url: &Url) -> bool {
        let (Some(git), Some(api)) = (clone_url.host_str(), self.api.host_str()) else {
            return false;
        };
        (git == api || api.strip_prefix("api.") == Some(git))
            && clone_url.scheme() == self.api.scheme()
            && clone_url.port_or_known_default() == self.api.port_or_known_default()
    }

    /// Opens a response, following redirects, and returns it with its final address. `token` is sent
    /// to the API's own origin only, `headers` only to the origin of `url`.
    async fn open(
        &self,
        mut url: Url,
        mut headers: HeaderMap,
        token: Option<&HeaderValue>,
    ) -> Result<(Url, Response), Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let mut call = self.bytes.get(url.clone()).headers(headers.clone());
            if let Some(token) = token.filter(|_| self.is_api(&url)) {
                call = call.header(AUTHORIZATION, token);
            }
            let response = within(self.timeouts.stall, call.send()).await?;
            let Some(next) = self.redirect(&url, response.status(), response.headers())? else {
                return Ok((url, response));
            };
            if next.origin() != url.origin() {
                headers.clear();
            }
            url = next;
        }
        Err(too_many_redirects())
    }

    async fn read(&self, mut response: Response, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        let body = client::body(&mut response, bytes_max);
        let body = within(self.timeouts.call, body).await?;
        body.ok_or_else(super::bad_body)
    }

    /// The failure of a host that is not the API. It does not pause calls to the API, which has a
    /// rate limit of its own.
    fn refused_elsewhere(&self, response: &Response) -> Failure {
        let status = response.status().as_u16();
        let message = format!("GitHub's file storage returned status {status}.");
        let wait = client::retry_after(response.headers(), self.clock.now_ms());
        match (status, wait) {
            (429, Some(wait)) => Failure::new(Code::RateLimited, message).after(wait),
            (503, Some(wait)) => unavailable(message).after(wait),
            _ => unavailable(message),
        }
    }
}

/// Waits for a call, but no longer than `max`.
async fn within<T>(
    max: Duration,
    call: impl Future<Output = reqwest::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(max, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            // A signed address lets everyone who reads it download the file.
            let error = error.without_url();
            tracing::debug!(error = causes(&error), "failed to download from GitHub");
            Err(unavailable("The connection to GitHub failed."))
        }
        Err(_) => Err(unavailable("Timed out waiting for data from GitHub.")),
    }
}

/// Whether an LFS server refused because the account's bandwidth or budget is used up. `says`: whether its
/// message contains these words. The statuses are those of git-lfs's `docs/api/batch.md` (507, 509) and of
/// billing (402); GitHub sends another one with "over its data quota" or "exceeded its LFS budget".
fn is_over_quota(status: u16, says: impl Fn(&str) -> bool) -> bool {
    matches!(status, 402 | 507 | 509)
        || (matches!(status, 403 | 422 | 429) && ["data quota", "lfs budget"].into_iter().any(says))
}

fn over_quota() -> Failure {
    let message = "The repository has used up its Git LFS bandwidth or budget; raise the budget in GitHub's billing settings.";
    Failure::new(Code::LfsQuota, message)
}

fn object_missing() -> Failure {
    let message = "The file is a Git LFS pointer, but the LFS server does not have the object; push the object with `git lfs push --all`.";
    Failure::new(Code::LfsObjectMissing, message)
}

fn wrong_hash() -> Failure {
    let message = "The downloaded file differs from the one that was pushed.";
    Failure::new(Code::CorruptDownload, message)
}

fn wrong_size() -> Failure {
    let message = "The downloaded file is not the same size as the pushed file.";
    Failure::new(Code::CorruptDownload, message)
}
