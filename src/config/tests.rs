use std::collections::{BTreeSet, HashMap};
use std::fs;

use super::*;

const WEBHOOK_SECRET: &str = "webhook-secret-of-the-tests";
const SERVICE_KEY: &str = "sb_secret_of-the-tests";
const DATABASE: &str = "postgres://app:hunter2hunter2@localhost/app";

type Pairs<'a> = &'a [(&'a str, &'a str)];

const EMBEDDED: Pairs<'static> = &[
    ("GITHUB_REPOSITORY", "octo/video-artifacts"),
    ("GITHUB_WEBHOOK_SECRET", WEBHOOK_SECRET),
];

const SUPABASE: Pairs<'static> = &[
    ("GITHUB_REPOSITORY", "octo/video-artifacts"),
    ("GITHUB_WEBHOOK_SECRET", WEBHOOK_SECRET),
    ("DATABASE_URL", DATABASE),
    ("SUPABASE_URL", "https://abc.supabase.co/"),
    ("SUPABASE_SERVICE_ROLE_KEY", SERVICE_KEY),
];

/// One wrong value for each rule, on top of embedded mode.
const WRONG: Pairs<'static> = &[
    ("LISTEN_ADDR", "localhost"),
    ("PORT", "65536"),
    ("DATABASE_TLS", "require"),
    ("STORE", "s3"),
    ("STORAGE_BUCKET", "a/b"),
    ("GITHUB_WEBHOOK_SECRET", "short-secret"),
    ("GITHUB_WEBHOOK_SECRET_PREVIOUS", "short-previous"),
    ("GITHUB_REPOSITORY", "video-artifacts"),
    ("GITHUB_BRANCH", "refs/heads/main"),
    ("GITHUB_VIDEOS_DIR", "../videos"),
    ("GITHUB_TOKEN", "two words"),
    ("GITHUB_API_URL", "http://api.github.com"),
    ("OPENHANDS_API_KEY", "line\nbreak"),
    ("OPENHANDS_API_URL", "app.all-hands.dev"),
    ("OPENHANDS_API_VERSION", "2"),
    ("ADMIN_TOKEN", "short-token"),
    ("RECONCILE_INTERVAL", "5"),
    ("WORKERS", "65"),
    ("MAX_VIDEO_BYTES", "50MB"),
    ("GENERATION_DEADLINE", "0"),
    ("METADATA_GRACE", "ten minutes"),
    ("MISSING_ROW", "ignore"),
    ("DEFAULT_USER_ID", "nobody"),
    ("LEASE", "1s"),
    ("HISTORY_RETENTION", "0"),
    ("LOG_FORMAT", "xml"),
    ("RUST_LOG", "video_ingest=loud"),
    ("FAIL_POINTS", "stored"),
];

fn map(pairs: Pairs<'_>) -> HashMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    owned.collect()
}

/// An environment; later pairs replace earlier ones.
fn env(base: Pairs<'_>, more: Pairs<'_>) -> Sources {
    let mut env = map(base);
    env.extend(map(more));
    Sources {
        env,
        ..Sources::default()
    }
}

/// The names of what is wrong, in alphabetical order.
fn refused(sources: &Sources) -> Vec<String> {
    let problems = Config::load(sources).err().unwrap_or_default();
    let mut names: Vec<_> = problems.into_iter().map(|problem| problem.name).collect();
    names.sort();
    names
}

#[test]
fn two_settings_are_enough() {
    let config = Config::load(&env(EMBEDDED, &[])).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.data_dir, Path::new("./data"));
    assert!(matches!(config.database, Database::Sqlite));
    assert!(matches!(config.store, StoreConfig::Folder));
    assert_eq!(config.storage_bucket, "lesson-assets");
    assert_eq!(config.webhook_secrets.len(), 1);
    assert_eq!(config.github.branch, None);
    assert_eq!(config.github.videos_dir, "videos");
    assert_eq!(config.github.api_url, "https://api.github.com");
    assert!(config.github.token.is_none() && config.agent.is_none());
    assert!(config.admin_token.is_none());
    assert_eq!(config.reconcile_interval, Some(Duration::from_secs(300)));
    assert_eq!((config.workers, config.max_video_bytes), (4, None));
    assert_eq!(config.generation_deadline.as_secs(), 6 * 3600);
    assert_eq!(config.metadata_grace.as_secs(), 600);
    assert_eq!(config.missing_row, MissingRow::Create);
    assert_eq!(config.default_user_id, Uuid::nil());
    assert_eq!(config.lease.as_secs(), 30);
    assert_eq!(config.history_retention.as_secs(), 30 * 86_400);
    assert_eq!(config.log.format, None);
    assert_eq!(config.log.filter, "info");
    assert_eq!(
        format!("{:?}", config.fail_points),
        format!("{:?}", FailPoints::default())
    );
}

#[test]
fn every_setting_arrives() {
    let config = Config::load(&env(
        SUPABASE,
        &[
            ("PORT", "9000"),
            (
                "GITHUB_WEBHOOK_SECRET_PREVIOUS",
                "webhook-secret-of-yesterday",
            ),
            ("GITHUB_BRANCH", "trunk"),
            ("GITHUB_TOKEN", "ghp_token"),
            ("OPENHANDS_API_VERSION", "v0"),
            ("OPENHANDS_API_KEY", "agent-key"),
            ("ADMIN_TOKEN", "admin-token-of-the-tests"),
            ("RECONCILE_INTERVAL", "0"),
            ("WORKERS", "0"),
            ("MAX_VIDEO_BYTES", "1"),
            ("LOG_FORMAT", "json"),
            ("FAIL_POINTS", "stored=abort"),
        ],
    ))
    .unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:9000");
    assert!(
        matches!(config.database, Database::Postgres { url } if url.expose_secret() == DATABASE)
    );
    let StoreConfig::Supabase {
        url,
        service_role_key,
    } = config.store
    else {
        panic!("all three settings mean Supabase");
    };
    assert_eq!(url, "https://abc.supabase.co");
    assert_eq!(service_role_key.expose_secret(), SERVICE_KEY);
    assert_eq!(config.webhook_secrets[0].expose_secret(), WEBHOOK_SECRET);
    assert_eq!(config.webhook_secrets.len(), 2);
    assert_eq!(config.github.branch.as_deref(), Some("trunk"));
    assert_eq!(config.github.token.unwrap().expose_secret(), "ghp_token");
    let agent = config.agent.unwrap();
    assert_eq!(agent.key.expose_secret(), "agent-key");
    assert_eq!(
        (agent.api_url.as_str(), agent.version),
        ("https://app.all-hands.dev", OpenHandsVersion::V0)
    );
    assert_eq!(config.reconcile_interval, None);
    assert_eq!((config.workers, config.max_video_bytes), (0, Some(1)));
    assert_eq!(config.missing_row, MissingRow::Wait);
    assert_eq!(config.log.format, Some(LogFormat::Json));
    let armed = format!("{:?}", config.fail_points);
    assert!(armed.contains(r#""stored": Abort"#), "{armed}");
}

#[test]
fn each_wrong_setting_is_refused_by_its_name() {
    for wrong in WRONG {
        assert_eq!(refused(&env(EMBEDDED, &[*wrong])), [wrong.0]);
    }
}

#[test]
fn all_wrong_settings_are_refused_at_once() {
    let expected: BTreeSet<_> = WRONG.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(refused(&env(EMBEDDED, WRONG)), Vec::from_iter(expected));
}

#[test]
fn every_setting_with_a_rule_has_a_wrong_value_in_these_tests() {
    let without_rule = ["DATA_DIR", "OPENHAND_API_KEY"];
    let of_supabase = ["DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"];
    for name in SETTINGS.iter().map(|setting| setting.name) {
        let tried = WRONG.iter().any(|(wrong, _)| *wrong == name);
        assert!(
            tried || without_rule.contains(&name) || of_supabase.contains(&name),
            "{name}"
        );
    }
}

#[test]
fn missing_required_settings_are_reported() {
    let required = ["GITHUB_REPOSITORY", "GITHUB_WEBHOOK_SECRET"];
    assert_eq!(refused(&Sources::default()), required);
    let empty = required.map(|name| (name, ""));
    assert_eq!(refused(&env(&empty, &[])), required);
}

#[test]
fn supabase_settings_come_all_together() {
    for wrong in [
        ("DATABASE_URL", "mysql://localhost/app"),
        ("DATABASE_URL", "postgres://u:p@db.example.com/app"),
        ("SUPABASE_URL", "http://abc.supabase.co"),
        ("SUPABASE_SERVICE_ROLE_KEY", "short-key"),
        ("DATABASE_URL", ""),
        ("SUPABASE_URL", ""),
        ("SUPABASE_SERVICE_ROLE_KEY", ""),
    ] {
        assert_eq!(refused(&env(SUPABASE, &[wrong])), [wrong.0]);
    }
    let alone = refused(&env(EMBEDDED, &[("DATABASE_URL", DATABASE)]));
    assert_eq!(alone, ["SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_URL"]);
}

#[test]
fn a_remote_database_needs_a_verified_certificate_or_the_opt_out() {
    let remote = "postgres://u:p@db.example.com/app?sslmode=";
    let loads = |mode: &str, tls: &str| {
        let url = format!("{remote}{mode}");
        let settings = [("DATABASE_URL", url.as_str()), ("DATABASE_TLS", tls)];
        refused(&env(SUPABASE, &settings))
    };
    for mode in ["verify-full", "verify-ca"] {
        assert_eq!(loads(mode, ""), [""; 0]);
    }
    for mode in ["require", "prefer", "allow", "disable"] {
        assert_eq!(loads(mode, ""), ["DATABASE_URL"]);
        assert_eq!(loads(mode, "verify"), ["DATABASE_URL"]);
        assert_eq!(loads(mode, "insecure"), [""; 0]);
    }
}

#[test]
fn the_folder_store_goes_with_a_database_alone() {
    let postgres = [("STORE", "folder"), ("DATABASE_URL", DATABASE)];
    let config = Config::load(&env(EMBEDDED, &postgres)).unwrap();
    assert!(matches!(config.database, Database::Postgres { .. }));
    assert!(matches!(config.store, StoreConfig::Folder));
    assert_eq!(config.missing_row, MissingRow::Wait);

    assert!(Config::load(&env(EMBEDDED, &postgres[..1])).is_ok());
    assert_eq!(refused(&env(SUPABASE, &postgres)), ["STORE"]);
}

#[test]
fn trivial_secrets_are_refused_where_this_server_compares_them() {
    let own = [
        "GITHUB_WEBHOOK_SECRET",
        "GITHUB_WEBHOOK_SECRET_PREVIOUS",
        "ADMIN_TOKEN",
    ];
    for name in own {
        assert_eq!(
            refused(&env(SUPABASE, &[(name, "aaaaaaaaaaaaaaaa")])),
            [name]
        );
    }
    // Other services choose their own.
    let others = [
        ("SUPABASE_SERVICE_ROLE_KEY", "aaaaaaaaaaaaaaaa"),
        ("GITHUB_TOKEN", "bbbb"),
        ("OPENHANDS_API_KEY", "cccc"),
    ];
    assert_eq!(refused(&env(SUPABASE, &others)), [""; 0]);
    // A client may have to speak to a server that still uses one.
    let client = env(&[("ADMIN_TOKEN", "aaaaaaaaaaaaaaaa")], &[]);
    assert!(Config::admin_token(&client).is_ok());
}

#[test]
fn secrets_must_differ() {
    let secrets = [
        "GITHUB_WEBHOOK_SECRET_PREVIOUS",
        "ADMIN_TOKEN",
        "SUPABASE_SERVICE_ROLE_KEY",
        "GITHUB_TOKEN",
        "OPENHANDS_API_KEY",
    ];
    for name in secrets {
        assert_eq!(refused(&env(SUPABASE, &[(name, WEBHOOK_SECRET)])), [name]);
    }
}

#[test]
fn a_secret_from_the_environment_is_not_paired_with_an_address_from_dotenv() {
    let pairs = [
        ("GITHUB_TOKEN", "GITHUB_API_URL"),
        ("GITHUB_WEBHOOK_SECRET", "GITHUB_API_URL"),
        ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_URL"),
        ("OPENHANDS_API_KEY", "OPENHANDS_API_URL"),
        ("OPENHAND_API_KEY", "OPENHANDS_API_URL"),
        ("DATABASE_URL", "DATABASE_TLS"),
        ("PGPASSWORD", "DATABASE_URL"),
    ];
    for (secret, address) in pairs {
        // Everything in `.env` is as good as everything in the environment.
        let mut sources = Sources {
            dotenv: map(SUPABASE),
            ..Sources::default()
        };
        let more = [
            ("GITHUB_TOKEN", "ghp_token"),
            ("GITHUB_API_URL", "https://ghe.example.com"),
            ("OPENHANDS_API_URL", "https://agent.example.com"),
            ("DATABASE_URL", "postgres://app@localhost/app"),
            ("DATABASE_TLS", "verify"),
        ];
        sources.dotenv.extend(map(&more));
        assert_eq!(refused(&sources), [""; 0]);

        let exported = sources.dotenv.get(secret).cloned();
        let exported = exported.unwrap_or_else(|| "exported".to_owned());
        sources.env.insert(secret.to_owned(), exported);
        assert_eq!(refused(&sources), [address], "{secret}");

        let trusted = sources.dotenv[address].clone();
        let mut by_environment = sources.env.clone();
        by_environment.insert(address.to_owned(), trusted.clone());
        let sources = Sources {
            env: by_environment,
            ..sources
        };
        // Then DATABASE_URL itself is exported, for which `.env` must not set DATABASE_TLS.
        let left = refused(&sources);
        assert!(!left.contains(&address.to_owned()), "{secret}: {left:?}");
    }

    // A password in the URL takes precedence over PGPASSWORD.
    let mut sources = env(&[("PGPASSWORD", "exported")], &[]);
    sources.dotenv = map(SUPABASE);
    assert_eq!(refused(&sources), [""; 0]);
}

#[test]
fn the_admin_token_is_sent_only_where_its_owner_says() {
    let refused = |env: Pairs<'_>, dotenv: Pairs<'_>| {
        let sources = Sources {
            env: map(env),
            dotenv: map(dotenv),
            ..Sources::default()
        };
        let problems = Config::local_server(&sources).err().unwrap_or_default();
        let names = problems.into_iter().map(|problem| problem.name);
        names.collect::<Vec<_>>()
    };
    let token = ("ADMIN_TOKEN", "admin-token-of-the-tests");
    let (addr, port) = (("LISTEN_ADDR", "127.0.0.1:9000"), ("PORT", "9000"));
    for (env, dotenv) in [
        (&[token][..], &[][..]),
        (&[token, addr], &[]),
        (&[token, addr], &[port]),
        (&[], &[token, addr]),
        (&[addr], &[token]),
    ] {
        assert_eq!(refused(env, dotenv), [""; 0]);
    }
    assert_eq!(refused(&[token], &[addr]), ["LISTEN_ADDR"]);
    assert_eq!(refused(&[token], &[port]), ["PORT"]);
    let file = ("ADMIN_TOKEN_FILE", "token");
    assert_eq!(refused(&[file], &[addr, port]), ["LISTEN_ADDR"]);

    for (listen, is_refused) in [
        ("0.0.0.0:80", false),
        ("[::]:80", false),
        ("10.1.2.3:80", false),
        ("203.0.113.5:80", true),
        ("[2001:db8::1]:80", true),
    ] {
        let names = refused(&[("LISTEN_ADDR", listen)], &[]);
        assert_eq!(!names.is_empty(), is_refused, "{listen}");
    }
}

#[test]
fn flag_beats_environment_beats_dotenv_beats_default() {
    let mut sources = env(EMBEDDED, &[]);
    let workers = |sources: &Sources| Config::load(sources).unwrap().workers;
    assert_eq!(workers(&sources), 4);
    sources.dotenv = map(&[("WORKERS", "1")]);
    assert_eq!(workers(&sources), 1);
    sources.env.insert("WORKERS".to_owned(), "2".to_owned());
    assert_eq!(workers(&sources), 2);
    sources.flags = map(&[("WORKERS", "3")]);
    assert_eq!(workers(&sources), 3);
    sources.flags = map(&[("WORKERS", "")]);
    assert_eq!(workers(&sources), 2, "an empty value is none");
}

#[test]
fn a_port_means_every_address_unless_an_address_is_given() {
    let listen = |sources: &Sources| Config::listen_addr(sources).unwrap().to_string();
    let port = ("PORT", "9000");
    let addr = ("LISTEN_ADDR", "127.0.0.1:7000");
    assert_eq!(listen(&Sources::default()), "127.0.0.1:8080");
    assert_eq!(listen(&env(&[port], &[])), "0.0.0.0:9000");
    assert_eq!(listen(&env(&[port, addr], &[])), "127.0.0.1:7000");

    let mut by_flag = env(&[addr], &[]);
    by_flag.flags = map(&[port]);
    assert_eq!(listen(&by_flag), "0.0.0.0:9000");
}

#[test]
fn one_setting_can_be_read_alone() {
    let sources = env(
        &[("ADMIN_TOKEN", "admin-token-of-the-tests")],
        &[("WORKERS", "many")],
    );
    let token = Config::admin_token(&sources).unwrap().unwrap();
    assert_eq!(token.expose_secret(), "admin-token-of-the-tests");
    assert!(Config::admin_token(&Sources::default()).unwrap().is_none());
    assert!(Config::admin_token(&env(&[("ADMIN_TOKEN", "short")], &[])).is_err());
    assert!(Config::listen_addr(&sources).is_ok());
}

#[test]
fn both_spellings_of_the_agents_key_are_read() {
    let key = |more: Pairs<'_>| {
        let config = Config::load(&env(EMBEDDED, more)).unwrap();
        config.agent.unwrap().key.expose_secret().to_owned()
    };
    assert_eq!(key(&[("OPENHAND_API_KEY", "agent-key")]), "agent-key");
    let same = [
        ("OPENHAND_API_KEY", "agent-key"),
        ("OPENHANDS_API_KEY", "agent-key"),
    ];
    assert_eq!(key(&same), "agent-key");

    let different = [
        ("OPENHAND_API_KEY", "agent-key"),
        ("OPENHANDS_API_KEY", "other-key"),
    ];
    assert_eq!(refused(&env(EMBEDDED, &different)), ["OPENHAND_API_KEY"]);
}

#[test]
fn a_secret_may_be_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "admin-token-of-the-tests\r\n").unwrap();
    fs::write(dir.path().join("empty"), "\n").unwrap();
    fs::write(dir.path().join("short"), "short\n").unwrap();
    fs::write(dir.path().join("large"), "x".repeat(20_000)).unwrap();
    let with = |more: Pairs<'_>| Sources {
        dir: dir.path().to_owned(),
        ..env(EMBEDDED, more)
    };

    let config = Config::load(&with(&[("ADMIN_TOKEN_FILE", "token")])).unwrap();
    assert_eq!(
        config.admin_token.unwrap().expose_secret(),
        "admin-token-of-the-tests"
    );

    for unusable in ["empty", "large", "missing", "."] {
        let problem = refused(&with(&[("ADMIN_TOKEN_FILE", unusable)]));
        assert_eq!(problem, ["ADMIN_TOKEN_FILE"], "{unusable}");
    }
    assert_eq!(
        refused(&with(&[("ADMIN_TOKEN_FILE", "short")])),
        ["ADMIN_TOKEN"]
    );
    let both = [
        ("ADMIN_TOKEN_FILE", "token"),
        ("ADMIN_TOKEN", "another-admin-token"),
    ];
    assert_eq!(refused(&with(&both)), ["ADMIN_TOKEN"]);
}

#[test]
fn dotenv_cannot_name_variables_of_the_environment() {
    for line in [
        "GITHUB_API_URL=http://h/${ADMIN_TOKEN}",
        "A=\"$B\"",
        "export A=x$B",
    ] {
        let mut sources = Sources::default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".env");
        fs::write(&path, format!("WORKERS=7\n{line}\n")).unwrap();
        sources.read_dotenv(&path);
        let problem = sources.problems[0].to_string();
        assert!(problem.contains("(line 2)"), "{problem}");
        assert!(sources.dotenv.is_empty());
    }
}

#[test]
fn a_dotenv_file_is_read_and_its_broken_lines_are_named_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".env");
    let mut sources = Sources::default();
    sources.read_dotenv(&path);
    assert!(sources.problems.is_empty(), "a missing file is none");

    let text = "\u{feff}# settings\r\nGITHUB_REPOSITORY=octo/x\r\nexport GITHUB_WEBHOOK_SECRET='with $sign and blanks' # new\r\nWORKERS=7\nWORKERS=8 ";
    fs::write(&path, text).unwrap();
    sources.read_dotenv(&path);
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.workers, 7);
    assert_eq!(
        config.webhook_secrets[0].expose_secret(),
        "with $sign and blanks"
    );

    fs::write(
        &path,
        "WORKERS=7\n\nADMIN_TOKEN=hunter2 hunter2\nLEASE=1s\n",
    )
    .unwrap();
    let mut sources = env(EMBEDDED, &[]);
    sources.read_dotenv(&path);
    assert_eq!(refused(&sources), [".env", "LEASE"]);
    let shown = sources.problems[0].to_string();
    assert!(
        shown.contains("line 3") && !shown.contains("hunter2"),
        "{shown}"
    );

    fs::write(&path, [0xff, b'\n']).unwrap();
    let mut sources = env(EMBEDDED, &[]);
    sources.read_dotenv(&path);
    assert_eq!(refused(&sources), [".env"]);
}

#[test]
fn no_output_contains_a_value() {
    let sources = env(
        SUPABASE,
        &[
            ("GITHUB_TOKEN", "canary-of-github"),
            ("ADMIN_TOKEN", "canary-of-the-admin"),
        ],
    );
    let config = format!("{:?} {sources:?}", Config::load(&sources).unwrap());
    for secret in [WEBHOOK_SECRET, SERVICE_KEY, "hunter2", "canary"] {
        assert!(!config.contains(secret), "{secret}");
    }

    // Even where a secret was pasted into the wrong variable.
    let canary = "ca nary\u{1}";
    for setting in SETTINGS {
        let file = setting.file_variable();
        for name in [setting.name, &file] {
            let problems = Config::load(&env(SUPABASE, &[(name, canary)])).err();
            assert!(!format!("{problems:?}").contains("nary"), "{name}");
        }
    }
}

#[test]
fn flags_are_the_names_in_kebab_case_and_secrets_have_none() {
    let command = clap::Command::new("serve").args(arguments());
    command.clone().debug_assert();
    let matches = command
        .clone()
        .try_get_matches_from([
            "serve",
            "--github-videos-dir",
            "out",
            "--reconcile-interval=0",
        ])
        .unwrap();
    let sources = Sources::from_process(&matches);
    assert_eq!(
        sources.flags,
        map(&[("GITHUB_VIDEOS_DIR", "out"), ("RECONCILE_INTERVAL", "0")])
    );
    assert!(
        command
            .try_get_matches_from(["serve", "--github-token", "x"])
            .is_err()
    );
}

#[test]
fn a_command_without_flags_still_reads_the_environment() {
    let matches = clap::Command::new("healthcheck").get_matches_from(["healthcheck"]);
    let sources = Sources::from_process(&matches);
    assert!(sources.flags.is_empty() && !sources.env.is_empty());
}

#[test]
fn the_reference_is_a_row_for_each_setting() {
    let reference = reference();
    assert_eq!(reference.lines().count(), SETTINGS.len() + 2);
    for (row, setting) in reference.lines().skip(2).zip(SETTINGS) {
        assert_eq!(row.matches('|').count(), 4, "{row}");
        assert_eq!(setting.secret, row.contains("(secret)"), "{row}");
        assert_eq!(
            setting.secret,
            secrets_help(SETTINGS).contains(&format!("  {}: ", setting.name))
        );
    }
    assert!(reference.contains("| `LEASE` | `30s` |") && !reference.contains("FAIL_POINTS"));
}

#[test]
fn the_demo_gets_every_default_and_reads_nothing() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let api_url = "http://127.0.0.1:9/api/v3";
    let config = Config::embedded(Path::new("/d"), listen, "octo/x", api_url, WEBHOOK_SECRET);
    assert_eq!(
        (config.listen, config.data_dir.as_path()),
        (listen, Path::new("/d"))
    );
    assert_eq!(config.github.repository.to_string(), "octo/x");
    assert_eq!(config.github.api_url, api_url);
    assert_eq!(config.webhook_secrets[0].expose_secret(), WEBHOOK_SECRET);
    assert!(matches!(config.database, Database::Sqlite));
    assert_eq!(
        (config.workers, config.missing_row),
        (4, MissingRow::Create)
    );
}

#[test]
fn a_misspelt_name_is_named_with_the_setting_that_was_meant() {
    for (wrong, meant) in [
        ("GITHUB_WEBHOOKSECRET", Some("GITHUB_WEBHOOK_SECRET")),
        ("github_webhook_secret", Some("GITHUB_WEBHOOK_SECRET")),
        ("GITHUB_WEBHOOK_SECRET_FIEL", Some("GITHUB_WEBHOOK_SECRET")),
        ("SUPABASE_SERVICE_KEY", Some("SUPABASE_SERVICE_ROLE_KEY")),
        ("DATABASE_URI", Some("DATABASE_URL")),
        ("WORKER", Some("WORKERS")),
        // Other programs' variables.
        ("GITHUB_REPOSITORY_ID", None),
        ("GITHUB_SHA", None),
        ("POSTGRES_URL", None),
        ("RELEASE", None),
        ("PATH", None),
    ] {
        let mut sources = Sources {
            env: map(EMBEDDED),
            ..Sources::default()
        };
        if meant == Some("GITHUB_WEBHOOK_SECRET") {
            sources.env.remove("GITHUB_WEBHOOK_SECRET");
        }
        sources.dotenv.insert(wrong.to_owned(), "x".to_owned());
        let expected: Vec<_> = meant.map(|meant| (wrong, meant)).into_iter().collect();
        assert_eq!(sources.misspelt(), expected);
        match Config::load(&sources) {
            Ok(_) => assert_eq!(sources.warnings().len(), expected.len()),
            Err(problems) => assert!(problems[0].to_string().contains(wrong), "{problems:?}"),
        }
    }
}
