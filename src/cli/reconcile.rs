//! `video-ingest reconcile`: requests a sweep from a running server and prints its report.

use std::collections::HashMap;
use std::io::{IsTerminal as _, stdout};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::client::{Client, Video, VideoName, url_flag};
use super::manual::{CLIENT_HELP, with_examples};
use super::progress::Progress;
use super::videos::{self, pages};
use super::watch::{self, Changes, stamped};
use super::{json_flag, print, print_json, repeats, until_interrupted};
use crate::config;
use crate::domain::ids::VideoKey;
use crate::domain::report::Outcome;
use crate::domain::state::VideoState;
use crate::format::{self, Row, plain};

/// Default and upper limit of `--wait`. Source: the API's `wait`.
const WAIT_DEFAULT: &str = "25s";
const WAIT_MAX: Duration = Duration::from_secs(300);

/// How many videos that need attention are shown; the page and `videos list` have them all.
const ATTENTION_MAX: usize = 50;

/// Bounds of `--watch`.
const WATCH: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Time between two readings of what has changed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How many failed videos are read for their codes and advice.
const FAILED_MAX: usize = 200;

/// The command line of `reconcile`.
pub(crate) fn command() -> Command {
    let command = Command::new("reconcile")
        .about("Run a sweep on a running server to ingest videos whose webhooks were lost")
        .after_help(format!(
            "Exit codes: 0 success, 1 the sweep failed or a video failed in it, 2 invalid usage or configuration. \
             Videos that failed earlier do not count.\n{CLIENT_HELP}"
        ))
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
                .help("Also compare ready videos with the stored objects, and re-ingest those that differ"),
        )
        .arg(
            Arg::new("video")
                .long("video")
                .value_name("ID")
                .value_parser(videos::video_name)
                .help("Check only this video, given by its ID or the name of one of its files"),
        )
        .arg(
            Arg::new("watch")
                .long("watch")
                .value_name("DURATION")
                .value_parser(|text: &str| config::duration(text, WATCH))
                .help("Repeat the sweep at this interval, such as `30s` or `5m`, and print changes as they happen, until Ctrl-C"),
        )
        .args([url_flag(), json_flag().conflicts_with("watch")]);
    with_examples(
        command,
        &[
            (
                "Which videos would be ingested?",
                "video-ingest reconcile --dry-run",
            ),
            (
                "Ingest them, and wait for up to a minute",
                "video-ingest reconcile --wait 60s",
            ),
            (
                "On another server, for a script",
                "video-ingest reconcile --url https://videos.example.org --wait 0s --json",
            ),
        ],
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
#[serde(default)]
struct Report {
    timestamp: String,
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
    lesson_id: Uuid,
    video_id: Uuid,
    outcome: Outcome,
    detail: String,
    /// `false`: it failed before this sweep.
    is_new: bool,
}

impl Swept {
    fn key(&self) -> VideoKey {
        VideoKey {
            lesson_id: self.lesson_id,
            video_id: self.video_id,
        }
    }

    fn needs_attention(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Failed | Outcome::Unknown | Outcome::Waiting
        )
    }
}

impl Report {
    fn count(&self, is: impl Fn(&Swept) -> bool) -> usize {
        self.videos.iter().filter(|video| is(video)).count()
    }

    fn queued(&self) -> usize {
        self.count(|video| video.outcome == Outcome::Queued)
    }

    /// `all`: how many videos were queued at first.
    fn progress(&self, all: usize) -> String {
        let ready = self.count(|video| video.outcome == Outcome::Processed);
        match all - self.queued() - ready {
            0 => format!("{ready} of {all} ready"),
            other => format!("{ready} of {all} ready, {other} failed or waiting"),
        }
    }

    fn newly_failed(&self) -> usize {
        self.count(|video| video.outcome == Outcome::Failed && video.is_new)
    }

    /// Updates a queued video that has been processed since.
    fn update(&mut self, now: &Video) {
        let Some(key) = now.key() else { return };
        let mut queued = self.videos.iter_mut();
        let queued = queued.find(|video| video.key() == key && video.outcome == Outcome::Queued);
        let (Some(video), Some(outcome)) = (queued, outcome(&now.state)) else {
            return;
        };
        if outcome != Outcome::Queued {
            video.outcome = outcome;
            video.detail = now.message.clone().unwrap_or_default();
        }
        if outcome == Outcome::Processed {
            self.orphans.retain(|path| !path.contains(&now.video_id));
        }
    }
}

/// The outcome that corresponds to a state.
fn outcome(state: &str) -> Option<Outcome> {
    Some(match VideoState::parse(state)? {
        VideoState::Ready => Outcome::Processed,
        VideoState::Failed => Outcome::Failed,
        VideoState::Waiting => Outcome::Waiting,
        VideoState::Generating => Outcome::Generating,
        VideoState::Queued | VideoState::Running => Outcome::Queued,
    })
}

/// The sweep to request.
struct Sweep<'a> {
    client: &'a Client,
    query: Vec<(&'static str, String)>,
    only: Option<Uuid>,
    dry_run: bool,
}

impl Sweep<'_> {
    async fn run(&self, wait: Duration) -> anyhow::Result<Value> {
        let mut query = self.query.clone();
        query.push(("wait", wait.as_secs().to_string()));
        let path = "/reconcile";
        self.client.post(path, &query, &Value::Null, wait).await
    }

    /// Runs a sweep without waiting for its videos. Also returns what has changed since it began.
    async fn begin(&self) -> anyhow::Result<(Report, Changes)> {
        let began = Instant::now();
        let report: Report = serde_json::from_value(self.run(Duration::ZERO).await?)?;
        // In the server's time.
        let ended: Timestamp = report
            .timestamp
            .parse()
            .context("The server's report has no valid timestamp.")?;
        let mut changes = Changes::since(ended - began.elapsed());
        let queued = report
            .videos
            .iter()
            .filter(|video| video.outcome == Outcome::Queued);
        changes.follow(queued.map(|video| video.key()));
        Ok((report, changes))
    }

    /// The failed videos that changed last, for their codes and advice.
    async fn failed(&self) -> anyhow::Result<HashMap<VideoKey, Video>> {
        let failed = [("state", "failed".to_owned())];
        let (values, _) = pages(self.client, &failed, FAILED_MAX).await?;
        let videos: Vec<Video> = serde_json::from_value(values.into())?;
        let videos = videos.into_iter();
        Ok(videos
            .filter_map(|video| Some((video.key()?, video)))
            .collect())
    }

    /// What to print if the sweep reports no video.
    async fn nothing(&self) -> anyhow::Result<String> {
        if let Some(id) = self.only {
            let video: Video = serde_json::from_value(self.client.video(id).await?)?;
            return Ok(format!("Nothing to do.\n{}\n", watch::line(&video)));
        }
        let mut unready = Vec::new();
        for state in VideoState::ALL.iter().map(|state| state.as_str()) {
            let of_state = [("state", state.to_owned())];
            let (some, _) = pages(self.client, &of_state, 1).await?;
            if state != VideoState::Ready.as_str() && !some.is_empty() {
                unready.push(state);
            }
        }
        Ok(if unready.is_empty() {
            "Every video is ready; nothing is pending.\n".to_owned()
        } else {
            format!(
                "The sweep found nothing to do, but not every video is ready. Other states: {}. To see why, run `video-ingest status`.\n",
                unready.join(", ")
            )
        })
    }
}

/// Requests a sweep; the exit code says whether a video failed in it.
pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let client = Client::from_flags(matches)?;
    let wait = matches.get_one::<Duration>("wait").copied();
    let wait = wait.unwrap_or_default();
    let mut query = Vec::new();
    for (flag, name) in [("dry-run", "dry_run"), ("verify", "verify")] {
        query.push((name, matches.get_flag(flag).to_string()));
    }
    let only = matches.get_one::<VideoName>("video");
    let only = only.map(|name| name.video_id);
    query.extend(only.map(|id| ("video_id", id.to_string())));
    let sweep = Sweep {
        client: &client,
        query,
        only,
        dry_run: matches.get_flag("dry-run"),
    };
    if let Some(every) = matches.get_one::<Duration>("watch") {
        return until_interrupted(watch_sweeps(&sweep, *every)).await;
    }
    let mut progress = Progress::start();
    if matches.get_flag("json") {
        let response = progress.during("running a sweep", sweep.run(wait)).await?;
        let report: Report = serde_json::from_value(response.clone())?;
        drop(progress);
        print_json(&response)?;
        return Ok(exit_code(&sweep, &report));
    }
    let (mut report, mut changes) = progress.during("running a sweep", sweep.begin()).await?;
    let until = Instant::now() + wait;
    let all = report.queued();
    while !sweep.dry_run && report.queued() > 0 && Instant::now() < until {
        progress.show(&report.progress(all));
        sleep(POLL_INTERVAL.min(until - Instant::now())).await;
        for (video, _) in changes.next(&client).await? {
            report.update(&video);
        }
    }
    drop(progress);
    print(&summary(&report, sweep.dry_run))?;
    if report.videos.is_empty() && report.errors.is_empty() {
        print(&sweep.nothing().await?)?;
    }
    let has_failed = report.count(|video| video.outcome == Outcome::Failed) > 0;
    let failed = if has_failed {
        sweep.failed().await?
    } else {
        HashMap::new()
    };
    print(&attention_table(&report, &failed))?;
    Ok(exit_code(&sweep, &report))
}

/// Earlier failures do not count: a scheduled sweep would alarm until somebody fixes them.
fn exit_code(sweep: &Sweep<'_>, report: &Report) -> ExitCode {
    ExitCode::from(u8::from(!sweep.dry_run && report.newly_failed() > 0))
}

/// The first two lines are those of an older poll script, which other scripts parse.
fn summary(report: &Report, dry_run: bool) -> String {
    let of = |outcome| report.count(|video| video.outcome == outcome);
    let failed = of(Outcome::Failed);
    let newly = report.newly_failed();
    let queued = if dry_run {
        "would be ingested:"
    } else {
        "being ingested. Run `video-ingest videos watch` to see the results."
    };
    let newly_failed = if dry_run {
        "would fail."
    } else {
        "failed in this sweep."
    };
    let lines = [
        (of(Outcome::Processed), "ready! Check your app."),
        (
            of(Outcome::Generating),
            "still generating. Check again in 30-60 seconds.",
        ),
        (of(Outcome::Queued), queued),
        (newly, newly_failed),
        (failed - newly, "failed earlier."),
        (of(Outcome::Waiting), "waiting for another file or a row."),
        (
            of(Outcome::Unknown),
            "not decided, because information is missing.",
        ),
    ];
    let mut text = String::new();
    for (count, words) in lines.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("{count} video(s) {words}\n");
        if dry_run && words == queued {
            text += &table(report, |video| video.outcome == Outcome::Queued);
        }
    }
    for error in &report.errors {
        text += &service_error(error);
    }
    text
}

fn service_error(error: &ServiceError) -> String {
    let (service, code) = (plain(&error.service), plain(&error.code));
    let text = match (service.as_str(), code.as_str()) {
        ("database", "odd_row") => "A row in lesson_assets has an invalid value and was skipped. Correct it; the server's log names the row and the column.".to_owned(),
        ("openhands", _) => format!("The OpenHands API is unavailable ({code}). Videos that are being generated keep their state, and the next sweep asks again. To check OPENHANDS_API_KEY, run `video-ingest doctor`."),
        _ => format!("The {service} is unavailable ({code}). What depends on it was not checked; the next sweep tries again. To find the cause, run `video-ingest doctor`."),
    };
    format::indented(&[text], 0)
}

/// Videos with the details of the sweep.
fn table(report: &Report, is: impl Fn(&Swept) -> bool) -> String {
    let rows = report.videos.iter().filter(|video| is(video));
    let lines = rows.map(|video| format!("    {}  {}\n", video.video_id, plain(&video.detail)));
    lines.collect()
}

fn attention_table(report: &Report, failed: &HashMap<VideoKey, Video>) -> String {
    let mut attention = report.videos.iter().filter(|video| video.needs_attention());
    let rows: Vec<Row> = attention
        .by_ref()
        .take(ATTENTION_MAX)
        .map(|video| {
            let known = failed.get(&video.key());
            let known = known.filter(|_| video.outcome == Outcome::Failed);
            let advice = known.and_then(|known| known.advice.as_deref());
            let advice = advice.filter(|advice| !repeats(&video.detail, advice));
            let code = known.and_then(|known| known.code.clone());
            Row {
                cells: vec![
                    video.video_id.to_string(),
                    video.outcome.to_string(),
                    code.unwrap_or_default(),
                ],
                notes: std::iter::once(plain(&video.detail))
                    .chain(advice.map(|advice| format!("→ {advice}")))
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

/// Repeats the sweep until the process is stopped, and prints changes as they happen.
async fn watch_sweeps(sweep: &Sweep<'_>, every: Duration) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::start();
    let mut known = HashMap::new();
    let mut first = None;
    let mut problem = String::new();
    loop {
        let next_at = Instant::now() + every;
        let result = watch_one(sweep, next_at, &mut known, &mut first, &mut progress).await;
        let now_problem = match result {
            Ok(()) => String::new(),
            // The first sweep must succeed: a wrong URL or token would never recover.
            Err(error) if first.is_none() => return Err(error),
            Err(error) => format!("{error:#}"),
        };
        if now_problem != problem {
            let text = if now_problem.is_empty() {
                "The server is responding again."
            } else {
                &now_problem
            };
            progress.suspend(|| print(&stamped(text)))?;
            problem = now_problem;
        }
        sleep_until(next_at).await;
    }
}

/// One sweep, and the changes until the next. `known`: the outcomes that were printed.
async fn watch_one(
    sweep: &Sweep<'_>,
    next_at: Instant,
    known: &mut HashMap<VideoKey, Outcome>,
    first: &mut Option<Timestamp>,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let (mut report, mut changes) = progress.during("running a sweep", sweep.begin()).await?;
    let first = *first.get_or_insert(report.timestamp.parse()?);
    for video in &report.videos {
        if known.insert(video.key(), video.outcome) != Some(video.outcome) {
            progress.suspend(|| print(&stamped(&line(video))))?;
        }
    }
    let all = report.queued();
    while Instant::now() < next_at {
        for (video, _) in changes.next(sweep.client).await? {
            report.update(&video);
            let is_new = video
                .updated_at
                .parse()
                .is_ok_and(|at: Timestamp| at >= first);
            let (Some(key), Some(outcome)) = (video.key(), outcome(&video.state)) else {
                continue;
            };
            let before = known.get(&key);
            if before != Some(&outcome) && (before.is_some() || is_new) {
                known.insert(key, outcome);
                progress.suspend(|| announce(&video))?;
            }
        }
        if all > 0 {
            progress.show(&report.progress(all));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Prints a change, and rings the terminal bell if the video is ready.
fn announce(video: &Video) -> anyhow::Result<()> {
    print(&stamped(&watch::line(video)))?;
    if video.state == "ready" && stdout().is_terminal() {
        print("\x07")?;
    }
    Ok(())
}

fn line(video: &Swept) -> String {
    format!(
        "{}  {:10}  {}",
        video.video_id,
        video.outcome.to_string(),
        video.detail
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(id: u128, outcome: Outcome) -> Swept {
        Swept {
            lesson_id: Uuid::nil(),
            video_id: Uuid::from_u128(id),
            outcome,
            detail: "in words".to_owned(),
            is_new: false,
        }
    }

    fn video(id: u128, state: &str) -> Video {
        Video {
            lesson_id: Uuid::nil().to_string(),
            video_id: Uuid::from_u128(id).to_string(),
            state: state.to_owned(),
            code: Some("truncated".to_owned()),
            message: Some("It ends early.".to_owned()),
            advice: Some("Render it again.".to_owned()),
            ..Video::default()
        }
    }

    #[test]
    fn the_old_scripts_lines_are_kept() {
        let mut report = Report {
            videos: vec![
                swept(1, Outcome::Processed),
                swept(2, Outcome::Generating),
                swept(3, Outcome::Failed),
                swept(4, Outcome::Failed),
            ],
            ..Report::default()
        };
        report.videos[3].is_new = true;
        assert_eq!(
            summary(&report, false),
            "1 video(s) ready! Check your app.\n\
             1 video(s) still generating. Check again in 30-60 seconds.\n\
             1 video(s) failed in this sweep.\n\
             1 video(s) failed earlier.\n"
        );
    }

    #[test]
    fn a_dry_run_names_what_would_be_ingested() {
        let report = Report {
            videos: vec![swept(1, Outcome::Queued)],
            ..Report::default()
        };
        let id = Uuid::from_u128(1);
        assert_eq!(
            summary(&report, true),
            format!("1 video(s) would be ingested:\n    {id}  in words\n")
        );
    }

    #[test]
    fn progress_counts_what_the_sweep_queued() {
        let mut report = Report {
            videos: vec![
                swept(1, Outcome::Queued),
                swept(2, Outcome::Queued),
                swept(3, Outcome::Failed),
            ],
            ..Report::default()
        };
        report.videos[1].is_new = true;
        report.orphans = vec![format!("videos/x_{}.mp4", Uuid::from_u128(1))];
        assert_eq!(report.progress(2), "0 of 2 ready");
        for now in [video(1, "ready"), video(2, "running"), video(9, "failed")] {
            report.update(&now);
        }
        assert_eq!(report.progress(2), "1 of 2 ready");
        assert!(report.orphans.is_empty() && report.newly_failed() == 0);
        report.update(&video(2, "failed"));
        assert_eq!(report.progress(2), "1 of 2 ready, 1 failed or waiting");
        assert_eq!(report.newly_failed(), 1);
    }

    #[test]
    fn failures_come_with_advice_that_is_not_in_the_message() {
        let mut report = Report {
            videos: vec![swept(1, Outcome::Generating), swept(2, Outcome::Failed)],
            ..Report::default()
        };
        let failed = HashMap::from([(report.videos[1].key(), video(2, "failed"))]);
        let text = attention_table(&report, &failed);
        assert!(!text.contains(&Uuid::from_u128(1).to_string()), "{text}");
        assert!(
            text.contains("failed   truncated\n    in words\n    → Render"),
            "{text}"
        );
        report.videos[1].detail = "It ends early; render it again.".to_owned();
        assert!(!attention_table(&report, &failed).contains('→'));
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
