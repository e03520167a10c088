//! Operator routes require the token, no secret is exposed, and a push cannot reach the data of another
//! user.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use secrecy::SecretString;
use serde_json::json;
use tokio::net::TcpListener;
use uuid::Uuid;
use video_ingest::domain::signature;

use crate::scenario;
use crate::support::child::Serve;
use crate::support::fake_github::TestGithub;
use crate::support::fake_openhands::{self, FakeOpenHands};
use crate::support::fake_storage::{self, FakeStorage, Op};
use crate::support::postgres::Postgres;
use crate::support::scenario::{
    ADMIN_TOKEN, Backend, GOOD, REPOSITORY, SECOND, SECRET, Scenario, Video, metadata,
};

/// The routes that require no token. All other routes are for the operator.
const OPEN: [&str; 8] = [
    "/webhooks/github",
    "/healthz",
    "/readyz",
    "/metrics",
    "/sign-in",
    "/sign-out",
    "/assets/page.css",
    "/assets/page.js",
];

/// Longer than any step takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every route in the source code, with a video's id, so that no new route can be forgotten here.
fn routes() -> Vec<String> {
    let source = include_str!("../../src/http/mod.rs")
        .split(".route(")
        .skip(1);
    let paths = source.filter_map(|rest| rest.split('"').nth(1));
    let paths: Vec<_> = paths
        .map(|path| path.replace("{video_id}", &Uuid::nil().to_string()))
        .collect();
    assert!(paths.len() >= 8, "{paths:?}");
    paths
}

async fn status(method: &str, url: &str, authorization: Option<&str>) -> u16 {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let mut request = client.request(method.parse().unwrap(), url);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.send().await.unwrap().status().as_u16()
}

/// Pages require a session cookie. Without one, they redirect to the sign-in page or return 403.
fn is_page(path: &str) -> bool {
    !path.starts_with("/api/") && path != "/reconcile"
}

fn refused(path: &str) -> &'static [u16] {
    if is_page(path) {
        &[303, 403, 405]
    } else {
        &[401, 405]
    }
}

#[tokio::test]
async fn every_operator_route_requires_the_token() {
    let t = Scenario::begin(Backend::Embedded).await;
    let right = format!("Bearer {ADMIN_TOKEN}");
    let wrong = [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some(ADMIN_TOKEN),
        Some("Bearer an-admin-token-for-test"),
        Some("Bearer an-admin-token-for-testsx"),
        Some("Bearer AN-ADMIN-TOKEN-FOR-TESTS"),
        Some("bearer\tan-admin-token-for-tests"),
        Some("Basic YW4tYWRtaW4tdG9rZW4tZm9yLXRlc3Rz"),
        Some("Bearer a webhook secret for tests"),
    ];
    let routes = routes();
    let guarded = || routes.iter().filter(|path| !OPEN.contains(&path.as_str()));
    let mut requests = Vec::new();
    for path in guarded() {
        for authorization in wrong {
            requests.push((path.clone(), authorization));
        }
        for query in ["token", "access_token"] {
            requests.push((format!("{path}?{query}={ADMIN_TOKEN}"), None));
        }
    }
    let requests = requests
        .iter()
        .flat_map(|request| [("GET", request), ("POST", request)]);
    let answers = requests.map(async |(method, (path, authorization))| {
        let url = format!("{}{path}", t.url);
        let status = status(method, &url, *authorization).await;
        assert!(
            refused(path.split('?').next().unwrap()).contains(&status),
            "{method} {path} with {authorization:?}: {status}"
        );
        usize::from(status == 401)
    });
    // Responses to wrong tokens are delayed, and so is only a limited number of them.
    let answers = futures_util::stream::iter(answers).buffer_unordered(16);
    let unauthorized: usize = answers.fold(0, async |sum, one| sum + one).await;
    for path in guarded().filter(|path| !is_page(path)) {
        let url = format!("{}{path}", t.url);
        let with = [
            status("GET", &url, Some(&right)).await,
            status("POST", &url, Some(&right)).await,
        ];
        assert!(
            with.iter().any(|status| ![401, 405].contains(status)),
            "{path}: {with:?}"
        );
    }
    println!("{unauthorized} requests without authorization");
    t.finish().await;

    let t = Scenario::begin_with(Backend::Embedded, |config| config.admin_token = None).await;
    for path in guarded() {
        for method in ["GET", "POST"] {
            for authorization in [None, Some(right.as_str()), Some("Bearer ")] {
                let status = status(method, &format!("{}{path}", t.url), authorization).await;
                assert!([404, 405].contains(&status), "{method} {path}: {status}");
            }
        }
    }
    t.finish().await;
}

/// The right token is accepted while wrong ones are slowed down. A missing token is not a guess.
#[tokio::test]
async fn wrong_bearer_tokens_are_slowed_and_the_right_one_always_works() {
    let t = Scenario::begin(Backend::Embedded).await;
    let url = format!("{}/api/videos", t.url);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let began = Instant::now();
    let guesses = (0..200).map(|_| async {
        let request = client.get(&url).bearer_auth("a guess");
        let answer = request.send().await.unwrap();
        (answer, began.elapsed())
    });
    let others = async {
        // The guesses were sent before.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut fastest = [Duration::MAX; 2];
        // A busy machine can delay any of them.
        for _ in 0..5 {
            let right = client.get(&url).bearer_auth(ADMIN_TOKEN);
            for (n, (request, status)) in [(right, 200), (client.get(&url), 401)]
                .into_iter()
                .enumerate()
            {
                let sent = Instant::now();
                assert_eq!(request.send().await.unwrap().status(), status);
                fastest[n] = fastest[n].min(sent.elapsed());
            }
        }
        fastest
    };
    let (guesses, fastest) = tokio::join!(join_all(guesses), others);
    assert!(
        fastest.iter().all(|took| *took < Duration::from_secs(1)),
        "{fastest:?}"
    );
    t.expect_slowed_down(guesses, "bearer").await;
    t.finish().await;
}

#[tokio::test]
async fn every_response_has_its_security_headers() {
    let t = Scenario::begin(Backend::Embedded).await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let paths = routes();
    let paths = paths.iter().map(String::as_str);
    for path in paths.chain(["/nowhere", "/api/nowhere", "/api"]) {
        for (method, token) in [("GET", true), ("POST", true), ("GET", false)] {
            for proto in ["http", "https"] {
                let url = format!("{}{path}", t.url);
                let request = client.request(method.parse().unwrap(), url);
                let mut request = request.header("x-forwarded-proto", proto);
                if token {
                    request = request.bearer_auth(ADMIN_TOKEN);
                }
                let answer = request.send().await.unwrap();
                let header = |name: &str| {
                    let value = answer.headers().get(name);
                    value.map(|value| value.to_str().unwrap())
                };
                let at = format!("{method} {path} over {proto}: {}", answer.status());
                assert_eq!(header("x-content-type-options"), Some("nosniff"), "{at}");
                if path.starts_with("/api/") || path == "/reconcile" {
                    assert_eq!(header("cache-control"), Some("no-store"), "{at}");
                }
                let not_pages = [
                    "/webhooks/github",
                    "/healthz",
                    "/readyz",
                    "/metrics",
                    "/nowhere",
                    "/api",
                ];
                // Wrong methods are rejected before a page is reached.
                let is_page = is_page(path) && !not_pages.contains(&path) && answer.status() != 405;
                let only_page = |value| is_page.then_some(value);
                let same = only_page("same-origin");
                assert_eq!(header("cross-origin-resource-policy"), same, "{at}");
                assert_eq!(header("cross-origin-opener-policy"), same, "{at}");
                let https = only_page("max-age=31536000").filter(|_| proto == "https");
                assert_eq!(header("strict-transport-security"), https, "{at}");
            }
        }
    }
    t.finish().await;
}

/// Secrets are only compared by the one function that takes constant time.
#[test]
fn no_secret_is_compared_with_an_operator() {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut exposed = 0;
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            if path.ends_with("tests.rs") {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for line in source
                .lines()
                .filter(|line| line.contains("expose_secret()"))
            {
                exposed += 1;
                let compares = [
                    "==",
                    "!=",
                    ".eq(",
                    ".ne(",
                    ".cmp(",
                    ".starts_with(",
                    ".contains(",
                ];
                assert!(
                    !compares.iter().any(|sign| line.contains(sign)),
                    "{}: {line}",
                    path.display()
                );
            }
        }
    }
    assert!(
        exposed >= 10,
        "found only {exposed} uses of `expose_secret`"
    );
}

scenario! {
    nothing_in_a_push_reaches_another_users_rows_or_objects(t) {
        let (theirs, mine) = (Video::good(), Video::with(SECOND));
        for video in [&theirs, &mine] {
            t.row(video).await;
        }
        t.push(&theirs).await;
        t.work().await;
        let before = t.objects();
        let fields = json!({
            "user_id": Uuid::new_v4(), "id": theirs.key.video_id, "kind": "pdf",
            "storage_path": t.path(&theirs), "storage_bucket": "another-bucket", "mime_type": "text/html",
            "conversation_id": "../../app-conversations?ids=", "file_size": -1, "resolution": "1e9x1e9",
            "github_path": "../../etc/passwd", "upload_token": "x", "ingest": {"sha256": "x"},
        });
        t.push(&mine.clone().with_json(metadata(mine.key, fields))).await;
        t.work().await;
        t.expect_ready(&mine).await;
        t.expect_ready(&theirs).await;
        let asset = t.asset(&mine).await;
        assert_eq!(asset.conversation_id, None, "not an id");
        assert_eq!(asset.metadata["upload_token"], serde_json::Value::Null);
        assert_eq!(t.objects().len(), before.len() + 1);
        assert!(t.objects().iter().all(|object| object.starts_with("lesson-assets/")));
    }

    json_bombs_are_rejected_quickly(t) {
        let nested = "[".repeat(1 << 20);
        let key = Video::good().key;
        let bodies = [
            nested.clone(),
            "{\"a\":".repeat(1 << 18),
            format!("{{\"ref\":{nested}"),
            "1e99999999999".into(),
            format!("{{\"commits\":{}}}", "9".repeat(1 << 20)),
            format!("{{\"ref\":\"{}\"}}", "\\ud800".repeat(1 << 16)),
        ];
        for body in bodies {
            let signed = [
                ("x-hub-signature-256", signature::sign(&SecretString::from(SECRET), body.as_bytes())),
                ("x-github-event", "push".to_owned()),
                ("x-github-delivery", Uuid::new_v4().to_string()),
                ("content-type", "application/json".to_owned()),
            ];
            let began = Instant::now();
            t.post("/webhooks/github", &signed, body.into_bytes()).await.expect_problem(400, "malformed");
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
        for json in ["[".repeat(60_000), format!("{{\"lesson_id\":\"{}\",\"video_id\":\"{}\",\"x\":{}", key.lesson_id, key.video_id, "[".repeat(50_000))] {
            let video = Video::good().with_json(json);
            t.row(&video).await;
            t.push(&video).await;
            t.work().await;
            t.expect_reported(&video, "bad_metadata").await;
        }
    }
}

/// Every setting is a distinctive secret. After successes and failures of all kinds, at every log level,
/// no response and no log line contains one, and a proxy in the environment gets no request.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_exposed_anywhere() {
    let canaries = [
        ("webhook", "canary-webhook-4f1c9d"),
        ("previous webhook", "canary-previous-7be20a"),
        ("GitHub", "ghp_canary_github_a81e"),
        ("admin", "canary-admin-token-c4d7"),
        ("storage", fake_storage::SECRET_KEY),
        ("database", "canary-password-e3b0"),
        ("OpenHands", fake_openhands::KEY),
        ("OpenHands session", fake_openhands::SESSION_KEY),
        ("OpenHands prompt", fake_openhands::PROMPT),
        ("row", "canary-upload-token-55aa"),
        ("pushed JSON", "canary-pushed-json-91ff"),
    ];
    let canary = |name: &str| canaries.iter().find(|(known, _)| *known == name).unwrap().1;
    let github = TestGithub::start(REPOSITORY).await;
    github.require_token(canary("GitHub"));
    let storage = FakeStorage::start().await;
    storage.create_bucket("lesson-assets", Some(1 << 20), Some(&["video/mp4"]));
    let openhands = FakeOpenHands::start(fake_openhands::Server::Cloud).await;
    let database = Postgres::database().await;
    // This Postgres does not check passwords; the URL contains one nevertheless.
    let with_password = format!(":{}@", canary("database"));
    let database_url = database.service_url.replacen('@', &with_password, 1);
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy_url = format!("http://{}", proxy.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start(
        dir.path(),
        &[
            ("HTTP_PROXY", &proxy_url),
            ("http_proxy", &proxy_url),
            ("ALL_PROXY", &proxy_url),
            ("GITHUB_API_URL", &github.url()),
            ("GITHUB_REPOSITORY", REPOSITORY),
            ("GITHUB_TOKEN", canary("GitHub")),
            ("GITHUB_WEBHOOK_SECRET", canary("webhook")),
            ("GITHUB_WEBHOOK_SECRET_PREVIOUS", canary("previous webhook")),
            ("ADMIN_TOKEN", canary("admin")),
            ("DATABASE_URL", &database_url),
            ("SUPABASE_URL", &storage.url()),
            ("SUPABASE_SERVICE_ROLE_KEY", canary("storage")),
            ("OPENHANDS_API_URL", &openhands.url),
            ("OPENHANDS_API_KEY", canary("OpenHands")),
            ("RECONCILE_INTERVAL", "0"),
            ("RUST_LOG", "trace"),
        ],
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut said = String::new();
    let ask = async |method: &str, path: &str, token: &str| {
        let request = client
            .request(method.parse().unwrap(), format!("{}{path}", server.url))
            .bearer_auth(token);
        // The stream of events never ends, so only its first second is read.
        let endless = path == "/api/events" && token == canary("admin");
        let request = if endless {
            request.timeout(Duration::from_secs(1))
        } else {
            request
        };
        let answer = request.send().await.unwrap();
        let headers = answer.headers().clone();
        let body = answer.text().await;
        format!(
            "{headers:?} {}\n",
            if endless {
                String::new()
            } else {
                body.unwrap()
            }
        )
    };
    let deliver = async |before, secret: &str| {
        let push = github.push(before, github.head());
        let mut request = client
            .post(format!("{}/webhooks/github", server.url))
            .body(push.body());
        for (name, value) in push.signed(secret) {
            request = request.header(name, value);
        }
        request.send().await.unwrap().text().await.unwrap()
    };
    let user = Uuid::new_v4();
    let rerendered = Video::good();
    let secretive = Video::good();
    let secretive_json = metadata(
        secretive.key,
        json!({"api_key": canary("pushed JSON"), "token": canary("pushed JSON")}),
    );
    let cases = [
        rerendered.clone(),
        rerendered.rerendered(SECOND),
        secretive.with_json(secretive_json),
        Video::with(b"not a video"),
        Video::good().with_json(format!("{{\"token\":\"{}\"", canary("pushed JSON"))),
        Video::good(),
        Video::good(),
        Video::with(&GOOD.repeat(100)),
    ];
    for (case, video) in cases.iter().enumerate() {
        if case != 1 {
            database.insert_lesson(video.key.lesson_id, user).await;
            database.insert_asset(video.key, user, "video").await;
            let metadata = json!({"upload_token": canary("row")});
            database
                .sql(&format!(
                    "update lesson_assets set metadata = '{metadata}' where id = '{}'",
                    video.id()
                ))
                .await;
        }
        match case {
            5 => storage.fault(Op::Upload, fake_storage::Fault::LoseAnswer),
            6 => storage.fault(
                Op::Upload,
                fake_storage::Fault::Answer(fake_storage::Answer::new(
                    500,
                    "text/html",
                    canary("storage"),
                )),
            ),
            _ => {}
        }
        let before = github.head();
        github.commit(|c| match case {
            2 => c
                .write_lfs(video.mp4_path(), video.mp4.clone())
                .write(video.json_path(), video.json.clone()),
            _ => video.write(c),
        });
        said += &deliver(before, canary("webhook")).await;
        said += &deliver(before, canary("previous webhook")).await;
        said += &deliver(before, "canary-of-another-sender").await;
        let began = Instant::now();
        loop {
            let shown = ask(
                "GET",
                &format!("/api/videos/{}", video.id()),
                canary("admin"),
            )
            .await;
            let busy = [
                "\"state\":\"running\"",
                "\"timeline\":[]",
                "\"code\":null,\"message\":null,\"state\":\"queued\"",
            ];
            let settled = shown.contains("\"ready\"")
                || shown.contains("\"failed\"")
                || shown.contains("again in");
            said += &shown;
            if settled && !busy.iter().any(|busy| shown.contains(busy)) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "case {case}: {shown}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // A generating video, while the agent's API responds and while it does not.
    let (generating, conversation) = (Video::good(), Uuid::new_v4());
    database.insert_lesson(generating.key.lesson_id, user).await;
    database.insert_asset(generating.key, user, "video").await;
    let id = generating.id();
    database
        .sql(&format!(
            "update lesson_assets set conversation_id = '{conversation}' where id = '{id}'"
        ))
        .await;
    openhands.conversation(conversation, "RUNNING", Some("error"));
    said += &ask("POST", "/reconcile?wait=0&verify=true", canary("admin")).await;
    openhands.fault("", fake_openhands::Fault::Status(401));
    said += &ask("POST", "/reconcile?wait=0", canary("admin")).await;
    github.require_token("another");
    said += &ask("POST", "/reconcile?wait=0", canary("admin")).await;
    let paths = routes();
    let paths = paths.iter().map(String::as_str);
    for path in paths.chain(["/nowhere", "/api/videos?state=%00&q=%27"]) {
        let method = if path.contains("retry") {
            "POST"
        } else {
            "GET"
        };
        let tokens = [canary("admin"), "wrong", ""];
        said += &join_all(tokens.map(|token| ask(method, path, token)))
            .await
            .concat();
    }
    let log = server.log();
    assert!(
        log.contains("\"level\":\"TRACE\"") && log.lines().count() > 100,
        "{} lines",
        log.lines().count()
    );
    assert!(
        log.contains("\"replaced\":true"),
        "each replacement of a ready video is logged"
    );
    for (name, secret) in canaries {
        for (place, text) in [("a response", &said), ("the log", &log)] {
            let found = text.lines().find(|line| line.contains(secret));
            assert_eq!(found, None, "{name} secret in {place}");
        }
    }
    println!(
        "{} secrets, none in {} KiB of responses and {} KiB of log",
        canaries.len(),
        said.len() >> 10,
        log.len() >> 10
    );
    let contacted = tokio::time::timeout(Duration::ZERO, proxy.accept()).await;
    assert!(
        contacted.is_err(),
        "a proxy in the environment got a request"
    );
}

/// Without the scheme, the session cookie would also be sent over plain HTTP.
#[test]
fn the_proxies_forward_the_scheme_of_the_client() {
    let nginx = include_str!("../../deploy/nginx.conf");
    // Caddy sets the header by default. nginx passes the headers of the server on to its locations, unless a
    // location sets headers of its own.
    let (server, locations) = nginx.rsplit_once("proxy_set_header ").unwrap();
    assert!(!server.contains("location "), "a location sets headers");
    let headers = format!("{server}proxy_set_header {locations}");
    assert!(headers.contains("proxy_set_header X-Forwarded-Proto $scheme;"));
}
