//! Row H: a sweep over many rows.

use std::time::{Duration, Instant};

use uuid::Uuid;
use video_ingest::domain::ids::VideoKey;
use video_ingest::fake_github::FakeGithub;

use crate::ROUNDS;
use crate::report::{Report, Row, median};
use crate::server::Server;
use crate::support::scenario::{ADMIN_TOKEN, REPOSITORY, Video};

/// Pending rows. One in ten was pushed.
const ROWS: [usize; 3] = [1_000, 10_000, 100_000];
const ROWS_PER_PUSHED: usize = 10;

/// The factor by which the CPU time per row may increase from one sweep to the next larger one.
const LINEAR: f64 = 1.5;

pub async fn measure(report: &mut Report) {
    // The figure of the smallest sweep is dominated by the resolution of the clock.
    let mut per_row_before = f64::INFINITY;
    for rows in ROWS {
        let (took, cpu) = sweep(rows).await;
        let per_row = cpu * 1e6 / rows as f64;
        let linear = per_row <= LINEAR * per_row_before;
        report.add(Row {
            work: format!("H. sweep over {rows} pending rows, a tenth of them pushed"),
            measured: format!("{took:.2} s, {per_row:.0} µs of CPU time per row"),
            baseline: String::new(),
            target: (rows == ROWS[2]).then(|| ("linear".into(), linear)),
        });
        per_row_before = per_row;
    }
}

/// The duration and the CPU time of a dry run, in seconds.
async fn sweep(rows: usize) -> (f64, f64) {
    let github = FakeGithub::start(REPOSITORY).await.unwrap();
    let keys: Vec<_> = (0..rows)
        .map(|_| VideoKey {
            lesson_id: Uuid::new_v4(),
            video_id: Uuid::new_v4(),
        })
        .collect();
    github.commit(|c| {
        keys.iter().step_by(ROWS_PER_PUSHED).fold(c, |c, key| {
            let video = Video::of(*key);
            video.write(c)
        })
    });
    let server = Server::start(&[("WORKERS", "0"), ("GITHUB_API_URL", &github.url())]);
    let url = format!(
        "sqlite://{}",
        server.dir.join("video-ingest.sqlite").display()
    );
    let database = sqlx::SqlitePool::connect(&url).await.unwrap();
    insert(&database, &keys).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let reconcile = async |query: &str| {
        let url = server.url(&format!("/reconcile?wait=0{query}"));
        let answer = client
            .post(url)
            .bearer_auth(ADMIN_TOKEN)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.json::<serde_json::Value>().await.unwrap()
    };
    let mut times = Vec::new();
    let before = server.cpu();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let answer = reconcile("&dry_run=true").await;
        times.push(began.elapsed().as_secs_f64());
        assert_eq!(answer["checked"], rows);
    }
    let cpu = (server.cpu() - before).as_secs_f64() / ROUNDS as f64;
    reconcile("").await;
    let queued = sqlx::query_scalar("select count(*) from videos where state = 'queued'");
    let queued: i64 = queued.fetch_one(&database).await.unwrap();
    assert_eq!(
        queued as usize,
        rows / ROWS_PER_PUSHED,
        "everything pushed is queued"
    );
    database.close().await;
    (median(&times), cpu)
}

async fn insert(database: &sqlx::SqlitePool, keys: &[VideoKey]) {
    let rows: Vec<_> = keys
        .iter()
        .map(|key| serde_json::json!({"id": key.video_id, "lesson": key.lesson_id}))
        .collect();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    sqlx::query(
        "insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type, created_at)
         select value ->> 'id', value ->> 'lesson', $1, 'video', 'lesson-assets', 'video/mp4', $2
         from json_each($3)",
    )
    .bind(Uuid::nil().to_string())
    .bind(Duration::as_millis(&now) as i64)
    .bind(serde_json::Value::from(rows).to_string())
    .execute(database)
    .await
    .unwrap();
}
