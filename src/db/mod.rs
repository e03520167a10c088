//! Records, deliveries, timelines and the app's rows. The only module that contains SQL.
//!
//! The database keeps two things. Of a delivery: that it was received and which videos it named, for
//! troubleshooting. Of a video: its requests, what the branch and the storage contained, and when a
//! worker must process it next. The record is the job, so there is no separate queue. Only the
//! statements in [`rows`] write to the app's table `lesson_assets`.
//!
//! Most statements serve both SQLite and Postgres: ids and JSON are text, times are milliseconds since
//! the Unix epoch, flags are 0 and 1. [`Db::query`] replaces a few tokens where the dialects differ.

mod checks;
mod deliveries;
mod events;
mod heads;
mod marks;
mod prune;
mod reason;
mod rows;
mod scan;
mod stats;
mod statuses;
mod videos;
mod views;

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::any::{AnyArguments, AnyPoolOptions, AnyRow};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgListener;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Row as _, Transaction};
use tokio::sync::{Notify, broadcast};

use crate::clock::Clock;
use crate::domain::ids::VideoKey;
use crate::domain::state::VideoState;
use crate::format::causes;

pub use checks::{AppFacts, ForeignPolicy, Migrated, PolicyEffect, Published, Schema};
pub use deliveries::{Delivery, DeliveryView};
pub use rows::{OddRow, ReadyObject, Row, RowOwner};
pub use scan::{SCAN_DISTANCE, SCAN_TIMEOUT, Scan};
pub use stats::{COUNTED_MAX, Day, FailedSweep, Failures, Hour, Overview, Retried};
pub use statuses::StoredStatus;
pub use videos::{Claim, ClaimError};
pub use views::{
    EventView, Filter, GenerationView, Page, Times, VideoDetail, VideoView, timestamp,
};

/// The longest wait for a connection from the pool. Intake gives up earlier, see
/// [`crate::pipeline::intake`].
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of read connections to SQLite, which has a single writer.
const READ_CONNECTIONS_MAX: u32 = 8;

/// The number of connections to Postgres for everything except recording deliveries.
const CONNECTIONS_MAX: u32 = 6;

/// The number of connections to Postgres that only record deliveries. Workers and sweeps also wait for
/// locks on the app's table; deliveries must not wait for them.
const INTAKE_CONNECTIONS_MAX: u32 = 4;

/// The most connections that one replica has to Postgres: those of its pools, and its listener. The
/// connection limit in `deploy/supabase/role.sql` depends on it.
pub const CONNECTIONS_PER_REPLICA: u32 = CONNECTIONS_MAX + INTAKE_CONNECTIONS_MAX + 1;

/// The longest wait for one lock while deliveries are recorded, in milliseconds. Postgres then ends the
/// statement, which would otherwise be executed after the sender has received an error. A batch with up to
/// three locked deliveries is settled within the time for its commit.
const INTAKE_LOCK_TIMEOUT_MS: u32 = 300;

/// A connection that has been idle for longer is pinged before it is used.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);

/// The port of Supabase's transaction pooler, which assigns a server connection per transaction.
/// Source: Supabase's guide "Connect to your database".
const TRANSACTION_POOLER_PORT: u16 = 6543;

/// The Postgres notification channel that wakes the workers of other replicas.
const WAKE_CHANNEL: &str = "video_ingest";

/// The delay before a broken listener reconnects.
const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// The key of the advisory lock that serializes migrations. The value is arbitrary, but must be the same
/// in all releases.
const MIGRATION_LOCK: i64 = 0x7669_6465_6f69_6e67;

/// The number of buffered changes. A receiver that falls further behind misses changes.
const CHANGES_MAX: usize = 1024;

/// The number of rows that one statement reads where all rows of a table are needed.
const BATCH_ROWS: i64 = 1000;

/// Tokens in statements, and their replacements for SQLite and Postgres.
const TOKENS: [(&str, &str, &str); 8] = [
    ("{each}", "json_each", "jsonb_array_elements"),
    ("{jsonb}", "", "::jsonb"),
    ("{uuid}", "", "::uuid"),
    ("{text}", "", "::text"),
    // The inserted deliveries: their table, or the CTE that inserts them.
    ("{recorded}", "deliveries", "recorded"),
    // SQLite has a single writer.
    ("{skip_locked}", "", "for update skip locked"),
    ("{lock}", "", "for no key update"),
    ("video_ingest.", "", "video_ingest."),
];

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        both: include_str!("migrations/0001_init.sql"),
        embedded: include_str!("migrations/0001_embedded.sql"),
        postgres: include_str!("migrations/0001_postgres.sql"),
    },
    Migration {
        version: 2,
        both: include_str!("migrations/0002_init.sql"),
        embedded: "",
        postgres: "",
    },
    Migration {
        version: 3,
        both: include_str!("migrations/0003_diagnosis.sql"),
        embedded: include_str!("migrations/0003_embedded.sql"),
        postgres: include_str!("migrations/0003_postgres.sql"),
    },
];

struct Migration {
    version: i64,
    both: &'static str,
    embedded: &'static str,
    postgres: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

/// A failed statement or transaction. It had no effect, unless the connection broke during the commit,
/// and can be retried.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database is unavailable or rejected the statement.
    #[error("database operation failed")]
    Sqlx(#[source] sqlx::Error),
    /// The database does not allow our role to read or write the app's tables. The text is the database's
    /// error message, without a period.
    #[error("the database refused access: {0}; run deploy/supabase/role.sql")]
    Denied(String),
    /// The setting or the database's schema is wrong. The text tells the operator what to do.
    #[error("{0}")]
    Misconfigured(String),
}

/// The error codes with which Postgres rejects a statement although it is available: a missing privilege or a
/// policy, a recursive policy, or a value or row that a constraint or trigger of the app rejects.
/// Source: PostgreSQL documentation, appendix A; `23` is the prefix of a class.
const DENIED: [&str; 5] = ["42501", "42P17", "22003", "23", "P0001"];

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(cause) = &error
            && let Some(code) = cause.code()
            // The codes of SQLite are shorter.
            && code.len() == 5
            && DENIED.iter().any(|denied| code.starts_with(denied))
        {
            return Self::Denied(cause.message().to_owned());
        }
        Self::Sqlx(error)
    }
}

impl From<DbError> for crate::domain::failure::Failure {
    fn from(error: DbError) -> Self {
        if let DbError::Denied(cause) = &error {
            return Self::new(
                crate::domain::failure::Code::RowDenied,
                format!(
                    "The app's database refused to read or update the row: {cause}. Run deploy/supabase/role.sql, then retry."
                ),
            );
        }
        tracing::warn!(error = causes(&error), "database operation failed");
        Self::new(
            crate::domain::failure::Code::DatabaseUnavailable,
            "The server's database is unavailable; the video will be retried automatically.",
        )
    }
}

/// A change of a video's state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// The video's id.
    pub video_id: uuid::Uuid,
    /// Its new state.
    pub state: VideoState,
}

/// A handle to the database. Clones share the connection pools.
#[derive(Clone, Debug)]
pub struct Db {
    dialect: Dialect,
    /// Whether a transaction pooler is in between: no prepared statement and no session state outlives a
    /// transaction.
    pooled: bool,
    write: AnyPool,
    read: AnyPool,
    /// Only for recording deliveries.
    intake: AnyPool,
    clock: Clock,
    changes: broadcast::Sender<Change>,
}

impl Db {
    /// The path of the embedded database in `data_dir`.
    pub fn embedded_file(data_dir: &Path) -> PathBuf {
        data_dir.join("video-ingest.sqlite")
    }

    /// Opens (and creates) the embedded database in `data_dir`.
    pub async fn sqlite(data_dir: &Path, clock: Clock) -> Result<Self, DbError> {
        sqlx::any::install_default_drivers();
        let path = Self::embedded_file(data_dir);
        let url = reqwest::Url::from_file_path(std::path::absolute(&path).unwrap_or(path))
            .map_err(|()| {
                DbError::Misconfigured("DATA_DIR is not a path that SQLite can open.".into())
            })?;
        let url = format!("sqlite://{}?mode=rwc", url.path());
        let options = |connections| {
            AnyPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        sqlx::raw_sql(
                            "pragma journal_mode = wal; pragma synchronous = full; \
                             pragma busy_timeout = 1500; pragma foreign_keys = on;",
                        )
                        .execute(connection)
                        .await
                        .map(drop)
                    })
                })
                .after_release(|connection, _| {
                    Box::pin(async move {
                        if connection.is_in_transaction() {
                            // A dropped transaction queues its rollback on the connection's thread. The
                            // ping completes after it.
                            connection.ping().await?;
                        }
                        // When the disk is full, SQLite rolls back on its own and the driver's rollback
                        // then fails. The driver still counts an open transaction, so the connection
                        // could not begin another one and must be discarded.
                        Ok(!connection.is_in_transaction())
                    })
                })
        };
        // A pool retries the statements above until its timeout, even if the file is not a database.
        let mut first = AnyConnection::connect(&url).await?;
        let read = sqlx::query("select count(*) from sqlite_master").execute(&mut first);
        read.await?;
        first.close().await?;
        let write = options(1).connect(&url).await?;
        Ok(Self {
            dialect: Dialect::Sqlite,
            pooled: false,
            intake: write.clone(),
            write,
            read: options(READ_CONNECTIONS_MAX).connect_lazy(&url)?,
            clock,
            changes: broadcast::Sender::new(CHANGES_MAX),
        })
    }

    /// Connects to Postgres, directly, through a session pooler or through a transaction pooler. Waits up to
    /// [`ACQUIRE_TIMEOUT`] for a server that is starting.
    pub async fn postgres(url: &SecretString, clock: Clock) -> Result<Self, DbError> {
        sqlx::any::install_default_drivers();
        let parsed = reqwest::Url::parse(url.expose_secret())
            .map_err(|_| DbError::Misconfigured("DATABASE_URL is not a valid URL.".into()))?;
        let pooled = parsed.port() == Some(TRANSACTION_POOLER_PORT)
            || parsed
                .query_pairs()
                .any(|(k, v)| k == "statement-cache-capacity" && v == "0");
        let options = |connections| {
            AnyPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .before_acquire(|connection, meta| {
                    Box::pin(async move {
                        if meta.idle_for >= PING_AFTER_IDLE {
                            connection.ping().await?;
                        }
                        Ok(true)
                    })
                })
        };
        let pool = match options(CONNECTIONS_MAX).connect(url.expose_secret()).await {
            Ok(pool) => pool,
            // The pool hides why: it waits for a server that refuses connections.
            Err(error @ sqlx::Error::PoolTimedOut) => {
                Self::reach(url).await?;
                return Err(error.into());
            }
            Err(error) => return Err(reason::explained(error, url)),
        };
        // One connection stays open, so that a delivery after a quiet period does not wait for a new one.
        let mut intake = options(INTAKE_CONNECTIONS_MAX).min_connections(1);
        if !pooled {
            intake = intake.after_connect(|connection, _| {
                Box::pin(async move {
                    let limit = format!("set lock_timeout = {INTAKE_LOCK_TIMEOUT_MS}");
                    let done = sqlx::raw_sql(AssertSqlSafe(limit)).execute(connection);
                    done.await.map(drop)
                })
            });
        }
        Ok(Self {
            dialect: Dialect::Postgres,
            pooled,
            write: pool.clone(),
            read: pool,
            intake: intake.connect_lazy(url.expose_secret())?,
            clock,
            changes: broadcast::Sender::new(CHANGES_MAX),
        })
    }

    /// Notifies `wake` when another replica has recorded requests. Runs until it is cancelled.
    ///
    /// Does nothing behind a transaction pooler, where `LISTEN` is impossible. There, and while the
    /// connection is broken, idle workers find work by polling.
    pub async fn forward_wakeups(&self, url: &SecretString, wake: &Notify) {
        if self.pooled {
            return;
        }
        loop {
            let listened: Result<(), sqlx::Error> = async {
                let mut listener = PgListener::connect(url.expose_secret()).await?;
                listener.listen(WAKE_CHANNEL).await?;
                loop {
                    // `None` means that the listener reconnected. Wake the workers in this case too,
                    // because notifications may have been lost.
                    listener.try_recv().await?;
                    wake.notify_waiters();
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::debug!(
                    error = causes(&error),
                    "listener disconnected, reconnecting"
                );
            }
            tokio::time::sleep(LISTEN_RETRY).await;
        }
    }

    /// Applies all pending migrations and checks the app's tables. Replicas may start at the same time.
    ///
    /// # Errors
    /// The database is unavailable, or the app's tables lack a column.
    pub async fn migrate(&self) -> Result<(), DbError> {
        let mut tx = self.transaction().await?;
        if self.dialect == Dialect::Postgres {
            sqlx::query("select pg_advisory_xact_lock($1)")
                .persistent(false)
                .bind(MIGRATION_LOCK)
                .execute(tx.connection())
                .await?;
            // Not `create schema if not exists`, which requires the CREATE privilege on the database
            // even if the schema exists.
            let exists = "select count(*) from pg_namespace where nspname = 'video_ingest'";
            let schemas: i64 = self.query(exists).fetch_one(tx.connection()).await?.get(0);
            if schemas == 0 {
                self.query("create schema video_ingest")
                    .execute(tx.connection())
                    .await?;
            }
        }
        self.query("create table if not exists video_ingest.migrations (version bigint primary key, at bigint not null)")
            .execute(tx.connection())
            .await?;
        let applied: i64 = self
            .query("select coalesce(max(version), 0) from video_ingest.migrations")
            .fetch_one(tx.connection())
            .await?
            .get(0);
        for migration in MIGRATIONS.iter().filter(|m| m.version > applied) {
            sqlx::raw_sql(AssertSqlSafe(self.render(migration.both)))
                .execute(tx.connection())
                .await?;
            let only = match self.dialect {
                Dialect::Sqlite => migration.embedded,
                Dialect::Postgres => migration.postgres,
            };
            sqlx::raw_sql(only).execute(tx.connection()).await?;
            self.query("insert into video_ingest.migrations (version, at) values ($1, {now})")
                .bind(migration.version)
                .execute(tx.connection())
                .await?;
        }
        tx.commit().await?;
        self.check_app_tables().await
    }

    /// Checks that the app's table has all columns that we write. Only logs if our role may not read it.
    async fn check_app_tables(&self) -> Result<(), DbError> {
        let mut unit = self.unit(&self.read).await?;
        let probe = "select conversation_id, metadata, duration_ms, storage_bucket from lesson_assets where false";
        let found = self.query(probe).fetch_optional(unit.connection()).await;
        match found {
            Ok(_) => Ok(unit.commit().await?),
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42703") => {
                Err(DbError::Misconfigured(format!(
                    "The lesson_assets table is missing a column ({}). Run deploy/supabase/columns.sql.",
                    e.message()
                )))
            }
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42P01") => {
                Err(DbError::Misconfigured(
                    "There is no lesson_assets table on the search_path. Check that DATABASE_URL points to the app's database."
                        .into(),
                ))
            }
            Err(e) => match e.into() {
                // The server starts: pushes are recorded, and each video has the failure `row_denied` until
                // the privileges are restored.
                DbError::Denied(cause) => {
                    tracing::error!(
                        cause,
                        "the app's tables cannot be read; run deploy/supabase/role.sql"
                    );
                    Ok(())
                }
                error => Err(error),
            },
        }
    }

    /// Checks that the database responds on the connections that record deliveries.
    pub async fn ping(&self) -> Result<(), DbError> {
        let mut unit = self.unit(&self.intake).await?;
        self.query("select 1").execute(unit.connection()).await?;
        Ok(unit.commit().await?)
    }

    /// The maximum number of concurrent commits of deliveries; 1 for SQLite, which has a single writer.
    pub fn commits_max(&self) -> usize {
        match self.dialect {
            Dialect::Sqlite => 1,
            Dialect::Postgres => INTAKE_CONNECTIONS_MAX as usize,
        }
    }

    /// Subscribes to the changes of state that this process commits from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn announce(&self, video_id: uuid::Uuid, state: VideoState) {
        // Fails only if there are no subscribers.
        let _ = self.changes.send(Change { video_id, state });
    }

    /// Closes all connections after their current operations.
    pub async fn close(&self) {
        self.intake.close().await;
        self.write.close().await;
        self.read.close().await;
    }

    /// A statement in the dialect of this database. `text` may contain [`TOKENS`], `{now}` (the database's
    /// time in milliseconds, plus the clock's offset) and the schema `video_ingest`, which SQLite lacks.
    ///
    /// Leases and schedules use the time of the database, so the clocks of replicas may differ.
    fn query<'q>(&self, text: &str) -> Query<'q, Any, AnyArguments> {
        sqlx::query(AssertSqlSafe(self.render(text))).persistent(!self.pooled)
    }

    /// [`Db::query`] with the ids of a video bound: `$1` is `video_id`, `$2` is `lesson_id`.
    fn query_for<'q>(&self, text: &str, key: VideoKey) -> Query<'q, Any, AnyArguments> {
        self.query(text)
            .bind(key.video_id.to_string())
            .bind(key.lesson_id.to_string())
    }

    /// Executes a single statement that writes. Returns the number of affected rows.
    async fn execute(&self, query: Query<'_, Any, AnyArguments>) -> Result<u64, sqlx::Error> {
        let mut unit = self.unit(&self.write).await?;
        let done = query.execute(unit.connection()).await?;
        unit.commit().await?;
        Ok(done.rows_affected())
    }

    /// Executes a single statement that only reads.
    async fn fetch_all(
        &self,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Vec<AnyRow>, sqlx::Error> {
        let mut unit = self.unit(&self.read).await?;
        let rows = query.fetch_all(unit.connection()).await?;
        unit.commit().await?;
        Ok(rows)
    }

    /// [`Db::fetch_all`] for a statement that returns at most one row.
    async fn fetch_optional(
        &self,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Option<AnyRow>, sqlx::Error> {
        Ok(self.fetch_all(query).await?.pop())
    }

    fn render(&self, text: &str) -> String {
        let now = match self.dialect {
            Dialect::Sqlite => "cast(unixepoch('subsec') * 1000 as integer)",
            Dialect::Postgres => "(extract(epoch from statement_timestamp()) * 1000)::bigint",
        };
        let mut text = text.replace("{now}", &format!("({now} + {})", self.clock.offset_ms()));
        text = text.replace("{distance}", &SCAN_DISTANCE.as_millis().to_string());
        for (token, sqlite, postgres) in TOKENS {
            text = match self.dialect {
                Dialect::Sqlite => text.replace(token, sqlite),
                Dialect::Postgres => text.replace(token, postgres),
            };
        }
        text
    }

    /// A unit of work for statements that need not be atomic together.
    async fn unit(&self, pool: &AnyPool) -> Result<Unit, sqlx::Error> {
        if self.pooled {
            // sqlx prepares and executes a statement in two steps. Behind a transaction pooler, only a
            // transaction guarantees that both reach the same server connection.
            Ok(Unit::Transaction(pool.begin().await?))
        } else {
            Ok(Unit::Statement(pool.acquire().await?))
        }
    }

    /// A unit of work for recording deliveries. It does not wait for a lock for longer than
    /// [`INTAKE_LOCK_TIMEOUT_MS`].
    async fn intake_unit(&self) -> Result<Unit, sqlx::Error> {
        match self.dialect {
            Dialect::Sqlite => self.transaction().await,
            Dialect::Postgres if self.pooled => {
                // One round trip. The setting ends with the transaction, because a transaction pooler
                // gives the connection to other clients.
                let begin = format!("begin; set local lock_timeout = {INTAKE_LOCK_TIMEOUT_MS}");
                let transaction = self.intake.begin_with(AssertSqlSafe(begin)).await?;
                Ok(Unit::Transaction(transaction))
            }
            Dialect::Postgres => Ok(Unit::Statement(self.intake.acquire().await?)),
        }
    }

    /// A unit of work for statements that take effect together.
    async fn transaction(&self) -> Result<Unit, sqlx::Error> {
        let tx = match self.dialect {
            // A deferred transaction that reads first can fail with SQLITE_BUSY when it writes later.
            Dialect::Sqlite => self.write.begin_with("begin immediate").await?,
            Dialect::Postgres => self.write.begin().await?,
        };
        Ok(Unit::Transaction(tx))
    }
}

/// A unit of work: a connection, with or without a transaction. A transaction that is dropped without a
/// commit is rolled back.
enum Unit {
    Statement(PoolConnection<Any>),
    Transaction(Transaction<'static, Any>),
}

impl Unit {
    fn connection(&mut self) -> &mut AnyConnection {
        match self {
            Self::Statement(connection) => connection,
            Self::Transaction(transaction) => transaction,
        }
    }

    async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Statement(_) => Ok(()),
            Self::Transaction(transaction) => transaction.commit().await,
        }
    }
}

/// Reads the column `state`. An unknown state, written by a newer release, counts as failed: the video is
/// listed but not processed.
fn state(row: &AnyRow) -> VideoState {
    VideoState::parse(&row.get::<String, _>("state")).unwrap_or(VideoState::Failed)
}

/// Reads a duration in milliseconds. Negative values, which a clock adjustment can cause, count as zero.
fn duration(row: &AnyRow, column: &str) -> Duration {
    Duration::from_millis(row.get::<i64, _>(column).max(0) as u64)
}
