//! The scenario of most tests: a fake GitHub, a server, a store, and a worker that the test drives step by step.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt as _;
use uuid::Uuid;
use video_ingest::app::{App, Injected};
use video_ingest::clock::Clock;
use video_ingest::config::{Config, Database, MissingRow, OpenHandsConfig, StoreConfig};
use video_ingest::db::Db;
use video_ingest::domain::generation::OpenHandsVersion;
use video_ingest::domain::ids::{FileKind, GitSha, VideoKey};
use video_ingest::domain::state::VideoState;
use video_ingest::failpoint::FailPoints;
use video_ingest::fake_github::{Changes, Delivery};
use video_ingest::http;
use video_ingest::pipeline::worker::Worker;
use video_ingest::services::openhands::{Pacing, Rate};

use super::fake_github::TestGithub;
use super::fake_openhands::{self, FakeOpenHands, Server};
use super::fake_storage::FakeStorage;
use super::postgres::{self, Postgres};

pub const REPOSITORY: &str = "acme/video-artifacts";
pub const SECRET: &str = "a webhook secret for tests";
pub const ADMIN_TOKEN: &str = "an-admin-token-for-tests";

const BUCKET: &str = "lesson-assets";
/// More steps than any scenario needs: an endless loop is a failure, not a hang.
const STEPS_MAX: usize = 5000;

/// No rate limit in practice, and short timeouts.
const PACING: Pacing = Pacing {
    call: Duration::from_secs(2),
    probe: Duration::from_secs(20),
    rates: [Rate {
        calls: 10_000,
        per: Duration::from_secs(1),
    }; 2],
};

pub const GOOD: &[u8] = include_bytes!("../../../fixtures/videos/good.mp4");
pub const SECOND: &[u8] = include_bytes!("../../../fixtures/videos/second.mp4");
pub const THIRD: &[u8] = include_bytes!("../../../fixtures/videos/third.mp4");
pub const TRUNCATED: &[u8] = include_bytes!("../../../fixtures/videos/truncated.mp4");

/// What a scenario runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// SQLite and folder: embedded mode.
    Embedded,
    /// Postgres as the least-privileged role, and the Storage fake: Supabase mode.
    Supabase,
    /// The same behind pgbouncer in transaction mode, as behind Supabase's port 6543.
    Pooled,
}

/// Runs a scenario on every back end: `scenario! { a_pushed_video_becomes_ready(t) { … } }`.
#[macro_export]
macro_rules! scenario {
    ($($(#[$meta:meta])* $name:ident($t:ident) $body:block)*) => { $(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            async fn scenario($t: &mut $crate::support::scenario::Scenario) $body

            #[tokio::test]
            async fn embedded() {
                let mut t = $crate::support::scenario::Scenario::begin($crate::support::scenario::Backend::Embedded).await;
                scenario(&mut t).await;
                t.finish().await;
            }

            #[tokio::test]
            async fn supabase() {
                let mut t = $crate::support::scenario::Scenario::begin($crate::support::scenario::Backend::Supabase).await;
                scenario(&mut t).await;
                t.finish().await;
            }

            #[tokio::test]
            async fn pooled() {
                let mut t = $crate::support::scenario::Scenario::begin($crate::support::scenario::Backend::Pooled).await;
                scenario(&mut t).await;
                t.finish().await;
            }
        }
    )* };
}

/// A video: its ids and the files that are pushed for it.
#[derive(Clone, Debug)]
pub struct Video {
    pub key: VideoKey,
    pub mp4: Bytes,
    pub json: Bytes,
}

impl Video {
    /// A good one, with new ids.
    pub fn good() -> Self {
        Self::with(GOOD)
    }

    /// With these bytes, new ids and a JSON that matches them.
    pub fn with(mp4: &[u8]) -> Self {
        let key = VideoKey {
            lesson_id: Uuid::new_v4(),
            video_id: Uuid::new_v4(),
        };
        Self {
            mp4: Bytes::copy_from_slice(mp4),
            ..Self::of(key)
        }
    }

    /// A good one, with these ids.
    pub fn of(key: VideoKey) -> Self {
        Self {
            key,
            mp4: Bytes::from_static(GOOD),
            json: metadata(key, json!({})).into(),
        }
    }

    /// Adds both files to a commit.
    pub fn write(&self, commit: Changes) -> Changes {
        commit
            .write(self.mp4_path(), self.mp4.clone())
            .write(self.json_path(), self.json.clone())
    }

    /// Removes both files in a commit.
    pub fn remove(&self, commit: Changes) -> Changes {
        commit.remove(self.mp4_path()).remove(self.json_path())
    }

    /// The same video, rendered again.
    pub fn rerendered(&self, mp4: &[u8]) -> Self {
        Self {
            mp4: Bytes::copy_from_slice(mp4),
            ..self.clone()
        }
    }

    /// The same video with another JSON.
    pub fn with_json(mut self, json: impl Into<Bytes>) -> Self {
        self.json = json.into();
        self
    }

    pub fn id(&self) -> String {
        self.key.video_id.to_string()
    }

    pub fn mp4_path(&self) -> String {
        format!("videos/{}", self.key.file_name(FileKind::Video))
    }

    pub fn json_path(&self) -> String {
        format!("videos/{}", self.key.file_name(FileKind::Metadata))
    }
}

/// The JSON of a video, with these fields replaced.
pub fn metadata(key: VideoKey, fields: Value) -> Vec<u8> {
    let mut metadata = json!({
        "lesson_id": key.lesson_id,
        "video_id": key.video_id,
        "generated_at": "2026-01-28T21:12:12+00:00",
        "format": "mp4",
    });
    for (name, value) in fields.as_object().unwrap() {
        metadata[name] = value.clone();
    }
    serde_json::to_vec_pretty(&metadata).unwrap()
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub json: Value,
}

/// The app's row of a video.
#[derive(Debug, Default)]
pub struct Asset {
    pub storage_path: Option<String>,
    pub mime_type: String,
    pub duration_ms: Option<i64>,
    pub conversation_id: Option<String>,
    pub metadata: Value,
}

/// A row as the app, or the function that this service replaces, wrote it.
#[derive(Clone, Debug)]
pub struct AppRow {
    pub key: VideoKey,
    pub age: Duration,
    pub mime_type: &'static str,
    pub storage_path: Option<String>,
    pub conversation: Option<Uuid>,
}

impl AppRow {
    /// Created just now, in generation, without a conversation.
    pub fn pending(key: VideoKey) -> Self {
        Self {
            key,
            age: Duration::ZERO,
            mime_type: "video/mp4",
            storage_path: None,
            conversation: None,
        }
    }
}

pub struct Scenario {
    pub backend: Backend,
    pub github: TestGithub,
    pub agent: FakeOpenHands,
    pub storage: FakeStorage,
    pub clock: Clock,
    pub fail: FailPoints,
    pub worker: Worker,
    pub db: Db,
    pub url: String,
    pub user: Uuid,
    pub config: Config,
    injected: Injected,
    client: reqwest::Client,
    pub database: Option<postgres::Database>,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    errors: Arc<Mutex<Vec<String>>>,
    expected_errors: Vec<&'static str>,
    _logs: tracing::subscriber::DefaultGuard,
}

impl Scenario {
    pub async fn begin(backend: Backend) -> Self {
        Self::begin_with(backend, |_| {}).await
    }

    /// With changed settings.
    pub async fn begin_with(backend: Backend, change: impl FnOnce(&mut Config)) -> Self {
        let injected = Injected {
            openhands_pacing: PACING,
            ..Injected::default()
        };
        Self::begin_injected(backend, injected, change).await
    }

    /// With changed settings, and with test doubles.
    pub async fn begin_injected(
        backend: Backend,
        injected: Injected,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let github = TestGithub::start(REPOSITORY).await;
        github.commit(|c| c.write("README.md", "videos, rendered"));
        let agent = FakeOpenHands::start(Server::Cloud).await;
        let storage = FakeStorage::start().await;
        storage.create_bucket(BUCKET, Some(52_428_800), Some(&["video/mp4"]));
        let dir = tempfile::tempdir().unwrap();
        let local = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::embedded(dir.path(), local, REPOSITORY, &github.url(), SECRET);
        config.admin_token = Some(ADMIN_TOKEN.into());
        config.missing_row = MissingRow::Wait;
        config.agent = Some(OpenHandsConfig {
            key: fake_openhands::KEY.into(),
            api_url: agent.url.clone(),
            version: OpenHandsVersion::V1,
        });
        let database = match backend {
            Backend::Embedded => None,
            Backend::Supabase | Backend::Pooled => {
                let database = Postgres::database().await;
                let url = match backend {
                    Backend::Pooled => database.pooled_url(),
                    _ => database.service_url.clone(),
                };
                config.database = Database::Postgres { url: url.into() };
                config.store = StoreConfig::Supabase {
                    url: storage.url(),
                    service_role_key: super::fake_storage::SECRET_KEY.into(),
                };
                Some(database)
            }
        };
        change(&mut config);
        let errors = Arc::<Mutex<Vec<String>>>::default();
        let filter = tracing_subscriber::EnvFilter::new("info,octocrab=off,hyper=off,sqlx=off");
        let subscriber = tracing_subscriber::registry()
            .with(filter)
            .with(Errors(errors.clone()))
            .with(tracing_subscriber::fmt::layer().with_test_writer());
        let logs = tracing::subscriber::set_default(subscriber);
        let (clock, fail) = (injected.clock.clone(), config.fail_points.clone());
        let app = App::build(config.clone(), injected.clone()).await.unwrap();
        match &database {
            Some(database) => database.sql(transitions::POSTGRES).await,
            None => {
                let pool = sqlite(dir.path()).await;
                let script = sqlx::raw_sql(transitions::SQLITE);
                script.execute(&pool).await.unwrap();
                pool.close().await;
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(http::serve(listener, app.router, stop.clone()));
        Self {
            backend,
            github,
            agent,
            storage,
            clock,
            fail,
            worker: app.worker,
            db: app.db,
            url,
            user: Uuid::new_v4(),
            config,
            injected,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            database,
            dir,
            stop,
            errors,
            expected_errors: Vec::new(),
            _logs: logs,
        }
    }

    // GitHub.

    /// Commits both files of a video.
    pub fn commit(&self, video: &Video) -> GitSha {
        self.github.commit(|c| video.write(c))
    }

    /// Commits both files and delivers the push.
    pub async fn push(&self, video: &Video) -> Delivery {
        let before = self.github.head();
        self.commit(video);
        let delivery = self.github.push(before, self.github.head());
        self.deliver(&delivery).await.expect_accepted();
        delivery
    }

    /// Delivers a webhook, signed.
    pub async fn deliver(&self, delivery: &Delivery) -> Answer {
        self.post(
            "/webhooks/github",
            &delivery.signed(SECRET),
            delivery.body().to_vec(),
        )
        .await
    }

    // The app.

    /// Inserts the app's row of a video in generation.
    pub async fn row(&self, video: &Video) {
        self.row_of(video.key, "video").await;
    }

    pub async fn row_of(&self, key: VideoKey, kind: &str) {
        match &self.database {
            Some(database) => {
                database.insert_lesson(key.lesson_id, self.user).await;
                database.insert_asset(key, self.user, kind).await;
            }
            None => {
                let (lesson, id, user) = (key.lesson_id, key.video_id, self.user);
                let now = self.clock.now_ms();
                self.sql(&format!(
                    "insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type, created_at)
                     values ('{id}', '{lesson}', '{user}', '{kind}', '{BUCKET}', 'video/mp4', {now})"
                ))
                .await;
            }
        }
    }

    /// Inserts many rows at once, with their lessons.
    pub async fn rows(&self, rows: &[AppRow]) {
        let (now, user) = (self.clock.now_ms(), self.user);
        let text = |value: Option<String>| match value {
            Some(value) => format!("'{value}'"),
            None => "null".to_owned(),
        };
        let mut statements = String::from("begin;\n");
        for row in rows {
            let (lesson, id) = (row.key.lesson_id, row.key.video_id);
            let mut created = (now - row.age.as_millis() as i64).to_string();
            if self.backend != Backend::Embedded {
                created = format!("to_timestamp({created} / 1000.0)");
                statements += &format!(
                    "insert into lessons (id, user_id, title)
                     values ('{lesson}', '{user}', 'Photosynthesis') on conflict do nothing;\n"
                );
            }
            statements += &format!(
                "insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type,
                    storage_path, conversation_id, created_at)
                 values ('{id}', '{lesson}', '{user}', 'video', '{BUCKET}', '{}', {}, {}, {created});\n",
                row.mime_type,
                text(row.storage_path.clone()),
                text(row.conversation.map(|id| id.to_string())),
            );
        }
        self.sql(&(statements + "commit;")).await;
    }

    /// Runs statements as the database's owner.
    pub async fn sql(&self, statements: &str) {
        match &self.database {
            Some(database) => database.sql(statements).await,
            None => {
                let pool = self.sqlite().await;
                sqlx::raw_sql(sqlx::AssertSqlSafe(statements))
                    .execute(&pool)
                    .await
                    .unwrap();
                pool.close().await;
            }
        }
    }

    /// The only value of a query, which must be text, as the database's owner sees it.
    pub async fn text(&self, query: &str) -> Option<String> {
        match &self.database {
            Some(database) => database.text(query).await,
            None => {
                let pool = self.sqlite().await;
                let row = sqlx::query(sqlx::AssertSqlSafe(
                    query.replace("video_ingest.", "").replace("::text", ""),
                ))
                .fetch_one(&pool)
                .await
                .unwrap();
                pool.close().await;
                row.get(0)
            }
        }
    }

    async fn sqlite(&self) -> sqlx::SqlitePool {
        sqlite(self.dir.path()).await
    }

    /// Every change of a state that the database saw must be in the table of `domain::state`.
    async fn expect_only_allowed_transitions(&self) {
        let seen = self.text(transitions::SEEN).await.unwrap_or_default();
        for change in seen.split(' ').filter(|change| !change.is_empty()) {
            let (from, to) = change.split_once('>').unwrap();
            let state = |text| VideoState::parse(text).unwrap();
            assert!(state(from).may_become(state(to)), "{from} became {to}");
        }
    }

    /// Takes a lock that every write of the service has to wait for.
    pub async fn block_database(&self) -> Blocked {
        match &self.database {
            Some(database) => {
                let mut lock = database.admin.begin().await.unwrap();
                let statement = "lock table video_ingest.deliveries, video_ingest.videos in access exclusive mode";
                sqlx::raw_sql(statement).execute(&mut *lock).await.unwrap();
                Blocked::Postgres(lock)
            }
            None => {
                let pool = self.sqlite().await;
                let lock = pool.begin_with("begin immediate").await.unwrap();
                Blocked::Sqlite(lock)
            }
        }
    }

    /// The service's rows, counted by table.
    pub async fn counts(&self) -> String {
        let mut counts = Vec::new();
        for table in ["deliveries", "videos", "events", "statuses"] {
            let query = format!("select cast(count(*) as text) from video_ingest.{table}");
            counts.push(format!("{table} {}", self.text(&query).await.unwrap()));
        }
        counts.join(", ")
    }

    /// Every row of the service and of the app: the difference between two snapshots was written in between.
    pub async fn snapshot(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::from([self.counts().await]);
        for table in [
            "deliveries",
            "videos",
            "events",
            "statuses",
            "marks",
            "lesson_assets",
        ] {
            let query = match self.backend {
                Backend::Supabase | Backend::Pooled => {
                    let schema = match table {
                        "lesson_assets" => "",
                        _ => "video_ingest.",
                    };
                    format!("select string_agg(t::text, chr(10)) from {schema}{table} as t")
                }
                Backend::Embedded => {
                    let columns =
                        format!("select group_concat(name) from pragma_table_info('{table}')");
                    let columns = self.text(&columns).await.unwrap();
                    format!("select group_concat(json_array({columns}), char(10)) from {table}")
                }
            };
            let rows = self.text(&query).await.unwrap_or_default();
            lines.extend(rows.lines().map(|row| format!("{table}: {row}")));
        }
        // Every sweep records its time or why it failed, even if it changes nothing.
        lines.retain(|line| !line.contains("_sweep"));
        lines
    }

    pub async fn asset(&self, video: &Video) -> Asset {
        let id = video.id();
        let column =
            |name: &str| format!("select {name}::text from lesson_assets where id = '{id}'");
        let metadata = self.text(&column("metadata")).await;
        Asset {
            storage_path: self.text(&column("storage_path")).await,
            mime_type: self.text(&column("mime_type")).await.unwrap(),
            duration_ms: self
                .text(&format!(
                    "select cast(duration_ms as text) from lesson_assets where id = '{id}'"
                ))
                .await
                .map(|ms| ms.parse().unwrap()),
            conversation_id: self.text(&column("conversation_id")).await,
            metadata: metadata.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap()),
        }
    }

    /// Where the service connects to.
    pub fn database_url(&self) -> secrecy::SecretString {
        self.database.as_ref().unwrap().service_url.clone().into()
    }

    /// What Postgres logged about this scenario's database.
    pub fn database_log(&self) -> String {
        self.database
            .as_ref()
            .map(|database| database.log())
            .unwrap_or_default()
    }

    // The server.

    /// Another process on the same database and store.
    pub async fn replica(&self) -> Worker {
        self.app(|_| {}).await.worker
    }

    /// The same with changed settings, and all parts of it.
    pub async fn app(&self, change: impl FnOnce(&mut Config)) -> App {
        let injected = self.injected.clone();
        let mut config = Config {
            fail_points: FailPoints::default(),
            ..self.config.clone()
        };
        change(&mut config);
        App::build(config, injected).await.unwrap()
    }

    /// Runs everything that is due now, one task after another.
    pub async fn work(&self) {
        for _ in 0..STEPS_MAX {
            if !self.worker.run_once().await.unwrap() {
                return;
            }
        }
        panic!("there is still work after {STEPS_MAX} steps");
    }

    /// Moves the clock.
    pub fn later(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Sets the clock back.
    pub fn earlier(&self, by: Duration) {
        self.clock.set_back(by);
    }

    pub async fn get(&self, path: &str) -> Answer {
        let request = self
            .client
            .get(format!("{}{path}", self.url))
            .bearer_auth(ADMIN_TOKEN);
        answer(request.send().await.unwrap()).await
    }

    /// `POST` with the admin token.
    pub async fn ask(&self, path: &str) -> Answer {
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .bearer_auth(ADMIN_TOKEN);
        answer(request.send().await.unwrap()).await
    }

    /// `POST` of JSON with the admin token.
    pub async fn send(&self, path: &str, body: &Value) -> Answer {
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .bearer_auth(ADMIN_TOKEN);
        answer(request.json(body).send().await.unwrap()).await
    }

    pub async fn post(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                HeaderName::from_static(&name.to_ascii_lowercase().leak()[..]),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .headers(map)
            .body(body);
        answer(request.send().await.unwrap()).await
    }

    /// One video as the API shows it.
    pub async fn video(&self, video: &Video) -> Value {
        self.get(&format!("/api/videos/{}", video.id())).await.json
    }

    /// Its timeline's steps.
    pub async fn steps(&self, video: &Video) -> Vec<String> {
        let shown = self.video(video).await;
        let timeline = shown["timeline"].as_array().unwrap();
        timeline
            .iter()
            .map(|entry| entry["step"].as_str().unwrap().to_owned())
            .collect()
    }

    // The store.

    /// `bucket/path  size`, sorted.
    pub fn objects(&self) -> Vec<String> {
        match self.backend {
            Backend::Supabase | Backend::Pooled => self.storage.objects(),
            Backend::Embedded => {
                let root = self.dir.path().join("store");
                let mut found = Vec::new();
                let mut open = vec![root.clone()];
                while let Some(dir) = open.pop() {
                    for entry in std::fs::read_dir(dir).unwrap() {
                        let path = entry.unwrap().path();
                        if path.is_dir() {
                            open.push(path);
                        } else {
                            let name = path.strip_prefix(&root).unwrap().display().to_string();
                            found.push(format!("{name}  {}", path.metadata().unwrap().len()));
                        }
                    }
                }
                found.sort();
                found
            }
        }
    }

    pub fn path(&self, video: &Video) -> String {
        format!(
            "{}/{}/{}.mp4",
            self.user, video.key.lesson_id, video.key.video_id
        )
    }

    /// Replaces the stored bytes, as something other than this service would.
    pub fn overwrite_stored(&self, video: &Video, bytes: &[u8]) {
        let path = format!("{BUCKET}/{}", self.path(video));
        match self.backend {
            Backend::Supabase | Backend::Pooled => self.storage.overwrite(&path, bytes),
            Backend::Embedded => {
                std::fs::write(self.dir.path().join("store").join(path), bytes).unwrap();
            }
        }
    }

    /// Deletes the stored object, as something other than this service would.
    pub fn delete_stored(&self, video: &Video) {
        let path = format!("{BUCKET}/{}", self.path(video));
        match self.backend {
            Backend::Supabase | Backend::Pooled => self.storage.delete(&path),
            Backend::Embedded => {
                std::fs::remove_file(self.dir.path().join("store").join(path)).unwrap();
            }
        }
    }

    /// Every call to the store fails until [`Scenario::repair_storage`].
    pub fn break_storage(&self) {
        let bucket = self.dir.path().join("store").join(BUCKET);
        match self.backend {
            Backend::Supabase | Backend::Pooled => self.storage.set_down(true),
            Backend::Embedded => {
                std::fs::rename(&bucket, self.dir.path().join("away")).unwrap();
                std::fs::write(&bucket, "not a folder").unwrap();
            }
        }
    }

    pub fn repair_storage(&self) {
        let bucket = self.dir.path().join("store").join(BUCKET);
        match self.backend {
            Backend::Supabase | Backend::Pooled => self.storage.set_down(false),
            Backend::Embedded => {
                std::fs::remove_file(&bucket).unwrap();
                std::fs::rename(self.dir.path().join("away"), &bucket).unwrap();
            }
        }
    }

    pub fn stored(&self, video: &Video) -> Option<Vec<u8>> {
        let path = format!("{BUCKET}/{}", self.path(video));
        match self.backend {
            Backend::Supabase | Backend::Pooled => {
                self.storage.bytes(&path).map(|bytes| bytes.to_vec())
            }
            Backend::Embedded => std::fs::read(self.dir.path().join("store").join(path)).ok(),
        }
    }

    pub fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    // Assertions.

    /// The row is ready, the stored bytes are the pushed ones, and the API says so too.
    pub async fn expect_ready(&self, video: &Video) {
        let shown = self.video(video).await;
        assert_eq!(shown["state"], "ready", "{shown:#}");
        let asset = self.asset(video).await;
        assert_eq!(
            asset.storage_path.as_deref(),
            Some(self.path(video).as_str())
        );
        assert_eq!(asset.mime_type, "video/mp4");
        assert!(asset.duration_ms.is_some_and(|ms| ms > 0), "{asset:?}");
        assert!(
            self.stored(video).as_deref() == Some(&video.mp4[..]),
            "the stored bytes are not the pushed ones"
        );
    }

    /// The video failed with this code and a message, and nothing of it is stored.
    pub async fn expect_failed(&self, video: &Video, code: &str) {
        let shown = self.video(video).await;
        assert_eq!(
            (&shown["state"], &shown["code"]),
            (&json!("failed"), &json!(code)),
            "{shown:#}"
        );
        assert!(
            shown["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{shown:#}"
        );
        assert_eq!(self.stored(video), None);
    }

    /// As [`Scenario::expect_failed`], and the app's row has the failure.
    pub async fn expect_reported(&self, video: &Video, code: &str) {
        self.expect_failed(video, code).await;
        let asset = self.asset(video).await;
        assert!(asset.mime_type.starts_with("error: "), "{asset:?}");
        assert!(asset.mime_type.chars().count() <= 107, "{asset:?}");
        assert_eq!(asset.storage_path, None);
        assert_eq!(asset.metadata["ingest"]["status"], "failed", "{asset:?}");
        assert_eq!(asset.metadata["ingest"]["code"], code, "{asset:?}");
    }

    pub async fn expect_state(&self, video: &Video, state: &str, code: &str) {
        let shown = self.video(video).await;
        assert_eq!(
            (&shown["state"], &shown["code"]),
            (&json!(state), &json!(code)),
            "{shown:#}"
        );
    }

    /// Expects that wrong tokens were answered late, some of them refused at once, and that all are counted.
    /// `guesses`: the responses, and the times until they came. Returns the responses of those refused.
    pub async fn expect_slowed_down(
        &self,
        guesses: Vec<(reqwest::Response, Duration)>,
        path: &str,
    ) -> Vec<reqwest::Response> {
        let all = guesses.len();
        let (slowed, refused): (Vec<_>, Vec<_>) = guesses
            .into_iter()
            .partition(|(answer, _)| answer.status() == 401);
        assert!(!slowed.is_empty() && slowed.len() < all, "{}", slowed.len());
        let mut took = slowed.iter().map(|(_, took)| *took);
        assert!(took.all(|took| took >= Duration::from_secs(1)));
        for (answer, _) in &refused {
            assert_eq!(answer.status(), 429);
            assert_eq!(answer.headers()["retry-after"], "1");
        }
        let metrics = self.get("/metrics").await.json;
        let line = format!("video_ingest_wrong_tokens_total{{path=\"{path}\"}} ");
        let count = metrics.as_str().unwrap().split(&line).nth(1).unwrap();
        let count: usize = count.lines().next().unwrap().parse().unwrap();
        assert!(count >= all, "{count}");
        refused.into_iter().map(|(answer, _)| answer).collect()
    }

    /// Allows ERROR log lines that contain this text.
    pub fn expect_error(&mut self, part: &'static str) {
        self.expected_errors.push(part);
    }

    /// What was logged at ERROR so far.
    pub fn take_errors(&self) -> String {
        std::mem::take(&mut *self.errors.lock().unwrap()).join("\n")
    }

    /// The end of every scenario: the remaining work ends, and no unexpected ERROR was logged.
    pub async fn finish(mut self) {
        self.work().await;
        let expected = std::mem::take(&mut self.expected_errors);
        let errors = std::mem::take(&mut *self.errors.lock().unwrap());
        // Such lines are collected for all servers of a process, so it may come from another scenario.
        let collected = "failed to record deliveries";
        let unexpected: Vec<_> = errors
            .iter()
            .filter(|line| !line.contains(collected))
            .filter(|line| !expected.iter().any(|part| line.contains(part)))
            .collect();
        assert!(unexpected.is_empty(), "logged at ERROR: {unexpected:#?}");
        self.expect_only_allowed_transitions().await;
        self.stop.cancel();
        self.db.close().await;
    }
}

impl Answer {
    pub fn expect_accepted(self) -> Self {
        assert_eq!(self.status, 202, "{:#}", self.json);
        self
    }

    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!(
            (self.status, &self.json["code"]),
            (status, &json!(code)),
            "{:#}",
            self.json
        );
        assert_eq!(self.headers["content-type"], "application/problem+json");
        self
    }
}

async fn sqlite(data_dir: &Path) -> sqlx::SqlitePool {
    let path = data_dir.join("video-ingest.sqlite");
    let url = format!("sqlite://{}", path.display());
    sqlx::SqlitePool::connect(&url).await.unwrap()
}

/// Triggers that note each change of a video's state. A new record was `generating` before: the app had
/// its row, or nobody had anything.
mod transitions {
    pub const SQLITE: &str = "
        create table transitions (was text not null, became text not null);
        create trigger record_inserted after insert on videos begin
            insert into transitions values ('generating', new.state);
        end;
        create trigger record_updated after update of state on videos begin
            insert into transitions values (old.state, new.state);
        end;";

    pub const POSTGRES: &str = "
        create table transitions (was text not null, became text not null);
        create function note_transition() returns trigger language plpgsql security definer
            set search_path = public as $$
        begin
            insert into transitions
                values (case tg_op when 'INSERT' then 'generating' else old.state end, new.state);
            return null;
        end $$;
        create trigger transitions after insert or update of state on video_ingest.videos
            for each row execute function note_transition();";

    pub const SEEN: &str = "select coalesce(string_agg(change, ' '), '')
        from (select distinct was || '>' || became as change from transitions) as changes";
}

async fn answer(response: reqwest::Response) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    Answer {
        status,
        headers,
        json: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

/// A lock that blocks the database until it is released.
pub enum Blocked {
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
}

impl Blocked {
    pub async fn release(self) {
        match self {
            Self::Sqlite(lock) => lock.rollback().await.unwrap(),
            Self::Postgres(lock) => lock.rollback().await.unwrap(),
        }
    }
}

/// Collects what is logged at ERROR.
struct Errors(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Errors {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        if *event.metadata().level() == tracing::Level::ERROR {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }
}
