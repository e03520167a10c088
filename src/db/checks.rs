//! Read-only queries for the checks of the database: connection, schema, columns, constraints and
//! privileges.

use std::io;

use sqlx::Row as _;

use super::{Db, DbError, Dialect, MIGRATIONS, Unit};

/// The maximum number of buckets of pending rows that are checked.
const BUCKETS_MAX: usize = 10;

/// The required columns of `lesson_assets` with their accepted types. Source: the app's schema.
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

/// The columns that are written when a video becomes ready or fails.
const UPDATED: &str = "'storage_path', 'mime_type', 'duration_ms', 'conversation_id', 'metadata'";

/// The columns that are written when a missing row is inserted.
const INSERTED: &str = "'id', 'lesson_id', 'user_id', 'kind', 'storage_bucket', 'mime_type'";

/// The version of our own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version of the newest applied migration; 0 if there is none.
    pub applied: i64,
    /// The version of the newest migration of this release.
    pub known: i64,
}

/// The schema `video_ingest` in the app's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// It exists and our role may use it.
    Usable,
    /// It does not exist. Our role may create it, which happens at the first start.
    Creatable,
    /// It does not exist, and our role may not create it.
    NotCreatable,
    /// It exists, but our role may not use it or does not own all of its tables.
    Foreign,
}

/// The app's database as seen by our role. All lists of problems are empty if there are none.
#[derive(Clone, Debug)]
pub struct AppFacts {
    /// The kind of connection, for people.
    pub connection: &'static str,
    /// The name of our role.
    pub user: String,
    /// The database's clock, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Whether there is no statement timeout.
    pub endless_statements: bool,
    /// The state of our schema.
    pub schema: Schema,
    /// Roles of Supabase's API that may use our schema.
    pub exposed_to: Vec<String>,
    /// Whether `lesson_assets` is on the `search_path`.
    pub has_table: bool,
    /// Columns of `lesson_assets` that are missing or have another type; empty without the table.
    pub columns: Vec<String>,
    /// Constraints of `lesson_assets` that our writes would violate.
    pub constraints: Vec<String>,
    /// Whether Supabase Realtime publishes updates of `lesson_assets`.
    pub published: bool,
    /// Privileges that our role lacks.
    pub missing_rights: Vec<String>,
    /// Privileges of our role that are not required.
    pub extra_rights: Vec<String>,
    /// Whether row-level security is off on `lesson_assets`, so that our role can read and change all of its
    /// rows. `false` for a role to which row-level security does not apply; see `extra_rights`.
    pub unprotected: bool,
    /// Commands that row-level security rejects for all rows: `select`, `update`.
    pub blocked: Vec<String>,
    /// Whether this database contains the tables of Supabase Storage, but no policy that lets users read the
    /// bucket's objects.
    pub objects_hidden: bool,
}

impl Db {
    /// The version of our own tables. Unlike [`Db::migrate`], writes nothing.
    pub async fn migrated(&self) -> Result<Migrated, DbError> {
        let known = MIGRATIONS.last().map_or(0, |newest| newest.version);
        let exists = match self.dialect {
            Dialect::Sqlite => "select count(*) from sqlite_master where name = 'migrations'",
            Dialect::Postgres => {
                "select count(*) from pg_tables where schemaname = 'video_ingest' and tablename = 'migrations'"
            }
        };
        let mut unit = self.unit(&self.read).await?;
        // Not `self.query`, which would remove the schema's name from the statement.
        let exists = sqlx::query(exists).persistent(!self.pooled);
        let tables: i64 = exists.fetch_one(unit.connection()).await?.get(0);
        let applied = if tables == 0 {
            0
        } else {
            let newest = "select coalesce(max(version), 0) from video_ingest.migrations";
            let row = self.query(newest).fetch_one(unit.connection()).await?;
            row.get(0)
        };
        unit.commit().await?;
        Ok(Migrated { applied, known })
    }

    /// Examines the app's database. `creates_rows`: whether missing rows are inserted. Postgres only: an
    /// embedded database has no roles and no other users.
    pub async fn app_facts(&self, creates_rows: bool, bucket: &str) -> Result<AppFacts, DbError> {
        let mut unit = self.transaction().await?;
        let role = "select current_user::text, rolsuper, rolbypassrls,
                current_setting('statement_timeout') = '0',
                (extract(epoch from clock_timestamp()) * 1000)::bigint
            from pg_roles where rolname = current_user";
        let role = self.query(role).fetch_one(unit.connection()).await?;
        let columns = self.wrong_columns(&mut unit).await?;
        let mut facts = AppFacts {
            connection: if self.pooled {
                "through a transaction pooler"
            } else {
                "directly or through a session pooler"
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
            unprotected: false,
            blocked: Vec::new(),
            objects_hidden: self.objects_hidden(&mut unit, bucket).await?,
        };
        for (has, what) in [
            (1, "it is a superuser"),
            (2, "it bypasses row-level security"),
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
                having count(*) > 0
                union all
                select 'set storage_path to the objects of other users'
                where has_column_privilege(to_regclass('lesson_assets'), 'storage_path', 'update')
                  and not exists (
                    select from pg_trigger join pg_proc on pg_proc.oid = tgfoid
                    where tgrelid = to_regclass('lesson_assets') and tgenabled in ('O', 'A')
                      and proname = 'refuse_storage_path')",
            )
            .await?,
        );
        let unprotected = "select count(*) from pg_class join pg_roles on rolname = current_user
            where pg_class.oid = to_regclass('lesson_assets') and not relrowsecurity
              and not rolsuper and not rolbypassrls and not pg_has_role(relowner, 'usage')";
        let row = self.query(unprotected).fetch_one(unit.connection()).await?;
        facts.unprotected = row.get::<i64, _>(0) > 0;
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

    /// See [`AppFacts::objects_hidden`]. A policy that names no bucket applies to all buckets.
    async fn objects_hidden(&self, unit: &mut Unit, bucket: &str) -> Result<bool, DbError> {
        let statement = "select exists (
                select from pg_class as c join pg_namespace as n on n.oid = relnamespace
                where nspname = 'storage' and relname = 'objects' and relrowsecurity)
            and not exists (
                select from pg_policies
                where schemaname = 'storage' and tablename = 'objects' and permissive = 'PERMISSIVE'
                  and cmd in ('SELECT', 'ALL') and roles && array['authenticated', 'public']::name[]
                  and (position('bucket_id' in coalesce(qual, '')) = 0 or position($1 in qual) > 0))";
        let query = self.query(statement).bind(format!("'{bucket}'"));
        Ok(query.fetch_one(unit.connection()).await?.get(0))
    }

    /// The buckets of pending rows.
    pub async fn pending_buckets(&self) -> Result<Vec<String>, DbError> {
        let statement = format!(
            "select distinct storage_bucket from lesson_assets
            where kind = 'video' and storage_path is null order by 1 limit {BUCKETS_MAX}"
        );
        let rows = self.fetch_all(self.query(&statement)).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
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

    /// The constraints that our writes would violate. `creates_rows`: whether missing rows are inserted.
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
    /// The reason for people, without the final period. Contains nothing of DATABASE_URL.
    pub fn reason(&self) -> String {
        let error = match self {
            Self::Misconfigured(reason) => return reason.trim_end_matches('.').to_owned(),
            Self::Denied(cause) => return format!("it returned an error: {cause}"),
            Self::Sqlx(error) => error,
        };
        let reason = match error {
            sqlx::Error::Database(error) => match error.code().as_deref() {
                // Postgres error codes, then SQLite result codes (NOTADB, CORRUPT).
                Some("28P01" | "28000") => "the user name or password is incorrect",
                Some("3D000") => "the database does not exist",
                Some("53300") => "it has no available connections",
                Some("26" | "11") => "the file is not an SQLite database or is corrupt",
                _ => return format!("it returned an error: {}", error.message()),
            },
            // What the TLS handshake and the reading of the CA file report.
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                "its TLS certificate could not be verified; check sslrootcert"
            }
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                "its Unix socket, or the file in sslrootcert, does not exist"
            }
            sqlx::Error::Io(_) => "the connection to its host and port failed",
            sqlx::Error::Tls(_) => "the TLS connection failed",
            sqlx::Error::PoolTimedOut => "it did not respond in time",
            _ => "it returned an invalid response",
        };
        reason.to_owned()
    }
}
