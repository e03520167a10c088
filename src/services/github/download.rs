//! The bytes of one file: a git blob, or the LFS object that a pointer in its place names.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::{
    ERROR_BYTES_MAX, Github, REDIRECTS_MAX, denied, retry_after, sensitive, too_many_redirects,
    unavailable,
};
use crate::domain::failure::{Code, Failure};
use crate::domain::ids::GitSha;

/// The media type of the LFS batch API, both ways. Source: git-lfs, `docs/api/batch.md`.
const LFS_JSON: HeaderValue = HeaderValue::from_static("application/vnd.git-lfs+json");

/// The longest batch answer that is read, in bytes: it is about one object.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A file on its way: exactly [`Download::size`] bytes, or a failure.
#[derive(Debug)]
pub struct Download {
    /// How many bytes there will be.
    pub size: u64,
    left: u64,
    response: Response,
    stall_max: Duration,
}

#[derive(Deserialize)]
struct Repository {
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
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
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
}

impl Download {
    fn new(response: Response, size: u64, stall_max: Duration) -> Result<Self, Failure> {
        match response.content_length() {
            Some(length) if length != size => Err(wrong_size()),
            _ => Ok(Self {
                size,
                left: size,
                response,
                stall_max,
            }),
        }
    }

    /// The next piece; `None` once all [`Download::size`] bytes came.
    ///
    /// # Errors
    /// The connection broke or stalled, or there are more or fewer bytes than there should be.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let chunk = within(self.stall_max, self.response.chunk()).await?;
        let length = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        match (self.left.checked_sub(length), &chunk) {
            (None, _) | (Some(1..), None) => Err(wrong_size()),
            (Some(left), _) => {
                self.left = left;
                Ok(chunk)
            }
        }
    }
}

impl Github {
    /// Opens a git blob of `size` bytes. The bytes are the caller's to check against `sha`.
    ///
    /// # Errors
    /// GitHub cannot be read now, or not with this token.
    pub async fn blob(&self, sha: GitSha, size: u64) -> Result<Download, Failure> {
        self.check_pause()?;
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
                // 404 included: the webhook may be here before the blob is served.
                return Err(unavailable(format!("GitHub answered {}", status.as_u16())));
            }
        } else if response.status() != StatusCode::OK {
            return Err(refused_elsewhere(&response));
        }
        Download::new(response, size, self.patience.stall)
    }

    /// A whole git blob, checked against `sha`; `size` is the most that is held in memory.
    ///
    /// # Errors
    /// As for [`Github::blob`], and when the bytes are not the blob's.
    pub async fn small_blob(&self, sha: GitSha, size: u64) -> Result<Vec<u8>, Failure> {
        let mut download = self.blob(sha, size).await?;
        let mut bytes = Vec::new();
        let mut hash = Sha1::new_with_prefix(format!("blob {size}\0"));
        while let Some(chunk) = download.chunk().await? {
            hash.update(&chunk);
            bytes.extend_from_slice(&chunk);
        }
        if GitSha::from_bytes(hash.finalize().into()) != sha {
            let message = "the downloaded file is not the one that was pushed";
            return Err(Failure::new(Code::CorruptDownload, message));
        }
        Ok(bytes)
    }

    /// Opens the LFS object of `size` bytes whose SHA-256 is `oid`, which the caller checks.
    ///
    /// # Errors
    /// As for [`Github::blob`], and when the LFS storage does not have the object.
    pub async fn lfs(&self, oid: &str, size: u64) -> Result<Download, Failure> {
        let action = self.lfs_action(oid, size).await?;
        let href = Url::parse(&action.href)
            .ok()
            .filter(|href| self.is_allowed(href))
            .ok_or_else(|| unavailable("the LFS server named an address that is not followed"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in action.header {
            let (Ok(name), Ok(value)) = (HeaderName::try_from(name), sensitive(value)) else {
                return Err(unavailable(
                    "the LFS server asked for a header that cannot be sent",
                ));
            };
            headers.insert(name, value);
        }
        let (_, response) = self.open(href, headers, None).await?;
        match response.status() {
            StatusCode::OK => Download::new(response, size, self.patience.stall),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(object_missing()),
            _ => Err(refused_elsewhere(&response)),
        }
    }

    /// Asks the batch API where to download an object from, and with which headers.
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
            // Before the body, or a second content type would be added to its default one.
            .header(CONTENT_TYPE, LFS_JSON)
            .json(&request);
        if let Some(token) = self.token.as_ref().filter(|_| self.is_git_host(&clone_url)) {
            call = call.basic_auth("x-access-token", Some(token.expose_secret()));
        }
        let response = within(self.patience.stall, call.send()).await?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 | 404 => {
                self.forget_clone_url();
                return Err(denied(
                    "the LFS server refuses access: check that GITHUB_TOKEN may read the repository's contents, and its LFS quota",
                ));
            }
            _ => {
                // A renamed repository answers with a redirect, which a POST does not follow.
                self.forget_clone_url();
                return Err(refused_elsewhere(&response));
            }
        }
        let body = self.read(response, BATCH_BYTES_MAX).await?;
        let batch: Batch = serde_json::from_slice(&body)
            .map_err(|_| unavailable("the LFS server's answer was not what its API promises"))?;
        let object = batch.objects.into_iter().find(|object| object.oid == oid);
        let (actions, error) = object.map_or((None, None), |object| (object.actions, object.error));
        match (
            error.map(|error| error.code),
            actions.and_then(|a| a.download),
        ) {
            (None, Some(action)) => Ok(action),
            (Some(404 | 410), _) => Err(object_missing()),
            (Some(401 | 403), _) => Err(denied("the LFS server refuses access to the object")),
            (Some(code), _) => Err(unavailable(format!(
                "the LFS server answered {code} for the object"
            ))),
            (None, None) => Err(unavailable(
                "the LFS server named no place to download from",
            )),
        }
    }

    /// Where the repository is cloned from, which is also where its LFS server is.
    async fn clone_url(&self) -> Result<Url, Failure> {
        let known = self.known_clone_url().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let answer = self.get(self.endpoint([]), HeaderMap::new()).await?;
        let Repository { clone_url } = answer.json()?;
        let clone_url = Url::parse(&clone_url)
            .ok()
            .filter(|url| self.is_allowed(url))
            .ok_or_else(|| unavailable("GitHub named a clone URL that is not followed"))?;
        *self.known_clone_url() = Some(clone_url.clone());
        Ok(clone_url)
    }

    fn forget_clone_url(&self) {
        *self.known_clone_url() = None;
    }

    fn known_clone_url(&self) -> std::sync::MutexGuard<'_, Option<Url>> {
        self.clone_url.lock().expect("no panic while held")
    }

    /// Whether the token may go to this clone URL: `github.com` for `api.github.com`, else the
    /// API's own host (GitHub Enterprise), over the same scheme and port.
    pub(super) fn is_git_host(&self, clone_url: &Url) -> bool {
        let (Some(git), Some(api)) = (clone_url.host_str(), self.api.host_str()) else {
            return false;
        };
        (git == api || api.strip_prefix("api.") == Some(git))
            && clone_url.scheme() == self.api.scheme()
            && clone_url.port_or_known_default() == self.api.port_or_known_default()
    }

    /// Opens a stream of bytes, following redirects, and says where it came from. `token` goes to
    /// the API's own origin only, `headers` no further than the origin they were meant for.
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
            let response = within(self.patience.stall, call.send()).await?;
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

    /// A body of at most `max` bytes.
    async fn read(&self, mut response: Response, max: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = within(self.patience.stall, response.chunk()).await? {
            if body.len() + chunk.len() > max {
                return Err(unavailable("an answer was too long"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Waits for the other side, but not for longer than `max`.
async fn within<T>(
    max: Duration,
    call: impl Future<Output = reqwest::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(max, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            // The address may hold a signature that lets anybody download.
            tracing::debug!(error = %error.without_url(), "download failed");
            Err(unavailable("the connection to GitHub failed"))
        }
        Err(_) => Err(unavailable("GitHub sent nothing for too long")),
    }
}

/// A refusal by a host that is not the API: its rate limit is not the API's.
fn refused_elsewhere(response: &Response) -> Failure {
    let status = response.status().as_u16();
    let message = format!("the storage behind GitHub answered {status}");
    match (status, retry_after(response.headers())) {
        (429, Some(wait)) => Failure::new(Code::RateLimited, message).after(wait),
        (503, Some(wait)) => unavailable(message).after(wait),
        _ => unavailable(message),
    }
}

fn object_missing() -> Failure {
    let message = "the file is a Git LFS pointer, and the LFS server does not have its object: push it with `git lfs push --all`";
    Failure::new(Code::LfsObjectMissing, message)
}

fn wrong_size() -> Failure {
    let message = "the download is shorter or longer than the file that was pushed";
    Failure::new(Code::CorruptDownload, message)
}
