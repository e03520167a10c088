//! The binary as a process: it stops cleanly on SIGTERM, recovers from a crash at every fail point, and
//! needs little memory.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use video_ingest::fake_github::Delivery;

use crate::support::child::Serve;
use crate::support::fake_github::TestGithub;
use crate::support::scenario::{ADMIN_TOKEN, GOOD, REPOSITORY, SECOND, SECRET, Video};

/// Longer than any step takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process in embedded mode.
fn start(data_dir: &Path, github: &TestGithub, settings: &[(&str, &str)]) -> Serve {
    let url = github.url();
    let mut all = vec![
        ("GITHUB_API_URL", url.as_str()),
        ("GITHUB_REPOSITORY", REPOSITORY),
        ("GITHUB_WEBHOOK_SECRET", SECRET),
        ("ADMIN_TOKEN", ADMIN_TOKEN),
        ("RECONCILE_INTERVAL", "0"),
        ("LEASE", "5s"),
    ];
    all.extend(settings);
    Serve::start(data_dir, &all)
}

/// A repository with this video, and the push that added it.
async fn pushed(video: &Video) -> (TestGithub, Delivery) {
    let github = TestGithub::start(REPOSITORY).await;
    let before = github.commit(|c| c.write("README.md", "videos, rendered"));
    github.commit(|c| video.write(c));
    let push = github.push(before, github.head());
    (github, push)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_the_running_video_and_exits_with_0() {
    let (dir, video) = (tempfile::tempdir().unwrap(), Video::good());
    let (github, push) = pushed(&video).await;
    let mut server = start(dir.path(), &github, &[]);
    let downloading = github.pause(|call| call.path.contains("/git/blobs/"));
    assert_eq!(
        server.deliver(&reqwest::Client::new(), &push).await,
        Some(202)
    );
    downloading.held(1).await;
    server.signal("-TERM");
    // Nothing new is accepted while the video ends.
    let client = reqwest::Client::new();
    let began = Instant::now();
    while client
        .get(format!("{}/healthz", server.url))
        .send()
        .await
        .is_ok()
    {
        assert!(
            began.elapsed() < PATIENCE,
            "the server still accepts connections"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(downloading);
    let status = tokio::task::block_in_place(|| server.child.wait().unwrap());
    assert_eq!(status.code(), Some(0));
    let server = start(dir.path(), &github, &[("WORKERS", "0")]);
    assert_eq!(server.video(&video).await["state"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_back_videos_that_do_not_finish_in_time() {
    let (dir, video) = (tempfile::tempdir().unwrap(), Video::good());
    let (github, push) = pushed(&video).await;
    let mut server = start(dir.path(), &github, &[]);
    let downloading = github.pause(|call| call.path.contains("/git/blobs/"));
    assert_eq!(
        server.deliver(&reqwest::Client::new(), &push).await,
        Some(202)
    );
    downloading.held(1).await;
    server.signal("-TERM");
    let began = Instant::now();
    let status = tokio::task::block_in_place(|| server.child.wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    drop(downloading);
    let server = start(dir.path(), &github, &[]);
    let shown = server.until_ready(&video).await;
    assert_eq!(
        shown["attempts"], 1,
        "a video that was handed back has no extra attempt"
    );
}

/// Covers the fail points in the crash table of `src/lib.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_is_recovered_by_the_next_start() {
    let places = [
        "claimed",
        "listed",
        "fetched",
        "checked",
        "uploading",
        "uploaded",
        "stored",
        "published",
    ];
    futures_util::future::join_all(places.map(crash_at)).await;
}

async fn crash_at(place: &str) {
    let (dir, video) = (tempfile::tempdir().unwrap(), Video::with(SECOND));
    let (github, push) = pushed(&video).await;
    let fault = format!("{place}=abort");
    let mut server = start(dir.path(), &github, &[("FAIL_POINTS", &fault)]);
    // The server may die before it responds. The work is committed in either case.
    let answered = server.deliver(&reqwest::Client::new(), &push).await;
    assert!(
        matches!(answered, None | Some(202)),
        "{place}: {answered:?}"
    );
    let began = Instant::now();
    let status = loop {
        match server.child.try_wait().unwrap() {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        assert!(
            began.elapsed() < PATIENCE,
            "the server did not crash at {place}"
        );
    };
    assert!(!status.success(), "{place}");
    let server = start(dir.path(), &github, &[]);
    let shown = server.until_ready(&video).await;
    let path = dir
        .path()
        .join("store/lesson-assets")
        .join(shown["storage_path"].as_str().unwrap());
    assert!(std::fs::read(path).unwrap() == SECOND, "{place}");
}

/// A 200 MB LFS video needs at most 64 MiB of memory. The figure is printed by
/// `cargo test --release --test it -- --nocapture a_large_video`.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_video_needs_little_memory() {
    const BYTES: usize = 200_000_000;
    const PEAK_KIB_MAX: u64 = 64 << 10;
    // A good video, followed by a long `free` box.
    let mut mp4 = GOOD.to_vec();
    let free = (BYTES - mp4.len()) as u32;
    mp4.extend_from_slice(&free.to_be_bytes());
    mp4.extend_from_slice(b"free");
    mp4.resize(BYTES, 0);
    let video = Video {
        mp4: Bytes::from(mp4),
        ..Video::good()
    };
    let dir = tempfile::tempdir().unwrap();
    let github = TestGithub::start(REPOSITORY).await;
    let before = github.commit(|c| c.write("README.md", "videos, rendered"));
    github.commit(|c| {
        c.write_lfs(video.mp4_path(), video.mp4.clone())
            .write(video.json_path(), video.json.clone())
    });
    let server = start(dir.path(), &github, &[("MAX_VIDEO_BYTES", "300000000")]);
    assert_eq!(
        server
            .deliver(&reqwest::Client::new(), &github.push(before, github.head()))
            .await,
        Some(202)
    );
    let shown = server.until_ready(&video).await;
    assert_eq!(shown["size_bytes"], BYTES);
    let kib = server.peak_kib();
    println!("200 MB through LFS: {kib} KiB");
    assert!(kib < PEAK_KIB_MAX, "{kib} KiB");
}
