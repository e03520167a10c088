//! The binary protects its credentials: what it refuses, and what it warns about, before it sends any.

use std::path::Path;
use std::process::Command;

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
