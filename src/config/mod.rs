//! Settings: the only place that reads the environment.
//!
//! A flag wins over the environment, the environment over `.env`, that over the default. Everything
//! that is wrong is reported at once, so that a deployment is not mended one restart at a time.

mod rules;
mod settings;
mod sources;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

pub use crate::domain::generation::OpenHandsVersion;
use crate::domain::ids::RepoName;
use crate::domain::signature::same_secret;
use crate::failpoint::FailPoints;

pub use settings::{
    Fallback, GITHUB_WEBHOOK_SECRET, SETTINGS, Setting, arguments, reference, secrets_help,
};
pub use sources::{Problem, Sources};

use settings::*;
use sources::{Layer, Reader};

/// Most videos ingested at once by one process.
const WORKERS_MAX: usize = 64;

/// Largest `MAX_VIDEO_BYTES`: what the databases' `bigint` holds.
const VIDEO_BYTES_CEILING: u64 = i64::MAX as u64;

/// Everything that can be set, checked. Printing it shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Embedded database, folder store, spool.
    pub data_dir: PathBuf,
    /// The database of rows and work.
    pub database: Database,
    /// Where videos are kept.
    pub store: StoreConfig,
    /// Bucket for rows that name none.
    pub storage_bucket: String,
    /// Secrets a delivery may be signed with: the current one and, during rotation, the previous.
    pub webhook_secrets: Vec<SecretString>,
    /// The repository videos are pushed to.
    pub github: GithubConfig,
    /// The agent's API; `None`: the sweep does not ask about generation.
    pub agent: Option<OpenHandsConfig>,
    /// The operator's bearer token; `None`: admin routes answer 404.
    pub admin_token: Option<SecretString>,
    /// Time between sweeps; `None`: no sweep by itself, not even at start.
    pub reconcile_interval: Option<Duration>,
    /// Videos ingested at once; 0: this process only receives.
    pub workers: usize,
    /// Largest video in bytes; `None`: the bucket's limit decides.
    pub max_video_bytes: Option<u64>,
    /// A row older than this without a video is failed.
    pub generation_deadline: Duration,
    /// How long an `.mp4` waits for its `.json`.
    pub metadata_grace: Duration,
    /// What to do about a video without a row.
    pub missing_row: MissingRow,
    /// Owner of rows that are created in embedded mode.
    pub default_user_id: Uuid,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
    /// Deliveries and timelines older than this are pruned.
    pub history_retention: Duration,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Armed by tests.
    pub fail_points: FailPoints,
}

/// The database of rows and work.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file in `DATA_DIR`.
    Sqlite,
    /// The application's.
    Postgres {
        /// With user and password, hence a secret.
        url: SecretString,
    },
}

/// Where videos are kept.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// A folder in `DATA_DIR`.
    Folder,
    /// Supabase Storage.
    Supabase {
        /// The project, without a slash at the end.
        url: String,
        /// `sb_secret_…`, or a legacy JWT.
        service_role_key: SecretString,
    },
}

/// The repository videos are pushed to.
#[derive(Clone, Debug)]
pub struct GithubConfig {
    /// Its name.
    pub repository: RepoName,
    /// The branch whose videos count; `None`: the repository's default branch.
    pub branch: Option<String>,
    /// Folder of the videos, without slashes at either end.
    pub videos_dir: String,
    /// Reads the repository's contents.
    pub token: Option<SecretString>,
    /// Base of the REST API, without a slash at the end.
    pub api_url: String,
}

/// The agent's API.
#[derive(Clone, Debug)]
pub struct OpenHandsConfig {
    /// Bearer token.
    pub key: SecretString,
    /// Base of the API, without a slash at the end.
    pub api_url: String,
    /// Which API that server speaks.
    pub version: OpenHandsVersion,
}

/// What to do about a pushed video that has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingRow {
    /// Wait for the application to insert it.
    Wait,
    /// Insert it.
    Create,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `None`: text on a terminal, else JSON.
    pub format: Option<LogFormat>,
    /// Directives of `tracing-subscriber`, known to parse.
    pub filter: String,
}

/// One line per event, for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Config {
    /// Reads and checks everything; the error holds all that is wrong, not just the first.
    pub fn load(sources: &Sources) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        let config = read(&mut reader);
        reader.finish(config)
    }

    /// The listen address alone, for commands that work with otherwise incomplete settings.
    pub fn listen_addr(sources: &Sources) -> Result<SocketAddr, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        let listen = read_listen(&mut reader);
        reader.finish(listen)
    }

    /// The admin token alone, for commands that work with otherwise incomplete settings.
    pub fn admin_token(sources: &Sources) -> Result<Option<SecretString>, Vec<Problem>> {
        let mut reader = Reader::new(sources);
        let token = read_admin_token(&mut reader);
        reader.finish(Some(token))
    }

    /// Embedded mode with every default, for the demo and tests; reads nothing from outside.
    ///
    /// # Panics
    /// When an argument would be refused as a setting.
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

/// Reads every setting before it gives up on any, so that each problem is found.
fn read(r: &mut Reader<'_>) -> Option<Config> {
    let listen = read_listen(r);
    let data_dir = r.value(&DATA_DIR, |text| Ok(PathBuf::from(text)));

    let database_url = r.secret(&[DATABASE_URL], &[rules::postgres_url]);
    let supabase_url = r.value(&SUPABASE_URL, rules::base_url);
    let service_role_key = r.secret(
        &[SUPABASE_SERVICE_ROLE_KEY],
        &[rules::long_enough, rules::sendable],
    );
    let mode = read_mode(r);
    let storage_bucket = r.value(&STORAGE_BUCKET, rules::bucket);

    let webhook_secret = r.secret(&[GITHUB_WEBHOOK_SECRET], &[rules::long_enough]);
    let previous_secret = r.secret(&[GITHUB_WEBHOOK_SECRET_PREVIOUS], &[rules::long_enough]);
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
    let admin_token = read_admin_token(r);
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

    let log_format = r.value(&LOG_FORMAT, |text| {
        rules::one_of(
            text,
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        )
    });
    let log_filter = r.value(&RUST_LOG, rules::log_filter);
    // On purpose in no reference.
    #[cfg(feature = "fail-points")]
    let fail_points = r.undocumented("FAIL_POINTS", str::parse);
    #[cfg(not(feature = "fail-points"))]
    let fail_points = Some(FailPoints);

    let (database, store) = match mode? {
        Mode::Embedded => (Database::Sqlite, StoreConfig::Folder),
        Mode::PostgresAndFolder => (
            Database::Postgres { url: database_url? },
            StoreConfig::Folder,
        ),
        Mode::Supabase => (
            Database::Postgres { url: database_url? },
            StoreConfig::Supabase {
                url: supabase_url?,
                service_role_key: service_role_key?,
            },
        ),
    };
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
        log: LogConfig {
            format: log_format,
            filter: log_filter?,
        },
        fail_points: fail_points?,
    })
}

/// `LISTEN_ADDR`, else `PORT`; but a flag `--port` wins over `LISTEN_ADDR` in the environment.
fn read_listen(r: &mut Reader<'_>) -> Option<SocketAddr> {
    let is_set = |layer: Layer<'_>, setting: &Setting| layer.get(setting.name).is_some();
    let layer = r.layer(|layer| is_set(layer, &LISTEN_ADDR) || is_set(layer, &PORT));
    let port = r.value(&PORT, |text| rules::number(text, 0..=u16::MAX));
    let addr = r.value(&LISTEN_ADDR, |text| {
        let right = "must be an IP address and a port, such as `127.0.0.1:8080` or `[::]:8080`";
        text.parse().map_err(|_| right.to_owned())
    });
    match layer {
        Some(layer) if !is_set(layer, &LISTEN_ADDR) => Some((Ipv4Addr::UNSPECIFIED, port?).into()),
        _ => addr,
    }
}

fn read_admin_token(r: &mut Reader<'_>) -> Option<SecretString> {
    r.secret(&[ADMIN_TOKEN], &[rules::long_enough, rules::sendable])
}

#[derive(Clone, Copy)]
enum Mode {
    Embedded,
    PostgresAndFolder,
    Supabase,
}

/// All three Supabase settings or none; with the folder store, a database may stand alone.
fn read_mode(r: &mut Reader<'_>) -> Option<Mode> {
    let folder = r
        .value(&STORE, |text| rules::one_of(text, &[("folder", ())]))
        .is_some();
    let three = [DATABASE_URL, SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY];
    let set = three.map(|setting| r.is_set(&setting));
    match (set, folder) {
        ([false, false, false], _) => Some(Mode::Embedded),
        ([true, false, false], true) => Some(Mode::PostgresAndFolder),
        ([true, true, true], false) => Some(Mode::Supabase),
        (_, true) => {
            let right = "must be unset beside SUPABASE_URL or SUPABASE_SERVICE_ROLE_KEY: \
                         with `folder`, only DATABASE_URL may be set";
            r.refuse(STORE.name, right);
            None
        }
        (_, false) => {
            for (setting, _) in three.iter().zip(set).filter(|(_, is_set)| !is_set) {
                let right = "is missing: set DATABASE_URL, SUPABASE_URL and \
                             SUPABASE_SERVICE_ROLE_KEY together, or none of them for embedded mode";
                r.refuse(setting.name, right);
            }
            None
        }
    }
}

/// One leaked secret must open one door only.
fn refuse_shared_secrets(r: &mut Reader<'_>, secrets: &[(Setting, &Option<SecretString>)]) {
    for (i, (setting, secret)) in secrets.iter().enumerate() {
        let same = |(_, other): &&(Setting, &Option<SecretString>)| match (secret, other) {
            (Some(a), Some(b)) => {
                same_secret(a.expose_secret().as_bytes(), b.expose_secret().as_bytes())
            }
            _ => false,
        };
        if let Some((other, _)) = secrets[..i].iter().find(same) {
            r.refuse(setting.name, format!("must differ from {}", other.name));
        }
    }
}
