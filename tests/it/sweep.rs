//! Sweeps find videos whose webhook was lost and fail overdue rows. During outages, they change nothing
//! that they cannot verify.

use std::time::Duration;

use crate::support::fake_github;
use serde_json::{Value, json};
use uuid::Uuid;
use video_ingest::domain::failure::{Code, Failure};
use video_ingest::domain::ids::VideoKey;

use crate::scenario;
use crate::support::fake_openhands::Fault;
use crate::support::scenario::{AppRow, SECOND, Scenario, TRUNCATED, Video};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Sweeps without waiting for the videos, because the test itself runs the worker.
pub async fn sweep(t: &Scenario, query: &str) -> Value {
    let answer = t.ask(&format!("/reconcile?wait=0&{query}")).await;
    assert_eq!(answer.status, 200, "{:#}", answer.json);
    expect_sums(&answer.json);
    answer.json
}

/// Every video that was checked has exactly one outcome.
fn expect_sums(report: &Value) {
    let count = |name: &str| report[name].as_u64().unwrap();
    let outcomes = [
        "processed",
        "queued",
        "stillGenerating",
        "waiting",
        "failed",
        "unknown",
    ];
    let sum: u64 = outcomes.map(count).iter().sum();
    assert_eq!(sum, count("checked"), "{report:#}");
    assert_eq!(
        count("checked"),
        report["videos"].as_array().unwrap().len() as u64
    );
}

/// `outcome: detail`, or nothing if the video was not checked.
pub fn outcome(report: &Value, video: &Video) -> String {
    let videos = report["videos"].as_array().unwrap();
    let mut of_it = videos
        .iter()
        .filter(|v| v["video_id"] == json!(video.key.video_id));
    let found = of_it.next().map_or(String::new(), |v| {
        format!(
            "{}: {}",
            v["outcome"].as_str().unwrap(),
            v["detail"].as_str().unwrap()
        )
    });
    assert_eq!(of_it.next(), None, "two outcomes: {report:#}");
    found
}

/// Sweeps, and expects that no row of the service or the app changes.
pub async fn expect_nothing_written(t: &Scenario, query: &str) -> Value {
    let before = t.snapshot().await;
    let report = sweep(t, query).await;
    let after = t.snapshot().await;
    let written: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(written.is_empty(), "{written:#?}");
    report
}

/// A video whose row names an agent's conversation.
pub async fn generating(t: &Scenario) -> (Video, Uuid) {
    let (video, conversation) = (Video::good(), Uuid::new_v4());
    let row = AppRow {
        conversation: Some(conversation),
        ..AppRow::pending(video.key)
    };
    t.rows(&[row]).await;
    (video, conversation)
}

async fn aged(t: &Scenario, age: Duration) -> Video {
    let video = Video::good();
    t.rows(&[AppRow {
        age,
        ..AppRow::pending(video.key)
    }])
    .await;
    video
}

/// A row that was made ready by the function that this service replaces.
async fn made_ready_by_the_old_function(t: &Scenario) -> Video {
    let video = Video::good();
    let path = t.path(&video);
    t.rows(&[AppRow {
        storage_path: Some(path),
        ..AppRow::pending(video.key)
    }])
    .await;
    t.commit(&video);
    video
}

scenario! {
    each_video_has_its_verdict(t) {
        let pushed = aged(t, MINUTE).await;
        t.commit(&pushed);
        let half = aged(t, MINUTE).await;
        t.github.commit(|c| c.write(half.json_path(), half.json.clone()));
        let orphan = Video::good();
        t.commit(&orphan);
        let unassigned = aged(t, MINUTE).await;
        let (working, c) = generating(t).await;
        t.agent.conversation(c, "RUNNING", Some("running"));
        let (done, c) = generating(t).await;
        t.agent.conversation(c, "RUNNING", Some("finished"));
        let (broken, c) = generating(t).await;
        t.agent.conversation(c, "RUNNING", Some("error"));
        let (forgotten, _) = generating(t).await;
        let late = aged(t, HOUR * 7).await;
        let failed = Video::good();
        t.rows(&[AppRow { mime_type: "error: out of credits", ..AppRow::pending(failed.key) }]).await;

        let report = sweep(t, "").await;
        let expected = [
            (&pushed, "queued: found by a sweep"),
            (&half, "queued: found by a sweep"),
            (&orphan, "queued: found by a sweep"),
            (&unassigned, "generating: Nothing has been pushed yet."),
            (&working, "generating: The agent is working on it."),
            (&done, "generating: The agent finished; its push has not arrived yet."),
            (&broken, "unknown: The agent stopped with an error. If the next sweep gets the same status, the video fails."),
            (&forgotten, "unknown: OpenHands has no conversation with this ID."),
            (&late, "failed: No video was pushed within 6 h."),
            (&failed, "failed: out of credits"),
        ];
        for (video, verdict) in expected {
            assert_eq!(outcome(&report, video), verdict);
        }
        assert_eq!((&report["found"], &report["checked"]), (&json!(3), &json!(10)));
        assert_eq!(report["orphans"], json!([orphan.json_path(), orphan.mp4_path()]));
        assert_eq!(report["errors"], json!([]));

        t.work().await;
        t.expect_ready(&pushed).await;
        t.expect_state(&half, "waiting", "video_missing").await;
        t.expect_state(&orphan, "waiting", "no_row").await;
        t.expect_reported(&late, "generation_timeout").await;

        let report = sweep(t, "").await;
        assert_eq!(outcome(&report, &pushed), "");
        assert_eq!(outcome(&report, &half), "waiting: Only the JSON file has been pushed so far; waiting for the MP4.");
        assert_eq!(outcome(&report, &orphan), "waiting: There is no row with this ID in lesson_assets yet; waiting for it.");
        assert_eq!(outcome(&report, &broken), "failed: Video generation failed: the agent stopped with an error.");
        assert_eq!(report["found"], 0);
        expect_nothing_written(t, "").await;
    }

    a_waiting_sweep_reports_the_outcomes(t) {
        let (good, bad, half) = (Video::good(), Video::with(TRUNCATED), Video::good());
        for video in [&good, &bad, &half] {
            t.row(video).await;
        }
        t.commit(&good);
        t.commit(&bad);
        t.github.commit(|c| c.write(half.mp4_path(), half.mp4.clone()));
        let worker = tokio::spawn({
            let worker = t.worker.clone();
            async move { worker.run().await }
        });
        let report = t.ask("/reconcile?wait=60").await.json;
        t.worker.stop.cancel();
        t.worker.wake.notify_waiters();
        worker.await.unwrap();
        expect_sums(&report);
        assert_eq!(outcome(&report, &good), "processed: ready");
        assert!(outcome(&report, &bad).starts_with("failed: "), "{report:#}");
        assert!(outcome(&report, &half).starts_with("waiting: "), "{report:#}");
        assert_eq!(report["found"], 2, "processed, and found but failed: {report:#}");
        assert_eq!((&report["processed"], &report["failed"], &report["waiting"]), (&json!(1), &json!(1), &json!(1)));
    }

    a_waiting_sweep_does_not_block_another_sweep(t) {
        let video = aged(t, MINUTE).await;
        t.commit(&video);
        let other = async {
            assert!(outcome(&sweep(t, "").await, &video).starts_with("queued: "));
            t.work().await;
        };
        let (waited, ()) = tokio::join!(t.ask("/reconcile?wait=5"), other);
        assert_eq!(outcome(&waited.json, &video), "processed: ready");
    }

    a_video_whose_row_is_inserted_while_a_sweep_waits_is_not_an_orphan(t) {
        let video = Video::good();
        t.commit(&video);
        let row_comes = async {
            assert_eq!(sweep(t, "").await["orphans"].as_array().unwrap().len(), 2);
            t.row(&video).await;
            t.work().await;
        };
        let (waited, ()) = tokio::join!(t.ask("/reconcile?wait=5"), row_comes);
        assert_eq!(outcome(&waited.json, &video), "processed: ready");
        assert_eq!(waited.json["orphans"], json!([]));
    }

    two_consecutive_statuses_confirm_that_an_agent_failed(t) {
        let (video, conversation) = generating(t).await;
        t.agent.conversation(conversation, "ERROR", None);
        assert!(outcome(&sweep(t, "").await, &video).starts_with("unknown: "));
        // A temporary error: only consecutive failures count.
        t.agent.conversation(conversation, "STARTING", None);
        assert!(outcome(&sweep(t, "").await, &video).starts_with("generating: "));
        t.agent.conversation(conversation, "ERROR", None);
        assert!(outcome(&sweep(t, "").await, &video).starts_with("unknown: "));
        assert_eq!(t.asset(&video).await.mime_type, "video/mp4");
        assert_eq!(outcome(&sweep(t, "").await, &video), "failed: Video generation failed: the agent's sandbox failed.");
        t.expect_reported(&video, "generation_failed").await;
        t.agent.calls();
        assert_eq!(outcome(&expect_nothing_written(t, "").await, &video), "failed: Video generation failed: the agent's sandbox failed.");
        assert!(t.agent.calls().is_empty(), "failed videos are not queried");
        // The video is pushed after all.
        t.commit(&video);
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_new_conversation_needs_its_own_two_statuses(t) {
        let (video, first) = generating(t).await;
        t.agent.conversation(first, "ERROR", None);
        sweep(t, "").await;
        let second = Uuid::new_v4();
        t.sql(&format!("update lesson_assets set conversation_id = '{second}' where id = '{}'", video.id())).await;
        t.agent.conversation(second, "ERROR", None);
        assert!(outcome(&sweep(t, "").await, &video).starts_with("unknown: "));
        assert_eq!(t.asset(&video).await.mime_type, "video/mp4");
        assert!(outcome(&sweep(t, "").await, &video).starts_with("failed: "));
    }

    an_agent_that_finished_has_15_minutes_to_push(t) {
        let (never, c) = generating(t).await;
        t.agent.conversation(c, "RUNNING", Some("finished"));
        let (late, c) = generating(t).await;
        t.agent.conversation(c, "RUNNING", Some("finished"));
        sweep(t, "").await;
        t.later(MINUTE * 14);
        assert!(outcome(&sweep(t, "").await, &never).starts_with("generating: "));
        t.later(MINUTE * 2);
        assert_eq!(outcome(&sweep(t, "").await, &never), "failed: The agent finished but did not push a video within 15 min.");
        t.expect_reported(&never, "finished_without_video").await;
        t.expect_reported(&late, "finished_without_video").await;
        t.push(&late).await;
        t.work().await;
        t.expect_ready(&late).await;
        sweep(t, "").await;
        expect_nothing_written(t, "").await;
    }

    a_row_is_failed_at_its_deadline_and_ready_once_pushed(t) {
        let video = aged(t, HOUR * 6 - MINUTE).await;
        assert!(outcome(&expect_nothing_written(t, "").await, &video).starts_with("generating: "));
        t.later(MINUTE * 2);
        sweep(t, "").await;
        t.expect_reported(&video, "generation_timeout").await;
        expect_nothing_written(t, "").await;
        t.commit(&video);
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&video).await;
        expect_nothing_written(t, "").await;
    }

    a_row_failed_by_the_old_function_stays_failed_until_a_push(t) {
        let video = Video::good();
        t.rows(&[AppRow { age: DAY * 9, mime_type: "error: timeout", ..AppRow::pending(video.key) }]).await;
        assert_eq!(outcome(&expect_nothing_written(t, "").await, &video), "failed: timeout");
        t.commit(&video);
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&video).await;
    }

    files_without_a_row_are_orphans_until_the_row_exists(t) {
        let video = Video::good();
        t.commit(&video);
        sweep(t, "").await;
        t.work().await;
        t.expect_state(&video, "waiting", "no_row").await;
        let report = expect_nothing_written(t, "").await;
        assert_eq!(report["orphans"], json!([video.json_path(), video.mp4_path()]));
        t.later(DAY + MINUTE);
        t.work().await;
        t.expect_failed(&video, "no_row").await;
        let report = expect_nothing_written(t, "").await;
        assert_eq!(report["failed"], 1);
        t.row(&video).await;
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&video).await;
        assert_eq!(expect_nothing_written(t, "").await["orphans"], json!([]));
    }

    a_row_of_another_lesson_is_reported_once(t) {
        let video = Video::good();
        let other = VideoKey { lesson_id: Uuid::new_v4(), ..video.key };
        let neighbour = VideoKey { video_id: Uuid::new_v4(), ..video.key };
        t.rows(&[AppRow::pending(neighbour), AppRow::pending(other)]).await;
        t.commit(&video);
        sweep(t, "").await;
        t.work().await;
        t.expect_failed(&video, "row_mismatch").await;
        expect_nothing_written(t, "").await;
        t.sql(&format!("update lesson_assets set lesson_id = '{}' where id = '{}'", video.key.lesson_id, video.id())).await;
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_row_made_ready_by_the_old_function_is_adopted_unchanged(t) {
        let video = made_ready_by_the_old_function(t).await;
        let before = t.asset(&video).await;
        assert_eq!(sweep(t, "").await["checked"], 0);
        t.work().await;
        assert_eq!(format!("{before:?}"), format!("{:?}", t.asset(&video).await));
        assert_eq!(t.video(&video).await["state"], "ready");
        expect_nothing_written(t, "").await;
        let again = video.rerendered(SECOND);
        t.commit(&again);
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&again).await;
    }

    a_rerender_whose_webhook_was_lost_is_found(t) {
        let first = Video::good();
        t.row(&first).await;
        t.push(&first).await;
        t.work().await;
        let second = first.rerendered(SECOND);
        t.commit(&second);
        assert_eq!(outcome(&sweep(t, "").await, &second), "queued: changes found by a sweep");
        t.work().await;
        t.expect_ready(&second).await;
        assert_eq!(expect_nothing_written(t, "").await["checked"], 0);
        // A bad rerender is reported once, next to the ready video.
        t.commit(&first.rerendered(TRUNCATED));
        sweep(t, "").await;
        t.work().await;
        t.expect_state(&second, "failed", "truncated").await;
        assert_eq!(t.stored(&second).as_deref(), Some(SECOND));
        let report = expect_nothing_written(t, "").await;
        assert_eq!((&report["failed"], &report["found"]), (&json!(1), &json!(0)));
    }

    a_reinserted_row_gets_its_failure_again(t) {
        let video = Video::with(TRUNCATED);
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        t.expect_reported(&video, "truncated").await;
        // The app deletes and inserts the row again. Without the failure, it would stay pending forever.
        t.sql(&format!("delete from lesson_assets where id = '{}'", video.id())).await;
        t.row(&video).await;
        sweep(t, "").await;
        t.work().await;
        t.expect_reported(&video, "truncated").await;
        expect_nothing_written(t, "").await;
    }

    a_dry_run_reports_the_same_and_writes_nothing(t) {
        let pushed = aged(t, MINUTE).await;
        t.commit(&pushed);
        let late = aged(t, HOUR * 7).await;
        let (broken, c) = generating(t).await;
        t.agent.conversation(c, "ERROR", None);
        made_ready_by_the_old_function(t).await;
        let gone = Video::good();
        t.row(&gone).await;
        t.push(&gone).await;
        t.work().await;
        t.delete_stored(&gone);
        t.later(DAY);
        let dry = expect_nothing_written(t, "dry_run=true&verify=true").await;
        let again = expect_nothing_written(t, "dry_run=true&verify=true").await;
        assert!(outcome(&again, &broken).starts_with("failed: No video"), "a day old by now");
        assert!(outcome(&dry, &late).starts_with("failed: "));
        let mut real = sweep(t, "verify=true").await;
        real["timestamp"] = dry["timestamp"].clone();
        for report in [&mut real, &mut again.clone()] {
            report["videos"].as_array_mut().unwrap().sort_by_key(Value::to_string);
        }
        let mut again = again;
        again["timestamp"] = dry["timestamp"].clone();
        again["videos"].as_array_mut().unwrap().sort_by_key(Value::to_string);
        assert_eq!(real, again);
    }

    a_dry_run_does_not_count_as_a_status(t) {
        let (video, conversation) = generating(t).await;
        t.agent.conversation(conversation, "ERROR", None);
        for query in ["dry_run=true", "dry_run=true", ""] {
            assert!(outcome(&sweep(t, query).await, &video).starts_with("unknown: "));
        }
        assert!(outcome(&expect_nothing_written(t, "dry_run=true").await, &video).starts_with("failed: "));
    }

    missing_and_changed_objects_are_uploaded_again(t) {
        let videos = [Video::good(), Video::good(), Video::good()];
        for video in &videos {
            t.row(video).await;
            t.push(video).await;
        }
        t.work().await;
        let [gone, cut, fine] = &videos;
        t.delete_stored(gone);
        t.overwrite_stored(cut, b"half");
        assert_eq!(expect_nothing_written(t, "").await["checked"], 0, "only when asked to verify");
        let report = sweep(t, "verify=true").await;
        assert_eq!(outcome(&report, gone), "queued: The object is missing from storage");
        assert_eq!(outcome(&report, cut), "queued: The stored object has an unexpected size");
        assert_eq!(outcome(&report, fine), "");
        t.work().await;
        for video in &videos {
            t.expect_ready(video).await;
        }
        assert_eq!(expect_nothing_written(t, "verify=true").await["checked"], 0);
    }

    a_lost_object_of_the_old_function_is_ingested_in_one_sweep(t) {
        let video = made_ready_by_the_old_function(t).await;
        assert!(outcome(&sweep(t, "verify=true").await, &video).starts_with("queued: "));
        t.work().await;
        t.expect_ready(&video).await;
        expect_nothing_written(t, "verify=true").await;
    }

    a_lost_object_without_a_file_in_the_branch_is_only_reported(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        t.delete_stored(&video);
        t.github.commit(|c| video.remove(c));
        let report = expect_nothing_written(t, "verify=true").await;
        assert_eq!(outcome(&report, &video), "failed: The object is missing from storage, and the branch has no file to replace it; push the video again.");
    }

    one_video_can_be_swept_alone(t) {
        let (one, other) = (aged(t, MINUTE).await, aged(t, MINUTE).await);
        t.commit(&one);
        t.commit(&other);
        let (asked, _) = generating(t).await;
        let (_, _) = generating(t).await;
        let report = sweep(t, &format!("video_id={}", one.id())).await;
        assert_eq!(report["checked"], 1);
        assert!(outcome(&report, &one).starts_with("queued: "));
        assert!(t.agent.calls().is_empty());
        t.work().await;
        t.expect_ready(&one).await;
        assert_eq!(t.video(&other).await["state"], "generating");
        sweep(t, &format!("video_id={}", asked.id())).await;
        assert_eq!(t.agent.calls().iter().filter(|c| c.matches("ids=").count() == 1).count(), 2, "a conversation, then a start task");
        t.ask("/reconcile?video_id=x").await.expect_problem(400, "malformed");
    }

    rows_that_stay_pending_do_not_delay_others(t) {
        let older = aged(t, HOUR * 3).await;
        for _ in 0..15 {
            aged(t, HOUR * 2).await;
        }
        let newer = aged(t, HOUR).await;
        t.commit(&older);
        t.commit(&newer);
        let report = sweep(t, "").await;
        assert_eq!((&report["found"], &report["stillGenerating"]), (&json!(2), &json!(15)));
        t.work().await;
        t.expect_ready(&older).await;
        t.expect_ready(&newer).await;
    }

    a_sweep_without_github_changes_nothing(t) {
        let late = aged(t, HOUR * 7).await;
        let pushed = aged(t, MINUTE).await;
        t.commit(&pushed);
        let faults = [
            fake_github::Fault::Html,
            fake_github::Fault::Empty200,
            fake_github::Fault::Cut { after_bytes: 10 },
            fake_github::Fault::Status { code: 503, headers: vec![], body: "{}".into() },
            fake_github::Fault::Status { code: 401, headers: vec![], body: r#"{"message":"Bad credentials"}"#.into() },
        ];
        let before = t.snapshot().await;
        for fault in faults {
            t.github.fault(|call| call.path.contains("/commits/"), fault.clone());
            let answer = t.ask("/reconcile?wait=0").await;
            assert_eq!((answer.status, &answer.json["code"]), (502, &json!("github_unavailable")), "{fault:?}");
            t.github.clear_faults();
        }
        // The second request, for the tree, fails.
        t.github.fault(|call| call.path.contains("/git/trees/"), fake_github::Fault::Html);
        t.ask("/reconcile?wait=0").await.expect_problem(502, "github_unavailable");
        t.github.clear_faults();
        assert_eq!(before, t.snapshot().await);
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&pushed).await;
        t.expect_reported(&late, "generation_timeout").await;
    }

    a_sweep_without_the_agents_api_changes_no_row(t) {
        let (video, conversation) = generating(t).await;
        t.agent.conversation(conversation, "ERROR", None);
        let pushed = aged(t, MINUTE).await;
        sweep(t, "").await;
        let faults = [
            (Fault::Html, "html_answer"),
            (Fault::HtmlAsJson, "html_answer"),
            (Fault::Login, "malformed"),
            (Fault::Json(r#"{"detail": "moved"}"#), "malformed"),
            (Fault::Status(401), "unauthorized"),
            (Fault::Status(403), "forbidden"),
            (Fault::Status(500), "unavailable"),
            (Fault::Status(503), "unavailable"),
            (Fault::Stall, "unavailable"),
            (Fault::TooMany(Some(30)), "rate_limited"),
        ];
        for (fault, code) in faults {
            t.agent.fault("", fault);
            let report = expect_nothing_written(t, "").await;
            assert_eq!(report["errors"], json!([{"service": "openhands", "code": code}]), "{fault:?}");
            assert_eq!(outcome(&report, &video), "unknown: The OpenHands API did not respond.", "{fault:?}");
            t.agent.clear_faults();
        }
        // Pushed videos do not need the agent. An API that asked for a pause is not called.
        t.commit(&pushed);
        t.agent.calls();
        sweep(t, "").await;
        assert!(t.agent.calls().is_empty());
        t.work().await;
        t.expect_ready(&pushed).await;
        t.later(MINUTE);
        assert!(outcome(&sweep(t, "").await, &video).starts_with("failed: Video generation failed"));
    }

    a_sweep_without_the_storage_reports_no_object_as_lost(t) {
        let (gone, fine) = (Video::good(), Video::good());
        for video in [&gone, &fine] {
            t.row(video).await;
            t.push(video).await;
        }
        t.work().await;
        for _ in 0..40 {
            made_ready_by_the_old_function(t).await;
        }
        sweep(t, "").await;
        t.delete_stored(&gone);
        t.break_storage();
        let calls = t.storage.calls().len();
        let report = expect_nothing_written(t, "verify=true").await;
        assert!(t.storage.calls().len() - calls < 20, "an unavailable storage is not queried for every object");
        assert_eq!(report["checked"], 0);
        assert_eq!(report["errors"][0]["service"], "storage", "{report:#}");
        assert_eq!(report["errors"].as_array().unwrap().len(), 1);
        t.repair_storage();
        let report = sweep(t, "verify=true").await;
        assert_eq!((&report["errors"], &report["queued"]), (&json!([]), &json!(41)));
        t.work().await;
        t.expect_ready(&gone).await;
    }

    a_sweep_without_the_database_returns_an_error(t) {
        t.expect_error("request failed: database unavailable");
        let pushed = aged(t, MINUTE).await;
        t.commit(&pushed);
        let blocked = t.block_database().await;
        let answer = t.ask("/reconcile?wait=0").await;
        answer.expect_problem(503, "database_unavailable");
        blocked.release().await;
        sweep(t, "").await;
        t.work().await;
        t.expect_ready(&pushed).await;
    }

    a_verdict_is_discarded_after_a_push(t) {
        let failure = Failure::new(Code::FinishedWithoutVideo, "it never came");
        let (ready, half, queued) = (Video::good(), Video::good(), Video::good());
        for video in [&ready, &half, &queued] {
            t.row(video).await;
        }
        // All three videos are pushed after the sweep has read the records and before its verdict.
        let seen = t.db.records().await.unwrap();
        t.push(&ready).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(half.mp4_path(), half.mp4.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.push(&queued).await;
        let snapshot = t.snapshot().await;
        for video in [&ready, &half, &queued] {
            t.db.fail_pending(video.key, seen.get(&video.key).map(|record| record.requested), None, &failure).await.unwrap();
        }
        assert_eq!(snapshot, t.snapshot().await);
        // Or the old function, which still runs, made the row ready.
        let others = made_ready_by_the_old_function(t).await;
        let snapshot = t.snapshot().await;
        t.db.fail_pending(others.key, None, None, &failure).await.unwrap();
        assert_eq!(snapshot, t.snapshot().await);
    }

    a_branch_too_large_to_list_is_looked_up_in_parts(t) {
        // One sweep does not look up all rows: the newest row is looked up by the second sweep.
        let keys: Vec<VideoKey> = (0..50).map(|_| Video::good().key).collect();
        let old = |key: &VideoKey| AppRow { age: HOUR * 5, mime_type: "error: once", ..AppRow::pending(*key) };
        t.rows(&keys.iter().map(old).collect::<Vec<_>>()).await;
        let last = Video::good();
        let conversation = Uuid::new_v4();
        t.rows(&[AppRow { conversation: Some(conversation), ..AppRow::pending(last.key) }]).await;
        t.agent.conversation(conversation, "ERROR", None);
        t.commit(&last);
        t.github.truncate_trees_at(1);
        t.later(HOUR);
        let report = sweep(t, "").await;
        assert_eq!(outcome(&report, &last), "unknown: GitHub does not list this video, but its list is incomplete or outdated; a later sweep will check again.");
        assert!(t.agent.calls().is_empty(), "whether it was pushed is not known yet");
        t.later(HOUR * 6);
        assert!(outcome(&sweep(t, "").await, &last).starts_with("queued: "), "before any deadline");
        t.work().await;
        t.expect_ready(&last).await;
    }

    the_agent_is_queried_about_videos_missing_in_the_branch(t) {
        let (video, conversation) = generating(t).await;
        t.agent.conversation(conversation, "RUNNING", Some("running"));
        t.commit(&Video::good());
        t.github.truncate_trees_at(1);
        assert_eq!(outcome(&sweep(t, "").await, &video), "generating: The agent is working on it.");
    }

    old_history_is_deleted(t) {
        let (old, new) = (Video::good(), Video::good());
        t.row(&old).await;
        t.row(&new).await;
        t.push(&old).await;
        t.work().await;
        t.later(DAY * 29);
        t.push(&new).await;
        t.work().await;
        expect_nothing_written(t, "").await;
        t.later(DAY * 2);
        let before = t.asset(&old).await;
        sweep(t, "").await;
        assert_eq!(t.get("/api/deliveries").await.json["deliveries"].as_array().unwrap().len(), 1);
        assert_eq!(t.steps(&old).await, Vec::<String>::new());
        assert!(!t.steps(&new).await.is_empty());
        assert_eq!(format!("{before:?}"), format!("{:?}", t.asset(&old).await), "the video itself is kept");
        t.expect_ready(&old).await;
        expect_nothing_written(t, "").await;
    }

    statuses_are_deleted_once_the_video_is_pushed(t) {
        let (video, conversation) = generating(t).await;
        t.agent.conversation(conversation, "RUNNING", Some("running"));
        sweep(t, "").await;
        assert!(t.counts().await.contains("statuses 1"));
        t.push(&video).await;
        t.work().await;
        sweep(t, "").await;
        assert!(t.counts().await.contains("statuses 0"));
    }
}

/// CPU time that this process has used so far.
fn cpu_time() -> Duration {
    /// Linux always counts in hundredths of a second here.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(2);
    TICK * ticks.map(|text| text.parse::<u32>().unwrap()).sum::<u32>()
}

scenario! {
    ten_thousand_rows_cost_three_calls_and_then_none(t) {
        const ROWS: usize = 10_000;
        let keys: Vec<VideoKey> = (0..ROWS).map(|_| Video::good().key).collect();
        let row = |key: &VideoKey| AppRow { conversation: Some(key.video_id), ..AppRow::pending(*key) };
        t.rows(&keys.iter().map(row).collect::<Vec<_>>()).await;
        for key in &keys {
            t.agent.conversation(key.video_id, "RUNNING", Some("running"));
        }
        let ready: Vec<Video> = (0..ROWS / 2).map(|_| Video::good()).collect();
        let row = |video: &Video| AppRow { storage_path: Some(t.path(video)), ..AppRow::pending(video.key) };
        t.rows(&ready.iter().map(row).collect::<Vec<_>>()).await;
        t.github.commit(|c| ready.iter().fold(c, |c, video| video.write(c)));

        for (name, calls_max, quota_max) in [("first", 3, 3), ("unchanged", 1, 0)] {
            t.github.take_calls();
            t.agent.calls();
            let (cpu, wall) = (cpu_time(), std::time::Instant::now());
            let report = sweep(t, "").await;
            let cpu = cpu_time() - cpu;
            println!(
                "{:?}, {name}: {} µs of CPU time per row (including the fakes), {} ms in total",
                t.backend, cpu.as_micros() / ROWS as u128, wall.elapsed().as_millis()
            );
            assert_eq!((&report["stillGenerating"], &report["errors"]), (&json!(ROWS), &json!([])));
            let github = t.github.take_calls();
            assert!(github.len() <= calls_max, "{github:#?}");
            let paid = github.iter().filter(|call| call.status != Some(304)).count();
            assert!(paid <= quota_max, "{github:#?}");
            let agent = t.agent.calls();
            assert_eq!(agent.len(), ROWS.div_ceil(99));
            assert!(agent.iter().all(|call| call.matches("ids=").count() <= 99));
        }
        expect_nothing_written(t, "").await;
    }
}
