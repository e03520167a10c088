//! `video-ingest demo`: the whole way, shown on this machine with nothing configured.
//!
//! The server is the real one, listening on loopback; only GitHub is a fake. Neither `.env` nor any
//! variable is read, so that it can never touch a production database.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::{self, App, Injected};
use crate::cli::client::{Client, Detail};
use crate::cli::words::{WIDTH, indented, plain};
use crate::config::{Config, LogConfig, LogFormat};
use crate::db::{Db, RowOwner};
use crate::domain::advice::advice;
use crate::domain::failure::Code;
use crate::domain::ids::{FileKind, GitSha, VideoKey};
use crate::domain::lfs::{POINTER_BYTES_MAX, Pointer};
use crate::fake_github::{Delivery, FakeGithub, git};
use crate::services::client;
use crate::telemetry;

/// What the fake's repository is called.
const REPOSITORY: &str = "demo/video-artifacts";

/// A second and a half of picture and sound. Made by `fixtures/videos/make.sh`.
const GOOD: &[u8] = include_bytes!("../../fixtures/videos/good.mp4");
/// The first 9,000 bytes of it.
const TRUNCATED: &[u8] = include_bytes!("../../fixtures/videos/truncated.mp4");

/// How long one video may take; the largest one allowed takes a second or two on loopback.
const VIDEO_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at a video that is not done.
const LOOK: Duration = Duration::from_millis(5);

/// How long one answer of `git` is waited for.
const GIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest list of files that is read of `git`, in bytes: about 500,000 names.
const GIT_LIST_BYTES_MAX: u64 = 64 << 20;

/// How much of a file is held in memory while it is hashed, in bytes.
const HASH_BUFFER_BYTES: usize = 64 << 10;

/// Its command line.
pub fn command() -> Command {
    Command::new("demo")
        .about("Show the whole way from a push to a playable video, with nothing configured")
        .long_about(
            "Show the whole way from a push to a playable video, with nothing configured.\n\n\
             Starts the real server on a free port of this machine, with a temporary folder as its \
             database and store and a built-in fake for GitHub. Reads no settings and no .env. \
             Stays up until Ctrl-C.",
        )
        .after_help("Exit code: 0 if every video became what it should and its stored bytes are the pushed ones, else 1.")
        .arg(
            Arg::new("exit")
                .long("exit")
                .action(ArgAction::SetTrue)
                .help("End when all is shown"),
        )
        .arg(
            Arg::new("repo")
                .long("repo")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Ingest videos/ of this local git repository (its HEAD) instead"),
        )
}

/// Runs it. Ctrl-C and SIGTERM end it cleanly at any time.
///
/// # Errors
/// A video did not become what it should, or the stored bytes are not the pushed ones.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    telemetry::init(&LogConfig {
        format: Some(LogFormat::Text),
        filter: "error".to_owned(),
    });
    let repo = matches.get_one::<PathBuf>("repo");
    let stop = CancellationToken::new();
    let (stage, server) = Stage::set(repo, stop.clone()).await?;
    let told = tokio::select! {
        told = stage.tell(repo) => told,
        () = app::stop_signal() => Err(anyhow::anyhow!("interrupted before the end")),
    };
    if told.is_ok() && !matches.get_flag("exit") {
        stage.stay()?;
        app::stop_signal().await;
    }
    stop.cancel();
    server.await?;
    told.map(|()| ExitCode::SUCCESS)
}

/// A running server, a GitHub for it, and somebody who talks to both.
struct Stage {
    data: PathBuf,
    bucket: String,
    url: String,
    secret: String,
    token: String,
    db: Db,
    github: FakeGithub,
    hooks: reqwest::Client,
    api: Client,
    began: Instant,
    began_at: Timestamp,
}

impl Stage {
    async fn set(
        repo: Option<&PathBuf>,
        stop: CancellationToken,
    ) -> anyhow::Result<(Self, JoinHandle<()>)> {
        let (began, began_at) = (Instant::now(), Timestamp::now());
        let github = match repo {
            Some(path) => FakeGithub::serve_git(REPOSITORY, path).await?,
            None => FakeGithub::start(REPOSITORY).await?,
        };
        // Kept at the end: what was stored is there to be looked at.
        let data = tempfile::Builder::new()
            .prefix("video-ingest-demo-")
            .tempdir()?
            .keep();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let secret = Uuid::new_v4().simple().to_string();
        let token = Uuid::new_v4().simple().to_string();
        let config = Config {
            admin_token: Some(token.as_str().into()),
            // Only the pushes shown ask for anything.
            reconcile_interval: None,
            // Nothing more will be pushed: a video without its JSON is not worth waiting.
            metadata_grace: Duration::ZERO,
            ..Config::embedded(&data, address, REPOSITORY, &github.url(), &secret)
        };
        let bucket = config.storage_bucket.clone();
        let app = App::build(config, Injected::default()).await?;
        let url = format!("http://{address}");
        let stage = Self {
            data,
            bucket,
            secret,
            db: app.db.clone(),
            github,
            hooks: client::direct(VIDEO_TIMEOUT)
                .timeout(VIDEO_TIMEOUT)
                .build()?,
            api: Client::new(&url, token.as_str().into())?,
            url,
            token,
            began,
            began_at,
        };
        Ok((stage, tokio::spawn(app.serve(listener, stop))))
    }

    async fn tell(&self, repo: Option<&PathBuf>) -> anyhow::Result<()> {
        say("video-ingest demo: from a push to a playable video, nothing configured\n")?;
        say(&format!("  server  {}", self.url))?;
        let what = match repo {
            Some(path) => format!("HEAD of {}", path.display()),
            None => "a fake: nothing leaves this machine".to_owned(),
        };
        say(&format!("  GitHub  {} ({what})", self.github.url()))?;
        say(&format!(
            "  data    {} (kept; remove it when you like)",
            self.data.display()
        ))?;
        match repo {
            Some(path) => self.repository(path).await,
            None => self.story().await,
        }
    }

    /// Three acts: a good push, the same delivered again, and a bad one.
    async fn story(&self) -> anyhow::Result<()> {
        let good = new_key();
        // A branch's first push has no `before`, and would be answered with a scan.
        self.github
            .commit(|changes| changes.write("README.md", "Videos of the agent.\n"));
        say("\n1. A student asks for a video, and the app inserts its row")?;
        self.db
            .create_row(good, RowOwner::Fixed(Uuid::nil()), &self.bucket)
            .await?;
        let row = self.video(good).await?.video;
        self.at_now(&row.state, &format!("video {}", good.video_id))?;
        ensure!(
            row.state == "generating",
            "the new row is {}, not generating",
            row.state
        );

        say("\n2. The agent pushes the video and its JSON; GitHub sends a signed webhook")?;
        let push = self.push(good, GOOD);
        self.deliver(&push).await?;
        let detail = self.settled(good).await?;
        self.show_timeline(&detail)?;
        self.at_now(&detail.video.state, "the badge is green")?;
        ensure!(
            detail.video.state == "ready",
            "the pushed video is {}: {}",
            detail.video.state,
            detail.video.message.as_deref().unwrap_or("no reason given")
        );
        self.show_ready(&detail)?;
        self.prove(
            &detail,
            &hex::encode(Sha256::digest(GOOD)),
            "the pushed bytes",
        )
        .await?;

        say("\n3. GitHub delivers the same push again")?;
        let mp4 = self.blob(good)?;
        let reads = self.github.blob_reads(mp4);
        self.deliver(&push).await?;
        let state = self.settled(good).await?.video.state;
        let again = self.github.blob_reads(mp4) > reads;
        ensure!(
            state == "ready" && !again,
            "the repeated delivery should change nothing, but the video is {state}{}",
            if again {
                " and was downloaded again"
            } else {
                ""
            }
        );
        self.at_now(&state, "as before: the video was not downloaded again")?;

        say("\n4. The agent pushes half a video")?;
        let bad = new_key();
        self.deliver(&self.push(bad, TRUNCATED)).await?;
        let detail = self.settled(bad).await?;
        self.show_timeline(&detail)?;
        self.show_reason(&detail)?;
        ensure!(
            detail.video.state == "failed"
                && detail.video.code.as_deref() == Some(Code::Truncated.as_str()),
            "the bad video should have failed as {}",
            Code::Truncated
        );
        ensure!(
            detail.video.storage_path.is_none(),
            "the bad video was stored"
        );
        say("\nDone: the good video is ready, byte for byte; the bad one failed and says why.")
    }

    /// Every video of a local repository, in the order of their names.
    async fn repository(&self, path: &Path) -> anyhow::Result<()> {
        let head = self.github.head();
        let files = video_files(path, head).await?;
        let keys: BTreeSet<VideoKey> = files
            .iter()
            .filter_map(|name| Some(VideoKey::parse_file_name(name)?.0))
            .collect();
        ensure!(
            !keys.is_empty(),
            "{} has no videos/<lesson_id>_<video_id>.mp4 at HEAD: commit one, or name another repository",
            path.display()
        );
        say(&format!(
            "\nIts branch is pushed with {} video(s)",
            keys.len()
        ))?;
        let push = self.github.push(GitSha::from_bytes([0; 20]), head);
        self.deliver(&push).await?;
        let mut ready = 0;
        for key in &keys {
            let detail = self.settled(*key).await?;
            let video = &detail.video;
            let is_other = video.lesson_id != key.lesson_id.to_string();
            let state = if is_other {
                "failed"
            } else {
                video.state.as_str()
            };
            say("")?;
            self.at_now(state, &format!("lesson {}", key.lesson_id))?;
            say(&format!("{INDENT}video  {}", key.video_id))?;
            if is_other {
                say(&format!(
                    "{INDENT}another lesson's file has the same video id"
                ))?;
            } else if state == "ready" {
                self.show_ready(&detail)?;
                let blob = self.blob(*key)?;
                let pushed = pushed_sha256(path, blob).await?;
                self.prove(&detail, &pushed, "the repository's bytes")
                    .await?;
                ready += 1;
            } else {
                self.show_reason(&detail)?;
            }
        }
        let took = self.began.elapsed().as_secs_f64();
        say(&format!(
            "\n{ready} of {} video(s) ready after {took:.1} s",
            keys.len()
        ))?;
        ensure!(
            ready == keys.len(),
            "{} of {} videos are not ready",
            keys.len() - ready,
            keys.len()
        );
        Ok(())
    }

    fn stay(&self) -> anyhow::Result<()> {
        let Self { url, token, .. } = self;
        say(&format!(
            "\nThe server stays up until Ctrl-C:\n\n  page         {url}/"
        ))?;
        say(&format!("  admin token  {token}\n"))?;
        say(&format!(
            "  ADMIN_TOKEN={token} \\\n    video-ingest videos list --url {url}"
        ))
    }

    /// Commits a video and its JSON, as the agent does.
    fn push(&self, key: VideoKey, mp4: &'static [u8]) -> Delivery {
        let json = serde_json::json!({
            "lesson_id": key.lesson_id, "video_id": key.video_id, "generated_at": self.began_at.to_string(),
            "duration_sec": 1.5, "format": "mp4", "resolution": "160x90",
        });
        let path = |kind| format!("videos/{}", key.file_name(kind));
        let before = self.github.head();
        let after = self.github.commit(|changes| {
            changes
                .write(path(FileKind::Video), Bytes::from_static(mp4))
                .write(path(FileKind::Metadata), json.to_string())
                .message(format!("Add video {}", key.video_id))
        });
        self.github.push(before, after)
    }

    /// Sends a webhook as GitHub does.
    async fn deliver(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let body = delivery.body();
        self.at_now(
            "webhook",
            &format!("{} bytes, HMAC-SHA256 signed", body.len()),
        )?;
        let mut request = self
            .hooks
            .post(format!("{}/webhooks/github", self.url))
            .body(body);
        for (name, value) in delivery.signed(&self.secret) {
            request = request.header(name, value);
        }
        let sent = Instant::now();
        let answer = request.send().await?;
        let took = sent.elapsed().as_secs_f64() * 1000.0;
        let status = answer.status();
        let answer: serde_json::Value = answer.json().await?;
        ensure!(
            status == reqwest::StatusCode::ACCEPTED,
            "the webhook was answered {status}: {answer}"
        );
        let count = |name: &str| answer[name].as_array().map_or(0, Vec::len);
        let what = match answer["scan"] == true {
            true => "the whole tree is scanned".to_owned(),
            false => format!(
                "{} video(s), {} file(s) ignored",
                count("videos"),
                count("ignored")
            ),
        };
        self.at_now("202", &format!("after {took:.1} ms: {what}"))
    }

    /// The pushed video's name in git.
    fn blob(&self, key: VideoKey) -> anyhow::Result<GitSha> {
        let path = format!("videos/{}", key.file_name(FileKind::Video));
        let blob = self.github.blob_sha(&path);
        blob.with_context(|| format!("{path} is not in the repository"))
    }

    async fn video(&self, key: VideoKey) -> anyhow::Result<Detail> {
        Ok(serde_json::from_value(self.api.video(key.video_id).await?)?)
    }

    /// The video once nothing more will happen to it by itself.
    async fn settled(&self, key: VideoKey) -> anyhow::Result<Detail> {
        let settled = async {
            loop {
                // A scan makes videos known that were not before.
                if let Some(answer) = self.api.find_video(key.video_id).await? {
                    let detail: Detail = serde_json::from_value(answer)?;
                    if matches!(detail.video.state.as_str(), "ready" | "failed" | "waiting") {
                        return Ok(detail);
                    }
                }
                sleep(LOOK).await;
            }
        };
        timeout(VIDEO_TIMEOUT, settled).await.with_context(|| {
            format!("video {} is not done after {VIDEO_TIMEOUT:?}", key.video_id)
        })?
    }

    fn show_timeline(&self, detail: &Detail) -> anyhow::Result<()> {
        for event in &detail.timeline {
            let at: Timestamp = event.at.parse()?;
            let seconds = at.duration_since(self.began_at).as_secs_f64().max(0.0);
            line(seconds, &event.step, &event.detail)?;
        }
        Ok(())
    }

    fn show_ready(&self, detail: &Detail) -> anyhow::Result<()> {
        let video = &detail.video;
        let (bytes, ms) = (
            video.size_bytes.unwrap_or(0),
            video.duration_ms.unwrap_or(0),
        );
        let checked = detail
            .timeline
            .iter()
            .rfind(|event| event.step == "checked");
        let picture = checked.map_or("", |event| event.detail.as_str());
        say(&format!(
            "{INDENT}{bytes} bytes, duration_ms {ms} ({picture})"
        ))?;
        for warning in detail.warnings.iter().flatten() {
            say(indented(&[format!("warning: {}", plain(warning))], INDENT.len()).trim_end())?;
        }
        Ok(())
    }

    fn show_reason(&self, detail: &Detail) -> anyhow::Result<()> {
        let video = &detail.video;
        let code = video.code.as_deref().unwrap_or_default();
        let message = video.message.as_deref().unwrap_or_default();
        let advice = Code::parse(code).map(|code| format!("→ {}", advice(code)));
        let reason = [format!("{code}: {}", plain(message))];
        let paragraphs: Vec<String> = reason.into_iter().chain(advice).collect();
        say(indented(&paragraphs, INDENT.len()).trim_end())
    }

    /// Reads the stored file from disk and compares.
    async fn prove(&self, detail: &Detail, pushed: &str, whose: &str) -> anyhow::Result<()> {
        let path = detail.video.storage_path.as_deref();
        let path = path.context("the video is ready, but has no storage path")?;
        let file = self.data.join("store").join(&self.bucket).join(path);
        let opened = tokio::fs::File::open(&file)
            .await
            .with_context(|| format!("the stored file cannot be read: {}", file.display()))?;
        let (_, stored) = hashed(opened).await?;
        say(&format!("  stored  {}", file.display()))?;
        say(&format!("  sha256  {stored}"))?;
        ensure!(
            stored == pushed,
            "the stored file's sha256 is not that of {whose}, {pushed}"
        );
        say(&format!("          of {whose}, too"))
    }

    /// A line about something that happens now.
    fn at_now(&self, step: &str, detail: &str) -> anyhow::Result<()> {
        line(self.began.elapsed().as_secs_f64(), step, detail)
    }
}

/// Where details begin in a line with a time.
const INDENT: &str = "                        ";

fn line(seconds: f64, step: &str, detail: &str) -> anyhow::Result<()> {
    let text = format!("{seconds:>8.3} s  {:<10}  {}", plain(step), plain(detail));
    match text.chars().count() > WIDTH {
        // The storage path, which is printed in full with the file.
        true => say(&format!(
            "{}…",
            text.chars().take(WIDTH - 1).collect::<String>()
        )),
        false => say(text.trim_end()),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

fn new_key() -> VideoKey {
    VideoKey {
        lesson_id: Uuid::new_v4(),
        video_id: Uuid::new_v4(),
    }
}

/// The names in the repository's `videos` folder.
async fn video_files(path: &Path, head: GitSha) -> anyhow::Result<Vec<String>> {
    let head = head.to_string();
    let mut child = git(
        path,
        &[
            "ls-tree",
            "-z",
            "--name-only",
            "--full-tree",
            &head,
            "videos/",
        ],
    )
    .spawn()?;
    let mut listing = String::new();
    let stdout = child.stdout.take().context("git has no output")?;
    let mut stdout = stdout.take(GIT_LIST_BYTES_MAX);
    timeout(GIT_TIMEOUT, stdout.read_to_string(&mut listing)).await??;
    ensure!(
        child.wait().await?.success(),
        "git cannot list the files of {}",
        path.display()
    );
    let names = listing.split_terminator('\0');
    Ok(names
        .map(|name| name.trim_start_matches("videos/").to_owned())
        .collect())
}

/// The SHA-256 of a file's bytes as git and LFS have them, without asking the server or the fake.
async fn pushed_sha256(path: &Path, blob: GitSha) -> anyhow::Result<String> {
    let mut child = git(path, &["cat-file", "blob", &blob.to_string()]).spawn()?;
    let stdout = child.stdout.take().context("git has no output")?;
    let (beginning, sha256) = timeout(GIT_TIMEOUT, hashed(stdout)).await??;
    ensure!(
        child.wait().await?.success(),
        "git cannot read the blob {blob}"
    );
    // A pointer's oid is the SHA-256 of the bytes it stands for.
    Ok(Pointer::parse(&beginning).map_or(sha256, |pointer| pointer.oid.to_string()))
}

/// Reads to the end: the beginning (enough to tell a pointer) and the SHA-256 of everything.
async fn hashed(mut bytes: impl AsyncRead + Unpin) -> io::Result<(Vec<u8>, String)> {
    let (mut hash, mut beginning) = (Sha256::new(), Vec::new());
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        let read = bytes.read(&mut buffer).await?;
        if read == 0 {
            return Ok((beginning, hex::encode(hash.finalize())));
        }
        hash.update(&buffer[..read]);
        let room = (POINTER_BYTES_MAX + 1).saturating_sub(beginning.len());
        beginning.extend_from_slice(&buffer[..read.min(room)]);
    }
}
