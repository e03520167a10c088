//! Rows A, B and C: pushes that are acknowledged once they are committed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::ROUNDS;
use crate::baselines;
use crate::link::{self, Link};
use crate::load::{self, Push, Pushes, Run};
use crate::report::{Report, Row, median, ms, ratio};
use crate::server::Server;
use crate::support::postgres::{Database, Postgres};

/// Requests in one round: a second or two.
const PUSHES: usize = 10_000;

/// The same for a server that starts a process per push.
const SLOW_PUSHES: usize = 500;

/// How long `pgbench` inserts in one round.
const PGBENCH_SECONDS: u32 = 2;

/// Our target with 16 connections. GitHub's limit is ten seconds.
const P99_MAX: Duration = Duration::from_millis(20);

/// Row C: the latency that a database in another region adds to each round trip.
const ROUND_TRIP: Duration = Duration::from_millis(30);

/// Row C.
const FAR_CONNECTIONS: usize = 256;

const WEBHOOKS: &str = "/webhooks/github";

/// Settings of a server that only receives: no workers, and no GitHub.
const RECEIVING: [(&str, &str); 2] = [("WORKERS", "0"), ("GITHUB_API_URL", "http://127.0.0.1:9")];

/// A server, and the pushes that it has acknowledged so far.
struct Receiver {
    server: Server,
    database: Option<Database>,
    acknowledged: Vec<(String, String)>,
}

impl Receiver {
    fn embedded() -> Self {
        Self {
            server: Server::start(&RECEIVING),
            database: None,
            acknowledged: Vec::new(),
        }
    }

    fn on_postgres(database: Database, url: &str) -> Self {
        let [workers, github] = RECEIVING;
        Self {
            server: Server::start(&[workers, github, ("DATABASE_URL", url), ("STORE", "folder")]),
            database: Some(database),
            acknowledged: Vec::new(),
        }
    }

    /// Sends pushes and records the acknowledged ones. A 503 is not an error, but it does not count.
    fn take(&mut self, connections: usize, pushes: &[Push]) -> Run {
        let run = load::send(self.server.address, connections, pushes);
        if run.acknowledged.len() < pushes.len() {
            println!("  responses: {:?}", run.statuses);
        }
        let acknowledged = run.acknowledged.iter().map(|at| &pushes[*at]);
        self.acknowledged
            .extend(acknowledged.map(|p| (p.guid.clone(), p.video_id.to_string())));
        run
    }

    /// Checks with another database client that every acknowledged push is recorded, together with its video.
    async fn verify(self) {
        let Self {
            server,
            database,
            acknowledged,
        } = self;
        let file = server.dir.join("video-ingest.sqlite");
        for (column, table, at) in [("guid", "deliveries", 0), ("video_id", "videos", 1)] {
            let recorded: HashSet<String> = match &database {
                Some(database) => {
                    let query = format!("select {column} from video_ingest.{table}");
                    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(&database.admin);
                    rows.await.unwrap().iter().map(|row| row.get(0)).collect()
                }
                None => {
                    let url = format!("sqlite://{}", file.display());
                    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
                    let query = format!("select {column} from {table}");
                    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(&pool).await;
                    pool.close().await;
                    rows.unwrap().iter().map(|row| row.get(0)).collect()
                }
            };
            let lost = acknowledged
                .iter()
                .filter(|ids| !recorded.contains([&ids.0, &ids.1][at]));
            assert_eq!(lost.count(), 0, "acknowledged but not in {table}");
        }
        println!("  {} acknowledged, all recorded", acknowledged.len());
        drop(server);
    }
}

pub async fn measure(report: &mut Report, wanted: &dyn Fn(&str) -> bool) {
    let pushes = Pushes::new().await;
    let nothing = load::nothing_server().await;
    for connections in [16, 64] {
        let ceiling = load::send(nothing, connections, &pushes.make(PUSHES, WEBHOOKS));
        println!(
            "  limit of the clients: {:.0} pushes/s with {connections} connections",
            ceiling.per_second
        );
    }
    if wanted("A ping") {
        embedded(report, &pushes).await;
    }
    if wanted("B C") {
        let postgres = Postgres::start_with("on");
        if wanted("B") {
            near(report, &pushes, postgres.create_database().await).await;
        }
        if wanted("C") {
            far(report, &pushes, postgres).await;
        }
    }
}

/// Row A.
async fn embedded(report: &mut Report, pushes: &Pushes) {
    let mut ours = Receiver::embedded();
    let (octokit, webhook) = (baselines::octokit(), baselines::webhook());
    for connections in [16, 64] {
        let mut rates = [const { Vec::new() }; 4];
        let mut p99 = Vec::new();
        let mut cpu = [Duration::ZERO; 2];
        for _ in 0..ROUNDS {
            let before = octokit.cpu();
            let baseline = load::send(octokit.address, connections, &pushes.make(PUSHES, WEBHOOKS));
            assert_eq!(
                baseline.acknowledged.len(),
                PUSHES,
                "{:?}",
                baseline.statuses
            );
            cpu[1] += octokit.cpu() - before;
            let before = ours.server.cpu();
            let run = ours.take(connections, &pushes.make(PUSHES, WEBHOOKS));
            cpu[0] += ours.server.cpu() - before;
            let slow = pushes.make(SLOW_PUSHES, baselines::WEBHOOK_PATH);
            let slow = load::send(webhook.address, connections, &slow);
            assert_eq!(slow.acknowledged.len(), SLOW_PUSHES, "{:?}", slow.statuses);
            let ping = load::send(ours.server.address, connections, &pushes.pings(PUSHES));
            p99.push(ms(run.p99));
            for (rates, run) in rates.iter_mut().zip([run, baseline, slow, ping]) {
                rates.push(run.per_second);
            }
        }
        let [run, octokit_rates, webhook_rates, ping] = &rates;
        // Unlike the rates, these hardly depend on other load on the machine.
        let [ours_us, octokit_us] =
            cpu.map(|time| time.as_secs_f64() * 1e6 / (ROUNDS * PUSHES) as f64);
        let work = format!("A. pushes acknowledged, SQLite, {connections} connections");
        let (to_octokit, to_webhook) = (ratio(run, octokit_rates), ratio(run, webhook_rates));
        report.add(Row {
            work: work.clone(),
            measured: format!(
                "{:.0}/s, {ours_us:.0} µs of CPU time each: {to_octokit:.2} ×",
                median(run)
            ),
            baseline: format!("Octokit {:.0}/s, {octokit_us:.0} µs", median(octokit_rates)),
            target: Some(("≥ 1.0 ×".into(), to_octokit >= 1.0)),
        });
        report.add(Row {
            work: work.clone(),
            measured: format!("{to_webhook:.1} ×"),
            baseline: format!("`webhook` {:.0}/s", median(webhook_rates)),
            target: Some(("≥ 5 ×".into(), to_webhook >= 5.0)),
        });
        report.add(Row {
            work: work.clone(),
            measured: format!("{:.2} ×", ratio(run, ping)),
            baseline: format!("our `ping` {:.0}/s", median(ping)),
            target: None,
        });
        if connections == 16 {
            report.add(p99_row(work, &p99));
        }
    }
    ours.verify().await;
}

/// Row B.
async fn near(report: &mut Report, pushes: &Pushes, database: Database) {
    let url = database.service_url.clone();
    let mut ours = Receiver::on_postgres(database, &url);
    for connections in [16, 64] {
        let (mut rates, mut baselines, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let database = ours.database.as_ref().unwrap();
            baselines.push(baselines::pgbench(database, connections, PGBENCH_SECONDS).await);
            let run = ours.take(connections, &pushes.make(PUSHES, WEBHOOKS));
            rates.push(run.per_second);
            p99.push(ms(run.p99));
        }
        let times = ratio(&rates, &baselines);
        let work = format!("B. pushes acknowledged, Postgres, {connections} connections");
        report.add(Row {
            work: work.clone(),
            measured: format!("{:.0}/s: {times:.2} ×", median(&rates)),
            baseline: format!("`pgbench` {:.0}/s", median(&baselines)),
            target: Some(("≥ 2 ×".into(), times >= 2.0)),
        });
        if connections == 16 {
            report.add(p99_row(work, &p99));
        }
    }
    ours.verify().await;
}

/// Row C.
async fn far(report: &mut Report, pushes: &Pushes, postgres: &'static Postgres) {
    let database = postgres.create_database().await;
    let link = Link {
        delay: ROUND_TRIP / 2,
        ..Link::default()
    };
    let mut url = reqwest::Url::parse(&database.service_url).unwrap();
    let server: SocketAddr = format!("127.0.0.1:{}", url.port().unwrap())
        .parse()
        .unwrap();
    let proxy = link::start(server, link).await;
    url.set_port(Some(proxy.port())).unwrap();
    let round_trip = round_trip(url.as_str()).await;
    let mut ours = Receiver::on_postgres(database, url.as_str());
    // The first statement on each connection is prepared, which is another round trip.
    ours.take(FAR_CONNECTIONS, &pushes.make(PUSHES / 4, WEBHOOKS));
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let run = ours.take(FAR_CONNECTIONS, &pushes.make(PUSHES, WEBHOOKS));
        rates.push(run.per_second);
    }
    let ceiling = FAR_CONNECTIONS as f64 / round_trip.as_secs_f64();
    let share = median(&rates) / ceiling;
    report.add(Row {
        work: format!(
            "C. pushes acknowledged, Postgres {} ms away, {FAR_CONNECTIONS} connections",
            ROUND_TRIP.as_millis()
        ),
        measured: format!("{:.0}/s: {:.0} %", median(&rates), share * 100.0),
        baseline: format!(
            "one round trip ({:.1} ms) per push: {ceiling:.0}/s",
            ms(round_trip)
        ),
        target: Some(("≥ 80 %".into(), share >= 0.8)),
    });
    ours.verify().await;
}

/// The median duration of a round trip to this database.
async fn round_trip(url: &str) -> Duration {
    // Not from a pool, which tests a connection before it returns it.
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        sqlx::raw_sql("select 1")
            .execute(&mut connection)
            .await
            .unwrap();
        times.push(began.elapsed().as_secs_f64());
    }
    Duration::from_secs_f64(median(&times))
}

fn p99_row(work: String, p99: &[f64]) -> Row {
    Row {
        work: format!("{work}: p99 response time"),
        measured: format!("{:.1} ms", median(p99)),
        baseline: String::new(),
        target: Some((
            format!("≤ {} ms", P99_MAX.as_millis()),
            median(p99) <= ms(P99_MAX),
        )),
    }
}
