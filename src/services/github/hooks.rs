//! The repository itself, its branches and its webhooks, as `doctor` and `webhook` need them.
//! Source: GitHub's REST documentation, "Repositories" and "Repository webhooks".

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, DATE, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ApiResponse, Github, JSON_BYTES_MAX, bad_body, denied, unreached};
use crate::domain::failure::{Code, Failure};
use crate::format::causes;
use crate::services::client;

/// The path at which this server receives deliveries.
pub const RECEIVER_PATH: &str = "/webhooks/github";

/// Entries per page: the API's maximum.
const PAGE_ENTRIES: &str = "100";

/// The most pages of deliveries that are read: 2,000 deliveries. GitHub keeps those of three days.
const DELIVERY_PAGES_MAX: usize = 20;

/// The message for a 404, which GitHub returns to a token without access to webhooks.
const HOOKS_DENIED: &str = "GITHUB_TOKEN is not allowed to manage this repository's webhooks; grant it the \"Webhooks: read and write\" permission (classic tokens: the admin:repo_hook scope).";

/// The repository, and what GitHub's response headers say about the token.
#[derive(Clone, Debug)]
pub struct RepositoryFacts {
    /// `owner/name` today: differs from the requested one after the repository was renamed.
    pub full_name: String,
    /// Whether reading it requires a token.
    pub private: bool,
    /// The branch that is used if GITHUB_BRANCH is not set.
    pub default_branch: String,
    /// The scopes of a classic token; `None` for fine-grained ones and without a token.
    pub scopes: Option<String>,
    /// When the token expires, as GitHub writes it; `None` if it does not, or there is no token.
    pub token_expires: Option<String>,
    /// GitHub's clock, in milliseconds since the Unix epoch.
    pub now_ms: Option<i64>,
}

/// A webhook of the repository.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// GitHub's id of it.
    pub id: u64,
    /// Whether GitHub delivers to it.
    pub active: bool,
    /// The events it receives, such as `push`; `*` for all.
    pub events: Vec<String>,
    /// Where and how deliveries are sent.
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
    /// The receiver's address.
    #[serde(default)]
    pub url: String,
    /// `json` or `form`.
    #[serde(default)]
    pub content_type: String,
    /// `"1"`: certificates are not verified.
    #[serde(default)]
    insecure_ssl: Value,
    /// Masked with asterisks; absent if deliveries are not signed.
    secret: Option<String>,
}

impl HookConfig {
    /// Whether GitHub verifies the receiver's certificate.
    pub fn checks_certificates(&self) -> bool {
        // GitHub's schema allows a string or a number.
        self.insecure_ssl != json!("1") && self.insecure_ssl != json!(1)
    }

    /// Whether deliveries are signed. Which secret signs them is not known: GitHub never shows it.
    pub fn is_signed(&self) -> bool {
        self.secret
            .as_ref()
            .is_some_and(|secret| !secret.is_empty())
    }
}

/// One attempt at a delivery.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HookDelivery {
    /// The attempt's id.
    pub id: u64,
    /// The delivery's id: the same for all attempts.
    pub guid: String,
    /// RFC 3339.
    pub delivered_at: String,
    /// `push`, `ping`, …
    pub event: String,
    /// `OK`, or what went wrong, such as `timed out`.
    pub status: String,
    /// The receiver's HTTP status; 0 if it did not respond.
    pub status_code: u16,
}

/// The GUIDs of the pushes that no attempt delivered, oldest first. Every attempt has an id of its own
/// and the delivery's GUID. Source: GitHub's documentation, "Redelivering webhooks".
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
    /// Whether the receiver accepted it. Unlike the API's filter `status=failure`, this counts a timeout
    /// as a failure.
    pub fn succeeded(&self) -> bool {
        self.status == "OK"
    }
}

impl Github {
    /// The repository; `None` if it does not exist or the token has no access to it.
    pub async fn repository(&self) -> Result<Option<RepositoryFacts>, Failure> {
        #[derive(Deserialize)]
        struct FoundRepo {
            full_name: String,
            private: bool,
            default_branch: String,
        }
        let response = self.get(self.endpoint([]), HeaderMap::new()).await?;
        if response.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let found: FoundRepo = response.json()?;
        let header = |name: &str| {
            let value = response.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        Ok(Some(RepositoryFacts {
            full_name: found.full_name,
            private: found.private,
            default_branch: found.default_branch,
            scopes: header("x-oauth-scopes"),
            token_expires: header("github-authentication-token-expiration"),
            now_ms: client::http_date_ms(&response.headers, &DATE),
        }))
    }

    /// Whether the repository has this branch.
    pub async fn has_branch(&self, name: &str) -> Result<bool, Failure> {
        let url = self.endpoint(["branches"].into_iter().chain(name.split('/')));
        let response = self.get(url, HeaderMap::new()).await?;
        Ok(response.status.is_success())
    }

    /// A small text file in the root folder of a branch; `None` if it does not exist.
    pub async fn top_file(&self, name: &str, branch: &str) -> Result<Option<Bytes>, Failure> {
        let mut url = self.endpoint(["contents", name]);
        url.query_pairs_mut().append_pair("ref", branch);
        let raw = HeaderValue::from_static("application/vnd.github.raw+json");
        let response = self.get(url, HeaderMap::from_iter([(ACCEPT, raw)])).await?;
        Ok(response.status.is_success().then_some(response.body))
    }

    /// The repository's webhooks; `None` if the token has no access to them.
    pub async fn hooks(&self) -> Result<Option<Vec<Hook>>, Failure> {
        let mut url = self.endpoint(["hooks"]);
        url.query_pairs_mut().append_pair("per_page", PAGE_ENTRIES);
        let response = match self.get(url, HeaderMap::new()).await {
            // The caller knows that the token can read the repository, so only this is denied.
            Err(failure) if failure.code == Code::GithubDenied => return Ok(None),
            response => response?,
        };
        if response.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        response.json().map(Some)
    }

    /// The attempts at deliveries of the last three days, newest first.
    pub async fn deliveries(&self, hook: u64) -> Result<Vec<HookDelivery>, Failure> {
        let mut url = self.endpoint(["hooks", &hook.to_string(), "deliveries"]);
        url.query_pairs_mut().append_pair("per_page", PAGE_ENTRIES);
        let mut found = Vec::new();
        for _ in 0..DELIVERY_PAGES_MAX {
            let response = self.get(url, HeaderMap::new()).await?;
            found.extend(response.json::<Vec<HookDelivery>>()?);
            // The token is sent to that address, so it must be the API's.
            match next_page(&response.headers).filter(|next| self.is_api(next)) {
                Some(next) => url = next,
                None => break,
            }
        }
        Ok(found)
    }

    /// Creates a webhook for pushes, or changes the one with the id `hook` into one.
    ///
    /// # Errors
    /// [`Code::GithubDenied`] if the token may not manage webhooks.
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
        let response = match hook {
            None => {
                self.send(Method::POST, self.endpoint(["hooks"]), &body)
                    .await
            }
            Some(id) => {
                let url = self.endpoint(["hooks", &id.to_string()]);
                self.send(Method::PATCH, url, &body).await
            }
        };
        response?.json()
    }

    /// Asks GitHub to send a `ping` to the webhook.
    pub async fn ping_hook(&self, hook: u64) -> Result<(), Failure> {
        let url = self.endpoint(["hooks", &hook.to_string(), "pings"]);
        self.send(Method::POST, url, &Value::Null).await.map(drop)
    }

    /// Asks GitHub to repeat the delivery with the attempt `delivery`.
    pub async fn redeliver(&self, hook: u64, delivery: u64) -> Result<(), Failure> {
        let (hook, delivery) = (hook.to_string(), delivery.to_string());
        let url = self.endpoint(["hooks", &hook, "deliveries", &delivery, "attempts"]);
        self.send(Method::POST, url, &Value::Null).await.map(drop)
    }

    /// Makes one call that changes something. Follows no redirect: after a repository was renamed,
    /// GITHUB_REPOSITORY has to be changed anyway.
    async fn send(&self, method: Method, url: Url, body: &Value) -> Result<ApiResponse, Failure> {
        self.check_pause()?;
        let mut request = self
            .bytes
            .request(method, url)
            .timeout(self.timeouts.call)
            .header(ACCEPT, "application/vnd.github+json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let failed = |error: reqwest::Error| {
            let error = error.without_url();
            tracing::debug!(error = causes(&error), "request to GitHub failed");
            unreached(&error)
        };
        let mut response = request.send().await.map_err(failed)?;
        let body = client::body(&mut response, JSON_BYTES_MAX).await;
        let body = body.map_err(failed)?.ok_or_else(bad_body)?;
        let status = response.status();
        self.judge(status, response.headers(), &body)?;
        match status {
            StatusCode::NOT_FOUND => Err(denied(HOOKS_DENIED)),
            StatusCode::UNPROCESSABLE_ENTITY => Err(denied(format!(
                "GitHub rejected the webhook: {}.",
                reasons(&body)
            ))),
            _ => Ok(ApiResponse {
                status,
                headers: std::mem::take(response.headers_mut()),
                body: body.into(),
            }),
        }
    }
}

/// The reasons in the body of a 422, in GitHub's words.
fn reasons(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct ValidationFailed {
        #[serde(default)]
        message: String,
        #[serde(default)]
        errors: Vec<ValidationError>,
    }
    #[derive(Deserialize)]
    struct ValidationError {
        message: Option<String>,
    }
    let Ok(failed) = serde_json::from_slice::<ValidationFailed>(body) else {
        return "no reason given".to_owned();
    };
    let reasons = failed.errors.into_iter().filter_map(|e| e.message);
    let mut all = vec![failed.message];
    all.extend(reasons);
    all.join("; ")
}

/// The `next` link of a page: `<https://…?cursor=…>; rel="next"`, one of several separated by commas.
fn next_page(headers: &HeaderMap) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains(r#"rel="next""#))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    url.parse().ok()
}
