//! Videos in every state, and deliveries with every result: what the accessibility checks and the screenshots show.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;
use video_ingest::config::Config;
use video_ingest::domain::ids::VideoKey;

use super::fake_github::Fault;
use super::scenario::{AppRow, GOOD, Scenario, TRUNCATED, Video, metadata};

/// Larger than [`configure`] allows.
const LARGE: &[u8] = include_bytes!("../../../fixtures/videos/trailing_free.mp4");

/// Videos that fail for the same reason.
const LARGE_VIDEOS: usize = 8;

/// The settings that the states need.
pub fn configure(config: &mut Config) {
    config.max_video_bytes = Some(LARGE.len() as u64 - 1);
    config.reconcile_interval = Some(Duration::from_secs(300));
}

/// Creates them. Returns the names and addresses of the pages.
pub async fn create(t: &Scenario, mut id: impl FnMut() -> Uuid) -> Vec<(&'static str, String)> {
    let mut video = |mp4: &'static [u8]| {
        let key = VideoKey {
            lesson_id: id(),
            video_id: id(),
        };
        Video {
            mp4: Bytes::from_static(mp4),
            ..Video::of(key)
        }
    };
    let large: Vec<_> = (0..LARGE_VIDEOS).map(|_| video(LARGE)).collect();
    for video in &large {
        t.row(video).await;
    }
    let before = t.github.head();
    t.github.commit(|commit| {
        large
            .iter()
            .fold(commit, |commit, video| video.write(commit))
    });
    let delivery = t.github.push(before, t.github.head());
    t.deliver(&delivery).await.expect_accepted();
    for _ in 0..2 {
        // The first look at GitHub may be too early for the push.
        t.later(Duration::from_secs(3));
        t.work().await;
    }
    t.later(Duration::from_secs(1_500));
    let truncated = [video(TRUNCATED), video(TRUNCATED)];
    let mismatched = video(GOOD);
    let other = serde_json::json!({"lesson_id": video(GOOD).key.lesson_id});
    let mismatched = mismatched
        .clone()
        .with_json(metadata(mismatched.key, other));
    for video in truncated.iter().chain([&mismatched]) {
        t.row(video).await;
        t.push(video).await;
        for _ in 0..2 {
            t.later(Duration::from_secs(3));
            t.work().await;
        }
        t.later(Duration::from_secs(150));
    }
    let rowless = video(GOOD);
    t.push(&rowless).await;
    t.later(Duration::from_secs(2));
    t.work().await;

    let agents = [
        ("RUNNING", Some("running"), 1),
        ("PAUSED", None, 47),
        ("RUNNING", Some("error"), 12),
    ];
    let mut generating = Vec::new();
    for (sandbox, execution, minutes) in agents {
        let (video, conversation) = (video(GOOD), video(GOOD).key.video_id);
        t.agent.conversation(conversation, sandbox, execution);
        t.rows(&[AppRow {
            age: Duration::from_secs(minutes * 60),
            conversation: Some(conversation),
            ..AppRow::pending(video.key)
        }])
        .await;
        generating.push(video);
    }
    let not_asked = video(GOOD);
    t.row(&not_asked).await;
    t.ask("/reconcile?wait=0").await;
    // For how long a failed agent may still be heard of.
    t.later(Duration::from_secs(1_000));
    t.ask("/reconcile?wait=0").await;

    let ready = video(GOOD);
    t.row(&ready).await;
    t.push(&ready).await;
    for _ in 0..2 {
        t.later(Duration::from_secs(3));
        t.work().await;
    }

    let delayed = video(GOOD);
    t.row(&delayed).await;
    t.github.fault(
        |call| call.path.contains("/blobs/"),
        Fault::Status {
            code: 502,
            headers: Vec::new(),
            body: String::new(),
        },
    );
    t.push(&delayed).await;
    for _ in 0..4 {
        t.later(Duration::from_secs(70));
        t.work().await;
    }
    t.github.clear_faults();
    t.ask("/reconcile?wait=0").await;
    let (running, queued) = (video(GOOD), video(GOOD));
    for video in [&running, &queued] {
        t.row(video).await;
    }
    t.push(&running).await;
    t.db.claim(Duration::from_secs(600)).await.unwrap();
    t.push(&queued).await;

    let path = "/webhooks/github";
    let body = delivery.body().to_vec();
    for _ in 0..3 {
        t.post(path, &delivery.unsigned(), body.clone()).await;
    }
    let mut issues = delivery.signed(super::scenario::SECRET);
    for (name, value) in &mut issues {
        if name.eq_ignore_ascii_case("x-github-event") {
            *value = "issues".to_owned();
        }
    }
    t.post(path, &issues, body).await;
    t.later(Duration::from_secs(20));

    let of = |video: &Video| format!("/videos/{}?lesson_id={}", video.id(), video.key.lesson_id);
    vec![
        ("videos", "/".to_owned()),
        ("failed", "/?state=failed&code=truncated".to_owned()),
        ("nothing", "/?q=nothing".to_owned()),
        ("ready", of(&ready)),
        ("truncated", of(&truncated[0])),
        ("mismatched", of(&mismatched)),
        ("too-large", of(&large[0])),
        ("generation-failed", of(&generating[2])),
        ("waiting", of(&rowless)),
        ("generating", of(&generating[0])),
        ("blocked", of(&generating[1])),
        ("not-asked", of(&not_asked)),
        ("backing-off", of(&delayed)),
        ("queued", of(&queued)),
        ("running", of(&running)),
        ("deliveries", "/deliveries".to_owned()),
        ("delivery", format!("/deliveries/{}", delivery.guid)),
        ("not-found", "/no-such".to_owned()),
    ]
}
