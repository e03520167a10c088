//! The environment of the server processes, and the checks of its contents.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;
use video_ingest::fake_github::Delivery;

use crate::server::Server;
use crate::support::fake_github::{Call, Fault, TestGithub};
use crate::support::fake_storage::{FakeStorage, SECRET_KEY};
use crate::support::postgres::{Database, Postgres};
use crate::support::scenario::{ADMIN_TOKEN, GOOD, REPOSITORY, SECOND, SECRET, THIRD, Video};

/// The shortest lease that the settings allow.
pub const LEASE: Duration = Duration::from_secs(5);

/// How long an expired lease may wait until it is taken over: the poll interval of five seconds, and extra
/// time for a busy machine.
const LEASE_NOTICED_MAX: Duration = Duration::from_secs(10);

/// Longer than all retries take.
const DRAIN_MAX: Duration = Duration::from_secs(420);

/// Long enough for a kill during a download.
const DOWNLOAD_TIME: Duration = Duration::from_millis(30);

/// How many lines of a log are shown.
const LOG_LINES: usize = 30;

const BUCKET: &str = "lesson-assets";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// SQLite and a folder, one process.
    Embedded,
    /// Postgres as the least-privileged role, and the Storage fake.
    Supabase,
}

/// A push and the only video in it.
#[derive(Clone)]
pub struct Push {
    pub video: Video,
    pub delivery: Delivery,
}

/// GitHub, storage, database, and the list of acknowledged deliveries.
pub struct World {
    pub backend: Backend,
    pub client: reqwest::Client,
    pub database: Option<Database>,
    pub acknowledged: Vec<Push>,
    github: TestGithub,
    storage: FakeStorage,
    user: Uuid,
    dir: tempfile::TempDir,
    /// Every video that was pushed, acknowledged or not.
    videos: HashMap<Uuid, Video>,
    /// The last seen version of each object.
    seen: HashMap<Uuid, u64>,
    /// Videos whose object was stored but whose row was not ready when a process was killed.
    pub between: HashSet<Uuid>,
    /// How often the object of each video was replaced.
    replaced: HashMap<Uuid, u64>,
}

/// What a drained world adds to the figures.
#[derive(Default)]
pub struct Drained {
    pub ready: usize,
    pub between: usize,
    pub replaced_between: u64,
    pub lease_over_max: Duration,
}

impl World {
    pub async fn new(backend: Backend, postgres: Option<&'static Postgres>) -> Self {
        let github = TestGithub::start(REPOSITORY).await;
        github.commit(|c| c.write("README.md", "videos, rendered"));
        let blob = |call: &Call| call.path.contains("/git/blobs/");
        github.fault(blob, Fault::Delay(DOWNLOAD_TIME));
        let storage = FakeStorage::start().await;
        storage.create_bucket(BUCKET, Some(52_428_800), Some(&["video/mp4"]));
        let database = match (backend, postgres) {
            (Backend::Embedded, _) => None,
            (Backend::Supabase, Some(server)) => Some(server.create_database().await),
            (Backend::Supabase, None) => Some(Postgres::database().await),
        };
        Self {
            backend,
            client: reqwest::Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
            database,
            acknowledged: Vec::new(),
            github,
            storage,
            user: Uuid::new_v4(),
            dir: tempfile::tempdir().unwrap(),
            videos: HashMap::new(),
            seen: HashMap::new(),
            between: HashSet::new(),
            replaced: HashMap::new(),
        }
    }

    /// Starts a process in this world; `name` is its DATA_DIR.
    pub fn start(&self, name: &str, settings: &[(&str, &str)]) -> Server {
        let data = self.dir.path().join(name);
        std::fs::create_dir_all(&data).unwrap();
        let lease = format!("{}s", LEASE.as_secs());
        let mut all = vec![
            ("DATA_DIR", data.display().to_string()),
            ("GITHUB_API_URL", self.github.url()),
            ("GITHUB_REPOSITORY", REPOSITORY.to_owned()),
            ("GITHUB_WEBHOOK_SECRET", SECRET.to_owned()),
            ("ADMIN_TOKEN", ADMIN_TOKEN.to_owned()),
            ("RECONCILE_INTERVAL", "0".to_owned()),
            ("LEASE", lease),
        ];
        if let Some(database) = &self.database {
            all.push(("DATABASE_URL", database.service_url.clone()));
            all.push(("SUPABASE_URL", self.storage.url()));
            all.push(("SUPABASE_SERVICE_ROLE_KEY", SECRET_KEY.to_owned()));
        }
        all.extend(
            settings
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let all: Vec<_> = all
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Server::start(
            &all,
            self.dir.path(),
            &self.dir.path().join(format!("{name}.log")),
        )
    }

    /// Pushes this many videos, one by one, without delivering the webhooks.
    pub async fn pushes(&mut self, count: usize) -> Vec<Push> {
        let mut pushes = Vec::new();
        for n in 0..count {
            let mut video = Video::with([GOOD, SECOND, THIRD][n % 3]);
            // Bytes that no other video has: a `free` box with its id.
            let mut mp4 = video.mp4.to_vec();
            mp4.extend_from_slice(&24u32.to_be_bytes());
            mp4.extend_from_slice(b"free");
            mp4.extend_from_slice(video.key.video_id.as_bytes());
            video.mp4 = Bytes::from(mp4);
            if let Some(database) = &self.database {
                database.insert_lesson(video.key.lesson_id, self.user).await;
                database.insert_asset(video.key, self.user, "video").await;
            }
            let before = self.github.head();
            let after = self.github.commit(|c| video.write(c));
            self.videos.insert(video.key.video_id, video.clone());
            let delivery = self.github.push(before, after);
            pushes.push(Push { video, delivery });
        }
        pushes
    }

    /// The texts that a query returns, as the database's owner.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        match &self.database {
            Some(database) => sqlx::query_scalar(AssertSqlSafe(query))
                .fetch_all(&database.admin)
                .await
                .unwrap_or_else(|e| panic!("{query}: {e}")),
            None => {
                let pool = self.sqlite().await;
                let query = query.replace("video_ingest.", "").replace("::text", "");
                let rows = sqlx::query(AssertSqlSafe(query.as_str()))
                    .fetch_all(&pool)
                    .await;
                pool.close().await;
                let rows = rows.unwrap_or_else(|e| panic!("{query}: {e}"));
                rows.iter().map(|row| row.get(0)).collect()
            }
        }
    }

    /// The embedded database, from outside.
    pub async fn sqlite(&self) -> sqlx::SqlitePool {
        let path = self.dir.path().join("data/video-ingest.sqlite");
        sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display()))
            .await
            .unwrap()
    }

    /// The GUIDs that are recorded.
    pub async fn recorded(&self) -> HashSet<String> {
        let guids = self.texts("select guid from video_ingest.deliveries").await;
        guids.into_iter().collect()
    }

    /// The videos whose row is ready.
    async fn ready(&self) -> HashSet<Uuid> {
        let query = "select id::text from lesson_assets where storage_path is not null";
        let ids = self.texts(query).await;
        ids.iter().map(|id| id.parse().unwrap()).collect()
    }

    /// The visible objects: the video, its bytes and its version.
    fn objects(&self) -> Vec<(Uuid, Bytes, u64)> {
        let video = |path: &str| {
            let name = path.rsplit('/').next().unwrap();
            name.strip_suffix(".mp4").unwrap().parse::<Uuid>().unwrap()
        };
        if self.backend == Backend::Supabase {
            let lines = self.storage.objects();
            let paths = lines.iter().map(|line| line.split("  ").next().unwrap());
            let object = |path: &str| {
                let bytes = self.storage.bytes(path).unwrap();
                (video(path), bytes, self.storage.uploads(path) as u64)
            };
            return paths.map(object).collect();
        }
        let mut found = Vec::new();
        let mut open: Vec<PathBuf> = vec![self.dir.path().join("data/store")];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|extension| extension == "mp4") {
                    let bytes = std::fs::read(&path).unwrap().into();
                    let version = path.metadata().unwrap().ino();
                    found.push((video(path.to_str().unwrap()), bytes, version));
                }
            }
        }
        found
    }

    /// Checks what must hold at any time: every visible object is complete and correct, and every ready row has
    /// its object. `killed`: a process was just killed.
    pub async fn audit(&mut self, killed: bool) {
        // In this order, because an object exists before its row is ready.
        let ready = self.ready().await;
        let objects = self.objects();
        let stored: HashSet<Uuid> = objects.iter().map(|(id, ..)| *id).collect();
        for (id, bytes, version) in objects {
            assert!(
                bytes == self.videos[&id].mp4,
                "the object of {id} is not what was pushed"
            );
            let more = match (self.backend, self.seen.insert(id, version)) {
                (Backend::Supabase, last) => version - last.unwrap_or(1),
                (Backend::Embedded, last) => u64::from(last.is_some_and(|last| last != version)),
            };
            if more > 0 {
                *self.replaced.entry(id).or_default() += more;
            }
            if killed && !ready.contains(&id) {
                self.between.insert(id);
            }
        }
        for id in ready {
            assert!(
                stored.contains(&id),
                "the row of {id} is ready without an object"
            );
        }
    }

    /// Waits until every acknowledged video is ready, while a server is running, and checks all of them.
    pub async fn drain(&mut self) -> Drained {
        let (began, mut free_since) = (tokio::time::Instant::now(), since_epoch());
        let mut lease_over_max = Duration::ZERO;
        let acknowledged: HashSet<Uuid> = self
            .acknowledged
            .iter()
            .map(|push| push.video.key.video_id)
            .collect();
        loop {
            let ready = self.ready().await;
            let left: Vec<_> = acknowledged.difference(&ready).collect();
            if left.is_empty() {
                break;
            }
            let leases =
                "select cast(due_at as text) from video_ingest.videos where state = 'running'";
            let now = since_epoch();
            let ahead = format!(
                "select video_id from video_ingest.videos where state <> 'running' and due_at <= {}",
                now.as_millis()
            );
            if !self.texts(&ahead).await.is_empty() {
                free_since = now;
            }
            for due in self.texts(leases).await {
                // An expired lease waits for its turn in the queue, like other work.
                let ended = Duration::from_millis(due.parse().unwrap()).max(free_since);
                let over = now.saturating_sub(ended);
                lease_over_max = lease_over_max.max(over);
                assert!(
                    over < LEASE_NOTICED_MAX,
                    "a lease expired {over:?} ago and was not taken over"
                );
            }
            if began.elapsed() > DRAIN_MAX {
                let query = format!(
                    "select video_id || ' ' || state || ' ' || coalesce(code, '') || ' ' || coalesce(message, '')
                     from video_ingest.videos where video_id = '{}'",
                    left[0]
                );
                panic!(
                    "{} acknowledged videos are not ready, one is {:?}",
                    left.len(),
                    self.texts(&query).await
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.audit(false).await;
        let recorded = self.recorded().await;
        for push in &self.acknowledged {
            assert!(
                recorded.contains(&push.delivery.guid),
                "202 without a record: {}",
                push.delivery.guid
            );
        }
        for (id, times) in &self.replaced {
            assert!(
                self.between.contains(id) && *times == 1,
                "{id} was stored {} times",
                times + 1
            );
        }
        Drained {
            ready: acknowledged.len(),
            between: self.between.len(),
            replaced_between: self.replaced.values().sum(),
            lease_over_max,
        }
    }
}

impl Drop for World {
    /// Prints the end of the server's log if a check failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("data.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "{}",
                lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
            );
        }
    }
}

fn since_epoch() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}
