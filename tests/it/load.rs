//! Many clients, slow clients, large bodies, a burst: little memory, and GitHub's deliveries in time.
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

/// What the process may have at most, in KiB.
const PEAK_KIB_MAX: u64 = 128 << 10;

/// GitHub waits for so long.
const GITHUB_WAITS: Duration = Duration::from_secs(10);

/// A dawdling client is sent away after ten seconds; this much later on a busy machine.
const DAWDLERS_GONE: Duration = Duration::from_secs(25);

/// Sockets that this process and the server may have: both ends of each are ours.
const FILES_MAX: &str = "16384";

async fn serving() -> (tempfile::TempDir, FakeGithub, Serve, Delivery) {
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

/// Delivers it under a GUID, and says how long the answer took.
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

/// A connection on which so much of a request was said.
async fn dawdler(address: &str, said: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(said).await.unwrap();
    stream
}

/// Until the server closes it; what it answered.
async fn sent_away(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A thousand clients that say nothing, half their headers or half their body, while large bodies come
/// in, hold up neither the health check nor a delivery, and are sent away.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_requests_and_large_bodies_hold_up_nobody() {
    let (_dir, _github, server, push) = serving().await;
    let (client, address) = (client(), server.address());
    let began = Instant::now();
    let half_body = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{";
    let half_form = "POST /sign-in HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 100\r\n\r\ntoken=";
    let half_headers = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nx-github-";
    let mut dawdlers = Vec::new();
    for said in ["", half_headers, half_body, half_form] {
        let many = stream::iter(0..250).map(|_| dawdler(address, said.as_bytes()));
        dawdlers.push(many.buffer_unordered(50).collect::<Vec<_>>().await);
    }
    // The largest body that GitHub sends, as a push that touches nothing of ours.
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
            // A connection that breaks while it is being written to was refused, too.
            request
                .send()
                .await
                .map_or(503, |answer| answer.status().as_u16())
        }
    });
    let meanwhile = async {
        let mut slowest = Duration::ZERO;
        for n in 0..50 {
            let (status, took) = deliver(&client, &server, &push, &format!("small-{n}")).await;
            assert_eq!(status, Some(202));
            slowest = slowest.max(took).max(health(&client, &server.url).await);
        }
        slowest
    };
    let (statuses, slowest) = tokio::join!(futures_util::future::join_all(larges), meanwhile);
    println!(
        "1,000 half requests, large bodies {statuses:?}: slowest answer {slowest:?}, peak {} KiB",
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
        "half their headers",
        "half their body",
        "half a form",
    ];
    for (kind, streams) in kinds.iter().zip(dawdlers) {
        let gone = futures_util::future::join_all(streams.into_iter().map(sent_away));
        let left = DAWDLERS_GONE.saturating_sub(began.elapsed());
        let answers = tokio::time::timeout(left, gone).await;
        let answers = answers
            .unwrap_or_else(|_| panic!("{kind}: still connected after {:?}", began.elapsed()));
        println!(
            "{kind}: gone after {:?}, told {:?}",
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

/// Bodies that nobody has signed yet, each as long as is read without a queue, take little memory
/// however many come at once, and hold up no delivery.
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
        // What is not read is not taken, either.
        let _ = tokio::time::timeout(GITHUB_WAITS / 2, stream.write_all(said)).await;
        stream
    }));
    let meanwhile = async {
        let mut slowest = Duration::ZERO;
        for n in 0..50 {
            let (status, took) = deliver(&client, &server, &push, &format!("small-{n}")).await;
            assert_eq!(status, Some(202));
            slowest = slowest.max(took);
        }
        slowest
    };
    let (streams, slowest) = tokio::join!(many, meanwhile);
    println!(
        "{} bodies of 900 kB: slowest answer {slowest:?}, peak {} KiB",
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

/// A client that asks and never reads the answers is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_sent_away() {
    const ANSWERS_UNREAD_MAX: Duration = Duration::from_secs(60);
    let (_dir, _github, server, _push) = serving().await;
    let idle = server.open_files();
    let asks = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000_000);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // Questions are no longer read once their answers find no room.
    let stuck = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&asks)).await;
    assert!(stuck.is_err(), "there was room for all answers");
    assert!(server.open_files() > idle);
    let began = Instant::now();
    while server.open_files() > idle {
        assert!(began.elapsed() < ANSWERS_UNREAD_MAX, "still connected");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("cut off after {:?}", began.elapsed());
}

/// More clients than there are connections wait outside; the server's own files are not used up.
#[tokio::test(flavor = "multi_thread")]
async fn connections_have_a_limit() {
    const CONNECTIONS_MAX: usize = 2048;
    let (_dir, _github, server, _push) = serving().await;
    let address = server.address();
    let idle = server.open_files();
    let many = stream::iter(0..CONNECTIONS_MAX + 300)
        .map(|_| dawdler(address, b"GET /healthz HTTP/1.1\r\n"))
        .buffer_unordered(50)
        .collect::<Vec<_>>();
    let most = async {
        let (mut most, began) = (0, Instant::now());
        while most < CONNECTIONS_MAX && began.elapsed() < DAWDLERS_GONE {
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
    assert_eq!(most, CONNECTIONS_MAX);
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
