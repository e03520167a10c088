//! A running server, asked over its HTTP API. Every error says what to do next.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;

use crate::services::client;

/// A server that does not take a connection within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for an answer, beyond what the server was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest answer that is read, in bytes: a sweep's report on about 300,000 videos.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A video as the API lists it; what is not shown is not read, so that versions may differ.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Video {
    /// Its id.
    pub video_id: String,
    /// Its lesson's.
    pub lesson_id: String,
    /// `generating`, `queued`, `running`, `waiting`, `ready`, `failed`.
    pub state: String,
    /// Why it is not ready.
    pub code: Option<String>,
    /// The same for a person.
    pub message: Option<String>,
    /// What asked for it last.
    pub source: Option<String>,
    /// Attempts counted so far.
    pub attempts: i64,
    /// The stored object's size.
    pub size_bytes: Option<u64>,
    /// The stored video's duration.
    pub duration_ms: Option<u64>,
    /// Where the object is in its bucket.
    pub storage_path: Option<String>,
    /// The commit it was read from.
    pub commit: Option<String>,
    /// RFC 3339.
    pub updated_at: String,
}

/// A video with its history.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Detail {
    /// What the list has too.
    #[serde(flatten)]
    pub video: Video,
    /// What was not as the JSON said.
    pub warnings: Option<Vec<String>>,
    /// Oldest first.
    pub timeline: Vec<Event>,
    /// GUIDs, oldest first.
    pub deliveries: Vec<String>,
}

/// One entry of a timeline.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Event {
    /// RFC 3339.
    pub at: String,
    /// One word.
    pub step: String,
    /// In words.
    pub detail: String,
    /// How long the step took.
    pub ms: Option<i64>,
}

#[derive(Deserialize)]
struct Problem {
    detail: String,
    code: String,
}

/// Where a server is, and the right to ask it.
pub(crate) struct Client {
    base: String,
    token: SecretString,
    http: reqwest::Client,
}

impl Client {
    /// For a server at this address, without a slash at its end.
    ///
    /// # Errors
    /// No TLS on this machine.
    pub(crate) fn new(base: &str, token: SecretString) -> anyhow::Result<Self> {
        let mut builder = client::via_proxy(CONNECT_TIMEOUT);
        // A proxy cannot reach this machine's own loopback.
        let host = reqwest::Url::parse(base)?
            .host_str()
            .unwrap_or_default()
            .to_owned();
        if host == "localhost" || host.starts_with("127.") || host == "[::1]" {
            builder = builder.no_proxy();
        }
        let base = base.trim_end_matches('/').to_owned();
        let http = builder.build()?;
        Ok(Self { base, token, http })
    }

    /// One video with its history.
    ///
    /// # Errors
    /// It is not known there, or as for every call.
    pub(crate) async fn video(&self, id: uuid::Uuid) -> anyhow::Result<Value> {
        let answer = self.find_video(id).await?;
        self.known(answer, id).await
    }

    /// The same, `None` if it is not known there.
    ///
    /// # Errors
    /// As for every call.
    pub(crate) async fn find_video(&self, id: uuid::Uuid) -> anyhow::Result<Option<Value>> {
        let path = format!("/api/videos/{id}");
        self.ask(Method::GET, &path, &[], Duration::ZERO).await
    }

    /// Asks for a video again.
    ///
    /// # Errors
    /// It is not known there, or as for every call.
    pub(crate) async fn retry(&self, id: uuid::Uuid) -> anyhow::Result<Value> {
        let path = format!("/api/videos/{id}/retry");
        let answer = self.ask(Method::POST, &path, &[], Duration::ZERO).await?;
        self.known(answer, id).await
    }

    /// Anything else.
    ///
    /// # Errors
    /// No server, no right, no such API, or the server's own trouble.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        wait: Duration,
    ) -> anyhow::Result<Value> {
        let answer = self.ask(method, path, query, wait).await?;
        answer.with_context(|| {
            format!(
                "{} has no such API for us: start that server with ADMIN_TOKEN set, or correct --url",
                self.base
            )
        })
    }

    /// A 404 means no such video or no API at all; only another question tells which.
    async fn known(&self, answer: Option<Value>, id: uuid::Uuid) -> anyhow::Result<Value> {
        if answer.is_none() {
            let query = [("limit", "1".to_owned())];
            self.call(Method::GET, "/api/videos", &query, Duration::ZERO)
                .await?;
        }
        answer.with_context(|| {
            format!(
                "{} knows no video {id}: look for it with `video-ingest videos list --q …`",
                self.base
            )
        })
    }

    /// The answer, `None` for a 404.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        wait: Duration,
    ) -> anyhow::Result<Option<Value>> {
        let base = &self.base;
        let broken = |error: reqwest::Error| match error.is_connect() {
            true => anyhow::anyhow!(
                "no server answers at {base}: start it with `video-ingest serve`, or say where it is with --url"
            ),
            false => anyhow::anyhow!("{base} did not answer: {}", error.without_url()),
        };
        let mut response = self
            .http
            .request(method, format!("{base}{path}"))
            .query(query)
            .bearer_auth(self.token.expose_secret())
            .timeout(ANSWER_TIMEOUT + wait)
            .send()
            .await
            .map_err(broken)?;
        let status = response.status();
        let body = client::body(&mut response, ANSWER_BYTES_MAX).await;
        let Some(body) = body.map_err(broken)? else {
            bail!("{base} answers more than {ANSWER_BYTES_MAX} bytes; ask for less");
        };
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => bail!(
                "{base} refuses this ADMIN_TOKEN: set ADMIN_TOKEN (or ADMIN_TOKEN_FILE) to the one that server runs with"
            ),
            _ if status.is_success() => {
                serde_json::from_slice(&body).map(Some).with_context(|| {
                    format!("{base} answers, but not as video-ingest does: correct --url")
                })
            }
            _ => match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => bail!("{base}: {} ({})", problem.detail, problem.code),
                Err(_) => bail!("{base} answers {status}: is that a video-ingest server?"),
            },
        }
    }
}
