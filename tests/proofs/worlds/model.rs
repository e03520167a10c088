//! The model of a world: what was pushed, what the app did, and what must be true after every event.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use uuid::Uuid;
use video_ingest::app::Injected;
use video_ingest::domain::failure::{Class, Code};
use video_ingest::domain::ids::{GitSha, VideoKey};
use video_ingest::fake_github::Delivery;
use video_ingest::pipeline::worker::Worker;
use video_ingest::services::storage;

use super::Log;
use super::faults::{Fault, Faults};
use crate::support::fake_github::{self, Call};
use crate::support::scenario::{
    Backend, GOOD, SECOND, Scenario, THIRD, TRUNCATED, Video, metadata,
};

/// The buckets of the rows.
pub const BUCKETS: [&str; 2] = ["lesson-assets", "lesson-assets-2"];
/// The limit of a bucket unless it was lowered, in bytes.
pub const BUCKET_LIMIT: u64 = 1 << 20;
/// How long the storage client waits for the answer to an upload. Real time.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// More steps than the work of one event takes.
const STEPS_MAX: usize = 400;

/// A content that was pushed for a video.
pub struct Version {
    pub mp4: Bytes,
    /// Whether it can be ingested.
    pub good: bool,
}

/// The files of a video at a commit.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Files {
    /// The version of the MP4.
    pub mp4: Option<usize>,
    pub json: bool,
}

/// A video, and what the app and the world did to it.
pub struct Model {
    pub key: VideoKey,
    pub versions: Vec<Version>,
    pub has_row: bool,
    pub user: Uuid,
    pub bucket: &'static str,
    /// The row belongs to another lesson at the moment.
    pub lesson_moved: bool,
    /// The last push of it was not announced by a webhook.
    pub lost: bool,
    /// The head whose version was seen in the row: its index in [`World::heads`]. Earlier ones must not
    /// come back.
    pub floor: usize,
    pub was_ready: bool,
    /// The MP4 was in the branch all the time since it was first pushed.
    pub kept: bool,
    /// The object is an older or newer version than the row, and only a sweep can find it: an upload of it
    /// was committed very late, the row moved to another lesson during an upload, or the branch had no
    /// version that could replace it.
    pub drifted: bool,
    /// Reasons that it may fail for, besides those of its content.
    pub excuses: HashSet<Code>,
}

/// What the database says about a video.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub lesson: String,
    pub bucket: String,
    pub path: Option<String>,
    pub failed: bool,
    pub sha256: String,
    /// The code in the row.
    pub row_code: String,
    pub state: Option<String>,
    /// The code in the record.
    pub code: String,
}

/// A webhook that was not delivered yet.
pub struct Hook {
    pub delivery: Delivery,
    pub named: Vec<usize>,
}

pub struct World {
    pub t: Scenario,
    pub replica: Option<Worker>,
    pub rng: Rng,
    pub only: Vec<String>,
    /// Whether to print everything as it happens.
    loud: bool,
    pub log: Arc<Mutex<Log>>,
    /// Whether there are sweeps; `RECONCILE_INTERVAL=0` otherwise.
    pub sweeps: bool,
    pub videos: Vec<Model>,
    /// The files of each video at each commit.
    pub trees: HashMap<GitSha, Vec<Files>>,
    /// Every head that the branch had.
    pub heads: Vec<GitSha>,
    pub hooks: Vec<Hook>,
    pub delivered: Vec<Hook>,
    pub faults: Faults,
    /// How far the clock was moved forward.
    pub elapsed: Duration,
    /// Which content has this SHA-256: its video and version.
    pub contents: HashMap<String, (usize, usize)>,
}

impl World {
    pub async fn begin(seed: u64, only: Vec<String>, log: Arc<Mutex<Log>>, loud: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let backend = match rng.u8(0..10) {
            0..4 => Backend::Embedded,
            4..9 => Backend::Supabase,
            _ => Backend::Pooled,
        };
        log.lock().unwrap().backend = format!("{backend:?}");
        let injected = Injected {
            storage_timeouts: storage::Timeouts {
                answer: ANSWER_MAX,
                ..storage::Timeouts::default()
            },
            ..Injected::default()
        };
        let t = Scenario::begin_injected(backend, injected, |config| config.agent = None).await;
        if !loud {
            // Lasts until the thread's next world.
            std::mem::forget(tracing::subscriber::set_default(
                tracing::subscriber::NoSubscriber::default(),
            ));
        }
        for bucket in BUCKETS {
            let types: &[&str] = &["video/mp4"];
            t.storage
                .create_bucket(bucket, Some(BUCKET_LIMIT), Some(types));
        }
        let replica = match backend {
            Backend::Embedded => None,
            _ => Some(t.replica().await),
        };
        let videos = (0..rng.usize(2..=5)).map(|_| Model {
            key: VideoKey {
                lesson_id: Uuid::from_u128(rng.u128(..)),
                video_id: Uuid::from_u128(rng.u128(..)),
            },
            versions: Vec::new(),
            has_row: false,
            user: t.user,
            bucket: BUCKETS[0],
            lesson_moved: false,
            lost: false,
            floor: 0,
            was_ready: false,
            kept: true,
            drifted: false,
            excuses: HashSet::new(),
        });
        let videos: Vec<_> = videos.collect();
        let head = t.github.head();
        let mut world = Self {
            replica,
            trees: HashMap::from([(head, vec![Files::default(); videos.len()])]),
            heads: vec![head],
            t,
            sweeps: rng.u8(0..3) > 0,
            rng,
            only,
            loud,
            log,
            videos,
            hooks: Vec::new(),
            delivered: Vec::new(),
            faults: Faults::default(),
            elapsed: Duration::ZERO,
            contents: HashMap::new(),
        };
        if !world.sweeps {
            world.note("there are no sweeps");
        }
        for video in 0..world.videos.len() {
            if world.one_in(5) {
                continue;
            }
            world.insert_row(video).await;
        }
        world
    }

    // Randomness and the log.

    pub fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    /// Any of the videos.
    pub fn any(&mut self) -> usize {
        self.rng.usize(0..self.videos.len())
    }

    /// Whether this behaviour belongs to this run.
    pub fn has(&self, behaviour: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == behaviour)
    }

    pub fn note(&self, event: impl Into<String>) {
        let (s, event) = (self.elapsed.as_secs(), event.into());
        let line = format!("{:>3}:{:02}:{:02}  {event}", s / 3600, s / 60 % 60, s % 60);
        if self.loud {
            println!("{line}");
        }
        self.log.lock().unwrap().events.push(line);
    }

    /// Counts a behaviour that occurred.
    pub fn occurred(&self, behaviour: &'static str) {
        let mut log = self.log.lock().unwrap();
        *log.occurred.entry(behaviour).or_default() += 1;
    }

    pub fn postgres(&self) -> bool {
        self.t.backend != Backend::Embedded
    }

    // What is pushed.

    pub fn head_files(&self, video: usize) -> Files {
        self.trees[&self.t.github.head()][video]
    }

    /// A new content for a video. Contents of one clip have the same size.
    pub fn new_version(&mut self, video: usize) -> usize {
        let version = self.videos[video].versions.len() + 1;
        let good = !self.one_in(12);
        let clip = if good {
            [GOOD, SECOND, THIRD][self.rng.usize(0..3)]
        } else {
            TRUNCATED
        };
        let mut mp4 = clip.to_vec();
        // A box that players skip.
        mp4.extend(24_u32.to_be_bytes());
        mp4.extend(b"free");
        mp4.extend((video as u64).to_be_bytes());
        mp4.extend((version as u64).to_be_bytes());
        let sha256 = hex::encode(Sha256::digest(&mp4));
        self.contents.insert(sha256, (video, version));
        self.videos[video].versions.push(Version {
            mp4: mp4.into(),
            good,
        });
        version
    }

    pub fn version(&self, video: usize, version: usize) -> &Version {
        &self.videos[video].versions[version - 1]
    }

    /// The video as the scenarios have it, with this version.
    pub fn video(&self, video: usize) -> Video {
        Video::of(self.videos[video].key)
    }

    pub fn json(&mut self, video: usize) -> Vec<u8> {
        let revision = self.rng.u32(..);
        metadata(self.videos[video].key, json!({ "note": revision }))
    }

    // The app.

    pub async fn insert_row(&mut self, video: usize) {
        self.t.row(&self.video(video)).await;
        self.videos[video].has_row = true;
        if self.one_in(3) {
            self.videos[video].bucket = BUCKETS[1];
            let id = self.videos[video].key.video_id;
            let bucket = BUCKETS[1];
            let update =
                format!("update lesson_assets set storage_bucket = '{bucket}' where id = '{id}'");
            self.t.sql(&update).await;
        }
        self.note(format!(
            "the app inserts row {video} in {}",
            self.videos[video].bucket
        ));
    }

    // The server.

    pub fn workers(&self) -> Vec<Worker> {
        let replica = self.replica.iter();
        [&self.t.worker]
            .into_iter()
            .chain(replica)
            .cloned()
            .collect()
    }

    pub fn any_worker(&mut self) -> Worker {
        let workers = self.workers();
        workers[self.rng.usize(0..workers.len())].clone()
    }

    /// Runs everything that is due now.
    pub async fn work(&mut self) {
        let worker = self.any_worker();
        drain(worker).await;
        self.faults.worked_at = self.elapsed;
    }

    /// Moves the clock, and ends the faults whose time is over.
    pub async fn later(&mut self, by: Duration) {
        self.t.later(by);
        self.elapsed += by;
        self.end_faults(false).await;
        if !by.is_zero() {
            self.forget_listings().await;
        }
    }

    /// Requests become older when the clock is moved, but a listing that a server shares does not: it would
    /// seem to be newer than a request that came after it. A listing that fails is not shared.
    async fn forget_listings(&mut self) {
        self.count_calls();
        for worker in self.workers() {
            if !self.faults.is(|fault| fault == Fault::GithubDown) {
                let unavailable = fake_github::Fault::Status {
                    code: 500,
                    headers: Vec::new(),
                    body: String::new(),
                };
                self.t
                    .github
                    .fault_once(|call| call.path.contains("/commits/"), unavailable);
            }
            let listing = worker.ingest.github.listing(Instant::now()).await;
            assert!(listing.is_err(), "the listing should have failed");
        }
        self.t.github.take_calls();
    }

    // What must be true.

    pub async fn seen(&self) -> BTreeMap<String, Seen> {
        let rows = "select string_agg(id::text || ' ' || lesson_id::text || ' ' || storage_bucket || ' '
                || coalesce(storage_path, '-') || ' ' || case when mime_type like 'error:%' then '1' else '0' end
                || ' ' || coalesce(metadata -> 'ingest' ->> 'sha256', '-') || ' '
                || coalesce(case when storage_path is null then metadata -> 'ingest' ->> 'code' end, '-'), '|')
            from lesson_assets where kind = 'video'";
        let records =
            "select string_agg(video_id || ' ' || lesson_id || ' ' || state || ' ' || coalesce(code, '-'), '|')
            from video_ingest.videos";
        // A row that was moved to another lesson can have a record there.
        let keys = self.videos.iter().map(|video| video.key.to_string());
        let keys: HashSet<_> = keys.collect();
        let mut seen = BTreeMap::<String, Seen>::new();
        for line in self.t.text(rows).await.unwrap_or_default().split('|') {
            if let [id, lesson, bucket, path, failed, sha256, code] =
                line.split(' ').collect::<Vec<_>>()[..]
            {
                let seen = seen.entry(id.to_owned()).or_default();
                seen.lesson = lesson.to_owned();
                seen.bucket = bucket.to_owned();
                seen.path = (path != "-").then(|| path.to_owned());
                seen.failed = failed == "1";
                seen.sha256 = sha256.to_owned();
                seen.row_code = code.to_owned();
            }
        }
        for line in self.t.text(records).await.unwrap_or_default().split('|') {
            if let [id, lesson, state, code] = line.split(' ').collect::<Vec<_>>()[..]
                && keys.contains(&format!("{lesson}_{id}"))
            {
                let seen = seen.entry(id.to_owned()).or_default();
                seen.state = Some(state.to_owned());
                seen.code = code.to_owned();
            }
        }
        seen
    }

    pub fn stored(&self, bucket: &str, path: &str) -> Option<Bytes> {
        if self.postgres() {
            return self.t.storage.bytes(&format!("{bucket}/{path}"));
        }
        let file = self.t.data_dir().join("store").join(bucket).join(path);
        std::fs::read(file).ok().map(Bytes::from)
    }

    /// What must be true at any time. `settled`: no upload may be between the storage and the row.
    pub async fn check(&mut self, settled: bool) -> BTreeMap<String, Seen> {
        self.count_calls();
        let all = self.seen().await;
        for video in 0..self.videos.len() {
            let id = self.videos[video].key.video_id.to_string();
            if let Some(seen) = all.get(&id) {
                self.check_row(video, seen, settled);
                self.check_failure(video, &seen.row_code, seen);
                if seen.state.as_deref() == Some("failed") {
                    self.check_failure(video, &seen.code, seen);
                }
            }
        }
        all
    }

    fn check_row(&mut self, video: usize, seen: &Seen, settled: bool) {
        if self.faults.long_stale() {
            self.videos[video].floor = 0;
        }
        let model = &self.videos[video];
        let Some(path) = &seen.path else {
            assert!(
                !model.was_ready,
                "video {video} was ready, and its row is pending again"
            );
            return;
        };
        let of = |sha256: &str| {
            let known = self.contents.get(sha256).filter(|(of, _)| *of == video);
            known.map(|(_, version)| *version)
        };
        let Some(version) = of(&seen.sha256) else {
            panic!("row {video} describes bytes that were never pushed: {seen:?}");
        };
        // The first head, from the one that was seen last on, which had a version.
        let head_of = |version| {
            let had = |head: &GitSha| self.trees[head][video].mp4 == Some(version);
            let heads = self.heads.iter().enumerate().skip(model.floor);
            heads.into_iter().find(|(_, head)| had(head))
        };
        let Some((floor, _)) = head_of(version) else {
            let last = self.trees[&self.heads[model.floor]][video].mp4;
            panic!(
                "row {video} went from version {last:?} back to version {version}, and the branch did not"
            );
        };
        assert!(
            self.version(video, version).good,
            "row {video} has the broken version {version}"
        );
        if self.faults.hides_objects() {
            return;
        }
        let Some(bytes) = self.stored(&seen.bucket, path) else {
            panic!("row {video} is ready and names an object that does not exist: {seen:?}");
        };
        let Some(stored) = of(&hex::encode(Sha256::digest(&bytes))) else {
            panic!("the object of row {video} was never pushed for it");
        };
        // The upload of a later version has ended. If its row could not be updated then, the version is
        // published by the next attempt after a configuration failure, which can be a day later.
        let code = Code::parse(&seen.code);
        let blocked = seen.state.as_deref() == Some("failed")
            && model.excuses.contains(&Code::RowDenied)
            && code.is_some_and(|code| code.class() == Class::Configuration);
        let replaced = (!settled || blocked) && head_of(stored).is_some();
        // Nothing in the branch can replace what an interrupted attempt has uploaded.
        let head = self.head_files(video).mp4;
        let irreplaceable = !head.is_some_and(|head| self.version(video, head).good);
        let fails = seen.state.as_deref() != Some("ready");
        let late = self.faults.late_upload(video, fails);
        let drifted = model.drifted || irreplaceable;
        let excused = late || drifted;
        assert!(
            stored == version || replaced || excused,
            "row {video} describes version {version}, but the object is version {stored}"
        );
        let model = &mut self.videos[video];
        model.was_ready = true;
        model.floor = floor;
        // Nothing that could replace the object is left, unless an upload is held.
        // A new version repairs it, once it is ingested.
        model.drifted = drifted;
        if stored == version && !self.faults.holds_upload(video) {
            model.drifted = false;
            self.faults.is_repaired(video);
        }
    }

    /// Nothing is failed that is not really failed.
    fn check_failure(&self, video: usize, code: &str, seen: &Seen) {
        let Some(code) = Code::parse(code) else {
            return;
        };
        let model = &self.videos[video];
        let broken = model.versions.iter().any(|version| !version.good);
        let allowed = match code {
            Code::Truncated | Code::NotAnMp4 => broken,
            Code::VideoMissing => !model.kept,
            Code::GaveUp => self.faults.long_outage,
            // After hours in which nothing was pushed, or nobody could see what was pushed.
            Code::GenerationTimeout | Code::NoRow => self.elapsed > Duration::from_secs(6 * 3600),
            code if code.class() == Class::Transient => false,
            code => model.excuses.contains(&code),
        };
        assert!(
            allowed,
            "video {video} failed with {code}, which is not true: {seen:?}"
        );
    }

    pub fn count_calls(&self) -> usize {
        let calls = self.t.github.take_calls();
        let count = calls.len();
        let failed = |call: &Call| {
            let failed = call.status.is_some_and(|status| status >= 400);
            failed && call.path.contains("/compare/")
        };
        if self.faults.compare.is_some() && calls.iter().any(failed) {
            self.occurred("compare");
        }
        if calls
            .iter()
            .any(|call| call.path.ends_with("/objects/batch") && call.status == Some(403))
        {
            self.occurred("lfs");
        }
        self.log.lock().unwrap().calls += count;
        count
    }
}

/// Runs everything that is due now, on this server.
pub async fn drain(worker: Worker) {
    for _ in 0..STEPS_MAX {
        match worker.run_once().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => panic!(
                "the worker failed: {}",
                video_ingest::format::causes(&error)
            ),
        }
    }
    panic!("there is still work after {STEPS_MAX} steps");
}
