//! Everything we keep, and the only room with SQL in it.
//!
//! *What do we store and why?* Of a delivery: that it came and what it asked for, so that a person
//! can see what became of it. Of a video: what was asked, what was observed and stored, and when to
//! look again; the row is the job, there is no second queue. The app's own table `lesson_assets` is
//! touched by the named statements of [`rows`] and [`videos::finish`](Db::finish) only.
//!
//! One set of statements serves SQLite and Postgres: ids and JSON as text, times as milliseconds
//! since the epoch, flags as 0 and 1. What differs is spelled by a few tokens, see [`Db::query`].

mod deliveries;
mod doctor;
mod rows;
mod stats;
mod sweeps;
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
use crate::domain::failure::causes;
use crate::domain::state::VideoState;

pub use deliveries::{Delivery, Scan};
pub use doctor::{AppFacts, Migrated, Schema, Tls};
pub use rows::{Row, RowOwner};
pub use stats::{Day, Hour, Overview};
pub use sweeps::{ReadyObject, StoredStatus};
pub use videos::{Claim, Lost};
pub use views::{DeliveryView, EventView, Filter, Page, VideoDetail, VideoView};

/// How long work may wait for a connection. Intake waits less: its own limit ends it, see
/// [`crate::pipeline::intake`].
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to Postgres, and readers of SQLite (which has one writer).
const POOL_CONNECTIONS_MAX: u32 = 8;

/// Commits of deliveries under way at once: half of the connections, so that work goes on meanwhile.
const COMMITS_MAX: usize = POOL_CONNECTIONS_MAX as usize / 2;

/// A connection that was idle for longer is tried before it is used again.
const TRUST_IDLE_FOR: Duration = Duration::from_secs(1);

/// The port of Supabase's transaction pooler, where a connection is ours for one transaction only.
/// Source: Supabase's guide "Connect to your database".
const TRANSACTION_POOLER_PORT: u16 = 6543;

/// Where the other replicas are told that something was recorded.
const WAKE_CHANNEL: &str = "video_ingest";

/// After the connection that listens for wake-ups broke.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Any key, as long as every replica uses the same: replicas that start together migrate in turn.
const MIGRATION_LOCK: i64 = 0x7669_6465_6f69_6e67;

/// Changes that a listener may be behind before it has to read everything anew.
const CHANGES_MAX: usize = 1024;

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    both: include_str!("migrations/0001_init.sql"),
    embedded: include_str!("migrations/0001_embedded.sql"),
    postgres: include_str!("migrations/0001_postgres.sql"),
}];

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

/// The database did not do what was asked; nothing of the statement or transaction took effect,
/// unless the connection broke while it committed. Worth trying again.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No answer, or a refusal.
    #[error("the database did not answer as it should")]
    Sqlx(#[from] sqlx::Error),
    /// The database is not as we need it; the text says what to do.
    #[error("{0}")]
    Unfit(String),
}

impl From<DbError> for crate::domain::failure::Failure {
    fn from(error: DbError) -> Self {
        tracing::warn!(
            error = causes(&error),
            "the database did not do what a video needs"
        );
        Self::new(
            crate::domain::failure::Code::DatabaseUnavailable,
            "our database did not answer; it will be tried again",
        )
    }
}

/// A change of a video's state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Which video.
    pub video_id: uuid::Uuid,
    /// What it is now.
    pub state: VideoState,
}

/// The database, through its connections.
#[derive(Clone, Debug)]
pub struct Db {
    dialect: Dialect,
    /// Behind a transaction pooler: no prepared statement and no session outlives a transaction.
    pooled: bool,
    write: AnyPool,
    read: AnyPool,
    clock: Clock,
    changes: broadcast::Sender<Change>,
}

impl Db {
    /// Where the embedded database is.
    pub fn embedded_file(data_dir: &Path) -> PathBuf {
        data_dir.join("video-ingest.sqlite")
    }

    /// Opens (and creates) the embedded database in `data_dir`.
    pub async fn sqlite(data_dir: &Path, clock: Clock) -> Result<Self, DbError> {
        sqlx::any::install_default_drivers();
        let path = Self::embedded_file(data_dir);
        let url = reqwest::Url::from_file_path(std::path::absolute(&path).unwrap_or(path))
            .map_err(|()| DbError::Unfit("DATA_DIR is not a path that SQLite can open".into()))?;
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
                            // Its rollback may be under way: a ping comes after it.
                            connection.ping().await?;
                        }
                        // SQLite rolls back by itself when the disk is full, the driver's own rollback
                        // fails after that, and the connection would never begin anything again.
                        Ok(!connection.is_in_transaction())
                    })
                })
        };
        Ok(Self {
            dialect: Dialect::Sqlite,
            pooled: false,
            write: options(1).connect(&url).await?,
            read: options(POOL_CONNECTIONS_MAX).connect_lazy(&url)?,
            clock,
            changes: broadcast::Sender::new(CHANGES_MAX),
        })
    }

    /// Connects to Postgres, directly, through a session pooler or through a transaction pooler.
    pub async fn postgres(url: &SecretString, clock: Clock) -> Result<Self, DbError> {
        sqlx::any::install_default_drivers();
        let parsed = reqwest::Url::parse(url.expose_secret())
            .map_err(|_| DbError::Unfit("DATABASE_URL is not a URL".into()))?;
        let pooled = parsed.port() == Some(TRANSACTION_POOLER_PORT)
            || parsed
                .query_pairs()
                .any(|(k, v)| k == "statement-cache-capacity" && v == "0");
        let pool = AnyPoolOptions::new()
            .max_connections(POOL_CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    match meta.idle_for < TRUST_IDLE_FOR {
                        true => Ok(true),
                        false => connection.ping().await.map(|()| true),
                    }
                })
            })
            .connect(url.expose_secret())
            .await?;
        Ok(Self {
            dialect: Dialect::Postgres,
            pooled,
            write: pool.clone(),
            read: pool,
            clock,
            changes: broadcast::Sender::new(CHANGES_MAX),
        })
    }

    /// Passes on, for ever, that another process recorded something. Only where a connection is ours
    /// for longer than a transaction; elsewhere, and while it is broken, the workers' poll is enough.
    pub async fn forward_wakeups(&self, url: &SecretString, wake: &Notify) {
        if self.pooled {
            return;
        }
        loop {
            let listened: Result<(), sqlx::Error> = async {
                let mut listener = PgListener::connect(url.expose_secret()).await?;
                listener.listen(WAKE_CHANNEL).await?;
                loop {
                    // `None`: reconnected, something may have been missed meanwhile.
                    listener.try_recv().await?;
                    wake.notify_waiters();
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::debug!(error = causes(&error), "not listening for wake-ups");
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    /// Brings our own tables up to this program's version. Safe when replicas start together.
    pub async fn migrate(&self) -> Result<(), DbError> {
        let mut tx = self.transaction().await?;
        if self.dialect == Dialect::Postgres {
            sqlx::query("select pg_advisory_xact_lock($1)")
                .persistent(false)
                .bind(MIGRATION_LOCK)
                .execute(tx.connection())
                .await?;
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
            sqlx::raw_sql(AssertSqlSafe(self.spell(migration.both)))
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

    /// Refuses an app database that lacks what we write, naming the SQL that adds it.
    async fn check_app_tables(&self) -> Result<(), DbError> {
        let mut unit = self.unit(&self.read).await?;
        let probe = "select conversation_id, metadata, duration_ms, storage_bucket from lesson_assets where false";
        let found = self.query(probe).fetch_optional(unit.connection()).await;
        match found {
            Ok(_) => Ok(unit.commit().await?),
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42703") => {
                Err(DbError::Unfit(format!(
                    "lesson_assets lacks a column ({}): run deploy/supabase/columns.sql once",
                    e.message()
                )))
            }
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42P01") => {
                Err(DbError::Unfit(
                    "there is no table lesson_assets on this connection's search_path: \
                     is DATABASE_URL the app's database?"
                        .into(),
                ))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the database answers at all.
    pub async fn ping(&self) -> Result<(), DbError> {
        let mut unit = self.unit(&self.write).await?;
        self.query("select 1").execute(unit.connection()).await?;
        Ok(unit.commit().await?)
    }

    /// How many deliveries' commits can be under way at once; SQLite has one writer.
    pub fn commits_max(&self) -> usize {
        match self.dialect {
            Dialect::Sqlite => 1,
            Dialect::Postgres => COMMITS_MAX,
        }
    }

    /// Every change of a video's state that this process commits from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn announce(&self, video_id: uuid::Uuid, state: VideoState) {
        // That nobody listens is fine.
        let _ = self.changes.send(Change { video_id, state });
    }

    /// Closes the connections, after what they are doing.
    pub async fn close(&self) {
        self.write.close().await;
        self.read.close().await;
    }

    /// A statement of ours, spelled for this database.
    ///
    /// | token | SQLite | Postgres |
    /// |---|---|---|
    /// | `{now}` | the database's time in ms, plus the clock's offset | the same |
    /// | `{each}(x)` | `json_each(x)` | `jsonb_array_elements(x)` |
    /// | `{jsonb}` `{uuid}` `{text}` | nothing | the cast |
    /// | `{recorded}` | the table of deliveries | what recording them returned: no search |
    /// | `{skip_locked}` | nothing: there is one writer | `for update skip locked` |
    /// | `video_ingest.` | nothing | the schema |
    fn query<'q>(&self, text: &str) -> Query<'q, Any, AnyArguments> {
        sqlx::query(AssertSqlSafe(self.spell(text))).persistent(!self.pooled)
    }

    fn spell(&self, text: &str) -> String {
        let offset = self.clock.offset_ms();
        match self.dialect {
            Dialect::Sqlite => text
                .replace(
                    "{now}",
                    &format!("(cast(unixepoch('subsec') * 1000 as integer) + {offset})"),
                )
                .replace("{each}", "json_each")
                .replace("{jsonb}", "")
                .replace("{uuid}", "")
                .replace("{text}", "")
                .replace("{recorded}", "deliveries")
                .replace("{skip_locked}", "")
                .replace("video_ingest.", ""),
            Dialect::Postgres => text
                .replace(
                    "{now}",
                    &format!(
                        "((extract(epoch from statement_timestamp()) * 1000)::bigint + {offset})"
                    ),
                )
                .replace("{each}", "jsonb_array_elements")
                .replace("{jsonb}", "::jsonb")
                .replace("{uuid}", "::uuid")
                .replace("{text}", "::text")
                .replace("{recorded}", "recorded")
                .replace("{skip_locked}", "for update skip locked"),
        }
    }

    /// For one statement: its own commit, except behind a transaction pooler, where a statement is
    /// prepared and executed in two steps that only a transaction keeps on one connection.
    async fn unit(&self, pool: &AnyPool) -> Result<Unit, sqlx::Error> {
        match self.pooled {
            true => Ok(Unit::Transaction(pool.begin().await?)),
            false => Ok(Unit::Statement(pool.acquire().await?)),
        }
    }

    /// For several statements that take effect together.
    async fn transaction(&self) -> Result<Unit, sqlx::Error> {
        let tx = match self.dialect {
            Dialect::Sqlite => self.write.begin_with("begin immediate").await?,
            Dialect::Postgres => self.write.begin().await?,
        };
        Ok(Unit::Transaction(tx))
    }
}

/// A connection, with or without a transaction around what it is used for. Dropped, it rolls back.
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

/// The column `state`, which only we write. What a newer version wrote counts as failed: it is shown and
/// not worked on.
fn state(row: &AnyRow) -> VideoState {
    VideoState::parse(&row.get::<String, _>("state")).unwrap_or(VideoState::Failed)
}
