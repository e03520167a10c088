//! Read-only queries for the checks of the database: connection, schema, columns, constraints and
//! privileges.

use sqlx::Row as _;
use sqlx::any::AnyRow;

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

/// Whether Supabase Realtime tells the app about changes of `lesson_assets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The publication contains the table and its updates.
    Updates,
    /// The publication contains the table, but updates are not among its operations.
    NoUpdates,
    /// The publication, or the table in it, does not exist.
    Not,
}

/// A policy of the app on `lesson_assets` that applies to our role although it is meant for the app's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignPolicy {
    /// Its name, quoted for SQL if necessary.
    pub name: String,
    /// What it does to our role.
    pub effect: PolicyEffect,
}

/// See [`ForeignPolicy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyEffect {
    /// It reads this table, to which our role has no access, so every statement fails.
    Reads(String),
    /// It is restrictive and depends on the user of the API's token, which our role does not have, so it hides
    /// all rows.
    HidesAll,
    /// It is restrictive, so it may hide rows.
    MayHide,
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
    pub published: Published,
    /// Whether there is no index of the pending rows of `lesson_assets`.
    pub lacks_index: bool,
    /// Privileges that our role lacks.
    pub missing_rights: Vec<String>,
    /// Privileges of our role that are not required.
    pub extra_rights: Vec<String>,
    /// Whether row-level security is off on `lesson_assets`, so that our role can read and change all of its
    /// rows. `false` for a role to which row-level security does not apply; see `extra_rights`.
    pub unprotected: bool,
    /// Commands that row-level security rejects for all rows: `select`, `update`.
    pub blocked: Vec<String>,
    /// Policies of the app that apply to our role.
    pub foreign_policies: Vec<ForeignPolicy>,
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
            published: Published::Not,
            lacks_index: false,
            missing_rights: Vec::new(),
            extra_rights: Vec::new(),
            unprotected: false,
            blocked: Vec::new(),
            foreign_policies: Vec::new(),
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
        facts.published = self.published(&mut unit).await?;
        facts.lacks_index = self.lacks_index(&mut unit).await?;
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
        facts.foreign_policies = self.foreign_policies(&mut unit).await?;
        unit.commit().await?;
        Ok(facts)
    }

    async fn published(&self, unit: &mut Unit) -> Result<Published, DbError> {
        let statement =
            "select pubupdate from pg_publication join pg_publication_tables using (pubname)
            join pg_namespace on nspname = schemaname
            join pg_class on relnamespace = pg_namespace.oid and relname = tablename
            where pubname = 'supabase_realtime' and pg_class.oid = to_regclass('lesson_assets')";
        let row = self.query(statement).fetch_optional(unit.connection());
        Ok(match row.await?.map(|row| row.get::<bool, _>(0)) {
            None => Published::Not,
            Some(true) => Published::Updates,
            Some(false) => Published::NoUpdates,
        })
    }

    /// See [`AppFacts::lacks_index`]. An index of another name than that of `deploy/supabase/indexes.sql` will do.
    async fn lacks_index(&self, unit: &mut Unit) -> Result<bool, DbError> {
        let statement = "select count(*) from pg_index
            where indrelid = to_regclass('lesson_assets') and indisvalid
              and position('storage_path IS NULL' in pg_get_expr(indpred, indrelid)) > 0";
        let row = self.query(statement).fetch_one(unit.connection()).await?;
        Ok(row.get::<i64, _>(0) == 0)
    }

    /// See [`ForeignPolicy`]. The dependencies of a policy are the columns that it reads.
    async fn foreign_policies(&self, unit: &mut Unit) -> Result<Vec<ForeignPolicy>, DbError> {
        let statement = "with policies as (
                select oid, polpermissive, quote_ident(polname) as name,
                    concat(pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) as expression
                from pg_policy
                where row_security_active(to_regclass('lesson_assets'))
                  and polrelid = to_regclass('lesson_assets') and polcmd in ('*', 'r', 'w')
                  and exists (
                      select from unnest(polroles) as role (id)
                      where case when id = 0 then true else pg_has_role(id, 'usage') end))
            select distinct name, refobjid::regclass::text, null::boolean
            from policies join pg_depend on objid = policies.oid and classid = 'pg_policy'::regclass
            join pg_class on pg_class.oid = refobjid and refclassid = 'pg_class'::regclass
            where refobjid <> to_regclass('lesson_assets')
              and not (has_schema_privilege(relnamespace, 'usage') and case
                  when refobjsubid > 0 then has_column_privilege(refobjid, refobjsubid::smallint, 'select')
                  else has_any_column_privilege(refobjid, 'select') end)
            union all
            select name, null, expression ~ 'auth\\.|request\\.jwt' from policies
            where not polpermissive and expression <> 'true'
            order by 1";
        let rows = self.query(statement).fetch_all(unit.connection()).await?;
        let policy = |row: &AnyRow| ForeignPolicy {
            name: row.get(0),
            effect: match (
                row.get::<Option<String>, _>(1),
                row.get::<Option<bool>, _>(2),
            ) {
                (Some(table), _) => PolicyEffect::Reads(table),
                (None, Some(true)) => PolicyEffect::HidesAll,
                (None, _) => PolicyEffect::MayHide,
            },
        };
        Ok(rows.iter().map(policy).collect())
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
