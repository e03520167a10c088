//! Rows D, E, F and G: the transfer of a video from GitHub to the storage.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha1::Digest as _;
use tokio::sync::mpsc;
use uuid::Uuid;
use video_ingest::fake_github::FakeGithub;

use crate::ROUNDS;
use crate::baselines;
use crate::link::{self, Link};
use crate::report::{Report, Row, median, ms, ratio};
use crate::server::Server;
use crate::storage::Storage;
use crate::support::fake_storage::SECRET_KEY;
use crate::support::postgres::{Database, Postgres};
use crate::support::scenario::{ADMIN_TOKEN, GOOD, REPOSITORY, SECRET, Video};

const MB: usize = 1_000_000;

/// The rate of a gigabit link, in bytes per second.
const GIGABIT: u64 = 125_000_000;

/// Videos that are ingested at once in rows with several videos.
const AT_ONCE: usize = 8;

/// Memory that the replaced function needed for one video of 200 MB, in MB.
const FUNCTION_MB: f64 = 871.0;

/// Longer than any video takes.
const READY_MAX: Duration = Duration::from_secs(120);

/// The server is idle after this time.
const IDLE_AFTER: Duration = Duration::from_secs(3);

/// The duration of the soak test. Its first part fills pools and caches.
const SOAK: Duration = Duration::from_secs(3600);
const SOAK_WARM: Duration = Duration::from_secs(600);

/// Videos per round of the soak test.
const SOAK_PUSH: usize = 10;

/// The change of an allocator's memory in an hour that is not considered growth, in MiB.
const SOAK_GROWTH_MAX: f64 = 4.0;

/// A large file to push.
struct File {
    bytes: Bytes,
    sha256: String,
    /// GitHub accepts files over 100 MB only as LFS objects.
    lfs: bool,
}

impl File {
    /// A playable video of about this size, filled with random bytes that players skip.
    fn new(size: usize) -> Self {
        let mut noise = vec![0; size - GOOD.len() - 8];
        fastrand::fill(&mut noise);
        let header = u32::try_from(noise.len() + 8).unwrap().to_be_bytes();
        let bytes: Bytes = [GOOD, &header, b"free", &noise].concat().into();
        Self {
            sha256: hex::encode(sha2::Sha256::digest(&bytes)),
            lfs: size > 100 * MB,
            bytes,
        }
    }
}

/// A complete installation in Supabase mode, with fakes.
struct Installation {
    github: FakeGithub,
    storage: Storage,
    database: Database,
    server: Server,
    client: reqwest::Client,
    ready: mpsc::Receiver<Uuid>,
    /// The videos in the branch.
    pushed: Vec<Video>,
    /// The addresses at which the server reaches both services.
    github_at: SocketAddr,
    storage_at: SocketAddr,
}

impl Installation {
    /// `link`: between the server and both services.
    async fn new(postgres: &'static Postgres, workers: usize, link: Option<Link>) -> Self {
        let github = FakeGithub::start(REPOSITORY).await.unwrap();
        github.commit(|c| c.write("README.md", "videos, rendered"));
        let storage = Storage::start().await;
        let database = postgres.create_database().await;
        let (mut github_at, mut storage_at) = (address(&github.url()), storage.address);
        if let Some(link) = link {
            github_at = link::start(github_at, link).await;
            storage_at = link::start(storage_at, link).await;
        }
        let server = Server::start(&[
            ("WORKERS", &workers.to_string()),
            ("MAX_VIDEO_BYTES", "300000000"),
            ("GITHUB_API_URL", &format!("http://{github_at}")),
            ("SUPABASE_URL", &format!("http://{storage_at}")),
            ("SUPABASE_SERVICE_ROLE_KEY", SECRET_KEY),
            ("DATABASE_URL", &database.service_url),
        ]);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let ready = listen(&client, &server).await;
        Self {
            github,
            storage,
            database,
            server,
            client,
            ready,
            pushed: Vec::new(),
            github_at,
            storage_at,
        }
    }

    /// Removes the pushed videos from the branch.
    fn remove_pushed(&mut self) {
        let pushed = std::mem::take(&mut self.pushed);
        self.github
            .commit(|c| pushed.iter().fold(c, |c, video| video.remove(c)));
        self.github.state().repository.forget_old_trees();
    }

    /// Pushes this many videos with this content, each in its own push, and returns the time from the
    /// last response to the last ready row.
    async fn ingest(&mut self, file: &File, videos: usize) -> Duration {
        let user = Uuid::new_v4();
        let (mut waiting, mut deliveries) = (HashSet::new(), Vec::new());
        for _ in 0..videos {
            let video = Video {
                mp4: file.bytes.clone(),
                ..Video::good()
            };
            self.database.insert_lesson(video.key.lesson_id, user).await;
            self.database.insert_asset(video.key, user, "video").await;
            let before = self.github.head();
            self.github.commit(|c| {
                let c = c.write(video.json_path(), video.json.clone());
                if file.lfs {
                    c.write_lfs(video.mp4_path(), video.mp4.clone())
                } else {
                    c.write(video.mp4_path(), video.mp4.clone())
                }
            });
            deliveries.push(self.github.push(before, self.github.head()));
            waiting.insert(video.key.video_id);
            self.pushed.push(video);
        }
        for delivery in &deliveries {
            let mut request = self.client.post(self.server.url("/webhooks/github"));
            for (name, value) in delivery.signed(SECRET) {
                request = request.header(name, value);
            }
            let answer = request.body(delivery.body()).send().await.unwrap();
            assert_eq!(answer.status(), 202);
        }
        let answered = Instant::now();
        let all_ready = async {
            while !waiting.is_empty() {
                waiting.remove(&self.ready.recv().await.unwrap());
            }
        };
        tokio::time::timeout(READY_MAX, all_ready).await.unwrap();
        let took = answered.elapsed();
        let stored = self.storage.take();
        assert_eq!(stored.len(), videos);
        assert!(stored.values().all(|sha256| *sha256 == file.sha256));
        took
    }

    /// The same bytes between the same services, without any check.
    async fn curl(&self, file: &File, times: usize) -> Duration {
        let (path, header) = if file.lfs {
            // The header that the link in the batch response requires, see src/fake_github/lfs.rs.
            let ticket = sha2::Sha256::digest(format!("link to {}", file.sha256));
            let header = format!("authorization: RemoteAuth {}", hex::encode(ticket));
            (format!("/lfs-storage/{}", file.sha256), header)
        } else {
            let name = format!("blob {}\0", file.bytes.len());
            let sha = sha1::Sha1::new_with_prefix(name).chain_update(&file.bytes);
            let sha = hex::encode(sha.finalize());
            let header = "accept: application/vnd.github.raw+json".to_owned();
            (format!("/repos/{REPOSITORY}/git/blobs/{sha}"), header)
        };
        let to: Vec<_> = (0..times)
            .map(|n| format!("http://{}/plain/{n}", self.storage_at))
            .collect();
        let took = baselines::curl(&format!("http://{}{path}", self.github_at), &header, &to).await;
        assert!(
            self.storage
                .take()
                .values()
                .all(|sha256| *sha256 == file.sha256)
        );
        took
    }
}

fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// The videos that become ready, from the server's live events.
async fn listen(client: &reqwest::Client, server: &Server) -> mpsc::Receiver<Uuid> {
    let request = client
        .get(server.url("/api/events"))
        .bearer_auth(ADMIN_TOKEN);
    let mut events = request.send().await.unwrap();
    let (sender, ready) = mpsc::channel(1024);
    tokio::spawn(async move {
        let mut text = String::new();
        while let Ok(Some(piece)) = events.chunk().await {
            text += std::str::from_utf8(&piece).unwrap();
            while let Some((line, rest)) = text.split_once('\n') {
                let data: serde_json::Value = line
                    .strip_prefix("data: ")
                    .and_then(|data| serde_json::from_str(data).ok())
                    .unwrap_or_default();
                if data["state"] == "ready" {
                    let video = data["video_id"].as_str().unwrap().parse().unwrap();
                    sender.send(video).await.unwrap();
                }
                text = rest.to_owned();
            }
        }
    });
    ready
}

pub async fn measure(report: &mut Report, wanted: &dyn Fn(&str) -> bool) {
    let postgres = Postgres::start_with("on");
    let (small, middle, large) = (File::new(3 * MB), File::new(50 * MB), File::new(200 * MB));
    let mut here = Installation::new(postgres, 4, None).await;
    if wanted("G D") {
        // Not measured: this opens connections and prepares statements.
        here.ingest(&small, 1).await;
        let (ours, curl) = pairs(&mut here, &small, 1).await;
        let (ours, curl) = (median(&ours), median(&curl));
        report.add(Row {
            work: "G. push acknowledged → row ready, 3 MB".into(),
            measured: format!("{ours:.0} ms"),
            baseline: format!("`curl \\| curl` {curl:.0} ms"),
            target: Some(("≤ 1.5 × + 30 ms".into(), ours <= 1.5 * curl + 30.0)),
        });
        report.add(Row {
            work: "D. GitHub → storage, 3 MB".into(),
            measured: format!("{:+.0} ms", ours - curl),
            baseline: format!("`curl \\| curl` {curl:.0} ms"),
            target: Some(("≤ + 30 ms".into(), ours <= curl + 30.0)),
        });
    }
    if wanted("D") {
        for (file, name) in [(&middle, "50 MB"), (&large, "200 MB, LFS")] {
            let rounds = pairs(&mut here, file, 1).await;
            add_transfer(report, name, rounds, 1.3);
        }
        let gigabit = Link {
            bytes_per_second: Some(GIGABIT),
            ..Link::default()
        };
        let mut far = Installation::new(postgres, 4, Some(gigabit)).await;
        let name = "50 MB, both links 1 Gbit/s";
        let rounds = pairs(&mut far, &middle, 1).await;
        add_transfer(report, name, rounds, 1.15);
    }
    if wanted("E") {
        // The same amount in both rows, because CPU time is counted in hundredths of a second.
        for (file, count, name) in [
            (&middle, 4, "four videos of 50 MB"),
            (&large, 1, "200 MB, LFS"),
        ] {
            let bytes = file.bytes.len() * count;
            let (mut ours, mut baseline) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                baseline.push(baselines::hash_and_copy(bytes).as_secs_f64());
                let before = here.server.cpu();
                here.ingest(file, count).await;
                ours.push((here.server.cpu() - before).as_secs_f64());
            }
            let per_gb = |seconds: &[f64]| median(seconds) * 1e9 / bytes as f64;
            let times = ratio(&ours, &baseline);
            report.add(Row {
                work: format!("E. CPU time per byte, {name}"),
                measured: format!("{:.2} s/GB: {times:.2} ×", per_gb(&ours)),
                baseline: format!("SHA-1 + SHA-256 + copy {:.2} s/GB", per_gb(&baseline)),
                target: Some(("≤ 1.5 ×".into(), times <= 1.5)),
            });
        }
    }
    drop(here);
    if wanted("D F") {
        let mut wide = Installation::new(postgres, AT_ONCE, None).await;
        tokio::time::sleep(IDLE_AFTER).await;
        let (idle, _) = wide.server.memory();
        let rounds = pairs(&mut wide, &large, AT_ONCE).await;
        let (_, peak) = wide.server.memory();
        add_transfer(report, "eight videos of 200 MB at once", rounds, 1.3);
        report.add(Row {
            work: "F. peak memory, eight videos of 200 MB at once".into(),
            measured: format!("{peak:.0} MiB"),
            baseline: format!("the replaced function with one video: {FUNCTION_MB:.0} MB"),
            target: Some(("≤ 64 MiB".into(), peak <= 64.0)),
        });
        report.add(Row {
            work: "F. idle memory".into(),
            measured: format!("{idle:.0} MiB"),
            baseline: String::new(),
            target: Some(("≤ 25 MiB".into(), idle <= 25.0)),
        });
    }
}

/// In turn: ours and `curl`, in milliseconds.
async fn pairs(here: &mut Installation, file: &File, at_once: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut ours, mut curl) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(ms(here.ingest(file, at_once).await));
        curl.push(ms(here.curl(file, at_once).await));
    }
    (ours, curl)
}

fn add_transfer(report: &mut Report, name: &str, (ours, curl): (Vec<f64>, Vec<f64>), max: f64) {
    let times = ratio(&ours, &curl);
    report.add(Row {
        work: format!("D. GitHub → storage, {name}"),
        measured: format!("{:.0} ms: {times:.2} ×", median(&ours)),
        baseline: format!("`curl \\| curl` {:.0} ms", median(&curl)),
        target: Some((format!("≤ {max} ×"), times <= max)),
    });
}

/// Ingests small videos for an hour, one push after the other, and measures the growth of memory.
pub async fn soak(report: &mut Report) {
    let postgres = Postgres::start_with("on");
    let mut here = Installation::new(postgres, 4, None).await;
    let file = File::new(100_000);
    let (began, mut warm, mut videos) = (Instant::now(), 0.0, 0);
    while began.elapsed() < SOAK {
        here.ingest(&file, SOAK_PUSH).await;
        // Keeps the folder small, because only the server is measured.
        here.remove_pushed();
        videos += SOAK_PUSH;
        if began.elapsed() < SOAK_WARM {
            warm = here.server.memory().0;
        }
    }
    let grown = here.server.memory().0 - warm;
    report.add(Row {
        work: format!("F. memory growth during one hour of load, {videos} videos"),
        measured: format!("{grown:+.1} MiB from {warm:.0} MiB"),
        baseline: String::new(),
        target: Some(("none".into(), grown <= SOAK_GROWTH_MAX)),
    });
}
