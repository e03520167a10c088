//! `video-ingest reconcile`: requests a sweep from a running server and prints its report.

use std::collections::HashMap;
use std::io::{IsTerminal as _, stdout};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::client::{Client, Video, url_flag};
use super::{json_flag, print, print_json, videos};
use crate::clock::Clock;
use crate::config;
use crate::domain::advice::advice;
use crate::domain::failure::Code;
use crate::domain::report::Outcome;
use crate::format::{self, Row, plain};

/// Default and upper limit of `--wait`. Source: the API's `wait`.
const WAIT_DEFAULT: &str = "25s";
const WAIT_MAX: Duration = Duration::from_secs(300);

/// How many videos that need attention are shown; the page and `videos list` have them all.
const ATTENTION_MAX: usize = 50;

/// Bounds of `--watch`.
const WATCH: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Time between two frames of the spinner.
const TICK: Duration = Duration::from_millis(100);

/// The command line of `reconcile`.
pub(crate) fn command() -> Command {
    Command::new("reconcile")
        .about("Run a sweep on a running server to ingest videos whose webhooks were lost")
        .after_help(
            "ADMIN_TOKEN is read from the environment, .env or the file specified by ADMIN_TOKEN_FILE.\n\
             Exit codes: 0 success, 1 the sweep or a video failed, 2 invalid usage or configuration.",
        )
        .args([url_flag(), json_flag().conflicts_with("watch")])
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Show what the sweep would do, without changing anything"),
        )
        .arg(
            Arg::new("wait")
                .long("wait")
                .value_name("DURATION")
                .default_value(WAIT_DEFAULT)
                .value_parser(wait)
                .help("How long to wait for the sweep's videos to become ready, from `0s` to `5m`"),
        )
        .arg(
            Arg::new("verify")
                .long("verify")
                .action(ArgAction::SetTrue)
                .help("Also compare the sizes of ready videos with those of the stored objects, and re-ingest videos that differ"),
        )
        .arg(
            Arg::new("video")
                .long("video")
                .value_name("ID")
                .value_parser(videos::video_id)
                .help("Check only this video, given by its ID or the name of one of its files"),
        )
        .arg(
            Arg::new("watch")
                .long("watch")
                .value_name("DURATION")
                .value_parser(|text: &str| config::duration(text, WATCH))
                .help("Repeat the sweep at this interval, such as `30s` or `5m`; print changes, and ring the terminal bell when a video is ready"),
        )
}

/// A number without a unit means seconds, as in the API's `wait`.
fn wait(text: &str) -> Result<Duration, String> {
    let unit = if text.ends_with(|c: char| c.is_ascii_digit()) {
        "s"
    } else {
        ""
    };
    config::duration(&format!("{text}{unit}"), Duration::ZERO..=WAIT_MAX)
}

/// The fields of a sweep's report that are shown.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Report {
    still_generating: usize,
    processed: usize,
    failed: usize,
    queued: usize,
    orphans: Vec<String>,
    errors: Vec<ServiceError>,
    videos: Vec<Swept>,
}

#[derive(Clone, Debug, Deserialize)]
struct ServiceError {
    service: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Swept {
    video_id: Uuid,
    outcome: Outcome,
    detail: String,
}

impl Swept {
    fn needs_attention(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Failed | Outcome::Unknown | Outcome::Waiting
        )
    }
}

/// The sweep to request.
struct Sweep<'a> {
    client: &'a Client,
    query: Vec<(&'static str, String)>,
    dry_run: bool,
    wait: Duration,
}

impl Sweep<'_> {
    async fn run(&self) -> anyhow::Result<Value> {
        self.client
            .call(Method::POST, "/reconcile", &self.query, self.wait)
            .await
    }

    /// The failure code of a video; `None` if there is none or the request fails.
    async fn code(&self, id: Uuid) -> Option<Code> {
        let video: Video = serde_json::from_value(self.client.video(id).await.ok()?).ok()?;
        video.code.as_deref().and_then(Code::parse)
    }
}

/// Requests a sweep; the exit code says whether a video failed.
pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let client = Client::from_flags(matches)?;
    let wait = matches.get_one::<Duration>("wait").copied();
    let wait = wait.unwrap_or_default();
    let mut query = vec![("wait", wait.as_secs().to_string())];
    for (flag, name) in [("dry-run", "dry_run"), ("verify", "verify")] {
        query.push((name, matches.get_flag(flag).to_string()));
    }
    let video = matches.get_one::<Uuid>("video");
    query.extend(video.map(|id| ("video_id", id.to_string())));
    let sweep = Sweep {
        client: &client,
        query,
        dry_run: matches.get_flag("dry-run"),
        wait,
    };
    if let Some(every) = matches.get_one::<Duration>("watch") {
        return watch(&sweep, *every).await;
    }

    let spinner = spinner(sweep.wait);
    let response = sweep.run().await;
    spinner.finish_and_clear();
    let response = response?;
    let report: Report = serde_json::from_value(response.clone())?;
    if matches.get_flag("json") {
        print_json(&response)?;
    } else {
        let attention = report.videos.iter().filter(|video| video.needs_attention());
        let mut codes = HashMap::new();
        for swept in attention.take(ATTENTION_MAX) {
            codes.extend(
                sweep
                    .code(swept.video_id)
                    .await
                    .map(|code| (swept.video_id, code)),
            );
        }
        print(&summary(&report, sweep.dry_run))?;
        print(&attention_table(&report, &codes))?;
    }
    Ok(ExitCode::from(u8::from(report.failed > 0)))
}

/// Visible only on a terminal: indicatif draws nothing elsewhere.
fn spinner(wait: Duration) -> ProgressBar {
    let template = format!(
        "{{spinner}} running a sweep, waiting up to {} for its videos to become ready … {{elapsed}}",
        format::duration(wait)
    );
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template(&template) {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    spinner
}

/// The first two lines are those of an older poll script, which other scripts parse.
fn summary(report: &Report, dry_run: bool) -> String {
    let lines = [
        (report.processed, "ready! Check your app."),
        (
            report.still_generating,
            "still generating. Check again in 30-60 seconds.",
        ),
        (
            report.queued,
            if dry_run {
                "would be ingested."
            } else {
                "being ingested. Check again in 30-60 seconds."
            },
        ),
        (report.failed, "failed."),
    ];
    let mut text: String = lines
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{count} video(s) {words}\n"))
        .collect();
    for error in &report.errors {
        text += &format!(
            "{} is unavailable: {}\n",
            plain(&error.service),
            plain(&error.code)
        );
    }
    if report.videos.is_empty() && report.errors.is_empty() {
        text += "Every video is ready; nothing is pending.\n";
    }
    text
}

fn attention_table(report: &Report, codes: &HashMap<Uuid, Code>) -> String {
    let mut attention = report.videos.iter().filter(|video| video.needs_attention());
    let rows: Vec<Row> = attention
        .by_ref()
        .take(ATTENTION_MAX)
        .map(|video| {
            let code = codes.get(&video.video_id);
            let advice = code.map(|code| format!("→ {}", advice(*code)));
            Row {
                cells: vec![
                    video.video_id.to_string(),
                    video.outcome.to_string(),
                    code.map_or_else(String::new, |code| code.to_string()),
                ],
                notes: std::iter::once(plain(&video.detail))
                    .chain(advice)
                    .collect(),
            }
        })
        .collect();
    let more = attention.count();
    let mut text = String::new();
    if !rows.is_empty() {
        text += "\nNeeds attention:\n";
        text += &format::table(&["VIDEO", "OUTCOME", "CODE"], &rows);
    }
    if more > 0 {
        text += &format!("and {more} more; see `video-ingest videos list --state failed`\n");
    }
    if !report.orphans.is_empty() {
        text += "\nPushed files without a row in lesson_assets:\n";
        for path in report.orphans.iter().take(ATTENTION_MAX) {
            text += &format!("    {}\n", plain(path));
        }
        if let Some(more) = report.orphans.len().checked_sub(ATTENTION_MAX + 1) {
            text += &format!("    and {} more\n", more + 1);
        }
    }
    text
}

/// Repeats the sweep until the process is stopped.
async fn watch(sweep: &Sweep<'_>, every: Duration) -> anyhow::Result<ExitCode> {
    let mut before: Option<Vec<Swept>> = None;
    let mut problem = String::new();
    loop {
        // The first sweep must succeed: a wrong URL or token would never recover.
        let (report, now_problem) = match (sweep.run().await, &before) {
            (Ok(response), _) => (
                Some(serde_json::from_value::<Report>(response)?),
                String::new(),
            ),
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => (None, format!("{error:#}")),
        };
        if now_problem != problem {
            let text = if now_problem.is_empty() {
                "The server is responding again."
            } else {
                &now_problem
            };
            print(&stamped(text))?;
            problem = now_problem;
        }
        if let Some(report) = report {
            let known = before.unwrap_or_default();
            let mut became_ready = false;
            for video in gone(&known, &report.videos) {
                let response = sweep.client.video(video.video_id).await;
                if response.is_ok_and(|response| response["state"] == "ready") {
                    print(&stamped(&format!("{} ready", video.video_id)))?;
                    became_ready = true;
                }
            }
            for video in changed(&known, &report.videos) {
                became_ready |= video.outcome == Outcome::Processed;
                print(&stamped(&line(video)))?;
            }
            if became_ready && stdout().is_terminal() {
                print("\x07")?;
            }
            before = Some(report.videos);
        }
        tokio::time::sleep(every).await;
    }
}

fn stamped(text: &str) -> String {
    let now = Clock::default().now();
    format!("{}  {}\n", now.strftime("%H:%M:%SZ"), plain(text))
}

fn line(video: &Swept) -> String {
    match video.outcome {
        Outcome::Processed => format!("{} ready", video.video_id),
        outcome => format!("{} {outcome}: {}", video.video_id, video.detail),
    }
}

/// Videos that are new or have another outcome. Details are ignored: the ages in them always change.
fn changed<'a>(before: &[Swept], now: &'a [Swept]) -> impl Iterator<Item = &'a Swept> {
    let known: HashMap<Uuid, Outcome> = before
        .iter()
        .map(|video| (video.video_id, video.outcome))
        .collect();
    now.iter()
        .filter(move |video| known.get(&video.video_id) != Some(&video.outcome))
}

/// Videos that are no longer pending and were not announced as ready.
fn gone<'a>(before: &'a [Swept], now: &[Swept]) -> impl Iterator<Item = &'a Swept> {
    let there: std::collections::HashSet<Uuid> = now.iter().map(|video| video.video_id).collect();
    before.iter().filter(move |video| {
        video.outcome != Outcome::Processed && !there.contains(&video.video_id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(id: u128, outcome: &str) -> Swept {
        Swept {
            video_id: Uuid::from_u128(id),
            outcome: Outcome::parse(outcome).unwrap(),
            detail: "in words".to_owned(),
        }
    }

    #[test]
    fn the_old_scripts_lines_are_kept() {
        let report: Report = serde_json::from_str(
            r#"{"checked":4,"stillGenerating":1,"found":2,"processed":2,"failed":1,"queued":0,
                "videos":[{"lesson_id":"x","video_id":"00000000-0000-0000-0000-000000000001","outcome":"failed","detail":"d"}]}"#,
        )
        .unwrap();
        assert_eq!(
            summary(&report, false),
            "2 video(s) ready! Check your app.\n\
             1 video(s) still generating. Check again in 30-60 seconds.\n\
             1 video(s) failed.\n"
        );
        assert_eq!(
            summary(&Report::default(), false),
            "Every video is ready; nothing is pending.\n"
        );
    }

    #[test]
    fn failures_come_with_advice() {
        let report = Report {
            videos: vec![swept(1, "generating"), swept(2, "failed")],
            ..Report::default()
        };
        let codes = HashMap::from([(Uuid::from_u128(2), Code::Truncated)]);
        let text = attention_table(&report, &codes);
        assert!(!text.contains(&Uuid::from_u128(1).to_string()), "{text}");
        assert!(
            text.contains("failed   truncated\n    in words\n    → Render"),
            "{text}"
        );
    }

    #[test]
    fn only_changes_are_printed() {
        let before = [
            swept(1, "generating"),
            swept(2, "failed"),
            swept(3, "queued"),
        ];
        let now = [
            swept(1, "processed"),
            swept(2, "failed"),
            swept(4, "generating"),
        ];
        let ids = |videos: Vec<&Swept>| -> Vec<u128> {
            videos
                .iter()
                .map(|video| video.video_id.as_u128())
                .collect()
        };
        assert_eq!(ids(changed(&before, &now).collect()), [1, 4]);
        assert_eq!(ids(gone(&before, &now).collect()), [3]);
        assert_eq!(
            gone(&now, &[]).count(),
            2,
            "an announced video is not announced again"
        );
    }

    #[test]
    fn durations_have_the_syntax_of_settings() {
        let parsed = ["0", "30", "30s", "5m"].map(|text| wait(text).unwrap().as_secs());
        assert_eq!(parsed, [0, 30, 30, 300]);
        for wrong in ["301", "6m", "-5s", "soon", ""] {
            assert!(wait(wrong).is_err(), "{wrong}");
        }
        let watch = |every| command().try_get_matches_from(["reconcile", "--watch", every]);
        assert!(watch("30s").is_ok());
        for wrong in ["30", "0s", "-5s", "soon"] {
            assert!(watch(wrong).is_err(), "{wrong}");
        }
    }
}
