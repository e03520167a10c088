//! `video-ingest doctor`: renders [`crate::pipeline::checks`] for people and programs.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use reqwest::Url;

use super::{EXIT_USAGE, json_flag, print, print_json};
use crate::app::{self, Injected};
use crate::config::{self, Config, Sources};
use crate::pipeline::checks::{self, Finding, Mark, Report};

/// The command line of `doctor`.
pub fn command() -> Command {
    Command::new("doctor")
        .about("Check every setting against the live services")
        .args(config::arguments())
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .value_parser(super::webhook::receiver)
                .help("URL at which GitHub should reach the server, such as https://videos.example.org"),
        )
        .arg(json_flag())
        .after_help(format!(
            "Exit codes: 0 no failed checks, 1 one or more failed checks (✗), 2 invalid configuration.\n\n{}",
            config::secrets_help()
        ))
}

/// Runs the checks and prints the findings; the exit code says whether a check failed.
///
/// # Errors
/// Fails if the findings cannot be printed.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (report, code) = match Config::load(&Sources::from_process(matches)) {
        Err(problems) => {
            let mut report = Report::default();
            for problem in problems {
                report.fail("settings", problem.to_string());
            }
            (report, EXIT_USAGE)
        }
        Ok(config) => {
            let services = app::services(&config, &Injected::default());
            let database = app::existing_database(&config, services.clock.clone());
            let receiver = matches.get_one::<Url>("url");
            let report = checks::examine(&config, &services, database, receiver).await;
            let code = u8::from(report.has_failed());
            (report, code)
        }
    };
    if matches.get_flag("json") {
        print_json(&serde_json::to_value(&report)?)?;
    } else {
        print(&rendered(&report))?;
    }
    Ok(ExitCode::from(code))
}

fn rendered(report: &Report) -> String {
    let findings = &report.findings;
    let width = findings.iter().map(|finding| finding.id.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for Finding {
        id,
        mark,
        text: what,
    } in findings
    {
        let mark = match mark {
            Mark::Ok => '✓',
            Mark::Warning => '!',
            Mark::Failed => '✗',
        };
        text += &format!("{mark} {id:width$}  {what}\n");
    }
    let count = |mark| findings.iter().filter(|f| f.mark == mark).count();
    text += &match (count(Mark::Failed), count(Mark::Warning)) {
        (0, 0) => "\nAll checks passed.\n".to_owned(),
        (0, 1) => "\nNo checks failed; 1 warning (!).\n".to_owned(),
        (0, n) => format!("\nNo checks failed; {n} warnings (!).\n"),
        (n, _) => {
            let checks = if n == 1 { "check" } else { "checks" };
            format!(
                "\n{n} {checks} failed (✗). Checks that depend on a failed check were skipped.\n"
            )
        }
    };
    text
}
