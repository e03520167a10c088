//! `video-ingest videos watch`, and what it shares with `reconcile`: the videos that changed since a time.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::client::{Client, Events, Video, VideoName};
use super::videos::{measured, message, pages, relative};
use super::{print, print_line, until_interrupted};
use crate::clock::Clock;
use crate::domain::ids::VideoKey;
use crate::domain::state::VideoState;
use crate::format::plain;

/// How often the videos are read again without an event: other replicas send their events to their own clients.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Shortest time between two readings, however many events arrive.
const RELOAD_PAUSE: Duration = Duration::from_millis(200);

/// First and longest wait before a new connection.
const RECONNECT_FIRST: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(15);

/// How far back changes are read again: the clocks of replicas differ, and a change is visible after it is
/// stamped.
const OVERLAP: Duration = Duration::from_secs(10);

/// How many videos are read to find the time of the newest change on the server.
const NEWEST_MAX: usize = 200;

/// Where changes begin if none of these has a reliable time.
const NEWEST_AGE_MAX: Duration = Duration::from_secs(3600);

/// How many queued and running videos are looked up at a time.
const LOOKUPS_MAX: usize = 20;

/// The fields of a single video that lists do not have.
const DETAIL_FIELDS: [&str; 6] = [
    "explanation",
    "links",
    "metadata",
    "warnings",
    "timeline",
    "deliveries",
];

/// A state of a video that is printed once.
#[derive(Debug, PartialEq)]
struct Seen {
    state: String,
    updated_at: String,
    agent: Option<String>,
}

impl Seen {
    fn of(video: &Video) -> Self {
        Self {
            state: video.state.clone(),
            updated_at: video.updated_at.clone(),
            agent: video.generation.as_ref().map(|agent| agent.status.clone()),
        }
    }
}

/// The videos whose state has not been returned yet.
#[derive(Default)]
pub(super) struct Changes {
    since: Option<Timestamp>,
    seen: HashMap<(String, String), Seen>,
    /// The queued and running videos. If an attempt only confirms a failure, `updated_at` is still the time
    /// of that failure, so the video is not among those that changed since then.
    busy: VecDeque<VideoKey>,
}

impl Changes {
    /// Changes after `since`, in the server's time.
    pub(super) fn since(since: Timestamp) -> Self {
        Self {
            since: Some(since),
            ..Self::default()
        }
    }

    /// Also returns the next state of these videos, which are queued.
    pub(super) fn follow(&mut self, queued: impl IntoIterator<Item = VideoKey>) {
        self.busy.extend(queued);
    }

    /// Changes from now on.
    async fn from_now(client: &Client) -> anyhow::Result<Self> {
        let mut changes = Self::default();
        let (newest, _) = pages(client, &[], NEWEST_MAX).await?;
        for video in newest {
            changes.advance(&serde_json::from_value(video)?);
        }
        changes
            .since
            .get_or_insert(Clock::default().now() - NEWEST_AGE_MAX);
        changes.next(client).await?;
        Ok(changes)
    }

    /// Every video that changed since the last call, oldest change first.
    ///
    /// # Errors
    /// Fails like [`Client::get`].
    pub(super) async fn next(&mut self, client: &Client) -> anyhow::Result<Vec<(Video, Value)>> {
        let since = self
            .since
            .map(|since| ("since", (since - OVERLAP).to_string()));
        let query: Vec<_> = since.into_iter().collect();
        let (values, _) = pages(client, &query, usize::MAX).await?;
        let mut changed = Vec::new();
        for value in values.into_iter().rev() {
            let video: Video = serde_json::from_value(value.clone())?;
            self.busy.retain(|busy| Some(*busy) != video.key());
            if let Some(key) = video.key().filter(|_| is_busy(&video)) {
                self.busy.push_back(key);
            }
            if self.is_new(&video) {
                changed.push((video, value));
            }
        }
        for _ in 0..LOOKUPS_MAX.min(self.busy.len()) {
            let Some(key) = self.busy.pop_front() else {
                break;
            };
            let name = VideoName {
                lesson_id: Some(key.lesson_id),
                video_id: key.video_id,
            };
            let Some(mut value) = client.find_video(name).await? else {
                continue;
            };
            remove_details(&mut value);
            let video: Video = serde_json::from_value(value.clone())?;
            if is_busy(&video) {
                self.busy.push_back(key);
            }
            if self.is_new(&video) {
                changed.push((video, value));
            }
        }
        let since = self.since.map(|since| since - 2 * OVERLAP);
        self.seen.retain(|_, seen| {
            let at = seen.updated_at.parse::<Timestamp>();
            at.is_ok_and(|at| since.is_none_or(|since| at >= since))
        });
        Ok(changed)
    }

    /// Whether this state of the video is seen for the first time.
    fn is_new(&mut self, video: &Video) -> bool {
        self.advance(video);
        let key = (video.video_id.clone(), video.lesson_id.clone());
        let seen = Seen::of(video);
        let before = self.seen.insert(key, Seen::of(video));
        before != Some(seen)
    }

    fn advance(&mut self, video: &Video) {
        // The app chooses the time of a row without a record, which may be in the future.
        if video.state != "generating"
            && let Ok(at) = video.updated_at.parse()
        {
            self.since = self.since.max(Some(at));
        }
    }
}

/// Leaves the fields of the list.
fn remove_details(video: &mut Value) {
    if let Some(fields) = video.as_object_mut() {
        fields.retain(|name, _| !DETAIL_FIELDS.contains(&name.as_str()));
    }
}

fn is_busy(video: &Video) -> bool {
    VideoState::parse(&video.state).is_some_and(VideoState::is_busy)
}

/// What is watched.
struct Watch<'a> {
    client: &'a Client,
    /// Empty: all videos.
    names: &'a [VideoName],
    changes: Changes,
    as_json: bool,
    /// The last problem that was reported.
    problem: Option<String>,
}

/// Prints changes until all named videos are ready or one has failed; without names, forever.
///
/// # Errors
/// Fails if the server cannot be reached at first, or does not have a named video.
pub(super) async fn run(
    client: &Client,
    names: &[VideoName],
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut watch = Watch {
        client,
        names,
        changes: Changes::default(),
        as_json,
        problem: None,
    };
    if names.is_empty() {
        watch.changes = Changes::from_now(client).await?;
        eprintln!(
            "Watching the videos of {}. Press Ctrl-C to stop.",
            client.base()
        );
    } else {
        for name in names {
            client.video(*name).await?;
        }
    }
    let follow = watch.follow_all();
    if names.is_empty() {
        until_interrupted(follow).await
    } else {
        follow.await
    }
}

impl Watch<'_> {
    /// Follows one connection after another until the watch is done.
    async fn follow_all(&mut self) -> anyhow::Result<ExitCode> {
        let mut wait = RECONNECT_FIRST;
        loop {
            match self.follow(&mut wait).await {
                Ok(code) => return Ok(code),
                Err(error) => self.report(Some(format!("{error:#}"))),
            }
            sleep(wait).await;
            wait = (wait * 2).min(RECONNECT_MAX);
        }
    }

    /// Follows one connection until the watch is done. Fails when the connection breaks.
    ///
    /// Changes are also read while there is no stream: some proxies hold it back.
    async fn follow(&mut self, wait: &mut Duration) -> anyhow::Result<ExitCode> {
        let client = self.client;
        let mut connecting = pin!(client.events());
        let mut events: Option<Events> = None;
        loop {
            if let Some(code) = self.print_changes().await? {
                return Ok(code);
            }
            sleep(RELOAD_PAUSE).await;
            if let Some(events) = &mut events {
                self.changed(events).await?;
            } else if let Ok(connected) = timeout(RELOAD_EVERY, &mut connecting).await {
                events = Some(connected?);
                *wait = RECONNECT_FIRST;
                self.report(None);
            }
        }
    }

    /// Waits until a watched video may have changed.
    async fn changed(&self, events: &mut Events) -> anyhow::Result<()> {
        let is_ours = |event: &Value| {
            let id = |name: &VideoName| event["video_id"] == name.video_id.to_string();
            self.names.is_empty() || self.names.iter().any(id)
        };
        let next = async {
            loop {
                match events.next().await {
                    Ok(Some(event)) if !is_ours(&event) => {}
                    event => return event.map(drop),
                }
            }
        };
        timeout(RELOAD_EVERY, next).await.unwrap_or(Ok(()))
    }

    /// Prints what changed. Returns the exit code when the watch is done.
    async fn print_changes(&mut self) -> anyhow::Result<Option<ExitCode>> {
        if self.names.is_empty() {
            for (video, value) in self.changes.next(self.client).await? {
                self.print(&video, &value)?;
            }
            return Ok(None);
        }
        let mut pending = 0;
        for name in self.names {
            let Some(mut value) = self.client.find_video(*name).await? else {
                eprintln!("The video {} no longer exists.", name.video_id);
                return Ok(Some(ExitCode::FAILURE));
            };
            let video: Video = serde_json::from_value(value.clone())?;
            if self.changes.is_new(&video) {
                remove_details(&mut value);
                self.print(&video, &value)?;
            }
            match video.state.as_str() {
                "ready" => {}
                "failed" => return Ok(Some(ExitCode::FAILURE)),
                _ => pending += 1,
            }
        }
        Ok((pending == 0).then_some(ExitCode::SUCCESS))
    }

    fn print(&self, video: &Video, value: &Value) -> anyhow::Result<()> {
        if self.as_json {
            print_line(&value.to_string())
        } else {
            print(&stamped(&line(video)))
        }
    }

    /// Reports a new problem, or its end, once.
    fn report(&mut self, problem: Option<String>) {
        if problem != self.problem {
            match &problem {
                Some(problem) => eprintln!("{problem} Reconnecting …"),
                None => eprintln!("The server is responding again."),
            }
            self.problem = problem;
        }
    }
}

/// The time, and one line of text.
pub(super) fn stamped(text: &str) -> String {
    let now = Clock::default().now();
    format!("{}  {}\n", now.strftime("%H:%M:%SZ"), plain(text))
}

/// A video in one line: `<id>  failed  truncated: The file ends early.`
pub(super) fn line(video: &Video) -> String {
    let mut details = match (&video.code, message(video)) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.clone(),
        (None, Some(message)) => message.to_owned(),
        (None, None) => measured(video),
    };
    if let Some(at) = &video.next_attempt_at {
        let next = relative(at, Clock::default().now());
        details += &format!(" Next attempt {next}.");
    }
    let line = format!("{}  {:10}  {details}", video.video_id, video.state);
    line.trim_end().to_owned()
}
