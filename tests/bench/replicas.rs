//! Row I: several servers on one database.

use std::time::{Duration, Instant};

use uuid::Uuid;
use video_ingest::fake_github::FakeGithub;

use crate::ROUNDS;
use crate::report::{Report, Row, median, ratio};
use crate::server::Server;
use crate::storage::Storage;
use crate::support::fake_storage::SECRET_KEY;
use crate::support::postgres::{Database, Postgres};
use crate::support::scenario::{ADMIN_TOKEN, REPOSITORY, Video};

const VIDEOS: usize = 1_000;
const REPLICAS: [usize; 3] = [1, 2, 4];

/// The factor by which several replicas together may be slower than one, because they share two cores.
const SLOWER_MAX: f64 = 1.1;

/// The smallest share of any replica, as a part of an even share.
const SHARE_MIN: f64 = 0.5;

/// The factor by which the rows read per video may increase.
const COST_MAX: f64 = 1.2;

/// How often to check whether all videos are ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Postgres updates its statistics at the end of a transaction, at most once per second.
const COUNTED_AFTER: Duration = Duration::from_millis(1500);

struct Measured {
    seconds: f64,
    /// The smallest share, as a part of an even share.
    least: f64,
    /// Rows of `videos` that statements read, per video.
    rows_read: f64,
}

pub async fn measure(report: &mut Report) {
    let postgres = Postgres::start_with("on");
    let github = FakeGithub::start(REPOSITORY).await.unwrap();
    let videos: Vec<Video> = (0..VIDEOS).map(|_| Video::good()).collect();
    github.commit(|c| videos.iter().fold(c, |c, video| video.write(c)));
    let mut rounds = REPLICAS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (replicas, rounds) in REPLICAS.into_iter().zip(&mut rounds) {
            rounds.push(run(postgres, &github, &videos, replicas).await);
        }
    }
    let of = |at: usize, what: fn(&Measured) -> f64| -> Vec<f64> {
        rounds[at].iter().map(what).collect()
    };
    let one = of(0, |m| m.seconds);
    for (at, replicas) in REPLICAS.into_iter().enumerate() {
        let (seconds, least) = (of(at, |m| m.seconds), median(&of(at, |m| m.least)));
        let (slower, cost) = (ratio(&seconds, &one), median(&of(at, |m| m.rows_read)));
        let holds = slower <= SLOWER_MAX
            && least >= SHARE_MIN
            && cost <= COST_MAX * median(&of(0, |m| m.rows_read));
        report.add(Row {
            work: format!("I. {VIDEOS} small videos, {replicas} replicas"),
            measured: format!(
                "{:.0} videos/s, smallest share {:.0} % of an even share, {cost:.1} rows read per video",
                VIDEOS as f64 / median(&seconds),
                least * 100.0
            ),
            baseline: format!("one replica: {:.0} videos/s", VIDEOS as f64 / median(&one)),
            target: (replicas > 1).then(|| ("no slower, even shares".into(), holds)),
        });
    }
}

async fn run(
    postgres: &'static Postgres,
    github: &FakeGithub,
    videos: &[Video],
    replicas: usize,
) -> Measured {
    let storage = Storage::start().await;
    let database = postgres.create_database().await;
    insert(&database, videos).await;
    let settings = [
        ("GITHUB_API_URL", github.url()),
        ("SUPABASE_URL", format!("http://{}", storage.address)),
        ("SUPABASE_SERVICE_ROLE_KEY", SECRET_KEY.to_owned()),
        ("DATABASE_URL", database.service_url.clone()),
    ];
    let settings: Vec<_> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let servers: Vec<_> = (0..replicas).map(|_| Server::start(&settings)).collect();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let began = Instant::now();
    let sweep = client
        .post(servers[0].url("/reconcile?wait=0"))
        .bearer_auth(ADMIN_TOKEN);
    assert_eq!(sweep.send().await.unwrap().status(), 200);
    let ready = "select count(*)::text from lesson_assets where storage_path is not null";
    while database.text(ready).await.unwrap() != videos.len().to_string() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(storage.take().len(), videos.len());
    let mut shares = Vec::new();
    for server in &servers {
        let metrics = client.get(server.url("/metrics")).send().await.unwrap();
        shares.push(ready_of(&metrics.text().await.unwrap()));
    }
    assert_eq!(
        shares.iter().sum::<f64>() as usize,
        videos.len(),
        "each once"
    );
    tokio::time::sleep(COUNTED_AFTER).await;
    let read = "select (seq_tup_read + idx_tup_fetch)::text from pg_stat_user_tables
        where schemaname = 'video_ingest' and relname = 'videos'";
    let read: f64 = database.text(read).await.unwrap().parse().unwrap();
    let even = (videos.len() / replicas) as f64;
    Measured {
        seconds,
        least: shares.into_iter().fold(f64::MAX, f64::min) / even,
        rows_read: read / videos.len() as f64,
    }
}

/// How many videos this replica made ready, from its metrics.
fn ready_of(metrics: &str) -> f64 {
    let line = metrics.lines().find(|line| {
        line.starts_with("video_ingest_attempts_total{") && line.contains("outcome=\"ready\"")
    });
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_default()
}

async fn insert(database: &Database, videos: &[Video]) {
    let user = Uuid::new_v4();
    let mut statements = String::from("begin;");
    for video in videos {
        let (lesson, id) = (video.key.lesson_id, video.key.video_id);
        statements += &format!(
            "insert into lessons (id, user_id, title) values ('{lesson}', '{user}', 'Photosynthesis');
             insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
             values ('{id}', '{lesson}', '{user}', 'video', 'lesson-assets', 'video/mp4');"
        );
    }
    database.sql(&(statements + "commit;")).await;
}
