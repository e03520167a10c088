//! With many clients, slow clients, large bodies and bursts, the server needs little memory and
//! acknowledges deliveries within GitHub's time limit.
//!
//! The burst is 1,000 deliveries; the long form, best with `--release`:
//!
//! ```text
//! LOAD_DELIVERIES=10000 cargo test --release --test it -- --nocapture load
//! ```

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use video_ingest::domain::signature;
use video_ingest::fake_github::{Delivery, FakeGithub};

use crate::support::child::Serve;
use crate::support::scenario::{ADMIN_TOKEN, REPOSITORY, SECRET, Video};

/// The highest peak memory of the process, in KiB.
pub const PEAK_KIB_MAX: u64 = 128 << 10;

/// How long GitHub waits for a response.
pub const GITHUB_WAITS: Duration = Duration::from_secs(10);

/// A slow client is disconnected after ten seconds, or within this time on a busy machine.
const SLOW_CLIENTS_GONE: Duration = Duration::from_secs(25);

/// The limit of open files for this process and for the server. Each connection is one in both.
const FILES_MAX: &str = "16384";

pub async fn serving() -> (tempfile::TempDir, FakeGithub, Serve, Delivery) {
    // The server inherits the limit.
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit")
        .args(["--pid", &own, &format!("--nofile={FILES_MAX}:{FILES_MAX}")])
        .status();
    assert!(
        raised.unwrap().success(),
        "1,000 clients need more than 1,024 open files"
    );
    let (dir, github) = (
        tempfile::tempdir().unwrap(),
        FakeGithub::start(REPOSITORY).await.unwrap(),
    );
    let before = github.commit(|c| c.write("README.md", "videos, rendered"));
    let video = Video::good();
    github.commit(|c| video.write(c));
    let push = github.push(before, github.head());
    let server = Serve::start(
        dir.path(),
        &[
            ("GITHUB_API_URL", &github.url()),
            ("GITHUB_REPOSITORY", REPOSITORY),
            ("GITHUB_WEBHOOK_SECRET", SECRET),
            ("ADMIN_TOKEN", ADMIN_TOKEN),
            ("RECONCILE_INTERVAL", "0"),
            ("RUST_LOG", "warn,video_ingest::cli=info"),
        ],
    );
    (dir, github, server, push)
}

/// Delivers the push with this GUID. Returns the status and the time until the response.
async fn deliver(
    client: &reqwest::Client,
    server: &Serve,
    push: &Delivery,
    guid: &str,
) -> (Option<u16>, Duration) {
    let mut delivery = push.clone();
    delivery.guid = guid.to_owned();
    let began = Instant::now();
    (server.deliver(client, &delivery).await, began.elapsed())
}

async fn health(client: &reqwest::Client, url: &str) -> Duration {
    let began = Instant::now();
    let answer = client.get(format!("{url}/healthz")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    began.elapsed()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A connection on which this part of a request was sent.
async fn slow_client(address: &str, said: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(said).await.unwrap();
    stream
}

/// Waits until the server closes the connection, and returns its response.
async fn until_disconnected(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A thousand clients send nothing, incomplete headers or incomplete bodies, while large bodies arrive. They
/// delay neither the health check nor a delivery, and are disconnected.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_incomplete_requests_and_large_bodies_delay_no_delivery() {
    let (_dir, _github, server, push) = serving().await;
    let (client, address) = (client(), server.address());
    let began = Instant::now();
    let half_body = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{";
    let half_form = "POST /sign-in HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 100\r\n\r\ntoken=";
    let half_headers = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nx-github-";
    let mut slow_clients = Vec::new();
    for said in ["", half_headers, half_body, half_form] {
        let many = stream::iter(0..250).map(|_| slow_client(address, said.as_bytes()));
        slow_clients.push(many.buffer_unordered(50).collect::<Vec<_>>().await);
    }
    // The largest body that GitHub sends, as a push to another branch.
    let mut large = push.payload.clone();
    large["commits"] = serde_json::json!([]);
    large["ref"] = "refs/heads/another".into();
    large["padding"] = "x".repeat((25 << 20) - 20_000).into();
    let large = bytes::Bytes::from(large.to_string());
    let signed = signature::sign(&SecretString::from(SECRET), &large);
    let larges = (0..6).map(|n| {
        let (client, url, body, signed) =
            (client.clone(), &server.url, large.clone(), signed.clone());
        async move {
            let request = client.post(format!("{url}/webhooks/github")).body(body);
            let request = request
                .header("content-type", "application/json")
                .header("x-github-event", "push")
                .header("x-github-delivery", format!("large-{n}"))
                .header("x-hub-signature-256", signed);
            // A connection that is closed while the body is sent was refused, too.
            request
                .send()
                .await
                .map_or(503, |answer| answer.status().as_u16())
        }
    });
    let deliveries = async {
        let mut slowest = Duration::ZERO;
        for n in 0..50 {
            let (status, took) = deliver(&client, &server, &push, &format!("small-{n}")).await;
            assert_eq!(status, Some(202));
            slowest = slowest.max(took).max(health(&client, &server.url).await);
        }
        slowest
    };
    let (statuses, slowest) = tokio::join!(futures_util::future::join_all(larges), deliveries);
    println!(
        "1,000 incomplete requests, large bodies {statuses:?}: slowest response {slowest:?}, peak {} KiB",
        server.peak_kib()
    );
    assert!(statuses.contains(&200), "{statuses:?}");
    assert!(
        statuses.iter().all(|status| [200, 503].contains(status)),
        "{statuses:?}"
    );
    assert!(slowest < GITHUB_WAITS, "{slowest:?}");
    let kinds = [
        "silent",
        "incomplete headers",
        "incomplete body",
        "incomplete form",
    ];
    for (kind, streams) in kinds.iter().zip(slow_clients) {
        let gone = futures_util::future::join_all(streams.into_iter().map(until_disconnected));
        let left = SLOW_CLIENTS_GONE.saturating_sub(began.elapsed());
        let answers = tokio::time::timeout(left, gone).await;
        let answers = answers
            .unwrap_or_else(|_| panic!("{kind}: still connected after {:?}", began.elapsed()));
        println!(
            "{kind}: disconnected after {:?}, response {:?}",
            began.elapsed(),
            answers[0].lines().next()
        );
    }
    health(&client, &server.url).await;
    assert!(
        server.peak_kib() < PEAK_KIB_MAX,
        "{} KiB",
        server.peak_kib()
    );
}

/// GitHub signs everything that users with write access push. Three bodies of nearly the maximum size take
/// little memory, and other deliveries are acknowledged at the same time.
async fn large_signed_bodies_take_little_memory(commits: serde_json::Value, form: bool) {
    let (_dir, _github, server, push) = serving().await;
    let client = client();
    let mut large = push.clone();
    large.payload["commits"] = commits;
    if form {
        large = large.as_form();
    }
    let (body, headers) = (large.body(), large.signed(SECRET));
    assert!(body.len() > 15 << 20, "{} bytes", body.len());
    let larges = async {
        for _ in 0..3 {
            let mut request = client.post(format!("{}/webhooks/github", server.url));
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            let response = request.body(body.clone()).send().await.unwrap();
            assert_eq!(response.status(), 202);
            let answer: serde_json::Value = response.json().await.unwrap();
            assert_eq!(answer["scan"], true);
            assert_eq!(answer["videos"], serde_json::json!([]));
        }
    };
    let smalls = async {
        let mut slowest = Duration::ZERO;
        for n in 0..20 {
            let (status, took) = deliver(&client, &server, &push, &format!("small-{n}")).await;
            assert_eq!(status, Some(202));
            slowest = slowest.max(took);
        }
        slowest
    };
    let ((), slowest) = tokio::join!(larges, smalls);
    println!(
        "3 bodies of {} KiB: slowest response {slowest:?}, peak {} KiB, now {} KiB",
        body.len() >> 10,
        server.peak_kib(),
        server.resident_kib()
    );
    assert!(slowest < GITHUB_WAITS, "{slowest:?}");
    // The peak is within the limit, so the rest after it is, too.
    assert!(
        server.peak_kib() < PEAK_KIB_MAX,
        "{} KiB",
        server.peak_kib()
    );
}

/// 280 commits, each with 1,000 new videos.
fn many_videos() -> serde_json::Value {
    let commits = (0..280).map(|_| {
        let id = uuid::Uuid::new_v4;
        let added = (0..1000).map(|_| format!("videos/{}_{}.mp4", id(), id()));
        let added: Vec<_> = added.collect();
        serde_json::json!({"id": "1".repeat(40), "added": added, "modified": [], "removed": []})
    });
    commits.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_280_000_videos_take_little_memory() {
    large_signed_bodies_take_little_memory(many_videos(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_280_000_videos_take_little_memory() {
    large_signed_bodies_take_little_memory(many_videos(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_millions_of_empty_commits_take_little_memory() {
    let commits = vec![serde_json::json!({}); 8_000_000];
    large_signed_bodies_take_little_memory(commits.into(), false).await;
}

/// Many simultaneous unfinished bodies, each just small enough to be read without a queue, take little
/// memory and delay no delivery.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_take_little_memory() {
    const CLIENTS: usize = 400;
    let (_dir, _github, server, push) = serving().await;
    let (client, address) = (client(), server.address());
    let mut said = b"POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n".to_vec();
    said.resize(said.len() + 900_000, b' ');
    let said = &said;
    let many = futures_util::future::join_all((0..CLIENTS).map(async |_| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The write does not finish if the server does not read the body.
        let _ = tokio::time::timeout(GITHUB_WAITS / 2, stream.write_all(said)).await;
        stream
    }));
    let deliveries = async {
        let mut slowest = Duration::ZERO;
        for n in 0..50 {
            let (status, took) = deliver(&client, &server, &push, &format!("small-{n}")).await;
            assert_eq!(status, Some(202));
            slowest = slowest.max(took);
        }
        slowest
    };
    let (streams, slowest) = tokio::join!(many, deliveries);
    println!(
        "{} bodies of 900 kB: slowest response {slowest:?}, peak {} KiB",
        streams.len(),
        server.peak_kib()
    );
    assert!(slowest < GITHUB_WAITS, "{slowest:?}");
    assert!(
        server.peak_kib() < PEAK_KIB_MAX,
        "{} KiB",
        server.peak_kib()
    );
}

/// A client that sends requests and never reads the responses is disconnected.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_disconnected() {
    const ANSWERS_UNREAD_MAX: Duration = Duration::from_secs(60);
    let (_dir, _github, server, _push) = serving().await;
    // Opens the connections to the database.
    let mut first = TcpStream::connect(server.address()).await.unwrap();
    let ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    first.write_all(ask).await.unwrap();
    first.read_to_end(&mut Vec::new()).await.unwrap();
    let idle = server.open_files();
    let asks = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000_000);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // The server stops reading requests when the buffers for its responses are full.
    let stuck = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&asks)).await;
    assert!(
        stuck.is_err(),
        "the buffers were large enough for all responses"
    );
    assert!(server.open_files() > idle);
    let began = Instant::now();
    while server.open_files() > idle {
        assert!(began.elapsed() < ANSWERS_UNREAD_MAX, "still connected");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("disconnected after {:?}", began.elapsed());
}

/// Clients beyond the limit wait for a connection, so that the server does not run out of open files.
#[tokio::test(flavor = "multi_thread")]
async fn connections_have_a_limit() {
    const CONNECTIONS_MAX: usize = 1024;
    const CLOSING_MAX: usize = 256;
    let (_dir, _github, server, _push) = serving().await;
    let address = server.address();
    let idle = server.open_files();
    let many = stream::iter(0..CONNECTIONS_MAX + 300)
        .map(|_| slow_client(address, b"GET /healthz HTTP/1.1\r\n"))
        .buffer_unordered(50)
        .collect::<Vec<_>>();
    let most = async {
        let (mut most, began) = (0, Instant::now());
        while most < CONNECTIONS_MAX && began.elapsed() < SLOW_CLIENTS_GONE {
            most = most.max(server.open_files() - idle);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    };
    let (streams, most) = tokio::join!(many, most);
    println!(
        "{} clients: at most {most} connections, {} KiB",
        streams.len(),
        server.peak_kib()
    );
    // A few are being closed.
    assert!((CONNECTIONS_MAX..CONNECTIONS_MAX + CLOSING_MAX).contains(&most));
    assert!(
        server.peak_kib() < PEAK_KIB_MAX,
        "{} KiB",
        server.peak_kib()
    );
    drop(streams);
    health(&client(), &server.url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_deliveries_is_accepted_in_time() {
    #[expect(clippy::disallowed_methods, reason = "more of them in the long form")]
    let deliveries = std::env::var("LOAD_DELIVERIES").map_or(1000, |count| count.parse().unwrap());
    let (_dir, _github, server, push) = serving().await;
    let client = client();
    let began = Instant::now();
    let burst = stream::iter(0..deliveries).map(|n: usize| {
        let (client, server, push) = (&client, &server, &push);
        async move { deliver(client, server, push, &format!("burst-{n}")).await }
    });
    let answers: Vec<_> = burst.buffer_unordered(100).collect().await;
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap();
    println!(
        "{deliveries} deliveries in {:?}: slowest {slowest:?}, peak {} KiB",
        began.elapsed(),
        server.peak_kib()
    );
    assert!(answers.iter().all(|(status, _)| *status == Some(202)));
    assert!(slowest < GITHUB_WAITS, "{slowest:?}");
    assert!(
        server.peak_kib() < PEAK_KIB_MAX,
        "{} KiB",
        server.peak_kib()
    );
}

/// A captured delivery that requires a scan is replayed with a new GUID each time.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_scans_delay_no_video() {
    const REPLAYS: usize = 5000;
    const DELAY_MAX: Duration = Duration::from_secs(10);
    let (_dir, github, server, push) = serving().await;
    let client = client();
    let mut captured = push.clone();
    captured.payload["commits"] = serde_json::json!([]);
    let replays = stream::iter(0..REPLAYS).map(|n| {
        let (client, server, captured) = (&client, &server, &captured);
        async move { deliver(client, server, captured, &format!("replay-{n}")).await }
    });
    let replays = replays.buffer_unordered(50).collect::<Vec<_>>();
    let genuine = async {
        // In the middle of the replays.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (video, before) = (Video::good(), github.head());
        github.commit(|c| video.write(c));
        let pushed = Instant::now();
        let push = github.push(before, github.head());
        assert_eq!(server.deliver(&client, &push).await, Some(202));
        let url = format!("{}/api/videos/{}", server.url, video.id());
        loop {
            let shown = client.get(&url).bearer_auth(ADMIN_TOKEN).send().await;
            let shown: serde_json::Value = shown.unwrap().json().await.unwrap();
            if shown["state"] == "ready" || pushed.elapsed() > DELAY_MAX {
                return (pushed.elapsed(), shown);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (answers, (delay, shown)) = tokio::join!(replays, genuine);
    println!(
        "{REPLAYS} replayed scans; a video that was pushed during them was ready after {delay:?}"
    );
    assert!(answers.iter().all(|(status, _)| *status == Some(202)));
    assert_eq!(shown["state"], "ready", "after {delay:?}: {shown:#}");
}
