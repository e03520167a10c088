//! GitHub's side of things: what the branch holds ([`Listing`]) and the bytes of a file ([`Download`]).
//!
//! Everything a call has to respect is here, once: where the token may go, which redirects are
//! followed, how large an answer may be, when GitHub wants to be left alone, and what each status
//! means for a video.

mod download;
mod hooks;
mod listing;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use octocrab::Octocrab;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::clock::Clock;
use crate::domain::failure::{Code, Failure, RETRY_AFTER_MAX};
use crate::domain::ids::RepoName;

pub use download::Download;
pub use hooks::{Hook, HookDelivery, RECEIVER_PATH, RepositoryFacts, failed_guids};
pub use listing::{Entry, Freshness, Listing, Pair};

/// The longest JSON answer that is read, in bytes: the trees API stops at about 7 MB.
const JSON_BYTES_MAX: usize = 16 << 20;

/// How much of an error's body is read, in bytes: enough for GitHub's own error objects.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// The longest a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The most redirects that are followed for one request; a renamed repository needs one.
const REDIRECTS_MAX: usize = 3;

/// The first wait where GitHub asks for one without saying how long; doubled each time in a row.
/// Source: GitHub's documentation, "Best practices for using the REST API".
const UNSPECIFIED_WAIT: Duration = Duration::from_secs(60);

/// How long to wait for GitHub.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest a JSON call may take, from the connection to the last byte, for each redirect.
    pub call: Duration,
    /// How long a download may go without a byte before it is given up.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// One repository as its API shows it. Cheap to share: put it behind an `Arc`.
pub struct Github {
    /// Where the API is, a possible path (`/api/v3`) included.
    api: Url,
    repo: RepoName,
    branch: Option<String>,
    /// The folders that lead to the videos, outermost first; none for the repository's root.
    videos_dir: Vec<String>,
    token: Option<SecretString>,
    /// `Bearer <token>`, marked sensitive.
    authorization: Option<HeaderValue>,
    json: Octocrab,
    bytes: reqwest::Client,
    clock: Clock,
    patience: Patience,
    limits: Mutex<Limits>,
    shared: tokio::sync::Mutex<listing::Shared>,
    compared: Mutex<HashMap<listing::Comparison, listing::Freshness>>,
    clone_url: Mutex<Option<Url>>,
}

/// The rate limit as GitHub last told it.
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
struct Limits {
    last_seen: Option<RateLimit>,
    /// No call before this, in milliseconds since the Unix epoch.
    paused_until_ms: i64,
    /// How often in a row GitHub asked us to wait without saying how long.
    unspecified: u32,
}

/// A setting that no call can be made with.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct InvalidSetting {
    /// The setting's name.
    pub name: &'static str,
    /// What is wrong, and what would be right; never the value of a secret.
    pub problem: &'static str,
}

/// An answer of the API that is for the caller to read.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Github {
    /// A client for `repo`, of which `branch` (else the default branch) and
    /// the folder `videos_dir` are looked at. Makes no call; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// A setting is no URL, or no text that a header can carry.
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
                let problem = "not a URL such as https://api.github.com";
                invalid("GITHUB_API_URL", problem)
            })?;
        let authorization = token
            .as_ref()
            .map(|token| sensitive(format!("Bearer {}", token.expose_secret())))
            .transpose()
            .map_err(|problem| invalid("GITHUB_TOKEN", problem))?;
        // No token for octocrab: it checks the host and port alone, not the scheme. Its `retry`
        // feature is off: the schedule of the videos is the only retry there is.
        let json = Octocrab::builder()
            .base_uri(api.as_str())
            .map_err(|_| invalid("GITHUB_API_URL", "not a URL that calls can be made to"))?
            .set_connect_timeout(Some(CONNECT_MAX))
            .build()
            .map_err(|_| invalid("GITHUB_API_URL", "no TLS certificates found on this system"))?;
        let bytes = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .user_agent(concat!("video-ingest/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| invalid("GITHUB_API_URL", "no TLS certificates found on this system"))?;
        let folders = videos_dir.split('/').filter(|s| !matches!(*s, "" | "."));
        Ok(Self {
            repo,
            branch,
            videos_dir: folders.map(str::to_owned).collect(),
            api,
            token,
            authorization,
            json,
            bytes,
            clock,
            patience: Patience::default(),
            limits: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            compared: Mutex::default(),
            clone_url: Mutex::default(),
        })
    }

    /// The same client, waiting for so long.
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The rate limit as GitHub last told it; `None` before the first call.
    pub fn rate_limit(&self) -> Option<RateLimit> {
        self.limits().last_seen
    }

    fn limits(&self) -> std::sync::MutexGuard<'_, Limits> {
        self.limits.lock().expect("no panic while held")
    }

    /// The address of something in our repository; each segment is escaped as a whole.
    fn endpoint<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty()
                .extend(["repos", &self.repo.owner, &self.repo.name])
                .extend(segments);
        }
        url
    }

    /// Whether the token may go there: the API's own scheme, host and port.
    fn is_api(&self, url: &Url) -> bool {
        url.origin() == self.api.origin()
    }

    /// Makes one JSON call. Answers the statuses a caller can mean something by: 2xx, 304, and
    /// what GitHub says of things that are not there (404, 409, 422).
    async fn get(&self, url: Url, headers: HeaderMap) -> Result<Answer, Failure> {
        self.check_pause()?;
        let mut url = url;
        for _ in 0..=REDIRECTS_MAX {
            let call = self.get_once(&url, headers.clone());
            let answer = tokio::time::timeout(self.patience.call, call)
                .await
                .map_err(|_| unavailable("GitHub did not answer in time"))??;
            match self.redirect(&url, answer.status, &answer.headers)? {
                // octocrab puts the API's path in front of whatever lies outside of it.
                Some(next) if !self.is_api(&next) || !next.path().starts_with(self.api.path()) => {
                    return Err(unavailable(
                        "GitHub redirected an API call to somewhere else",
                    ));
                }
                Some(next) => url = next,
                None => {
                    self.judge(answer.status, &answer.headers, &answer.body)?;
                    return Ok(answer);
                }
            }
        }
        Err(too_many_redirects())
    }

    async fn get_once(&self, url: &Url, mut headers: HeaderMap) -> Result<Answer, Failure> {
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
                tracing::debug!(%error, "call to GitHub failed");
                unavailable("GitHub could not be reached")
            })?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, JSON_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| {
                tracing::debug!(%error, "answer of GitHub broke off");
                unavailable("GitHub's answer broke off or was too long")
            })?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    /// Where an answer sends us, if it does. The one place that decides about redirects, for both
    /// clients: only `https`, unless the API itself is plain `http`.
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
                "GitHub redirected to an address that is not followed",
            )),
        }
    }

    /// Whether a call may be made there at all: `https`, or plain `http` where the API is.
    fn is_allowed(&self, url: &Url) -> bool {
        url.scheme() == "https" || (url.scheme() == "http" && self.api.scheme() == "http")
    }

    /// Fails fast while GitHub wants to be left alone.
    fn check_pause(&self) -> Result<(), Failure> {
        let left_ms = self.limits().paused_until_ms - self.clock.now_ms();
        match u64::try_from(left_ms) {
            Ok(left_ms @ 1..) => Err(self.asked_to_wait(Duration::from_millis(left_ms))),
            _ => Ok(()),
        }
    }

    /// What an API answer's status means, and what its headers say about the rate limit.
    fn judge(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), Failure> {
        let seen = rate_limit(headers);
        {
            let mut limits = self.limits();
            limits.last_seen = seen.or(limits.last_seen);
            if status.is_success() || status == StatusCode::NOT_MODIFIED {
                limits.unspecified = 0;
            }
        }
        match status.as_u16() {
            200..=299 | 304 | 404 | 409 | 422 => Ok(()),
            401 => Err(denied(
                "GitHub refuses the token: GITHUB_TOKEN is wrong or has expired",
            )),
            403 | 429 => Err(self.refused(status, headers, seen, body)),
            _ => Err(unavailable(format!("GitHub answered {}", status.as_u16()))),
        }
    }

    /// A 403 or 429: asked to wait (then no call goes out before), or not allowed at all.
    fn refused(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        seen: Option<RateLimit>,
        body: &[u8],
    ) -> Failure {
        let now_ms = self.clock.now_ms();
        let mut limits = self.limits();
        let used_up = seen.filter(|seen| seen.remaining == 0);
        let wait = if let Some(wait) = retry_after(headers) {
            wait
        } else if let Some(seen) = used_up {
            let now_s = u64::try_from(now_ms / 1000).unwrap_or(0);
            Duration::from_secs(seen.reset.saturating_sub(now_s))
        } else if status == StatusCode::TOO_MANY_REQUESTS || says(body, "rate limit") {
            let wait = UNSPECIFIED_WAIT.saturating_mul(1 << limits.unspecified.min(8));
            // Calls that were under way together are refused together: that is one time.
            if limits.paused_until_ms <= now_ms {
                limits.unspecified += 1;
            }
            wait
        } else {
            return denied(
                "GitHub refuses access: check that GITHUB_TOKEN may read the contents of GITHUB_REPOSITORY",
            );
        };
        let wait = wait.clamp(Duration::from_secs(1), RETRY_AFTER_MAX);
        let until_ms = now_ms.saturating_add(wait.as_millis() as i64);
        limits.paused_until_ms = limits.paused_until_ms.max(until_ms);
        drop(limits);
        self.asked_to_wait(wait)
    }

    fn asked_to_wait(&self, wait: Duration) -> Failure {
        let advice = match self.token {
            Some(_) => "",
            None => "; with a GITHUB_TOKEN the limit is far higher",
        };
        let message = format!("GitHub asks us to wait {} s{advice}", wait.as_secs().max(1));
        Failure::new(Code::RateLimited, message).after(wait)
    }
}

impl Answer {
    /// The body, if the answer is a success.
    fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        if !self.status.is_success() {
            let status = self.status.as_u16();
            return Err(unavailable(format!("GitHub answered {status}")));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            tracing::debug!(%error, "answer of GitHub not understood");
            unavailable("GitHub's answer was not what its API promises")
        })
    }
}

/// A header value that no log shows.
fn sensitive(text: String) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| "has characters that no token has (a line break?)")?;
    value.set_sensitive(true);
    Ok(value)
}

fn unavailable(message: impl Into<String>) -> Failure {
    Failure::new(Code::GithubUnavailable, message)
}

fn denied(message: impl Into<String>) -> Failure {
    Failure::new(Code::GithubDenied, message)
}

fn too_many_redirects() -> Failure {
    unavailable(format!("GitHub redirected more than {REDIRECTS_MAX} times"))
}

/// `Retry-After` in seconds, the only form GitHub sends.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, RETRY_AFTER.as_str()).map(Duration::from_secs)
}

fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    Some(RateLimit {
        limit: number(headers, "x-ratelimit-limit").unwrap_or(0),
        remaining: number(headers, "x-ratelimit-remaining")?,
        reset: number(headers, "x-ratelimit-reset")?,
    })
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Whether GitHub's refusal says these words (lower case): of an empty repository and of a
/// secondary limit only the text tells.
fn says(body: &[u8], words: &str) -> bool {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    serde_json::from_slice::<Refusal>(body)
        .is_ok_and(|refusal| refusal.message.to_lowercase().contains(words))
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
