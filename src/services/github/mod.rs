//! Client of GitHub's REST API: the videos on the branch ([`Listing`]), the bytes of a file
//! ([`Download`]) and the repository's webhooks ([`Hook`]).
//!
//! This file decides what holds for every call: where the token is sent, which redirects are
//! followed, how large a response may be, how rate limits are respected, and which failure each
//! status means.

mod download;
mod hooks;
mod listing;
mod quota;
mod tree;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::http::response::Parts;
use octocrab::Octocrab;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::clock::Clock;
use crate::domain::failure::{Code, Failure, clamp_retry_after};
use crate::domain::head::Relation;
use crate::domain::ids::{GitSha, RepoName};
use crate::format::{self, Unreachable, causes};
use crate::services::client::{self, InvalidSetting, number};

pub use download::Download;
pub use hooks::{Hook, HookDelivery, RECEIVER_PATH, RepositoryFacts, failed_guids};
pub use listing::Listing;
pub use quota::for_purpose;

pub use crate::domain::plan::{Entry, Pair};

use tree::TreeEntry;

/// The body of a response of the API.
type ApiBody = BoxBody<Bytes, octocrab::Error>;

/// The longest JSON response that is read into memory, in bytes.
const JSON_BYTES_MAX: usize = 16 << 20;

/// The most bytes of a tree that are read, as a stream. GitHub truncates trees of more than 100,000 entries,
/// which have up to 500 bytes each.
const TREE_BYTES_MAX: usize = 64 << 20;

/// The longest time for the body of a tree, as a multiple of [`Timeouts::call`].
const TREE_CALLS: u32 = 4;

/// The longest error response that is read, in bytes: enough for GitHub's own error objects.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// The longest time to establish a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The most redirects that are followed for one request; a renamed repository needs one.
const REDIRECTS_MAX: usize = 3;

/// The first wait after a rate limit without a duration; doubled each time in a row.
/// Source: GitHub's documentation, "Best practices for using the REST API".
const UNSPECIFIED_WAIT: Duration = Duration::from_secs(60);

/// How long to wait for GitHub.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The longest time for a JSON call, from the connection to the last byte, for each redirect.
    pub call: Duration,
    /// The longest time that a download may go without a byte.
    pub stall: Duration,
    /// The longest time for a download of so many bytes.
    pub transfer: fn(u64) -> Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            transfer: client::transfer_max,
        }
    }
}

/// Client for one repository. Share it behind an `Arc`.
pub struct Github {
    /// The API's base, including its path on GitHub Enterprise Server (`/api/v3`).
    api: Url,
    repo: RepoName,
    branch: Option<String>,
    /// The path of the videos folder, outermost folder first; empty for the repository's root.
    videos_dir: Vec<String>,
    token: Option<SecretString>,
    /// `Bearer <token>`, marked sensitive.
    authorization: Option<HeaderValue>,
    /// Reads JSON.
    json: Octocrab,
    /// Downloads files, and writes (webhooks, LFS).
    bytes: reqwest::Client,
    clock: Clock,
    timeouts: Timeouts,
    rate: Mutex<RateState>,
    calls: quota::Calls,
    shared: tokio::sync::Mutex<listing::Shared>,
    compared: Mutex<HashMap<listing::Comparison, Relation>>,
    clone_url: Mutex<Option<Url>>,
}

/// The rate limit in the latest response of GitHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Calls allowed per window.
    pub limit: u64,
    /// Calls left in this window.
    pub remaining: u64,
    /// When the window ends, in seconds since the Unix epoch.
    pub reset: u64,
}

#[derive(Default)]
struct RateState {
    last_seen: Option<RateLimit>,
    /// No call before this, in milliseconds since the Unix epoch.
    paused_until_ms: i64,
    /// Consecutive rate limits without a duration.
    unspecified: u32,
}

/// A response whose status and body are for the caller to interpret.
struct ApiResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Github {
    /// Creates a client that reads the folder `videos_dir` on `branch` (`None`: the default branch)
    /// of `repo`. Makes no call. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The API's address is not a URL, the token cannot be sent as a header, or TLS is unavailable.
    pub fn new(
        api_url: &str,
        token: Option<SecretString>,
        repo: RepoName,
        branch: Option<String>,
        videos_dir: &str,
        clock: Clock,
    ) -> Result<Self, InvalidSetting> {
        let invalid = |name, problem| InvalidSetting { name, problem };
        let api = Url::parse(api_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                let problem = "must be a valid URL, such as `https://api.github.com`";
                invalid("GITHUB_API_URL", problem)
            })?;
        let authorization = token
            .as_ref()
            .map(|token| client::sensitive(&format!("Bearer {}", token.expose_secret())))
            .transpose()
            .map_err(|_| {
                let problem = "contains invalid characters, such as a line break";
                invalid("GITHUB_TOKEN", problem)
            })?;
        // octocrab gets no token: before sending one it compares host and port, but not the scheme.
        // Its `retry` feature is off, because the schedule of the videos is the only one.
        let json = Octocrab::builder()
            .base_uri(api.as_str())
            .map_err(|_| invalid("GITHUB_API_URL", "is not a valid URL"))?
            .set_connect_timeout(Some(CONNECT_MAX))
            .build()
            .map_err(|_| invalid("GITHUB_API_URL", "requires TLS certificates on this system"))?;
        let bytes = client::build(client::direct(CONNECT_MAX), "GITHUB_API_URL")?;
        let folders = videos_dir.split('/').filter(|s| !matches!(*s, "" | "."));
        Ok(Self {
            api,
            repo,
            branch,
            videos_dir: folders.map(str::to_owned).collect(),
            token,
            authorization,
            json,
            bytes,
            clock,
            timeouts: Timeouts::default(),
            rate: Mutex::default(),
            calls: quota::Calls::default(),
            shared: tokio::sync::Mutex::default(),
            compared: Mutex::default(),
            clone_url: Mutex::default(),
        })
    }

    /// The same client with other timeouts.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// The rate limit in the latest response; `None` before the first call.
    pub fn rate_limit(&self) -> Option<RateLimit> {
        self.rate().last_seen
    }

    fn rate(&self) -> std::sync::MutexGuard<'_, RateState> {
        self.rate.lock().expect("no panic while held")
    }

    /// The URL below `/repos/{owner}/{name}`; each segment is percent-encoded as a whole.
    fn endpoint<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty()
                .extend(["repos", &self.repo.owner, &self.repo.name])
                .extend(segments);
        }
        url
    }

    /// Whether the token may be sent there: the API's own scheme, host and port.
    fn is_api(&self, url: &Url) -> bool {
        url.origin() == self.api.origin()
    }

    /// Makes one JSON call. Returns the statuses that mean something to a caller: 2xx, 304, and those
    /// for things that do not exist (404, 409, 422). Every other status is a failure.
    async fn get(&self, url: Url, headers: HeaderMap) -> Result<ApiResponse, Failure> {
        let (head, body) = self.call(url, headers).await?;
        let body = tokio::time::timeout(self.timeouts.call, whole(body))
            .await
            .map_err(|_| late())??;
        self.judge(head.status, &head.headers, &body)?;
        Ok(ApiResponse {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// Makes one call for a tree and folds its entries into `init`. Returns the result, and whether it
    /// is complete: not truncated by GitHub and not longer than [`TREE_BYTES_MAX`].
    async fn tree<T: Send + 'static>(
        &self,
        sha: GitSha,
        init: T,
        fold: fn(&mut T, TreeEntry),
    ) -> Result<(T, bool), Failure> {
        let url = self.endpoint(["git", "trees", &sha.to_string()]);
        let (head, body) = self.call(url, HeaderMap::new()).await?;
        if head.status != StatusCode::OK {
            let body = tokio::time::timeout(self.timeouts.call, whole(body))
                .await
                .map_err(|_| late())??;
            self.judge(head.status, &head.headers, &body)?;
            return Err(unexpected_status(head.status));
        }
        self.judge(head.status, &head.headers, &[])?;
        let tree = tree::read(body, TREE_BYTES_MAX, self.timeouts.stall, init, fold);
        tokio::time::timeout(self.timeouts.call * TREE_CALLS, tree)
            .await
            .map_err(|_| late())?
    }

    /// Sends a call and follows redirects. The status is for the caller to judge.
    async fn call(&self, mut url: Url, headers: HeaderMap) -> Result<(Parts, ApiBody), Failure> {
        self.check_pause()?;
        for _ in 0..=REDIRECTS_MAX {
            let call = self.call_once(&url, headers.clone());
            let (head, body) = tokio::time::timeout(self.timeouts.call, call)
                .await
                .map_err(|_| late())??;
            match self.redirect(&url, head.status, &head.headers)? {
                // octocrab prefixes the API's path to any other path, and the token must not leave
                // the API's origin.
                Some(next) if !self.is_api(&next) || !next.path().starts_with(self.api.path()) => {
                    return Err(unavailable("GitHub redirected an API request elsewhere."));
                }
                // Followed by hand, so that each step is checked. A renamed repository needs one.
                Some(next) => url = next,
                None => return Ok((head, body)),
            }
        }
        Err(too_many_redirects())
    }

    async fn call_once(
        &self,
        url: &Url,
        mut headers: HeaderMap,
    ) -> Result<(Parts, ApiBody), Failure> {
        headers
            .entry(ACCEPT)
            .or_insert(HeaderValue::from_static("application/vnd.github+json"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let response = self
            .json
            ._get_with_headers(url.as_str(), Some(headers))
            .await
            .map_err(|error| {
                tracing::debug!(error = causes(&error), "request to GitHub failed");
                unreached(&error)
            })?;
        Ok(response.into_parts())
    }

    /// The target of a redirect; `None` for any other status. Decides for both clients which targets
    /// are allowed.
    fn redirect(
        &self,
        from: &Url,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Option<Url>, Failure> {
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| from.join(location).ok());
        match next.filter(|next| self.is_allowed(next)) {
            Some(next) => Ok(Some(next)),
            None => Err(unavailable(
                "GitHub redirected to a URL that is not allowed.",
            )),
        }
    }

    /// Whether a call may be made there at all: over `https`, or over plain `http` if the API is
    /// itself reached so.
    fn is_allowed(&self, url: &Url) -> bool {
        url.scheme() == "https" || (url.scheme() == "http" && self.api.scheme() == "http")
    }

    /// Fails without a call while a rate limit lasts: GitHub may ban clients that continue to call.
    fn check_pause(&self) -> Result<(), Failure> {
        let left_ms = self.rate().paused_until_ms - self.clock.now_ms();
        match u64::try_from(left_ms) {
            Ok(left_ms @ 1..) => Err(self.rate_limited(Duration::from_millis(left_ms))),
            _ => Ok(()),
        }
    }

    /// Records the rate limit of a response and fails if its status is a failure for every caller.
    fn judge(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), Failure> {
        let seen = rate_limit(headers);
        // GitHub does not count an unchanged response towards the rate limit.
        if status != StatusCode::NOT_MODIFIED {
            self.calls.count();
        }
        {
            let mut rate = self.rate();
            rate.last_seen = seen.or(rate.last_seen);
            if status.is_success() || status == StatusCode::NOT_MODIFIED {
                rate.unspecified = 0;
            }
        }
        match status.as_u16() {
            200..=299 | 304 | 404 | 409 | 422 => Ok(()),
            401 => Err(denied(
                "GitHub rejected GITHUB_TOKEN because it is invalid, expired or revoked. Create a token with access to the repository (Contents: read) at https://github.com/settings/personal-access-tokens and set GITHUB_TOKEN to it.",
            )),
            403 | 429 => Err(self.refused(status, headers, seen, body)),
            _ => Err(unexpected_status(status)),
        }
    }

    /// The failure of a 403 or 429. GitHub uses both for rate limits and 403 for missing permissions
    /// too: only the headers and the body distinguish them.
    fn refused(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        seen: Option<RateLimit>,
        body: &[u8],
    ) -> Failure {
        let now_ms = self.clock.now_ms();
        let mut rate = self.rate();
        let exhausted = seen.filter(|seen| seen.remaining == 0);
        let wait = if let Some(wait) = client::retry_after(headers, now_ms) {
            wait
        } else if let Some(seen) = exhausted {
            let now_s = u64::try_from(now_ms / 1000).unwrap_or(0);
            Duration::from_secs(seen.reset.saturating_sub(now_s))
        } else if status == StatusCode::TOO_MANY_REQUESTS || says(body, "rate limit") {
            let wait = UNSPECIFIED_WAIT.saturating_mul(1 << rate.unspecified.min(8));
            // Concurrent calls are refused together: they count once.
            if rate.paused_until_ms <= now_ms {
                rate.unspecified += 1;
            }
            wait
        } else {
            return denied(
                "GitHub denied access; check that GITHUB_TOKEN can read the contents of GITHUB_REPOSITORY.",
            );
        };
        let wait = clamp_retry_after(wait);
        let until_ms = now_ms.saturating_add(wait.as_millis() as i64);
        // A shorter wait for one call does not end a longer one for all.
        rate.paused_until_ms = rate.paused_until_ms.max(until_ms);
        drop(rate);
        self.rate_limited(wait)
    }

    fn rate_limited(&self, wait: Duration) -> Failure {
        let advice = if self.token.is_none() {
            "Set GITHUB_TOKEN for a much higher limit"
        } else {
            "Wait until then, and check which other programs use the same token or account"
        };
        let wait = wait.max(Duration::from_secs(1));
        let at = self.clock.now() + wait;
        let message = format!(
            "GitHub's rate limit is used up until {} UTC (for {}). {advice}.",
            at.strftime("%H:%M"),
            format::elapsed(wait)
        );
        Failure::new(Code::RateLimited, message).after(wait)
    }
}

impl ApiResponse {
    /// Deserializes the body of a successful response.
    fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        if !self.status.is_success() {
            return Err(unexpected_status(self.status));
        }
        serde_json::from_slice(&self.body).map_err(|error| not_as_documented(&error))
    }
}

fn unavailable(message: impl Into<String>) -> Failure {
    Failure::new(Code::GithubUnavailable, message)
}

fn unreached(error: &(dyn std::error::Error + 'static)) -> Failure {
    let reason = Unreachable::of(error);
    unavailable(format!("GitHub could not be reached: {reason}."))
}

/// Reads a body into memory. octocrab returns a hyper body, so `client::body` cannot read it.
async fn whole(body: ApiBody) -> Result<Bytes, Failure> {
    let body = Limited::new(body, JSON_BYTES_MAX).collect().await;
    let body = body.map_err(|error| {
        tracing::debug!(%error, "incomplete response from GitHub");
        bad_body()
    })?;
    Ok(body.to_bytes())
}

fn late() -> Failure {
    unavailable("GitHub did not respond in time.")
}

fn bad_body() -> Failure {
    unavailable("GitHub's response was incomplete or too large.")
}

fn not_as_documented(error: &serde_json::Error) -> Failure {
    tracing::debug!(%error, "unexpected response from GitHub");
    unavailable("GitHub's response does not match its API documentation.")
}

fn unexpected_status(status: StatusCode) -> Failure {
    unavailable(format!("GitHub returned status {}.", status.as_u16()))
}

fn too_many_redirects() -> Failure {
    unavailable(format!(
        "GitHub redirected more than {REDIRECTS_MAX} times."
    ))
}

fn denied(message: impl Into<String>) -> Failure {
    Failure::new(Code::GithubDenied, message)
}

fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    Some(RateLimit {
        limit: number(headers, "x-ratelimit-limit").unwrap_or(0),
        remaining: number(headers, "x-ratelimit-remaining")?,
        reset: number(headers, "x-ratelimit-reset")?,
    })
}

/// Whether the message of an error response contains `words` (lower case). An empty repository and a
/// secondary rate limit can be recognised by their text only.
fn says(body: &[u8], words: &str) -> bool {
    #[derive(Deserialize)]
    struct ErrorBody {
        message: String,
    }
    serde_json::from_slice::<ErrorBody>(body).is_ok_and(|error| contains(&error.message, words))
}

/// Whether a message contains `words` (lower case).
fn contains(message: &str, words: &str) -> bool {
    message.to_lowercase().contains(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn github(api_url: &str) -> Github {
        let clock = Clock::default();
        let repository = "acme/videos".parse().unwrap();
        Github::new(api_url, None, repository, None, "videos", clock).unwrap()
    }

    #[tokio::test]
    async fn an_https_api_redirects_to_https_only() {
        let github = github("https://api.github.com");
        let api = github.endpoint([]);
        let next = |to: &'static str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(to))]);
            github.redirect(&api, StatusCode::FOUND, &headers).ok()
        };
        let followed = next("https://objects.acme.example/x").flatten();
        assert_eq!(followed.unwrap().as_str(), "https://objects.acme.example/x");
        for refused in ["http://api.github.com/x", "file:///etc/passwd", "http://"] {
            assert_eq!(next(refused), None, "{refused}");
        }
    }

    #[tokio::test]
    async fn the_token_is_sent_to_the_git_host_of_the_api_only() {
        for (api, git, expected) in [
            ("https://api.github.com", "https://github.com/a/b.git", true),
            (
                "https://git.acme.example/api/v3",
                "https://git.acme.example/a/b.git",
                true,
            ),
            ("https://api.github.com", "http://github.com/a/b.git", false),
            (
                "https://api.github.com",
                "https://github.com:8443/a/b.git",
                false,
            ),
            (
                "https://api.github.com",
                "https://github.com.example/a/b.git",
                false,
            ),
            (
                "https://git.acme.example/api/v3",
                "https://acme.example/a/b.git",
                false,
            ),
        ] {
            let is_git_host = github(api).is_git_host(&git.parse().unwrap());
            assert_eq!(is_git_host, expected, "{api} {git}");
        }
    }
}
