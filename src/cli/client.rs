//! Client of a running server's HTTP API. Every error says what to do next.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Arg, ArgMatches};
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{InvalidConfiguration, reachable};
use crate::config::{self, Config, Problem, Sources};
use crate::domain::ids::VideoKey;
use crate::format::{causes, plain};
use crate::services::client;

/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of a request, in addition to the time that the server was asked to wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest response, in bytes: the report of a sweep over about 300,000 videos.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The longest wait for a byte of the event stream: the server sends a comment every 15 s.
const EVENTS_SILENCE_MAX: Duration = Duration::from_secs(45);

/// The longest line of the event stream, in bytes.
const EVENT_BYTES_MAX: usize = 64 << 10;

/// The ids in a video's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct VideoName {
    /// The lesson's id; `None` if only the video's id was given.
    pub lesson_id: Option<Uuid>,
    /// The video's id.
    pub video_id: Uuid,
}

impl From<Uuid> for VideoName {
    fn from(video_id: Uuid) -> Self {
        Self {
            lesson_id: None,
            video_id,
        }
    }
}

/// A video as the API lists it. Fields that are not shown are not read, so that versions may differ.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Video {
    /// The video's id.
    pub video_id: String,
    /// The lesson's id.
    pub lesson_id: String,
    /// The lesson's title.
    pub lesson_title: Option<String>,
    /// `generating`, `queued`, `running`, `waiting`, `ready`, `failed`.
    pub state: String,
    /// The failure code.
    pub code: Option<String>,
    /// The failure in words.
    pub message: Option<String>,
    /// What to do about the failure.
    pub advice: Option<String>,
    /// When the server tries it again by itself, as RFC 3339.
    pub next_attempt_at: Option<String>,
    /// The page of the agent's conversation.
    pub conversation_url: Option<String>,
    /// What the agent is doing.
    pub generation: Option<Generation>,
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

impl Video {
    /// The video's ids; `None` if they are not UUIDs.
    pub(crate) fn key(&self) -> Option<VideoKey> {
        Some(VideoKey {
            lesson_id: self.lesson_id.parse().ok()?,
            video_id: self.video_id.parse().ok()?,
        })
    }
}

/// The status of the agent that makes the video.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Generation {
    /// `generating`, `finished`, `failed`, `blocked`, `unknown` or `not_asked`.
    pub status: String,
    /// The status as a sentence.
    pub detail: String,
    /// When OpenHands was asked last, as RFC 3339.
    pub checked_at: Option<String>,
    /// When the row is marked as failed, as RFC 3339.
    pub deadline_at: Option<String>,
}

/// A video with its history.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    /// The fields of the list.
    #[serde(flatten)]
    pub video: Video,
    /// What is waited for, or what happened.
    pub explanation: Option<String>,
    /// Addresses by what they show: `conversation`, `file`, `commit`, `row`, `object`.
    pub links: BTreeMap<String, Option<String>>,
    /// Fields of the video's JSON file.
    pub metadata: Option<BTreeMap<String, Value>>,
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

    /// The server's URL, without a trailing slash.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// One video with its history.
    ///
    /// # Errors
    /// Fails if the server does not have the video, or like [`Client::get`].
    pub(crate) async fn video(&self, video: impl Into<VideoName>) -> anyhow::Result<Value> {
        let video = video.into();
        let response = self.find_video(video).await?;
        self.known(response, video).await
    }

    /// One video with its history; `None` if the server does not have it.
    ///
    /// # Errors
    /// Fails like [`Client::get`].
    pub(crate) async fn find_video(
        &self,
        video: impl Into<VideoName>,
    ) -> anyhow::Result<Option<Value>> {
        let (path, query) = address(video.into(), "");
        self.request(Method::GET, &path, &query, None).await
    }

    /// Requests a video again.
    ///
    /// # Errors
    /// Fails if the server does not have the video, or like [`Client::get`].
    pub(crate) async fn retry(&self, video: VideoName) -> anyhow::Result<Value> {
        let (path, query) = address(video, "/retry");
        let response = self.request(Method::POST, &path, &query, None).await?;
        self.known(response, video).await
    }

    /// Reads from the API.
    ///
    /// # Errors
    /// Fails if the server does not respond, rejects the token, has no such API or returns an error.
    pub(crate) async fn get(&self, path: &str, query: &Query<'_>) -> anyhow::Result<Value> {
        let response = self.request(Method::GET, path, query, None).await?;
        response.with_context(|| self.no_api())
    }

    /// Changes something, with a JSON body unless it is null.
    ///
    /// # Errors
    /// Fails like [`Client::get`].
    pub(crate) async fn post(
        &self,
        path: &str,
        query: &Query<'_>,
        body: &Value,
        wait: Duration,
    ) -> anyhow::Result<Value> {
        let sent = Some((body, wait));
        let response = self.request(Method::POST, path, query, sent).await?;
        response.with_context(|| self.no_api())
    }

    /// Opens the stream of changes.
    ///
    /// # Errors
    /// Fails like [`Client::get`].
    pub(crate) async fn events(&self) -> anyhow::Result<Events> {
        let request = self.http.get(format!("{}/api/events", self.base));
        let request = request.bearer_auth(self.token.expose_secret()).send();
        let response = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
        let mut response = response
            .with_context(|| format!("{} did not respond in time.", self.base))?
            .map_err(|error| self.unreachable(error))?;
        if response.status() == StatusCode::OK {
            return Ok(Events {
                response,
                received: Vec::new(),
                heard_at: Instant::now(),
            });
        }
        let body = client::body(&mut response, RESPONSE_BYTES_MAX).await?;
        match self.read(&response, &body.unwrap_or_default())? {
            None => bail!(self.no_api()),
            Some(_) => bail!("{} is not a video-ingest server. Check --url.", self.base),
        }
    }

    fn no_api(&self) -> String {
        format!(
            "{} returned 404 for an API request. Start that server with ADMIN_TOKEN set, or check --url.",
            self.base
        )
    }

    /// A 404 means that the video or the whole API is missing; a second request tells which.
    async fn known(&self, response: Option<Value>, video: VideoName) -> anyhow::Result<Value> {
        if response.is_none() {
            let query = [("limit", "1".to_owned())];
            self.get("/api/videos", &query).await?;
        }
        response.with_context(|| {
            let lesson = video.lesson_id.map(|id| format!(" in the lesson {id}"));
            format!(
                "{} has no video with the ID {}{}. Search for it with `video-ingest videos list --q TEXT`.",
                self.base,
                video.video_id,
                lesson.unwrap_or_default()
            )
        })
    }

    /// The response; `None` for a 404. `sent`: a body, and how long the server was asked to wait.
    async fn request(
        &self,
        method: Method,
        path: &str,
        query: &Query<'_>,
        sent: Option<(&Value, Duration)>,
    ) -> anyhow::Result<Option<Value>> {
        let base = &self.base;
        let (body, wait) = sent.unwrap_or((&Value::Null, Duration::ZERO));
        let mut request = self
            .http
            .request(method, format!("{base}{path}"))
            .query(query)
            .bearer_auth(self.token.expose_secret())
            .timeout(REQUEST_TIMEOUT + wait);
        if !body.is_null() {
            request = request.json(body);
        }
        let broken = |error| self.unreachable(error);
        let mut response = request.send().await.map_err(broken)?;
        let body = client::body(&mut response, RESPONSE_BYTES_MAX).await;
        let Some(body) = body.map_err(broken)? else {
            bail!("{base} returned more than {RESPONSE_BYTES_MAX} bytes. Request fewer videos.");
        };
        self.read(&response, &body)
    }

    /// The body of a successful response; `None` for a 404.
    fn read(&self, response: &reqwest::Response, body: &[u8]) -> anyhow::Result<Option<Value>> {
        let base = &self.base;
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => bail!(
                "{base} rejected ADMIN_TOKEN. Set ADMIN_TOKEN (or ADMIN_TOKEN_FILE) to that server's admin token."
            ),
            _ if status.is_success() => {
                let response = serde_json::from_slice(body).map(Some);
                response
                    .with_context(|| format!("{base} is not a video-ingest server. Check --url."))
            }
            _ if status.is_redirection() => {
                let target = response.headers().get(LOCATION).map(|to| to.to_str());
                let target = target.and_then(Result::ok).unwrap_or("another address");
                bail!(
                    "{base} redirects to {}. Specify the server's own URL with --url.",
                    plain(target)
                )
            }
            _ => match serde_json::from_slice::<ErrorBody>(body) {
                Ok(ErrorBody { detail, code }) => {
                    let next = next_step(&code).map(|next| format!(" {next}"));
                    bail!(
                        "{base}: {} ({}){}",
                        plain(&detail),
                        plain(&code),
                        next.unwrap_or_default()
                    )
                }
                Err(_) if status.is_server_error() => bail!(
                    "{base} returned {status}, but not from video-ingest: a proxy in front of the server cannot reach it. Check that the server is running and that the proxy forwards requests to it."
                ),
                Err(_) => {
                    bail!(
                        "{base} returned {status}. Check that --url is the URL of a video-ingest server."
                    )
                }
            },
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let base = &self.base;
        let is_connect = error.is_connect();
        let causes = causes(&error.without_url()).to_string();
        if causes.contains("dns error") {
            anyhow::anyhow!(
                "The host name in {base} cannot be resolved. Check --url for a typing mistake."
            )
        } else if causes.contains("certificate") {
            anyhow::anyhow!(
                "The TLS certificate of {base} is not accepted ({causes}). Check that --url contains the host name for which the certificate was issued."
            )
        } else if is_connect && base.starts_with("https:") && !causes.contains("refused") {
            anyhow::anyhow!(
                "Cannot open a TLS connection to {base} ({causes}). Check the port, and whether --url must begin with `http://`."
            )
        } else if is_connect {
            anyhow::anyhow!(
                "No server is responding at {base}. Start one with `video-ingest serve`, or set the server's URL with --url."
            )
        } else {
            anyhow::anyhow!(
                "{base} did not respond: {causes}. Check that the server is running, then run the command again."
            )
        }
    }
}

/// Parameters of a request.
pub(crate) type Query<'a> = [(&'a str, String)];

/// The path and the parameters of a video in the API.
fn address(video: VideoName, action: &str) -> (String, Vec<(&'static str, String)>) {
    let lesson = video.lesson_id.map(|id| ("lesson_id", id.to_string()));
    let path = format!("/api/videos/{}{action}", video.video_id);
    (path, lesson.into_iter().collect())
}

/// What to do about an error of the server.
fn next_step(code: &str) -> Option<&'static str> {
    Some(match code {
        "github_unavailable" => {
            "Nothing was changed. Check https://www.githubstatus.com, run `video-ingest doctor` on the server's machine, then run this command again. Unless RECONCILE_INTERVAL is 0, the server's next automatic sweep also tries again."
        }
        "database_unavailable" => {
            "Nothing was changed. Check the server that DATABASE_URL points to, then run this command again."
        }
        "busy" => "Run this command again in a few seconds.",
        "rate_limited" => {
            "Wait a minute, then run this command again with the server's ADMIN_TOKEN."
        }
        _ => return None,
    })
}

/// The stream of changes.
pub(crate) struct Events {
    response: reqwest::Response,
    received: Vec<u8>,
    heard_at: Instant,
}

impl Events {
    /// The data of the next event `video`; `None` for `reload`. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// Fails when the stream ends or is silent for too long.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.received.drain(..end + 2).collect();
                match parse_event(&String::from_utf8_lossy(&event)) {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            let deadline = self.heard_at + EVENTS_SILENCE_MAX;
            let chunk = timeout_at(deadline, self.response.chunk()).await;
            let chunk = chunk.context("The event stream timed out.")?;
            let chunk = chunk.map_err(reqwest::Error::without_url)?;
            self.received
                .extend(chunk.context("The server closed the connection.")?);
            self.heard_at = Instant::now();
            ensure!(
                self.received.len() <= EVENT_BYTES_MAX,
                "The server sent an event of more than {EVENT_BYTES_MAX} bytes."
            );
        }
    }
}

/// The data of an event `video`; `Some(None)` for `reload`, `None` for a comment or another event.
/// Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".
fn parse_event(text: &str) -> Option<Option<Value>> {
    let field = |name: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    match field("event")? {
        "video" => Some(serde_json::from_str(field("data")?).ok()),
        "reload" => Some(None),
        _ => None,
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
