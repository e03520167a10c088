//! Deliveries that come at once: one commit for all of them, and nobody lost with another one.

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

/// Makes the database refuse the delivery that is called `refused`.
const REFUSE_ONE: [&str; 2] = [
    "create trigger refuse before insert on deliveries when new.guid = 'refused'
         begin select raise(abort, 'refused'); end",
    "alter table video_ingest.deliveries add check (guid <> 'refused')",
];

scenario! {
    deliveries_that_wait_together_are_one_commit(t) {
        let wake = Arc::new(Notify::new());
        let woken = wake.notified();
        let (intake, writer) = Intake::start(t.db.clone(), wake.clone());
        // All are waiting before the writer runs: it runs on this thread, too.
        let recorded = join_all((0..100).map(|n| intake.record(delivery(n.to_string())))).await;
        assert!(recorded.iter().all(Result::is_ok));
        woken.await;
        // One statement has one time.
        let times = "select cast(count(*) as text) || ' at ' || count(distinct received_at)
            from video_ingest.deliveries";
        assert_eq!(t.text(times).await.unwrap(), "100 at 1");
        drop(intake);
        writer.await.unwrap();
    }

    a_delivery_that_is_refused_takes_no_other_one_with_it(t) {
        t.expect_error("failed to record");
        t.sql(REFUSE_ONE[usize::from(t.backend != Backend::Embedded)]).await;
        let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
        let guids = ["first", "refused", "last"];
        let recorded = join_all(guids.map(|guid| intake.record(delivery(guid)))).await;
        assert_eq!(recorded.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(t.counts().await, "deliveries 2, videos 2, events 2, readings 0");
    }

    a_client_that_goes_away_takes_no_other_one_with_it(t) {
        let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
        assert!(intake.record(delivery("gone")).now_or_never().is_none());
        intake.record(delivery("stays")).await.unwrap();
        assert_eq!(t.counts().await, "deliveries 1, videos 1, events 1, readings 0");
    }

    what_waits_when_the_server_stops_is_still_recorded(t) {
        let (intake, writer) = Intake::start(t.db.clone(), Arc::default());
        let waiting = tokio::spawn(async move { intake.record(delivery("last")).await });
        writer.await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(t.counts().await, "deliveries 1, videos 1, events 1, readings 0");
    }
}

/// On Postgres only: SQLite has one writer.
#[tokio::test]
async fn a_commit_that_waits_in_the_database_keeps_no_other_one_waiting() {
    let t = Scenario::begin(Backend::Supabase).await;
    let other = t.database.as_ref().unwrap().hold_delivery("held").await;
    let (intake, _writer) = Intake::start(t.db.clone(), Arc::default());
    let held = intake.record(delivery("held"));
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let recorded = intake.record(delivery("meanwhile")).await;
        other.commit().await.unwrap();
        recorded
    };
    let (held, meanwhile) = tokio::join!(held, meanwhile);
    assert!(held.is_ok() && meanwhile.is_ok());
}
