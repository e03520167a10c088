//! The webhook returns the documented response to each request, and records only signed pushes of videos.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde_json::json;
use video_ingest::domain::ids::GitSha;
use video_ingest::domain::signature;

use crate::scenario;
use crate::support::scenario::{ADMIN_TOKEN, Answer, Backend, SECRET, Scenario, Video};

const PUSH: &[u8] = include_bytes!("../../fixtures/webhooks/push_added.json");
const FORM: &[u8] = include_bytes!("../../fixtures/webhooks/push_form.body");
const PING: &[u8] = include_bytes!("../../fixtures/webhooks/ping.json");

/// The headers that GitHub sends.
fn headers(event: &str, content_type: &str, signature: String) -> Vec<(&'static str, String)> {
    vec![
        ("x-github-event", event.to_owned()),
        (
            "x-github-delivery",
            "72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned(),
        ),
        ("content-type", content_type.to_owned()),
        ("x-hub-signature-256", signature),
    ]
}

fn sign(body: &[u8]) -> String {
    signature::sign(&SecretString::from(SECRET), body)
}

async fn send(t: &Scenario, event: &str, content_type: &str, body: &[u8]) -> Answer {
    t.post(
        "/webhooks/github",
        &headers(event, content_type, sign(body)),
        body.to_vec(),
    )
    .await
}

scenario! {
    json_and_form_are_the_same_push(t) {
        let video = Video::good();
        let before = t.github.head();
        t.commit(&video);
        let push = t.github.push(before, t.github.head());
        for delivery in [push.clone(), push.clone().as_form()] {
            let answer = t.deliver(&delivery).await.expect_accepted();
            assert_eq!(answer.json, json!({
                "delivery": push.guid,
                "status": "accepted",
                "scan": false,
                "videos": [{"lesson_id": video.key.lesson_id, "video_id": video.key.video_id}],
                "ignored": [],
            }));
        }
        assert_eq!(t.get("/api/deliveries").await.json["deliveries"][0]["redeliveries"], 1);
    }

    pings_and_unrelated_pushes_write_nothing(t) {
        let nothing = t.counts().await;
        let pong = t.deliver(&t.github.ping()).await;
        assert_eq!((pong.status, pong.json), (200, json!({"status": "pong"})));
        let nonce = "0123456789abcdef0123456789abcdef";
        for (nonce, expected) in [
            (nonce, json!({"status": "pong", "proof": signature::proof(&SECRET.into(), nonce)})),
            (&nonce[1..], json!({"status": "pong"})),
            ("push payload of somebody to be signed", json!({"status": "pong"})),
        ] {
            let body = json!({"zen": "x", "nonce": nonce}).to_string();
            let pong = send(t, "ping", "application/json", body.as_bytes()).await;
            assert_eq!((pong.status, pong.json), (200, expected));
        }
        let head = t.github.head();
        let zeros = GitSha::from_bytes([0; 20]);
        t.github.commit(|c| c.write("docs/notes.md", "nothing of ours"));
        for delivery in [
            t.github.push(head, t.github.head()),
            t.github.push(head, zeros),
            t.github.push_to("refs/tags/v1", zeros, head),
            t.github.push_to("refs/heads/other", head, t.github.head()),
        ] {
            let answer = t.deliver(&delivery).await;
            assert_eq!((answer.status, &answer.json["status"]), (200, &json!("ignored")), "{:#}", answer.json);
            assert!(answer.json["reason"].as_str().is_some_and(|reason| reason.len() > 10));
        }
        let other = send(t, "issues", "application/json", b"{}").await;
        assert_eq!((other.status, &other.json["status"]), (200, &json!("ignored")));
        assert_eq!(t.counts().await, nothing);
    }

    ignored_files_have_a_reason(t) {
        let before = t.github.head();
        let long = format!("videos/{}.mp4", "x".repeat(10_000));
        t.github.commit(|c| c.write("videos/notes.json", "{}").write(&long, "x").write("videos/a/b.mp4", "x"));
        let answer = t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        let ignored = answer.json["ignored"].as_array().unwrap();
        assert_eq!(ignored.len(), 3, "{ignored:#?}");
        assert!(ignored.contains(&json!({
            "path": "videos/notes.json",
            "reason": "not <lesson_id>_<video_id>.mp4 or .json",
        })));
        assert!(answer.json.to_string().len() < 1500);
    }

    checks_run_in_the_order_size_signature_headers_body(t) {
        let nothing = t.counts().await;
        let big = vec![b' '; (25 << 20) + 1];
        send(t, "push", "application/json", &big).await.expect_problem(413, "payload_too_large");
        let unsigned = t.post("/webhooks/github", &[], b"{".to_vec()).await;
        unsigned.expect_problem(401, "bad_signature");
        let signed = [("x-hub-signature-256", sign(b"{"))];
        t.post("/webhooks/github", &signed, b"{".to_vec()).await.expect_problem(400, "malformed");
        send(t, "push", "text/plain", b"{").await.expect_problem(415, "unsupported_media_type");
        send(t, "push", "application/json", b"{").await.expect_problem(400, "malformed");
        send(t, "push", "application/x-www-form-urlencoded", b"a=b").await.expect_problem(400, "malformed");
        t.get("/webhooks/github").await.expect_problem(405, "method_not_allowed");
        t.get("/nowhere").await.expect_problem(404, "not_found");
        assert_eq!(t.counts().await, nothing);
    }

    /// GitHub signs the body, but not the header that says how to read it.
    a_signed_json_body_is_not_accepted_as_a_form(t) {
        let video = Video::good();
        let head = t.github.head();
        t.commit(&video);
        let forged = t.github.push(head, t.github.head()).as_form().body();
        let mut other = t.github.push_to("refs/heads/other", head, t.github.head());
        let nothing = t.counts().await;
        for text in [
            format!("&{}", std::str::from_utf8(&forged).unwrap()),
            format!("&{}&", std::str::from_utf8(&forged).unwrap()),
        ] {
            other.payload["commits"][0]["message"] = json!(text);
            let body = other.body();
            let as_json = send(t, "push", "application/json", &body).await;
            assert_eq!((as_json.status, &as_json.json["status"]), (200, &json!("ignored")));
            let as_form = send(t, "push", "application/x-www-form-urlencoded", &body).await;
            as_form.expect_problem(400, "malformed");
        }
        assert_eq!(t.counts().await, nothing);
    }

    a_redelivery_retries_rejected_videos(t) {
        let video = Video::with(b"<html>not a video</html>");
        t.row(&video).await;
        let push = t.push(&video).await;
        t.work().await;
        t.expect_reported(&video, "not_an_mp4").await;
        let blob = |call: &crate::support::fake_github::Call| call.path.contains("/git/blobs/");
        t.github.take_calls();
        // The same push with another GUID: nothing is new, and nothing is downloaded.
        let mut replay = push.clone();
        replay.guid = "another".to_owned();
        t.deliver(&replay).await.expect_accepted();
        t.work().await;
        assert_eq!(t.github.take_calls().iter().filter(|c| blob(c)).count(), 0);
        // *Redeliver*: both blobs are downloaded again.
        t.deliver(&push).await.expect_accepted();
        t.work().await;
        assert_eq!(t.github.take_calls().iter().filter(|c| blob(c)).count(), 2);
        t.expect_reported(&video, "not_an_mp4").await;
    }

    a_stalled_database_gives_a_503_within_two_seconds(t) {
        t.expect_error("failed to record");
        let blocked = t.block_database().await;
        let before = t.github.head();
        let video = Video::good();
        t.commit(&video);
        let push = t.github.push(before, t.github.head());
        let began = Instant::now();
        let answer = t.deliver(&push).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(answer.headers.contains_key("retry-after"));
        answer.expect_problem(503, "database_unavailable");
        assert_eq!(t.deliver(&t.github.ping()).await.status, 200);
        blocked.release().await;
        t.row(&video).await;
        t.deliver(&push).await.expect_accepted();
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_push_of_many_videos_is_answered_in_time(t) {
        const ANSWERED: Duration = Duration::from_secs(2);
        let before = t.github.head();
        t.github.commit(|c| c.write("README.md", "many videos"));
        let mut push = t.github.push(before, t.github.head());
        // As many as are requested one by one, and more.
        for (commits, scan) in [(2, false), (20, true)] {
            push.guid = format!("{commits} commits");
            push.payload["commits"] = (0..commits)
                .map(|_| (0..1000).map(|_| Video::good().mp4_path()).collect::<Vec<_>>())
                .map(|added| json!({"id": "1".repeat(40), "added": added, "modified": [], "removed": []}))
                .collect();
            for redelivered in [false, true] {
                let began = Instant::now();
                let answer = t.deliver(&push).await.expect_accepted();
                let took = began.elapsed();
                println!("{commits} commits, redelivered {redelivered}: {took:?}");
                assert!(took < ANSWERED, "{commits} commits: {took:?}");
                assert_eq!(answer.json["scan"], scan);
                let videos = if scan { 0 } else { 2000 };
                assert_eq!(answer.json["videos"].as_array().unwrap().len(), videos);
            }
        }
        // None of them is in the branch, and to find this out for each takes long.
        let schema = if t.backend == Backend::Embedded { "" } else { "video_ingest." };
        t.sql(&format!("delete from {schema}videos")).await;
    }

    a_merge_keeps_what_its_side_branch_deleted(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        let base = t.github.head();
        let again = video.rerendered(crate::support::scenario::SECOND);
        let main = t.commit(&again);
        t.github.force_to(base);
        let side = t.github.commit(|c| video.remove(c));
        t.github.force_to(main);
        t.github.commit(|c| c.merge(side));
        let push = t.github.push(base, t.github.head());
        let answer = t.deliver(&push).await.expect_accepted();
        assert_eq!(answer.json["scan"], true);
        t.work().await;
        t.expect_ready(&again).await;
    }

    the_api_requires_the_admin_token(t) {
        let video = Video::good();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let paths = [
            ("GET", "/api/videos".to_owned()),
            ("GET", format!("/api/videos/{}", video.id())),
            ("POST", format!("/api/videos/{}/retry", video.id())),
            ("GET", "/api/deliveries".to_owned()),
            ("POST", "/reconcile".to_owned()),
        ];
        let wrong = format!("{ADMIN_TOKEN}x");
        for (method, path) in &paths {
            for token in [None, Some(""), Some(wrong.as_str()), Some("Bearer")] {
                let mut request = client.request(method.parse().unwrap(), format!("{}{path}", t.url));
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                assert_eq!(request.send().await.unwrap().status(), 401, "{method} {path} {token:?}");
            }
        }
    }
}

/// Flips every bit of the signature and of a small body, and many bits of the other bodies.
#[tokio::test]
async fn a_flipped_bit_gives_a_401_and_records_nothing() {
    let t = Scenario::begin(Backend::Embedded).await;
    let nothing = t.counts().await;
    let small = &PUSH[..PUSH.len().min(1024)];
    let mut seed = fastrand::Rng::with_seed(20261120);
    for (name, body, every_bit) in [
        ("small", small, true),
        ("push", PUSH, false),
        ("form", FORM, false),
        ("ping", PING, false),
    ] {
        let good = sign(body);
        let bits: Vec<usize> = if every_bit {
            (0..body.len() * 8).collect()
        } else {
            (0..1000).map(|_| seed.usize(..body.len() * 8)).collect()
        };
        for bit in bits {
            let mut flipped = body.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let answer = t
                .post(
                    "/webhooks/github",
                    &headers("push", "application/json", good.clone()),
                    flipped,
                )
                .await;
            assert_eq!(answer.status, 401, "{name}: bit {bit}");
        }
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let printable = flipped.iter().all(|b| (32..127).contains(b));
            let Some(flipped) = String::from_utf8(flipped).ok().filter(|_| printable) else {
                continue;
            };
            let answer = t
                .post(
                    "/webhooks/github",
                    &headers("push", "application/json", flipped),
                    body.to_vec(),
                )
                .await;
            assert_eq!(answer.status, 401, "{name}: bit {bit} of the signature");
        }
    }
    assert_eq!(t.counts().await, nothing);
    t.finish().await;
}

/// While one large body is read, two more wait. Any further one is refused at once.
#[tokio::test]
async fn large_bodies_are_read_one_at_a_time() {
    /// Shorter than the time that a body waits for its turn.
    const AT_ONCE: Duration = Duration::from_secs(3);
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let t = Scenario::begin(Backend::Embedded).await;
    let address = t.url.strip_prefix("http://").unwrap();
    let mut held = Vec::new();
    let head = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n";
    for _ in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let big = vec![b' '; 2 << 20];
    // Three bodies are read or wait; more are refused. The server may not have read the headers of the three
    // above yet, hence the loop.
    let mut tries = 0;
    loop {
        let more = (0..6).map(|_| send(&t, "push", "application/json", &big));
        let more = more.map(|sent| tokio::time::timeout(AT_ONCE, sent));
        let answers = futures_util::future::join_all(more).await;
        let refused = answers.iter().flatten().filter(|a| a.status == 503);
        if refused.count() >= 3 {
            break;
        }
        tries += 1;
        assert!(tries < 5, "a fourth large body was never refused");
    }
    // Small bodies do not wait for large ones.
    assert_eq!(t.deliver(&t.github.ping()).await.status, 200);
    // A client that sends less than its Content-Length is disconnected.
    let mut answer = Vec::new();
    held[0].shutdown().await.unwrap();
    held[0].read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"));
    t.finish().await;
}
