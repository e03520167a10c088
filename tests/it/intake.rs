//! Simultaneous deliveries share a commit, and the failure of one does not affect the others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Notify;
use video_ingest::db::Delivery;
use video_ingest::domain::ids::GitSha;
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
