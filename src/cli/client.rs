//! Client of a running server's HTTP API. Every error says what to do next.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::{InvalidConfiguration, reachable};
use crate::config::{self, Config, Problem, Sources};
use crate::services::client;

/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of a request, in addition to the time that the server was asked to wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest response, in bytes: the report of a sweep over about 300,000 videos.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// A video as the API lists it. Fields that are not shown are not read, so that versions may differ.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Video {
    /// The video's id.
    pub video_id: String,
    /// The lesson's id.
    pub lesson_id: String,
    /// `generating`, `queued`, `running`, `waiting`, `ready`, `failed`.
    pub state: String,
    /// The failure code.
    pub code: Option<String>,
    /// The failure in words.
    pub message: Option<String>,
    /// What requested it last.
    pub source: Option<String>,
    /// Attempts so far.
    pub attempts: i64,
    /// The size of the stored object.
    pub size_bytes: Option<u64>,
    /// The duration of the stored video.
    pub duration_ms: Option<u64>,
    /// The path of the object in its bucket.
    pub storage_path: Option<String>,
    /// The commit that it was read from.
    pub commit: Option<String>,
    /// RFC 3339.
    pub updated_at: String,
}

/// A video with its history.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Detail {
    /// The fields of the list.
    #[serde(flatten)]
    pub video: Video,
    /// Differences between the video and its JSON.
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
    /// The name of the step.
    pub step: String,
    /// A description.
    pub detail: String,
    /// How long the step took, in milliseconds.
    pub ms: Option<i64>,
}

/// An error response, `application/problem+json`.
#[derive(Deserialize)]
struct ErrorBody {
    detail: String,
    code: String,
}

/// A running server and its admin token.
pub(crate) struct Client {
    base: String,
    token: SecretString,
    http: reqwest::Client,
}

impl Client {
    /// The server of `--url`, else the one that listens on this machine.
    ///
    /// # Errors
    /// Fails on an invalid configuration.
    pub(crate) fn from_flags(matches: &ArgMatches) -> anyhow::Result<Self> {
        let sources = Sources::from_process(matches);
        let url = match matches.get_one::<String>("url") {
            Some(url) => url.clone(),
            None => {
                let listen = Config::local_server(&sources).map_err(InvalidConfiguration)?;
                format!("http://{}", reachable(listen))
            }
        };
        let token = Config::admin_token(&sources).map_err(InvalidConfiguration)?;
        let unset = || {
            let right = "must be set to the server's admin token (or use ADMIN_TOKEN_FILE)";
            InvalidConfiguration(vec![Problem::new("ADMIN_TOKEN", right)])
        };
        Self::new(&url, token.ok_or_else(unset)?)
    }

    /// A client for the server at the URL `base`.
    ///
    /// # Errors
    /// Fails if the system's TLS certificates cannot be read.
    pub(crate) fn new(base: &str, token: SecretString) -> anyhow::Result<Self> {
        let mut builder = client::via_proxy(CONNECT_TIMEOUT);
        // A proxy cannot reach the loopback interface of this machine.
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
    /// Fails if the server does not have the video, or like [`Client::call`].
    pub(crate) async fn video(&self, id: uuid::Uuid) -> anyhow::Result<Value> {
        let response = self.find_video(id).await?;
        self.known(response, id).await
    }

    /// One video with its history; `None` if the server does not have it.
    ///
    /// # Errors
    /// Fails like [`Client::call`].
    pub(crate) async fn find_video(&self, id: uuid::Uuid) -> anyhow::Result<Option<Value>> {
        let path = format!("/api/videos/{id}");
        self.request(Method::GET, &path, &[], Duration::ZERO).await
    }

    /// Requests a video again.
    ///
    /// # Errors
    /// Fails if the server does not have the video, or like [`Client::call`].
    pub(crate) async fn retry(&self, id: uuid::Uuid) -> anyhow::Result<Value> {
        let path = format!("/api/videos/{id}/retry");
        let response = self
            .request(Method::POST, &path, &[], Duration::ZERO)
            .await?;
        self.known(response, id).await
    }

    /// Any other request.
    ///
    /// # Errors
    /// Fails if the server does not respond, rejects the token, has no such API or returns an error.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        wait: Duration,
    ) -> anyhow::Result<Value> {
        let response = self.request(method, path, query, wait).await?;
        response.with_context(|| {
            format!(
                "{} returned 404 for an API request. Start that server with ADMIN_TOKEN set, or check --url.",
                self.base
            )
        })
    }

    /// A 404 means that the video or the whole API is missing; a second request tells which.
    async fn known(&self, response: Option<Value>, id: uuid::Uuid) -> anyhow::Result<Value> {
        if response.is_none() {
            let query = [("limit", "1".to_owned())];
            self.call(Method::GET, "/api/videos", &query, Duration::ZERO)
                .await?;
        }
        response.with_context(|| {
            format!(
                "{} has no video with the ID {id}. Search for it with `video-ingest videos list --q …`.",
                self.base
            )
        })
    }

    /// The response; `None` for a 404.
    async fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        wait: Duration,
    ) -> anyhow::Result<Option<Value>> {
        let base = &self.base;
        let broken = |error: reqwest::Error| {
            if error.is_connect() {
                anyhow::anyhow!(
                    "No server is responding at {base}. Start one with `video-ingest serve`, or set the server's URL with --url."
                )
            } else {
                anyhow::anyhow!("{base} did not respond: {}", error.without_url())
            }
        };
        let mut response = self
            .http
            .request(method, format!("{base}{path}"))
            .query(query)
            .bearer_auth(self.token.expose_secret())
            .timeout(REQUEST_TIMEOUT + wait)
            .send()
            .await
            .map_err(broken)?;
        let status = response.status();
        let body = client::body(&mut response, RESPONSE_BYTES_MAX).await;
        let Some(body) = body.map_err(broken)? else {
            bail!("{base} returned more than {RESPONSE_BYTES_MAX} bytes. Request fewer videos.");
        };
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => bail!(
                "{base} rejected ADMIN_TOKEN. Set ADMIN_TOKEN (or ADMIN_TOKEN_FILE) to that server's admin token."
            ),
            _ if status.is_success() => {
                let response = serde_json::from_slice(&body).map(Some);
                response
                    .with_context(|| format!("{base} is not a video-ingest server. Check --url."))
            }
            _ => match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(body) => bail!("{base}: {} ({})", body.detail, body.code),
                Err(_) => {
                    bail!("{base} returned {status}. Check that it is a video-ingest server.")
                }
            },
        }
    }
}

/// The flag of [`Client::from_flags`].
pub(super) fn url_flag() -> Arg {
    Arg::new("url")
        .long("url")
        .value_name("URL")
        .value_parser(config::base_url)
        .help("URL of the server [default: the server on this machine, at LISTEN_ADDR or PORT]")
}
