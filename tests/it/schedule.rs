//! When failed videos are retried. Configuration failures: when their cause may have changed, and otherwise
//! with increasing delays. Videos that failed with `gave_up`: once the service is available again.

use std::time::Duration;

use crate::scenario;
use crate::support::fake_github::{Call, Fault};
use crate::support::scenario::{Backend, Scenario, Video};
use crate::sweep::sweep;

const HOUR: Duration = Duration::from_secs(3600);

fn is_file(call: &Call) -> bool {
    call.path.contains("/git/blobs/") || call.path.ends_with("/objects/batch")
}

/// Pushes videos whose MP4s were never uploaded to LFS.
async fn without_lfs_objects(t: &Scenario, count: usize) -> Vec<Video> {
    let videos: Vec<Video> = (0..count).map(|_| Video::good()).collect();
    let before = t.github.head();
    for video in &videos {
        t.row(video).await;
    }
    t.github.commit(|commit| {
        videos.iter().fold(commit, |commit, video| {
            let commit = commit.write_lfs_missing(video.mp4_path(), video.mp4.clone());
            commit.write(video.json_path(), video.json.clone())
        })
    });
    t.deliver(&t.github.push(before, t.github.head()))
        .await
        .expect_accepted();
    t.work().await;
    videos
}

/// The downloads since the last call.
fn downloads(t: &Scenario) -> usize {
    t.github.take_calls().into_iter().filter(is_file).count()
}

/// Pushes a video that fails for longer than a day.
async fn given_up(t: &Scenario) -> Video {
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    for _ in 0..35 {
        t.work().await;
        t.later(HOUR + HOUR / 8);
    }
    t.expect_reported(&video, "gave_up").await;
    video
}

scenario! {
    sweeps_do_not_repeat_configuration_failures(t) {
        let videos = without_lfs_objects(t, 20).await;
        for video in &videos {
            t.expect_reported(video, "lfs_object_missing").await;
        }
        let steps = t.steps(&videos[0]).await;
        t.github.take_calls();
        for _ in 0..3 {
            let report = sweep(t, "").await;
            assert_eq!((&report["queued"], &report["failed"]), (&0.into(), &20.into()));
            t.work().await;
        }
        assert_eq!(downloads(t), 0);
        assert!(t.github.take_calls().len() <= 3, "one call per sweep, for the head");
        assert_eq!(t.steps(&videos[0]).await, steps);
    }

    configuration_failures_are_retried_less_and_less_often(t) {
        let videos = without_lfs_objects(t, 1).await;
        let mut attempts = Vec::new();
        downloads(t);
        for hour in 1..=60 {
            t.later(HOUR);
            t.later(HOUR / 60);
            t.work().await;
            if downloads(t) > 0 {
                attempts.push(hour);
            }
        }
        // After 1, 2, 4, 8, 16 and 24 hours, each up to a tenth longer or shorter.
        assert!((5..=7).contains(&attempts.len()), "{attempts:?}");
        let waits: Vec<i32> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.is_sorted(), "{attempts:?}");
        // A retry begins from the start.
        assert_eq!(t.ask(&format!("/api/videos/{}/retry", videos[0].id())).await.status, 202);
        t.work().await;
        downloads(t);
        t.later(HOUR + HOUR / 8);
        t.work().await;
        assert!(downloads(t) > 0);
    }

    a_sweep_retries_a_video_that_was_given_up(t) {
        let fault = Fault::Status { code: 502, headers: vec![], body: String::new() };
        t.github.fault(is_file, fault);
        let video = given_up(t).await;
        t.github.clear_faults();
        let report = sweep(t, "").await;
        assert_eq!(report["queued"], 1, "{report}");
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_corrupted_file_is_not_downloaded_again_by_every_sweep(t) {
        t.github.fault(|call| call.path.contains("/git/blobs/"), Fault::CorruptByte { at: 100 });
        let video = given_up(t).await;
        t.work().await;
        t.expect_reported(&video, "gave_up").await;
        downloads(t);
        for _ in 0..3 {
            sweep(t, "").await;
            t.work().await;
        }
        assert_eq!(downloads(t), 0);
        t.github.clear_faults();
        t.later(26 * HOUR);
        t.work().await;
        t.expect_ready(&video).await;
    }
}

#[tokio::test]
async fn a_sweep_retries_videos_once_their_bucket_exists() {
    let t = Scenario::begin(Backend::Supabase).await;
    let videos = [Video::good(), Video::good()];
    for video in &videos {
        t.row(video).await;
        t.push(video).await;
    }
    t.sql("update lesson_assets set storage_bucket = 'another'")
        .await;
    t.work().await;
    for video in &videos {
        t.expect_reported(video, "bucket_missing").await;
    }
    let steps = t.steps(&videos[0]).await;
    let reads = |t: &Scenario| {
        t.storage
            .calls()
            .iter()
            .filter(|call| call.contains("/bucket/another"))
            .count()
    };
    let before = reads(&t);
    for _ in 0..3 {
        assert_eq!(sweep(&t, "").await["queued"], 0);
        t.work().await;
    }
    assert_eq!(reads(&t) - before, 3, "one call per sweep and bucket");
    assert_eq!(t.steps(&videos[0]).await, steps);
    t.storage.create_bucket("another", None, None);
    assert_eq!(sweep(&t, "").await["queued"], 2);
    t.work().await;
    for video in &videos {
        assert_eq!(t.video(video).await["state"], "ready");
    }
    t.finish().await;
}

#[tokio::test]
async fn a_sweep_retries_a_given_up_video_once_the_storage_responds() {
    let t = Scenario::begin(Backend::Supabase).await;
    t.break_storage();
    let video = given_up(&t).await;
    assert_eq!(sweep(&t, "").await["queued"], 0, "still unavailable");
    t.repair_storage();
    assert_eq!(sweep(&t, "").await["queued"], 1);
    t.later(HOUR);
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}
