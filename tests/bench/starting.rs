//! Row J: the time to start, the size of the binary, and the time to build and test.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::ROUNDS;
use crate::load::{self, Pushes};
use crate::report::{Report, Row, median, ms};
use crate::server::Server;

pub async fn measure(report: &mut Report) {
    let pushes = Pushes::new().await.make(ROUNDS, "/webhooks/github");
    let mut times = Vec::new();
    for push in &pushes {
        let began = Instant::now();
        let server = Server::start(&[("WORKERS", "0"), ("GITHUB_API_URL", "http://127.0.0.1:9")]);
        let run = load::send(server.address, 1, std::slice::from_ref(push));
        times.push(ms(began.elapsed()));
        assert_eq!(run.acknowledged.len(), 1, "{:?}", run.statuses);
    }
    report.add(Row {
        work: "J. start with a new database to the first 202".into(),
        measured: format!("{:.0} ms", median(&times)),
        baseline: String::new(),
        target: None,
    });
    let binary = std::fs::metadata(env!("CARGO_BIN_EXE_video-ingest")).unwrap();
    report.add(Row {
        work: "J. size of the stripped binary".into(),
        measured: format!("{:.1} MiB", binary.len() as f64 / f64::from(1 << 20)),
        baseline: String::new(),
        target: None,
    });
    let target = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (work, arguments) in [
        ("J. clean debug build with its tests", &["--no-run"][..]),
        ("J. all tests", &[]),
    ] {
        println!("  {work}: takes some minutes");
        let began = Instant::now();
        let built = Command::new(env!("CARGO"))
            .args(["test", "--offline", "--locked", "--quiet"])
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", target.path())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&built.stdout);
        assert!(built.status.success(), "{work}\n{printed}");
        report.add(Row {
            work: work.into(),
            measured: format!("{:.0} s", began.elapsed().as_secs_f64()),
            baseline: String::new(),
            target: None,
        });
    }
}
