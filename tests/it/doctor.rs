//! `doctor` finds nothing in a correct setup, and exactly the one fault in setups that are broken on purpose.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;
use video_ingest::app::{self, App, Injected};
use video_ingest::clock::Clock;
use video_ingest::config::{
    Config, Database, MissingRow, OpenHandsConfig, OpenHandsVersion, SETTINGS, StoreConfig,
};
use video_ingest::pipeline::checks::{self, Finding, Mark};
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
const RECEIVER: &str = "https://videos.example.org/webhooks/github";
/// Nothing listens there.
const CLOSED: &str = "http://127.0.0.1:1";

/// A setup in which every check passes.
struct SetUp {
    config: Config,
    clock: Clock,
    github: TestGithub,
    hook: u64,
    openhands: FakeOpenHands,
    storage: FakeStorage,
    database: Option<postgres::Database>,
    dir: tempfile::TempDir,
}

impl SetUp {
    async fn correct(backend: Backend) -> Self {
        let github = TestGithub::start(REPOSITORY).await;
        github.require_token(TOKEN);
        let video = Video::good();
        github.commit(|c| video.write(c));
        let hook = github.add_hook(&json!({
            "events": ["push"],
            "config": {"url": RECEIVER, "content_type": "json", "secret": SECRET},
        }));
        let push = github.push(github.head(), github.head());
        github.record(hook, &push, "timed out", 0);
        github.record(hook, &push, "OK", 202);

        let openhands = FakeOpenHands::start(Server::Cloud).await;
        let storage = FakeStorage::start().await;
        storage.create_bucket(BUCKET, Some(52_428_800), Some(&["video/mp4"]));
        let dir = tempfile::tempdir().unwrap();
        let local = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::embedded(dir.path(), local, REPOSITORY, &github.url(), SECRET);
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
        let setup = Self {
            config,
            clock: Clock::default(),
            github,
            hook,
            openhands,
            storage,
            database,
            dir,
        };
        setup.start_once().await;
        setup
    }

    /// Creates the server's tables, as the first start does.
    async fn start_once(&self) {
        let app = App::build(self.config.clone(), Injected::default())
            .await
            .unwrap();
        app.db.close().await;
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

    fn change_hook(&mut self, body: serde_json::Value) {
        self.github.change_hook(self.hook, &body);
    }

    async fn findings(&self) -> Vec<Finding> {
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
        let receiver = RECEIVER.parse().unwrap();
        let report = checks::examine(&self.config, &services, database, Some(&receiver)).await;
        let shown = serde_json::to_string(&report).unwrap();
        let url = self.database.as_ref().map(|d| d.service_url.as_str());
        let secrets = [
            SECRET,
            ADMIN_TOKEN,
            TOKEN,
            fake_openhands::KEY,
            fake_storage::SECRET_KEY,
        ];
        for secret in secrets.into_iter().chain(url) {
            assert!(!shown.contains(secret), "{shown}");
        }
        report.findings
    }

    async fn failed(&self) -> Vec<&'static str> {
        let findings = self.findings().await;
        let failed = findings.iter().filter(|f| f.mark == Mark::Failed);
        let mut ids: Vec<_> = failed.map(|f| f.id).collect();
        ids.sort_unstable();
        ids
    }
}

#[test]
fn the_example_settings_lack_only_values_without_a_default() {
    let mut sources = video_ingest::config::Sources::default();
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

/// `broken! { backend: name(setup) => ["expected.id"] { the fault } }`
macro_rules! broken {
    ($($backend:ident: $name:ident($s:ident) => [$($id:literal),*] $body:block)*) => { $(
        #[tokio::test]
        async fn $name() {
            #[allow(unused_mut)]
            let mut $s = SetUp::correct(Backend::$backend).await;
            $body
            assert_eq!($s.failed().await, [$($id),*] as [&str; 0 $(+ { let _ = $id; 1 })*]);
        }
    )* };
}

#[tokio::test]
async fn a_correct_setup_passes_every_check() {
    for backend in [Backend::Embedded, Backend::Supabase] {
        let findings = SetUp::correct(backend).await.findings().await;
        let off: Vec<_> = findings.iter().filter(|f| f.mark != Mark::Ok).collect();
        assert!(off.is_empty(), "{backend:?}: {off:#?}");
        let ids: std::collections::BTreeSet<_> = findings.iter().map(|f| f.id).collect();
        let ids: Vec<_> = ids.into_iter().collect();
        let count = match backend {
            Backend::Embedded => 23,
            Backend::Supabase | Backend::Pooled => 37,
        };
        assert_eq!(ids.len(), count, "{ids:#?}");
    }
}

#[tokio::test]
async fn the_doctor_leaves_nothing_behind() {
    let setup = SetUp::correct(Backend::Supabase).await;
    setup.findings().await;
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
    Embedded: a_webhook_secret_that_can_be_guessed(s) => ["settings.webhook_secret"] {
        s.config.webhook_secrets = vec!["aaaaaaaaaaaaaaaaaaaaaaaa".into()];
    }
    Embedded: an_admin_token_that_can_be_guessed(s) => ["settings.admin_token"] {
        s.config.admin_token = Some("1212121212121212".into());
    }
    Embedded: a_data_dir_that_is_a_file(s) => ["disk.write"] {
        s.config.data_dir = s.dir.path().join("video-ingest.sqlite");
    }
    Embedded: a_disk_that_is_too_full(s) => ["disk.space"] {
        s.config.max_video_bytes = Some(u64::MAX);
    }
    Embedded: a_clock_that_is_wrong(s) => ["github.clock"] {
        s.clock.advance(Duration::from_secs(600));
    }
    Embedded: a_damaged_database(s) => ["database.connect"] {
        for file in std::fs::read_dir(s.dir.path()).unwrap().flatten() {
            if file.path().is_file() {
                std::fs::write(file.path(), "no database ".repeat(1000)).unwrap();
            }
        }
    }
    Embedded: a_database_of_a_newer_version(s) => ["database.migrations"] {
        s.sql("insert into migrations (version, at) values (99, 0)").await;
    }

    // GitHub.
    Embedded: github_that_does_not_respond(s) => ["github.api"] {
        s.config.github.api_url = CLOSED.to_owned();
    }
    Embedded: a_repository_that_does_not_exist(s) => ["github.repository"] {
        s.config.github.repository.name = "video-artefacts".to_owned();
    }
    Embedded: a_repository_that_was_renamed(s) => ["github.repository"] {
        s.github.rename("acme/videos");
    }
    Embedded: a_token_that_is_wrong(s) => ["github.token"] {
        s.config.github.token = Some("another-token".into());
    }
    Embedded: a_private_repository_without_a_token(s) => ["github.repository"] {
        s.config.github.token = None;
    }
    Embedded: a_branch_that_does_not_exist(s) => ["github.branch"] {
        s.config.github.branch = Some("release".to_owned());
    }
    Embedded: a_rate_limit_that_is_used_up(s) => ["github.rate_limit"] {
        s.github.quota(0, s.clock.now().as_second() as u64 + 600);
    }
    Embedded: a_video_that_never_reached_lfs(s) => ["github.download"] {
        s.github.commit(|c| c.write_lfs_missing(Video::good().mp4_path(), "never uploaded"));
    }

    // The webhook.
    Embedded: no_webhook(s) => ["hook.installed"] {
        s.change_hook(json!({"config": {"url": "https://ci.example.org/github"}}));
    }
    Embedded: a_webhook_to_another_server(s) => ["hook.url"] {
        s.change_hook(json!({"config": {"url": "https://old.example.org/webhooks/github"}}));
    }
    Embedded: a_webhook_that_is_switched_off(s) => ["hook.active"] {
        s.change_hook(json!({"active": false}));
    }
    Embedded: a_webhook_without_pushes(s) => ["hook.events"] {
        s.change_hook(json!({"events": ["release"]}));
    }
    Embedded: a_webhook_without_a_secret(s) => ["hook.secret"] {
        let config = json!({"url": RECEIVER, "content_type": "json"});
        s.change_hook(json!({"config": {"url": "https://ci.example.org/"}}));
        s.hook = s.github.add_hook(&json!({"config": config}));
    }
    Embedded: a_webhook_that_trusts_any_certificate(s) => ["hook.tls"] {
        s.change_hook(json!({"config": {"insecure_ssl": "1"}}));
    }
    Embedded: a_delivery_that_never_arrived(s) => ["hook.deliveries"] {
        let push = s.github.push(s.github.head(), s.github.head());
        s.github.record(s.hook, &push, "timed out", 0);
    }
    Embedded: deliveries_signed_with_another_secret(s) => ["hook.deliveries"] {
        let push = s.github.push(s.github.head(), s.github.head());
        s.github.record(s.hook, &push, "Invalid HTTP Response: 401", 401);
    }

    // The agent.
    Embedded: a_wrong_agent_key(s) => ["openhands.key"] {
        s.config.agent.as_mut().unwrap().key = "another key".into();
    }
    Embedded: an_agent_url_that_serves_a_web_page(s) => ["openhands.version"] {
        s.openhands.fault("/", fake_openhands::Fault::Html);
    }
    Embedded: an_agent_that_does_not_respond(s) => ["openhands.api"] {
        s.config.agent.as_mut().unwrap().api_url = CLOSED.to_owned();
    }

    // The app's database.
    Supabase: a_database_that_does_not_respond(s) => ["database.connect"] {
        s.config.database = Database::Postgres { url: "postgres://u:p@127.0.0.1:1/app".into() };
    }
    Supabase: a_database_of_another_app(s) => ["database.columns"] {
        s.sql("alter table lesson_assets rename to assets").await;
    }
    Supabase: a_database_that_lacks_a_column(s) => ["database.columns"] {
        s.sql("alter table lesson_assets drop metadata").await;
    }
    Supabase: metadata_that_is_text(s) => ["database.columns"] {
        s.sql("alter table lesson_assets alter metadata type text").await;
    }
    Supabase: a_constraint_that_refuses_failures(s) => ["database.constraints"] {
        s.sql("alter table lesson_assets add check (mime_type in ('video/mp4', 'application/pdf'))").await;
    }
    Supabase: a_storage_path_that_cannot_be_null(s) => ["database.constraints"] {
        s.sql("alter table lesson_assets alter storage_path set not null").await;
    }
    Supabase: a_column_that_a_created_row_would_lack(s) => ["database.constraints"] {
        s.config.missing_row = MissingRow::Create;
        s.database.as_ref().unwrap().run_script("missing_row_create.sql");
        s.sql("alter table lesson_assets add course_id uuid not null").await;
    }
    Supabase: changes_that_realtime_does_not_send(s) => ["database.publication"] {
        s.sql("alter publication supabase_realtime drop table lesson_assets").await;
    }
    Supabase: a_role_without_a_right(s) => ["database.rights"] {
        s.sql("revoke update (metadata) on lesson_assets from video_ingest").await;
    }
    Supabase: a_role_that_cannot_create_rows(s) => ["database.rights"] {
        s.config.missing_row = MissingRow::Create;
    }
    Supabase: a_role_that_sees_no_row(s) => ["database.policies"] {
        s.sql("drop policy \"video_ingest reads videos\" on lesson_assets").await;
    }
    Supabase: a_table_without_row_level_security(s) => ["database.policies"] {
        s.sql("alter table lesson_assets disable row level security").await;
    }
    Supabase: a_schema_that_the_api_reaches(s) => ["database.exposed"] {
        s.sql("grant usage on schema video_ingest to anon").await;
    }
    Supabase: a_schema_of_another_owner(s) => ["database.schema"] {
        s.sql("revoke create on schema video_ingest from video_ingest").await;
    }

    // Storage.
    Supabase: a_storage_key_that_is_wrong(s) => ["storage.key"] {
        let url = s.storage.url();
        s.config.store = StoreConfig::Supabase { url, service_role_key: "sb_secret_another".into() };
    }
    Supabase: a_storage_that_does_not_respond(s) => ["storage.reach"] {
        let key = fake_storage::SECRET_KEY.into();
        s.config.store = StoreConfig::Supabase { url: CLOSED.to_owned(), service_role_key: key };
    }
    Supabase: a_bucket_that_does_not_exist(s) => ["storage.bucket"] {
        s.config.storage_bucket = "videos".to_owned();
    }
    Supabase: a_bucket_that_does_not_take_videos(s) => ["storage.mime"] {
        s.storage.create_bucket(BUCKET, None, Some(&["application/pdf"]));
    }
    Supabase: a_bucket_that_is_smaller_than_the_setting(s) => ["storage.size_limit"] {
        s.config.max_video_bytes = Some(52_428_801);
    }
    Supabase: a_bucket_that_is_public(s) => ["storage.private"] {
        let bucket = json!({"id": BUCKET, "name": BUCKET, "public": true,
            "file_size_limit": 52_428_800, "allowed_mime_types": ["video/mp4"]});
        let answer = fake_storage::Answer::new(200, "application/json", bucket.to_string());
        s.storage.fault(Op::Bucket, fake_storage::Fault::Answer(answer));
    }
    Supabase: a_storage_that_rejects_uploads(s) => ["storage.write"] {
        let refusal = fake_storage::Answer::refusal(400, "403", "Unauthorized", "new row violates row-level security policy", "AccessDenied");
        s.storage.fault(Op::Upload, fake_storage::Fault::Answer(refusal));
    }
    Supabase: a_pending_row_that_wants_another_bucket(s) => ["storage.bucket"] {
        let (lesson, user) = (Uuid::new_v4(), Uuid::new_v4());
        s.sql(&format!("insert into lessons (id, user_id, title) values ('{lesson}', '{user}', 't');
            insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
            values (gen_random_uuid(), '{lesson}', '{user}', 'video', 'lesson_assets', 'video/mp4')")).await;
    }
}

#[tokio::test]
async fn objects_that_users_cannot_read_give_a_warning() {
    let setup = SetUp::correct(Backend::Supabase).await;
    setup
        .database
        .as_ref()
        .unwrap()
        .sql("drop policy \"owners read lesson videos\" on storage.objects")
        .await;
    let findings = setup.findings().await;
    let playback = findings
        .iter()
        .find(|f| f.id == "storage.playback")
        .unwrap();
    assert_eq!(playback.mark, Mark::Warning);
    assert!(playback.text.contains("playback.sql"), "{}", playback.text);
}

#[tokio::test]
async fn a_role_that_can_point_rows_to_any_object_gives_a_warning() {
    let setup = SetUp::correct(Backend::Supabase).await;
    setup
        .sql("drop function video_ingest.refuse_storage_path cascade")
        .await;
    let findings = setup.findings().await;
    let extra = findings.iter().find(|f| f.id == "database.extra_rights");
    let extra = extra.expect("a finding");
    assert_eq!(extra.mark, Mark::Warning);
    assert!(extra.text.contains("storage_path"), "{}", extra.text);
}

#[tokio::test]
async fn a_superuser_connection_gives_a_warning() {
    let mut setup = SetUp::correct(Backend::Supabase).await;
    // Row-level security does not apply to the owner, so this has no effect on what is reported.
    setup
        .sql("alter table lesson_assets disable row level security")
        .await;
    let url = setup.database.as_ref().unwrap().admin_url.clone();
    setup.config.database = Database::Postgres { url: url.into() };
    let findings = setup.findings().await;
    let extra = findings
        .iter()
        .find(|f| f.id == "database.extra_rights")
        .unwrap();
    assert_eq!(extra.mark, Mark::Warning);
    assert!(extra.text.contains("row-level security"), "{}", extra.text);
}

#[tokio::test]
async fn an_unencrypted_remote_database_gives_a_warning() {
    let mut setup = SetUp::correct(Backend::Embedded).await;
    // An address of this machine that is not a loopback address.
    setup.config.database = Database::Postgres {
        url: "postgres://u:p@0.0.0.0:1/app?sslmode=prefer".into(),
    };
    let findings = setup.findings().await;
    let tls = findings.iter().find(|f| f.id == "database.tls").unwrap();
    assert_eq!(tls.mark, Mark::Warning, "{}", tls.text);
}

#[tokio::test]
async fn videos_pushed_without_lfs_give_a_warning() {
    let setup = SetUp::correct(Backend::Embedded).await;
    let attributes = "*.mp4 filter=lfs diff=lfs merge=lfs -text\n";
    setup
        .github
        .commit(|c| c.write(".gitattributes", attributes));
    let findings = setup.findings().await;
    let lfs = findings.iter().find(|f| f.id == "github.lfs").unwrap();
    assert_eq!(lfs.mark, Mark::Warning, "{}", lfs.text);
}

#[tokio::test]
async fn every_check_passes_behind_a_transaction_pooler() {
    let mut setup = SetUp::correct(Backend::Supabase).await;
    let url = setup.database.as_ref().unwrap().pooled_url();
    setup.config.database = Database::Postgres { url: url.into() };
    assert_eq!(setup.failed().await, [""; 0]);
}
