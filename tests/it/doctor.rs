//! `doctor` finds nothing in a correct setup, and exactly the one fault in setups that are broken on purpose. The
//! first problem that it shows says what is wrong and what to do.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use reqwest::Url;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;
use video_ingest::app::{self, App, Injected};
use video_ingest::clock::Clock;
use video_ingest::config::{
    Config, Database, MissingRow, OpenHandsConfig, OpenHandsVersion, SETTINGS, Sources, StoreConfig,
};
use video_ingest::http;
use video_ingest::pipeline::checks::{self, Mark, Report};
use video_ingest::services::openhands::{Pacing, Rate};

use crate::support::fake_github::TestGithub;
use crate::support::fake_openhands::{self, FakeOpenHands, Server};
use crate::support::fake_storage::{self, FakeStorage, Op};
use crate::support::postgres::{self, Postgres};
use crate::support::scenario::{Backend, REPOSITORY, Video};

const TOKEN: &str = "a-token-for-the-doctor";
const SECRET: &str = "8f1d0c77-a secret of the doctor's";
const ADMIN_TOKEN: &str = "2b9e4d61-an admin token of the doctor's";
const BUCKET: &str = "lesson-assets";
/// Of a database role, percent-encoded.
const PASSWORD: &str = "d0ct0r%40s";
/// Nothing listens there.
const CLOSED: &str = "http://127.0.0.1:1";

/// A setup in which every check passes.
struct SetUp {
    config: Config,
    clock: Clock,
    github: TestGithub,
    hook: u64,
    /// The address of a server with these settings, which serves requests but ingests nothing.
    receiver: Url,
    sources: Sources,
    openhands: FakeOpenHands,
    storage: FakeStorage,
    database: Option<postgres::Database>,
    dir: tempfile::TempDir,
    _serving: DropGuard,
}

impl SetUp {
    async fn correct(backend: Backend) -> Self {
        let github = TestGithub::start(REPOSITORY).await;
        github.require_token(TOKEN);
        let video = Video::good();
        github.commit(|c| video.write(c));
        let listener = http::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let receiver: Url = format!("http://{address}/webhooks/github").parse().unwrap();
        let hook = github.add_hook(&json!({
            "events": ["push"],
            "config": {"url": receiver, "content_type": "json", "secret": SECRET},
        }));
        let push = github.push(github.head(), github.head());
        github.record(hook, &push, "timed out", 0);
        github.record(hook, &push, "OK", 202);

        let openhands = FakeOpenHands::start(Server::Cloud).await;
        let storage = FakeStorage::start().await;
        storage.create_bucket(BUCKET, Some(52_428_800), Some(&["video/mp4"]));
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::embedded(dir.path(), address, REPOSITORY, &github.url(), SECRET);
        config.admin_token = Some(ADMIN_TOKEN.into());
        config.github.token = Some(TOKEN.into());
        config.agent = Some(OpenHandsConfig {
            key: fake_openhands::KEY.into(),
            api_url: openhands.url.clone(),
            version: OpenHandsVersion::V1,
        });
        let database = match backend {
            Backend::Embedded => None,
            Backend::Supabase | Backend::Pooled => {
                let database = Postgres::database().await;
                config.database = Database::Postgres {
                    url: database.service_url.clone().into(),
                };
                config.store = StoreConfig::Supabase {
                    url: storage.url(),
                    service_role_key: fake_storage::SECRET_KEY.into(),
                };
                config.missing_row = MissingRow::Wait;
                Some(database)
            }
        };
        // Creates the server's tables, as the first start does. Pings need no database.
        let app = App::build(config.clone(), Injected::default()).await;
        let app = app.unwrap();
        app.db.close().await;
        let stop = CancellationToken::new();
        tokio::spawn(http::serve(listener, app.router, stop.clone()));
        Self {
            config,
            clock: Clock::default(),
            github,
            hook,
            receiver,
            sources: Sources::default(),
            openhands,
            storage,
            database,
            dir,
            _serving: stop.drop_guard(),
        }
    }

    async fn sql(&self, statements: &str) {
        match &self.database {
            Some(database) => database.sql(statements).await,
            None => {
                let url = format!("sqlite://{}/video-ingest.sqlite", self.dir.path().display());
                let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
                let statements = sqlx::AssertSqlSafe(statements);
                sqlx::raw_sql(statements).execute(&pool).await.unwrap();
                pool.close().await;
            }
        }
    }

    /// Connects to the database with a URL in which a part is replaced.
    fn reconnect(&mut self, part: &str, by: &str) {
        let url = &self.database.as_ref().unwrap().service_url;
        let replaced = url.replace(part, by);
        assert_ne!(*url, replaced);
        self.config.database = Database::Postgres {
            url: replaced.into(),
        };
    }

    /// Connects with the certificate of this authority.
    fn reconnect_with_tls(&mut self, authority: &Path) {
        let tls = format!("sslmode=verify-full&sslrootcert={}", authority.display());
        self.reconnect("sslmode=disable", &tls);
    }

    /// Records an attempt at the delivery of a push that failed.
    fn undelivered(&self, status: &str, code: u16) {
        let push = self.github.push(self.github.head(), self.github.head());
        self.github.record(self.hook, &push, status, code);
    }

    /// Changes the public address here and in the webhook.
    fn move_to(&mut self, url: &str) {
        self.receiver = url.parse().unwrap();
        self.change_hook(json!({"config": {"url": url}}));
    }

    /// Changes the public address to a program that returns the same to every request.
    async fn move_to_answer(
        &mut self,
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
    ) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let (parts, body) = response.body(body).unwrap().into_parts();
        let answer = move || async move { Response::from_parts(parts, Body::from(body)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(axum::serve(listener, router).into_future());
        self.move_to(&format!("http://{address}/webhooks/github"));
    }

    fn change_hook(&mut self, body: serde_json::Value) {
        self.github.change_hook(self.hook, &body);
    }

    async fn report(&self) -> Report {
        let quick = Rate {
            calls: 1000,
            per: Duration::from_secs(1),
        };
        let injected = Injected {
            clock: self.clock.clone(),
            openhands_pacing: Pacing {
                rates: [quick; 2],
                ..Pacing::default()
            },
            ..Injected::default()
        };
        let services = app::services(&self.config, &injected);
        let database = app::existing_database(&self.config, self.clock.clone());
        let receiver = Some(&self.receiver);
        let report =
            checks::examine(&self.config, &self.sources, &services, database, receiver).await;
        let shown = serde_json::to_string(&report).unwrap();
        let url = self.database.as_ref().map(|d| d.service_url.as_str());
        let secrets = [
            SECRET,
            ADMIN_TOKEN,
            TOKEN,
            PASSWORD,
            fake_openhands::KEY,
            fake_storage::SECRET_KEY,
        ];
        for secret in secrets.into_iter().chain(url) {
            assert!(!shown.contains(secret), "{shown}");
        }
        report
    }

    /// Exactly these checks fail, and the first problem contains these texts.
    async fn expect(&self, failed: &[&str], says: &[&str]) {
        let started = Instant::now();
        let report = self.report().await;
        assert!(started.elapsed() < Duration::from_secs(8), "too slow");
        let found = report.findings.iter().filter(|f| f.mark == Mark::Failed);
        let mut found: Vec<_> = found.map(|f| f.id).collect();
        found.sort_unstable();
        assert_eq!(found, failed, "{:#?}", report.problems());
        let first = report.problems()[0];
        for text in says {
            assert!(first.text.contains(text), "{text:?} is not in {first:#?}");
        }
        assert!(!first.text.contains("webhook install`"), "{first:#?}");
    }
}

#[test]
fn the_example_settings_lack_only_values_without_a_default() {
    let mut sources = Sources::default();
    sources.read_dotenv("deploy/env.example".as_ref());
    let problems = Config::load(&sources).unwrap_err();
    let names: Vec<_> = problems.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["GITHUB_WEBHOOK_SECRET", "GITHUB_REPOSITORY"]);

    let example = std::fs::read_to_string("deploy/env.example").unwrap();
    for line in example.lines().filter(|line| !line.starts_with("# ")) {
        let name = line.trim_start_matches('#').split('=').next().unwrap();
        let is_known = SETTINGS.iter().any(|setting| setting.name == name);
        assert!(is_known || name.is_empty(), "{line}");
    }
}

/// `broken! { backend: name(setup) => ["failed.check"] "cause", "what to do" { the fault } }`
macro_rules! broken {
    ($($backend:ident: $name:ident($s:ident) => [$($id:literal),*] $($says:literal),+ $body:block)*) => { $(
        #[tokio::test]
        async fn $name() {
            #[allow(unused_mut)]
            let mut $s = SetUp::correct(Backend::$backend).await;
            $body
            $s.expect(&[$($id),*], &[$($says),+]).await;
        }
    )* };
}

#[tokio::test]
async fn a_correct_setup_passes_every_check() {
    for backend in [Backend::Embedded, Backend::Supabase] {
        let findings = SetUp::correct(backend).await.report().await.findings;
        let off: Vec<_> = findings.iter().filter(|f| f.mark != Mark::Ok).collect();
        assert!(off.is_empty(), "{backend:?}: {off:#?}");
        let ids: std::collections::BTreeSet<_> = findings.iter().map(|f| f.id).collect();
        let ids: Vec<_> = ids.into_iter().collect();
        let count = match backend {
            Backend::Embedded => 24,
            Backend::Supabase | Backend::Pooled => 39,
        };
        assert_eq!(ids.len(), count, "{ids:#?}");
    }
}

#[tokio::test]
async fn the_doctor_leaves_nothing_behind() {
    let setup = SetUp::correct(Backend::Supabase).await;
    setup.report().await;
    assert_eq!(setup.storage.objects(), [""; 0]);
    assert!(
        setup
            .storage
            .calls()
            .iter()
            .any(|call| call.starts_with("DELETE"))
    );
}

broken! {
    // Settings and the machine.
    Embedded: a_webhook_secret_that_can_be_guessed(s) => ["settings.webhook_secret"] "GITHUB_WEBHOOK_SECRET_PREVIOUS", "openssl rand" {
        s.config.webhook_secrets.push("aaaaaaaaaaaaaaaaaaaaaaaa".into());
    }
    Embedded: an_admin_token_that_can_be_guessed(s) => ["settings.admin_token"] "ADMIN_TOKEN", "openssl rand" {
        s.config.admin_token = Some("1212121212121212".into());
    }
    Embedded: a_data_dir_that_is_a_file(s) => ["disk.write"] "DATA_DIR", "not writable", "owner" {
        s.config.data_dir = s.dir.path().join("video-ingest.sqlite");
    }
    Embedded: a_disk_that_is_too_full(s) => ["disk.space"] "free space", "MAX_VIDEO_BYTES" {
        s.config.max_video_bytes = Some(u64::MAX);
    }
    Embedded: a_clock_that_is_wrong(s) => ["github.clock"] "clock", "NTP" {
        s.clock.advance(Duration::from_secs(600));
    }
    Embedded: a_damaged_database(s) => ["database.connect"] "corrupt", "Restore" {
        for file in std::fs::read_dir(s.dir.path()).unwrap().flatten() {
            if file.path().is_file() {
                std::fs::write(file.path(), "no database ".repeat(1000)).unwrap();
            }
        }
    }
    Embedded: a_database_of_a_newer_version(s) => ["database.migrations"] "version 99", "Install a newer version" {
        s.sql("insert into migrations (version, at) values (99, 0)").await;
    }
    Embedded: no_admin_token(s) => [] "ADMIN_TOKEN is not set", "openssl rand" {
        s.config.admin_token = None;
    }
    Embedded: an_empty_admin_token(s) => [] "ADMIN_TOKEN is empty", "openssl rand" {
        s.config.admin_token = None;
        s.sources.env.insert("ADMIN_TOKEN".to_owned(), String::new());
    }
    Embedded: a_misspelt_setting(s) => ["github.repository"] "GITHUB_TOKN is not a setting", "GITHUB_TOKEN" {
        s.config.github.token = None;
        s.sources.dotenv.insert("GITHUB_TOKN".to_owned(), TOKEN.to_owned());
    }
    Embedded: no_workers(s) => [] "WORKERS is 0", "another process" {
        s.config.workers = 0;
    }
    Embedded: no_sweeps(s) => [] "RECONCILE_INTERVAL is 0", "deploy/cron" {
        s.config.reconcile_interval = None;
    }

    // GitHub.
    Embedded: github_that_does_not_respond(s) => ["github.api"] "refused", "GITHUB_API_URL" {
        s.config.github.api_url = CLOSED.to_owned();
    }
    Embedded: a_repository_that_does_not_exist(s) => ["github.repository"] "did not find", "GITHUB_REPOSITORY" {
        s.config.github.repository.name = "video-artefacts".to_owned();
    }
    Embedded: a_repository_that_was_renamed(s) => ["github.repository"] "renamed", "Set GITHUB_REPOSITORY to acme/videos" {
        s.github.rename("acme/videos");
    }
    Embedded: a_token_that_is_wrong(s) => ["github.token"] "rejected GITHUB_TOKEN", "Create a token" {
        s.config.github.token = Some("another-token".into());
    }
    Embedded: a_private_repository_without_a_token(s) => ["github.repository"] "did not find", "GITHUB_TOKEN" {
        s.config.github.token = None;
    }
    Embedded: a_branch_that_does_not_exist(s) => ["github.branch"] "no branch named release", "GITHUB_BRANCH" {
        s.config.github.branch = Some("release".to_owned());
    }
    Embedded: a_rate_limit_that_is_used_up(s) => ["github.rate_limit"] "used up until", " UTC", "Wait until then" {
        s.github.quota(0, s.clock.now().as_second() as u64 + 600);
    }
    Embedded: a_video_that_never_reached_lfs(s) => ["github.download"] "Failed to download", "LFS" {
        s.github.commit(|c| c.write_lfs_missing(Video::good().mp4_path(), "never uploaded"));
    }
    Embedded: a_rate_limit_that_ends_during_the_checks(s) => ["github.rate_limit"] "used up until", "Wait until then" {
        s.github.quota(4, s.clock.now().as_second() as u64 + 600);
    }
    Embedded: a_rate_limit_that_is_nearly_used_up(s) => [] "remain until", "Check which other programs" {
        s.github.quota(100, s.clock.now().as_second() as u64 + 600);
    }
    Embedded: a_github_host_that_does_not_exist(s) => ["github.api"] "(DNS)", "GITHUB_API_URL" {
        s.config.github.api_url = "http://github.invalid".to_owned();
    }
    Embedded: videos_pushed_without_lfs(s) => [] "pushed without it", "git lfs install" {
        s.github.commit(|c| c.write(".gitattributes", "*.mp4 filter=lfs diff=lfs merge=lfs -text\n"));
    }
    Embedded: a_folder_without_videos(s) => [] "out/ is empty", "GITHUB_VIDEOS_DIR" {
        s.config.github.videos_dir = "out".to_owned();
    }
    Embedded: a_video_above_the_setting(s) => ["storage.size_limit"] ".mp4 (12522 bytes)", "Raise MAX_VIDEO_BYTES" {
        s.config.max_video_bytes = Some(12_000);
    }

    // The webhook.
    Embedded: no_webhook(s) => ["hook.installed"] "no webhook", "webhook install --url http://127.0.0.1" {
        s.change_hook(json!({"config": {"url": "https://ci.example.org/github"}}));
    }
    Embedded: a_webhook_to_another_server(s) => ["hook.url"] "points to https://old.example.org", "webhook install --url http://127.0.0.1" {
        s.change_hook(json!({"config": {"url": "https://old.example.org/webhooks/github"}}));
    }
    Embedded: a_webhook_that_is_switched_off(s) => ["hook.active"] "disabled", "webhook install --url http://127.0.0.1" {
        s.change_hook(json!({"active": false}));
    }
    Embedded: a_webhook_without_pushes(s) => ["hook.events"] "not subscribed", "webhook install --url http://127.0.0.1" {
        s.change_hook(json!({"events": ["release"]}));
    }
    Embedded: a_webhook_without_a_secret(s) => ["hook.secret"] "no secret", "webhook install --url http://127.0.0.1" {
        let config = json!({"url": s.receiver, "content_type": "json"});
        s.change_hook(json!({"config": {"url": "https://ci.example.org/"}}));
        s.hook = s.github.add_hook(&json!({"config": config}));
    }
    Embedded: a_webhook_that_trusts_any_certificate(s) => ["hook.tls"] "does not verify", "webhook install --url http://127.0.0.1" {
        s.change_hook(json!({"config": {"insecure_ssl": "1"}}));
    }
    Embedded: a_delivery_that_never_arrived(s) => ["hook.deliveries"] "cannot connect", "firewall" {
        let push = s.github.push(s.github.head(), s.github.head());
        s.github.record(s.hook, &push, "timed out", 0);
    }
    Embedded: deliveries_signed_with_another_secret(s) => ["hook.deliveries"] "a secret other than", "webhook install --url http://127.0.0.1" {
        let push = s.github.push(s.github.head(), s.github.head());
        s.github.record(s.hook, &push, "Invalid HTTP Response: 401", 401);
    }
    Embedded: deliveries_that_a_proxy_answers(s) => ["hook.deliveries"] "does not reach the server (status 502)", "video-ingest serve" {
        s.undelivered("Invalid HTTP Response: 502", 502);
    }
    Embedded: deliveries_that_cannot_connect(s) => ["hook.deliveries"] "cannot connect", "failed to connect to host", "firewall" {
        s.undelivered("failed to connect to host", 0);
    }
    Embedded: deliveries_while_the_database_is_down(s) => ["hook.deliveries"] "or its database, is unavailable", "video-ingest doctor --url" {
        s.undelivered("Invalid HTTP Response: 503", 503);
    }
    Embedded: deliveries_to_another_program(s) => ["hook.deliveries"] "not the address of this server (status 404)", "webhook install --url" {
        s.undelivered("Invalid HTTP Response: 404", 404);
    }
    Embedded: a_lost_delivery_before_others_that_arrived(s) => ["hook.deliveries"] "Later deliveries succeeded", "webhook redeliver --failed" {
        s.undelivered("timed out", 0);
        let push = s.github.push(s.github.head(), s.github.head());
        s.github.record(s.hook, &push, "OK", 202);
    }

    // The public address.
    Embedded: an_address_without_dns(s) => ["hook.reach"] "(DNS)", "Create a DNS record" {
        s.move_to("https://videos.invalid/webhooks/github");
    }
    Embedded: an_address_without_a_proxy(s) => ["hook.reach"] "refused", "Start the proxy" {
        s.move_to("http://127.0.0.1:1/webhooks/github");
    }
    Embedded: an_address_without_a_proxy_or_server(s) => ["hook.reach"] "refused", "no server is running on this machine", "video-ingest serve" {
        s.move_to("http://127.0.0.1:1/webhooks/github");
        s.config.listen = "127.0.0.1:1".parse().unwrap();
    }
    Embedded: an_address_without_tls(s) => ["hook.reach"] "does not use TLS", "Enable TLS" {
        let url = s.receiver.as_str().replace("http:", "https:");
        s.move_to(&url);
    }
    Embedded: a_server_with_another_secret(s) => ["hook.reach"] "another webhook secret", "Set GITHUB_WEBHOOK_SECRET" {
        s.config.webhook_secrets = vec!["3c6f1a90-another secret than the server's".into()];
    }
    Embedded: an_address_of_another_path(s) => ["hook.reach"] "another server", "status 404", "Correct --url" {
        let url = s.receiver.as_str().replace("/webhooks", "/other/webhooks");
        s.move_to(&url);
    }
    Embedded: an_address_of_a_web_page(s) => ["hook.reach"] "another program (status 200)", "Correct --url" {
        s.move_to_answer(200, &[], "<!doctype html><title>Welcome to nginx!</title>").await;
    }
    Embedded: an_address_of_an_older_version(s) => [] "older version", "Install this version" {
        s.move_to_answer(200, &[], r#"{"status":"pong"}"#).await;
    }
    Embedded: an_address_of_an_impostor(s) => ["hook.reach"] "another webhook secret", "Set GITHUB_WEBHOOK_SECRET" {
        s.move_to_answer(200, &[], r#"{"status":"pong","proof":"00"}"#).await;
    }
    Embedded: a_proxy_that_does_not_reach_the_server(s) => ["hook.reach"] "returned 502", "a server is running on this machine at 127.0.0.1" {
        s.move_to_answer(502, &[], "<html>502 Bad Gateway</html>").await;
    }
    Embedded: a_proxy_without_a_server(s) => ["hook.reach"] "returned 502", "no server is running", "video-ingest serve" {
        s.move_to_answer(502, &[], "<html>502 Bad Gateway</html>").await;
        s.config.listen = "127.0.0.1:1".parse().unwrap();
    }
    Embedded: an_address_that_redirects(s) => ["hook.reach"] "redirects to https://www.example.org/hook,", "webhook install --url https://www.example.org/hook" {
        s.move_to_answer(301, &[("location", "https://www.example.org/hook?token=x")], "").await;
    }

    // The agent.
    Embedded: no_agent_key(s) => [] "OPENHANDS_API_KEY is not set", "GENERATION_DEADLINE" {
        s.config.agent = None;
    }
    Embedded: a_wrong_agent_key(s) => ["openhands.key"] "rejected OPENHANDS_API_KEY", "Create a new key" {
        s.config.agent.as_mut().unwrap().key = "another key".into();
    }
    Embedded: an_agent_url_that_serves_a_web_page(s) => ["openhands.version"] "OPENHANDS_API_URL", "Check" {
        s.openhands.fault("/", fake_openhands::Fault::Html);
    }
    Embedded: an_agent_that_does_not_respond(s) => ["openhands.api"] "did not respond", "Check OPENHANDS_API_URL" {
        s.config.agent.as_mut().unwrap().api_url = CLOSED.to_owned();
    }

    // The app's database.
    Supabase: a_database_that_does_not_respond(s) => ["database.connect"] "refused", "Start the database" {
        s.config.database = Database::Postgres { url: "postgres://u:p@127.0.0.1:1/app".into() };
    }
    Supabase: a_database_host_that_does_not_exist(s) => ["database.connect"] "(DNS)", "Correct the host in DATABASE_URL" {
        s.reconnect("127.0.0.1", "db.invalid");
    }
    Supabase: a_database_role_that_does_not_exist(s) => ["database.connect"] "the role does not exist", "role.sql" {
        s.reconnect("video_ingest@", "nobody@");
    }
    Supabase: a_database_role_that_may_not_log_in(s) => ["database.connect"] "not allowed to log in", "alter role" {
        s.reconnect("video_ingest@", "anon@");
    }
    Supabase: a_database_that_does_not_exist(s) => ["database.connect"] "no database of that name", "Correct the name" {
        s.reconnect("/test_", "/tset_");
    }
    Supabase: a_wrong_database_password(s) => ["database.connect"] "the password is wrong", "percent-encoded" {
        let user = format!("needs_password:{PASSWORD}@");
        s.reconnect("video_ingest@", &user);
    }
    Supabase: a_database_to_which_the_role_may_not_connect(s) => ["database.connect"] "not allowed to connect", "grant connect" {
        let name = s.database.as_ref().unwrap().name.clone();
        s.sql(&format!("revoke connect on database {name} from public")).await;
    }
    Supabase: a_database_certificate_of_an_unknown_authority(s) => ["database.connect"] "authority that this machine does not trust", "sslrootcert" {
        let other = s.database.as_ref().unwrap().server.authority("other.pem");
        s.reconnect_with_tls(&other);
    }
    Supabase: a_database_certificate_for_another_host(s) => ["database.connect"] "another host name", "Use the host name" {
        let ca = s.database.as_ref().unwrap().server.authority("ca.pem");
        s.reconnect_with_tls(&ca);
        let Database::Postgres { url } = &s.config.database else { unreachable!() };
        let url = url.expose_secret().replace("127.0.0.1", "localhost");
        s.config.database = Database::Postgres { url: url.into() };
    }
    Supabase: a_missing_file_of_the_authority(s) => ["database.connect"] "sslrootcert", "does not exist", "Copy the certificate" {
        s.reconnect_with_tls("/nowhere/prod-ca-2021.crt".as_ref());
    }
    Supabase: a_file_of_the_authority_that_is_none(s) => ["database.connect"] "authority", "sslrootcert" {
        s.reconnect_with_tls("README.md".as_ref());
    }
    Supabase: a_missing_database_socket(s) => ["database.connect"] "Unix socket does not exist", "Start the database" {
        s.config.database = Database::Postgres { url: "postgres://u@%2Fnowhere/app".into() };
    }
    Embedded: an_unencrypted_remote_database(s) => ["database.connect"] "refused", "Start the database" {
        // An address of this machine that is not a loopback address.
        s.config.database = Database::Postgres { url: "postgres://u:p@0.0.0.0:1/app?sslmode=prefer".into() };
        let report = s.report().await;
        let tls = report.findings.iter().find(|f| f.id == "database.tls").unwrap();
        assert_eq!(tls.mark, Mark::Warning, "{}", tls.text);
    }
    Supabase: a_database_of_another_app(s) => ["database.columns"] "no lesson_assets table", "DATABASE_URL" {
        s.sql("alter table lesson_assets rename to assets").await;
    }
    Supabase: a_database_that_lacks_a_column(s) => ["database.columns"] "metadata is missing", "columns.sql" {
        s.sql("alter table lesson_assets drop metadata").await;
    }
    Supabase: metadata_that_is_text(s) => ["database.columns"] "metadata is text", "columns.sql" {
        s.sql("alter table lesson_assets alter metadata type text").await;
    }
    Supabase: a_constraint_that_refuses_failures(s) => ["database.constraints"] "allows no error", "Change the constraint" {
        s.sql("alter table lesson_assets add check (mime_type in ('video/mp4', 'application/pdf'))").await;
    }
    Supabase: a_storage_path_that_cannot_be_null(s) => ["database.constraints"] "storage_path", "Change the constraint" {
        s.sql("alter table lesson_assets alter storage_path set not null").await;
    }
    Supabase: a_column_that_a_created_row_would_lack(s) => ["database.constraints"] "course_id has no default", "Change the constraint" {
        s.config.missing_row = MissingRow::Create;
        s.database.as_ref().unwrap().run_script("missing_row_create.sql");
        s.sql("alter table lesson_assets add course_id uuid not null").await;
    }
    Supabase: changes_that_realtime_does_not_send(s) => ["database.publication"] "not in the supabase_realtime publication", "realtime.sql" {
        s.sql("alter publication supabase_realtime drop table lesson_assets").await;
    }
    Supabase: a_publication_without_updates(s) => ["database.publication"] "does not publish updates", "realtime.sql", "set (publish = " {
        s.sql("alter publication supabase_realtime set (publish = 'insert, delete')").await;
    }
    Supabase: no_index_of_pending_videos(s) => [] "no index", "indexes.sql" {
        s.sql("drop index lesson_assets_pending_videos").await;
    }
    Supabase: a_restrictive_policy_for_everybody(s) => ["database.policies"] "hides every row", r#"alter policy "own rows only" on lesson_assets to authenticated"# {
        s.sql("create policy \"own rows only\" on lesson_assets as restrictive using (user_id = auth.uid())").await;
    }
    Supabase: a_restrictive_policy_that_may_be_harmless(s) => [] "can hide rows", "alter policy videos on lesson_assets to authenticated" {
        s.sql("create policy videos on lesson_assets as restrictive using (kind = 'video')").await;
    }
    Supabase: a_policy_that_reads_another_table(s) => ["database.policies"] "reads courses", "alter policy enrolled on lesson_assets to authenticated" {
        s.sql("create table courses (id uuid primary key, user_id uuid);
            create policy enrolled on lesson_assets for select
                using (exists (select from courses where courses.user_id = lesson_assets.user_id))").await;
    }
    Supabase: a_policy_that_calls_a_closed_function(s) => ["database.policies"] "permission denied for function", "to authenticated" {
        s.sql("create function is_member() returns boolean language sql volatile as 'select false';
            revoke execute on function is_member from public;
            create policy members on lesson_assets for select using (is_member())").await;
    }
    Supabase: a_role_that_can_point_rows_to_any_object(s) => [] "set storage_path", "role.sql" {
        s.sql("drop function video_ingest.refuse_storage_path cascade").await;
    }
    Supabase: a_superuser_connection(s) => [] "row-level security", "role.sql" {
        // Row-level security does not apply to the owner, so this has no effect on what is reported.
        s.sql("alter table lesson_assets disable row level security").await;
        let url = s.database.as_ref().unwrap().admin_url.clone();
        s.config.database = Database::Postgres { url: url.into() };
    }
    Supabase: a_role_without_a_right(s) => ["database.rights"] "update (metadata)", "role.sql" {
        s.sql("revoke update (metadata) on lesson_assets from video_ingest").await;
    }
    Supabase: a_role_that_cannot_create_rows(s) => ["database.rights"] "insert", "missing_row_create.sql" {
        s.config.missing_row = MissingRow::Create;
    }
    Supabase: a_role_that_sees_no_row(s) => ["database.policies"] "hides every row", "role.sql" {
        s.sql("drop policy \"video_ingest reads videos\" on lesson_assets").await;
    }
    Supabase: a_table_without_row_level_security(s) => ["database.policies"] "Row-level security is off", "enable row-level security" {
        s.sql("alter table lesson_assets disable row level security").await;
    }
    Supabase: a_schema_that_the_api_reaches(s) => ["database.exposed"] "anon", "role.sql" {
        s.sql("grant usage on schema video_ingest to anon").await;
    }
    Supabase: a_schema_of_another_owner(s) => ["database.schema"] "belongs to another role", "role.sql" {
        s.sql("revoke create on schema video_ingest from video_ingest").await;
    }

    // Storage.
    Supabase: a_storage_key_that_is_wrong(s) => ["storage.key"] "key", "SUPABASE_SERVICE_ROLE_KEY" {
        let url = s.storage.url();
        s.config.store = StoreConfig::Supabase { url, service_role_key: "sb_secret_another".into() };
    }
    Supabase: a_storage_that_does_not_respond(s) => ["storage.reach"] "refused", "SUPABASE_URL" {
        let key = fake_storage::SECRET_KEY.into();
        s.config.store = StoreConfig::Supabase { url: CLOSED.to_owned(), service_role_key: key };
    }
    Supabase: a_storage_host_that_does_not_exist(s) => ["storage.reach"] "(DNS)", "SUPABASE_URL" {
        let key = fake_storage::SECRET_KEY.into();
        let url = "https://project.supabase.invalid".to_owned();
        s.config.store = StoreConfig::Supabase { url, service_role_key: key };
    }
    Supabase: a_storage_without_tls(s) => ["storage.reach"] "does not use TLS", "SUPABASE_URL" {
        let key = fake_storage::SECRET_KEY.into();
        let url = s.storage.url().replace("http:", "https:");
        s.config.store = StoreConfig::Supabase { url, service_role_key: key };
    }
    Supabase: a_bucket_that_does_not_exist(s) => ["storage.bucket"] "bucket videos does not exist", "bucket.sql" {
        s.config.storage_bucket = "videos".to_owned();
    }
    Supabase: a_bucket_that_does_not_take_videos(s) => ["storage.mime"] "does not accept video/mp4", "bucket.sql" {
        s.storage.create_bucket(BUCKET, None, Some(&["application/pdf"]));
    }
    Supabase: a_bucket_that_is_smaller_than_the_setting(s) => ["storage.size_limit"] "MAX_VIDEO_BYTES is 52428801", "lower MAX_VIDEO_BYTES" {
        s.config.max_video_bytes = Some(52_428_801);
    }
    Supabase: a_bucket_that_is_smaller_than_a_video(s) => ["storage.size_limit"] ".mp4 (12522 bytes)", "Raise the file size limit of the bucket lesson-assets" {
        s.storage.create_bucket(BUCKET, Some(12_000), Some(&["video/mp4"]));
    }
    Supabase: a_bucket_that_is_smaller_than_a_video_in_lfs(s) => ["storage.size_limit"] ".mp4 (20000 bytes)", "Raise the file size limit" {
        s.github.commit(|c| c.write_lfs(Video::good().mp4_path(), vec![0; 20_000]));
        s.storage.create_bucket(BUCKET, Some(12_600), Some(&["video/mp4"]));
    }
    Supabase: a_bucket_that_is_smaller_than_the_default(s) => [] "up to 20000 bytes", "raise the bucket's file size limit" {
        s.storage.create_bucket(BUCKET, Some(20_000), Some(&["video/mp4"]));
    }
    Supabase: a_bucket_of_all_types(s) => ["storage.mime"] "does not accept video/mp4", "`*/*`", "bucket.sql" {
        s.storage.create_bucket(BUCKET, None, Some(&["*/*"]));
    }
    Supabase: objects_that_users_cannot_read(s) => [] "cannot create signed URLs", "playback.sql" {
        s.sql("drop policy \"owners read lesson videos\" on storage.objects").await;
    }
    Supabase: objects_of_another_bucket_that_users_can_read(s) => [] "cannot create signed URLs", "playback.sql" {
        s.sql("alter policy \"owners read lesson videos\" on storage.objects using (bucket_id = 'avatars')").await;
    }
    Supabase: a_bucket_that_is_public(s) => ["storage.private"] "public", "bucket.sql" {
        let bucket = json!({"id": BUCKET, "name": BUCKET, "public": true,
            "file_size_limit": 52_428_800, "allowed_mime_types": ["video/mp4"]});
        let answer = fake_storage::Answer::new(200, "application/json", bucket.to_string());
        s.storage.fault(Op::Bucket, fake_storage::Fault::Answer(answer));
    }
    Supabase: a_storage_that_rejects_uploads(s) => ["storage.write"] "Failed to store", "SUPABASE_SERVICE_ROLE_KEY" {
        let refusal = fake_storage::Answer::refusal(400, "403", "Unauthorized", "new row violates row-level security policy", "AccessDenied");
        s.storage.fault(Op::Upload, fake_storage::Fault::Answer(refusal));
    }
    Supabase: a_pending_row_that_wants_another_bucket(s) => ["storage.bucket"] "bucket lesson_assets does not exist", "bucket.sql" {
        let (lesson, user) = (Uuid::new_v4(), Uuid::new_v4());
        s.sql(&format!("insert into lessons (id, user_id, title) values ('{lesson}', '{user}', 't');
            insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
            values (gen_random_uuid(), '{lesson}', '{user}', 'video', 'lesson_assets', 'video/mp4')")).await;
    }
}

#[tokio::test]
async fn every_check_passes_behind_a_transaction_pooler() {
    let mut setup = SetUp::correct(Backend::Supabase).await;
    let url = setup.database.as_ref().unwrap().pooled_url();
    setup.config.database = Database::Postgres { url: url.into() };
    let report = setup.report().await;
    assert!(report.problems().is_empty(), "{:#?}", report.problems());
}
