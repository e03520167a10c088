//! `video-ingest fake_github`: the fake as a process of its own, for trials of a whole deployment.
//!
//! It pushes one video and has it delivered to a server with the same settings.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Arg, ArgMatches, Command, value_parser};
use reqwest::Url;
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::config::{self, Config};
use crate::domain::ids::{FileKind, VideoKey};
use crate::fake_github::FakeGithub;

/// Made by `fixtures/videos/make.sh`.
const VIDEO: &[u8] = include_bytes!("../../fixtures/videos/good.mp4");

/// Its command line; in no help, because it is of no use in production.
pub fn command() -> Command {
    let required = |name: &'static str| Arg::new(name).long(name).required(true);
    Command::new("fake-github")
        .about("Serve a repository in GitHub's place, and push one video to a server")
        .hide(true)
        .args(config::arguments())
        .arg(
            required("at")
                .value_name("ADDRESS")
                .value_parser(value_parser!(SocketAddr)),
        )
        .arg(
            required("deliver-to")
                .value_name("URL")
                .value_parser(crate::cli::webhook::receiver),
        )
        .arg(
            required("video")
                .value_name("LESSON_VIDEO")
                .value_parser(|stem: &str| {
                    VideoKey::parse_stem(stem).ok_or("must be <lesson_id>_<video_id>")
                }),
        )
}

/// Serves until the process ends.
///
/// # Errors
/// The address cannot be had.
pub async fn run(matches: &ArgMatches, config: &Config) -> anyhow::Result<()> {
    let (Some(at), Some(receiver), Some(key)) = (
        matches.get_one::<SocketAddr>("at"),
        matches.get_one::<Url>("deliver-to"),
        matches.get_one::<VideoKey>("video"),
    ) else {
        anyhow::bail!("--at, --deliver-to or --video is missing");
    };
    let github = FakeGithub::start_at(&config.github.repository.to_string(), *at)
        .await
        .with_context(|| format!("--at: cannot listen on {at}"))?;
    let path = |kind| format!("{}/{}", config.github.videos_dir, key.file_name(kind));
    let metadata = json!({"lesson_id": key.lesson_id, "video_id": key.video_id, "format": "mp4"});
    let before = github.head();
    let after = github.commit(|changes| {
        changes
            .write(path(FileKind::Video), Bytes::from_static(VIDEO))
            .write(path(FileKind::Metadata), metadata.to_string())
    });
    let secret = config.webhook_secrets[0].expose_secret();
    let hook = github
        .add_hook(&json!({"config": {"url": receiver, "content_type": "json", "secret": secret}}));
    github.deliver(hook, &github.push(before, after)).await;
    tracing::info!(video.id = %key.video_id, "pushed, and its webhook sent to {receiver}");
    std::future::pending().await
}
