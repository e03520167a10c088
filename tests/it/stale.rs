//! GitHub's API serves an older head for a while, to pushes, sweeps and scans. The branch is the source of
//! truth, so a newer video is never replaced by an older one.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use video_ingest::domain::request::Purpose;
use video_ingest::pipeline::sweep::SweepOptions;

use crate::scenario;
use crate::support::fake_github::{Call, Fault};
use crate::support::scenario::{AppRow, GOOD, SECOND, Scenario, THIRD, Video};

/// Longer than the interval at which GitHub is asked again.
const LAG: Duration = Duration::from_secs(3);

/// After that, a head that is served consistently is accepted.
const TWO_MINUTES: Duration = Duration::from_secs(121);

/// Whether a call compares two commits.
fn is_compare(call: &Call) -> bool {
    call.path.contains("/compare/")
}

fn unavailable() -> Fault {
    Fault::Status {
        code: 500,
        headers: vec![],
        body: String::new(),
    }
}

async fn retry(t: &Scenario, video: &Video) {
    let path = format!("/api/videos/{}/retry", video.id());
    assert_eq!(t.ask(&path).await.status, 202);
}

async fn sweep(t: &Scenario) {
    t.worker.sweep.run(&SweepOptions::default()).await.unwrap();
}

scenario! {
    a_replaced_head_is_not_taken_for_the_result_of_a_forced_push(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        let start = t.github.head();
        t.push(&v1).await;
        t.work().await;
        t.expect_ready(&v1).await;
        // `git commit --amend` and `git push --force`.
        let replaced = t.github.head();
        t.github.force_to(start);
        let amended = t.commit(&v2);
        t.github.serve_head(Some(replaced));
        t.deliver(&t.github.push(replaced, amended)).await.expect_accepted();
        for _ in 0..3 {
            t.work().await;
            t.later(LAG);
        }
        t.expect_state(&v1, "queued", "github_unavailable").await;
        t.github.serve_head(None);
        t.work().await;
        t.expect_ready(&v2).await;
    }

    a_stale_read_of_a_replaced_head_is_not_believed_although_github_can_compare_it(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        let start = t.github.head();
        t.push(&v1).await;
        t.work().await;
        t.expect_ready(&v1).await;
        let replaced = t.github.head();
        t.github.force_to(start);
        let amended = t.commit(&v2);
        t.github.serve_stale_head(replaced, [true, false]);
        t.deliver(&t.github.push(replaced, amended)).await.expect_accepted();
        t.work().await;
        assert_eq!(t.github.stale_reads(), 1);
        assert_eq!(t.video(&v1).await["state"], "queued");
        t.later(LAG);
        t.work().await;
        t.expect_ready(&v2).await;
    }

    a_new_video_of_a_forced_push_is_not_failed_before_it_is_served(t) {
        let (old, new) = (Video::good(), Video::good());
        t.row(&new).await;
        let start = t.github.head();
        let replaced = t.commit(&old);
        t.github.force_to(start);
        let pushed = t.commit(&new);
        t.github.serve_head(Some(replaced));
        t.deliver(&t.github.push(replaced, pushed)).await.expect_accepted();
        for _ in 0..2 {
            t.work().await;
            t.later(LAG);
        }
        t.expect_state(&new, "queued", "github_unavailable").await;
        t.github.serve_head(None);
        t.later(LAG);
        t.work().await;
        t.expect_ready(&new).await;
    }

    a_clock_that_is_set_back_does_not_make_an_older_head_current(t) {
        let (first, second) = (Video::good(), Video::good());
        t.row(&first).await;
        t.row(&second).await;
        t.push(&first).await;
        t.work().await;
        let old = t.github.head();
        let newest = t.commit(&second);
        t.github.serve_head(Some(old));
        t.deliver(&t.github.push(old, newest)).await.expect_accepted();
        t.earlier(Duration::from_secs(3600));
        for _ in 0..2 {
            t.work().await;
            t.later(LAG);
        }
        t.expect_state(&second, "queued", "github_unavailable").await;
        // The branch was moved back without a webhook, so the pushed head is awaited for two minutes only.
        t.github.force_to(old);
        t.github.serve_head(None);
        for _ in 0..60 {
            t.work().await;
            t.later(LAG);
        }
        t.expect_failed(&second, "video_missing").await;
    }

    a_sweep_that_reads_an_older_head_changes_nothing(t) {
        let v1 = Video::good();
        let (v2, other) = (v1.rerendered(SECOND), Video::good());
        t.row(&v1).await;
        let old = t.push(&v1).await;
        t.work().await;
        t.push(&v2).await;
        t.work().await;
        t.expect_ready(&v2).await;
        t.row(&other).await;
        t.push(&other).await;
        t.work().await;
        let newest = t.github.head();
        let first = old.payload["after"].as_str().unwrap().parse().ok();
        t.github.serve_head(first);
        for _ in 0..3 {
            sweep(t).await;
            retry(t, &v1).await;
            retry(t, &other).await;
            // A delivery that asks for a scan, and a late one.
            let mut replay = old.clone();
            replay.guid = uuid::Uuid::new_v4().to_string();
            t.deliver(&replay).await.expect_accepted();
            t.work().await;
            t.later(LAG);
            // Another replica of GitHub serves the newest head in between.
            t.github.serve_head(Some(newest));
            sweep(t).await;
            t.github.serve_head(first);
            t.later(TWO_MINUTES);
        }
        assert_eq!(t.stored(&v2).as_deref(), Some(SECOND));
        t.github.serve_head(None);
        t.work().await;
        t.expect_ready(&v2).await;
        t.expect_ready(&other).await;
    }

    a_branch_that_was_moved_back_is_awaited_without_a_sweep(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        let first = t.push(&v1).await;
        t.work().await;
        let back = t.github.head();
        t.push(&v2).await;
        t.work().await;
        t.expect_ready(&v2).await;
        // `git push --force` of the commit before.
        let replaced = t.github.head();
        t.github.force_to(back);
        t.github.serve_head(Some(replaced));
        let forced = t.github.push(replaced, back);
        t.deliver(&forced).await.expect_accepted();
        for _ in 0..3 {
            t.work().await;
            t.later(LAG);
        }
        t.github.serve_head(None);
        for _ in 0..8 {
            t.later(TWO_MINUTES / 4);
            t.work().await;
        }
        t.expect_ready(&v1).await;
        t.github.force_to(replaced);
        t.deliver(&t.github.push(back, replaced)).await.expect_accepted();
        t.work().await;
        t.expect_ready(&v2).await;
        for mut replay in [first, forced] {
            replay.guid = uuid::Uuid::new_v4().to_string();
            t.deliver(&replay).await.expect_accepted();
        }
        t.work().await;
        t.expect_ready(&v2).await;
        assert!(t.worker.ingest.branch.lag().is_none(), "a replay replaces no head");
    }

    a_branch_that_was_moved_back_without_a_webhook_is_found_by_sweeps(t) {
        let v1 = Video::good();
        t.row(&v1).await;
        t.push(&v1).await;
        let first = t.github.head();
        t.work().await;
        t.push(&v1.rerendered(SECOND)).await;
        t.work().await;
        t.github.force_to(first);
        sweep(t).await;
        t.later(TWO_MINUTES);
        sweep(t).await;
        t.work().await;
        t.expect_ready(&v1).await;
        // A newer head is accepted immediately.
        t.push(&v1.rerendered(THIRD)).await;
        t.work().await;
        t.expect_ready(&v1.rerendered(THIRD)).await;
    }

    a_failing_comparison_delays_a_video_by_two_minutes(t) {
        let (video, other) = (Video::good(), Video::good());
        t.row(&video).await;
        let start = t.github.head();
        let pushed = t.commit(&video);
        t.commit(&other);
        t.github.fault(is_compare, unavailable());
        t.deliver(&t.github.push(start, pushed)).await.expect_accepted();
        t.work().await;
        t.expect_state(&video, "queued", "github_unavailable").await;
        assert_eq!(t.video(&video).await["attempts"], 0);
        t.later(TWO_MINUTES);
        t.work().await;
        t.later(TWO_MINUTES);
        t.work().await;
        t.expect_ready(&video).await;
    }

    two_hundred_videos_that_are_not_served_yet_share_the_calls(t) {
        let videos: Vec<Video> = (0..200).map(|_| Video::good()).collect();
        let rows: Vec<AppRow> = videos.iter().map(|video| AppRow::pending(video.key)).collect();
        t.rows(&rows).await;
        let before = t.github.head();
        let after = t.github.commit(|c| videos.iter().fold(c, |c, video| video.write(c)));
        t.github.serve_head(Some(before));
        t.deliver(&t.github.push(before, after)).await.expect_accepted();
        t.github.take_calls();
        for _ in 0..30 {
            t.work().await;
            t.later(Duration::from_secs(1));
        }
        let calls = t.github.take_calls().len();
        println!("{calls} calls to GitHub in 30 s for 200 videos that are not served yet");
        assert!((10..=120).contains(&calls), "{calls}");
        t.github.serve_head(None);
        t.later(LAG);
        t.work().await;
        for video in &videos {
            assert_eq!(t.video(video).await["state"], "ready");
        }
    }

    replayed_scans_are_settled_by_one_scan(t) {
        let (scanned, pushed) = (Video::good(), Video::good());
        t.row(&scanned).await;
        t.row(&pushed).await;
        let before = t.github.head();
        let after = t.commit(&scanned);
        // As for a new branch: no commits, so the file lists say nothing.
        let mut captured = t.github.push(before, after);
        captured.payload["commits"] = json!([]);
        for _ in 0..500 {
            captured.guid = uuid::Uuid::new_v4().to_string();
            t.deliver(&captured).await.expect_accepted();
        }
        t.push(&pushed).await;
        t.github.take_calls();
        // One scan and one video.
        for _ in 0..3 {
            t.worker.run_once().await.unwrap();
        }
        t.expect_ready(&pushed).await;
        t.work().await;
        t.expect_ready(&scanned).await;
        let calls = t.github.take_calls().len();
        assert!(calls <= 12, "{calls}");
                assert_eq!(GOOD, t.stored(&pushed).unwrap());
    }

    sweeps_leave_a_part_of_the_rate_limit_to_pushes(t) {
        let (swept, pushed) = (Video::good(), Video::good());
        t.row(&swept).await;
        t.row(&pushed).await;
        t.commit(&swept);
        // GitHub's limit is 5,000 calls an hour.
        t.github.quota(900, t.clock.now().as_second() as u64 + 600);
        sweep(t).await;
        t.work().await;
        t.expect_state(&swept, "queued", "rate_limited").await;
        assert_eq!(t.video(&swept).await["attempts"], 0);
        t.push(&pushed).await;
        t.work().await;
        t.expect_ready(&pushed).await;
        let calls: HashMap<_, _> = t.worker.ingest.github.calls().collect();
        assert_eq!((calls[&Purpose::Push], calls[&Purpose::Sweep]), (5, 3));
        t.github.no_quota();
        t.later(Duration::from_secs(601));
        t.work().await;
        t.expect_ready(&swept).await;
    }

    commits_that_github_does_not_know_delay_a_video_by_two_minutes(t) {
        let (video, other) = (Video::good(), Video::good());
        t.row(&video).await;
        let mut unknown = t.github.push(t.github.head(), t.commit(&other));
        t.work().await;
        t.push(&video).await;
        t.github.take_calls();
        let mut seconds = 0;
        while t.video(&video).await["state"] != "ready" {
            assert!(seconds < 140, "still not ready");
            if seconds % 15 == 0 {
                unknown.guid = uuid::Uuid::new_v4().to_string();
                unknown.payload["after"] = format!("{:040x}", 0xabc + seconds).into();
                t.deliver(&unknown).await.expect_accepted();
            }
            t.later(Duration::from_secs(5));
            t.work().await;
            seconds += 5;
        }
        assert!(seconds > 100, "a pushed commit is awaited: {seconds} s");
        let calls = t.github.take_calls().len();
        assert!(calls < 80, "{calls}");
    }

    a_lag_after_an_earlier_one_is_waited_for(t) {
        let v1 = Video::good();
        let (v2, other) = (v1.rerendered(SECOND), Video::good());
        t.rows(&[AppRow::pending(v1.key), AppRow::pending(other.key)]).await;
        t.push(&v1).await;
        t.work().await;
        let old = t.github.head();
        t.github.serve_head(Some(old));
        t.push(&other).await;
        t.work().await;
        // Nothing is due until the next push.
        t.later(TWO_MINUTES + LAG);
        t.push(&v2).await;
        t.work().await;
        assert_eq!(t.video(&v2).await["state"], "queued");
        t.github.serve_head(None);
        t.later(LAG);
        t.work().await;
        t.expect_ready(&v2).await;
    }

    a_sweep_with_an_outdated_listing_fails_nothing(t) {
        let (first, late) = (Video::good(), Video::good());
        t.row(&first).await;
        t.push(&first).await;
        t.work().await;
        let outdated = t.github.head();
        t.push(&first.rerendered(SECOND)).await;
        t.work().await;
        // Pushed just before its deadline; the webhook is lost.
        let row = AppRow { age: Duration::from_secs(7 * 3600), ..AppRow::pending(late.key) };
        t.rows(&[row]).await;
        t.commit(&late);
        t.github.serve_head(Some(outdated));
        let report = t.worker.sweep.run(&SweepOptions::default()).await.unwrap();
        assert_eq!(report.failed, 0, "{report:?}");
        assert!(!t.asset(&late).await.mime_type.starts_with("error:"));
        t.github.serve_head(None);
        t.later(LAG);
        sweep(t).await;
        t.work().await;
        t.expect_ready(&late).await;
    }
}
