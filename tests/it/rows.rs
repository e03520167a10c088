//! Rows that move, are locked, cannot be accessed or contain unusable values. A ready video always stays
//! playable.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use uuid::Uuid;
use video_ingest::config::{Config, MissingRow};
use video_ingest::domain::failure::Code;
use video_ingest::domain::ids::VideoKey;
use video_ingest::failpoint::Fault;
use video_ingest::fake_github::Changes;

use crate::scenario;
use crate::support::scenario::{AppRow, Backend, SECOND, Scenario, TRUNCATED, Video};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Works, and runs a statement once the storage has the video's bytes and before its row is ready.
async fn once_stored(t: &Scenario, video: &Video, statement: &str) {
    let reached = Arc::new(Notify::new());
    t.fail.arm("stored", Fault::Pause(reached.clone()));
    let change = async {
        while t.stored(video).as_deref() != Some(&video.mp4[..]) {
            tokio::task::yield_now().await;
        }
        t.sql(statement).await;
        t.fail.disarm("stored");
        reached.notify_one();
    };
    tokio::join!(t.work(), change);
}

/// The object that the row names, as `bucket/path`.
async fn named_object(t: &Scenario, video: &Video) -> String {
    let named = format!(
        "select storage_bucket || '/' || storage_path from lesson_assets where id = '{}'",
        video.id()
    );
    t.text(&named).await.expect("the row is ready")
}

/// Whether the storage has this object with the video's bytes.
fn is_stored(t: &Scenario, object: &str, video: &Video) -> bool {
    let line = format!("{object}  {}", video.mp4.len());
    t.objects().iter().any(|shown| shown.starts_with(&line))
}

async fn make_ready(t: &Scenario, video: &Video) {
    t.row(video).await;
    t.push(video).await;
    t.work().await;
    t.expect_ready(video).await;
}

fn set(video: &Video, columns: &str) -> String {
    let id = video.id();
    format!("update lesson_assets set {columns} where id = '{id}'")
}

scenario! {
    a_row_that_moves_to_another_bucket_gets_its_object_there(t) {
        t.storage.create_bucket("archive", None, None);
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        once_stored(t, &video, &set(&video, "storage_bucket = 'archive'")).await;
        let object = format!("archive/{}", t.path(&video));
        assert_eq!(named_object(t, &video).await, object);
        assert_eq!(t.video(&video).await["state"], "ready");
        assert!(is_stored(t, &object, &video));
        assert_eq!(t.objects().len(), 1, "no row names the first one: {:?}", t.objects());
    }

    a_row_that_moves_to_another_owner_gets_its_object_there(t) {
        let (video, owner) = (Video::good(), Uuid::new_v4());
        t.row(&video).await;
        t.push(&video).await;
        once_stored(t, &video, &set(&video, &format!("user_id = '{owner}'"))).await;
        let object = format!("lesson-assets/{owner}/{}/{}.mp4", video.key.lesson_id, video.id());
        assert_eq!(named_object(t, &video).await, object);
        assert!(is_stored(t, &object, &video));
        assert_eq!(t.objects().len(), 1, "no row names the first one: {:?}", t.objects());
        assert_eq!(t.video(&video).await["state"], "ready");
    }

    a_ready_row_that_moves_during_a_rerender_keeps_a_video(t) {
        let moves = ["user_id = 'ID'", "storage_bucket = 'archive'", "lesson_id = 'ID'", "kind = 'other'"];
        t.storage.create_bucket("archive", None, None);
        for columns in moves {
            let v1 = Video::good();
            let v2 = v1.rerendered(SECOND);
            make_ready(t, &v1).await;
            let other = Video::good();
            // The app's lessons must exist.
            t.row(&other).await;
            t.push(&v2).await;
            let columns = columns.replace("ID", &other.key.lesson_id.to_string());
            once_stored(t, &v2, &set(&v2, &columns)).await;
            let object = named_object(t, &v2).await;
            assert!(is_stored(t, &object, &v2), "{columns}: {object} is not among {:?}", t.objects());
            let shown = t.video(&v2).await;
            match columns.split(' ').next() {
                Some("lesson_id") => assert_eq!(shown["code"], "row_mismatch", "{shown:#}"),
                Some("kind") => assert_ne!(shown["state"], "ready", "{shown:#}"),
                _ => assert_eq!(shown["state"], "ready", "{shown:#}"),
            }
        }
    }

    a_sweep_ingests_a_video_whose_row_came_back_to_its_lesson(t) {
        let (v1, other) = (Video::good(), Video::good());
        let v2 = v1.rerendered(SECOND);
        make_ready(t, &v1).await;
        t.row(&other).await;
        t.push(&v2).await;
        let lesson = |video: &Video| format!("lesson_id = '{}'", video.key.lesson_id);
        once_stored(t, &v2, &set(&v2, &lesson(&other))).await;
        t.expect_state(&v2, "failed", "row_mismatch").await;
        t.ask("/reconcile?wait=0").await;
        t.expect_state(&v2, "failed", "row_mismatch").await;
        t.sql(&set(&v2, &lesson(&v2))).await;
        t.ask("/reconcile?wait=0").await;
        t.work().await;
        t.expect_ready(&v2).await;
    }

    waiting_counts_from_the_first_sight_of_what_is_missing(t) {
        // The JSON.
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(video.mp4_path(), video.mp4.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.expect_state(&video, "waiting", "metadata_missing").await;
        t.later(Duration::from_secs(400));
        interrupt(t, &video).await;
        t.expect_state(&video, "waiting", "metadata_missing").await;
        t.later(Duration::from_secs(200));
        t.work().await;
        t.expect_ready(&video).await;

        // The MP4.
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(video.json_path(), video.json.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.later(4 * HOUR);
        interrupt(t, &video).await;
        t.expect_state(&video, "waiting", "video_missing").await;
        t.later(2 * HOUR);
        t.work().await;
        t.expect_reported(&video, "video_missing").await;

        // The row.
        let video = Video::good();
        t.push(&video).await;
        t.work().await;
        t.expect_state(&video, "waiting", "no_row").await;
        t.later(20 * HOUR);
        t.fail.arm("claimed", Fault::Fail(Code::DatabaseUnavailable));
        t.ask(&format!("/api/videos/{}/retry", video.id())).await;
        t.work().await;
        t.expect_state(&video, "queued", "database_unavailable").await;
        t.fail.disarm("claimed");
        t.later(Duration::from_secs(10));
        t.work().await;
        t.expect_state(&video, "waiting", "no_row").await;
        t.later(4 * HOUR);
        t.work().await;
        t.expect_failed(&video, "no_row").await;
    }

    a_verdict_about_an_old_conversation_does_not_fail_the_row(t) {
        let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
        let video = Video::good();
        let row = AppRow { conversation: Some(old), ..AppRow::pending(video.key) };
        t.rows(&[row]).await;
        t.agent.conversation(old, "RUNNING", Some("stuck"));
        t.agent.conversation(new, "RUNNING", Some("running"));
        t.ask("/reconcile?wait=0").await;
        // The answer about the old conversation is on its way while the app requests the video again.
        t.agent.calls();
        let asked = t.agent.hold().await;
        let again = async {
            while t.agent.calls().is_empty() {
                tokio::task::yield_now().await;
            }
            t.sql(&set(&video, &format!("conversation_id = '{new}'"))).await;
            drop(asked);
        };
        tokio::join!(t.ask("/reconcile?wait=0"), again);
        assert_eq!(t.asset(&video).await.mime_type, "video/mp4");
        assert_eq!(t.video(&video).await["state"], "generating");
        let report = t.ask("/reconcile?wait=0").await.json;
        assert_eq!(report["stillGenerating"], 1, "{report:#}");
        // A verdict about the current one counts, after it was confirmed.
        t.agent.conversation(new, "RUNNING", Some("stuck"));
        t.ask("/reconcile?wait=0").await;
        t.ask("/reconcile?wait=0").await;
        t.expect_reported(&video, "generation_failed").await;
    }

    a_retry_does_not_fail_a_video_that_is_generating(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.snapshot().await;
        let answer = t.ask(&format!("/api/videos/{}/retry", video.id())).await;
        answer.expect_problem(409, "still_generating");
        t.work().await;
        assert_eq!(t.snapshot().await, before);
        let page = t.get(&format!("/videos/{}", video.id())).await.json.to_string();
        assert!(!page.contains("/retry") && page.contains("Check again"), "{page}");
        assert_eq!(t.video(&video).await["state"], "generating");
        // Generated again under the same id, after a failure.
        t.later(7 * HOUR);
        t.ask("/reconcile?wait=0").await;
        t.expect_reported(&video, "generation_timeout").await;
        t.sql(&set(&video, "mime_type = 'video/mp4', metadata = null")).await;
        let answer = t.ask(&format!("/api/videos/{}/retry", video.id())).await;
        answer.expect_problem(409, "still_generating");
        t.work().await;
        assert_eq!(t.asset(&video).await.mime_type, "video/mp4");
        // Once something was pushed, a retry is a retry.
        t.push(&video).await;
        assert_eq!(t.ask(&format!("/api/videos/{}/retry", video.id())).await.status, 202);
        t.work().await;
        t.expect_ready(&video).await;
    }

    an_update_that_a_trigger_discards_is_not_repeated_at_once(t) {
        let video = Video::good();
        t.row(&video).await;
        let (create, drop) = if t.backend == Backend::Embedded {
            let begin = "create trigger frozen before update on lesson_assets begin";
            (format!("{begin} select raise(ignore); end"), "drop trigger frozen")
        } else {
            let function = "create function frozen() returns trigger language plpgsql";
            let trigger = "create trigger frozen before update on lesson_assets for each row";
            let create = format!(
                "{function} as 'begin return null; end'; {trigger} execute function frozen()"
            );
            (create, "drop trigger frozen on lesson_assets")
        };
        t.sql(&create).await;
        t.push(&video).await;
        t.work().await;
        t.expect_state(&video, "failed", "row_denied").await;
        t.sql(drop).await;
        t.later(2 * HOUR);
        t.work().await;
        t.expect_ready(&video).await;
    }

    nothing_waits_until_a_clock_that_was_set_back_has_caught_up(t) {
        for jump in [HOUR, 10 * DAY] {
            // A retry is scheduled.
            let retried = Video::good();
            t.row(&retried).await;
            t.fail.arm("claimed", Fault::Fail(Code::GithubUnavailable));
            t.push(&retried).await;
            t.work().await;
            t.expect_state(&retried, "queued", "github_unavailable").await;
            t.fail.disarm("claimed");
            // A worker died.
            let leased = Video::good();
            t.row(&leased).await;
            t.push(&leased).await;
            t.db.claim(Duration::from_secs(30)).await.unwrap().unwrap();
            // The JSON is missing.
            let waiting = Video::good();
            t.row(&waiting).await;
            let before = t.github.head();
            t.github.commit(|c| c.write(waiting.mp4_path(), waiting.mp4.clone()));
            t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
            t.work().await;
            t.expect_state(&waiting, "waiting", "metadata_missing").await;

            t.earlier(jump);
            t.work().await;
            t.expect_ready(&retried).await;
            t.later(Duration::from_secs(31));
            t.work().await;
            t.later(Duration::from_secs(10));
            t.work().await;
            t.expect_ready(&leased).await;
            t.later(Duration::from_secs(600));
            t.work().await;
            t.expect_ready(&waiting).await;
            t.later(jump);
        }
    }
}

/// A retry that meets an outage of GitHub, and the attempt after it.
async fn interrupt(t: &Scenario, video: &Video) {
    t.fail.arm("claimed", Fault::Fail(Code::GithubUnavailable));
    t.ask(&format!("/api/videos/{}/retry", video.id())).await;
    t.work().await;
    t.expect_state(video, "queued", "github_unavailable").await;
    t.fail.disarm("claimed");
    t.later(Duration::from_secs(10));
    t.work().await;
}

/// A worker that waits for a lock of the app on a row does not make pushes of that video wait.
#[tokio::test]
async fn a_push_is_accepted_while_the_app_holds_a_lock_on_the_row() {
    let t = Scenario::begin(Backend::Supabase).await;
    let v1 = Video::good();
    let v2 = v1.rerendered(SECOND);
    t.row(&v1).await;
    t.push(&v1).await;
    let admin = &t.database.as_ref().unwrap().admin;
    let mut lock = admin.begin().await.unwrap();
    sqlx::query("select id from lesson_assets for update")
        .fetch_all(&mut *lock)
        .await
        .unwrap();
    let push = async {
        let waiting = "select count(*)::text from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        while t.text(waiting).await.as_deref() == Some("0") {
            tokio::task::yield_now().await;
        }
        t.push(&v2).await;
        lock.rollback().await.unwrap();
    };
    tokio::join!(t.work(), push);
    t.expect_ready(&v2).await;
    t.finish().await;
}

/// Without workers and without anyone who reads them, too.
#[tokio::test]
async fn the_counts_are_compacted_without_a_reader() {
    const ENTRIES_MAX: i64 = 100;
    let t = Scenario::begin(Backend::Supabase).await;
    let entries = async || {
        let count = "select count(*)::text from video_ingest.counts";
        let entries = t.text(count).await.unwrap();
        entries.parse::<i64>().unwrap()
    };
    for _ in 0..ENTRIES_MAX {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        t.worker.run_once().await.unwrap();
    }
    assert!(entries().await > ENTRIES_MAX);
    let counted = "select n::text from (select state, sum(n) as n from video_ingest.counts
        group by state) as counts where state = 'ready'";
    assert_eq!(t.text(counted).await.as_deref(), Some("100"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = t.app(|config| {
        config.workers = 0;
        config.reconcile_interval = None;
    });
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn(app.await.serve(listener, stop.clone()));
    let compacted = async {
        while entries().await > ENTRIES_MAX {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), compacted)
        .await
        .expect("the entries are compacted");
    assert_eq!(t.text(counted).await.as_deref(), Some("100"));
    stop.cancel();
    serving.await.unwrap();
    t.finish().await;
}

/// Replicas that start at the same time adopt the same rows.
#[tokio::test]
async fn replicas_adopt_the_same_rows_without_deadlocks() {
    const ROUNDS: usize = 5;
    const ROWS: usize = 4000;
    let t = Scenario::begin(Backend::Supabase).await;
    let other = t.replica().await;
    for _ in 0..ROUNDS {
        let keys: Vec<_> = (0..ROWS)
            .map(|_| (Video::good().key, (None, None)))
            .collect();
        let reversed: Vec<_> = keys.iter().rev().copied().collect();
        let adopted = tokio::join!(t.db.adopt(&keys), other.db.adopt(&reversed));
        adopted.0.and(adopted.1).unwrap();
    }
    let log = t.database_log();
    assert!(!log.contains("deadlock"), "{log}");
    t.finish().await;
}

/// The calls that a video whose row cannot be written causes in an hour are bounded, its record says why,
/// and it becomes ready once the rights are restored.
async fn expect_denied(statements: &str, named: &str) {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    t.sql(statements).await;
    t.push(&video).await;
    t.github.take_calls();
    t.work().await;
    t.expect_state(&video, "failed", "row_denied").await;
    let message = t.video(&video).await["message"].to_string();
    assert!(
        message.contains(named) && message.contains("role.sql"),
        "{message}"
    );
    let (github, storage) = (t.github.take_calls().len(), t.storage.calls().len());
    assert!(github <= 8 && storage <= 6, "{github} and {storage} calls");
    for _ in 0..5 {
        t.later(Duration::from_secs(600));
        t.work().await;
    }
    assert_eq!(t.github.take_calls().len(), 0, "within the hour");
    assert_eq!(t.storage.calls().len(), storage, "within the hour");
    t.later(HOUR);
    t.work().await;
    t.expect_state(&video, "failed", "row_denied").await;
    assert_eq!(t.storage.calls().len(), storage, "the row is tried first");
    t.sql("drop policy if exists broken on lesson_assets").await;
    t.database.as_ref().unwrap().run_script("role.sql");
    t.later(26 * HOUR);
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}

/// The server starts, serves pushes, and logs what is missing.
#[tokio::test]
async fn the_server_starts_without_the_right_to_read_rows() {
    let mut t = Scenario::begin(Backend::Supabase).await;
    t.expect_error("deploy/supabase/role.sql");
    let video = Video::good();
    t.row(&video).await;
    t.sql("revoke select on lesson_assets from video_ingest")
        .await;
    let restarted = t.replica().await;
    t.push(&video).await;
    while restarted.run_once().await.unwrap() {}
    t.expect_state(&video, "failed", "row_denied").await;
    assert!(
        t.take_errors()
            .contains("permission denied for table lesson_assets")
    );
    t.finish().await;
}

#[tokio::test]
async fn row_level_security_without_update_is_reported() {
    let drop_policy = r#"drop policy "video_ingest updates videos" on lesson_assets"#;
    expect_denied(drop_policy, "video_ingest updates videos").await;
}

#[tokio::test]
async fn a_missing_right_to_update_is_reported() {
    let revoke = "revoke update on lesson_assets from video_ingest";
    expect_denied(revoke, "permission denied for table lesson_assets").await;
}

#[tokio::test]
async fn a_missing_right_to_read_is_reported() {
    let revoke = "revoke select on lesson_assets from video_ingest";
    expect_denied(revoke, "permission denied for table lesson_assets").await;
}

#[tokio::test]
async fn a_recursive_policy_is_reported() {
    let recursive = "create policy broken on lesson_assets for all
        using (exists (select from lesson_assets as a where a.id = lesson_assets.id))";
    expect_denied(recursive, "infinite recursion").await;
}

/// A row with a value that we cannot use does not stop the others.
#[tokio::test]
async fn odd_rows_are_skipped_and_named() {
    let t = Scenario::begin(Backend::Supabase).await;
    let (pushed, good) = (Video::good(), Video::good());
    let times = ["infinity", "-infinity", "4000-01-01 BC", "294276-12-31"];
    let odd: Vec<Video> = times.map(|_| Video::good()).into();
    for (video, created) in odd.iter().zip(times) {
        t.row(video).await;
        t.sql(&set(
            video,
            &format!("created_at = '{created}', metadata = '[1]'"),
        ))
        .await;
    }
    t.row(&pushed).await;
    t.sql(&set(
        &pushed,
        "created_at = 'infinity', metadata = '\"text\"'",
    ))
    .await;
    t.row(&good).await;
    t.commit(&pushed);
    t.commit(&good);
    let report = t.ask("/reconcile?wait=0").await.json;
    let database = serde_json::json!([{"service": "database", "code": "odd_row"}]);
    assert_eq!(report["errors"], database, "{report:#}");
    assert_eq!(report["queued"], 2, "{report:#}");
    assert_eq!(report["unknown"], times.len(), "{report:#}");
    for video in &odd {
        let videos = report["videos"].as_array().unwrap();
        let shown = videos.iter().find(|shown| shown["video_id"] == video.id());
        let detail = shown.unwrap()["detail"].to_string();
        assert!(detail.contains("created_at"), "{detail}");
        assert_eq!(t.asset(video).await.mime_type, "video/mp4");
        assert_eq!(t.video(video).await["state"], "generating");
    }
    t.work().await;
    t.expect_ready(&good).await;
    t.expect_ready(&pushed).await;
    let shown = t.get("/api/videos").await;
    assert_eq!(shown.status, 200, "{shown:?}");
    assert_eq!(t.get("/").await.status, 200);
    t.finish().await;
}

#[tokio::test]
async fn odd_rows_of_the_embedded_database_are_skipped() {
    let t = Scenario::begin(Backend::Embedded).await;
    let videos =
        ["[1]", "{", "{\"ingest\": 7, \"kept\": 1}"].map(|metadata| (Video::good(), metadata));
    for (video, metadata) in &videos {
        t.row(video).await;
        t.sql(&set(video, &format!("metadata = '{metadata}'")))
            .await;
    }
    let (text, nameless) = (Video::good(), Video::good());
    t.row(&text).await;
    t.sql(&set(&text, "created_at = 'yesterday'")).await;
    t.row(&nameless).await;
    t.sql(&set(&nameless, "id = 'not a UUID'")).await;
    for (video, _) in &videos {
        t.commit(video);
    }
    let report = t.ask("/reconcile?wait=0").await.json;
    assert_eq!(report["errors"][0]["code"], "odd_row", "{report:#}");
    assert_eq!(
        (&report["queued"], &report["unknown"]),
        (&3.into(), &1.into())
    );
    t.work().await;
    for (video, _) in &videos {
        t.expect_ready(video).await;
    }
    assert_eq!(t.asset(&videos[2].0).await.metadata["kept"], 1);
    // A bad re-render of a video whose metadata was changed.
    let bad = videos[0].0.rerendered(TRUNCATED);
    t.sql(&set(&bad, "metadata = '{\"ingest\": 7}'")).await;
    t.push(&bad).await;
    t.work().await;
    let metadata = t.asset(&bad).await.metadata;
    assert_eq!(metadata["ingest"]["last_error"]["code"], "truncated");
    assert_eq!(t.get("/api/videos").await.status, 200);
    t.finish().await;
}

/// `MISSING_ROW=create`: a wrong lesson in a file name is corrected by a later push, in any order of its steps.
#[tokio::test]
async fn a_row_of_a_file_with_the_wrong_lesson_follows_the_corrected_file() {
    for steps in 1..=3 {
        let create = |config: &mut Config| config.missing_row = MissingRow::Create;
        let t = Scenario::begin_with(Backend::Embedded, create).await;
        let wrong = Video::good();
        let key = VideoKey {
            video_id: wrong.key.video_id,
            ..Video::good().key
        };
        let right = Video {
            mp4: SECOND.into(),
            ..Video::of(key)
        };
        t.push(&wrong).await;
        t.work().await;
        let first = named_object(&t, &wrong).await;
        assert!(is_stored(&t, &first, &wrong));
        let push = async |change: &dyn Fn(Changes) -> Changes| {
            let before = t.github.head();
            t.github.commit(change);
            let push = t.github.push(before, t.github.head());
            t.deliver(&push).await.expect_accepted();
            t.work().await;
        };
        match steps {
            1 => push(&|c| right.write(wrong.remove(c))).await,
            2 => {
                push(&|c| wrong.remove(c)).await;
                assert!(is_stored(&t, &first, &wrong), "a ready video is kept");
                push(&|c| right.write(c)).await;
            }
            _ => {
                push(&|c| right.write(c)).await;
                assert_eq!(
                    named_object(&t, &wrong).await,
                    first,
                    "both files are there"
                );
                push(&|c| wrong.remove(c)).await;
                let report = t.ask("/reconcile?wait=0").await.json;
                assert_eq!(report["queued"], 1, "{report:#}");
                t.work().await;
            }
        }
        assert_eq!(t.video(&right).await["state"], "ready", "{steps}");
        let object = named_object(&t, &right).await;
        assert!(
            object.contains(&right.key.lesson_id.to_string()),
            "{object}"
        );
        assert!(is_stored(&t, &object, &right), "{steps}");
        assert_eq!(t.objects().len(), 1, "{:?}", t.objects());
        t.finish().await;
    }
}
