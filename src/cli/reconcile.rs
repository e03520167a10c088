//! `video-ingest reconcile`: one sweep of a running server, and what it found, in words.

use std::collections::HashMap;
use std::io::{IsTerminal as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::client::{Client, Video};
use super::words::{self, Row, plain};
use super::{json_flag, print, print_json, url_flag, videos};
use crate::domain::advice::advice;
use crate::domain::failure::Code;

/// How long a sweep waits for what it found, in seconds, unless asked otherwise; and at most.
/// Source: the API's `wait`.
const WAIT_DEFAULT: &str = "25";
const WAIT_MAX: u64 = 300;

/// Videos that need attention and are shown; the page and `videos list` have them all.
const ATTENTION_MAX: usize = 50;

/// The shortest time between two sweeps of `--watch`.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// Between two frames of the spinner.
const TICK: Duration = Duration::from_millis(100);

/// Its command line.
pub(crate) fn command() -> Command {
    Command::new("reconcile")
        .about("Have a running server look for what lost webhooks left behind")
        .after_help(
            "ADMIN_TOKEN comes from the environment, .env, or the file that ADMIN_TOKEN_FILE names.\n\
             Exit code: 0 done, 1 something failed, 2 wrong usage or settings.",
        )
        .args([url_flag(), json_flag().conflicts_with("watch")])
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Only say what would be done"),
        )
        .arg(
            Arg::new("wait")
                .long("wait")
                .value_name("SECONDS")
                .default_value(WAIT_DEFAULT)
                .value_parser(value_parser!(u64).range(0..=WAIT_MAX))
                .help("How long to wait until what was found is ready, up to 300"),
        )
        .arg(
            Arg::new("verify")
                .long("verify")
                .action(ArgAction::SetTrue)
                .help("Compare ready videos with the store, too"),
        )
        .arg(
            Arg::new("video")
                .long("video")
                .value_name("ID")
                .value_parser(videos::video_id)
                .help("Only this video: its id, or the name of one of its files"),
        )
        .arg(
            Arg::new("watch")
                .long("watch")
                .value_name("INTERVAL")
                .value_parser(interval)
                .help("Repeat (`30s`, `5m`), print only what changes, and ring when a video turns ready"),
        )
}

fn interval(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| *duration >= WATCH_MIN)
        .ok_or_else(|| "must be a number and a unit, such as `30s` or `5m`".to_owned())
}

/// A sweep's report, as far as it is shown.
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
    outcome: String,
    detail: String,
}

impl Swept {
    fn needs_attention(&self) -> bool {
        matches!(self.outcome.as_str(), "failed" | "unknown" | "waiting")
    }
}

/// What to ask the server for.
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

    /// The failure code of a video; `None` if it has none, or cannot be asked for.
    async fn code(&self, id: Uuid) -> Option<Code> {
        let video: Video = serde_json::from_value(self.client.video(id).await.ok()?).ok()?;
        video.code.as_deref().and_then(Code::parse)
    }
}

/// Runs it; the exit code says whether something failed.
pub(super) async fn run(matches: &ArgMatches, client: &Client) -> anyhow::Result<ExitCode> {
    let wait = matches.get_one::<u64>("wait").copied().unwrap_or_default();
    let mut query = vec![("wait", wait.to_string())];
    for (flag, name) in [("dry-run", "dry_run"), ("verify", "verify")] {
        query.push((name, matches.get_flag(flag).to_string()));
    }
    let video = matches.get_one::<Uuid>("video");
    query.extend(video.map(|id| ("video_id", id.to_string())));
    let sweep = Sweep {
        client,
        query,
        dry_run: matches.get_flag("dry-run"),
        wait: Duration::from_secs(wait),
    };
    if let Some(every) = matches.get_one::<Duration>("watch") {
        return watch(&sweep, *every).await;
    }

    let spinner = spinner(sweep.wait);
    let answer = sweep.run().await;
    spinner.finish_and_clear();
    let answer = answer?;
    let report: Report = serde_json::from_value(answer.clone())?;
    if matches.get_flag("json") {
        print_json(&answer)?;
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
    Ok(match report.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Shown on a terminal only: indicatif draws nothing elsewhere.
fn spinner(wait: Duration) -> ProgressBar {
    let template = format!(
        "{{spinner}} looking at every video, waiting up to {} s for what is found … {{elapsed}}",
        wait.as_secs()
    );
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template(&template) {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    spinner
}

/// The first two lines are the old poll script's, which other scripts read.
fn summary(report: &Report, dry_run: bool) -> String {
    let lines = [
        (report.processed, "ready! Check your app."),
        (
            report.still_generating,
            "still generating. Check again in 30-60 seconds.",
        ),
        (
            report.queued,
            match dry_run {
                true => "would be ingested.",
                false => "being ingested. Check again in 30-60 seconds.",
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
            "{} could not be asked: {}\n",
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
                    plain(&video.outcome),
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
        text += &words::table(&["VIDEO", "OUTCOME", "CODE"], &rows);
    }
    if more > 0 {
        text += &format!("and {more} more: `video-ingest videos list --state failed`\n");
    }
    if !report.orphans.is_empty() {
        text += "\nPushed, but no row in lesson_assets has that id:\n";
        for path in report.orphans.iter().take(ATTENTION_MAX) {
            text += &format!("    {}\n", plain(path));
        }
        if let Some(more) = report.orphans.len().checked_sub(ATTENTION_MAX + 1) {
            text += &format!("    and {} more\n", more + 1);
        }
    }
    text
}

/// Sweeps again and again until the process is stopped.
async fn watch(sweep: &Sweep<'_>, every: Duration) -> anyhow::Result<ExitCode> {
    let mut before: Option<Vec<Swept>> = None;
    let mut trouble = String::new();
    loop {
        // The first look must work: a wrong address or token would be watched for ever.
        let (report, now_trouble) = match (sweep.run().await, &before) {
            (Ok(answer), _) => (
                Some(serde_json::from_value::<Report>(answer)?),
                String::new(),
            ),
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => (None, format!("{error:#}")),
        };
        if now_trouble != trouble {
            let text = if now_trouble.is_empty() {
                "it answers again"
            } else {
                &now_trouble
            };
            print(&stamped(text))?;
            trouble = now_trouble;
        }
        if let Some(report) = report {
            let known = before.unwrap_or_default();
            let mut turned_ready = false;
            for video in gone(&known, &report.videos) {
                let answer = sweep.client.video(video.video_id).await;
                if answer.is_ok_and(|answer| answer["state"] == "ready") {
                    print(&stamped(&format!("{} ready", video.video_id)))?;
                    turned_ready = true;
                }
            }
            for video in changed(&known, &report.videos) {
                turned_ready |= video.outcome == "processed";
                print(&stamped(&line(video)))?;
            }
            if turned_ready && stdout().is_terminal() {
                print("\x07")?;
            }
            before = Some(report.videos);
        }
        tokio::time::sleep(every).await;
    }
}

fn stamped(text: &str) -> String {
    format!(
        "{}  {}\n",
        Timestamp::now().strftime("%H:%M:%SZ"),
        plain(text)
    )
}

fn line(video: &Swept) -> String {
    match video.outcome.as_str() {
        "processed" => format!("{} ready", video.video_id),
        outcome => format!("{} {outcome}: {}", video.video_id, video.detail),
    }
}

/// What is new or has another outcome. Details hold ages, which change by themselves.
fn changed<'a>(before: &[Swept], now: &'a [Swept]) -> impl Iterator<Item = &'a Swept> {
    let known: HashMap<Uuid, String> = before
        .iter()
        .map(|video| (video.video_id, video.outcome.clone()))
        .collect();
    now.iter()
        .filter(move |video| known.get(&video.video_id) != Some(&video.outcome))
}

/// What was pending and is not any more, without having been announced as ready.
fn gone<'a>(before: &'a [Swept], now: &[Swept]) -> impl Iterator<Item = &'a Swept> {
    let there: std::collections::HashSet<Uuid> = now.iter().map(|video| video.video_id).collect();
    before
        .iter()
        .filter(move |video| video.outcome != "processed" && !there.contains(&video.video_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(id: u128, outcome: &str) -> Swept {
        Swept {
            video_id: Uuid::from_u128(id),
            outcome: outcome.to_owned(),
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
    fn what_needs_attention_says_what_to_do() {
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
    fn a_watcher_hears_of_changes_only() {
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
            "what was announced is not announced again"
        );
    }

    #[test]
    fn intervals_have_units() {
        assert_eq!(interval("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(interval("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["30", "0s", "-5s", "soon"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
