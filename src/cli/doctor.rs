//! `video-ingest doctor`: renders [`crate::pipeline::checks`] for people and programs.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use reqwest::Url;

use crate::config::{self, Config, Problem, Sources};
use crate::pipeline::checks::{self, Finding, Mark, Options, Report};

/// Its command line.
pub fn command() -> Command {
    Command::new("doctor")
        .about("Check every setting against the live services, and say what to do")
        .args(config::arguments())
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .value_parser(super::webhook::receiver)
                .help("Where GitHub should reach this server, such as https://videos.example.org"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print the findings for programs"),
        )
        .after_help(format!(
            "Exit code: 0 nothing is wrong, 1 something is (✗), 2 the settings are not usable.\n\n{}",
            config::secrets_help()
        ))
}

/// Looks, prints, and says by the exit code whether something is wrong.
///
/// # Errors
/// Nothing can be printed.
pub async fn run(matches: &ArgMatches) -> io::Result<ExitCode> {
    let (report, code) = match Config::load(&Sources::from_process(matches)) {
        Err(problems) => (of_settings(&problems), ExitCode::from(2)),
        Ok(config) => {
            let options = Options {
                receiver: matches.get_one::<Url>("url").cloned(),
                ..Options::default()
            };
            let report = checks::examine(&config, &options).await;
            let code = ExitCode::from(u8::from(report.has_failed()));
            (report, code)
        }
    };
    let text = match matches.get_flag("json") {
        true => format!("{:#}\n", serde_json::to_value(&report)?),
        false => in_words(&report),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(code)
}

fn of_settings(problems: &[Problem]) -> Report {
    let mut report = Report::default();
    for problem in problems {
        report.fail("settings", problem.to_string());
    }
    report
}

fn in_words(report: &Report) -> String {
    let mut text = String::new();
    let width = report.findings.iter().map(|finding| finding.id.len()).max();
    let width = width.unwrap_or(0);
    for Finding {
        id,
        mark,
        text: what,
    } in &report.findings
    {
        let mark = match mark {
            Mark::Ok => '✓',
            Mark::Warning => '!',
            Mark::Failed => '✗',
        };
        text += &format!("{mark} {id:width$}  {what}\n");
    }
    let count = |mark| {
        report
            .findings
            .iter()
            .filter(|finding| finding.mark == mark)
            .count()
    };
    let (failed, warnings) = (count(Mark::Failed), count(Mark::Warning));
    text += &match (failed, warnings) {
        (0, 0) => "\nAll is well.\n".to_owned(),
        (0, n) => format!("\nIt works; {n} to look at (!).\n"),
        (n, _) => format!("\n{n} to mend (✗); what depends on them was not checked.\n"),
    };
    text
}
