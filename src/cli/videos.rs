//! `video-ingest videos`: lists, shows, watches and retries the videos of a running server.

use std::io::{IsTerminal as _, stdout};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, Video, VideoName, url_flag};
use super::manual::{CLIENT_HELP, with_examples};
use super::{json_flag, print, print_json, print_line, show, watch};
use crate::clock::Clock;
use crate::config;
use crate::domain::failure::Code;
use crate::domain::state::VideoState;
use crate::format::{self, Row, length, plain, size};

/// The longest page of the API. Source: `db::PAGE_ROWS_MAX`.
const PAGE_ROWS_MAX: usize = 200;

/// Default of `--limit`.
const LIMIT_DEFAULT: &str = "50";

/// Where the results of a retry are shown: a watch would miss those that come before it begins.
const LOOK: &str = "To see the results, run `video-ingest videos list --since 5m`.";

/// Bounds of `--since` and `--until`, if they are durations.
const AGO: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3650 * 24 * 3600);

/// The filters of `list` that the API has under the same name.
const FILTERS: [&str; 4] = ["state", "code", "q", "commit"];

/// The command line of `videos`.
pub(crate) fn command() -> Command {
    let group = Command::new("videos")
        .about("List, show, watch or retry videos on a running server")
        .subcommand_required(true)
        .arg_required_else_help(true);
    let examples = [
        (
            "What has failed?",
            "video-ingest videos list --state failed",
        ),
        ("What is happening now?", "video-ingest videos watch"),
    ];
    with_examples(group, &examples)
        .subcommand(list_command())
        .subcommand(with_examples(
            Command::new("show")
                .about("Explain the state of a video, and show its facts, links and timeline")
                .after_help(CLIENT_HELP)
                .args([id().required(true), lesson(), url_flag(), json_flag()]),
            &[(
                "Why is this video not playing?",
                "video-ingest videos show 0beee2d2-ace7-4ccf-81a7-41a6c43c1a75",
            )],
        ))
        .subcommand(watch_command())
        .subcommand(with_examples(
            Command::new("retry")
                .about("Ingest videos again, even if their files were rejected")
                .after_help(CLIENT_HELP)
                .args([
                    id().required_unless_present("failed"),
                    lesson().requires("id"),
                    Arg::new("failed")
                        .long("failed")
                        .action(ArgAction::SetTrue)
                        .conflicts_with("id")
                        .help("Retry every failed video"),
                    code("Retry only failed videos with this code").requires("failed"),
                    url_flag(),
                ]),
            &[
                (
                    "One video",
                    "video-ingest videos retry 0beee2d2-ace7-4ccf-81a7-41a6c43c1a75",
                ),
                (
                    "All videos that failed because of an expired GITHUB_TOKEN",
                    "video-ingest videos retry --failed --code github_denied",
                ),
            ],
        ))
}

fn list_command() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let states = PossibleValuesParser::new(VideoState::ALL.iter().map(|state| state.as_str()));
    let time = |name, help| flag(name, "TIME", help).value_parser(time);
    let command = Command::new("list")
        .about("List videos, most recently changed first")
        .after_help(format!(
            "TIME is a date (2026-01-28), a time (2026-01-28T12:00:00Z) or a duration before now (24h, 7d).\n\
             In a pipe, each video is one line with the same columns; times are in UTC.\n{CLIENT_HELP}"
        ))
        .args([
            flag("state", "STATE", "List only videos in this state").value_parser(states),
            code("List only videos with this failure code"),
            lesson().conflicts_with("q").help("List only videos of this lesson"),
            time("since", "List only videos that changed at or after this time"),
            time("until", "List only videos that changed at or before this time"),
            flag("commit", "SHA", "List only videos that were read from this commit or named in its push; a prefix of the SHA is enough"),
            flag("q", "TEXT", "List only videos whose ID or lesson ID starts with this text, or that have a file with this name"),
            flag("limit", "N", "Maximum number of videos to list")
                .default_value(LIMIT_DEFAULT)
                .value_parser(value_parser!(u32).range(1..)),
            url_flag(),
            json_flag(),
        ]);
    with_examples(
        command,
        &[
            (
                "Videos that failed in the last day",
                "video-ingest videos list --state failed --since 24h",
            ),
            (
                "IDs of the videos that are still being generated",
                "video-ingest videos list --state generating | awk 'NR > 1 {print $1}'",
            ),
            (
                "Everything about the videos of a lesson",
                "video-ingest videos list --lesson 34b9a0c7-62d7-4002-a642-00488b2c7f7c --json",
            ),
        ],
    )
}

fn watch_command() -> Command {
    let command = Command::new("watch")
        .about("Print each change of the given videos, or of all videos, as it happens")
        .after_help(format!(
            "Exit codes: 0 every given video is ready, 1 one of them failed or the command was interrupted. \
             Without IDs, runs until Ctrl-C and then exits with 0.\n{CLIENT_HELP}"
        ))
        .args([
            id().num_args(0..),
            url_flag(),
            json_flag().help("Print each change as one line of JSON"),
        ]);
    with_examples(
        command,
        &[
            (
                "Wait until a video is ready",
                "video-ingest videos watch 0beee2d2-ace7-4ccf-81a7-41a6c43c1a75",
            ),
            ("Follow all videos", "video-ingest videos watch"),
        ],
    )
}

fn id() -> Arg {
    Arg::new("id")
        .value_name("ID")
        .value_parser(video_name)
        .help("ID of the video, or the name of one of its files")
}

fn lesson() -> Arg {
    Arg::new("lesson")
        .long("lesson")
        .value_name("ID")
        .value_parser(value_parser!(Uuid))
        .help("Lesson of the video, if the ID occurs in several lessons")
}

fn code(help: &'static str) -> Arg {
    let codes = Code::ALL.iter().map(|code| code.as_str());
    Arg::new("code")
        .long("code")
        .value_name("CODE")
        .value_parser(PossibleValuesParser::new(codes))
        .hide_possible_values(true)
        .help(help)
}

/// Parses a video id, a file name or a path.
pub(crate) fn video_name(text: &str) -> Result<VideoName, String> {
    let name = text.trim().rsplit('/').next().unwrap_or_default();
    let stem = name
        .strip_suffix(".mp4")
        .or(name.strip_suffix(".json"))
        .unwrap_or(name);
    let (lesson, id) = stem.rsplit_once('_').unwrap_or(("", stem));
    let video_id = Uuid::try_parse(id).map_err(|_| {
        "must be a video ID (a UUID) or a file name such as `<lesson_id>_<video_id>.mp4`".to_owned()
    })?;
    Ok(VideoName {
        lesson_id: Uuid::try_parse(lesson).ok(),
        video_id,
    })
}

/// Parses a date, a time or a duration before now.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(time) = format!("{text}T00:00:00Z").parse() {
        return Ok(time);
    }
    config::duration(text, AGO)
        .map(|ago| Clock::default().now() - ago)
        .map_err(|_| {
            "must be a date (`2026-01-28`), a time (`2026-01-28T12:00:00Z`) or a duration before now (`24h`, `7d`)"
                .to_owned()
        })
}

/// Runs `list`, `show`, `watch` or `retry`.
pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((name, matches)) = matches.subcommand() else {
        unreachable!("clap requires one of the subcommands");
    };
    let client = Client::from_flags(matches)?;
    match name {
        "list" => list(matches, &client).await?,
        "show" => {
            let response = client.video(named(matches)?).await?;
            if matches.get_flag("json") {
                print_json(&response)?;
            } else {
                let now = Clock::default().now();
                print(&show::shown(&serde_json::from_value(response)?, now))?;
            }
        }
        "watch" => {
            let names = matches.get_many("id").into_iter().flatten();
            let names: Vec<VideoName> = names.copied().collect();
            return watch::run(&client, &names, matches.get_flag("json")).await;
        }
        _ => retry(matches, &client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The video that ID and `--lesson` name.
fn named(matches: &ArgMatches) -> anyhow::Result<VideoName> {
    let name: VideoName = matches.get_one("id").copied().context("ID is required.")?;
    let lesson_id = matches.get_one("lesson").copied().or(name.lesson_id);
    Ok(VideoName { lesson_id, ..name })
}

async fn retry(matches: &ArgMatches, client: &Client) -> anyhow::Result<()> {
    if !matches.get_flag("failed") {
        let name = named(matches)?;
        client.retry(name).await?;
        let id = name.video_id;
        return print_line(&format!(
            "Queued. Run `video-ingest videos watch {id}` to see the result."
        ));
    }
    let mut body = json!({"state": "failed"});
    if let Some(code) = matches.get_one::<String>("code") {
        body["code"] = code.as_str().into();
    }
    let path = "/api/videos/retry";
    let response = client.post(path, &[], &body, Duration::ZERO).await?;
    print_line(&match response["retried"].as_u64().unwrap_or(0) {
        0 => "No failed video matches; nothing was queued.".to_owned(),
        1 => format!("1 video was queued. {LOOK}"),
        n => format!("{n} videos were queued. {LOOK}"),
    })
}

async fn list(matches: &ArgMatches, client: &Client) -> anyhow::Result<()> {
    let limit = matches.get_one::<u32>("limit").map_or(0, |n| *n as usize);
    let mut query = Vec::new();
    for name in FILTERS {
        query.extend(matches.get_one::<String>(name).map(|v| (name, v.clone())));
    }
    for name in ["since", "until"] {
        let time = matches.get_one::<Timestamp>(name);
        query.extend(time.map(|time| (name, time.to_string())));
    }
    // As the beginning of a file name.
    let lesson = matches.get_one::<Uuid>("lesson");
    query.extend(lesson.map(|id| ("q", format!("{id}_"))));
    let (videos, next) = pages(client, &query, limit).await?;
    if matches.get_flag("json") {
        return print_json(&json!({"videos": videos, "next": next}));
    }
    let videos: Vec<Video> = serde_json::from_value(videos.into())?;
    if stdout().is_terminal() {
        print(&listed(&videos, next.is_null(), Clock::default().now()))
    } else {
        print(&piped(&videos))
    }
}

/// Reads pages until there are enough videos. Returns them and the cursor of the rest.
///
/// # Errors
/// Fails like [`Client::get`].
pub(super) async fn pages(
    client: &Client,
    filter: &[(&str, String)],
    limit: usize,
) -> anyhow::Result<(Vec<Value>, Value)> {
    let (mut videos, mut next) = (Vec::new(), Value::Null);
    loop {
        let page_rows = PAGE_ROWS_MAX.min(limit - videos.len());
        let mut query = filter.to_vec();
        query.push(("limit", page_rows.to_string()));
        query.extend(next.as_str().map(|cursor| ("cursor", cursor.to_owned())));
        let mut page = client.get("/api/videos", &query).await?;
        let before = std::mem::replace(&mut next, page["next"].take());
        if !next.is_null() && next == before {
            anyhow::bail!(
                "The server returned the same page twice. Check that the URL is that of a video-ingest server."
            );
        }
        match page["videos"].take() {
            Value::Array(items) if !items.is_empty() => videos.extend(items),
            _ => return Ok((videos, Value::Null)),
        }
        if next.is_null() || videos.len() >= limit {
            return Ok((videos, next));
        }
    }
}

/// How long ago, or in which time: `5 min ago`, `in 5 min`.
pub(super) fn relative(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else {
        return "?".to_owned();
    };
    let apart = now.duration_since(at);
    let age = format::age(apart.unsigned_abs());
    if apart.is_negative() {
        format!("in {age}")
    } else {
        format!("{age} ago")
    }
}

/// For people: notes below each video.
fn listed(videos: &[Video], complete: bool, now: Timestamp) -> String {
    if videos.is_empty() {
        return "No videos.\n".to_owned();
    }
    let rows: Vec<Row> = videos
        .iter()
        .map(|video| {
            let details = match &video.code {
                Some(code) => plain(code),
                None => measured(video),
            };
            Row {
                cells: vec![
                    video.video_id.clone(),
                    video.state.clone(),
                    relative(&video.updated_at, now),
                    details,
                ],
                notes: notes(video, now),
            }
        })
        .collect();
    let mut text = format::table(&["VIDEO", "STATE", "CHANGED", "DETAILS"], &rows);
    if !complete {
        text += "There are more videos. Increase --limit, or narrow the list with --state, --code or --since.\n";
    }
    text
}

fn notes(video: &Video, now: Timestamp) -> Vec<String> {
    let next = video.next_attempt_at.as_deref();
    let next = next.map(|at| format!("Next attempt {}.", relative(at, now)));
    let message = message(video).map(plain);
    message.into_iter().chain(next).collect()
}

/// The reason of a failure or a wait, or what the agent is doing.
pub(super) fn message(video: &Video) -> Option<&str> {
    let agent = video.generation.as_ref().map(|agent| agent.detail.as_str());
    video.message.as_deref().or(agent)
}

/// Size and length, if they are known.
pub(super) fn measured(video: &Video) -> String {
    match (video.size_bytes, video.duration_ms) {
        (Some(bytes), Some(ms)) => format!("{}, {}", size(bytes), length(ms)),
        _ => String::new(),
    }
}

/// For programs: one line for each video.
fn piped(videos: &[Video]) -> String {
    let row = |video: &Video| {
        vec![
            video.video_id.clone(),
            video.state.clone(),
            video.code.clone().unwrap_or_default(),
            video.updated_at.clone(),
            video.next_attempt_at.clone().unwrap_or_default(),
            video.lesson_id.clone(),
            message(video).map_or_else(|| measured(video), str::to_owned),
        ]
    };
    let heads = [
        "VIDEO",
        "STATE",
        "CODE",
        "CHANGED",
        "NEXT_ATTEMPT",
        "LESSON",
        "DETAILS",
    ];
    format::lines(&heads, &videos.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            next_attempt_at: Some("2026-01-28T13:00:00Z".to_owned()),
            ..Video::default()
        }
    }

    #[test]
    fn ids_file_names_and_paths_name_a_video() {
        for (text, has_lesson) in [
            (VIDEO.to_owned(), false),
            (VIDEO.to_uppercase(), false),
            (format!("{LESSON}_{VIDEO}.mp4"), true),
            (format!(" videos/{LESSON}_{VIDEO}.json\n"), true),
            (
                format!("lesson-assets/{LESSON}/{LESSON}/{VIDEO}.mp4"),
                false,
            ),
        ] {
            let name = video_name(&text).unwrap();
            assert_eq!(name.video_id.to_string(), VIDEO, "{text}");
            let lesson = name.lesson_id.map(|id| id.to_string());
            assert_eq!(lesson, has_lesson.then(|| LESSON.to_owned()), "{text}");
        }
        assert!(video_name("notes.json").is_err());
    }

    #[test]
    fn times_are_absolute_or_before_now() {
        let noon = time("2026-01-28T12:00:00Z").unwrap();
        assert_eq!(noon, now());
        assert_eq!(
            time("2026-01-28").unwrap().to_string(),
            "2026-01-28T00:00:00Z"
        );
        let before = Clock::default().now();
        let day = before.duration_since(time("24h").unwrap());
        assert!((23..=24).contains(&day.as_hours()), "{day}");
        for wrong in ["24", "soon", "2026-13-01", "-1h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_shown_relative_to_now() {
        let times = ["2026-01-28T11:58:00Z", "2026-01-28T12:02:00Z", "yesterday"];
        assert_eq!(
            times.map(|at| relative(at, now())),
            ["2 min ago", "in 2 min", "?"]
        );
    }

    #[test]
    fn a_list_for_people_shows_code_message_and_next_attempt() {
        assert_eq!(
            listed(&[failed()], true, now()),
            "VIDEO                                 STATE   CHANGED    DETAILS\n\
             0beee2d2-ace7-4ccf-81a7-41a6c43c1a75  failed  5 min ago  truncated\n    \
                 the file ends early\n    \
                 Next attempt in 60 min.\n"
        );
    }
}
