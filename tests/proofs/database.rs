//! During database outages, each delivery gets a 503 within two seconds or is durably accepted. Afterwards,
//! work resumes without intervention.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::runtime::Runtime;

use crate::environment::{Backend, Push, World};
use crate::server::Server;
use crate::side_by_side;
use crate::support::postgres::{Postgres, unprivileged};

/// Faults in the short and in the long form, for both back ends together.
const SHORT_FAULTS: usize = 32;
const LONG_FAULTS: usize = 1000;

/// Faults in one world, before everything has to become ready.
const FAULTS_PER_WORLD: usize = 32;

/// The two seconds of the contract, measured by the client.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Within this time, the server must use the database again without intervention.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// Deliveries sent at once while the fault lasts.
const DELIVERIES: usize = 6;

/// More than the pool has connections.
const CROWD: usize = 24;

/// Shorter than the time that a delivery waits for the database.
const SLOW: Duration = Duration::from_millis(900);

/// The time between two cuts.
const CUT_EVERY: Duration = Duration::from_millis(20);

/// How often connections are cut in one fault.
const CUTS: usize = 10;

/// What happens to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Postgres is stopped like in a power failure, and started again.
    Stopped,
    /// The same while deliveries are in flight.
    Restarted,
    /// Connections are terminated repeatedly.
    Cut,
    /// Every statement takes nearly as long as allowed.
    Slow,
    /// Every process of Postgres is suspended.
    Stalled,
    /// More deliveries wait for a lock than there are connections.
    PoolExhausted,
    /// Another process holds SQLite's write lock.
    Locked,
    /// No file may grow.
    DiskFull,
}

use Fault::{Cut, DiskFull, Locked, PoolExhausted, Restarted, Slow, Stalled, Stopped};

const POSTGRES: &[Fault] = &[Cut, Stopped, Slow, Stalled, Restarted, PoolExhausted];
const SQLITE: &[Fault] = &[Locked, DiskFull];

/// The lanes run at the same time, each with its own database server. Three quarters of the faults, like
/// three quarters of their kinds, are for Postgres.
const LANES: [(Backend, &[Fault]); 4] = [
    (Backend::Supabase, POSTGRES),
    (Backend::Supabase, POSTGRES),
    (Backend::Supabase, POSTGRES),
    (Backend::Embedded, SQLITE),
];

/// Figures over all worlds, by fault.
#[derive(Default)]
struct Figures {
    faults: usize,
    accepted: usize,
    refused: usize,
    slowest: Duration,
    recovery: Duration,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.faults += other.faults;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.slowest = self.slowest.max(other.slowest);
        self.recovery = self.recovery.max(other.recovery);
    }
}

pub fn prove(runtime: &Runtime, long: bool, seed: u64) {
    let (form, faults) = if long {
        ("long", LONG_FAULTS)
    } else {
        ("short", SHORT_FAULTS)
    };
    println!("database outages, {form} form, seed={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let lanes = LANES.map(|(backend, kinds)| {
        let mut turns: Vec<Fault> = kinds
            .iter()
            .copied()
            .cycle()
            .take(faults / LANES.len())
            .collect();
        rng.shuffle(&mut turns);
        (backend, turns)
    });
    let all = side_by_side(LANES.len(), lanes.into(), |(backend, turns)| {
        runtime.block_on(in_one_lane(backend, &turns))
    });
    let mut figures = BTreeMap::<Fault, Figures>::new();
    let mut ready = 0;
    for (more_ready, more) in all {
        ready += more_ready;
        for (fault, more) in more {
            figures.entry(fault).or_default().add(more);
        }
    }
    println!("  fault           times  accepted  503   slowest response  slowest recovery");
    for (fault, f) in &figures {
        println!(
            "  {:14} {:6} {:9} {:4} {:15} ms {:14} ms",
            format!("{fault:?}"),
            f.faults,
            f.accepted,
            f.refused,
            f.slowest.as_millis(),
            f.recovery.as_millis()
        );
    }
    println!("  {ready} acknowledged deliveries, all recorded (0 false 2xx), all videos ready");
}

/// Injects faults one after the other. Returns how many videos became ready, and the figures.
async fn in_one_lane(backend: Backend, turns: &[Fault]) -> (usize, BTreeMap<Fault, Figures>) {
    let postgres = (backend == Backend::Supabase).then(Postgres::start);
    let mut figures = BTreeMap::<Fault, Figures>::new();
    let mut ready = 0;
    for turns in turns.chunks(FAULTS_PER_WORLD) {
        let mut world = World::new(backend, postgres).await;
        let server = world.start("data", &[]);
        for fault in turns {
            let figures = figures.entry(*fault).or_default();
            one(&mut world, &server, *fault, figures).await;
        }
        ready += world.drain().await.ready;
        println!("  {backend:?}: {} faults, all videos ready", turns.len());
    }
    (ready, figures)
}

/// Injects one fault and waits for the recovery.
async fn one(world: &mut World, server: &Server, fault: Fault, figures: &mut Figures) {
    let count = if fault == PoolExhausted {
        CROWD
    } else {
        DELIVERIES
    };
    let pushes = world.pushes(count).await;
    let answers = during(world, server, fault, &pushes).await;
    figures.faults += 1;
    let mut refused = Vec::new();
    for (push, (status, took)) in pushes.into_iter().zip(answers) {
        assert!(took <= ANSWER_MAX, "{fault:?}: {status:?} after {took:?}");
        figures.slowest = figures.slowest.max(took);
        match status {
            Some(202) => {
                figures.accepted += 1;
                world.acknowledged.push(push);
            }
            Some(503) => {
                figures.refused += 1;
                refused.push(push);
            }
            other => panic!("{fault:?}: status {other:?}"),
        }
    }
    // Work resumes without intervention, and *Redeliver* repeats the refused deliveries.
    let began = Instant::now();
    refused.extend(world.pushes(1).await);
    for push in refused {
        while server.deliver(&world.client, &push.delivery).await != Some(202) {
            assert!(
                began.elapsed() < RECOVERY_MAX,
                "{fault:?}: deliveries are still not recorded"
            );
        }
        world.acknowledged.push(push);
    }
    figures.recovery = figures.recovery.max(began.elapsed());
}

type Answer = (Option<u16>, Duration);

/// The responses to deliveries during the fault.
async fn during(world: &World, server: &Server, fault: Fault, pushes: &[Push]) -> Vec<Answer> {
    let deliveries = join_all(pushes.iter().map(async |push| {
        let began = Instant::now();
        let status = server.deliver(&world.client, &push.delivery).await;
        (status, began.elapsed())
    }));
    let postgres = || world.database.as_ref().unwrap().server;
    match fault {
        Stopped => {
            pg_ctl(postgres(), "stop").await;
            let answers = deliveries.await;
            pg_ctl(postgres(), "restart").await;
            answers
        }
        Restarted => tokio::join!(deliveries, pg_ctl(postgres(), "restart")).0,
        Cut => {
            let cut = async {
                for _ in 0..CUTS {
                    let service = "select pg_terminate_backend(pid)::text from pg_stat_activity
                        where datname = current_database() and usename = 'video_ingest'";
                    world.texts(service).await;
                    tokio::time::sleep(CUT_EVERY).await;
                }
            };
            tokio::join!(deliveries, cut).0
        }
        Slow => {
            let lock = lock(world).await;
            let slow = async {
                tokio::time::sleep(SLOW).await;
                lock.rollback().await.unwrap();
            };
            tokio::join!(deliveries, slow).0
        }
        PoolExhausted => {
            let lock = lock(world).await;
            let answers = deliveries.await;
            lock.rollback().await.unwrap();
            answers
        }
        Stalled => {
            let processes = processes(postgres());
            signal("-STOP", &processes);
            let answers = deliveries.await;
            signal("-CONT", &processes);
            answers
        }
        Locked => {
            let pool = world.sqlite().await;
            let lock = pool.begin_with("begin immediate").await.unwrap();
            let answers = deliveries.await;
            lock.rollback().await.unwrap();
            pool.close().await;
            answers
        }
        DiskFull => {
            limit_files(server, "1");
            let answers = deliveries.await;
            limit_files(server, "unlimited");
            answers
        }
    }
}

/// A lock that every recording waits for.
async fn lock(world: &World) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut lock = world
        .database
        .as_ref()
        .unwrap()
        .admin
        .begin()
        .await
        .unwrap();
    sqlx::raw_sql("lock table video_ingest.deliveries in access exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    lock
}

/// Stops or restarts the server immediately, without a clean shutdown.
async fn pg_ctl(postgres: &'static Postgres, what: &'static str) {
    let run = move || {
        unprivileged(&postgres.dir, postgres.bin.join("pg_ctl"))
            .args([
                "-s",
                "-w",
                "-D",
                "data",
                "-l",
                "log",
                "-m",
                "immediate",
                what,
            ])
            .output()
    };
    succeeded(tokio::task::spawn_blocking(run).await.unwrap());
}

/// The postmaster, then its children.
fn processes(postgres: &Postgres) -> Vec<String> {
    let file = std::fs::read_to_string(postgres.dir.join("data/postmaster.pid")).unwrap();
    let postmaster = file.lines().next().unwrap().to_owned();
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).unwrap();
    let mut all = vec![postmaster];
    all.extend(children.split_whitespace().map(str::to_owned));
    all
}

fn signal(name: &str, processes: &[String]) {
    succeeded(Command::new("kill").arg(name).args(processes).output());
}

/// Limits the size of the files that the server may write, in bytes.
fn limit_files(server: &Server, size: &str) {
    let process = server.id().to_string();
    let limit = format!("--fsize={size}:unlimited");
    succeeded(
        Command::new("prlimit")
            .args(["--pid", &process, &limit])
            .output(),
    );
}

fn succeeded(output: std::io::Result<Output>) {
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
