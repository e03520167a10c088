//! Settings, and the only place that reads the environment.
//!
//! A flag takes precedence over the environment, which takes precedence over `.env`, then the default.
//! All problems are reported at once, so that one restart is enough to fix a deployment.

mod postgres;
mod rules;
mod settings;
mod sources;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

pub use crate::domain::generation::OpenHandsVersion;
use crate::domain::ids::RepoName;
use crate::domain::strength::Strength;
use crate::failpoint::FailPoints;

pub use postgres::Tls;
pub use rules::{base_url, duration, url};
pub use settings::{
    ADMIN_TOKEN, DATA_DIR, DATABASE_TLS, DATABASE_URL, Fallback, GITHUB_API_URL, GITHUB_REPOSITORY,
    GITHUB_TOKEN, GITHUB_WEBHOOK_SECRET, LISTEN_ADDR, PORT, SETTINGS, Setting, argument, arguments,
    reference, secrets_help,
};
pub use sources::{Problem, Sources};

use settings::*;
use sources::{Reader, is_same};

/// Upper limit of `WORKERS`.
const WORKERS_MAX: usize = 64;

/// The variable from which the database driver takes a password that the URL lacks.
const PGPASSWORD: &str = "PGPASSWORD";

/// Upper limit of `MAX_VIDEO_BYTES`: the largest `bigint` of the databases.
const VIDEO_BYTES_CEILING: u64 = i64::MAX as u64;

/// What is wrong with a weak secret, as the rest of a sentence after its name.
pub const WEAK: &str =
    "is easier to guess than a random secret: replace it with the output of `openssl rand -hex 32`";

/// The validated configuration. Its `Debug` output contains no secret.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Directory of the embedded database, the folder store and the spool.
    pub data_dir: PathBuf,
    /// The database of the rows and the queue.
    pub database: Database,
    /// Where videos are stored.
    pub store: StoreConfig,
    /// Bucket for rows that do not specify one.
    pub storage_bucket: String,
    /// Secrets that a delivery may be signed with: the current one and, during a rotation, the previous.
    pub webhook_secrets: Vec<SecretString>,
    /// The repository that videos are pushed to.
    pub github: GithubConfig,
    /// The OpenHands API; `None`: sweeps do not ask about generation.
    pub agent: Option<OpenHandsConfig>,
    /// The operator's bearer token; `None`: operator routes return 404.
    pub admin_token: Option<SecretString>,
    /// Time between sweeps; `None`: no automatic sweep, not even at startup.
    pub reconcile_interval: Option<Duration>,
    /// Videos ingested at the same time; 0: this process only receives webhooks.
    pub workers: usize,
    /// Size limit of a video in bytes; `None`: the bucket's limit.
    pub max_video_bytes: Option<u64>,
    /// Age at which a row without a video is marked as failed.
    pub generation_deadline: Duration,
    /// How long to wait for a video's `.json` file before ingesting the video without it.
    pub metadata_grace: Duration,
    /// What to do with a video without a row.
    pub missing_row: MissingRow,
    /// Owner of rows created in embedded mode.
    pub default_user_id: Uuid,
    /// How long a claim is valid without being renewed.
    pub lease: Duration,
    /// How long deliveries and timelines are kept.
    pub history_retention: Duration,
    /// Log format and filter.
    pub log: LogConfig,
    /// Armed by tests.
    pub fail_points: FailPoints,
}

/// The database of the rows and the queue.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file in `DATA_DIR`.
    Sqlite,
    /// The app's Postgres.
    Postgres {
        /// A secret, because it contains user and password.
        url: SecretString,
    },
}

/// Where videos are stored.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// A folder in `DATA_DIR`.
    Folder,
    /// Supabase Storage.
    Supabase {
        /// Base URL of the project, without a trailing slash.
        url: String,
        /// `sb_secret_…` or a legacy JWT.
        service_role_key: SecretString,
    },
}

/// The repository that videos are pushed to.
#[derive(Clone, Debug)]
pub struct GithubConfig {
    /// Owner and name.
    pub repository: RepoName,
    /// The branch that videos are read from; `None`: the repository's default branch.
    pub branch: Option<String>,
    /// Folder of the videos, without slashes at either end.
    pub videos_dir: String,
    /// Token that can read the repository's contents.
    pub token: Option<SecretString>,
    /// Base URL of the REST API, without a trailing slash.
    pub api_url: String,
}

/// The OpenHands API.
#[derive(Clone, Debug)]
pub struct OpenHandsConfig {
    /// Bearer token.
    pub key: SecretString,
    /// Base URL of the API, without a trailing slash.
    pub api_url: String,
    /// The API version of that server.
    pub version: OpenHandsVersion,
}

/// What to do with a pushed video that has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingRow {
    /// Wait until the app inserts the row.
    Wait,
    /// Insert the row.
    Create,
}

/// Log format and filter.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `None`: text on a terminal, else JSON.
    pub format: Option<LogFormat>,
    /// Valid directives of `tracing-subscriber`.
    pub filter: String,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Config {
    /// Reads and validates all settings.
    ///
    /// # Errors
    /// Every problem, not only the first.
    pub fn load(sources: &Sources) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        let config = read(&mut reader);
        reader.finish(config)
    }

    /// What is allowed but dangerous, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        let weakness = match &self.database {
            Database::Sqlite => None,
            Database::Postgres { url } => Tls::of(url).and_then(Tls::weakness),
        };
        let tls = weakness.map(|weakness| format!("{} {weakness}.", DATABASE_URL.name));
        let weak = self.own_secrets().filter_map(|(name, secret)| {
            let is_weak = Strength::of(secret.expose_secret()) < Strength::Strong;
            is_weak.then(|| format!("{name} {WEAK}."))
        });
        tls.into_iter().chain(weak).collect()
    }

    /// The secrets that this server compares, with the names of their settings.
    pub fn own_secrets(&self) -> impl Iterator<Item = (&'static str, &SecretString)> {
        let names = [GITHUB_WEBHOOK_SECRET, GITHUB_WEBHOOK_SECRET_PREVIOUS];
        let webhook = names.into_iter().zip(&self.webhook_secrets);
        let admin = self.admin_token.iter().map(|token| (ADMIN_TOKEN, token));
        webhook
            .chain(admin)
            .map(|(setting, secret)| (setting.name, secret))
    }

    /// Every secret value, to remove it from texts of other services.
    pub fn secrets(&self) -> Vec<String> {
        let key = match &self.store {
            StoreConfig::Folder => None,
            StoreConfig::Supabase {
                service_role_key, ..
            } => Some(service_role_key),
        };
        let agent = self.agent.as_ref().map(|agent| &agent.key);
        let others = [key, agent, self.github.token.as_ref()];
        let secrets = self.own_secrets().map(|(_, secret)| secret);
        let secrets = secrets.chain(others.into_iter().flatten());
        let mut secrets: Vec<String> = secrets.map(|s| s.expose_secret().to_owned()).collect();
        if let Database::Postgres { url } = &self.database {
            secrets.push(url.expose_secret().to_owned());
            secrets.extend(postgres::passwords(url));
        }
        secrets
    }

    /// Reads the listen address alone, for commands that work with an otherwise incomplete configuration.
    ///
    /// # Errors
    /// Every problem with it.
    pub fn listen_addr(sources: &Sources) -> Result<SocketAddr, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        let listen = read_listen(&mut reader);
        reader.finish(listen)
    }

    /// Reads the address of the server on this machine, to which commands send the admin token.
    ///
    /// # Errors
    /// Returns all problems, including that the token would be sent to another server or without encryption.
    pub fn local_server(sources: &Sources) -> Result<SocketAddr, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        let listen = read_listen(&mut reader);
        if sources.would_leak(ADMIN_TOKEN, &[LISTEN_ADDR, PORT]) {
            let has_address = sources.is_in_dotenv(&[LISTEN_ADDR]);
            let address = if has_address { LISTEN_ADDR } else { PORT };
            let right = format!(
                "{}, or specify the server with --url",
                foreign(ADMIN_TOKEN.name)
            );
            reader.refuse::<()>(address.name, right);
        }
        let is_public = |address: &SocketAddr| {
            !address.ip().is_unspecified() && rules::url(&format!("http://{address}")).is_err()
        };
        if listen.as_ref().is_some_and(is_public) {
            let right = "is a public address, to which ADMIN_TOKEN would be sent without encryption: specify the server's `https://` URL with --url";
            reader.refuse::<()>(LISTEN_ADDR.name, right);
        }
        reader.finish(listen)
    }

    /// Reads the admin token alone, for commands that work with an otherwise incomplete configuration.
    ///
    /// # Errors
    /// Every problem with it.
    pub fn admin_token(sources: &Sources) -> Result<Option<SecretString>, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        // Only the server refuses a trivial token: a server of an older version may still use one.
        let token = read_admin_token(&mut reader, &[rules::long_enough]);
        reader.finish(Some(token))
    }

    /// Embedded mode with default values, for the demo and tests. Reads no file and no environment.
    ///
    /// # Panics
    /// Panics if an argument is not valid as a setting.
    pub fn embedded(
        data_dir: &Path,
        listen: SocketAddr,
        repository: &str,
        api_url: &str,
        webhook_secret: &str,
    ) -> Self {
        let given = [
            (GITHUB_REPOSITORY, repository),
            (GITHUB_API_URL, api_url),
            (GITHUB_WEBHOOK_SECRET, webhook_secret),
        ];
        let given = given.map(|(setting, value)| (setting.name.to_owned(), value.to_owned()));
        let sources = Sources {
            env: given.into(),
            ..Sources::default()
        };
        match Self::load(&sources) {
            Ok(config) => Self {
                data_dir: data_dir.to_owned(),
                listen,
                ..config
            },
            Err(problems) => panic!("{problems:?}"),
        }
    }
}

/// Reads every setting before it returns, so that all problems are found.
fn read(r: &mut Reader<'_>) -> Option<Config> {
    let listen = read_listen(r);
    let data_dir = r.value(&DATA_DIR, |text| Ok(PathBuf::from(text)));

    let database_url = read_database_url(r);
    let supabase_url = r.value(&SUPABASE_URL, rules::base_url);
    let service_role_key = r.secret(
        &[SUPABASE_SERVICE_ROLE_KEY],
        &[rules::long_enough, rules::sendable, rules::service_key],
    );
    let storage_bucket = r.value(&STORAGE_BUCKET, rules::bucket);

    let own = [rules::long_enough, rules::not_trivial];
    let webhook_secret = r.secret(&[GITHUB_WEBHOOK_SECRET], &own);
    let previous_secret = r.secret(&[GITHUB_WEBHOOK_SECRET_PREVIOUS], &own);
    let repository = r.value(&GITHUB_REPOSITORY, rules::repository);
    let branch = r.value(&GITHUB_BRANCH, rules::branch);
    let videos_dir = r.value(&GITHUB_VIDEOS_DIR, rules::videos_dir);
    let github_token = r.secret(&[GITHUB_TOKEN], &[rules::sendable]);
    let github_api_url = r.value(&GITHUB_API_URL, rules::base_url);

    let agent_key = r.secret(&[OPENHANDS_API_KEY, OPENHAND_API_KEY], &[rules::sendable]);
    let agent_api_url = r.value(&OPENHANDS_API_URL, rules::base_url);
    let agent_version = r.value(&OPENHANDS_API_VERSION, |text| {
        rules::one_of(
            text,
            &[("v1", OpenHandsVersion::V1), ("v0", OpenHandsVersion::V0)],
        )
    });
    let admin_token = read_admin_token(r, &own);
    refuse_shared_secrets(
        r,
        &[
            (GITHUB_WEBHOOK_SECRET, &webhook_secret),
            (GITHUB_WEBHOOK_SECRET_PREVIOUS, &previous_secret),
            (ADMIN_TOKEN, &admin_token),
            (SUPABASE_SERVICE_ROLE_KEY, &service_role_key),
            (GITHUB_TOKEN, &github_token),
            (OPENHANDS_API_KEY, &agent_key),
        ],
    );
    refuse_foreign_addresses(r, database_url.as_ref());

    let reconcile_interval = r.value(&RECONCILE_INTERVAL, |text| {
        rules::duration_or_never(text, rules::ANY_DURATION)
    });
    let workers = r.value(&WORKERS, |text| rules::number(text, 0..=WORKERS_MAX));
    let max_video_bytes = r.value(&MAX_VIDEO_BYTES, |text| {
        rules::number(text, 1..=VIDEO_BYTES_CEILING)
    });
    let mut any_duration =
        |setting| r.value(setting, |text| rules::duration(text, rules::ANY_DURATION));
    let generation_deadline = any_duration(&GENERATION_DEADLINE);
    let metadata_grace = any_duration(&METADATA_GRACE);
    let history_retention = any_duration(&HISTORY_RETENTION);
    let lease = r.value(&LEASE, |text| rules::duration(text, rules::LEASE));
    let missing_row = r.value(&MISSING_ROW, |text| {
        rules::one_of(
            text,
            &[("wait", MissingRow::Wait), ("create", MissingRow::Create)],
        )
    });
    let default_user_id = r.value(&DEFAULT_USER_ID, rules::uuid);

    let log = read_log(r);
    let fail_points = read_fail_points(r);

    let (database, store) = read_mode(r, database_url, supabase_url, service_role_key)?;
    let missing_row = missing_row.unwrap_or(match database {
        Database::Sqlite => MissingRow::Create,
        Database::Postgres { .. } => MissingRow::Wait,
    });
    let agent = match agent_key {
        Some(key) => Some(OpenHandsConfig {
            key,
            api_url: agent_api_url?,
            version: agent_version?,
        }),
        None => None,
    };
    Some(Config {
        listen: listen?,
        data_dir: data_dir?,
        database,
        store,
        storage_bucket: storage_bucket?,
        webhook_secrets: [Some(webhook_secret?), previous_secret]
            .into_iter()
            .flatten()
            .collect(),
        github: GithubConfig {
            repository: repository?,
            branch,
            videos_dir: videos_dir?,
            token: github_token,
            api_url: github_api_url?,
        },
        agent,
        admin_token,
        reconcile_interval: reconcile_interval?,
        workers: workers?,
        max_video_bytes,
        generation_deadline: generation_deadline?,
        metadata_grace: metadata_grace?,
        missing_row,
        default_user_id: default_user_id?,
        lease: lease?,
        history_retention: history_retention?,
        log: log?,
        fail_points: fail_points?,
    })
}

fn read_log(r: &mut Reader<'_>) -> Option<LogConfig> {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = r.value(&LOG_FORMAT, |text| rules::one_of(text, &formats));
    let filter = r.value(&RUST_LOG, rules::log_filter)?;
    Some(LogConfig { format, filter })
}

/// The URL of a database whose connection is as protected as `DATABASE_TLS` demands.
fn read_database_url(r: &mut Reader<'_>) -> Option<SecretString> {
    let modes = [("verify", true), ("insecure", false)];
    let verify = r.value(&DATABASE_TLS, |text| rules::one_of(text, &modes));
    if verify == Some(false) {
        r.secret(&[DATABASE_URL], &[postgres::url])
    } else {
        r.secret(&[DATABASE_URL], &[postgres::url, postgres::verified])
    }
}

/// The one setting that is deliberately undocumented.
#[cfg(feature = "fail-points")]
fn read_fail_points(r: &mut Reader<'_>) -> Option<FailPoints> {
    match r.text("FAIL_POINTS") {
        Some(text) => r.check("FAIL_POINTS", text.parse()),
        None => Some(FailPoints::default()),
    }
}

/// Builds for users have no fail points.
#[cfg(not(feature = "fail-points"))]
fn read_fail_points(_: &mut Reader<'_>) -> Option<FailPoints> {
    Some(FailPoints)
}

/// `LISTEN_ADDR`, else `PORT`. A flag `--port` takes precedence over `LISTEN_ADDR` in the environment.
fn read_listen(r: &mut Reader<'_>) -> Option<SocketAddr> {
    let layer = r.sources.layer(&[LISTEN_ADDR, PORT]);
    let port = r.value(&PORT, |text| rules::number(text, 0..=u16::MAX));
    let addr = r.value(&LISTEN_ADDR, |text| {
        let right = "must be an IP address and a port, such as `127.0.0.1:8080` or `[::]:8080`";
        text.parse().map_err(|_| right.to_owned())
    });
    match layer {
        Some(layer) if !layer.has(&LISTEN_ADDR) => Some((Ipv4Addr::UNSPECIFIED, port?).into()),
        _ => addr,
    }
}

fn read_admin_token(
    r: &mut Reader<'_>,
    rules: &[fn(&str) -> rules::Rule<()>],
) -> Option<SecretString> {
    r.secret(&[ADMIN_TOKEN], &[rules, &[rules::sendable]].concat())
}

/// All three Supabase settings or none; `STORE=folder` allows `DATABASE_URL` alone.
fn read_mode(
    r: &mut Reader<'_>,
    database_url: Option<SecretString>,
    supabase_url: Option<String>,
    service_role_key: Option<SecretString>,
) -> Option<(Database, StoreConfig)> {
    let folder = r.value(&STORE, |text| rules::one_of(text, &[("folder", ())]));
    let three = [DATABASE_URL, SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY];
    match (
        three.map(|setting| r.sources.has(&[setting])),
        folder.is_some(),
    ) {
        ([false, false, false], _) => Some((Database::Sqlite, StoreConfig::Folder)),
        ([true, false, false], true) => Some((
            Database::Postgres { url: database_url? },
            StoreConfig::Folder,
        )),
        ([true, true, true], false) => Some((
            Database::Postgres { url: database_url? },
            StoreConfig::Supabase {
                url: supabase_url?,
                service_role_key: service_role_key?,
            },
        )),
        (_, true) => {
            let right = "must not be set if SUPABASE_URL or SUPABASE_SERVICE_ROLE_KEY is set: `folder` requires DATABASE_URL alone";
            r.refuse(STORE.name, right)
        }
        (set, false) => {
            for (setting, _) in three.iter().zip(set).filter(|(_, is_set)| !is_set) {
                let right = "is missing: set DATABASE_URL, SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY together, or set none of them to use embedded mode";
                r.refuse::<()>(setting.name, right);
            }
            None
        }
    }
}

/// The address of a server that listens on `address`, as seen from this machine.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// Refuses equal secrets, so that a leaked secret gives access to one thing only.
fn refuse_shared_secrets(r: &mut Reader<'_>, secrets: &[(Setting, &Option<SecretString>)]) {
    for (i, (setting, secret)) in secrets.iter().enumerate() {
        let same = |(_, other): &&(Setting, &Option<SecretString>)| {
            let pair = secret.as_ref().zip(other.as_ref());
            pair.is_some_and(|(a, b)| is_same(a, b))
        };
        if let Some((other, _)) = secrets[..i].iter().find(same) {
            r.refuse::<()>(setting.name, format!("must differ from {}", other.name));
        }
    }
}

/// Refuses an address from `.env` for a secret from the environment.
fn refuse_foreign_addresses(r: &mut Reader<'_>, database_url: Option<&SecretString>) {
    let pairs = [
        (GITHUB_TOKEN, GITHUB_API_URL),
        // `webhook install` sends it.
        (GITHUB_WEBHOOK_SECRET, GITHUB_API_URL),
        (SUPABASE_SERVICE_ROLE_KEY, SUPABASE_URL),
        (OPENHANDS_API_KEY, OPENHANDS_API_URL),
        (OPENHAND_API_KEY, OPENHANDS_API_URL),
        // Not an address, but it decides whether the password in the URL can be intercepted.
        (DATABASE_URL, DATABASE_TLS),
    ];
    for (secret, address) in pairs {
        if r.sources.would_leak(secret, &[address]) {
            r.refuse::<()>(address.name, foreign(secret.name));
        }
    }
    // The driver reads this variable itself.
    let is_exported = r.sources.env.contains_key(PGPASSWORD);
    let is_used = database_url.is_some_and(|url| !postgres::has_password(url));
    if is_exported && is_used && r.sources.is_in_dotenv(&[DATABASE_URL]) {
        r.refuse::<()>(DATABASE_URL.name, foreign(PGPASSWORD));
    }
}

/// Why an address in `.env` is refused, as the rest of a sentence after its name.
fn foreign(secret: &str) -> String {
    format!(
        "is set in `.env`, but {secret} is set in the environment, and `.env` must not determine where a secret from the environment is sent: set both in the environment, or both in `.env`"
    )
}
