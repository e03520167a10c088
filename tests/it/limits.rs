//! What a bucket accepts is its own, is read when needed, and is read again when it may have changed.

use std::time::Duration;

use crate::support::fake_github::Call;
use crate::support::fake_storage::{Answer, Fault, Op};
use crate::support::scenario::{Backend, GOOD, Scenario, Video};

const BUCKET: &str = "lesson-assets";
const HOUR: Duration = Duration::from_secs(3600);
/// Less than `GOOD`, in bytes.
const SMALL: u64 = 8000;

fn set_limit(t: &Scenario, bucket: &str, limit: u64) {
    t.storage
        .create_bucket(bucket, Some(limit), Some(&["video/mp4"]));
}

async fn pushed(t: &Scenario, mp4: &[u8]) -> Video {
    let video = Video::with(mp4);
    t.row(&video).await;
    t.push(&video).await;
    t.work().await;
    video
}

async fn retry(t: &Scenario, video: &Video) {
    let path = format!("/api/videos/{}/retry", video.id());
    assert_eq!(t.ask(&path).await.status, 202);
    t.work().await;
}

fn limit_calls(t: &Scenario) -> usize {
    let calls = t.storage.calls();
    calls.iter().filter(|c| c.contains("/bucket/")).count()
}

/// A video whose MP4 is a pointer to an LFS object of this size, which does not exist.
fn pointer_to(size: u64) -> Video {
    let oid = "ab".repeat(32);
    Video::with(
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n")
            .as_bytes(),
    )
}

#[tokio::test]
async fn a_raised_limit_applies_without_a_restart() {
    let t = Scenario::begin(Backend::Supabase).await;
    set_limit(&t, BUCKET, SMALL);
    t.github.take_calls();
    let [first, second, third] = [
        pushed(&t, GOOD).await,
        pushed(&t, GOOD).await,
        pushed(&t, GOOD).await,
    ];
    for video in [&first, &second, &third] {
        t.expect_reported(video, "too_large").await;
    }
    let is_mp4 = |call: &Call| {
        call.path
            .contains("7fce7e4190e51f3507becb54b07a834fbfbd78f4")
    };
    assert!(!t.github.take_calls().iter().any(is_mp4), "not downloaded");

    set_limit(&t, BUCKET, 1 << 20);
    retry(&t, &first).await;
    t.expect_ready(&first).await;
    t.ask(&format!("/reconcile?wait=0&video_id={}", second.id()))
        .await;
    t.work().await;
    t.expect_ready(&second).await;
    t.later(HOUR + HOUR / 8);
    t.work().await;
    t.expect_ready(&third).await;
    t.finish().await;
}

#[tokio::test]
async fn a_limit_that_falls_is_found_by_the_upload_and_read_again() {
    let t = Scenario::begin(Backend::Supabase).await;
    let first = pushed(&t, GOOD).await;
    t.expect_ready(&first).await;
    set_limit(&t, BUCKET, SMALL);
    let second = pushed(&t, GOOD).await;
    t.expect_reported(&second, "too_large").await;
    set_limit(&t, BUCKET, 1 << 20);
    retry(&t, &second).await;
    t.expect_ready(&second).await;
    // One of them for the cause of the failure, with which sweeps compare.
    assert_eq!(limit_calls(&t), 3);
    t.finish().await;
}

#[tokio::test]
async fn a_bucket_affects_only_its_own_videos() {
    let t = Scenario::begin(Backend::Supabase).await;
    set_limit(&t, "small", SMALL);
    t.storage
        .create_bucket("images", None, Some(&["image/png"]));
    for (bucket, code) in [
        ("small", "too_large"),
        ("images", "mime_not_allowed"),
        ("nowhere", "bucket_missing"),
    ] {
        let video = Video::good();
        t.row(&video).await;
        let id = video.id();
        t.sql(&format!(
            "update lesson_assets set storage_bucket = '{bucket}' where id = '{id}'"
        ))
        .await;
        t.push(&video).await;
        t.work().await;
        t.expect_reported(&video, code).await;
        let other = pushed(&t, GOOD).await;
        t.expect_ready(&other).await;

        t.storage.create_bucket(bucket, None, None);
        retry(&t, &video).await;
        assert_eq!(t.video(&video).await["state"], "ready", "{bucket}");
    }
    t.finish().await;
}

#[tokio::test]
async fn an_unknown_limit_refuses_nothing_for_good() {
    let t = Scenario::begin(Backend::Supabase).await;
    set_limit(&t, BUCKET, 100_000_000);
    let unavailable = || Fault::Answer(Answer::new(503, "text/plain", ""));
    t.storage.fault(Op::Bucket, unavailable());
    let usual = pushed(&t, GOOD).await;
    t.expect_ready(&usual).await;

    t.storage.fault(Op::Bucket, unavailable());
    t.storage.fault(Op::Bucket, unavailable());
    let large = pointer_to(60_000_000);
    t.row(&large).await;
    t.push(&large).await;
    t.work().await;
    t.expect_state(&large, "queued", "storage_unavailable")
        .await;
    t.later(Duration::from_secs(6));
    t.work().await;
    // The limit is known now, and accepts it.
    t.expect_state(&large, "failed", "lfs_object_missing").await;
    t.finish().await;
}

#[tokio::test]
async fn the_setting_is_an_upper_limit_for_every_bucket() {
    for backend in [Backend::Embedded, Backend::Supabase] {
        let t = Scenario::begin_with(backend, |c| c.max_video_bytes = Some(SMALL)).await;
        let video = pushed(&t, GOOD).await;
        t.expect_reported(&video, "too_large").await;
        let message = t.video(&video).await["message"].clone();
        assert!(
            message.as_str().unwrap().contains("MAX_VIDEO_BYTES"),
            "{message}"
        );
        assert!(limit_calls(&t) <= 1, "only for the cause");
        t.finish().await;
    }
}

#[tokio::test]
async fn the_limits_of_a_bucket_are_read_once_between_two_sweeps() {
    let t = Scenario::begin(Backend::Supabase).await;
    for _ in 0..3 {
        let video = pushed(&t, GOOD).await;
        t.expect_ready(&video).await;
    }
    assert_eq!(limit_calls(&t), 1);
    t.ask("/reconcile?wait=0").await;
    for _ in 0..3 {
        let video = pushed(&t, GOOD).await;
        t.expect_ready(&video).await;
    }
    assert_eq!(limit_calls(&t), 2);
    t.finish().await;
}

#[tokio::test]
async fn a_video_larger_than_the_disk_is_not_downloaded() {
    const PETABYTE: u64 = 1_000_000_000_000_000;
    let change = |c: &mut video_ingest::config::Config| c.max_video_bytes = Some(u64::MAX);
    let mut t = Scenario::begin_with(Backend::Embedded, change).await;
    t.expect_error("not enough disk space");
    let huge = pointer_to(PETABYTE);
    t.row(&huge).await;
    t.push(&huge).await;
    t.work().await;
    t.expect_state(&huge, "queued", "disk_full").await;
    // Others fit.
    let video = pushed(&t, GOOD).await;
    t.expect_ready(&video).await;
    t.finish().await;
}

#[tokio::test]
async fn a_rotated_key_is_reported_as_such() {
    let t = Scenario::begin_with(Backend::Supabase, |c| {
        if let video_ingest::config::StoreConfig::Supabase {
            service_role_key, ..
        } = &mut c.store
        {
            *service_role_key = "eyJh.eyJi.rotated".into();
        }
    })
    .await;
    let video = pushed(&t, GOOD).await;
    t.expect_reported(&video, "storage_denied").await;
    t.finish().await;
}
