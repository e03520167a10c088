//! The log has one line per outcome, with stable field names.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde_json::Value;
use tracing_subscriber::layer::SubscriberExt as _;
use video_ingest::domain::signature::sign;
use video_ingest::telemetry::{json_lines, text_lines};

use crate::support::child::Serve;
use crate::support::fake_github::TestGithub;
use crate::support::scenario::{
    ADMIN_TOKEN, Backend, REPOSITORY, SECRET, Scenario, TRUNCATED, Video,
};

/// A buffer that several writers append to.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Captures what this thread logs from now on.
    pub fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let filter = tracing_subscriber::EnvFilter::new("video_ingest=info");
        let lines = tracing_subscriber::registry()
            .with(filter)
            .with(json_lines(move || writer.clone()));
        (log, tracing::subscriber::set_default(lines))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// `LEVEL message code attempt` of each line; every one names a delivery or a video of these.
    fn outcomes(&self, videos: &[&Video]) -> Vec<String> {
        let text = self.text();
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let known = |video: &&Video| line["video.id"] == video.id();
            assert!(
                line["delivery.id"].is_string() || videos.iter().any(known),
                "{line}"
            );
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            // The text after the colon is not stable.
            let message = text("message");
            let message = message.split(':').next().unwrap();
            format!(
                "{} {message} {} {}",
                text("level"),
                text("code"),
                line["attempt"]
            )
        };
        text.lines().map(line).collect()
    }
}

#[tokio::test]
async fn each_outcome_is_one_log_line() {
    let t = Scenario::begin(Backend::Supabase).await;
    let (good, bad, early) = (Video::good(), Video::with(TRUNCATED), Video::good());
    t.row(&good).await;
    t.row(&bad).await;
    let (log, _guard) = Log::begin();
    for video in [&good, &bad, &early] {
        t.push(video).await;
        t.work().await;
    }
    let outcomes = log.outcomes(&[&good, &bad, &early]);
    assert_eq!(
        outcomes,
        [
            "INFO delivery accepted - null",
            "INFO video ready - 1",
            "INFO delivery accepted - null",
            "WARN video failed truncated 1",
            "INFO delivery accepted - null",
            "INFO video waiting no_row 1",
        ]
    );
    t.finish().await;
}

#[tokio::test]
async fn a_database_error_is_logged_with_its_cause() {
    let t = Scenario::begin(Backend::Supabase).await;
    t.sql("alter table video_ingest.deliveries rename to gone")
        .await;
    let (log, _guard) = Log::begin();
    let answer = t.get("/api/deliveries").await;
    assert_eq!(answer.status, 503);
    let said = log.text();
    assert!(
        said.contains("relation \\\"video_ingest.deliveries\\\" does not exist"),
        "{said}"
    );
    assert!(!said.contains("postgres://"), "{said}");
}

#[tokio::test]
async fn a_value_cannot_forge_a_line_of_a_text_log() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    let forged = "\n2026-01-01T00:00:00Z ERROR forged";
    // A terminal's escape sequences, also as single characters, and an invisible change of direction.
    let kind = format!("pdf{forged}\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}");
    t.row_of(video.key, &kind).await;
    let log = Log::default();
    let writer = log.clone();
    let filter = tracing_subscriber::EnvFilter::new("video_ingest=info,it=info");
    let lines = tracing_subscriber::registry()
        .with(filter)
        .with(text_lines(move || writer.clone(), false));
    let guard = tracing::subscriber::set_default(lines);
    t.push(&video).await;
    t.work().await;
    // As a field that is formatted by `Display`, and one that is formatted by `Debug`.
    tracing::info!(shown = %forged, debugged = ?forged, plain = forged, "fields");
    drop(guard);
    let text = log.text();
    assert!(text.contains("is of kind 'pdf"), "{text}");
    for line in text.lines() {
        assert!(!line.starts_with("2026-01-01"), "{text}");
    }
    let raw = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2028}".contains(c);
    assert!(!text.contains(raw), "{text:?}");
    t.finish().await;
}

/// A server in embedded mode.
fn serve(data_dir: &std::path::Path, github: &TestGithub) -> Serve {
    let url = github.url();
    let settings = [
        ("GITHUB_API_URL", url.as_str()),
        ("GITHUB_REPOSITORY", REPOSITORY),
        ("GITHUB_WEBHOOK_SECRET", SECRET),
        ("ADMIN_TOKEN", ADMIN_TOKEN),
        ("RECONCILE_INTERVAL", "0"),
        ("WORKERS", "0"),
    ];
    Serve::start(data_dir, &settings)
}

/// The lines with this message, and the sum of a field over them.
fn summed(log: &str, message: &str, field: &str) -> (usize, u64) {
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines
        .filter(|line: &Value| line["message"] == message)
        .collect();
    let sum = lines.iter().filter_map(|line| line[field].as_u64()).sum();
    (lines.len(), sum)
}

/// Waits until the field's sum is `expected`. At most one line is logged per second; the first one is logged
/// at once and the last one up to two seconds later.
async fn expect_summed(server: &Serve, began: Instant, message: &str, field: &str, expected: u64) {
    loop {
        let log = server.log();
        let (lines, sum) = summed(&log, message, field);
        if sum == expected {
            let seconds = began.elapsed().as_secs() as usize;
            assert!(lines <= seconds + 2, "{lines} in {seconds} s: {log}");
            return;
        }
        assert!(sum < expected, "{sum} of {expected}: {log}");
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(30), "{sum}: {log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_in_a_loop_are_one_line_a_second() {
    const EACH: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let github = TestGithub::start(REPOSITORY).await;
    let mut server = serve(dir.path(), &github);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let began = Instant::now();
    let url = format!("{}/webhooks/github", server.url);
    let unsigned = || client.post(&url).body("{}").send();
    for _ in 0..EACH {
        assert_eq!(unsigned().await.unwrap().status(), 401);
        let signature = sign(&SecretString::from(SECRET), b"{");
        let malformed = client.post(&url).header("x-hub-signature-256", signature);
        assert_eq!(malformed.body("{").send().await.unwrap().status(), 400);
    }
    expect_summed(&server, began, "requests refused", "count", 2 * EACH).await;
    let log = server.log();
    // The secrets of the tests are not random.
    let about_secrets = log.matches("is easier to guess").count();
    assert_eq!(
        log.matches("\"WARN\"").count() - about_secrets,
        summed(&log, "requests refused", "").0
    );
    assert!(log.contains("bad_signature "), "{log}");
    let scraped = client.get(format!("{}/metrics", server.url)).send().await;
    let scraped = scraped.unwrap().text().await.unwrap();
    for reason in ["bad_signature", "malformed"] {
        let line = format!("video_ingest_refused_requests_total{{reason=\"{reason}\"}} {EACH}\n");
        assert!(scraped.contains(&line), "{scraped}");
    }
    // What was not reported yet is reported at shutdown.
    for _ in 0..10 {
        unsigned().await.unwrap();
    }
    server.signal("-TERM");
    tokio::task::block_in_place(|| server.child.wait().unwrap());
    expect_summed(&server, began, "requests refused", "count", 2 * EACH + 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_in_a_loop_without_a_database_are_one_line_a_second() {
    const EACH: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let github = TestGithub::start(REPOSITORY).await;
    let before = github.commit(|c| c.write("README.md", "videos, rendered"));
    github.commit(|c| Video::good().write(c));
    let push = github.push(before, github.head());
    let server = serve(dir.path(), &github);
    let file = dir.path().join("video-ingest.sqlite");
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await;
    let rename = sqlx::raw_sql("alter table deliveries rename to gone");
    rename.execute(&pool.unwrap()).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let began = Instant::now();
    for _ in 0..EACH {
        assert_eq!(server.deliver(&client, &push).await, Some(503));
    }
    let message = "failed to record deliveries";
    expect_summed(&server, began, message, "deliveries", EACH).await;
    let log = server.log();
    assert!(log.contains("no such table"), "{log}");
    assert!(
        log.lines().count() <= 10 + summed(&log, message, "").0,
        "{log}"
    );
}

#[tokio::test]
async fn sign_ins_and_sign_outs_are_logged() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (log, _guard) = Log::begin();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    let client = client.build().unwrap();
    let post = |path: &str| {
        let request = client.post(format!("{}{path}", t.url));
        request.header("origin", &t.url)
    };
    // Anybody can press this button, so it is only logged for a session.
    post("/sign-out").send().await.unwrap();
    assert_eq!(log.text(), "");
    let form = "application/x-www-form-urlencoded";
    let signed_in = post("/sign-in").header("content-type", form);
    let signed_in = signed_in.body(format!("token={ADMIN_TOKEN}")).send();
    let cookie = signed_in.await.unwrap().headers()["set-cookie"].clone();
    let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
    let signed_out = post("/sign-out").header("cookie", cookie).send().await;
    assert_eq!(signed_out.unwrap().status(), 303);
    let text = log.text();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let said = lines.iter().map(|line| (&line["level"], &line["message"]));
    let said: Vec<_> = said.collect();
    assert_eq!(said.len(), 2, "{text}");
    assert_eq!(said[0], (&"INFO".into(), &"operator signed in".into()));
    assert_eq!(said[1], (&"INFO".into(), &"operator signed out".into()));
    let session = cookie.split_once('=').unwrap().1;
    assert!(
        !text.contains(ADMIN_TOKEN) && !text.contains(session),
        "{text}"
    );
    t.finish().await;
}
