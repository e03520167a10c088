//! Videos folders that are larger than one response of GitHub: as a stream, truncated, and looked up in parts.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use video_ingest::domain::ids::VideoKey;

use crate::scenario;
use crate::support::fake_github::{Call, Fault};
use crate::support::scenario::{AppRow, Backend, Scenario, Video};
use crate::sweep::sweep;

const HOUR: Duration = Duration::from_secs(3600);

fn is_look_up(call: &Call) -> bool {
    call.path.contains("/contents/")
}

fn is_tree(call: &Call) -> bool {
    call.path.contains("/git/trees/")
}

/// Rows of videos that were never pushed, and a listing that does not contain them.
async fn unlisted(t: &Scenario, count: usize) -> Vec<VideoKey> {
    let keys: Vec<VideoKey> = (0..count).map(|_| Video::good().key).collect();
    let old = |key: &VideoKey| AppRow {
        mime_type: "error: once",
        ..AppRow::pending(*key)
    };
    t.rows(&keys.iter().map(old).collect::<Vec<_>>()).await;
    t.commit(&Video::good());
    t.github.truncate_trees_at(1);
    keys
}

#[tokio::test]
async fn a_folder_of_60_000_files_is_read_as_a_stream() {
    let t = Scenario::begin(Backend::Embedded).await;
    t.github.commit(|c| {
        (0..60_000).fold(c, |c, n| {
            c.write(
                format!("videos/a-file-that-does-not-belong-to-a-video-{n}.txt"),
                "",
            )
        })
    });
    let (pushed, missed) = (Video::good(), Video::good());
    t.row(&pushed).await;
    t.row(&missed).await;
    t.commit(&missed);
    t.push(&pushed).await;
    t.work().await;
    t.expect_ready(&pushed).await;
    let report = sweep(&t, "").await;
    assert_eq!(report["queued"], 1, "{report}");
    t.work().await;
    t.expect_ready(&missed).await;
    assert!(!t.github.calls().iter().any(is_look_up));
}

#[tokio::test]
async fn a_folder_over_the_limit_is_treated_as_truncated() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    // 65 MiB: one byte more than the limit would do.
    let name = "x".repeat(1 << 20);
    let mut body = "{\"tree\":[".to_owned();
    for _ in 0..65 {
        let sha = "1".repeat(40);
        let _ = write!(body, r#"{{"path":"{name}","type":"tree","sha":"{sha}"}},"#);
    }
    body.truncate(body.len() - 1);
    body.push_str("],\"truncated\":false}");
    let fault = Fault::Status {
        code: 200,
        headers: vec![],
        body,
    };
    // The first tree is the root, the second one the folder.
    let trees = AtomicUsize::new(0);
    t.github.fault(
        move |call| is_tree(call) && trees.fetch_add(1, Ordering::Relaxed) > 0,
        fault,
    );
    t.work().await;
    t.expect_ready(&video).await;
    assert!(t.github.calls().iter().any(is_look_up));
}

scenario! {
    look_ups_of_a_scan_are_limited_and_continue_later(t) {
        let keys = unlisted(t, 120).await;
        t.github.fault(is_look_up, Fault::Delay(Duration::from_millis(1)));
        let start = t.github.head();
        let replaced = t.commit(&Video::good());
        t.github.force_to(start);
        let video = Video::good();
        t.row(&video).await;
        let amended = t.commit(&video);
        t.deliver(&t.github.push(replaced, amended)).await.expect_accepted();
        t.github.take_calls();
        t.work().await;
        let looked_up = |t: &Scenario| t.github.take_calls().into_iter().filter(is_look_up).count();
        assert!((100..=102).contains(&looked_up(t)), "a part of them, and the video of the push");
        t.expect_ready(&video).await;
        // Each sweep continues where the last one ended.
        let mut seen = HashSet::new();
        for _ in 0..3 {
            sweep(t, "").await;
            let calls = t.github.take_calls();
            seen.extend(calls.into_iter().filter(is_look_up).map(|call| call.path));
        }
        assert!(keys.iter().all(|key| seen.iter().any(|path| path.contains(&key.to_string()))));
    }

    look_ups_leave_most_of_the_hourly_quota_to_pushes(t) {
        unlisted(t, 120).await;
        for _ in 0..30 {
            sweep(t, "").await;
        }
        let look_ups = |t: &Scenario| t.github.take_calls().into_iter().filter(is_look_up).count();
        assert_eq!(look_ups(t), 1000);
        t.later(HOUR + HOUR / 8);
        sweep(t, "").await;
        assert_eq!(look_ups(t), 100);
    }

    a_failed_look_up_ends_neither_the_sweep_nor_what_was_found(t) {
        let keys = unlisted(t, 30).await;
        let (lost, failing) = (Video::good(), keys[3].to_string());
        t.row(&lost).await;
        t.commit(&lost);
        t.github.fault(move |call| is_look_up(call) && call.path.contains(&failing), Fault::Html);
        let mut report = sweep(t, "").await;
        for _ in 0..2 {
            if report["queued"] == 0 {
                report = sweep(t, "").await;
            }
        }
        assert_eq!(report["queued"], 1, "{report}");
        t.work().await;
        t.expect_ready(&lost).await;
    }
}
