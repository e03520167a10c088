//! Combines every step of a video with every fault of the service that it uses. Nothing wrong is published,
//! and every video becomes ready after the fault. `matrix.txt` lists the outcomes.

use std::time::{Duration, Instant};

use uuid::Uuid;
use video_ingest::app::Injected;
use video_ingest::config::{Config, OpenHandsConfig, StoreConfig};
use video_ingest::domain::generation::OpenHandsVersion;
use video_ingest::services::storage::{ObjectPath, Timeouts};
use video_ingest::services::{github, openhands};

use crate::support::fake_openhands::{self, FakeOpenHands};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::scenario::{Backend, GOOD, SECOND, Scenario, Video};

/// The timeout of each call: longer than a response on loopback takes, and short enough for a test.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longer than every wait in the retry schedule.
const HOUR: Duration = Duration::from_secs(4500);

const FAULTS: [(&str, Fault); 14] = [
    ("403", Fault::Status(403)),
    ("404", Fault::Status(404)),
    ("409", Fault::Status(409)),
    ("429", Fault::Status(429)),
    ("429, 7 s", Fault::TooMany(7)),
    ("503", Fault::Status(503)),
    ("HTML", Fault::Html),
    ("empty", Fault::Empty),
    ("endless", Fault::Endless),
    ("cut", Fault::Cut),
    ("stalled", Fault::Stalled),
    ("corrupted", Fault::Corrupted(500)),
    ("response lost", Fault::Lost),
    ("0 s", Fault::TooMany(0)),
];

/// A scenario whose services are behind fault proxies.
struct World {
    github: FaultProxy,
    storage: Option<FaultProxy>,
    agent: Option<(FaultProxy, FakeOpenHands)>,
    t: Scenario,
}

impl World {
    async fn begin(backend: Backend, agent: Option<FakeOpenHands>) -> Self {
        let injected = Injected {
            github_timeouts: github::Timeouts {
                call: PATIENCE,
                stall: PATIENCE,
                ..github::Timeouts::default()
            },
            storage_timeouts: Timeouts {
                connect: PATIENCE,
                stall: PATIENCE,
                answer: PATIENCE,
                request: PATIENCE,
                ..Timeouts::default()
            },
            openhands_pacing: openhands::Pacing {
                call: PATIENCE,
                rates: [openhands::Rate {
                    calls: 1000,
                    per: PATIENCE,
                }; 2],
                ..openhands::Pacing::default()
            },
            ..Injected::default()
        };
        let agent = agent.map(|agent| (FaultProxy::before(&agent.url), agent));
        let mut placed = None;
        let place = |config: &mut Config| {
            let github = FaultProxy::before(&config.github.api_url);
            config.github.api_url = github.url.clone();
            let mut storage = None;
            if let StoreConfig::Supabase { url, .. } = &mut config.store {
                let proxy = FaultProxy::before(url);
                *url = proxy.url.clone();
                storage = Some(proxy);
            }
            config.agent = agent.as_ref().map(|(proxy, _)| OpenHandsConfig {
                key: fake_openhands::KEY.into(),
                api_url: proxy.url.clone(),
                version: OpenHandsVersion::V1,
            });
            placed = Some((github, storage));
        };
        let t = Scenario::begin_injected(backend, injected, place).await;
        let (github, storage) = placed.unwrap();
        Self {
            github,
            storage,
            agent,
            t,
        }
    }

    fn storage(&self) -> &FaultProxy {
        self.storage.as_ref().unwrap()
    }

    /// Commits and delivers one video. `lfs`: as an LFS object. `behind`: the head is newer than the push.
    async fn push(&self, video: &Video, lfs: bool, behind: bool) {
        let before = self.t.github.head();
        self.t.github.commit(|c| {
            let c = c.write(video.json_path(), video.json.clone());
            if lfs {
                c.write_lfs(video.mp4_path(), video.mp4.clone())
            } else {
                c.write(video.mp4_path(), video.mp4.clone())
            }
        });
        let push = self.t.github.push(before, self.t.github.head());
        if behind {
            self.t.github.commit(|c| c.write("README.md", video.id()));
        }
        self.t.deliver(&push).await.expect_accepted();
    }
}

/// The outcomes: the failure code during the fault, or the state if there is none.
struct Table {
    steps: Vec<&'static str>,
    columns: Vec<Vec<String>>,
}

impl Table {
    fn begin() -> Self {
        let faults = FAULTS.map(|(name, _)| name.to_owned());
        Self {
            steps: vec![""],
            columns: vec![faults.into()],
        }
    }

    fn column(&mut self, step: &'static str, outcomes: Vec<String>) {
        assert_eq!(outcomes.len(), FAULTS.len(), "{step}: an empty cell");
        self.steps.push(step);
        self.columns.push(outcomes);
    }

    /// The format of `matrix.txt`.
    fn text(&self) -> String {
        let mut lines = vec![String::new(); FAULTS.len() + 1];
        for (step, column) in self.steps.iter().zip(&self.columns) {
            let cells = std::iter::once(*step).chain(column.iter().map(String::as_str));
            let width = cells.clone().map(str::len).max().unwrap_or(0) + 2;
            for (line, cell) in lines.iter_mut().zip(cells) {
                *line += &format!("{cell:width$}");
            }
        }
        let lines: Vec<_> = lines.iter().map(|line| line.trim_end()).collect();
        lines.join("\n") + "\n"
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Listing,
    Compare,
    Blob,
    LfsBatch,
    LfsObject,
    Upload,
    Confirm,
}

impl Step {
    const ALL: [(&str, Step); 7] = [
        ("listing", Step::Listing),
        ("compare", Step::Compare),
        ("blob", Step::Blob),
        ("LFS batch", Step::LfsBatch),
        ("LFS object", Step::LfsObject),
        ("upload", Step::Upload),
        ("confirm", Step::Confirm),
    ];

    fn fault(self, world: &World, fault: Fault) {
        let part = match self {
            Step::Listing => "/commits/",
            Step::Compare => "/compare/",
            Step::Blob => "/git/blobs/",
            Step::LfsBatch => "/objects/batch",
            Step::LfsObject => "/lfs-storage/",
            Step::Upload => {
                let upload =
                    |method: &str, path: &str| method == "POST" && path.contains("/object/");
                return world.storage().fault(upload, fault);
            }
            Step::Confirm => {
                let mut uploaded = false;
                let confirm = move |method: &str, path: &str| {
                    uploaded |= method == "POST";
                    uploaded && path.contains("/object/info/")
                };
                return world.storage().fault(confirm, fault);
            }
        };
        world
            .github
            .fault(move |_, path| path.contains(part), fault);
    }
}

/// During a fault, nothing is published that was not stored and confirmed. Afterwards, every video becomes
/// ready without intervention.
#[tokio::test]
async fn every_step_survives_every_fault() {
    let world = World::begin(Backend::Supabase, None).await;
    let t = &world.t;
    let mut table = Table::begin();
    for (name, step) in Step::ALL {
        let mut outcomes = Vec::new();
        for (fault_name, fault) in FAULTS {
            let video = Video::good();
            t.row(&video).await;
            let lfs = matches!(step, Step::LfsBatch | Step::LfsObject);
            step.fault(&world, fault);
            world.push(&video, lfs, step == Step::Compare).await;
            t.work().await;
            let shown = t.video(&video).await;
            let hits = world.github.clear_faults() + world.storage().clear_faults();
            assert!(hits > 0, "{name} × {fault_name}: no request had the fault");
            match shown["code"].as_str() {
                None => t.expect_ready(&video).await,
                Some(code) => {
                    assert_eq!(
                        t.asset(&video).await.storage_path,
                        None,
                        "{name} × {fault_name}: {code}"
                    );
                }
            }
            let outcome = shown["code"].as_str().or(shown["state"].as_str());
            outcomes.push(outcome.unwrap().to_owned());
            // Once for the fault, and once more for videos that were delayed by a pause of that service.
            for _ in 0..2 {
                t.later(HOUR);
                t.work().await;
            }
            let shown = t.video(&video).await;
            assert_eq!(
                shown["state"], "ready",
                "after {name} × {fault_name}: {shown:#}"
            );
            t.expect_ready(&video).await;
        }
        table.column(name, outcomes);
    }
    let mut outcomes = Vec::new();
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    t.work().await;
    let path = ObjectPath::new("lesson-assets", t.user, video.key).unwrap();
    for (_, fault) in FAULTS {
        let sign = |method: &str, path: &str| method == "POST" && path.contains("/object/sign/");
        world.storage().fault(sign, fault);
        let signed = t.worker.ingest.store.playable(&path).await;
        assert_eq!(world.storage().clear_faults(), 1);
        outcomes.push(match signed {
            Ok(_) => "signed".to_owned(),
            Err(failure) => failure.code.to_string(),
        });
        assert!(
            t.worker
                .ingest
                .store
                .playable(&path)
                .await
                .unwrap()
                .is_some()
        );
    }
    table.column("sign", outcomes);
    world.t.finish().await;
    table.column("agent", agent_outcomes().await);
    println!("{}", table.text());
    assert_eq!(
        table.text(),
        include_str!("matrix.txt"),
        "an outcome has changed"
    );
}

/// The errors that a sweep reports for the agent's API. A generating video keeps its state, and a pushed
/// video does not need the API.
async fn agent_outcomes() -> Vec<String> {
    let openhands = FakeOpenHands::start(fake_openhands::Server::Cloud).await;
    let world = World::begin(Backend::Supabase, Some(openhands)).await;
    let t = &world.t;
    let (proxy, openhands) = world.agent.as_ref().unwrap();
    let generating = Video::good();
    t.row(&generating).await;
    let (id, conversation) = (generating.id(), Uuid::new_v4());
    t.sql(&format!(
        "update lesson_assets set conversation_id = '{conversation}' where id = '{id}'"
    ))
    .await;
    openhands.conversation(conversation, "RUNNING", Some("running"));
    let mut outcomes = Vec::new();
    for (name, fault) in FAULTS {
        proxy.fault(|_, _| true, fault);
        let pushed = Video::good();
        t.row(&pushed).await;
        t.push(&pushed).await;
        t.work().await;
        t.expect_ready(&pushed).await;
        let report = t.ask("/reconcile?wait=0").await.json;
        assert!(proxy.clear_faults() > 0, "{name}: no request had the fault");
        assert_eq!(report["unknown"], 1, "{name}: {report:#}");
        outcomes.push(report["errors"][0]["code"].as_str().unwrap().to_owned());
        t.later(Duration::from_secs(70));
        let report = t.ask("/reconcile?wait=0").await.json;
        assert_eq!(report["stillGenerating"], 1, "after {name}: {report:#}");
    }
    t.push(&generating).await;
    t.work().await;
    t.expect_ready(&generating).await;
    world.t.finish().await;
    outcomes
}

/// While downloads are corrupted, cut or replaced, none of a thousand videos is published. Afterwards, all
/// of them are.
#[tokio::test]
async fn none_of_a_thousand_corrupted_downloads_is_published() {
    const VIDEOS: usize = 1000;
    #[expect(clippy::disallowed_methods, reason = "another seed for the long form")]
    let seed = std::env::var("SEED").map_or(20_261_120, |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::begin(Backend::Embedded, None).await;
    let t = &world.t;
    let videos: Vec<Video> = (0..VIDEOS).map(|_| Video::good()).collect();
    for video in &videos {
        t.row(video).await;
    }
    let before = t.github.head();
    t.github
        .commit(|c| videos.iter().fold(c, |c, video| video.write(c)));
    t.deliver(&t.github.push(before, t.github.head()))
        .await
        .expect_accepted();
    let mut codes = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..VIDEOS {
        let fault = match random.u8(..8) {
            0 => Fault::Cut,
            1 => Fault::Empty,
            2 => Fault::Html,
            3 => Fault::Endless,
            _ => Fault::Corrupted(random.usize(..1000)),
        };
        world
            .github
            .fault(|_, path| path.contains("/git/blobs/"), fault);
        assert!(t.worker.run_once().await.unwrap());
    }
    world.github.clear_faults();
    assert_eq!(t.objects(), Vec::<String>::new());
    for video in &videos {
        let shown = t.video(video).await;
        assert_eq!(
            (&shown["state"], &shown["storage_path"]),
            (&"queued".into(), &serde_json::Value::Null),
            "{shown:#}"
        );
        *codes
            .entry(shown["code"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    println!("{VIDEOS} corrupted downloads, seed {seed}: 0 published, {codes:?}");
    t.later(HOUR);
    t.work().await;
    for video in &videos {
        t.expect_ready(video).await;
    }
    world.t.finish().await;
}

/// Forty videos need a service that accepts connections but never responds. A video behind them in the
/// queue that does not need this service is finished while the first ones still wait.
async fn other_videos_do_not_wait(world: World, stuck: Vec<Video>, free: Video, state: &str) {
    let t = &world.t;
    for video in stuck.iter().chain([&free]) {
        t.row(video).await;
    }
    for video in &stuck {
        world.push(video, video.mp4 != GOOD, false).await;
    }
    world.push(&free, false, false).await;
    let began = Instant::now();
    let workers = futures_util::future::join_all((0..4).map(|_| t.worker.run()));
    let done = async {
        while t.video(&free).await["state"] != state {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        _ = workers => unreachable!("the workers are never stopped"),
        () = done => {}
        // If all forty videos ran into the timeout, four workers would need ten timeouts.
        () = tokio::time::sleep(5 * PATIENCE) => panic!("the video still waits for a service that it does not need"),
    }
    println!("done after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_dead_storage_does_not_delay_videos_that_do_not_need_it() {
    let world = World::begin(Backend::Supabase, None).await;
    world.storage().fault(|_, _| true, Fault::Stalled);
    let stuck = (0..40).map(|_| Video::good()).collect();
    let free = Video::good().with_json("[]");
    other_videos_do_not_wait(world, stuck, free, "failed").await;
}

#[tokio::test]
async fn a_dead_lfs_server_does_not_delay_plain_videos() {
    let world = World::begin(Backend::Embedded, None).await;
    world
        .github
        .fault(|_, path| path.contains("/lfs-storage/"), Fault::Stalled);
    let stuck = (0..40).map(|_| Video::with(SECOND)).collect();
    other_videos_do_not_wait(world, stuck, Video::good(), "ready").await;
}

/// A sweep requests pushed videos before it queries the agent.
#[tokio::test]
async fn a_dead_agent_api_does_not_delay_pushed_videos() {
    let openhands = FakeOpenHands::start(fake_openhands::Server::Cloud).await;
    let world = World::begin(Backend::Embedded, Some(openhands)).await;
    let t = &world.t;
    let (generating, lost) = (Video::good(), Video::good());
    for video in [&generating, &lost] {
        t.row(video).await;
    }
    let id = generating.id();
    t.sql(&format!(
        "update lesson_assets set conversation_id = '{}' where id = '{id}'",
        Uuid::new_v4()
    ))
    .await;
    t.commit(&lost);
    world
        .agent
        .as_ref()
        .unwrap()
        .0
        .fault(|_, _| true, Fault::Stalled);
    let sweep = t.worker.sweep.clone();
    let options = Default::default();
    let found = async {
        while t.video(&lost).await["state"] != "queued" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = sweep.run(&options) => panic!("the sweep waited for the agent first"),
        () = found => {}
    }
}
