//! Behavior that exists only with Supabase: replicas, refusals of the storage, Realtime, and TLS.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::fake_storage::{Answer, Fault, Op};
use crate::support::postgres::Postgres;
use crate::support::scenario::{Backend, GOOD, SECOND, Scenario, Video};

/// Four replicas process each video once, in even shares, without deadlocks or serialization failures.
#[tokio::test]
async fn four_replicas_share_500_videos_evenly() {
    const VIDEOS: usize = 500;
    let t = Scenario::begin(Backend::Supabase).await;
    let videos: Vec<Video> = (0..VIDEOS).map(|_| Video::good()).collect();
    let before = t.github.head();
    for video in &videos {
        t.row(video).await;
    }
    t.github
        .commit(|c| videos.iter().fold(c, |c, video| video.write(c)));
    t.deliver(&t.github.push(before, t.github.head()))
        .await
        .expect_accepted();
    let replicas = join_all((0..4).map(|_| t.replica())).await;
    let shares = join_all(replicas.iter().map(async |replica| {
        let mut share = 0;
        while replica.run_once().await.unwrap() {
            share += 1;
        }
        share
    }))
    .await;
    println!("500 videos on four replicas: {shares:?}");
    assert_eq!(shares.iter().sum::<usize>(), VIDEOS);
    let even = VIDEOS / 4;
    assert!(
        shares
            .iter()
            .all(|share| (even / 2..=even * 3 / 2).contains(share)),
        "{shares:?}"
    );
    for video in &videos {
        assert_eq!(
            t.storage
                .uploads(&format!("lesson-assets/{}", t.path(video))),
            1
        );
    }
    t.expect_ready(&videos[0]).await;
    let log = t.database_log();
    assert!(
        !log.contains("deadlock") && !log.contains("could not serialize"),
        "{log}"
    );
    t.finish().await;
}

/// A worker stalls before its last byte, another worker publishes the new version, and the first continues.
#[tokio::test]
async fn a_stalled_workers_late_upload_is_corrected() {
    let t = Scenario::begin(Backend::Supabase).await;
    let v1 = Video::good();
    let v2 = v1.rerendered(SECOND);
    t.row(&v1).await;
    t.push(&v1).await;
    let stalled = t.replica().await;
    let last_byte = t.storage.pause_before_last_byte();
    let others = async {
        last_byte.reached().await;
        t.push(&v2).await;
        // The stalled worker does not notice that its lease expires.
        t.later(Duration::from_secs(31));
        t.work().await;
        t.later(Duration::from_secs(10));
        t.work().await;
        t.expect_ready(&v2).await;
        last_byte.resume();
    };
    let (worked, ()) = tokio::join!(stalled.run_once(), others);
    assert!(worked.unwrap());
    assert_eq!(
        t.stored(&v1).as_deref(),
        Some(GOOD),
        "the late upload took effect"
    );
    t.work().await;
    t.expect_ready(&v2).await;
    let timeline = t.video(&v2).await["timeline"].to_string();
    assert!(
        timeline.contains("lost its lease during an upload"),
        "{timeline}"
    );
    t.finish().await;
}

/// Each refusal has its code. Once the bucket is fixed, one sweep retries all of these videos.
#[tokio::test]
async fn refused_uploads_have_a_code_and_are_retried() {
    let mut t = Scenario::begin(Backend::Supabase).await;
    t.expect_error("video/mp4");
    let refusals = [
        (
            "NoSuchBucket",
            Answer::refusal(
                400,
                "404",
                "Bucket not found",
                "Bucket not found",
                "NoSuchBucket",
            ),
            "bucket_missing",
        ),
        (
            "InvalidMimeType",
            Answer::refusal(
                400,
                "415",
                "invalid_mime_type",
                "mime type video/mp4 is not supported",
                "InvalidMimeType",
            ),
            "mime_not_allowed",
        ),
        (
            "EntityTooLarge",
            Answer::refusal(
                400,
                "413",
                "Payload too large",
                "The object exceeded the maximum allowed size",
                "EntityTooLarge",
            ),
            "too_large",
        ),
        (
            "AccessDenied",
            Answer::refusal(
                400,
                "403",
                "Unauthorized",
                "new row violates row-level security policy",
                "AccessDenied",
            ),
            "storage_denied",
        ),
    ];
    let mut failed = Vec::new();
    for (name, refusal, code) in refusals {
        let video = Video::good();
        t.row(&video).await;
        t.storage.fault(Op::Upload, Fault::Answer(refusal));
        t.push(&video).await;
        t.work().await;
        println!("{name}: {code}");
        t.expect_reported(&video, code).await;
        failed.push(video);
    }
    let good = Video::good();
    t.row(&good).await;
    t.push(&good).await;
    t.work().await;
    t.expect_ready(&good).await;
    // Nothing that a sweep can see has changed, so these videos are retried by the schedule.
    let report = t.ask("/reconcile?wait=0").await.json;
    assert_eq!(report["queued"], 0, "{report:#}");
    t.later(Duration::from_secs(4000));
    t.work().await;
    for video in &failed {
        t.expect_ready(video).await;
    }
    for (answer, code) in [
        (
            Answer::new(502, "text/html", "<html>Bad Gateway</html>"),
            "storage_unavailable",
        ),
        (Answer::new(500, "text/plain", ""), "storage_unavailable"),
        (
            Answer::refusal(
                500,
                "500",
                "Internal",
                "Internal Server Error",
                "InternalError",
            ),
            "storage_unavailable",
        ),
        (
            Answer::refusal(429, "429", "Too many", "too many connections", "SlowDown"),
            "storage_unavailable",
        ),
    ] {
        let video = Video::good();
        t.row(&video).await;
        t.storage.fault(Op::Upload, Fault::Answer(answer));
        t.push(&video).await;
        t.work().await;
        t.expect_state(&video, "queued", code).await;
        t.later(Duration::from_secs(70));
        t.work().await;
        t.expect_ready(&video).await;
    }
    t.finish().await;
}

#[tokio::test]
async fn nothing_is_downloaded_again_while_the_storage_refuses_our_key() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    t.storage.translate_keys(false);
    t.push(&video).await;
    t.work().await;
    t.expect_reported(&video, "storage_denied").await;
    t.github.take_calls();
    for _ in 0..3 {
        t.ask("/reconcile?wait=0").await;
        t.work().await;
    }
    t.expect_reported(&video, "storage_denied").await;
    let calls = t.github.take_calls();
    assert!(
        calls.iter().all(|call| !call.path.contains("/git/blobs/")),
        "{calls:?}"
    );
    t.storage.translate_keys(true);
    t.ask("/reconcile?wait=0").await;
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}

/// The app sees a video become ready through one change in logical replication.
#[tokio::test]
async fn realtime_sends_one_change() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    t.sql(
        "select pg_create_logical_replication_slot('realtime_' || current_database(), 'pgoutput')",
    )
    .await;
    t.push(&video).await;
    t.work().await;
    t.expect_ready(&video).await;
    let changes =
        "from pg_logical_slot_peek_binary_changes('realtime_' || current_database(), null, null,
        'proto_version', '1', 'publication_names', 'supabase_realtime')
        where get_byte(data, 0) = ascii('U')";
    assert_eq!(
        t.text(&format!("select count(*)::text {changes}"))
            .await
            .as_deref(),
        Some("1")
    );
    let carried = t
        .text(&format!("select encode(data, 'escape') {changes}"))
        .await
        .unwrap();
    assert!(carried.contains(&t.path(&video)), "{carried}");
    t.sql("select pg_drop_replication_slot('realtime_' || current_database())")
        .await;
    t.finish().await;
}

/// A push that one replica records wakes an idle worker of another replica before its next poll.
#[tokio::test]
async fn another_replicas_push_wakes_an_idle_worker() {
    let t = Scenario::begin(Backend::Supabase).await;
    let replica = t.replica().await;
    let url = t.database_url();
    let woken = replica.wake.notified();
    let listening = replica.ingest.db.forward_wakeups(&url, &replica.wake);
    let video = Video::good();
    let push = async {
        // Listening has begun once Postgres says so.
        while t
            .text("select count(*)::text from pg_stat_activity where datname = current_database() and query ilike 'listen%'")
            .await
            .as_deref()
            != Some("1")
        {
            tokio::task::yield_now().await;
        }
        t.push(&video).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = woken => {}
        () = listening => unreachable!(),
        () = push => unreachable!(),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("not woken"),
    }
    t.row(&video).await;
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}

/// With `sslmode=verify-full`, the server needs a certificate of an authority in the file, or of a public one.
#[tokio::test]
async fn the_servers_certificate_is_checked_when_the_url_asks_for_it() {
    let database = Postgres::database().await;
    let connect = async |file: &str| {
        let url = &database.service_url;
        let url = url.replace("sslmode=disable", &format!("sslmode=verify-full{file}"));
        video_ingest::db::Db::postgres(&url.into(), Default::default()).await
    };
    let file = |name| {
        let path = database.server.authority(name);
        format!("&sslrootcert={}", path.display())
    };
    let db = connect(&file("ca.pem")).await.unwrap();
    db.ping().await.unwrap();
    db.close().await;
    for (file, reason) in [
        (
            file("other.pem"),
            "an authority that this machine does not trust",
        ),
        (
            String::new(),
            "an authority that this machine does not trust",
        ),
        (
            file("missing.pem"),
            "sslrootcert in DATABASE_URL names does not exist",
        ),
    ] {
        let refusal = connect(&file).await.unwrap_err();
        assert!(refusal.reason().contains(reason), "{file}: {refusal:?}");
    }
}

/// The error names the script to run.
#[tokio::test]
async fn the_error_for_an_older_app_database_names_the_script() {
    let database = Postgres::database().await;
    database
        .sql("alter table lesson_assets drop column metadata cascade")
        .await;
    let clock = video_ingest::clock::Clock::default();
    let db = video_ingest::db::Db::postgres(&database.service_url.clone().into(), clock)
        .await
        .unwrap();
    let refusal = db.migrate().await.unwrap_err().to_string();
    assert!(
        refusal.contains("metadata") && refusal.contains("deploy/supabase/columns.sql"),
        "{refusal}"
    );
    db.close().await;
}
