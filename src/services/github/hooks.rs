//! The repository's settings as far as they concern us: itself, its branches and its webhooks.
//! Source: GitHub's REST documentation, "Repositories" and "Repository webhooks".

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, Github, JSON_BYTES_MAX, denied, unavailable};
use crate::domain::failure::{Code, Failure};

/// Where our server takes deliveries.
pub const RECEIVER_PATH: &str = "/webhooks/github";

/// Entries of one page; the API allows no more.
const PAGE_ENTRIES: &str = "100";

/// Most pages of deliveries that are read: 2,000 of them, where GitHub keeps those of three days.
const DELIVERY_PAGES_MAX: usize = 20;

/// GitHub answers 404 to a token that may not see webhooks.
const HOOKS_DENIED: &str = "GITHUB_TOKEN may not manage this repository's webhooks: give it \"Webhooks: read and write\" (classic: admin:repo_hook)";

/// The repository, and what GitHub says of the token that asked.
#[derive(Clone, Debug)]
pub struct RepositoryFacts {
    /// `owner/name` as it is now: another one than asked for after a renaming.
    pub full_name: String,
    /// Whether it takes a token to read it.
    pub private: bool,
    /// The branch that counts where none is set.
    pub default_branch: String,
    /// The scopes of a classic token; `None` for fine-grained ones and without a token.
    pub scopes: Option<String>,
    /// When the token ends, as GitHub writes it; `None` if it does not, or there is none.
    pub token_expires: Option<String>,
    /// GitHub's clock, in milliseconds since the Unix epoch.
    pub now_ms: Option<i64>,
}

/// A webhook of the repository.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// Its number.
    pub id: u64,
    /// Whether GitHub sends it anything.
    pub active: bool,
    /// `push`, or `*` for everything.
    pub events: Vec<String>,
    /// Where and how.
    pub config: HookConfig,
}

impl Hook {
    /// Whether it points to a server like this one.
    pub fn is_ours(&self) -> bool {
        let url: Option<Url> = self.config.url.parse().ok();
        url.is_some_and(|url| url.path().ends_with(RECEIVER_PATH))
    }
}

/// Where and how a webhook's deliveries are sent.
#[derive(Clone, Debug, Deserialize)]
pub struct HookConfig {
    /// The receiver.
    #[serde(default)]
    pub url: String,
    /// `json` or `form`.
    #[serde(default)]
    pub content_type: String,
    /// `"1"`: certificates are not checked.
    #[serde(default)]
    insecure_ssl: Value,
    /// Only asterisks; absent if deliveries are not signed.
    secret: Option<String>,
}

impl HookConfig {
    /// Whether GitHub checks the receiver's certificate. The schema allows a text or a number.
    pub fn checks_certificates(&self) -> bool {
        self.insecure_ssl != json!("1") && self.insecure_ssl != json!(1)
    }

    /// Whether deliveries are signed, with whatever secret: GitHub shows it to nobody.
    pub fn is_signed(&self) -> bool {
        self.secret
            .as_ref()
            .is_some_and(|secret| !secret.is_empty())
    }
}

/// One attempt at a delivery.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HookDelivery {
    /// The attempt's.
    pub id: u64,
    /// The delivery's: the same for all attempts.
    pub guid: String,
    /// RFC 3339.
    pub delivered_at: String,
    /// `push`, `ping`, …
    pub event: String,
    /// `OK`, or in words what went wrong, such as `timed out`.
    pub status: String,
    /// The receiver's; 0 if there was no answer.
    pub status_code: u16,
}

/// The pushes of which no attempt succeeded, oldest first. Source of "every attempt has its own id
/// and the delivery's GUID": GitHub's documentation, "Redelivering webhooks".
pub fn failed_guids(deliveries: &[HookDelivery]) -> Vec<String> {
    let arrived = deliveries.iter().filter(|d| d.succeeded());
    let arrived: HashSet<&str> = arrived.map(|d| d.guid.as_str()).collect();
    let mut seen = BTreeSet::new();
    let missing = deliveries.iter().rev().filter(|d| {
        d.event == "push" && !arrived.contains(d.guid.as_str()) && seen.insert(d.guid.as_str())
    });
    missing.map(|d| d.guid.clone()).collect()
}

impl HookDelivery {
    /// `status=failure` of the API leaves out timeouts; this does not.
    pub fn succeeded(&self) -> bool {
        self.status == "OK"
    }
}

impl Github {
    /// The repository; `None` if there is none by that name for this token.
    pub async fn repository(&self) -> Result<Option<RepositoryFacts>, Failure> {
        #[derive(Deserialize)]
        struct Repository {
            full_name: String,
            private: bool,
            default_branch: String,
        }
        let answer = self.get(self.endpoint([]), HeaderMap::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let found: Repository = answer.json()?;
        let header = |name: &str| {
            let value = answer.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        // The form of RFC 2822 is what HTTP prescribes for this header.
        let date = header("date").and_then(|text| jiff::fmt::rfc2822::parse(&text).ok());
        Ok(Some(RepositoryFacts {
            full_name: found.full_name,
            private: found.private,
            default_branch: found.default_branch,
            scopes: header("x-oauth-scopes"),
            token_expires: header("github-authentication-token-expiration"),
            now_ms: date.map(|date| date.timestamp().as_millisecond()),
        }))
    }

    /// Whether the repository has this branch.
    pub async fn has_branch(&self, name: &str) -> Result<bool, Failure> {
        let url = self.endpoint(["branches"].into_iter().chain(name.split('/')));
        let answer = self.get(url, HeaderMap::new()).await?;
        Ok(answer.status.is_success())
    }

    /// A small text file at the top of a branch; `None` if there is none.
    pub async fn top_file(&self, name: &str, branch: &str) -> Result<Option<Bytes>, Failure> {
        let mut url = self.endpoint(["contents", name]);
        url.query_pairs_mut().append_pair("ref", branch);
        let raw = HeaderValue::from_static("application/vnd.github.raw+json");
        let answer = self.get(url, HeaderMap::from_iter([(ACCEPT, raw)])).await?;
        Ok(answer.status.is_success().then_some(answer.body))
    }

    /// The repository's webhooks; `None` if the token may not see them.
    pub async fn hooks(&self) -> Result<Option<Vec<Hook>>, Failure> {
        let mut url = self.endpoint(["hooks"]);
        url.query_pairs_mut().append_pair("per_page", PAGE_ENTRIES);
        let answer = match self.get(url, HeaderMap::new()).await {
            // Of a token that may read the repository, as the caller knows, but not this.
            Err(failure) if failure.code == Code::GithubDenied => return Ok(None),
            answer => answer?,
        };
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        answer.json().map(Some)
    }

    /// What GitHub has sent, or tried to, in the three days that it remembers; newest first.
    pub async fn deliveries(&self, hook: u64) -> Result<Vec<HookDelivery>, Failure> {
        let mut url = self.endpoint(["hooks", &hook.to_string(), "deliveries"]);
        url.query_pairs_mut().append_pair("per_page", PAGE_ENTRIES);
        let mut found = Vec::new();
        for _ in 0..DELIVERY_PAGES_MAX {
            let answer = self.get(url, HeaderMap::new()).await?;
            found.extend(answer.json::<Vec<HookDelivery>>()?);
            match next_page(&answer.headers).filter(|next| self.is_api(next)) {
                Some(next) => url = next,
                None => break,
            }
        }
        Ok(found)
    }

    /// Makes a webhook for pushes, or (with a number) makes that one such.
    ///
    /// # Errors
    /// [`Code::GithubDenied`] if the token may not.
    pub async fn save_hook(
        &self,
        hook: Option<u64>,
        receiver: &Url,
        secret: &SecretString,
    ) -> Result<Hook, Failure> {
        let config = json!({
            "url": receiver.as_str(), "content_type": "json", "insecure_ssl": "0",
            "secret": secret.expose_secret(),
        });
        let body = json!({ "name": "web", "active": true, "events": ["push"], "config": config });
        let answer = match hook {
            None => {
                self.send(Method::POST, self.endpoint(["hooks"]), &body)
                    .await
            }
            Some(id) => {
                let url = self.endpoint(["hooks", &id.to_string()]);
                self.send(Method::PATCH, url, &body).await
            }
        };
        answer?.json()
    }

    /// Has GitHub greet the receiver.
    pub async fn ping_hook(&self, hook: u64) -> Result<(), Failure> {
        let url = self.endpoint(["hooks", &hook.to_string(), "pings"]);
        self.send(Method::POST, url, &Value::Null).await.map(drop)
    }

    /// Has GitHub deliver once more what it delivered, or tried to, in this attempt.
    pub async fn redeliver(&self, hook: u64, delivery: u64) -> Result<(), Failure> {
        let (hook, delivery) = (hook.to_string(), delivery.to_string());
        let url = self.endpoint(["hooks", &hook, "deliveries", &delivery, "attempts"]);
        self.send(Method::POST, url, &Value::Null).await.map(drop)
    }

    /// Makes one call that changes something. It is not redirected: after a renaming, the setting
    /// has to be changed anyway.
    async fn send(&self, method: Method, url: Url, body: &Value) -> Result<Answer, Failure> {
        self.check_pause()?;
        let mut request = self
            .bytes
            .request(method, url)
            .timeout(self.patience.call)
            .header(ACCEPT, "application/vnd.github+json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| {
            tracing::debug!(error = %error.without_url(), "call to GitHub failed");
            unavailable("GitHub could not be reached")
        })?;
        let (parts, body) = axum::http::Response::from(response).into_parts();
        let body = Limited::new(body, JSON_BYTES_MAX)
            .collect()
            .await
            .map_err(|_| unavailable("GitHub's answer broke off or was too long"))?
            .to_bytes();
        self.judge(parts.status, &parts.headers, &body)?;
        match parts.status.as_u16() {
            404 => Err(denied(HOOKS_DENIED)),
            422 => Err(denied(format!(
                "GitHub refuses that webhook: {}",
                reasons(&body)
            ))),
            _ => Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }),
        }
    }
}

/// What a 422 says, in GitHub's words.
fn reasons(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        message: String,
        #[serde(default)]
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        message: Option<String>,
    }
    let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else {
        return "no reason given".to_owned();
    };
    let reasons = refusal.errors.into_iter().filter_map(|e| e.message);
    let mut all = vec![refusal.message];
    all.extend(reasons);
    all.join("; ")
}

/// `<https://…?cursor=…>; rel="next"`, one of several separated by commas.
fn next_page(headers: &HeaderMap) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains(r#"rel="next""#))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    url.parse().ok()
}
