//! `video-ingest doctor`: renders [`crate::pipeline::checks`] for people and programs.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use reqwest::Url;

use super::client::Client;
use super::manual::{with_examples, with_settings};
use super::{EXIT_USAGE, json_flag, print_json};
use crate::app::{self, Injected};
use crate::config::{self, Config, Sources, reachable};
use crate::format::{indented, plain};
use crate::pipeline::checks::{self, Finding, Mark, Report};
use crate::services::receiver::is_listening;

/// Escape sequences for colors (ECMA-48, SGR).
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// The command line of `doctor`.
pub fn command() -> Command {
    let command = Command::new("doctor")
        .about("Check every setting against the live services")
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .value_parser(super::webhook::receiver)
                .help("Public URL of the server, such as https://videos.example.org; also checks that it reaches a server with the same webhook secret"),
        )
        .arg(json_flag())
        .after_help("Exit codes: 0 no failed checks, 1 one or more failed checks (✗), 2 invalid configuration.");
    with_examples(
        with_settings(command, config::SETTINGS),
        &[
            ("Check the settings", "video-ingest doctor"),
            (
                "Also check the address at which GitHub reaches the server",
                "video-ingest doctor --url https://videos.example.org",
            ),
        ],
    )
}

/// Runs the checks and prints the findings; the exit code says whether a check failed.
///
/// # Errors
/// Fails if the findings cannot be printed.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let sources = Sources::from_process(matches);
    let (report, code) = match Config::load(&sources) {
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
            let mut report =
                checks::examine(&config, &sources, &services, database, receiver).await;
            live(&config, &sources, &mut report).await;
            let code = u8::from(report.has_failed());
            (report, code)
        }
    };
    if matches.get_flag("json") {
        print_json(&serde_json::to_value(&report)?)?;
    } else {
        // Removes the colors unless standard output is a terminal and NO_COLOR is not set.
        let mut out = anstream::stdout().lock();
        out.write_all(rendered(&report).as_bytes())?;
        out.flush()?;
    }
    Ok(ExitCode::from(code))
}

/// Adds what the server on this machine reports, if it is running and shares its ADMIN_TOKEN.
async fn live(config: &Config, sources: &Sources, report: &mut Report) {
    let (Some(token), Ok(listen)) = (&config.admin_token, Config::local_server(sources)) else {
        return;
    };
    let address = reachable(listen);
    if !is_listening(address).await {
        return;
    }
    let asked = async {
        let client = Client::new(&format!("http://{address}"), token.clone())?;
        client.get("/api/status", &[]).await
    };
    let id = "server.problems";
    let status = match asked.await {
        Ok(status) => status,
        Err(error) => return report.warn(id, format!("{error:#}")),
    };
    let problems = status["problems"].as_array().map(Vec::as_slice);
    let problems = problems.unwrap_or_default();
    for problem in problems {
        let text = plain(problem["text"].as_str().unwrap_or_default());
        if problem["mark"] == "failed" {
            report.fail(id, text);
        } else {
            report.warn(id, text);
        }
    }
    if problems.is_empty() {
        report.ok(id, format!("The server at {address} reports no problems."));
    }
}

/// The problems, the names of the passed checks, and the summary, so that the first line is what to do first
/// and the last one is what a terminal shows.
fn rendered(report: &Report) -> String {
    let problems = report.problems();
    let width = problems.iter().map(|finding| finding.id.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for Finding {
        id,
        mark,
        text: what,
    } in &problems
    {
        let (color, mark) = match mark {
            Mark::Failed => (RED, '✗'),
            Mark::Warning | Mark::Ok => (YELLOW, '!'),
        };
        text += &format!("{color}{mark} {id:width$}{RESET}  {what}\n");
    }
    if !problems.is_empty() {
        text.push('\n');
    }
    let mut passed: Vec<&str> = Vec::new();
    for Finding { id, .. } in &report.findings {
        if !passed.contains(id) && !problems.iter().any(|problem| problem.id == *id) {
            passed.push(id);
        }
    }
    if !passed.is_empty() {
        text += &format!("{GREEN}✓ {} checks passed{RESET}\n", passed.len());
        let by_area = passed.chunk_by(|a, b| area(a).0 == area(b).0);
        let lines = by_area.map(|ids| {
            let names: Vec<&str> = ids.iter().map(|id| area(id).1).collect();
            format!("{}: {}", area(ids[0]).0, names.join(", "))
        });
        text += &indented(&lines.collect::<Vec<_>>(), 4);
        text.push('\n');
    }
    let count = |mark| problems.iter().filter(|f| f.mark == mark).count();
    let plural = |count, word: &str| {
        let s = if count == 1 { "" } else { "s" };
        format!("{count} {word}{s}")
    };
    let warnings = plural(count(Mark::Warning), "warning");
    text += &match (count(Mark::Failed), count(Mark::Warning)) {
        (0, 0) => "All checks passed.\n".to_owned(),
        (0, _) => format!("No checks failed; {warnings} (!).\n"),
        (n, m) => {
            let failed = plural(n, "check");
            let warnings = if m > 0 {
                format!("; {warnings} (!)")
            } else {
                String::new()
            };
            format!(
                "{failed} failed (✗){warnings}. Checks that depend on a failed check were skipped.\n"
            )
        }
    };
    text
}

/// The two parts of a check's id, such as `github` and `token`.
fn area(id: &str) -> (&str, &str) {
    id.split_once('.').unwrap_or((id, id))
}
