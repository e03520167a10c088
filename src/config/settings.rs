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
    /// Whether it is never printed and has no flag, which `ps` would show. It can also be read from the
    /// file specified by `<NAME>_FILE`.
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
        "IP address and port to bind; takes precedence over `PORT`";
    PORT = plain, Words("none"),
        "port to bind on all addresses (`0.0.0.0`)";
    DATA_DIR = plain, Value("./data"),
        "directory for the embedded database, locally stored videos and large downloads in progress";
    DATABASE_URL = secret, Words("none"),
        "connection string for the app's Postgres database; set it together with both `SUPABASE_` settings for Supabase mode, or set none of the three for embedded mode";
    DATABASE_TLS = plain, Value("verify"),
        "`verify`: unless the Postgres host is on this machine or in a private network, `DATABASE_URL` must contain `sslmode=verify-full` or `verify-ca`; `insecure`: any `sslmode` is accepted, and anyone on the network path can read and change the data";
    SUPABASE_URL = plain, Words("none"),
        "URL of the Supabase project, used to access Storage";
    SUPABASE_SERVICE_ROLE_KEY = secret, Words("none"),
        "key used to access Storage: a secret key (`sb_secret_…`) or the legacy service role JWT; at least 16 bytes";
    STORE = plain, Words("Supabase Storage in Supabase mode, `folder` in embedded mode"),
        "set to `folder` to store videos in `DATA_DIR` even if `DATABASE_URL` is set; both `SUPABASE_` settings must then be unset";
    STORAGE_BUCKET = plain, Value("lesson-assets"),
        "bucket for rows that do not specify one";
    GITHUB_WEBHOOK_SECRET = secret, Required,
        "secret used to verify webhook signatures; at least 16 bytes";
    GITHUB_WEBHOOK_SECRET_PREVIOUS = secret, Words("none"),
        "previous webhook secret, which is still accepted during a rotation";
    GITHUB_REPOSITORY = plain, Required,
        "repository that contains the videos, in the form `owner/name`";
    GITHUB_BRANCH = plain, Words("the repository's default branch"),
        "branch that contains the videos";
    GITHUB_VIDEOS_DIR = plain, Value("videos"),
        "folder that contains the videos, relative to the repository's root";
    GITHUB_TOKEN = secret, Words("none"),
        "token that can read the repository's contents; without it, only public repositories work, and GitHub allows only 60 requests per hour";
    GITHUB_API_URL = plain, Value("https://api.github.com"),
        "base URL of GitHub's REST API; for GitHub Enterprise Server, `https://<host>/api/v3`";
    OPENHANDS_API_KEY = secret, Words("none: sweeps do not check generation status"),
        "API key used to ask OpenHands whether a video is still being generated";
    OPENHAND_API_KEY = secret, Words("none"),
        "older spelling of `OPENHANDS_API_KEY`";
    OPENHANDS_API_URL = plain, Value("https://app.all-hands.dev"),
        "base URL of the OpenHands API; change it for a self-hosted server";
    OPENHANDS_API_VERSION = plain, Value("v1"),
        "version of the OpenHands API: `v1`, or `v0` for older self-hosted servers";
    ADMIN_TOKEN = secret, Words("none: `/reconcile`, `/api/*` and the status page return 404"),
        "bearer token for operator access; at least 16 bytes";
    RECONCILE_INTERVAL = plain, Value("5m"),
        "time between automatic sweeps; the first one runs at startup, and `0` disables them entirely";
    WORKERS = plain, Value("4"),
        "number of videos to ingest concurrently, up to 64; with `0`, this process ingests no videos itself";
    MAX_VIDEO_BYTES = plain, Words("the bucket's limit, or `52428800` if it has none"),
        "maximum size of a video, in bytes";
    GENERATION_DEADLINE = plain, Value("6h"),
        "age at which a row is marked as failed if its video has not been pushed";
    METADATA_GRACE = plain, Value("10m"),
        "how long to wait for a video's `.json` file before ingesting the video without it";
    MISSING_ROW = plain, Words("`wait` if `DATABASE_URL` is set, otherwise `create`"),
        "what to do with a video that has no row: `wait` for the row or `create` it";
    DEFAULT_USER_ID = plain, Value("00000000-0000-0000-0000-000000000000"),
        "user ID assigned to rows that are created in embedded mode";
    LEASE = plain, Value("30s"),
        "how long an unresponsive replica keeps its claim on the videos it is ingesting, from `5s` to `10m`";
    HISTORY_RETENTION = plain, Value("30d"),
        "how long deliveries and timelines are kept";
    LOG_FORMAT = plain, Words("`text` on a terminal, otherwise `json`"),
        "log format: `text` or `json`";
    RUST_LOG = plain, Value("info"),
        "log filter in `tracing-subscriber` syntax, such as `info,video_ingest=debug`";
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
        .help_heading("Settings (in order of precedence: flag, environment, .env)")
}

/// Those of the settings that have no flag, for the end of `--help`; empty if there are none.
pub fn secrets_help(settings: &[Setting]) -> String {
    let secrets = settings.iter().filter(|setting| setting.secret);
    let lines = secrets.map(|setting| format!("  {}: {}\n", setting.name, setting.meaning));
    let lines: String = lines.collect();
    if lines.is_empty() {
        return lines;
    }
    format!(
        "Secrets (in order of precedence: environment, .env; to read a secret from a file, set <NAME>_FILE to its path):\n{lines}"
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
