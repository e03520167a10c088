//! What `doctor` asks the database about itself and about us. Nothing here writes.

use std::net::IpAddr;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{Db, DbError, Dialect, MIGRATIONS, Unit};

/// Buckets that pending rows name and that are looked at.
const BUCKETS_MAX: usize = 10;

/// What has to be there of `lesson_assets`, with the types that will do.
/// Source: the app's schema.
const COLUMNS: &[(&str, &[&str])] = &[
    ("id", &["uuid"]),
    ("lesson_id", &["uuid"]),
    ("user_id", &["uuid"]),
    ("kind", &["text", "character varying"]),
    ("storage_bucket", &["text", "character varying"]),
    ("storage_path", &["text", "character varying"]),
    ("mime_type", &["text", "character varying"]),
    ("duration_ms", &["integer", "bigint"]),
    ("created_at", &["timestamp with time zone"]),
    ("conversation_id", &["text", "character varying"]),
    ("metadata", &["jsonb"]),
];

/// What is written when a video is ready or has failed.
const UPDATED: &str = "'storage_path', 'mime_type', 'duration_ms', 'conversation_id', 'metadata'";

/// What is written when a row is made for a video that has none.
const INSERTED: &str = "'id', 'lesson_id', 'user_id', 'kind', 'storage_bucket', 'mime_type'";

/// How far our own tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The newest migration that was applied; 0 before the first one.
    pub applied: i64,
    /// The newest that this program knows.
    pub known: i64,
}

/// Our schema in the app's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// It is there and we may use it.
    Usable,
    /// It is made at the first start.
    Creatable,
    /// It is not there, and we may not make it.
    NotCreatable,
    /// It is there, but it or a table in it is somebody else's.
    Foreign,
}

/// What protects the way to the database, by its URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It does not leave this machine.
    Local,
    /// Only a server with a certificate of the right authority is talked to.
    Verified,
    /// It is encrypted, whoever answers.
    Unverified,
    /// It is not encrypted, or only if the server happens to offer it.
    Optional,
}

impl Tls {
    /// Of a Postgres URL; `None` if it is none.
    pub fn of(url: &SecretString) -> Option<Self> {
        let options: PgConnectOptions = url.expose_secret().parse().ok()?;
        let host = options.get_host();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_local = options.get_socket().is_some()
            || host == "localhost"
            || host.starts_with('/')
            || address.is_ok_and(|address| address.is_loopback());
        Some(match options.get_ssl_mode() {
            _ if is_local => Self::Local,
            PgSslMode::VerifyCa | PgSslMode::VerifyFull => Self::Verified,
            // Also with `sslrootcert`, which in psql would make it `verify-ca`.
            PgSslMode::Require => Self::Unverified,
            PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => Self::Optional,
        })
    }
}

/// The app's database as our role sees it. Every list is empty when all is well.
#[derive(Clone, Debug)]
pub struct AppFacts {
    /// How we are connected, in words.
    pub connection: &'static str,
    /// The role.
    pub user: String,
    /// The database's clock, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Whether a statement may take for ever.
    pub endless_statements: bool,
    /// Ours.
    pub schema: Schema,
    /// Roles of Supabase's API that reach our schema.
    pub exposed_to: Vec<String>,
    /// Whether `lesson_assets` is on the `search_path`.
    pub has_table: bool,
    /// Columns of `lesson_assets` that are missing or of another type; empty without the table.
    pub columns: Vec<String>,
    /// Constraints of `lesson_assets` that our writes would break.
    pub constraints: Vec<String>,
    /// Whether Supabase Realtime sends updates of `lesson_assets`.
    pub published: bool,
    /// Rights that our writes need.
    pub missing_rights: Vec<String>,
    /// Rights that nothing of ours needs.
    pub extra_rights: Vec<String>,
    /// What row-level security lets us do with no row at all: `select`, `update`.
    pub blocked: Vec<String>,
}

impl Db {
    /// How far our own tables are, without touching them.
    pub async fn migrated(&self) -> Result<Migrated, DbError> {
        let known = MIGRATIONS.last().map_or(0, |newest| newest.version);
        let exists = match self.dialect {
            Dialect::Sqlite => "select count(*) from sqlite_master where name = 'migrations'",
            Dialect::Postgres => {
                "select count(*) from pg_tables where schemaname = 'video_ingest' and tablename = 'migrations'"
            }
        };
        let mut unit = self.unit(&self.read).await?;
        // Not through `query`, which would take the schema's name out of it.
        let exists = sqlx::query(exists).persistent(!self.pooled);
        let tables: i64 = exists.fetch_one(unit.connection()).await?.get(0);
        let applied = match tables {
            0 => 0,
            _ => {
                let newest = "select coalesce(max(version), 0) from video_ingest.migrations";
                let row = self.query(newest).fetch_one(unit.connection()).await?;
                row.get(0)
            }
        };
        unit.commit().await?;
        Ok(Migrated { applied, known })
    }

    /// Looks at the app's database; `creates_rows`: whether rows are to be made for videos without one.
    /// For Postgres: an embedded database has no roles, and nobody else in it.
    pub async fn app_facts(&self, creates_rows: bool) -> Result<AppFacts, DbError> {
        let mut unit = self.transaction().await?;
        let role = "select current_user::text, rolsuper, rolbypassrls,
                current_setting('statement_timeout') = '0',
                (extract(epoch from clock_timestamp()) * 1000)::bigint
            from pg_roles where rolname = current_user";
        let role = self.query(role).fetch_one(unit.connection()).await?;
        let columns = self.wrong_columns(&mut unit).await?;
        let mut facts = AppFacts {
            connection: match self.pooled {
                true => "through a transaction pooler",
                false => "directly or through a session pooler",
            },
            user: role.get(0),
            endless_statements: role.get(3),
            now_ms: role.get(4),
            schema: self.schema(&mut unit).await?,
            exposed_to: Vec::new(),
            has_table: columns.is_some(),
            columns: columns.unwrap_or_default(),
            constraints: self.constraints(&mut unit, creates_rows).await?,
            published: false,
            missing_rights: Vec::new(),
            extra_rights: Vec::new(),
            blocked: Vec::new(),
        };
        for (has, what) in [
            (1, "it is a superuser"),
            (2, "it passes row-level security"),
        ] {
            if role.get(has) {
                facts.extra_rights.push(what.to_owned());
            }
        }
        facts.exposed_to = self
            .texts(
                &mut unit,
                "select rolname::text from pg_roles, pg_namespace
                where rolname in ('anon', 'authenticated', 'service_role') and nspname = 'video_ingest'
                  and has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'usage')
                order by 1",
            )
            .await?;
        let published =
            "select count(*) from pg_publication join pg_publication_tables using (pubname)
            join pg_namespace on nspname = schemaname
            join pg_class on relnamespace = pg_namespace.oid and relname = tablename
            where pubname = 'supabase_realtime' and pubupdate
              and pg_class.oid = to_regclass('lesson_assets')";
        let row = self.query(published).fetch_one(unit.connection()).await?;
        facts.published = row.get::<i64, _>(0) > 0;
        facts.missing_rights = self.missing_rights(&mut unit, creates_rows).await?;
        facts.extra_rights.extend(
            self.texts(
                &mut unit,
                "select right_ || ' rows of lesson_assets' from (values ('delete'), ('truncate')) as rights (right_)
                where has_table_privilege(to_regclass('lesson_assets'), right_)
                union all
                select 'change ' || string_agg(attname, ', ') || ' of lesson_assets' from pg_attribute
                where attrelid = to_regclass('lesson_assets') and attname in ('id', 'lesson_id', 'user_id')
                  and has_column_privilege(attrelid, attnum, 'update')
                having count(*) > 0",
            )
            .await?,
        );
        facts.blocked = self
            .texts(
                &mut unit,
                "select command from (values ('select', 'r'), ('update', 'w')) as commands (command, letter)
                where row_security_active(to_regclass('lesson_assets')) and not exists (
                    select from pg_policy
                    where polrelid = to_regclass('lesson_assets') and polpermissive
                      and polcmd in ('*', letter::\"char\")
                      and (coalesce(pg_get_expr(polqual, polrelid), 'true') = 'true' or exists (
                          select from unnest(polroles) as role (id)
                          where id <> 0 and pg_has_role(id, 'usage'))))",
            )
            .await?;
        unit.commit().await?;
        Ok(facts)
    }

    /// Where pending rows want their videos.
    pub async fn pending_buckets(&self) -> Result<Vec<String>, DbError> {
        let statement = format!(
            "select distinct storage_bucket from lesson_assets
            where kind = 'video' and storage_path is null order by 1 limit {BUCKETS_MAX}"
        );
        let mut unit = self.unit(&self.read).await?;
        let buckets = self.texts(&mut unit, &statement).await?;
        unit.commit().await?;
        Ok(buckets)
    }

    async fn schema(&self, unit: &mut Unit) -> Result<Schema, DbError> {
        let statement = "select
            (select count(*) from pg_namespace where nspname = 'video_ingest'),
            has_database_privilege(current_database(), 'create'),
            coalesce((select has_schema_privilege(oid, 'usage') and has_schema_privilege(oid, 'create')
                from pg_namespace where nspname = 'video_ingest'), false),
            (select count(*) from pg_tables
             where schemaname = 'video_ingest' and not pg_has_role(tableowner, 'usage'))";
        let row = self.query(statement).fetch_one(unit.connection()).await?;
        let (exists, usable, foreign) = (row.get::<i64, _>(0), row.get(2), row.get::<i64, _>(3));
        Ok(match (exists, usable, foreign) {
            (0, ..) if row.get(1) => Schema::Creatable,
            (0, ..) => Schema::NotCreatable,
            (_, true, 0) => Schema::Usable,
            _ => Schema::Foreign,
        })
    }

    /// `None` without the table.
    async fn wrong_columns(&self, unit: &mut Unit) -> Result<Option<Vec<String>>, DbError> {
        let statement = "select attname::text, format_type(atttypid, null) from pg_attribute
            where attrelid = to_regclass('lesson_assets') and attnum > 0 and not attisdropped";
        let rows = self.query(statement).fetch_all(unit.connection()).await?;
        let found: Vec<(String, String)> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        if found.is_empty() {
            return Ok(None);
        }
        let wrong =
            |(name, types): &(&str, &[&str])| match found.iter().find(|(found, _)| found == name) {
                None => Some(format!("{name} is missing")),
                Some((_, kind)) if !types.contains(&kind.as_str()) => {
                    Some(format!("{name} is {kind} instead of {}", types[0]))
                }
                Some(_) => None,
            };
        Ok(Some(COLUMNS.iter().filter_map(wrong).collect()))
    }

    /// Which constraints our writes would break; `creates_rows`: rows are inserted, too.
    async fn constraints(
        &self,
        unit: &mut Unit,
        creates_rows: bool,
    ) -> Result<Vec<String>, DbError> {
        let statement = format!(
            "select 'id is neither a primary key nor unique' where not exists (
                select from pg_index join pg_attribute on attrelid = indrelid and attnum = indkey[0]
                where indrelid = to_regclass('lesson_assets') and indisunique and indnkeyatts = 1
                  and indpred is null and attname = 'id')
            union all
            select 'storage_path must not be \"not null\": it is null while a video is generated'
            from pg_attribute
            where attrelid = to_regclass('lesson_assets') and attname = 'storage_path' and attnotnull
            union all
            select conname || ' allows no ' || needed
            from pg_constraint
            join pg_attribute on attrelid = conrelid and attnum = any (conkey)
            join (values ('kind', 'video', 'video'), ('mime_type', 'video/mp4', 'video'), ('mime_type', 'error: …', 'error'))
                as rule (of, needed, mentioned) on of = attname
            where conrelid = to_regclass('lesson_assets') and contype = 'c'
              and position(mentioned in pg_get_constraintdef(pg_constraint.oid)) = 0
            union all
            select attname || ' has no default, and rows are made without it' from pg_attribute
            where {creates_rows} and attrelid = to_regclass('lesson_assets') and attnum > 0
              and not attisdropped and attnotnull and not atthasdef and attidentity = ''
              and attname not in ({INSERTED})"
        );
        self.texts(unit, &statement).await
    }

    async fn missing_rights(
        &self,
        unit: &mut Unit,
        creates_rows: bool,
    ) -> Result<Vec<String>, DbError> {
        let all: Vec<String> = COLUMNS
            .iter()
            .map(|(name, _)| format!("'{name}'"))
            .collect();
        let all = all.join(", ");
        let mut needed = vec![
            ("lesson_assets", "select", all.as_str()),
            ("lesson_assets", "update", UPDATED),
        ];
        if creates_rows {
            needed.push(("lesson_assets", "insert", INSERTED));
            needed.push(("lessons", "select", "'id', 'user_id'"));
        }
        let mut missing = Vec::new();
        for (table, right, columns) in needed {
            let statement = format!(
                "select '{right} (' || string_agg(attname, ', ' order by attnum) || ') on {table}'
                from pg_attribute
                where attrelid = to_regclass('{table}') and attname in ({columns})
                  and not has_column_privilege(attrelid, attnum, '{right}')
                having count(*) > 0"
            );
            missing.extend(self.texts(unit, &statement).await?);
        }
        Ok(missing)
    }

    async fn texts(&self, unit: &mut Unit, statement: &str) -> Result<Vec<String>, DbError> {
        let rows = self.query(statement).fetch_all(unit.connection()).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

impl DbError {
    /// Why a connection cannot be made, for a person, without what the setting holds.
    pub fn reason(&self) -> String {
        let error = match self {
            Self::Unfit(reason) => return reason.clone(),
            Self::Sqlx(error) => error,
        };
        let reason = match error {
            sqlx::Error::Database(error) => match error.code().as_deref() {
                Some("28P01" | "28000") => "user or password is wrong",
                Some("3D000") => "there is no database of that name",
                Some("53300") => "it has no connection left",
                Some("26" | "11") => "the file is no SQLite database, or is damaged",
                _ => return format!("it refuses: {}", error.message()),
            },
            sqlx::Error::Io(_) => "nothing answers at that host and port",
            sqlx::Error::Tls(_) => "no TLS connection can be made",
            sqlx::Error::PoolTimedOut => "it does not answer in time",
            _ => "it does not answer as a database does",
        };
        reason.to_owned()
    }
}
