//! Simultaneous deliveries share a commit, and the failure of one does not affect the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Notify;
use video_ingest::db::Delivery;
use video_ingest::domain::ids::GitSha;
use video_ingest::failpoint::Fault;
use video_ingest::pipeline::intake::Intake;

use crate::scenario;
use crate::support::scenario::{Backend, Scenario, Video};

fn delivery(guid: impl Into<String>) -> Delivery {
    Delivery {
        guid: guid.into(),
        event: "push".to_owned(),
        before: GitSha::from_bytes([1; 20]),
        after: GitSha::from_bytes([2; 20]),
        scan: false,
        videos: vec![Video::good().key],
        ignored: json!([]),
    }
}

/// Makes the database reject the delivery with the GUID `refused`.
const REFUSE_ONE: [&str; 2] = [
    "create trigger refuse before insert on deliveries when new.guid = 'refused'
         begin select raise(abort, 'refused'); end",
    "alter table video_ingest.deliveries add check (guid <> 'refused')",
];

/// The number of connections that wait for a lock.
const LOCK_WAITS: &str = "select count(*)::text from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'";

scenario! {
    waiting_deliveries_share_one_commit(t) {
        let wake = Arc::new(Notify::new());
        let woken = wake.notified();
        let (intake, writer) = Intake::start(t.db.clone(), wake.clone());
        // All deliveries wait before the writer runs, because it runs on the same thread.
        let recorded = join_all((0..100).map(|n| intake.record(delivery(n.to_string())))).await;
        assert!(recorded.iter().all(Result::is_ok));
        woken.await;
        // One statement has one timestamp.
        let times = "select cast(count(*) as text) || ' at ' || count(distinct received_at)
            from video_ingest.deliveries";
        assert_eq!(t.text(times).await.unwrap(), "100 at 1");
        drop(intake);
        writer.await.unwrap();
    }

    a_refused_delivery_does_not_affect_the_others(t) {
        t.expect_error("failed to record");
        t.sql(REFUSE_ONE[usize::from(t.backend != Backend::Embedded)]).await;
        let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
        let guids = ["first", "refused", "last"];
        let recorded = join_all(guids.map(|guid| intake.record(delivery(guid)))).await;
        assert_eq!(recorded.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(t.counts().await, "deliveries 2, videos 2, events 2, statuses 0");
    }

    a_disconnected_client_does_not_affect_the_others(t) {
        let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
        assert!(intake.record(delivery("gone")).now_or_never().is_none());
        intake.record(delivery("stays")).await.unwrap();
        assert_eq!(t.counts().await, "deliveries 1, videos 1, events 1, statuses 0");
    }

    waiting_deliveries_are_recorded_on_shutdown(t) {
        let (intake, writer) = Intake::start(t.db.clone(), Arc::default());
        let waiting = tokio::spawn(async move { intake.record(delivery("last")).await });
        writer.await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(t.counts().await, "deliveries 1, videos 1, events 1, statuses 0");
    }
}

/// On Postgres only: SQLite has one writer.
#[tokio::test]
async fn a_blocked_commit_does_not_delay_other_commits() {
    let t = Scenario::begin(Backend::Supabase).await;
    let blocker = t.database.as_ref().unwrap().hold_delivery("held").await;
    let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
    let held = intake.record(delivery("held"));
    let other = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let recorded = intake.record(delivery("other")).await;
        blocker.commit().await.unwrap();
        recorded
    };
    let (held, other) = tokio::join!(held, other);
    assert!(held.is_ok() && other.is_ok());
}

/// Another transaction holds a lock on one video. A push of that video gets an error; the others that arrive
/// with it are recorded.
#[tokio::test]
async fn a_locked_video_does_not_affect_the_deliveries_of_others() {
    for backend in [Backend::Supabase, Backend::Pooled] {
        let mut t = Scenario::begin(backend).await;
        t.expect_error("failed to record");
        let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
        let locked = delivery("first");
        intake.record(locked.clone()).await.unwrap();
        let mut lock = t.database.as_ref().unwrap().admin.begin().await.unwrap();
        let statement = "select from video_ingest.videos for update";
        sqlx::query(statement).execute(&mut *lock).await.unwrap();
        let again = Delivery {
            guid: "again".to_owned(),
            ..locked
        };
        let mut deliveries: Vec<_> = (0..20).map(|n| delivery(n.to_string())).collect();
        deliveries.insert(7, again);
        let began = Instant::now();
        let recorded = join_all(deliveries.into_iter().map(|one| intake.record(one))).await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        for (n, recorded) in recorded.iter().enumerate() {
            assert_eq!(recorded.is_ok(), n != 7, "{backend:?}: {n}");
        }
        lock.rollback().await.unwrap();
        // What got an error was not recorded later.
        assert_eq!(
            t.counts().await,
            "deliveries 21, videos 21, events 21, statuses 0"
        );
        t.finish().await;
    }
}

/// Postgres only: SQLite has no table locks.
#[tokio::test]
async fn a_lock_on_the_apps_table_does_not_block_deliveries() {
    const WORKERS: usize = 8;
    let t = Scenario::begin(Backend::Supabase).await;
    let database = t.database.as_ref().unwrap();
    let mut lock = database.admin.begin().await.unwrap();
    let statement = "lock table lesson_assets in access exclusive mode";
    sqlx::query(statement).execute(&mut *lock).await.unwrap();
    let polls = (0..WORKERS).map(|_| {
        let worker = t.worker.clone();
        tokio::spawn(async move { worker.run_once().await })
    });
    let polls: Vec<_> = polls.collect();
    // Until idle workers use all of their connections.
    let mut before = String::new();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = t.text(LOCK_WAITS).await.unwrap();
        if now != "0" && now == before {
            break;
        }
        before = now;
    }
    for _ in 0..5 {
        let began = Instant::now();
        t.push(&Video::good()).await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
    }
    // A load balancer still sends deliveries here.
    assert_eq!(t.get("/readyz").await.status, 200);
    lock.rollback().await.unwrap();
    for poll in polls {
        poll.await.unwrap().unwrap();
    }
    t.finish().await;
}

/// An attempt that waits for the app's row does not lock the record, which a push of the same video changes.
#[tokio::test]
async fn a_video_that_waits_for_its_row_can_be_pushed() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    let push = t.push(&video).await;
    let proceed = Arc::new(Notify::new());
    t.fail.arm("stored", Fault::Pause(proceed.clone()));
    let worker = t.worker.clone();
    let attempt = tokio::spawn(async move { worker.run_once().await });
    while t.objects().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut lock = t.database.as_ref().unwrap().admin.begin().await.unwrap();
    let statement = "lock table lesson_assets in access exclusive mode";
    sqlx::query(statement).execute(&mut *lock).await.unwrap();
    t.fail.disarm("stored");
    proceed.notify_one();
    while t.text(LOCK_WAITS).await.unwrap() == "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    t.deliver(&push).await.expect_accepted();
    lock.rollback().await.unwrap();
    attempt.await.unwrap().unwrap();
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}
