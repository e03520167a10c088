//! With a million videos, each page reads little more than it shows, only through indexes, and takes at most
//! twice as long as with ten thousand.
//!
//! Postgres reports what was read (`auto_explain`) for the statements that the pages run, with their
//! parameters and as the service's role.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use video_ingest::app::{App, Injected};
use video_ingest::config::{Config, Database as DatabaseConfig};
use video_ingest::fake_github::FakeGithub;
use video_ingest::http;

use crate::support::postgres::{Database, Postgres};
use crate::support::scenario::{ADMIN_TOKEN, REPOSITORY, SECRET};

/// Videos in the small and in the large database; each has five entries in its timeline.
const SMALL: u32 = 10_000;
const LARGE: u32 = 1_000_000;

/// Videos that are being generated.
const GENERATING: u32 = 100;

/// The most rows that a page may read of tables that grow with the videos. The first page also counts the videos
/// that are being generated.
const ROWS_MAX: u64 = 400;

/// The most rows that a page may read of other tables: hourly counts, counts, marks, and the statuses of
/// generating videos.
const ROLLUP_ROWS_MAX: u64 = 1_000;

/// How much longer a page may take in the large database.
const RATIO_MAX: f64 = 2.0;

/// Each page is requested this many times in each database, in turn; the median counts.
const ROUNDS: usize = 101;

/// How often a page that was too slow is measured again, in case the machine was busy.
const REPEATS_MAX: usize = 2;

/// The tables that grow with the videos.
const GROWING: [&str; 4] = ["videos", "events", "deliveries", "lesson_assets"];

/// The table that the app's own policies read for each row: it must not be scanned, but its rows do not count.
const OF_POLICIES: &str = "lessons";

/// A superuser: only superusers may enable the logging of plans.
const SUPERUSER: &str = "supabase_admin";

/// How long Postgres may take to write a plan into its log.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// What one page read.
#[derive(Default)]
struct Read {
    rows: u64,
    rollup_rows: u64,
    /// Scans of growing tables without an index.
    scans: Vec<String>,
}

/// The server on a filled database.
struct World {
    database: Database,
    dir: tempfile::TempDir,
    client: reqwest::Client,
    url: String,
}

pub async fn prove() {
    println!("pages, {SMALL} and {LARGE} videos");
    let github = FakeGithub::start(REPOSITORY).await.unwrap();
    let (mut small, mut large) = (
        World::new(SMALL, &github).await,
        World::new(LARGE, &github).await,
    );
    let pages = [pages(SMALL), pages(LARGE)];
    let mut times = Vec::new();
    for (few, many) in pages[0].iter().zip(&pages[1]) {
        let mut took = compare(&small, &few.1, &large, &many.1).await;
        for _ in 0..REPEATS_MAX {
            if took[1].as_secs_f64() > took[0].as_secs_f64() * RATIO_MAX {
                took = compare(&small, &few.1, &large, &many.1).await;
            }
        }
        times.push(took);
    }
    small.log_plans(&github).await;
    large.log_plans(&github).await;
    println!(
        "  page                        rows read         rollup    time                       ratio"
    );
    let mut broken = Vec::new();
    for (n, [few, many]) in times.into_iter().enumerate() {
        let name = pages[0][n].0;
        let at_small = small.read(&pages[0][n].1).await;
        let at_large = large.read(&pages[1][n].1).await;
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!(
            "  {name:26} {:5} {:5} {:12} {:9.2} ms {:9.2} ms {ratio:8.2}",
            at_small.rows,
            at_large.rows,
            at_large.rollup_rows,
            few.as_secs_f64() * 1e3,
            many.as_secs_f64() * 1e3,
        );
        broken.extend(at_large.scans.iter().map(|scan| format!("{name}: {scan}")));
        if at_large.rows > ROWS_MAX || at_large.rollup_rows > ROLLUP_ROWS_MAX || ratio > RATIO_MAX {
            broken.push(format!("{name}: too many rows or too slow"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    println!("  index scans only, at most {ROWS_MAX} rows, at most {RATIO_MAX} times as long");
}

/// How long a page takes in each database: the median of requests in turn.
async fn compare(small: &World, few: &str, large: &World, many: &str) -> [Duration; 2] {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        took[0].push(small.get(few).await);
        took[1].push(large.get(many).await);
    }
    took.map(|mut took| {
        took.sort();
        took[ROUNDS / 2]
    })
}

/// The pages to request from a database with this many videos.
fn pages(videos: u32) -> Vec<(&'static str, String)> {
    let middle = videos / 2;
    let (video, lesson) = (id("video", middle), id("lesson", middle / 4));
    let generating = id("video", videos + 1);
    let deep = format!("{}.{video}", at_ms(videos, middle) * 1000);
    let delivery = format!("{}.{}", at_ms(videos, middle), id("delivery", middle));
    vec![
        ("first", "/".into()),
        ("deep", format!("/?cursor={deep}")),
        ("generating", "/?state=generating".into()),
        ("queued", "/?state=queued".into()),
        ("running", "/?state=running".into()),
        ("waiting", "/?state=waiting".into()),
        ("ready", "/?state=ready".into()),
        ("ready, deep", format!("/?state=ready&cursor={deep}")),
        ("failed", "/?state=failed".into()),
        ("failed, deep", format!("/?state=failed&cursor={deep}")),
        ("search: video", format!("/?q={video}")),
        ("search: generating", format!("/?q={generating}")),
        ("search: lesson", format!("/?q={lesson}")),
        ("search: file", format!("/?q={lesson}_{video}.mp4")),
        ("search: beginning", format!("/?q={}", &video[..2])),
        ("one video", format!("/videos/{video}")),
        ("one generating", format!("/videos/{generating}")),
        ("failed, one code", "/?state=failed&code=truncated".into()),
        ("deliveries", "/deliveries".into()),
        (
            "one delivery",
            format!("/deliveries/{}", id("delivery", middle)),
        ),
        ("deliveries, deep", format!("/deliveries?cursor={delivery}")),
        (
            "failed with a code",
            "/?state=failed&code=not_an_mp4".into(),
        ),
        ("API: status", "/api/status".into()),
        ("API: a code", "/api/videos?code=not_an_mp4".into()),
        (
            "API: a commit",
            format!("/api/videos?commit={}", "c".repeat(40)),
        ),
        (
            "API: one delivery",
            format!("/api/deliveries/{}", id("delivery", middle)),
        ),
        ("API: videos", "/api/videos".into()),
        ("API: one video", format!("/api/videos/{video}")),
        ("API: deliveries", "/api/deliveries".into()),
        ("API: status", "/api/status".into()),
    ]
}

/// An id, computed as in [`fill`].
fn id(of: &str, n: u32) -> String {
    use md5::Digest as _;
    let digest = md5::Md5::digest(format!("{of}{n}"));
    uuid::Uuid::from_slice(&digest).unwrap().to_string()
}

/// When a video changed: one minute after the previous one.
fn at_ms(videos: u32, n: u32) -> i64 {
    END_MS - i64::from(videos + GENERATING - n) * 60_000
}

/// An arbitrary time after the last change.
const END_MS: i64 = 1_790_000_000_000;

fn fill(videos: u32) -> String {
    let last = videos + GENERATING;
    let at = format!("({END_MS} - ({last} - n) * 60000::bigint)");
    format!(
        "alter table video_ingest.videos set unlogged;
        alter table video_ingest.events set unlogged;
        alter table video_ingest.deliveries set unlogged;

        insert into lessons (id, user_id, title)
        select md5('lesson' || n)::uuid, md5('user' || n % 1000)::uuid, 'Photosynthesis'
        from generate_series(0, {last} / 4) as n;

        insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, storage_path, mime_type, created_at)
        select md5('video' || n)::uuid, md5('lesson' || n / 4)::uuid, md5('user' || n / 4 % 1000)::uuid, 'video',
            'lesson-assets',
            case when n <= {videos} - 50 and n % 50 > 0 then 'somewhere/' || n end,
            case when n <= {videos} - 50 and n % 50 = 0 then 'error: the file is no MP4' else 'video/mp4' end,
            to_timestamp({at} / 1000.0)
        from generate_series(1, {last}) as n;

        insert into video_ingest.videos (video_id, lesson_id, state, source, due_at, requested, requested_at,
            code, message, size_bytes, duration_ms, stored_sha, commit_sha, storage_path, created_at, updated_at,
            failed_at)
        select md5('video' || n)::uuid::text, md5('lesson' || n / 4)::uuid::text, state, 'push',
            case when state in ('queued', 'running', 'waiting') then {at} end, 1, {at},
            case state when 'failed' then 'not_an_mp4' when 'waiting' then 'metadata_missing' end,
            case state when 'failed' then 'the file is no MP4' when 'waiting' then 'waits for its JSON' end,
            case when state = 'ready' then 12345678 end, case when state = 'ready' then 30033 end,
            case when state = 'ready' then repeat('a', 40) end, repeat('b', 40),
            case when state = 'ready' then 'somewhere/' || n end, {at} - 1000, {at},
            case when state = 'failed' then {at} end
        from (select n, case
                when n > {videos} - 4 then 'running' when n > {videos} - 34 then 'queued'
                when n > {videos} - 50 then 'waiting' when n % 50 = 0 then 'failed' else 'ready' end as state
            from generate_series(1, {videos}) as n) as videos;

        insert into video_ingest.events (video_id, lesson_id, at, seq, step, detail, ms, delivery)
        select md5('video' || n)::uuid::text, md5('lesson' || n / 4)::uuid::text, {at} - 5000 + k * 1000, k,
            (array['received', 'listed', 'fetched', 'stored', 'ready'])[k], 'as it should be', 1000,
            case when k = 1 then md5('delivery' || n)::uuid::text end
        from generate_series(1, {videos}) as n, generate_series(1, 5) as k;

        insert into video_ingest.deliveries (guid, event, before_sha, after_sha, received_at, scan, status, videos, ignored)
        select md5('delivery' || n)::uuid::text, 'push', repeat('a', 40), repeat('b', 40), {at}, 0, 'accepted',
            json_build_array(json_build_object('lesson_id', md5('lesson' || n / 4)::uuid, 'video_id', md5('video' || n)::uuid))::text,
            '[]'
        from generate_series(1, {videos}) as n;

        insert into video_ingest.statuses (video_id, conversation_id, status, detail, first_at, at)
        select md5('video' || n)::uuid::text, md5('conversation' || n), 'running', 'it is at work', {at}, {at}
        from generate_series({videos} + 1, {last}) as n;

        insert into video_ingest.hours (hour, what, bucket, n)
        select hour - hour % 3600000, what, bucket, 5
        from (select extract(epoch from now())::bigint * 1000 - n * 3600000::bigint as hour from generate_series(0, 720) as n) as hours,
            (select 'ready' as what, 0 as bucket union all select 'failed', 0
             union all select 'took', n from generate_series(46, 60) as n) as counted;"
    )
}

impl World {
    async fn new(videos: u32, github: &FakeGithub) -> Self {
        let database = Postgres::shared().create_database().await;
        let mut world = Self {
            database,
            dir: tempfile::tempdir().unwrap(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            url: String::new(),
        };
        world.serve(github).await;
        let began = Instant::now();
        world.database.sql(&fill(videos)).await;
        // Autovacuum would do this later.
        let mut superuser = world.superuser().await;
        sqlx::raw_sql("vacuum analyze")
            .execute(&mut superuser)
            .await
            .unwrap();
        println!(
            "  {videos} videos filled in {} s",
            began.elapsed().as_secs()
        );
        world
    }

    /// Starts the server without workers, on new connections.
    async fn serve(&mut self, github: &FakeGithub) {
        let local = "127.0.0.1:0".parse().unwrap();
        let mut config =
            Config::embedded(self.dir.path(), local, REPOSITORY, &github.url(), SECRET);
        config.admin_token = Some(ADMIN_TOKEN.into());
        config.database = DatabaseConfig::Postgres {
            url: self.database.service_url.clone().into(),
        };
        let app = App::build(config, Injected::default()).await.unwrap();
        let listener = TcpListener::bind(local).await.unwrap();
        self.url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(http::serve(listener, app.router, CancellationToken::new()));
    }

    async fn superuser(&self) -> PgConnection {
        let url = self.database.server.url(SUPERUSER, &self.database.name);
        PgConnection::connect(&url).await.unwrap()
    }

    async fn get(&self, path: &str) -> Duration {
        let began = Instant::now();
        let request = self
            .client
            .get(format!("{}{path}", self.url))
            .bearer_auth(ADMIN_TOKEN);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.bytes().await.unwrap();
        began.elapsed()
    }

    /// From now on, the log contains the plan of every statement, with the rows that it read.
    async fn log_plans(&mut self, github: &FakeGithub) {
        let mut superuser = self.superuser().await;
        for (setting, value) in [
            ("session_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_analyze", "on"),
            ("auto_explain.log_timing", "off"),
            ("auto_explain.log_format", "json"),
            ("auto_explain.log_nested_statements", "off"),
        ] {
            let set = format!(
                "alter database {} set {setting} = '{value}'",
                self.database.name
            );
            sqlx::raw_sql(AssertSqlSafe(set))
                .execute(&mut superuser)
                .await
                .unwrap();
        }
        self.serve(github).await;
    }

    /// What a page read, according to the plans in the log.
    async fn read(&self, path: &str) -> Read {
        let before = self.plans().len();
        self.get(path).await;
        let began = Instant::now();
        let mut read = Read::default();
        // The last statement of a page may be logged after its response.
        let mut seen = before;
        loop {
            let plans = self.plans();
            if plans.len() > before && plans.len() == seen {
                for plan in &plans[before..] {
                    read.add(&plan["Plan"]);
                }
                return read;
            }
            assert!(began.elapsed() < LOG_PATIENCE, "no plan of {path}");
            seen = plans.len();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every plan of this database in the log so far.
    fn plans(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.database.server.dir.join("log")).unwrap();
        let of_this = format!(" {} ", self.database.name);
        let mut lines = log.lines().peekable();
        let mut plans = Vec::new();
        while let Some(line) = lines.next() {
            if !(line.contains(&of_this) && line.ends_with("plan:")) {
                continue;
            }
            let mut json = String::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
                json += line;
            }
            plans.push(serde_json::from_str(&json).unwrap());
        }
        plans
    }
}

impl Read {
    /// Adds what a node of a plan and those below it read.
    fn add(&mut self, node: &Value) {
        let number = |name: &str| node[name].as_f64().unwrap_or_default();
        let table = node["Relation Name"].as_str().unwrap_or_default();
        let kind = node["Node Type"].as_str().unwrap_or_default();
        let loops = number("Actual Loops");
        let per_loop = number("Actual Rows")
            + number("Rows Removed by Filter")
            + number("Rows Removed by Index Recheck");
        let rows = (per_loop * loops) as u64;
        if GROWING.contains(&table) {
            self.rows += rows;
        } else if !table.is_empty() && table != OF_POLICIES {
            self.rollup_rows += rows;
        }
        if kind == "Seq Scan" && loops > 0.0 && (GROWING.contains(&table) || table == OF_POLICIES) {
            self.scans.push(format!("{kind} on {table}"));
        }
        for below in node["Plans"].as_array().into_iter().flatten() {
            self.add(below);
        }
    }
}
