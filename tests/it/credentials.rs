//! The binary protects its credentials: what it refuses, and what it warns about, before it sends any.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

const SECRET: &str = "5a1be11f0d8c4f6e9b2d7c3a604e8f19";

/// Exit code and output of the program in its own folder, with these variables and no others.
fn run(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_video-ingest"))
        .args(args)
        .current_dir(dir)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// `serve` with a Postgres database, on an address that is not one of this machine's.
fn serve(database: &str, more: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut env = vec![
        ("GITHUB_REPOSITORY", "octo/video-artifacts"),
        ("GITHUB_WEBHOOK_SECRET", SECRET),
        ("STORE", "folder"),
        ("DATABASE_URL", database),
        ("LISTEN_ADDR", "192.0.2.1:1"),
    ];
    env.extend(more);
    run(dir.path(), &["serve"], &env)
}

#[test]
fn a_remote_database_needs_a_verified_certificate() {
    for database in [
        "postgres://u:hunter2@db.example.com/app",
        "postgres://u:hunter2@db.example.com/app?sslmode=require",
        "postgres://u:hunter2@localhost/app?host=db.example.com&sslmode=require",
    ] {
        let (code, text) = serve(database, &[]);
        assert_eq!(code, Some(2), "{text}");
        for part in [
            "DATABASE_URL",
            "sslmode=verify-full&sslrootcert=",
            "prod-ca-2021.crt",
            "private",
            "DATABASE_TLS=insecure",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
    // The mode may also come from libpq's variable, and then holds for every connection.
    let remote = "postgres://u:hunter2@db.example.com/app";
    let (code, text) = serve(remote, &[("PGSSLMODE", "verify-full")]);
    assert_eq!(code, Some(1), "{text}");
    let local = "postgres:///app";
    let (code, text) = serve(local, &[("PGHOST", "db.example.com")]);
    assert_eq!(code, Some(2), "{text}");
}

#[test]
fn an_unverified_database_connection_is_warned_about() {
    let warned = |database, more: &[_]| {
        let (code, text) = serve(database, more);
        assert_eq!(code, Some(1), "{text}");
        let warnings = text.lines().filter(|line| line.contains("WARN"));
        warnings.map(str::to_owned).collect::<Vec<_>>()
    };
    let insecure = [("DATABASE_TLS", "insecure")];
    let remote = "postgres://u:hunter2@db.example.com/app?sslmode=require";
    let warnings = warned(remote, &insecure);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("certificate") && !warnings[0].contains("hunter2"));

    // Nothing is wrong with a verified connection, or with one that does not leave this machine.
    let verified = "postgres://u:p@db.example.com/app?sslmode=verify-full";
    assert_eq!(warned(verified, &insecure), [""; 0]);
    assert_eq!(warned("postgres://u:p@localhost/app", &[]), [""; 0]);
}

const EMBEDDED: [(&str, &str); 3] = [
    ("GITHUB_REPOSITORY", "octo/video-artifacts"),
    ("GITHUB_WEBHOOK_SECRET", SECRET),
    ("LISTEN_ADDR", "192.0.2.1:1"),
];

/// Somebody else's `.env`, such as that of a repository that was cloned, must not obtain what is exported.
#[test]
fn an_exported_secret_is_not_sent_to_an_address_from_dotenv() {
    let dir = tempfile::tempdir().unwrap();
    let dotenv = |text: String| fs::write(dir.path().join(".env"), text).unwrap();
    let elsewhere = "https://elsewhere.example.org";
    for (secret, address) in [
        ("GITHUB_TOKEN", "GITHUB_API_URL"),
        ("OPENHANDS_API_KEY", "OPENHANDS_API_URL"),
        ("OPENHAND_API_KEY", "OPENHANDS_API_URL"),
    ] {
        dotenv(format!("{address}={elsewhere}\n"));
        // `webhook status` would send the token.
        for command in [&["serve"][..], &["webhook", "status"]] {
            let env = [&EMBEDDED[..], &[(secret, "exported-key")]].concat();
            let (code, text) = run(dir.path(), command, &env);
            assert_eq!(code, Some(2), "{text}");
            assert!(text.contains(secret) && text.contains(address), "{text}");
            assert!(text.contains(".env"), "{text}");
        }
    }
}

#[test]
fn an_exported_admin_token_is_not_sent_to_an_address_from_dotenv() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    fs::write(dir.path().join("token"), SECRET).unwrap();
    for line in [
        format!("LISTEN_ADDR={address}"),
        format!("PORT={}", address.port()),
    ] {
        fs::write(dir.path().join(".env"), line).unwrap();
        for args in [&["videos", "list"][..], &["reconcile"]] {
            for env in [("ADMIN_TOKEN", SECRET), ("ADMIN_TOKEN_FILE", "token")] {
                let (code, text) = run(dir.path(), args, &[env]);
                assert_eq!(code, Some(2), "{text}");
                assert!(
                    text.contains("ADMIN_TOKEN") && text.contains(".env"),
                    "{text}"
                );
                assert!(text.contains("--url"), "{text}");
            }
        }
    }
    let refused = listener.accept().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "no connection");

    // An address on the command line is the operator's own, and so is a `.env` with both.
    let env = [("ADMIN_TOKEN", SECRET)];
    let url = ["videos", "list", "--url", "http://127.0.0.1:1"];
    let (code, text) = run(dir.path(), &url, &env);
    assert_eq!(code, Some(1), "{text}");
    let both = format!("ADMIN_TOKEN={SECRET}\nLISTEN_ADDR=127.0.0.1:1\n");
    fs::write(dir.path().join(".env"), both).unwrap();
    let (code, text) = run(dir.path(), &["videos", "list"], &[]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn the_admin_token_is_not_sent_in_plain_text_over_a_public_network() {
    let dir = tempfile::tempdir().unwrap();
    let token = ("ADMIN_TOKEN", SECRET);
    let url = ["reconcile", "--url", "http://videos.example.org"];
    let (code, text) = run(dir.path(), &url, &[token]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("https://"), "{text}");

    let public = ("LISTEN_ADDR", "203.0.113.5:8080");
    let (code, text) = run(dir.path(), &["videos", "list"], &[token, public]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("LISTEN_ADDR") && text.contains("--url"),
        "{text}"
    );
}

#[test]
fn trivial_secrets_are_refused_and_weak_ones_are_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "GITHUB_WEBHOOK_SECRET",
        "GITHUB_WEBHOOK_SECRET_PREVIOUS",
        "ADMIN_TOKEN",
    ];
    for name in names {
        let serve = |secret| {
            let env = [&EMBEDDED[..], &[(name, secret)]].concat();
            run(dir.path(), &["serve"], &env)
        };
        let (code, text) = serve("changemechangeme");
        assert_eq!(code, Some(2), "{text}");
        assert!(
            text.contains(name) && text.contains("openssl rand -hex 32"),
            "{text}"
        );
        assert!(!text.contains("changeme"), "{text}");

        let warned = |secret| {
            // 1: it does not get further than to its address.
            let (code, text) = serve(secret);
            assert_eq!(code, Some(1), "{text}");
            let warnings = text.lines().filter(|line| line.contains("WARN"));
            warnings.map(str::to_owned).collect::<Vec<_>>()
        };
        let warnings = warned("tr0ub4dor-and-3x");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let warning = &warnings[0];
        assert!(
            warning.contains(name) && warning.contains("openssl rand -hex 32"),
            "{warning}"
        );
        assert!(!warning.contains("tr0ub"), "{warning}");
        assert_eq!(warned("e83d0d0f1c5b4a7796a2b4c87e15fa36"), [""; 0]);
    }
}
