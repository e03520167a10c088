//! Wiring: the only place that constructs clients, the database pool and the clock.

use std::sync::Arc;
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
use crate::domain::links::Sites;
use crate::domain::plan::Waits;
use crate::domain::redact::Redactor;
use crate::format::causes;
use crate::http::{self, AppState, STREAMS_MAX, SignInLink};
use crate::pipeline::branch::Branch;
use crate::pipeline::causes::Causes;
use crate::pipeline::checks::Services;
use crate::pipeline::ingest::{Ingest, Rules};
use crate::pipeline::intake::Intake;
use crate::pipeline::limits::Limits;
use crate::pipeline::sweep::{Sweep, SweepOptions};
use crate::pipeline::worker::Worker;
use crate::services::client::InvalidSetting;
use crate::services::github::{self, Github};
use crate::services::openhands::{OpenHands, Pacing};
use crate::services::storage::{self, FolderStore, Store, SupabaseStore};
use crate::telemetry::{metrics, refused};

/// After SIGTERM, running videos get this long to finish before they are handed back.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);

/// How long handing back may take. With closing the database, all of it stays below the documented 25 s.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(3);

/// The interval of [`keep_up`]. Under constant load, the table `counts` contains at most the entries that are
/// added in one interval, plus 100.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Replaceable parts, which tests set and production leaves at their defaults.
#[derive(Clone, Debug, Default)]
pub struct Injected {
    /// Tests move it instead of sleeping.
    pub clock: Clock,
    /// Timeouts of the GitHub client.
    pub github_timeouts: github::Timeouts,
    /// Timeouts of the storage client.
    pub storage_timeouts: storage::Timeouts,
    /// How fast and for how long OpenHands is called.
    pub openhands_pacing: Pacing,
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
    /// The demo issues a link that signs in once.
    pub sign_in_link: Arc<SignInLink>,
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
            github_timeouts,
            storage_timeouts,
            openhands_pacing,
        } = injected;
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("Cannot create DATA_DIR {}", config.data_dir.display()))?;
        let db = open_database(&config, clock.clone()).await?;
        db.migrate()
            .await
            .context("Failed to migrate the database")?;
        let store = Arc::new(open_store(&config, &clock, storage_timeouts)?);
        let github = &config.github;
        let client = self::github(&config, &clock)?;
        let client = Arc::new(client.with_timeouts(github_timeouts));
        let wake = Arc::new(Notify::new());
        let videos_dir: Arc<str> = github.videos_dir.as_str().into();
        let branch = Arc::new(Branch::new(db.clone(), client.clone(), clock.clone()));
        let token = config.github.token.as_ref();
        let causes = Causes::new(store.clone(), token, config.max_video_bytes);
        let causes = Arc::new(causes);
        let sweep = Sweep {
            db: db.clone(),
            github: client.clone(),
            branch: branch.clone(),
            store: store.clone(),
            limits: Arc::new(Limits::new(
                store.clone(),
                clock.clone(),
                config.max_video_bytes,
            )),
            openhands: openhands(&config, &clock, openhands_pacing)?,
            videos_dir: videos_dir.clone(),
            generation_deadline: config.generation_deadline,
            history_retention: config.history_retention,
            causes: causes.clone(),
            clock: clock.clone(),
            wake: wake.clone(),
            running: Arc::new(Mutex::new(())),
        };
        let ingest = Ingest {
            db: db.clone(),
            github: client,
            branch,
            store: store.clone(),
            breakers: Arc::default(),
            causes,
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
            limits: sweep.limits.clone(),
            clock,
            fail: config.fail_points.clone(),
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
        let sign_in_link = Arc::<SignInLink>::default();
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
            body_memory: Arc::default(),
            event_streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            wrong_tokens: Arc::default(),
            refusals: Arc::default(),
            redactor: Redactor::new(config.secrets()),
            sites: Arc::new(sites(&config)),
            reconcile_interval: config.reconcile_interval,
            sign_in_link: sign_in_link.clone(),
            overview: Arc::default(),
            metrics: Arc::default(),
            ready: Arc::default(),
            closing: closing.clone(),
        });
        Ok(Self {
            config,
            db,
            worker,
            sweep,
            router,
            sign_in_link,
            closing,
            intake: writer,
        })
    }

    /// Serves until SIGTERM or SIGINT, see [`App::serve`].
    pub async fn serve_until_signal(self, listener: TcpListener) {
        let stop = CancellationToken::new();
        let stop_on_signal = stop.clone();
        tokio::spawn(async move {
            stop_signal().await;
            stop_on_signal.cancel();
        });
        self.serve(listener, stop).await;
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
        let folding = tokio::spawn(fold_metrics());
        let logging = tokio::spawn(log_refused());
        let upkeep = tokio::spawn(keep_up(self.db.clone(), self.config.lease));
        let serving = http::serve(listener, self.router, stop.clone());
        let closing = async {
            stop.cancelled().await;
            self.closing.cancel();
        };
        tokio::join!(serving, closing);
        folding.abort();
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
                tracing::warn!("task did not stop in time, waiting for its lease to expire");
            }
        }
        let _ = tokio::time::timeout(HAND_BACK_TIMEOUT / 3, self.db.close()).await;
        logging.abort();
        refused::finish();
    }
}

/// Waits for SIGTERM from a service manager or SIGINT from a terminal.
pub async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!(
            "failed to install signal handlers; use SIGKILL to stop the process (no data will be lost)"
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

/// Logs requests that were refused since the last line.
async fn log_refused() {
    loop {
        tokio::time::sleep(refused::LINE_EVERY).await;
        refused::flush();
    }
}

/// Compacts the counts and undoes clock jumps at a fixed interval, regardless of readers and load.
async fn keep_up(db: Db, lease: Duration) {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        let done = db.compact_counts().await;
        if let Err(error) = done.and(db.undo_clock_jump(lease).await.map(drop)) {
            tracing::warn!(
                error = causes(&error),
                "database maintenance failed, retrying"
            );
        }
    }
}

/// Connects to the configured database.
///
/// # Errors
/// Fails if the database cannot be opened or reached; the message says why and what to do.
pub async fn open_database(config: &Config, clock: Clock) -> anyhow::Result<Db> {
    connect(config, clock).await.map_err(|error| {
        let reason = error.reason();
        match &config.database {
            Database::Sqlite => {
                let dir = config.data_dir.display();
                anyhow::anyhow!("Cannot open the database in {dir}: {reason}.")
            }
            Database::Postgres { .. } => {
                anyhow::anyhow!("Cannot connect to the database at DATABASE_URL: {reason}.")
            }
        }
    })
}

async fn connect(config: &Config, clock: Clock) -> Result<Db, DbError> {
    match &config.database {
        Database::Sqlite => Db::sqlite(&config.data_dir, clock).await,
        Database::Postgres { url } => Db::postgres(url, clock).await,
    }
}

/// The clients that [`crate::pipeline::checks`] needs. Creates no file, unlike [`App::build`].
pub fn services(config: &Config, injected: &Injected) -> Services {
    let clock = injected.clock.clone();
    Services {
        github: github(config, &clock),
        storage: match config.store {
            StoreConfig::Folder => Ok(None),
            StoreConfig::Supabase { .. } => {
                open_store(config, &clock, injected.storage_timeouts).map(Some)
            }
        },
        openhands: openhands(config, &clock, injected.openhands_pacing).map_err(Into::into),
        clock,
    }
}

/// Connects to the configured database for the checks; `None` if it is the embedded one and does not exist
/// yet, because the checks do not create it.
///
/// # Errors
/// Fails if the database cannot be opened or reached.
pub async fn existing_database(config: &Config, clock: Clock) -> Result<Option<Db>, DbError> {
    let is_new = matches!(config.database, Database::Sqlite)
        && !Db::embedded_file(&config.data_dir).exists();
    if is_new {
        return Ok(None);
    }
    if let Database::Postgres { url } = &config.database {
        Db::reach(url).await?;
    }
    connect(config, clock).await.map(Some)
}

/// The web pages of the configured services.
fn sites(config: &Config) -> Sites {
    let github = &config.github;
    let supabase = match &config.store {
        StoreConfig::Supabase { url, .. } => Some(url.as_str()),
        StoreConfig::Folder => None,
    };
    Sites::new(
        &github.api_url,
        &github.repository.to_string(),
        &github.videos_dir,
        config.agent.as_ref().map(|agent| agent.api_url.as_str()),
        supabase,
    )
}

/// A client for the configured repository.
pub(crate) fn github(config: &Config, clock: &Clock) -> anyhow::Result<Github> {
    let github = &config.github;
    Ok(Github::new(
        &github.api_url,
        github.token.clone(),
        github.repository.clone(),
        github.branch.clone(),
        &github.videos_dir,
        clock.clone(),
    )?)
}

fn open_store(
    config: &Config,
    clock: &Clock,
    timeouts: storage::Timeouts,
) -> anyhow::Result<Store> {
    Ok(match &config.store {
        StoreConfig::Folder => {
            let folder = config.data_dir.join("store");
            Store::Folder(FolderStore::open(&folder).with_context(|| {
                format!("Cannot use {} (in DATA_DIR) as the store", folder.display())
            })?)
        }
        StoreConfig::Supabase {
            url,
            service_role_key,
        } => {
            let url = reqwest::Url::parse(url).context("SUPABASE_URL is not a valid URL")?;
            let clock = clock.clone();
            Store::Supabase(SupabaseStore::new(&url, service_role_key, clock, timeouts)?)
        }
    })
}

/// A client for OpenHands, `None` without a key.
fn openhands(
    config: &Config,
    clock: &Clock,
    pacing: Pacing,
) -> Result<Option<Arc<OpenHands>>, InvalidSetting> {
    let Some(OpenHandsConfig {
        key,
        api_url,
        version,
    }) = &config.agent
    else {
        return Ok(None);
    };
    let client = OpenHands::new(
        api_url,
        key.clone(),
        *version,
        Redactor::new(config.secrets()),
        clock.clone(),
        pacing,
    )?;
    Ok(Some(Arc::new(client)))
}
