//! The commands for a running server: what they print, on what they exit with which code.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncBufReadExt as _;

use crate::cli::{ended, expect, program};
use crate::support::fake_github;
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::scenario::{ADMIN_TOKEN, Backend, Scenario, TRUNCATED, Video};

/// A command against the server of a scenario, or against a proxy in front of it.
fn client(t: &Scenario, url: &str, args: &[&str]) -> tokio::process::Command {
    let mut command = program(t.data_dir(), args);
    command.args(["--url", url]).env("ADMIN_TOKEN", ADMIN_TOKEN);
    let mut command = tokio::process::Command::from(command);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn ask(t: &Scenario, args: &[&str]) -> (Option<i32>, String) {
    ended(&client(t, &t.url, args).output().await.unwrap())
}

/// A video whose row exists, pushed and processed.
async fn ingested(t: &Scenario, video: Video) -> Video {
    t.row(&video).await;
    t.push(&video).await;
    t.work().await;
    video
}

#[tokio::test]
async fn a_list_in_a_pipe_has_one_line_for_each_video() {
    let t = Scenario::begin(Backend::Embedded).await;
    let failed = ingested(&t, Video::with(TRUNCATED)).await;
    let ready = ingested(&t, Video::good()).await;
    let waiting = Video::good();
    t.row(&waiting).await;
    let (code, text) = ask(&t, &["videos", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "VIDEO",
            "STATE",
            "CODE",
            "CHANGED",
            "NEXT_ATTEMPT",
            "LESSON",
            "DETAILS"
        ]
    );
    let mut found: Vec<[&str; 3]> = lines[1..]
        .iter()
        .map(|line| [line[0], line[1], line[2]])
        .collect();
    found.sort_unstable();
    let ids = [failed.id(), ready.id(), waiting.id()];
    let mut expected = vec![
        [ids[0].as_str(), "failed", "truncated"],
        [&ids[1], "ready", "-"],
        [&ids[2], "generating", "-"],
    ];
    expected.sort_unstable();
    assert_eq!(found, expected, "{text}");

    for (filter, expected) in [
        (&["--code", "truncated"][..], Some(&failed)),
        (
            &["--lesson", &ready.key.lesson_id.to_string()],
            Some(&ready),
        ),
        (&["--since", "1h", "--state", "ready"], Some(&ready)),
        (&["--until", "2020-01-01"], None),
        (&["--commit", &t.github.head().to_string()], Some(&ready)),
    ] {
        let (code, text) = ask(&t, &[&["videos", "list"], filter].concat()).await;
        assert_eq!(code, Some(0), "{text}");
        let ids: Vec<&str> = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split(' ').next())
            .collect();
        let expected: Vec<String> = expected.iter().map(|video| video.id()).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    t.finish().await;
}

#[tokio::test]
async fn a_video_is_explained_before_its_facts() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = ingested(&t, Video::with(TRUNCATED)).await;
    let (code, text) = ask(&t, &["videos", "show", &video.mp4_path()]).await;
    assert_eq!(code, Some(0), "{text}");
    let detail = t.video(&video).await;
    let words: Vec<&str> = detail["explanation"]
        .as_str()
        .unwrap()
        .split_whitespace()
        .collect();
    let shown: Vec<&str> = text.split_whitespace().take(words.len()).collect();
    assert_eq!(shown, words, "{text}");
    expect(&text, &["what to do    ", "attempts      1", "TIME (UTC)"]);
    let message = detail["message"].as_str().unwrap();
    let shown: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(
        shown.join(" ").matches(message).count(),
        2,
        "once in the explanation and once in the timeline:\n{text}"
    );

    let good = ingested(&t, Video::good()).await;
    let (_, text) = ask(&t, &["videos", "show", &good.id()]).await;
    let parts = [
        "Measured:",
        "12522 bytes (12.5 kB)",
        "Stated by the JSON file:",
        "generated_at",
    ];
    expect(&text, &parts);

    let (code, text) = ask(
        &t,
        &[
            "videos",
            "show",
            &video.id(),
            "--lesson",
            &Video::good().id(),
        ],
    )
    .await;
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["has no video"]);
    t.finish().await;
}

#[tokio::test]
async fn failed_videos_are_retried_together() {
    let t = Scenario::begin(Backend::Embedded).await;
    for _ in 0..2 {
        ingested(&t, Video::with(TRUNCATED)).await;
    }
    let generating = Video::good();
    t.row(&generating).await;
    for (args, expected) in [
        (
            &["--failed", "--code", "no_row"][..],
            "No failed video matches",
        ),
        (&["--failed", "--code", "truncated"], "2 videos were queued"),
        (&["--failed"], "No failed video matches"),
    ] {
        let (code, text) = ask(&t, &[&["videos", "retry"], args].concat()).await;
        assert_eq!(code, Some(0), "{text}");
        expect(&text, &[expected]);
    }
    let (code, text) = ask(&t, &["videos", "retry", &generating.id()]).await;
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["still being generated"]);
    t.finish().await;
}

/// The lines that a command prints while it runs.
struct Lines(tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>);

impl Lines {
    fn of(child: &mut tokio::process::Child) -> Self {
        let out = tokio::io::BufReader::new(child.stdout.take().unwrap());
        Self(out.lines())
    }

    async fn next(&mut self) -> String {
        let next = tokio::time::timeout(Duration::from_secs(20), self.0.next_line());
        next.await.unwrap().unwrap().expect("the command has ended")
    }
}

#[tokio::test]
async fn a_watch_ends_when_its_videos_are_ready() {
    let t = Scenario::begin(Backend::Embedded).await;
    let proxy = FaultProxy::before(&t.url);
    let video = Video::good();
    t.row(&video).await;
    // The first connection fails as it does while the server behind a proxy restarts.
    proxy.fault(|_, path| path == "/api/events", Fault::Status(502));
    let id = video.id();
    let mut child = client(&t, &proxy.url, &["videos", "watch", &id])
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut child);
    let mut errors = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    expect(&lines.next().await, &[&id, "generating"]);
    let problem = errors.next_line().await.unwrap().unwrap();
    expect(&problem, &["502", "Reconnecting"]);
    assert!(proxy.clear_faults() > 0);
    expect(
        &errors.next_line().await.unwrap().unwrap(),
        &["responding again"],
    );
    t.push(&video).await;
    t.work().await;
    let mut last = lines.next().await;
    while !last.contains("ready") {
        last = lines.next().await;
    }
    expect(&last, &[&id, "12.5 kB, 0:02"]);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));

    let failed = ingested(&t, Video::with(TRUNCATED)).await;
    let (code, text) = ask(&t, &["videos", "watch", "--json", &id, &failed.id()]).await;
    assert_eq!(code, Some(1), "{text}");
    let changes: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        changes
            .iter()
            .map(|change| &change["state"])
            .collect::<Vec<_>>(),
        ["ready", "failed"]
    );
    t.finish().await;
}

#[tokio::test]
async fn a_watch_of_all_videos_shows_what_changes_until_ctrl_c() {
    let t = Scenario::begin(Backend::Embedded).await;
    let old = ingested(&t, Video::with(TRUNCATED)).await;
    t.later(Duration::from_secs(3600));
    ingested(&t, Video::good()).await;
    let mut child = client(&t, &t.url, &["videos", "watch"]).spawn().unwrap();
    let mut lines = Lines::of(&mut child);
    let mut errors = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    expect(&errors.next_line().await.unwrap().unwrap(), &["Ctrl-C"]);
    let failed = ingested(&t, Video::with(TRUNCATED)).await;
    let mut line = lines.next().await;
    while !line.contains("failed") {
        expect(&line, &[&failed.id()]);
        line = lines.next().await;
    }
    expect(&line, &[&failed.id(), "truncated: "]);
    // A failure that is only confirmed.
    t.ask(&format!("/api/videos/{}/retry", old.id())).await;
    expect(&lines.next().await, &[&old.id(), "queued"]);
    t.work().await;
    while !line.contains(&old.id()) || !line.contains("failed") {
        line = lines.next().await;
    }
    let pid = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    t.finish().await;
}

#[tokio::test]
async fn a_sweep_fails_only_for_videos_that_fail_in_it() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (code, text) = ask(&t, &["reconcile"]).await;
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &["Every video is ready; nothing is pending."]);

    let (good, bad) = (Video::good(), Video::with(TRUNCATED));
    for video in [&good, &bad] {
        t.row(video).await;
        t.commit(video);
    }
    let (code, text) = ask(&t, &["reconcile", "--dry-run"]).await;
    assert_eq!(code, Some(0), "{text}");
    expect(
        &text,
        &["2 video(s) would be ingested:", &good.id(), &bad.id()],
    );

    let mut child = client(&t, &t.url, &["reconcile", "--wait", "60s"])
        .spawn()
        .unwrap();
    let mut errors = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(errors.next_line().await.unwrap().unwrap(), "0 of 2 ready");
    t.work().await;
    let (code, text) = ended(&child.wait_with_output().await.unwrap());
    assert_eq!(code, Some(1), "{text}");
    expect(
        &text,
        &[
            "1 video(s) ready! Check your app.",
            "1 video(s) failed in this sweep.",
            &bad.id(),
        ],
    );

    let (code, text) = ask(&t, &["reconcile"]).await;
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &["1 video(s) failed earlier."]);
    let (_, text) = ask(&t, &["reconcile", "--video", &good.id()]).await;
    expect(&text, &["Nothing to do.", &good.id(), "ready"]);
    // Without its row and its files, a sweep has nothing to report about the failure.
    t.sql(&format!(
        "delete from lesson_assets where id = '{}'",
        bad.id()
    ))
    .await;
    t.github.commit(|commit| bad.remove(commit));
    let (_, text) = ask(&t, &["reconcile"]).await;
    expect(
        &text,
        &[
            "not every video is ready. Other states: failed.",
            "video-ingest status",
        ],
    );
    t.finish().await;
}

#[tokio::test]
async fn a_repeated_sweep_prints_changes_as_they_happen() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    t.row(&video).await;
    t.commit(&video);
    let mut child = client(&t, &t.url, &["reconcile", "--watch", "60s"])
        .spawn()
        .unwrap();
    let mut lines = Lines::of(&mut child);
    expect(&lines.next().await, &[&video.id(), "queued"]);
    t.work().await;
    expect(&lines.next().await, &[&video.id(), "ready"]);
    t.finish().await;
}

#[tokio::test]
async fn the_status_says_whether_something_needs_attention() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (code, text) = ask(&t, &["status"]).await;
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &["Nothing needs attention."]);

    ingested(&t, Video::with(TRUNCATED)).await;
    // The counts are cached for two seconds.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let (code, text) = ask(&t, &["status"]).await;
    assert_eq!(code, Some(1), "{text}");
    let parts = [
        "FAILED WITH",
        "truncated",
        "video-ingest videos list --code truncated",
        "1 failed",
    ];
    expect(&text, &parts);
    let (code, text) = ask(&t, &["status", "--json"]).await;
    assert_eq!(code, Some(1), "{text}");
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["counts"]["failed"], 1);
    t.finish().await;
}

#[tokio::test]
async fn deliveries_are_listed_with_those_that_were_refused() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    t.row(&video).await;
    let push = t.push(&video).await;
    let forged = push.signed("another secret than the server's");
    t.post("/webhooks/github", &forged, push.body().to_vec())
        .await;
    let (code, text) = ask(&t, &["webhook", "deliveries"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
    expect(
        &text,
        &["RECEIVED", "1 video(s)", "refused", "bad_signature"],
    );
    let (_, text) = ask(&t, &["webhook", "deliveries", "--json"]).await;
    let list: Value = serde_json::from_str(&text).unwrap();
    let guid = list["deliveries"][0]["delivery"].as_str().unwrap();
    let (code, text) = ask(&t, &["webhook", "deliveries", guid]).await;
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &[guid, &video.id()]);
    t.finish().await;
}

#[tokio::test]
async fn outages_and_wrong_addresses_say_what_to_do() {
    let mut t = Scenario::begin(Backend::Embedded).await;
    let proxy = FaultProxy::before(&t.url);
    for (fault, expected) in [
        (Fault::Status(502), "a proxy in front of the server"),
        (Fault::Status(308), "redirects to"),
        (Fault::Html, "is not a video-ingest server. Check --url."),
        (
            Fault::Status(404),
            "Start that server with ADMIN_TOKEN set, or check --url.",
        ),
    ] {
        proxy.fault(|_, _| true, fault);
        for args in [
            &["videos", "list"][..],
            &["videos", "watch"],
            &["reconcile"],
            &["status"],
        ] {
            let (code, text) = ended(&client(&t, &proxy.url, args).output().await.unwrap());
            assert_eq!(code, Some(1), "{text}");
            expect(&text, &[expected]);
        }
    }
    let (code, text) = ended(
        &client(&t, "https://host.invalid", &["status"])
            .output()
            .await
            .unwrap(),
    );
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["cannot be resolved", "--url"]);

    let down = fake_github::Fault::Status {
        code: 503,
        headers: Vec::new(),
        body: "".into(),
    };
    t.github.fault(|_| true, down);
    let (code, text) = ask(&t, &["reconcile"]).await;
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["Nothing was changed", "video-ingest doctor"]);
    t.github.clear_faults();
    t.expect_error("");
    t.finish().await;
}
