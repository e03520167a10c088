//! The table of settings, from which flags, lookups and the README's reference are generated.

use crate::format::capitalized;

/// What applies when a setting is not set.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// This value.
    Value(&'static str),
    /// No value, and a description of what happens then.
    Words(&'static str),
    /// The server does not start.
    Required,
}

/// One environment variable, and the flag of the same name.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// What applies when it is not set.
    pub default: Fallback,
    /// One line for the reference and for `--help`, without `|`.
    pub meaning: &'static str,
    /// Whether it is never printed and has no flag, which `ps` would show. It may be in the file that
    /// `<NAME>_FILE` names.
    pub secret: bool,
}

impl Setting {
    /// The flag without the leading dashes: the name in kebab-case.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// The variable that names a file with this secret.
    pub fn file_variable(&self) -> String {
        format!("{}_FILE", self.name)
    }
}

macro_rules! settings {
    ($($name:ident = $kind:ident, $default:expr, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $name: Setting = Setting {
                name: stringify!($name),
                default: $default,
                meaning: $meaning,
                secret: settings!(@$kind),
            };
        )*

        /// Every setting, in the order of the reference.
        pub const SETTINGS: &[Setting] = &[$($name,)*];
    };
    (@plain) => { false };
    (@secret) => { true };
}

use Fallback::{Required, Value, Words};

settings! {
    LISTEN_ADDR = plain, Value("127.0.0.1:8080"),
        "address to listen on; takes precedence over `PORT`";
    PORT = plain, Words("none"),
        "port to listen on, on all addresses (`0.0.0.0`)";
    DATA_DIR = plain, Value("./data"),
        "directory of the embedded database, the folder store and large downloads in progress";
    DATABASE_URL = secret, Words("none"),
        "the app's Postgres; with both `SUPABASE_` settings: Supabase mode; without all three: embedded mode";
    SUPABASE_URL = plain, Words("none"),
        "URL of the Supabase project, for Storage";
    SUPABASE_SERVICE_ROLE_KEY = secret, Words("none"),
        "key for Storage: `sb_secret_…` or the legacy service role JWT; 16 bytes or more";
    STORE = plain, Words("depends on the three settings above"),
        "`folder`: store videos in `DATA_DIR` although `DATABASE_URL` is set";
    STORAGE_BUCKET = plain, Value("lesson-assets"),
        "bucket of rows that name none";
    GITHUB_WEBHOOK_SECRET = secret, Required,
        "secret that GitHub signs deliveries with; 16 bytes or more";
    GITHUB_WEBHOOK_SECRET_PREVIOUS = secret, Words("none"),
        "previous secret, also accepted during a rotation";
    GITHUB_REPOSITORY = plain, Required,
        "repository that videos are pushed to: `owner/name`";
    GITHUB_BRANCH = plain, Words("the repository's default branch"),
        "branch that videos are read from";
    GITHUB_VIDEOS_DIR = plain, Value("videos"),
        "folder of the videos in the repository";
    GITHUB_TOKEN = secret, Words("none"),
        "token that can read the repository's contents; without it, only public repositories and 60 requests an hour";
    GITHUB_API_URL = plain, Value("https://api.github.com"),
        "base URL of GitHub's REST API; on GitHub Enterprise `https://<host>/api/v3`";
    OPENHANDS_API_KEY = secret, Words("none: sweeps do not ask about generation"),
        "key for asking OpenHands whether a video is still being generated";
    OPENHAND_API_KEY = secret, Words("none"),
        "older spelling of `OPENHANDS_API_KEY`";
    OPENHANDS_API_URL = plain, Value("https://app.all-hands.dev"),
        "base URL of the OpenHands API, for self-hosted servers";
    OPENHANDS_API_VERSION = plain, Value("v1"),
        "`v1`, or `v0` for older self-hosted servers";
    ADMIN_TOKEN = secret, Words("none: `/reconcile`, `/api/*` and the page return 404"),
        "bearer token of the operator; 16 bytes or more";
    RECONCILE_INTERVAL = plain, Value("5m"),
        "time between sweeps, of which the first runs at start; `0` disables all of them";
    WORKERS = plain, Value("4"),
        "videos ingested at the same time, up to 64; with `0` this process only receives webhooks";
    MAX_VIDEO_BYTES = plain, Words("the bucket's limit, else `52428800`"),
        "size limit of a video, in bytes";
    GENERATION_DEADLINE = plain, Value("6h"),
        "age at which a row without a video is marked as failed";
    METADATA_GRACE = plain, Value("10m"),
        "how long an `.mp4` waits for its `.json` before it is ingested without";
    MISSING_ROW = plain, Words("`wait` with `DATABASE_URL`, else `create`"),
        "for a video without a row: `wait` for the row, or `create` it";
    DEFAULT_USER_ID = plain, Value("00000000-0000-0000-0000-000000000000"),
        "owner of rows created in embedded mode";
    LEASE = plain, Value("30s"),
        "how long a replica that stopped responding keeps its videos: `5s` to `10m`";
    HISTORY_RETENTION = plain, Value("30d"),
        "deliveries and timelines older than this are deleted";
    LOG_FORMAT = plain, Words("`text` on a terminal, else `json`"),
        "`text` or `json`";
    RUST_LOG = plain, Value("info"),
        "log filter in the syntax of `tracing-subscriber`: `info,video_ingest=debug`";
}

/// One flag for each setting that is not a secret.
pub fn arguments() -> Vec<clap::Arg> {
    let plain = SETTINGS.iter().filter(|setting| !setting.secret);
    plain.map(argument).collect()
}

/// The flag of a setting; the argument's id is the variable's name.
pub fn argument(setting: &Setting) -> clap::Arg {
    // clap keeps flag names for the life of the process, in which they are made once.
    let flag: &'static str = setting.flag().leak();
    let default = match setting.default {
        Value(text) | Words(text) => format!("[default: {text}]"),
        Required => "[required]".to_owned(),
    };
    clap::Arg::new(setting.name)
        .long(flag)
        .value_name(setting.name)
        .help(format!("{} {default}", capitalized(setting.meaning)))
        .help_heading("Settings (flag, else environment, else .env)")
}

/// The settings that have no flag, for the end of `--help`.
pub fn secrets_help() -> String {
    let secrets = SETTINGS.iter().filter(|setting| setting.secret);
    let lines = secrets.map(|setting| format!("  {}: {}\n", setting.name, setting.meaning));
    format!(
        "Secrets (environment, else .env; NAME_FILE may name a file with the secret instead):\n{}",
        lines.collect::<String>()
    )
}

/// The README's reference of settings: a Markdown table.
pub fn reference() -> String {
    let rows = SETTINGS.iter().map(|setting| {
        let secret = if setting.secret { " (secret)" } else { "" };
        let default = match setting.default {
            Value(value) => format!("`{value}`"),
            Words(words) => words.to_owned(),
            Required => "required".to_owned(),
        };
        format!(
            "| `{}`{secret} | {default} | {} |\n",
            setting.name, setting.meaning
        )
    });
    format!(
        "| variable | default | meaning |\n|---|---|---|\n{}",
        rows.collect::<String>()
    )
}
