//! Everything put together: the one place where clients, pool, clock and fail points are made.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::{Config, Database, MissingRow, OpenHandsConfig, StoreConfig};
use crate::db::{Db, RowOwner};
use crate::domain::plan::Waits;
use crate::failpoint::{FailPoints, Fault};
use crate::http::{self, AppState, STREAMS_MAX};
use crate::pipeline::ingest::{Ingest, Rules, VIDEO_BYTES_MAX_DEFAULT};
use crate::pipeline::intake::Intake;
use crate::pipeline::sweep::{Sweep, SweepOptions};
use crate::pipeline::worker::Worker;
use crate::services::github::{Github, InvalidSetting, Patience};
use crate::services::openhands::{self, Agent};
use crate::services::storage::{FolderStore, Store, SupabaseStore, Timeouts};
use crate::telemetry::metrics;

/// After SIGTERM, running videos have this long to end before they are handed back.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);

/// And this long to be handed back; together with closing, less than the contract's 25 s.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(3);

/// What tests put in the place of the real thing.
#[derive(Clone, Debug, Default)]
pub struct Injected {
    /// Moved instead of slept.
    pub clock: Clock,
    /// Armed to break things on purpose.
    pub fail: FailPoints,
    /// How patient the GitHub client is.
    pub github_patience: Patience,
    /// How patient the storage client is.
    pub storage_timeouts: Timeouts,
    /// How patient and how fast the agent's client is.
    pub openhands_limits: openhands::Limits,
}

/// The program, ready to serve.
pub struct App {
    /// The settings it was made from.
    pub config: Config,
    /// Our records and the app's rows.
    pub db: Db,
    /// Does one thing that is due.
    pub worker: Worker,
    /// Looks at everything.
    pub sweep: Sweep,
    /// Every route.
    pub router: axum::Router,
    closing: CancellationToken,
    /// Ends once every delivery that came was answered.
    intake: JoinHandle<()>,
}

impl App {
    /// Opens and migrates the database, opens the store, and wires the rest.
    ///
    /// # Errors
    /// In words for the person who started it.
    pub async fn build(config: Config, injected: Injected) -> anyhow::Result<Self> {
        let Injected {
            clock,
            fail,
            github_patience,
            storage_timeouts,
            openhands_limits,
        } = injected;
        for (name, fault) in &config.fail_points {
            let fault = match fault.as_str() {
                "abort" => Fault::Abort,
                "hang" => Fault::Hang,
                "panic" => Fault::Panic,
                other => anyhow::bail!("FAIL_POINTS: no fault is called {other}"),
            };
            fail.arm(name, fault);
        }
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("DATA_DIR: cannot create {}", config.data_dir.display()))?;
        let db = open_database(&config, clock.clone()).await?;
        db.migrate()
            .await
            .context("the database could not be brought up to this version")?;
        let store = Arc::new(open_store(&config, storage_timeouts)?);
        let github = &config.github;
        let client = self::github(&config, &clock)?;
        let client = Arc::new(client.with_patience(github_patience));
        let wake = Arc::new(Notify::new());
        let videos_dir: Arc<str> = github.videos_dir.as_str().into();
        let sweep = Sweep {
            db: db.clone(),
            github: client.clone(),
            store: store.clone(),
            openhands: agent(&config, &clock, openhands_limits)?,
            videos_dir: videos_dir.clone(),
            generation_deadline: config.generation_deadline,
            history_retention: config.history_retention,
            clock: clock.clone(),
            wake: wake.clone(),
            running: Arc::new(Mutex::new(())),
        };
        let ingest = Ingest {
            db: db.clone(),
            github: client,
            store: store.clone(),
            breakers: Arc::default(),
            rules: Arc::new(Rules {
                data_dir: config.data_dir.clone(),
                bucket: config.storage_bucket.clone(),
                waits: Waits {
                    metadata_grace: config.metadata_grace,
                    generation_deadline: config.generation_deadline,
                },
                missing_rows_owner: match (config.missing_row, &config.database) {
                    (MissingRow::Wait, _) => None,
                    (MissingRow::Create, Database::Sqlite) => {
                        Some(RowOwner::Fixed(config.default_user_id))
                    }
                    (MissingRow::Create, Database::Postgres { .. }) => Some(RowOwner::OfLesson),
                },
                lease: config.lease,
            }),
            video_bytes_max: Arc::new(AtomicU64::new(video_bytes_max(&config, &store).await)),
            clock,
            fail,
        };
        let worker = Worker {
            db: db.clone(),
            clock: sweep.clock.clone(),
            ingest,
            sweep: sweep.clone(),
            lease: config.lease,
            wake: wake.clone(),
            stop: CancellationToken::new(),
            hand_back: CancellationToken::new(),
        };
        metrics::recorder();
        let closing = CancellationToken::new();
        let (intake, writer) = Intake::start(db.clone(), wake.clone());
        let router = http::router(AppState {
            db: db.clone(),
            clock: sweep.clock.clone(),
            github: sweep.github.clone(),
            intake,
            sweep: sweep.clone(),
            store,
            wake,
            webhook_secrets: Arc::new(config.webhook_secrets.clone()),
            repository: github.repository.to_string().into(),
            branch: github.branch.as_deref().map(Into::into),
            videos_dir,
            admin_token: config.admin_token.clone(),
            body_permits: Arc::default(),
            event_streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            sign_ins: Arc::default(),
            overview: Arc::default(),
            ready: Arc::default(),
            closing: closing.clone(),
        });
        Ok(Self {
            config,
            db,
            worker,
            sweep,
            router,
            closing,
            intake: writer,
        })
    }

    /// Serves until `stop`, then finishes or hands back what is running and returns.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        for _ in 0..self.config.workers {
            let worker = self.worker.clone();
            tasks.spawn(async move { worker.run().await });
        }
        if let Some(interval) = self.config.reconcile_interval {
            tasks.spawn(sweep_every(
                interval,
                self.sweep.clone(),
                self.worker.stop.clone(),
            ));
        }
        if let Database::Postgres { url } = &self.config.database {
            let (db, url, worker) = (self.db.clone(), url.clone(), self.worker.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = db.forward_wakeups(&url, &worker.wake) => {}
                    () = worker.stop.cancelled() => {}
                }
            });
        }
        tasks.spawn(self.intake);
        tasks.close();
        let upkeep = tokio::spawn(fold_metrics());
        let serving = http::serve(listener, self.router, stop.clone());
        let closing = async {
            stop.cancelled().await;
            self.closing.cancel();
        };
        tokio::join!(serving, closing);
        upkeep.abort();
        tracing::info!("stopping: nothing new is taken");
        self.worker.stop.cancel();
        self.worker.wake.notify_waiters();
        if tokio::time::timeout(FINISH_TIMEOUT, tasks.wait())
            .await
            .is_err()
        {
            self.worker.hand_back.cancel();
            if tokio::time::timeout(HAND_BACK_TIMEOUT, tasks.wait())
                .await
                .is_err()
            {
                tracing::warn!("something did not stop in time; its lease will end");
            }
        }
        let _ = tokio::time::timeout(HAND_BACK_TIMEOUT / 3, self.db.close()).await;
    }
}

/// Waits for SIGTERM from a service manager or SIGINT from a terminal.
pub async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!(
            "signals cannot be received: stop the process with SIGKILL, nothing is lost"
        );
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Once now, then at the interval, a tenth earlier or later each time so that replicas spread.
async fn sweep_every(interval: Duration, sweep: Sweep, stop: CancellationToken) {
    loop {
        let swept = async {
            // Its failure was logged where it happened; the next one is the retry.
            let _ = sweep.run(&SweepOptions::default()).await;
            tokio::time::sleep(interval.mul_f64(0.9 + fastrand::f64() * 0.2)).await;
        };
        tokio::select! {
            () = swept => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Keeps the samples of a process that nobody scrapes from piling up.
async fn fold_metrics() {
    loop {
        tokio::time::sleep(metrics::UPKEEP_EVERY).await;
        metrics::recorder().run_upkeep();
    }
}

/// The database of the settings.
///
/// # Errors
/// It cannot be reached.
pub async fn open_database(config: &Config, clock: Clock) -> anyhow::Result<Db> {
    match &config.database {
        Database::Sqlite => Db::sqlite(&config.data_dir, clock)
            .await
            .with_context(|| format!("cannot open the database in {}", config.data_dir.display())),
        Database::Postgres { url } => Db::postgres(url, clock)
            .await
            .context("DATABASE_URL: cannot connect to that database"),
    }
}

/// The repository of the settings.
pub(crate) fn github(config: &Config, clock: &Clock) -> Result<Github, InvalidSetting> {
    let github = &config.github;
    Github::new(
        &github.api_url,
        github.token.clone(),
        &github.repository.to_string(),
        github.branch.clone(),
        &github.videos_dir,
        clock.clone(),
    )
}

fn open_store(config: &Config, timeouts: Timeouts) -> anyhow::Result<Store> {
    Ok(match &config.store {
        StoreConfig::Folder => {
            let folder = config.data_dir.join("store");
            Store::Folder(FolderStore::open(&folder).with_context(|| {
                format!("DATA_DIR: cannot use {} as the store", folder.display())
            })?)
        }
        StoreConfig::Supabase {
            url,
            service_role_key,
        } => {
            let url = reqwest::Url::parse(url).context("SUPABASE_URL is not a URL")?;
            Store::Supabase(SupabaseStore::new(&url, service_role_key, timeouts)?)
        }
    })
}

/// The agent's API, if the settings have a key for it.
pub(crate) fn agent(
    config: &Config,
    clock: &Clock,
    limits: openhands::Limits,
) -> anyhow::Result<Option<Arc<Agent>>> {
    let Some(OpenHandsConfig {
        key,
        api_url,
        version,
    }) = &config.agent
    else {
        return Ok(None);
    };
    let agent = Agent::new(api_url, key.clone(), *version, clock.clone(), limits)
        .context("the agent's API cannot be asked")?;
    Ok(Some(Arc::new(agent)))
}

/// The settings' limit, else the bucket's, else the default; in bytes.
async fn video_bytes_max(config: &Config, store: &Store) -> u64 {
    if let Some(max) = config.max_video_bytes {
        return max;
    }
    match store.limits(&config.storage_bucket).await {
        Ok(limits) => {
            if !limits.mp4_allowed {
                tracing::error!(
                    "the bucket's allowed types lack video/mp4: every upload will be refused; add it"
                );
            }
            limits.max_bytes.unwrap_or(VIDEO_BYTES_MAX_DEFAULT)
        }
        Err(failure) => {
            tracing::warn!(code = %failure.code, "the bucket's limits are not known yet: {}", failure.message);
            VIDEO_BYTES_MAX_DEFAULT
        }
    }
}
