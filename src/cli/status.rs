//! `video-ingest status`: what is wrong with a running server, and what to do about it.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Command};
use jiff::Timestamp;
use serde::Deserialize;

use super::client::{Client, url_flag};
use super::manual::{CLIENT_HELP, with_examples};
use super::videos::relative;
use super::{json_flag, print, print_json, repeats};
use crate::clock::Clock;
use crate::domain::failure::{Class, Code};
use crate::format::{self, Row, plain};

/// The command line of `status`.
pub(super) fn command() -> Command {
    let command = Command::new("status")
        .about("Show what needs attention on a running server, and what to do about it")
        .after_help(format!(
            "Exit codes: 0 nothing needs attention, 1 something does or the command failed, 2 invalid usage or configuration.\n{CLIENT_HELP}"
        ))
        .args([url_flag(), json_flag()]);
    with_examples(
        command,
        &[
            ("The server on this machine", "video-ingest status"),
            (
                "Another server, for a monitoring script",
                "video-ingest status --url https://videos.example.org --json",
            ),
        ],
    )
}

/// The response of `GET /api/status`. Fields that are not shown are not read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    problems: Vec<Problem>,
    failures: Vec<Group>,
    counts: Counts,
    /// How many of the queued videos are attempted later.
    backing_off: u64,
    oldest_due_at: Option<String>,
    last_push_at: Option<String>,
    last_sweep: Option<LastSweep>,
    next_sweep_at: Option<String>,
    day: Day,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    id: String,
    mark: String,
    text: String,
}

/// The failed videos with one code.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Group {
    code: String,
    class: String,
    count: u64,
    oldest_at: String,
    advice: String,
    video_id: String,
    message: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Counts {
    generating: u64,
    queued: u64,
    running: u64,
    waiting: u64,
    ready: u64,
    failed: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LastSweep {
    at: String,
    checked: u64,
    found: u64,
    failed: u64,
}

/// The last 24 hours.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Day {
    ready: u64,
    failed: u64,
    median_ms: Option<u64>,
    p95_ms: Option<u64>,
}

impl Status {
    fn needs_attention(&self) -> bool {
        !self.problems.is_empty() || !self.failures.is_empty()
    }
}

/// Prints the status; the exit code says whether something needs attention.
pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let client = Client::from_flags(matches)?;
    let response = client.get("/api/status", &[]).await?;
    let status: Status = serde_json::from_value(response.clone())?;
    if matches.get_flag("json") {
        print_json(&response)?;
    } else {
        print(&shown(&status, Clock::default().now()))?;
    }
    Ok(ExitCode::from(u8::from(status.needs_attention())))
}

fn shown(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    for problem in &status.problems {
        let mark = if problem.mark == "failed" { '✗' } else { '!' };
        text += &format!("{mark} {}\n", plain(&problem.id));
        text += &format::indented(&[plain(&problem.text)], 4);
    }
    if !status.needs_attention() {
        text += "Nothing needs attention.\n";
    }
    if !text.is_empty() {
        text.push('\n');
    }
    if !status.failures.is_empty() {
        let rows: Vec<Row> = status
            .failures
            .iter()
            .map(|group| row(group, now))
            .collect();
        text += &format::table(
            &["FAILED WITH", "VIDEOS", "FIRST FAILED", "LATEST VIDEO"],
            &rows,
        );
        text.push('\n');
    }
    text += &activity(status, now);
    text
}

fn row(group: &Group, now: Timestamp) -> Row {
    let message = group.message.as_deref().unwrap_or_default();
    let advice = (!repeats(message, &group.advice)).then(|| format!("→ {}", plain(&group.advice)));
    // A new attempt with the same files would fail again.
    let is_promising = Class::parse(&group.class) == Some(Class::Configuration)
        || Code::parse(&group.code) == Some(Code::GaveUp);
    let command = if !is_promising {
        "list"
    } else {
        "retry --failed"
    };
    let command = format!(
        "video-ingest videos {command} --code {}",
        plain(&group.code)
    );
    let message = (!message.is_empty()).then(|| plain(message));
    Row {
        cells: vec![
            plain(&group.code),
            group.count.to_string(),
            relative(&group.oldest_at, now),
            plain(&group.video_id),
        ],
        notes: message.into_iter().chain(advice).chain([command]).collect(),
    }
}

fn activity(status: &Status, now: Timestamp) -> String {
    let Counts {
        generating,
        queued,
        running,
        waiting,
        ready,
        failed,
    } = &status.counts;
    let later = match status.backing_off {
        0 => String::new(),
        n => format!(" ({n} will be retried later)"),
    };
    let since = |at: &Option<String>| match at {
        None => "none".to_owned(),
        Some(at) => relative(at, now),
    };
    let mut lines = vec![(
        "videos",
        format!(
            "{generating} generating, {queued} queued{later}, {running} running, {waiting} waiting, {ready} ready, {failed} failed"
        ),
    )];
    if let Some(at) = &status.oldest_due_at {
        lines.push(("longest wait", format!("due {}", relative(at, now))));
    }
    lines.push(("last push", since(&status.last_push_at)));
    let sweep = status.last_sweep.as_ref().map(|sweep| {
        let LastSweep {
            at,
            checked,
            found,
            failed,
        } = sweep;
        format!(
            "{} ({checked} checked, {found} found, {failed} failed)",
            relative(at, now)
        )
    });
    lines.push(("last sweep", sweep.unwrap_or_else(|| "none".to_owned())));
    lines.push(("next sweep", since(&status.next_sweep_at)));
    let time = |ms: Option<u64>| ms.map(|ms| format::elapsed(Duration::from_millis(ms)));
    let mut day = format!("{} ready, {} failed", status.day.ready, status.day.failed);
    if let (Some(median), Some(p95)) = (time(status.day.median_ms), time(status.day.p95_ms)) {
        day += &format!("; time to ready: median {median}, 95th percentile {p95}");
    }
    lines.push(("last 24 hours", day));
    let lines = lines.into_iter();
    lines
        .map(|(name, value)| format!("{name:15}{value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(status: serde_json::Value) -> String {
        let now = "2026-01-28T12:00:00Z".parse().unwrap();
        shown(&serde_json::from_value(status).unwrap(), now)
    }

    #[test]
    fn problems_come_before_groups_and_each_has_a_command() {
        let text = text(json!({
            "problems": [{"id": "webhook", "mark": "failed", "text": "GitHub's webhooks are refused; check the secret."}],
            "failures": [
                {"code": "github_denied", "class": "configuration", "count": 12, "oldest_at": "2026-01-28T09:00:00Z",
                 "advice": "Check GITHUB_TOKEN.", "video_id": "0beee2d2", "message": "GitHub denied access."},
                {"code": "truncated", "class": "invalid", "count": 1, "oldest_at": "2026-01-28T11:00:00Z",
                 "advice": "Render it again.", "video_id": "1beee2d2", "message": "It ends early; render it again."}],
            "counts": {"ready": 3, "failed": 13}, "next_sweep_at": "2026-01-28T12:05:00Z",
            "day": {"ready": 2, "failed": 1, "median_ms": 2100, "p95_ms": 12000}
        }));
        let expected = "\
            ✗ webhook\n    \
            GitHub's webhooks are refused; check the secret.\n\n\
            FAILED WITH    VIDEOS  FIRST FAILED  LATEST VIDEO\n\
            github_denied  12      3 h ago       0beee2d2\n    \
            GitHub denied access.\n    \
            → Check GITHUB_TOKEN.\n    \
            video-ingest videos retry --failed --code github_denied\n\
            truncated      1       60 min ago    1beee2d2\n    \
            It ends early; render it again.\n    \
            video-ingest videos list --code truncated\n\n\
            videos         0 generating, 0 queued, 0 running, 0 waiting, 3 ready, 13 failed\n\
            last push      none\n\
            last sweep     none\n\
            next sweep     in 5 min\n\
            last 24 hours  2 ready, 1 failed; time to ready: median 2.1 s, 95th percentile 12 s\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_healthy_server_says_so_first() {
        let text = text(json!({"counts": {"ready": 3}}));
        assert!(text.starts_with("Nothing needs attention.\n\n"), "{text}");
    }
}
