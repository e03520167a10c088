//! SIGKILL at every row of the crash table in `src/lib.rs`, with running videos and deliveries in flight.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::environment::{Backend, Drained, Push, World};
use crate::server::Server;
use crate::side_by_side;

/// Kills in the short and in the long form, for both back ends together.
const SHORT_KILLS: usize = 30;
const LONG_KILLS: usize = 1000;

/// Acknowledged deliveries that the long form needs.
const LONG_ACKNOWLEDGED_MIN: usize = 10_000;

/// How often each row must have been hit.
const SHORT_HITS_MIN: u32 = 1;
const LONG_HITS_MIN: u32 = 20;

/// Kills in one world, before everything has to become ready.
const KILLS_PER_WORLD: usize = 50;

/// Worlds at once.
const WORLDS: usize = 4;

/// Deliveries per round, and how many of them are sent at once.
const DELIVERIES: usize = 10;
const CLIENTS: usize = 4;

/// Videos ingested at once by the process that is killed.
const RUNNING: usize = 4;

/// Longer than any wait in these tests takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Within this time after its first delivery a process is killed at a random moment.
const RANDOM_MOMENT_MS: u64 = 600;

/// Where and when the process dies: a row of the crash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    BeforeCommit,
    AfterCommit,
    /// With acknowledged videos that are not claimed.
    AfterAnswer,
    /// While four videos hang at this fail point.
    At(&'static str),
    LastTransaction,
    /// At a random time.
    Random,
}

use Moment::{AfterAnswer, AfterCommit, At, BeforeCommit, LastTransaction, Random};

/// Used in turn. The moments that need a blocked statement need Postgres.
const EMBEDDED: [Moment; 15] = [
    Random,
    BeforeCommit,
    At("claimed"),
    At("listed"),
    Random,
    At("fetched"),
    At("checked"),
    AfterAnswer,
    At("uploading"),
    Random,
    At("uploaded"),
    At("stored"),
    Random,
    At("published"),
    Random,
];
const SUPABASE: [Moment; 15] = [
    Random,
    BeforeCommit,
    AfterCommit,
    At("claimed"),
    At("listed"),
    At("fetched"),
    At("checked"),
    AfterAnswer,
    At("uploading"),
    At("uploaded"),
    At("stored"),
    At("published"),
    LastTransaction,
    AfterCommit,
    LastTransaction,
];

/// Figures over all worlds.
#[derive(Default)]
struct Figures {
    kills: usize,
    hits: BTreeMap<Moment, u32>,
    acknowledged: usize,
    unanswered: usize,
    unanswered_recorded: usize,
    running_at_kill: usize,
    drained: Drained,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.kills += other.kills;
        for (moment, hits) in other.hits {
            *self.hits.entry(moment).or_default() += hits;
        }
        self.acknowledged += other.acknowledged;
        self.unanswered += other.unanswered;
        self.unanswered_recorded += other.unanswered_recorded;
        self.running_at_kill += other.running_at_kill;
        let (all, more) = (&mut self.drained, other.drained);
        all.ready += more.ready;
        all.between += more.between;
        all.replaced_between += more.replaced_between;
        all.lease_over_max = all.lease_over_max.max(more.lease_over_max);
    }
}

pub fn prove(runtime: &Runtime, long: bool, seed: u64) {
    let (form, kills, hits_min) = if long {
        ("long", LONG_KILLS, LONG_HITS_MIN)
    } else {
        ("short", SHORT_KILLS, SHORT_HITS_MIN)
    };
    println!("kill -9, {form} form, seed={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut worlds = Vec::new();
    for (backend, moments) in [(Backend::Embedded, EMBEDDED), (Backend::Supabase, SUPABASE)] {
        let turns: Vec<Moment> = moments.into_iter().cycle().take(kills / 2).collect();
        let of_worlds = turns.chunks(KILLS_PER_WORLD);
        worlds.extend(of_worlds.map(|turns| (backend, turns.to_vec(), rng.fork())));
    }
    let killed = AtomicUsize::new(0);
    let all = side_by_side(WORLDS, worlds, |(backend, turns, rng)| {
        let figures = runtime.block_on(in_one_world(backend, &turns, rng));
        let killed = killed.fetch_add(figures.kills, Ordering::Relaxed) + figures.kills;
        println!("  {backend:?}: {killed} of {kills} kills, all videos ready");
        figures
    });
    let mut figures = Figures::default();
    all.into_iter().for_each(|world| figures.add(world));
    let Figures { drained, .. } = &figures;
    println!("  killed at                              times");
    for (moment, hits) in &figures.hits {
        println!("  {:36} {hits:7}", format!("{moment:?}"));
    }
    println!(
        "  {} deliveries acknowledged, {} without a response ({} of these recorded)",
        figures.acknowledged, figures.unanswered, figures.unanswered_recorded
    );
    println!(
        "  {} videos running when their process was killed",
        figures.running_at_kill
    );
    println!(
        "  {} videos ready with the correct bytes; {} killed between the last uploaded byte and the update of the row, {} of these uploaded again",
        drained.ready, drained.between, drained.replaced_between
    );
    println!(
        "  expired leases taken over within {:?}",
        drained.lease_over_max
    );
    let rows = EMBEDDED.iter().chain(&SUPABASE);
    for moment in rows {
        let hits = figures.hits.get(moment).copied().unwrap_or_default();
        assert!(
            hits >= hits_min,
            "{moment:?} was hit {hits} times, not {hits_min}"
        );
    }
    assert!(!long || figures.acknowledged >= LONG_ACKNOWLEDGED_MIN);
}

async fn in_one_world(backend: Backend, turns: &[Moment], mut rng: fastrand::Rng) -> Figures {
    let mut figures = Figures::default();
    let mut world = World::new(backend, None).await;
    // The other replica. It is killed, too, if the moment is random.
    let steady = |world: &World| world.start("steady", &[("WORKERS", "2")]);
    let mut other = (backend == Backend::Supabase).then(|| steady(&world));
    for moment in turns {
        let fault = match moment {
            At(place) => format!("{place}=hang"),
            // All workers hang, so that acknowledged videos stay unclaimed.
            AfterAnswer => "claimed=hang".to_owned(),
            _ => String::new(),
        };
        let running = RUNNING.to_string();
        let mut settings = vec![("WORKERS", running.as_str())];
        if !fault.is_empty() {
            settings.push(("FAIL_POINTS", &fault));
        }
        let mut victim = world.start("data", &settings);
        let pushes = world.pushes(DELIVERIES).await;
        let unanswered = round(&mut world, &mut victim, *moment, pushes, &mut rng).await;
        if *moment == Random
            && let Some(other) = &mut other
        {
            other.kill();
        }
        // The videos that were running in the killed processes.
        let running = "select state from video_ingest.videos where state = 'running'";
        figures.running_at_kill += world.texts(running).await.len();
        let recorded = world.recorded().await;
        let kept = unanswered
            .iter()
            .filter(|p| recorded.contains(&p.delivery.guid))
            .count();
        match moment {
            BeforeCommit => assert!(
                kept < unanswered.len(),
                "no delivery was killed before its commit"
            ),
            AfterCommit => assert!(
                kept > 0,
                "no delivery was killed between its commit and its response"
            ),
            _ => {}
        }
        figures.unanswered += unanswered.len();
        figures.unanswered_recorded += kept;
        world.audit(true).await;
        figures.kills += 1;
        let queued =
            "select state from video_ingest.videos where state = 'queued' and attempts = 0";
        if *moment != AfterAnswer || !world.texts(queued).await.is_empty() {
            *figures.hits.entry(*moment).or_default() += 1;
        }
        if *moment == Random && backend == Backend::Supabase {
            other = Some(steady(&world));
        }
        // The user presses *Redeliver*.
        let server = world.start("data", &[("WORKERS", "0")]);
        for push in unanswered {
            let status = server.deliver(&world.client, &push.delivery).await;
            assert_eq!(status, Some(202), "redelivered");
            world.acknowledged.push(push);
        }
    }
    let _server = world.start("data", &[("WORKERS", "4")]);
    figures.drained = world.drain().await;
    figures.acknowledged = world.acknowledged.len();
    figures
}

/// Delivers, kills at the moment, and returns the deliveries without a response.
async fn round(
    world: &mut World,
    victim: &mut Server,
    moment: Moment,
    mut pushes: Vec<Push>,
    rng: &mut fastrand::Rng,
) -> Vec<Push> {
    let mut last = pushes.split_off(DELIVERIES - CLIENTS);
    match moment {
        Random => {
            last.append(&mut pushes);
            let sending = tokio::spawn(send(world, victim, last));
            tokio::time::sleep(Duration::from_millis(rng.u64(..RANDOM_MOMENT_MS))).await;
            victim.kill();
            let sent = sending.await.unwrap();
            settle(world, sent)
        }
        AfterAnswer => {
            let mut unanswered = deliver(world, victim, pushes).await;
            unanswered.append(&mut deliver(world, victim, last).await);
            victim.kill();
            unanswered
        }
        At(place) => {
            let mut unanswered = deliver(world, victim, pushes).await;
            while timeout(PATIENCE / 30, victim.hanging(RUNNING))
                .await
                .is_err()
            {
                // The other replica claimed them first.
                let more = world.pushes(RUNNING).await;
                unanswered.append(&mut deliver(world, victim, more).await);
                assert!(
                    world.acknowledged.len() < 100_000,
                    "no video reaches {place}"
                );
            }
            unanswered.append(&mut in_flight(world, victim, last, rng).await);
            unanswered
        }
        BeforeCommit | AfterCommit => {
            let mut unanswered = deliver(world, victim, pushes).await;
            let (victims, held) = hold_record(world, victim, last).await;
            victim.kill();
            if moment == BeforeCommit && world.backend == Backend::Supabase {
                // Postgres would commit a statement that has begun even without its client.
                world
                    .texts(
                        "select pg_terminate_backend(pid)::text from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'",
                    )
                    .await;
            }
            held.release().await;
            if moment == AfterCommit {
                until_none_waits(world).await;
            }
            let sent = victims.await.unwrap();
            unanswered.append(&mut settle(world, sent));
            unanswered
        }
        LastTransaction => {
            let admin = &world.database.as_ref().unwrap().admin;
            let mut lock = admin.begin().await.unwrap();
            sqlx::raw_sql("lock table lesson_assets in share row exclusive mode")
                .execute(&mut *lock)
                .await
                .unwrap();
            let mut unanswered = deliver(world, victim, pushes).await;
            // Two of them may belong to the other replica.
            let waiting = "select pid::text from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'
                and query like '%update lesson_assets%'";
            until(async || world.texts(waiting).await.len() > 2).await;
            unanswered.append(&mut in_flight(world, victim, last, rng).await);
            lock.rollback().await.unwrap();
            until_none_waits(world).await;
            unanswered
        }
    }
}

/// A lock that prevents deliveries from being recorded.
enum Held {
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
}

impl Held {
    async fn release(self) {
        match self {
            Self::Sqlite(lock) => lock.rollback().await.unwrap(),
            Self::Postgres(lock) => lock.rollback().await.unwrap(),
        }
    }
}

type Sent = Vec<(Push, Option<u16>)>;

/// Delivers while nothing can be recorded; returns once at least one delivery waits for the lock.
async fn hold_record(
    world: &World,
    victim: &Server,
    pushes: Vec<Push>,
) -> (tokio::task::JoinHandle<Sent>, Held) {
    match &world.database {
        None => {
            let lock = world
                .sqlite()
                .await
                .begin_with("begin immediate")
                .await
                .unwrap();
            let sending = tokio::spawn(send(world, victim, pushes));
            // Nothing shows from outside that the server waits for SQLite. This is shorter than its wait.
            tokio::time::sleep(Duration::from_millis(300)).await;
            (sending, Held::Sqlite(lock))
        }
        Some(database) => {
            // Not a lock on the table: it would also block the preparation of the statement, and a statement
            // that was only prepared is never committed.
            let lock = database.hold_delivery(&pushes[0].delivery.guid).await;
            let sending = tokio::spawn(send(world, victim, pushes));
            let waiting = "select pid::text from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'
                and query like '%with named as%'";
            until(async || !world.texts(waiting).await.is_empty()).await;
            (sending, Held::Postgres(lock))
        }
    }
}

async fn until_none_waits(world: &World) {
    let waiting = "select pid::text from pg_stat_activity where datname = current_database()
        and (wait_event_type = 'Lock' or (state = 'active' and pid <> pg_backend_pid()))";
    until(async || world.texts(waiting).await.is_empty()).await;
}

async fn until(condition: impl AsyncFn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("the condition becomes true");
}

/// Kills while these are being delivered.
async fn in_flight(
    world: &mut World,
    victim: &mut Server,
    pushes: Vec<Push>,
    rng: &mut fastrand::Rng,
) -> Vec<Push> {
    let sending = tokio::spawn(send(world, victim, pushes));
    tokio::time::sleep(Duration::from_millis(rng.u64(..20))).await;
    victim.kill();
    let sent = sending.await.unwrap();
    settle(world, sent)
}

async fn deliver(world: &mut World, victim: &Server, pushes: Vec<Push>) -> Vec<Push> {
    let sent = send(world, victim, pushes).await;
    settle(world, sent)
}

fn send(
    world: &World,
    victim: &Server,
    pushes: Vec<Push>,
) -> impl Future<Output = Sent> + Send + use<> {
    let sends: Vec<_> = pushes
        .into_iter()
        .map(|push| {
            let sent = victim.deliver(&world.client, &push.delivery);
            async move { (push, sent.await) }
        })
        .collect();
    stream::iter(sends).buffer_unordered(CLIENTS).collect()
}

/// Records the acknowledged deliveries; returns the others.
fn settle(world: &mut World, sent: Sent) -> Vec<Push> {
    let (yes, no): (Vec<_>, Vec<_>) = sent
        .into_iter()
        .partition(|(_, status)| *status == Some(202));
    for (_, status) in &no {
        assert!(matches!(status, None | Some(503)), "status {status:?}");
    }
    world
        .acknowledged
        .extend(yes.into_iter().map(|(push, _)| push));
    no.into_iter().map(|(push, _)| push).collect()
}
