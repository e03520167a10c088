//! The one table of settings. Flags, look-ups and the README's reference all come from it.

/// What holds when a setting is not set.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// The setting has this value.
    Value(&'static str),
    /// No value; in words, what happens then.
    Words(&'static str),
    /// The server does not start.
    Required,
}

/// One environment variable, and the flag of the same name.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// What holds when it is not set.
    pub default: Fallback,
    /// One line for the reference and for `--help`, without `|`.
    pub meaning: &'static str,
    /// Never printed, and without a flag (it would show in `ps`); may be in the file `<NAME>_FILE` names.
    pub secret: bool,
}

impl Setting {
    /// The flag without its dashes: the name in kebab-case.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// The variable that names a file holding this secret.
    pub fn file_variable(&self) -> String {
        format!("{}_FILE", self.name)
    }

    fn default_in_words(&self) -> String {
        match self.default {
            Fallback::Value(value) => format!("`{value}`"),
            Fallback::Words(words) => words.to_owned(),
            Fallback::Required => "required".to_owned(),
        }
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
        "where to listen; wins over `PORT`";
    PORT = plain, Words("none"),
        "listen on this port of all addresses (`0.0.0.0`)";
    DATA_DIR = plain, Value("./data"),
        "embedded database, folder store, spool of large downloads";
    DATABASE_URL = secret, Words("none"),
        "the application's Postgres; with both `SUPABASE_` settings: Supabase mode, without all three: embedded mode";
    SUPABASE_URL = plain, Words("none"),
        "the Supabase project, for its storage";
    SUPABASE_SERVICE_ROLE_KEY = secret, Words("none"),
        "key for the storage: `sb_secret_…` or the legacy service role JWT; 16 bytes or more";
    STORE = plain, Words("by the three above"),
        "`folder`: keep videos in `DATA_DIR` although `DATABASE_URL` is set";
    STORAGE_BUCKET = plain, Value("lesson-assets"),
        "bucket for rows that name none";
    GITHUB_WEBHOOK_SECRET = secret, Required,
        "what GitHub signs its deliveries with; 16 bytes or more";
    GITHUB_WEBHOOK_SECRET_PREVIOUS = secret, Words("none"),
        "accepted too, while the secret is being rotated";
    GITHUB_REPOSITORY = plain, Required,
        "the repository videos are pushed to: `owner/name`";
    GITHUB_BRANCH = plain, Words("the repository's default branch"),
        "the branch whose videos count";
    GITHUB_VIDEOS_DIR = plain, Value("videos"),
        "folder of the videos in the repository";
    GITHUB_TOKEN = secret, Words("none"),
        "needs to read the repository's contents; without it, only public repositories within 60 calls an hour";
    GITHUB_API_URL = plain, Value("https://api.github.com"),
        "for GitHub Enterprise: `https://<host>/api/v3`";
    OPENHANDS_API_KEY = secret, Words("none: the sweep does not ask about generation"),
        "to ask OpenHands whether a video is still being generated";
    OPENHAND_API_KEY = secret, Words("none"),
        "older spelling of `OPENHANDS_API_KEY`";
    OPENHANDS_API_URL = plain, Value("https://app.all-hands.dev"),
        "for a self-hosted OpenHands";
    OPENHANDS_API_VERSION = plain, Value("v1"),
        "`v1`, or `v0` for older self-hosted servers";
    ADMIN_TOKEN = secret, Words("none: `/reconcile`, `/api/*` and the page answer 404"),
        "bearer token of the operator; 16 bytes or more";
    RECONCILE_INTERVAL = plain, Value("5m"),
        "time between sweeps, the first one at start; `0`: neither";
    WORKERS = plain, Value("4"),
        "videos ingested at once, up to 64; `0`: this process only receives";
    MAX_VIDEO_BYTES = plain, Words("the bucket's limit, else `52428800`"),
        "largest video, in bytes";
    GENERATION_DEADLINE = plain, Value("6h"),
        "a row older than this without a video is failed";
    METADATA_GRACE = plain, Value("10m"),
        "how long an `.mp4` waits for its `.json`; then it is ingested without";
    MISSING_ROW = plain, Words("`wait` with `DATABASE_URL`, else `create`"),
        "a video without a row: `wait` for the row, or `create` it";
    DEFAULT_USER_ID = plain, Value("00000000-0000-0000-0000-000000000000"),
        "owner of rows created in embedded mode";
    LEASE = plain, Value("30s"),
        "how long a replica that fell silent keeps its videos: `5s` to `10m`";
    HISTORY_RETENTION = plain, Value("30d"),
        "deliveries and timelines older than this are pruned";
    LOG_FORMAT = plain, Words("`text` on a terminal, else `json`"),
        "`text` or `json`";
    RUST_LOG = plain, Value("info"),
        "what is logged, as `tracing-subscriber` reads it: `info,video_ingest=debug`";
}

/// One flag for each setting that is no secret; the argument's id is the variable's name.
pub fn arguments() -> Vec<clap::Arg> {
    let plain = SETTINGS.iter().filter(|setting| !setting.secret);
    plain
        .map(|setting| {
            // clap keeps flag names for the life of the process, and they are made once in it.
            let flag: &'static str = setting.flag().leak();
            let default = match setting.default {
                Fallback::Value(text) | Fallback::Words(text) => format!("[default: {text}]"),
                Fallback::Required => "[required]".to_owned(),
            };
            clap::Arg::new(setting.name)
                .long(flag)
                .value_name(setting.name)
                .help(format!("{} {default}", setting.meaning))
                .help_heading("Settings (flag, else environment, else .env)")
        })
        .collect()
}

/// The settings that have no flag, for the end of `--help`.
pub fn secrets_help() -> String {
    let secrets = SETTINGS.iter().filter(|setting| setting.secret);
    let lines = secrets.map(|setting| format!("  {}: {}\n", setting.name, setting.meaning));
    format!(
        "Secrets (environment, else .env; or NAME_FILE with the path of a file):\n{}",
        lines.collect::<String>()
    )
}

/// The README's settings reference: a markdown table.
pub fn reference() -> String {
    let rows = SETTINGS.iter().map(|setting| {
        let secret = if setting.secret { " (secret)" } else { "" };
        let default = setting.default_in_words();
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
