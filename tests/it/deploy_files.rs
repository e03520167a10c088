//! The systemd units and the container commands restrict the server. `tests/deploy.sh` checks the same files
//! with the programs that read them.

use std::fs::read_to_string;

use video_ingest::config::SETTINGS;

const UNITS: [&str; 2] = [
    "deploy/video-ingest.service",
    "deploy/cron/video-ingest-reconcile.service",
];

#[test]
fn the_systemd_unit_reads_every_secret_from_a_file() {
    let unit = read_to_string(UNITS[0]).unwrap();
    let has = |line: &str| unit.lines().any(|l| l.trim_start_matches('#') == line);
    let secrets = SETTINGS.iter().filter(|setting| setting.secret);
    for name in secrets.map(|s| s.name).filter(|n| *n != "OPENHAND_API_KEY") {
        let id = name.to_lowercase().replace('_', "-");
        let load = format!("LoadCredential={id}:/etc/video-ingest/{id}");
        assert!(has(&load), "{load}");
        let pass = format!("Environment={name}_FILE=%d/{id}");
        assert!(has(&pass), "{pass}");
    }
}

#[test]
fn the_systemd_units_keep_secrets_and_limit_resources() {
    for path in UNITS {
        let unit = read_to_string(path).unwrap();
        for start in [
            "LimitCORE=0",
            "IPAddressDeny=169.254.0.0/16",
            "PrivateUsers=yes",
            "MemoryMax=",
            "TasksMax=",
        ] {
            assert!(
                unit.lines().any(|l| l.starts_with(start)),
                "{path}: {start}"
            );
        }
    }
}

#[test]
fn the_documented_containers_are_restricted() {
    let readme = read_to_string("README.md").unwrap();
    let (_, command) = readme.split_once("docker run ").unwrap();
    let command = command.split("```").next().unwrap();
    for option in [
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--memory 512m",
        "--pids-limit 1024",
        "--log-opt max-size=10m",
        "--log-opt max-file=3",
    ] {
        assert!(command.contains(option), "{option}");
    }

    let compose = read_to_string("deploy/compose.yaml").unwrap();
    let (restrictions, services) = compose.split_once("services:\n").unwrap();
    for key in [
        "read_only: true",
        "cap_drop: [ALL]",
        "no-new-privileges:true",
        "mem_limit: 512m",
        "pids_limit: 1024",
        "max-size: 10m",
    ] {
        assert!(restrictions.contains(key), "{key}");
    }
    let ours = services.matches("image: video-ingest\n").count();
    let restricted = services.matches("<<: *restrictions\n    image: video-ingest\n");
    assert_eq!(restricted.count(), ours);
}
