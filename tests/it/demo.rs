//! The demo: its output, its videos that keep moving, and its link that signs in once.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{COOKIE, LOCATION, REFERRER_POLICY, SET_COOKIE};
use reqwest::redirect::Policy;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use video_ingest::http;

use crate::cli::{GOOD, KEY, commit_all, expect, program, run};
use crate::logs::Log;
use crate::support::scenario::{Backend, Scenario};

/// The times at the start of lines, in the order in which they were printed.
fn times(text: &str) -> Vec<f64> {
    let time = |line: &str| line.split_once(" s  ")?.0.trim().parse().ok();
    text.lines().filter_map(time).collect()
}

#[test]
fn its_times_never_decrease() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = run(dir.path(), &["demo", "--exit"]);
    assert_eq!(code, Some(0), "{text}");
    let times = times(&text);
    assert!(times.len() > 15, "{text}");
    assert!(times.is_sorted(), "{text}");
}

#[test]
fn a_video_without_json_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("artifacts");
    std::fs::create_dir_all(repo.join("videos")).unwrap();
    std::fs::write(repo.join(format!("videos/{KEY}.mp4")), GOOD).unwrap();
    commit_all(&repo);
    let (code, text) = run(dir.path(), &["demo", "--exit", "--repo", "artifacts"]);
    assert_eq!(code, Some(0), "{text}");
    expect(
        &text,
        &["warning: The branch has no JSON file for this video"],
    );
    assert!(!text.contains("in time"), "{text}");
}

/// A client that follows no redirects.
fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy();
    client.redirect(Policy::none()).build().unwrap()
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_page_moves_and_opens_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program(dir.path(), &["demo"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut demo = Running(child);
    let mut lines = lines.map(Result::unwrap);
    let link = lines.find(|line| line.contains("/sign-in?once="));
    let link = link.unwrap().trim().to_owned();
    let moving = lines.find(|line| line.contains(" s  generating  video "));
    let video = moving.unwrap().split("video ").nth(1).unwrap().to_owned();

    let answer = client().get(&link).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let cookie = answer.headers()[SET_COOKIE].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let page = link.split("/sign-in").next().unwrap();
    let page = client().get(page).header(COOKIE, cookie).send().await;
    let page = page.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.text().await.unwrap().contains(&video));
    let again = client().get(&link).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);

    let id = demo.0.id().to_string();
    let mut kill = std::process::Command::new("kill");
    assert!(kill.args(["-INT", &id]).status().unwrap().success());
    let code = tokio::task::block_in_place(|| demo.0.wait())
        .unwrap()
        .code();
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn a_sign_in_link_works_once_for_ten_minutes() {
    let (log, _guard) = Log::begin();
    let t = Scenario::begin(Backend::Embedded).await;
    let app = t.app(|_| {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    tokio::spawn(http::serve(listener, app.router, stop.clone()));
    let open = async |link: &str| {
        let answer = client().get(format!("{url}{link}")).send().await.unwrap();
        let headers = answer.headers();
        assert_eq!(headers[REFERRER_POLICY], "same-origin");
        let cookie = headers.get(SET_COOKIE).is_some();
        let to = headers.get(LOCATION).map(|to| to.to_str().unwrap());
        assert_eq!(cookie, to == Some("/"));
        answer.status().as_u16()
    };
    let now_ms = || t.clock.now_ms();

    let guess = format!("/sign-in?once={}", "0".repeat(32));
    assert_eq!(open(&guess).await, 401, "a normal server has no link");
    assert_eq!(open("/sign-in?once=").await, 401);
    let first = app.sign_in_link.issue(now_ms());
    let preview = client().head(format!("{url}{first}")).send().await.unwrap();
    assert!(preview.headers().get(SET_COOKIE).is_none());
    let link = app.sign_in_link.issue(now_ms());
    assert_eq!(link.len(), guess.len(), "128 bits");
    assert_eq!(open(&first).await, 401, "only the last one is valid");
    for wrong in [&guess, &link[..link.len() - 1], &format!("{link}0")] {
        assert_eq!(open(wrong).await, 401, "{wrong}");
    }
    assert_eq!(open(&link).await, 303, "wrong ones do not use it up");
    assert_eq!(open(&link).await, 401, "once");

    let (expired, fresh) = (Duration::from_secs(600), Duration::from_secs(599));
    for (wait, status) in [(expired, 401), (fresh, 303)] {
        let link = app.sign_in_link.issue(now_ms());
        t.later(wait);
        assert_eq!(open(&link).await, status, "{wait:?}");
    }
    let link = app.sign_in_link.issue(now_ms());
    t.earlier(Duration::from_secs(60));
    assert_eq!(open(&link).await, 401, "issued in the future");

    for link in [first, link] {
        let token = link.split('=').nth(1).unwrap();
        assert!(!log.text().contains(token), "{}", log.text());
    }
    stop.cancel();
    t.finish().await;
}
