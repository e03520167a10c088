//! The API explains what is wrong with the whole and why a video is not ready.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;
use video_ingest::domain::ids::GitSha;
use video_ingest::pipeline::sweep::SweepOptions;

use crate::scenario;
use crate::support::fake_github::Fault;
use crate::support::scenario::{AppRow, SECOND, SECRET, Scenario, TRUNCATED, Video};

const HOUR: Duration = Duration::from_secs(3600);

async fn status(t: &Scenario) -> Value {
    // The counts are cached for two seconds.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    t.get("/api/status").await.json
}

/// The text of a problem of the whole.
fn problem<'a>(status: &'a Value, id: &str) -> &'a str {
    let problems = status["problems"].as_array().unwrap();
    let found = problems.iter().find(|problem| problem["id"] == id);
    found.unwrap_or_else(|| panic!("no {id}: {status:#}"))["text"]
        .as_str()
        .unwrap()
}

fn expect_text(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

async fn sweep(t: &Scenario) {
    let _ = t.worker.sweep.run(&SweepOptions::default()).await;
}

scenario! {
    refused_deliveries_are_a_problem_until_a_push_is_accepted(t) {
        for _ in 0..3 {
            let headers = [("x-github-event", "push".to_owned())];
            t.post("/webhooks/github", &headers, b"{}".to_vec()).await.expect_problem(401, "bad_signature");
        }
        let refused = t.get("/api/deliveries").await.json["refused"].take();
        let only = &refused.as_array().unwrap()[..];
        assert_eq!(only.len(), 1, "{refused:#}");
        assert_eq!((&only[0]["status"], &only[0]["reason"], &only[0]["count"]), (&json!("refused"), &json!("bad_signature"), &json!(3)));
        let now = status(t).await;
        expect_text(problem(&now, "deliveries.refused"), &["3 deliveries were refused", "GITHUB_WEBHOOK_SECRET", "video-ingest webhook install --url"]);
        assert_eq!(now["problems"][0]["mark"], "failed");
        let video = Video::good();
        t.row(&video).await;
        t.later(Duration::from_secs(1));
        t.push(&video).await;
        t.work().await;
        assert_eq!(status(t).await["problems"], json!([]));
    }

    requests_of_strangers_are_shown_and_are_no_problem(t) {
        t.post("/webhooks/github", &[], b"x".to_vec()).await.expect_problem(401, "bad_signature");
        let refused = t.get("/api/deliveries").await.json["refused"].take();
        assert_eq!((&refused[0]["status"], &refused[0]["reason"]), (&json!("refused"), &json!("bad_signature")));
        assert_eq!(status(t).await["problems"], json!([]));
    }

    secrets_in_names_that_were_pushed_are_not_shown(t) {
        let head = t.github.head();
        t.github.commit(|c| c.write(format!("videos/{SECRET}.txt"), "x"));
        let pushed = t.deliver(&t.github.push(head, t.github.head())).await;
        let branch = format!("refs/heads/{SECRET}");
        let ignored = t.deliver(&t.github.push_to(&branch, head, head)).await;
        let shown = [pushed.json, ignored.json, t.get("/api/deliveries").await.json, status(t).await];
        for text in shown.map(|json| json.to_string()) {
            assert!(!text.contains(SECRET), "{text}");
        }
        t.work().await;
    }

    pushes_of_a_renamed_repository_are_a_problem(t) {
        let head = t.github.head();
        let mut delivery = t.github.push(GitSha::from_bytes([0; 20]), head);
        delivery.payload["repository"]["full_name"] = json!("acme/renamed");
        let answer = t.deliver(&delivery).await;
        assert_eq!(answer.json["status"], "ignored", "{:#}", answer.json);
        expect_text(problem(&status(t).await, "deliveries.ignored"), &["renamed", "set GITHUB_REPOSITORY"]);
    }

    pushes_to_another_branch_are_a_problem_if_there_are_no_others(t) {
        let head = t.github.head();
        // Without videos.
        let before = t.github.head();
        t.github.commit(|c| c.write("docs/notes.md", "x"));
        t.deliver(&t.github.push_to("refs/heads/docs", before, t.github.head())).await;
        assert_eq!(status(t).await["problems"], json!([]));
        t.commit(&Video::good());
        let pushed = t.github.head();
        t.deliver(&t.github.push_to("refs/heads/release", head, pushed)).await;
        expect_text(problem(&status(t).await, "deliveries.ignored"), &["branch release", "GITHUB_BRANCH"]);
        let video = Video::good();
        t.row(&video).await;
        t.later(Duration::from_secs(1));
        t.push(&video).await;
        t.work().await;
        t.deliver(&t.github.push_to("refs/heads/release", head, pushed)).await;
        assert_eq!(status(t).await["problems"], json!([]));
    }

    videos_in_another_folder_or_under_another_name_are_a_problem(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(format!("renders/{}", video.mp4_path().rsplit('/').next().unwrap()), video.mp4.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await;
        let now = status(t).await;
        expect_text(problem(&now, "deliveries.ignored"), &["renders/", "GITHUB_VIDEOS_DIR"]);
        expect_text(t.video(&video).await["explanation"].as_str().unwrap(), &["The server may not see what was pushed", "GITHUB_VIDEOS_DIR"]);
        t.later(48 * HOUR);
        let before = t.github.head();
        t.github.commit(|c| c.write(format!("videos/{}.mp4", video.id()), video.mp4.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        let now = status(t).await;
        expect_text(problem(&now, "deliveries.ignored"), &["1 delivery was ignored in part", &video.id(), "<lesson_id>_<video_id>.mp4"]);
        t.work().await;
    }

    a_queued_video_without_a_worker_says_so(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        expect_text(t.video(&video).await["explanation"].as_str().unwrap(), &["the next free worker processes it"]);
        t.later(Duration::from_secs(61));
        expect_text(problem(&status(t).await, "server.workers"), &["WORKERS"]);
        expect_text(t.video(&video).await["explanation"].as_str().unwrap(), &["no worker has taken it"]);
        t.work().await;
    }

    a_video_whose_wait_ends_is_counted_as_failed(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(video.json_path(), video.json.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await;
        t.work().await;
        let waiting = t.video(&video).await;
        assert_eq!((&waiting["state"], &waiting["next_attempt_at"]), (&json!("waiting"), &Value::Null));
        t.later(7 * HOUR);
        t.work().await;
        assert_eq!(t.video(&video).await["code"], "video_missing");
        assert_eq!(status(t).await["day"]["failed"], 1);
    }

    a_video_that_a_delivery_named_is_announced(t) {
        let video = Video::good();
        t.row(&video).await;
        t.github.fault(|_| true, Fault::Status { code: 401, headers: vec![], body: String::new() });
        t.push(&video).await;
        t.work().await;
        assert_eq!(t.video(&video).await["code"], "github_denied");
        t.github.clear_faults();
        sweep(t).await;
        t.work().await;
        assert_eq!(t.video(&video).await["state"], "ready");
        assert_eq!(status(t).await["problems"], json!([]));
    }

    failing_sweeps_are_a_problem(t) {
        t.github.fault(|_| true, Fault::Status { code: 401, headers: vec![], body: String::new() });
        sweep(t).await;
        let first = status(t).await;
        expect_text(problem(&first, "sweeps.failing"), &["Sweeps have failed since", "GITHUB_TOKEN"]);
        t.later(HOUR);
        sweep(t).await;
        assert_eq!(problem(&status(t).await, "sweeps.failing"), problem(&first, "sweeps.failing"));
        t.github.clear_faults();
        sweep(t).await;
        assert_eq!(status(t).await["problems"], json!([]));
    }

    videos_that_no_delivery_named_are_a_problem(t) {
        let video = Video::good();
        t.row(&video).await;
        t.commit(&video);
        sweep(t).await;
        t.work().await;
        expect_text(problem(&status(t).await, "deliveries.missing"), &["no record of a push", "1 video", "video-ingest doctor"]);
        let other = Video::good();
        t.row(&other).await;
        t.later(Duration::from_secs(1));
        t.push(&other).await;
        t.work().await;
        sweep(t).await;
        assert_eq!(status(t).await["problems"], json!([]));
    }

    a_video_that_is_tried_again_says_when_and_is_not_overdue(t) {
        let video = Video::good();
        t.row(&video).await;
        let unavailable = Fault::Status { code: 500, headers: vec![], body: String::new() };
        t.github.fault(|call| call.path.contains("/git/blobs/"), unavailable);
        t.push(&video).await;
        for _ in 0..4 {
            t.work().await;
            t.later(Duration::from_secs(400));
        }
        t.work().await;
        let shown = t.video(&video).await;
        let next = shown["next_attempt_at"].as_str().unwrap().to_owned();
        expect_text(shown["explanation"].as_str().unwrap(), &["The last attempt failed, and the next one starts at", &next[11..16]]);
        let now = status(t).await;
        assert_eq!((&now["backing_off"], &now["oldest_due_at"]), (&json!(1), &Value::Null));
        expect_text(problem(&now, "videos.retried"), &["1 video is being retried", "github_unavailable"]);
        assert_eq!(now["problems"].as_array().unwrap().len(), 1, "{now:#}");
        // Without a worker.
        t.later(2 * HOUR);
        expect_text(problem(&status(t).await, "server.workers"), &["WORKERS"]);
    }

    failures_are_grouped_and_retried_together(t) {
        let videos: Vec<Video> = (0..3).map(|_| Video::with(TRUNCATED)).collect();
        for video in &videos {
            t.row(video).await;
            t.push(video).await;
        }
        t.work().await;
        let now = status(t).await;
        let groups = now["failures"].as_array().unwrap();
        assert_eq!(groups.len(), 1, "{now:#}");
        assert_eq!((&groups[0]["code"], &groups[0]["class"], &groups[0]["count"]), (&json!("truncated"), &json!("invalid"), &json!(3)));
        assert!(groups[0]["advice"].as_str().unwrap().contains("push"));
        let retry = async |body: Value| t.send("/api/videos/retry", &body).await;
        for wrong in [json!({"state": "ready"}), json!({"state": "failed", "code": "soon"}), json!({"state": "failed", "codes": "truncated"}), json!([])] {
            retry(wrong).await.expect_problem(400, "malformed");
        }
        let none = retry(json!({"state": "failed", "code": "too_large"})).await;
        assert_eq!((none.status, none.json), (202, json!({"retried": 0})));
        let all = retry(json!({"state": "failed", "code": "truncated"})).await;
        assert_eq!((all.status, all.json), (202, json!({"retried": 3})));
        for video in &videos {
            assert_eq!(t.video(video).await["state"], "queued");
        }
    }

    a_failure_that_is_confirmed_is_not_a_change(t) {
        let video = Video::with(TRUNCATED);
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        let failed = t.video(&video).await;
        t.later(HOUR);
        t.ask(&format!("/api/videos/{}/retry", video.id())).await;
        t.work().await;
        let again = t.video(&video).await;
        assert_eq!((&again["state"], &again["updated_at"]), (&json!("failed"), &failed["updated_at"]));
        let other = video.rerendered(&TRUNCATED[..TRUNCATED.len() - 1]);
        t.push(&other).await;
        t.work().await;
        assert_ne!(t.video(&other).await["updated_at"], failed["updated_at"]);
    }

    a_video_that_is_checked_again_is_counted_once(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        for _ in 0..5 {
            t.ask(&format!("/api/videos/{}/retry", video.id())).await;
            t.work().await;
        }
        assert_eq!(status(t).await["day"]["ready"], 1);
        t.push(&video.rerendered(SECOND)).await;
        t.work().await;
        assert_eq!(status(t).await["day"]["ready"], 2);
    }

    a_generating_video_says_what_it_waits_for(t) {
        let video = Video::good();
        let conversation = Uuid::new_v4();
        let row = AppRow { age: HOUR, conversation: Some(conversation), ..AppRow::pending(video.key) };
        t.rows(&[row]).await;
        let before = t.video(&video).await;
        assert_eq!(before["generation"]["status"], "not_asked", "{before:#}");
        sweep(t).await;
        let shown = t.video(&video).await;
        assert_eq!(shown["conversation_id"], conversation.to_string());
        assert_eq!(shown["state"], "generating");
        assert!(shown["generation"]["checked_at"].is_string(), "{shown:#}");
        let created: jiff::Timestamp = shown["created_at"].as_str().unwrap().parse().unwrap();
        let deadline: jiff::Timestamp = shown["generation"]["deadline_at"].as_str().unwrap().parse().unwrap();
        assert_eq!(deadline.duration_since(created).as_hours(), 6);
        expect_text(shown["explanation"].as_str().unwrap(), &["Waiting since", "UTC", "without a push, the video fails"]);
        expect_text(shown["conversation_url"].as_str().unwrap(), &["/conversations/", &conversation.simple().to_string()]);
        assert_eq!(status(t).await["counts"]["generating"], 1);
    }

    an_overdue_row_is_known_since_it_was_inserted(t) {
        let video = Video::good();
        t.rows(&[AppRow { age: 7 * HOUR, ..AppRow::pending(video.key) }]).await;
        sweep(t).await;
        let shown = t.video(&video).await;
        assert_eq!((&shown["state"], &shown["code"]), (&json!("failed"), &json!("generation_timeout")));
        let at = |name: &str| shown[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        assert!(at("updated_at").duration_since(at("created_at")).as_hours() >= 7, "{shown:#}");
    }

    a_retry_keeps_the_reason_of_a_failed_generation(t) {
        let video = Video::good();
        t.rows(&[AppRow { age: 7 * HOUR, ..AppRow::pending(video.key) }]).await;
        sweep(t).await;
        let failed = t.video(&video).await;
        assert_eq!(failed["code"], "generation_timeout");
        assert_eq!(t.ask(&format!("/api/videos/{}/retry", video.id())).await.status, 202);
        t.work().await;
        let again = t.video(&video).await;
        for name in ["state", "code", "message", "updated_at"] {
            assert_eq!(again[name], failed[name], "{name}");
        }
    }

    videos_are_filtered_by_code_lesson_commit_and_time(t) {
        let (good, bad) = (Video::good(), Video::with(TRUNCATED));
        for video in [&good, &bad] {
            t.row(video).await;
            t.push(video).await;
            t.work().await;
        }
        let waiting = Video::good();
        t.row(&waiting).await;
        let ids = async |query: &str| -> Vec<String> {
            let answer = t.get(&format!("/api/videos?{query}")).await;
            let videos = answer.json["videos"].as_array().unwrap_or_else(|| panic!("{:#}", answer.json)).clone();
            videos.iter().map(|video| video["video_id"].as_str().unwrap().to_owned()).collect()
        };
        let (good_id, bad_id) = (good.id().to_string(), bad.id().to_string());
        assert_eq!(ids("").await.len(), 3);
        assert_eq!(ids("code=truncated").await, [&*bad_id]);
        assert_eq!(ids("code=truncated&state=ready").await, Vec::<String>::new());
        assert_eq!(ids("code=soon").await, Vec::<String>::new());
        assert_eq!(ids(&format!("q={}_", good.key.lesson_id)).await, [&*good_id]);
        let commit = t.video(&good).await["commit"].as_str().unwrap().to_owned();
        assert_eq!(ids(&format!("commit={}", &commit[..10])).await, [good_id]);
        assert_eq!(ids(&format!("commit={}", t.github.head())).await, [bad_id]);
        assert_eq!(ids("since=2020-01-01T00:00:00Z").await.len(), 3);
        assert_eq!(ids("until=2020-01-01T00:00:00Z").await.len(), 0);
        for wrong in ["since=yesterday", "commit=xyz"] {
            t.get(&format!("/api/videos?{wrong}")).await.expect_problem(400, "malformed");
        }
    }

    one_id_under_two_lessons_names_two_videos(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        let other = Video { key: video_ingest::domain::ids::VideoKey { lesson_id: Uuid::new_v4(), ..video.key }, ..Video::good() };
        t.push(&other).await;
        t.work().await;
        let path = |lesson: Uuid| format!("/api/videos/{}?lesson_id={lesson}", video.id());
        let states = [
            t.get(&path(video.key.lesson_id)).await.json["state"].take(),
            t.get(&path(other.key.lesson_id)).await.json["state"].take(),
        ];
        assert_eq!(states, [json!("ready"), json!("failed")]);
        t.get(&path(Uuid::new_v4())).await.expect_problem(404, "not_found");
    }

    a_delivery_has_its_own_address(t) {
        let video = Video::good();
        t.row(&video).await;
        let delivery = t.push(&video).await;
        let shown = t.get(&format!("/api/deliveries/{}", delivery.guid)).await;
        assert_eq!((shown.status, &shown.json["delivery"]), (200, &json!(delivery.guid)));
        t.get("/api/deliveries/unknown").await.expect_problem(404, "not_found");
        t.work().await;
    }
}

#[tokio::test]
async fn lesson_titles_are_shown_if_the_role_may_read_them() {
    let t = Scenario::begin(crate::support::scenario::Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    assert_eq!(t.video(&video).await["lesson_title"], Value::Null);
    let database = t.database.as_ref().unwrap();
    database.run_script("lesson_titles.sql");
    let title = t.video(&video).await["lesson_title"].take();
    let listed = t.get("/api/videos").await.json["videos"][0]["lesson_title"].take();
    assert!(title.is_string() && title == listed, "{title} {listed}");
    t.finish().await;
}
