//! `video-ingest videos`: lists, shows and retries the videos of a running server.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, Detail, Video, url_flag};
use super::{json_flag, print, print_json, print_line};
use crate::clock::Clock;
use crate::domain::advice::advice;
use crate::domain::failure::Code;
use crate::format::{self, Row, length, plain, size};

/// The longest page of the API. Source: `db::PAGE_ROWS_MAX`.
const PAGE_ROWS_MAX: usize = 200;

/// Default of `--limit`.
const LIMIT_DEFAULT: &str = "50";

/// Where values start in the output of `show`, in characters.
const FACT_INDENT: usize = 14;

/// The command line of `videos`.
pub(crate) fn command() -> Command {
    let id = Arg::new("id")
        .value_name("ID")
        .required(true)
        .value_parser(video_id)
        .help("The id of the video or the name of one of its files");
    Command::new("videos")
        .about("List, show or retry the videos of a running server")
        .after_help("ADMIN_TOKEN is read from the environment, .env or the file that ADMIN_TOKEN_FILE names.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .about("List videos, most recently changed first")
                .args([url_flag(), json_flag()])
                .arg(
                    Arg::new("state")
                        .long("state")
                        .value_name("STATE")
                        .value_parser(["generating", "queued", "running", "waiting", "ready", "failed"])
                        .help("Only videos in this state"),
                )
                .arg(
                    Arg::new("q")
                        .long("q")
                        .value_name("TEXT")
                        .help("Only videos whose id or lesson id starts with this, or with this file name"),
                )
                .arg(
                    Arg::new("limit")
                        .long("limit")
                        .value_name("N")
                        .default_value(LIMIT_DEFAULT)
                        .value_parser(value_parser!(u32).range(1..))
                        .help("At most this many"),
                ),
        )
        .subcommand(
            Command::new("show")
                .about("Show a video with its timeline")
                .args([url_flag(), json_flag(), id.clone()]),
        )
        .subcommand(
            Command::new("retry")
                .about("Ingest a video again, regardless of its state")
                .args([url_flag(), id.action(ArgAction::Set)]),
        )
}

/// Parses a video id, a file name or a path.
pub(crate) fn video_id(text: &str) -> Result<Uuid, String> {
    let name = text.trim().rsplit('/').next().unwrap_or_default();
    let stem = name
        .strip_suffix(".mp4")
        .or(name.strip_suffix(".json"))
        .unwrap_or(name);
    let id = stem.rsplit('_').next().unwrap_or_default();
    Uuid::try_parse(id).map_err(|_| {
        "must be the ID of a video (a UUID) or a file name in the form `<lesson_id>_<video_id>.mp4`".to_owned()
    })
}

/// Runs `list`, `show` or `retry`.
pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((name, matches)) = matches.subcommand() else {
        unreachable!("clap requires one of the subcommands");
    };
    let client = Client::from_flags(matches)?;
    let now = Clock::default().now();
    if name == "retry" {
        let id = id(matches)?;
        client.retry(id).await?;
        print_line(&format!(
            "Queued. Run `video-ingest videos show {id}` to see the result."
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let as_json = matches.get_flag("json");
    if name == "show" {
        let response = client.video(id(matches)?).await?;
        if as_json {
            print_json(&response)?;
        } else {
            print(&shown(&serde_json::from_value(response)?, now))?;
        }
    } else {
        let (videos, next) = list(matches, &client).await?;
        if as_json {
            print_json(&json!({"videos": videos, "next": next}))?;
        } else {
            let videos: Vec<Video> = serde_json::from_value(videos.into())?;
            print(&listed(&videos, next.is_null(), now))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The required argument ID.
fn id(matches: &ArgMatches) -> anyhow::Result<Uuid> {
    matches.get_one("id").copied().context("ID is required.")
}

/// Reads pages until there are enough videos. Returns them and the cursor of the rest.
async fn list(matches: &ArgMatches, client: &Client) -> anyhow::Result<(Vec<Value>, Value)> {
    let limit = matches.get_one::<u32>("limit").map_or(0, |n| *n as usize);
    let (mut videos, mut next) = (Vec::new(), Value::Null);
    loop {
        let page_rows = PAGE_ROWS_MAX.min(limit - videos.len());
        let mut query = vec![("limit", page_rows.to_string())];
        for name in ["state", "q"] {
            query.extend(matches.get_one::<String>(name).map(|v| (name, v.clone())));
        }
        query.extend(next.as_str().map(|cursor| ("cursor", cursor.to_owned())));
        let mut page = client
            .call(Method::GET, "/api/videos", &query, Duration::ZERO)
            .await?;
        next = page["next"].take();
        match page["videos"].take() {
            Value::Array(items) if !items.is_empty() => videos.extend(items),
            _ => return Ok((videos, Value::Null)),
        }
        if next.is_null() || videos.len() >= limit {
            return Ok((videos, next));
        }
    }
}

/// How long ago: `5 min ago`.
fn ago(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else {
        return "?".to_owned();
    };
    // A server's clock may be ahead of ours.
    let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
    format!("{} ago", format::age(age))
}

/// Date and time to the millisecond, in UTC.
fn moment(at: &str) -> String {
    match at.parse::<Timestamp>() {
        Ok(at) => at.strftime("%F %T%.3f").to_string(),
        Err(_) => plain(at),
    }
}

fn listed(videos: &[Video], complete: bool, now: Timestamp) -> String {
    if videos.is_empty() {
        return "No videos.\n".to_owned();
    }
    let rows: Vec<Row> = videos
        .iter()
        .map(|video| Row {
            cells: vec![
                video.video_id.clone(),
                video.state.clone(),
                ago(&video.updated_at, now),
                about(video),
            ],
            notes: video.message.iter().map(|message| plain(message)).collect(),
        })
        .collect();
    let mut text = format::table(&["VIDEO", "STATE", "CHANGED", "ABOUT"], &rows);
    if !complete {
        text += "There are more videos. Use --limit, --state or --q.\n";
    }
    text
}

/// The failure code, else size and length.
fn about(video: &Video) -> String {
    match (&video.code, video.size_bytes, video.duration_ms) {
        (Some(code), ..) => plain(code),
        (None, Some(bytes), Some(ms)) => format!("{}, {}", size(bytes), length(ms)),
        _ => String::new(),
    }
}

fn shown(detail: &Detail, now: Timestamp) -> String {
    let video = &detail.video;
    let mut facts = vec![
        ("video", video.video_id.clone()),
        ("lesson", video.lesson_id.clone()),
        (
            "state",
            format!("{}, changed {}", video.state, ago(&video.updated_at, now)),
        ),
    ];
    let mut fact = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    fact("code", video.code.clone());
    fact("message", video.message.clone());
    let code = video.code.as_deref().and_then(Code::parse);
    fact("what to do", code.map(|code| advice(code).to_owned()));
    fact(
        "size",
        video
            .size_bytes
            .map(|bytes| format!("{bytes} bytes ({})", size(bytes))),
    );
    fact(
        "duration",
        video
            .duration_ms
            .map(|ms| format!("{ms} ms ({})", length(ms))),
    );
    fact("stored", video.storage_path.clone());
    fact("commit", video.commit.clone());
    fact("requested by", video.source.clone());
    fact("attempts", Some(video.attempts.to_string()));
    for warning in detail.warnings.iter().flatten() {
        fact("warning", Some(warning.clone()));
    }
    for delivery in &detail.deliveries {
        fact("delivery", Some(delivery.clone()));
    }
    let mut text = String::new();
    for (name, value) in facts {
        let lines = format::indented(&[plain(&value)], FACT_INDENT);
        text += &format!("{name:<FACT_INDENT$}{}", lines.trim_start());
    }
    if !detail.timeline.is_empty() {
        text.push('\n');
        text += &timeline(detail);
    }
    text
}

fn timeline(detail: &Detail) -> String {
    let rows: Vec<Row> = detail
        .timeline
        .iter()
        .map(|event| Row {
            cells: vec![
                moment(&event.at),
                event.ms.map_or_else(String::new, |ms| format!("{ms} ms")),
                plain(&event.step),
                plain(&event.detail),
            ],
            notes: Vec::new(),
        })
        .collect();
    format::table(&["TIME (UTC)", "TOOK", "STEP", "DETAIL"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::Event;

    const LESSON: &str = "34b9a0c7-62d7-4002-a642-00488b2c7f7c";
    const VIDEO: &str = "0beee2d2-ace7-4ccf-81a7-41a6c43c1a75";

    fn now() -> Timestamp {
        "2026-01-28T12:00:00Z".parse().unwrap()
    }

    fn failed() -> Video {
        Video {
            video_id: VIDEO.to_owned(),
            lesson_id: LESSON.to_owned(),
            state: "failed".to_owned(),
            code: Some("truncated".to_owned()),
            message: Some("the file ends early".to_owned()),
            updated_at: "2026-01-28T11:55:00Z".to_owned(),
            ..Video::default()
        }
    }

    #[test]
    fn ids_file_names_and_paths_name_a_video() {
        for text in [
            VIDEO.to_owned(),
            VIDEO.to_uppercase(),
            format!("{LESSON}_{VIDEO}.mp4"),
            format!(" videos/{LESSON}_{VIDEO}.json\n"),
            format!("lesson-assets/{LESSON}/{LESSON}/{VIDEO}.mp4"),
        ] {
            assert_eq!(video_id(&text).unwrap().to_string(), VIDEO, "{text}");
        }
        assert!(video_id("notes.json").is_err());
    }

    #[test]
    fn ages_need_not_be_positive_or_known() {
        let ages = ["2026-01-28T11:58:00Z", "2026-01-28T12:00:01Z", "yesterday"];
        assert_eq!(ages.map(|at| ago(at, now())), ["2 min ago", "0 s ago", "?"]);
    }

    #[test]
    fn a_list_shows_age_code_and_message() {
        assert_eq!(
            listed(&[failed()], true, now()),
            "VIDEO                                 STATE   CHANGED    ABOUT\n\
             0beee2d2-ace7-4ccf-81a7-41a6c43c1a75  failed  5 min ago  truncated\n    \
                 the file ends early\n"
        );
    }

    #[test]
    fn a_video_shows_advice_and_its_timeline() {
        let event = Event {
            at: "2026-01-28T11:54:59.5Z".to_owned(),
            step: "listed".to_owned(),
            detail: "head 4b825dc".to_owned(),
            ms: Some(12),
        };
        let detail = Detail {
            video: failed(),
            timeline: vec![event],
            ..Detail::default()
        };
        let text = shown(&detail, now());
        assert!(
            text.contains(&format!("what to do    {}", advice(Code::Truncated))),
            "{text}"
        );
        assert!(
            text.contains("2026-01-28 11:54:59.500  12 ms  listed  head 4b825dc\n"),
            "{text}"
        );
    }
}
