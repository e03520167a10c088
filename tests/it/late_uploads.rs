//! An upload without a response can complete after a newer one. The object is then repaired.

use std::time::Duration;

use crate::scenario;
use crate::support::fake_storage::{Fault, Op};
use crate::support::scenario::{Backend, GOOD, SECOND, Scenario, Video};

/// When the object is compared again, at the latest.
const LOOK: Duration = Duration::from_secs(5 * 60 + 1);
const LEASE: Duration = Duration::from_secs(30);

/// The app's row as it is stored.
async fn row(t: &Scenario, video: &Video) -> String {
    format!("{:?}", t.asset(video).await)
}

/// A video that is ready after an upload that got no response.
async fn ready_after_a_lost_upload(t: &Scenario) -> Video {
    let video = Video::good();
    t.row(&video).await;
    t.storage.fault(Op::Upload, Fault::Hold);
    t.push(&video).await;
    t.work().await;
    t.expect_state(&video, "queued", "storage_unavailable")
        .await;
    t.later(Duration::from_secs(6));
    t.work().await;
    t.expect_ready(&video).await;
    video
}

#[tokio::test]
async fn an_upload_that_completes_after_a_newer_one_is_replaced() {
    let t = Scenario::begin(Backend::Supabase).await;
    let v1 = Video::good();
    let v2 = v1.rerendered(SECOND);
    t.row(&v1).await;
    t.storage.fault(Op::Upload, Fault::Hold);
    t.push(&v1).await;
    t.work().await;
    t.expect_state(&v1, "queued", "storage_unavailable").await;
    t.push(&v2).await;
    t.work().await;
    t.expect_ready(&v2).await;

    t.storage.commit_held();
    assert_eq!(t.stored(&v2).as_deref(), Some(GOOD));
    t.later(LOOK);
    t.work().await;
    t.expect_ready(&v2).await;
    t.finish().await;
}

#[tokio::test]
async fn an_intact_object_is_not_written_again() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = ready_after_a_lost_upload(&t).await;
    let (before, shown) = (row(&t, &video).await, t.video(&video).await);
    let calls = t.storage.calls().len();
    t.github.take_calls();
    t.later(LOOK);
    t.work().await;
    assert_eq!(t.storage.calls().len(), calls + 1, "one comparison");
    assert_eq!(t.github.take_calls().len(), 0);
    t.expect_ready(&video).await;
    assert_eq!(row(&t, &video).await, before);
    assert_eq!(t.video(&video).await["attempts"], shown["attempts"]);

    // Only once.
    t.later(LOOK);
    t.work().await;
    assert_eq!(t.storage.calls().len(), calls + 1);
    t.finish().await;
}

#[tokio::test]
async fn a_confirmed_upload_is_not_compared_again() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    t.work().await;
    t.expect_ready(&video).await;
    let calls = t.storage.calls().len();
    t.later(2 * LOOK);
    t.work().await;
    assert_eq!(t.storage.calls().len(), calls);
    t.finish().await;
}

#[tokio::test]
async fn a_comparison_waits_for_the_storage() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = ready_after_a_lost_upload(&t).await;
    t.storage.set_down(true);
    t.later(LOOK);
    t.work().await;
    t.expect_state(&video, "queued", "storage_unavailable")
        .await;
    t.overwrite_stored(&video, SECOND);
    t.storage.set_down(false);
    t.later(Duration::from_secs(67));
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}

scenario! {
    an_upload_of_a_stopped_worker_may_complete_late(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        let claim = t.db.claim(LEASE).await.unwrap().unwrap();
        t.db.begin_upload(&claim, LEASE).await.unwrap();
        t.later(LEASE + Duration::from_secs(1));
        t.work().await;
        t.later(Duration::from_secs(6));
        t.work().await;
        t.expect_ready(&video).await;
        t.overwrite_stored(&video, SECOND);
        t.later(LOOK);
        t.work().await;
        t.expect_ready(&video).await;
    }

    an_upload_of_a_worker_without_a_lease_may_complete_late(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        t.push(&v1).await;
        t.work().await;
        t.push(&v2).await;
        t.work().await;
        t.expect_ready(&v2).await;
        t.db.look_again(v1.key).await.unwrap();
        // What requests the repair also has the object compared later.
        let retry = format!("/api/videos/{}/retry", v1.id());
        assert_eq!(t.ask(&retry).await.status, 202);
        t.work().await;
        t.expect_ready(&v2).await;
        t.overwrite_stored(&v2, GOOD);
        assert_eq!(t.video(&v2).await["state"], "ready");
        t.later(LOOK);
        t.work().await;
        t.expect_ready(&v2).await;
    }

    a_comparison_of_a_video_without_a_row_changes_nothing(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        let claim = t.db.claim(LEASE).await.unwrap().unwrap();
        t.db.begin_upload(&claim, LEASE).await.unwrap();
        t.db.hand_back(&claim).await.unwrap();
        t.work().await;
        t.expect_ready(&video).await;
        t.sql(&format!("delete from lesson_assets where id = '{}'", video.id())).await;
        t.later(LOOK);
        t.work().await;
        assert_eq!(t.video(&video).await["state"], "ready");
    }
}
