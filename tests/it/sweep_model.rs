//! All webhooks are lost, and sweeps alone bring many videos to the states that a model predicts.
//!
//! Pushes, rows, statuses and time change at random. After each change, one sweep and the work that is
//! due must bring every row to the predicted state. The seed is printed; a build with
//! `SWEEP_MODEL_SEED=<seed>` in its environment repeats the run.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use serde_json::json;
use uuid::Uuid;
use video_ingest::domain::ids::{FileKind, VideoKey};
use video_ingest::fake_github::Changes;

use crate::support::scenario::{
    AppRow, Backend, GOOD, SECOND, Scenario, THIRD, TRUNCATED, Video, metadata,
};
use crate::sweep::{expect_nothing_written, sweep};

const ROUNDS: usize = 8;

/// The clock moves in steps that stay at least two minutes away from every limit of the rules, so that the
/// duration of the test itself does not matter.
const STEP_MIN: u64 = 13;
/// The rules' limits, in minutes.
const DEADLINE_MIN: u64 = 6 * 60;
const PUSH_AFTER_FINISH_MIN: u64 = 15;
const GRACE_MIN: u64 = 10;
const NO_ROW_MIN: u64 = 24 * 60;

/// The states that must occur in a run, which would prove too little otherwise.
const EVERY_END: [&str; 11] = [
    "ready - -, ready",
    "ready - -, no record",
    "ready - truncated",
    "failed truncated",
    "failed metadata_mismatch",
    "failed generation_timeout",
    "failed generation_failed",
    "failed finished_without_video",
    "waiting no_row",
    "waiting metadata_missing",
    "waiting video_missing",
];

/// The videos that a push may contain; [`Mp4`] holds an index into this list.
const CLIPS: [&[u8]; 3] = [GOOD, SECOND, THIRD];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mp4 {
    Good(usize),
    Lfs(usize),
    Corrupt,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Json {
    Good(u32),
    OfAnother,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Agent {
    None,
    Working,
    Finished,
    Broken,
    Forgotten,
}

/// The app's row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Row {
    Missing,
    Generating,
    Failed(&'static str),
    Ready { last_error: Option<&'static str> },
}

/// The service's record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Record {
    None,
    Waiting { code: &'static str, since: u64 },
    Failed(&'static str),
    Ready,
}

type Pushed = (Option<Mp4>, Option<Json>);

#[derive(Debug)]
struct Model {
    key: VideoKey,
    made: u64,
    pushed: Pushed,
    agent: Agent,
    row: Row,
    record: Record,
    looked_at: Option<Pushed>,
    /// The last known status of the agent, and since when.
    said: Option<(Agent, u64)>,
    stored: Option<usize>,
}

impl Model {
    /// One sweep, and all work that is due after it.
    fn swept(&mut self, now: u64) {
        match (self.row, self.pushed) {
            (Row::Generating, (None, None)) => self.generation(now),
            (_, (None, None)) => {}
            (Row::Missing, _) => {
                self.record = match self.record {
                    Record::None => waiting("no_row", now),
                    Record::Waiting { since, .. } if now - since >= NO_ROW_MIN => {
                        Record::Failed("no_row")
                    }
                    other => other,
                }
            }
            (Row::Ready { .. }, (mp4, _)) if self.record == Record::None => {
                // Made ready by the old function: adopted unchanged.
                if mp4.is_some() {
                    self.record = Record::Ready;
                    self.looked_at = Some(self.pushed);
                }
            }
            _ => {
                let waits = matches!(self.record, Record::Waiting { .. });
                if waits || self.looked_at != Some(self.pushed) {
                    self.ingest(now);
                }
            }
        }
    }

    fn generation(&mut self, now: u64) {
        if now - self.made >= DEADLINE_MIN {
            return self.fail("generation_timeout");
        }
        let since = match self.said {
            Some((said, since)) if said == self.agent => Some(since),
            _ => None,
        };
        match (self.agent, since) {
            (Agent::None, _) => return,
            (Agent::Broken, Some(_)) => return self.fail("generation_failed"),
            (Agent::Finished, Some(since)) if now - since >= PUSH_AFTER_FINISH_MIN => {
                return self.fail("finished_without_video");
            }
            _ => {}
        }
        self.said = Some((self.agent, since.unwrap_or(now)));
    }

    fn ingest(&mut self, now: u64) {
        self.looked_at = Some(self.pushed);
        let since = |what| match self.record {
            Record::Waiting { code, since } if code == what => since,
            _ => now,
        };
        let (lacks_video, lacks_json) = (since("video_missing"), since("metadata_missing"));
        match self.pushed {
            (None, _) if now - lacks_video >= DEADLINE_MIN => self.fail("video_missing"),
            (None, _) => self.record = waiting("video_missing", lacks_video),
            (Some(_), None) if now - lacks_json < GRACE_MIN => {
                self.record = waiting("metadata_missing", lacks_json);
            }
            (_, Some(Json::OfAnother)) => self.fail("metadata_mismatch"),
            (Some(Mp4::Corrupt), _) => self.fail("truncated"),
            (Some(Mp4::Good(clip) | Mp4::Lfs(clip)), _) => {
                self.record = Record::Ready;
                self.row = Row::Ready { last_error: None };
                self.stored = Some(clip);
            }
        }
    }

    fn fail(&mut self, code: &'static str) {
        self.record = Record::Failed(code);
        self.row = match self.row {
            Row::Ready { .. } => Row::Ready {
                last_error: Some(code),
            },
            _ => Row::Failed(code),
        };
    }

    /// The format of [`actual`].
    fn predicted(&self) -> String {
        let row = match self.row {
            Row::Missing => "no row".to_owned(),
            Row::Generating => "generating - -".to_owned(),
            Row::Failed("") => "failed - -".to_owned(),
            Row::Failed(code) => format!("failed {code} -"),
            Row::Ready { last_error } => format!("ready - {}", last_error.unwrap_or("-")),
        };
        let record = match self.record {
            Record::None => "no record".to_owned(),
            Record::Waiting { code, .. } => format!("waiting {code}"),
            Record::Failed(code) => format!("failed {code}"),
            Record::Ready => "ready -".to_owned(),
        };
        format!("{row}, {record}")
    }
}

fn waiting(code: &'static str, since: u64) -> Record {
    Record::Waiting { code, since }
}

/// The app's row and the service's record of every video.
async fn actual(t: &Scenario) -> BTreeMap<Uuid, String> {
    let by_id = |text: Option<String>| -> BTreeMap<Uuid, String> {
        let text = text.unwrap_or_default();
        let pairs = text.split('|').filter_map(|line| line.split_once(' '));
        pairs
            .map(|(id, rest)| (id.parse().unwrap(), rest.to_owned()))
            .collect()
    };
    let rows = "select string_agg(id::text || case
            when storage_path is not null then ' ready '
            when mime_type like 'error:%' then ' failed ' else ' generating ' end
            || coalesce(case when storage_path is null then metadata -> 'ingest' ->> 'code' end, '-') || ' '
            || coalesce(metadata -> 'ingest' -> 'last_error' ->> 'code', '-'), '|') from lesson_assets";
    let records = "select string_agg(video_id || ' ' || state || ' ' || coalesce(code, '-'), '|')
        from video_ingest.videos";
    let (rows, records) = (by_id(t.text(rows).await), by_id(t.text(records).await));
    let ids = rows.keys().chain(records.keys());
    ids.map(|id| {
        let row = rows.get(id).map_or("no row", String::as_str);
        let record = records.get(id).map_or("no record", String::as_str);
        (*id, format!("{row}, {record}"))
    })
    .collect()
}

/// The simulated world, with a model of each video.
struct World {
    rng: Rng,
    now: u64,
    videos: Vec<Model>,
    revision: u32,
    /// How often each predicted state occurred.
    seen: BTreeMap<String, usize>,
}

impl World {
    fn new(seed: u64, videos: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let videos = (0..videos)
            .map(|_| Model {
                key: VideoKey {
                    lesson_id: Uuid::from_u128(rng.u128(..)),
                    video_id: Uuid::from_u128(rng.u128(..)),
                },
                made: 0,
                pushed: (None, None),
                agent: Agent::None,
                row: Row::Missing,
                record: Record::None,
                looked_at: None,
                said: None,
                stored: None,
            })
            .collect();
        Self {
            rng,
            now: 1000 * STEP_MIN,
            videos,
            revision: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Inserts rows as they exist when this service replaces the old function.
    async fn begin(&mut self, t: &Scenario) {
        let mut rows = Vec::new();
        for video in &mut self.videos {
            let age = STEP_MIN * self.rng.u64(0..32);
            video.made = self.now - age;
            let mut row = AppRow::pending(video.key);
            row.age = Duration::from_secs(60 * age);
            (video.row, row.mime_type) = match self.rng.u8(0..10) {
                0 => continue,
                1 => (Row::Failed(""), "error: once"),
                2 => (Row::Ready { last_error: None }, "video/mp4"),
                _ => (Row::Generating, "video/mp4"),
            };
            let path = || {
                let lesson = video.key.lesson_id;
                format!("{}/{lesson}/{}.mp4", t.user, video.key.video_id)
            };
            row.storage_path = matches!(video.row, Row::Ready { .. }).then(path);
            if self.rng.u8(0..4) > 0 {
                row.conversation = Some(video.key.video_id);
                video.agent = agent(&mut self.rng);
                set_status(t, video);
            }
            rows.push(row);
        }
        t.rows(&rows).await;
        self.push(t, 2);
    }

    /// Commits new files for a random part of the videos, without a webhook.
    fn push(&mut self, t: &Scenario, one_in: u8) {
        let mut changes = Changes::default().message("a push without a webhook");
        for video in &mut self.videos {
            if self.rng.u8(0..one_in) > 0 {
                continue;
            }
            self.revision += 1;
            let clip = self.rng.usize(0..CLIPS.len());
            let mp4 = match self.rng.u8(0..8) {
                0 => Mp4::Corrupt,
                1 => Mp4::Lfs(clip),
                _ => Mp4::Good(clip),
            };
            let json = match self.rng.u8(0..10) {
                0 => Json::OfAnother,
                _ => Json::Good(self.revision),
            };
            let half = self.rng.u8(0..6);
            if half != 0 {
                video.pushed.0 = Some(mp4);
                changes = with_mp4(changes, video.key, mp4);
            }
            if half != 1 {
                video.pushed.1 = Some(json);
                changes = changes.write(
                    path(video.key, FileKind::Metadata),
                    json_of(video.key, json),
                );
            }
        }
        t.github.commit(|_| changes);
    }

    /// Moves the clock, inserts rows, changes statuses and pushes files.
    async fn go_on(&mut self, t: &Scenario, round: usize) {
        let steps = match round {
            // Long enough to confirm a status, too short for most deadlines.
            0 | 1 => 1,
            _ => [0, 1, 1, 2, 2, 28, 112][self.rng.usize(0..7)],
        };
        self.now += steps * STEP_MIN;
        t.later(Duration::from_secs(steps * STEP_MIN * 60));
        let mut rows = Vec::new();
        for video in &mut self.videos {
            if video.row == Row::Missing && self.rng.u8(0..4) == 0 {
                video.row = Row::Generating;
                video.made = self.now;
                rows.push(AppRow::pending(video.key));
            } else if video.agent != Agent::None && self.rng.u8(0..6) == 0 {
                video.agent = agent(&mut self.rng);
                set_status(t, video);
            }
        }
        if !rows.is_empty() {
            t.rows(&rows).await;
        }
        self.push(t, 8);
    }

    async fn sweep(&mut self, t: &Scenario) {
        sweep(t, "").await;
        t.work().await;
        for video in &mut self.videos {
            video.swept(self.now);
        }
        let actual = actual(t).await;
        for video in &self.videos {
            let found = actual.get(&video.key.video_id);
            let found = found.map_or("no row, no record", String::as_str);
            if found != video.predicted() {
                let id = video.key.video_id;
                let events = format!(
                    "select string_agg(step || ' ' || coalesce(detail, ''), '|' order by at, seq) from video_ingest.events where video_id = '{id}'"
                );
                let events = t.text(&events).await;
                panic!(
                    "{found}, but {} was predicted; now {}: {video:#?}\n{events:?}",
                    video.predicted(),
                    self.now
                );
            }
            *self.seen.entry(video.predicted()).or_default() += 1;
        }
    }
}

fn agent(rng: &mut Rng) -> Agent {
    let of = [
        Agent::Working,
        Agent::Working,
        Agent::Finished,
        Agent::Broken,
        Agent::Forgotten,
    ];
    of[rng.usize(0..of.len())]
}

/// Sets the status of this video's conversation, which has the video's id, in the agent's API.
fn set_status(t: &Scenario, video: &Model) {
    let id = video.key.video_id;
    match video.agent {
        Agent::None => {}
        Agent::Working => t.agent.conversation(id, "RUNNING", Some("running")),
        Agent::Finished => t.agent.conversation(id, "RUNNING", Some("finished")),
        Agent::Broken => t.agent.conversation(id, "RUNNING", Some("error")),
        Agent::Forgotten => t.agent.forget(id),
    }
}

fn path(key: VideoKey, kind: FileKind) -> String {
    format!("videos/{}", key.file_name(kind))
}

fn with_mp4(changes: Changes, key: VideoKey, mp4: Mp4) -> Changes {
    let path = path(key, FileKind::Video);
    match mp4 {
        Mp4::Good(clip) => changes.write(path, CLIPS[clip]),
        Mp4::Lfs(clip) => changes.write_lfs(path, CLIPS[clip]),
        Mp4::Corrupt => changes.write(path, TRUNCATED),
    }
}

/// A constant, because the model treats the same file as unchanged.
const ANOTHER: VideoKey = VideoKey {
    lesson_id: Uuid::from_u128(1),
    video_id: Uuid::from_u128(2),
};

fn json_of(key: VideoKey, json: Json) -> Bytes {
    match json {
        Json::Good(revision) => metadata(key, json!({"note": revision})).into(),
        Json::OfAnother => metadata(ANOTHER, json!({})).into(),
    }
}

async fn sweeps_alone_reach_the_predicted_states(backend: Backend, videos: usize) {
    let seed =
        option_env!("SWEEP_MODEL_SEED").map(|seed| seed.parse().expect("a seed is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SWEEP_MODEL_SEED={seed}");
    let t = Scenario::begin(backend).await;
    let mut world = World::new(seed, videos);
    world.begin(&t).await;
    world.sweep(&t).await;
    for round in 0..ROUNDS {
        world.go_on(&t, round).await;
        world.sweep(&t).await;
    }
    // The second status of agents that failed in the last round, then the deletion of statuses that are no
    // longer needed.
    world.sweep(&t).await;
    world.sweep(&t).await;
    expect_nothing_written(&t, "").await;
    for video in &world.videos {
        let stored = Video::of(video.key);
        let clip = video.stored.map(|clip| CLIPS[clip]);
        assert!(t.stored(&stored).as_deref() == clip, "{video:#?}");
    }
    println!("{:#?}", world.seen);
    for code in EVERY_END {
        let reached = world.seen.keys().any(|state| state.contains(code));
        assert!(reached, "no video reached: {code}");
    }
    t.finish().await;
}

#[tokio::test]
async fn embedded() {
    sweeps_alone_reach_the_predicted_states(Backend::Embedded, 1000).await;
}

#[tokio::test]
async fn supabase() {
    sweeps_alone_reach_the_predicted_states(Backend::Supabase, 1000).await;
}
