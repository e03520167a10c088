//! Simultaneous, repeated and interrupted work ends with the newest content, and is not done twice.

use std::time::Duration;

use video_ingest::failpoint::Fault;

use crate::scenario;
use crate::support::scenario::{GOOD, SECOND, THIRD, Video};

scenario! {
    a_hundred_deliveries_of_one_push_cause_one_download_and_one_object(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.commit(&video);
        let push = t.github.push(before, t.github.head());
        let deliveries = (0..100).map(|n| {
            let mut delivery = push.clone();
            // Half of them are redeliveries of one GUID, half are replays with new GUIDs.
            if n % 2 == 0 {
                delivery.guid = format!("replay-{n}");
            }
            delivery
        });
        let deliveries: Vec<_> = deliveries.collect();
        let answers = futures_util::future::join_all(deliveries.iter().map(|d| t.deliver(d))).await;
        assert!(answers.iter().all(|a| a.status == 202), "{answers:#?}");
        t.github.take_calls();
        t.work().await;
        t.expect_ready(&video).await;
        let calls = t.github.take_calls();
        let blobs = calls.iter().filter(|c| c.path.contains("/git/blobs/")).count();
        assert_eq!(blobs, 2, "one MP4, one JSON");
        assert_eq!(t.objects().len(), 1);
    }

    a_request_during_an_attempt_causes_another_attempt(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        t.push(&v1).await;
        let downloading = t.github.pause(|call| call.path.contains("/git/blobs/"));
        let push_again = async {
            downloading.held(1).await;
            t.push(&v2).await;
            drop(downloading);
        };
        tokio::join!(t.work(), push_again);
        t.expect_ready(&v2).await;
    }

    a_retry_uses_the_newest_commit(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        t.push(&v1).await;
        t.work().await;
        t.expect_ready(&v1).await;
        // There is no webhook, and the last listing is still fresh enough for videos requested before it.
        t.commit(&v2);
        let retry = format!("/api/videos/{}/retry", v1.id());
        assert_eq!(t.ask(&retry).await.status, 202);
        t.work().await;
        t.expect_ready(&v2).await;
    }

    a_rerender_replaces_the_video_once(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        t.push(&v1).await;
        t.work().await;
        assert_eq!(t.stored(&v1).as_deref(), Some(GOOD));
        t.push(&v2).await;
        t.work().await;
        t.expect_ready(&v2).await;
        assert_eq!(t.objects().len(), 1);
    }

    the_video_of_a_dead_worker_is_retried_after_its_lease(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        // Claimed by a process that has died.
        let lost = t.db.claim(Duration::from_secs(30)).await.unwrap().unwrap();
        t.work().await;
        assert_eq!(t.video(&video).await["state"], "running");
        t.later(Duration::from_secs(31));
        t.work().await;
        t.expect_state(&video, "queued", "lease_expired").await;
        assert_eq!(t.video(&video).await["attempts"], 1);
        t.later(Duration::from_secs(6));
        t.work().await;
        t.expect_ready(&video).await;
        // If the dead worker continues, its writes are rejected.
        assert!(matches!(t.db.renew(&lost, Duration::from_secs(30)).await, Err(video_ingest::db::ClaimError::LeaseLost)));
        let end = video_ingest::domain::plan::End::Unchanged;
        assert!(matches!(t.db.finish(&lost, None, &end, &[]).await, Err(video_ingest::db::ClaimError::LeaseLost)));
        t.expect_ready(&video).await;
    }

    a_panic_is_one_failed_attempt(t) {
        t.expect_error("panicked");
        let video = Video::good();
        t.row(&video).await;
        t.fail.arm("fetched", Fault::Panic);
        t.push(&video).await;
        t.work().await;
        t.expect_state(&video, "queued", "internal").await;
        t.fail.disarm("fetched");
        t.later(Duration::from_secs(6));
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_force_push_to_an_older_commit_restores_the_older_file(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        t.push(&v1).await;
        t.work().await;
        let old = t.github.head();
        t.push(&v2).await;
        t.work().await;
        t.expect_ready(&v2).await;
        let new = t.github.head();
        t.github.force_to(old);
        let answer = t.deliver(&t.github.push(new, old)).await.expect_accepted();
        assert_eq!(answer.json["scan"], true);
        t.work().await;
        t.expect_ready(&v2).await;
        // This may be lag of GitHub's API. The head is accepted after it has been served for two minutes.
        t.later(Duration::from_secs(121));
        t.work().await;
        t.expect_ready(&v1).await;
    }

    a_truncated_listing_is_completed_by_single_lookups(t) {
        let videos: Vec<_> = [GOOD, SECOND, THIRD].map(Video::with).into();
        for video in &videos {
            t.row(video).await;
            t.commit(video);
        }
        t.github.truncate_trees_at(2);
        let head = t.github.head();
        let zeros = video_ingest::domain::ids::GitSha::from_bytes([0; 20]);
        t.deliver(&t.github.push(zeros, head)).await.expect_accepted();
        t.work().await;
        for video in &videos {
            t.expect_ready(video).await;
        }
    }

    a_renamed_repository_is_followed(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.commit(&video);
        let push = t.github.push(before, t.github.head());
        t.deliver(&push).await.expect_accepted();
        t.github.rename("acme/renamed");
        t.work().await;
        t.expect_ready(&video).await;
    }

    waiting_for_a_rate_limit_is_not_an_attempt(t) {
        let video = Video::good();
        t.row(&video).await;
        let resets_at = (t.clock.now_ms() / 1000 + 600) as u64;
        t.github.quota(0, resets_at);
        t.push(&video).await;
        t.work().await;
        t.expect_state(&video, "queued", "rate_limited").await;
        assert_eq!(t.video(&video).await["attempts"], 0);
        t.github.take_calls();
        t.later(Duration::from_secs(300));
        t.work().await;
        assert_eq!(t.github.take_calls().len(), 0, "no request is sent before the limit resets");
        t.github.no_quota();
        t.later(Duration::from_secs(310));
        t.work().await;
        t.expect_ready(&video).await;
    }

    lfs_downloads_do_not_send_our_token(t) {
        t.github.lfs_on_another_host().await;
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write_lfs(video.mp4_path(), video.mp4.clone()).write(video.json_path(), video.json.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.expect_ready(&video).await;
    }
}
