//! Wiring: the only place that constructs clients, the database pool, the clock and fail points.

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
use crate::db::{Db, DbError, RowOwner};
use crate::failpoint::{FailPoints, Fault};
use crate::http::{self, AppState, STREAMS_MAX};
use crate::pipeline::checks::Services;
use crate::pipeline::ingest::{Ingest, Rules, VIDEO_BYTES_MAX_DEFAULT};
use crate::pipeline::intake::Intake;
use crate::pipeline::sweep::{Sweep, SweepOptions};
use crate::pipeline::worker::Worker;
use crate::services::github::{Github, Patience};
use crate::services::openhands::{self, Agent};
use crate::services::storage::{FolderStore, Store, SupabaseStore, Timeouts};
use crate::telemetry::metrics;

/// After SIGTERM, running videos get this long to finish before they are handed back.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);

/// How long handing back may take. With closing the database, all of it stays below the documented 25 s.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(3);

/// Replaceable parts, which tests set and production leaves at their defaults.
#[derive(Clone, Debug, Default)]
pub struct Injected {
    /// Tests move it instead of sleeping.
    pub clock: Clock,
    /// Faults to inject.
    pub fail: FailPoints,
    /// Timeouts of the GitHub client.
    pub github_patience: Patience,
    /// Timeouts of the storage client.
    pub storage_timeouts: Timeouts,
    /// Timeouts and rate limits of the OpenHands client.
    pub openhands_limits: openhands::Limits,
}

/// The server, ready to run.
pub struct App {
    /// Its configuration.
    pub config: Config,
    /// Our tables and the app's rows.
    pub db: Db,
    /// Processes due videos.
    pub worker: Worker,
    /// Compares the branch with the rows.
    pub sweep: Sweep,
    /// All routes.
    pub router: axum::Router,
    closing: CancellationToken,
    /// Ends once every received delivery was answered.
    intake: JoinHandle<()>,
}

impl App {
    /// Opens and migrates the database, opens the store and wires the rest.
    ///
    /// # Errors
    /// Fails if a service of the settings cannot be used; the message names the setting.
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
                other => anyhow::bail!("FAIL_POINTS: Unknown fault {other}."),
            };
            fail.arm(name, fault);
        }
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("DATA_DIR: Cannot create {}", config.data_dir.display()))?;
        let db = open_database(&config, clock.clone()).await?;
        db.migrate()
            .await
            .context("The database could not be migrated")?;
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
            agent: agent(&config, &clock, openhands_limits)?,
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
                metadata_grace: config.metadata_grace,
                generation_deadline: config.generation_deadline,
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
            intake,
            sweep: sweep.clone(),
            store,
            wake,
            webhook_secrets: Arc::new(config.webhook_secrets.clone()),
            repository: github.repository.to_string().into(),
            branch: github.branch.as_deref().map(Into::into),
            videos_dir,
            admin_token: config.admin_token.clone(),
            places: Arc::default(),
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

    /// Serves until `stop`, then finishes or hands back the running videos and returns.
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
        tracing::info!("draining");
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
                tracing::warn!("a task did not stop in time, its lease will expire");
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
            "signal handlers unavailable, stop the process with SIGKILL (no data is lost)"
        );
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Sweeps now and then at the interval, varied by up to a tenth so that replicas spread.
async fn sweep_every(interval: Duration, sweep: Sweep, stop: CancellationToken) {
    loop {
        let swept = async {
            // A failure was logged where it happened, and the next sweep is the retry.
            let _ = sweep.run(&SweepOptions::default()).await;
            tokio::time::sleep(interval.mul_f64(0.9 + fastrand::f64() * 0.2)).await;
        };
        tokio::select! {
            () = swept => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Bounds the samples of a process that nobody scrapes.
async fn fold_metrics() {
    loop {
        tokio::time::sleep(metrics::UPKEEP_EVERY).await;
        metrics::recorder().run_upkeep();
    }
}

/// Connects to the configured database.
///
/// # Errors
/// Fails if the database cannot be opened or reached.
pub async fn open_database(config: &Config, clock: Clock) -> anyhow::Result<Db> {
    connect(config, clock)
        .await
        .with_context(|| match &config.database {
            Database::Sqlite => {
                format!("Cannot open the database in {}", config.data_dir.display())
            }
            Database::Postgres { .. } => "DATABASE_URL: Cannot connect to the database".to_owned(),
        })
}

async fn connect(config: &Config, clock: Clock) -> Result<Db, DbError> {
    match &config.database {
        Database::Sqlite => Db::sqlite(&config.data_dir, clock).await,
        Database::Postgres { url } => Db::postgres(url, clock).await,
    }
}

/// Everything that [`crate::pipeline::checks`] asks. Creates no file, unlike [`App::build`]: an embedded
/// database that does not exist yet is `None`.
pub async fn services(config: &Config, injected: &Injected) -> Services {
    let clock = injected.clock.clone();
    let is_new = matches!(config.database, Database::Sqlite)
        && !Db::embedded_file(&config.data_dir).exists();
    Services {
        github: github(config, &clock),
        storage: match config.store {
            StoreConfig::Folder => Ok(None),
            StoreConfig::Supabase { .. } => open_store(config, injected.storage_timeouts).map(Some),
        },
        openhands: agent(config, &clock, injected.openhands_limits),
        database: if is_new {
            Ok(None)
        } else {
            connect(config, clock.clone()).await.map(Some)
        },
        clock,
    }
}

/// A client for the configured repository.
pub(crate) fn github(config: &Config, clock: &Clock) -> anyhow::Result<Github> {
    let github = &config.github;
    Ok(Github::new(
        &github.api_url,
        github.token.clone(),
        &github.repository.to_string(),
        github.branch.clone(),
        &github.videos_dir,
        clock.clone(),
    )?)
}

fn open_store(config: &Config, timeouts: Timeouts) -> anyhow::Result<Store> {
    Ok(match &config.store {
        StoreConfig::Folder => {
            let folder = config.data_dir.join("store");
            Store::Folder(FolderStore::open(&folder).with_context(|| {
                format!("DATA_DIR: Cannot use {} as the store", folder.display())
            })?)
        }
        StoreConfig::Supabase {
            url,
            service_role_key,
        } => {
            let url = reqwest::Url::parse(url).context("SUPABASE_URL is not a URL")?;
            let store = SupabaseStore::new(&url, service_role_key, timeouts);
            Store::Supabase(store.map_err(|failure| anyhow::anyhow!(failure.message))?)
        }
    })
}

/// A client for OpenHands, `None` without a key.
fn agent(
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
        .context("The client for OpenHands cannot be created")?;
    Ok(Some(Arc::new(agent)))
}

/// The size limit of a video in bytes: the setting, else the bucket's limit, else the default.
async fn video_bytes_max(config: &Config, store: &Store) -> u64 {
    if let Some(max) = config.max_video_bytes {
        return max;
    }
    match store.limits(&config.storage_bucket).await {
        Ok(limits) => {
            if !limits.mp4_allowed {
                tracing::error!(
                    "the bucket does not accept video/mp4, so every upload will fail: add it to the allowed MIME types"
                );
            }
            limits.max_bytes.unwrap_or(VIDEO_BYTES_MAX_DEFAULT)
        }
        Err(failure) => {
            tracing::warn!(code = %failure.code, "the limits of the bucket are unknown: {}", failure.message);
            VIDEO_BYTES_MAX_DEFAULT
        }
    }
}
