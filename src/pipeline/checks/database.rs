//! The database: connection, our tables, the app's table, the role's rights.

use super::{Options, Report, compare_clocks, is_supabase};
use crate::config::{Config, Database, MissingRow};
use crate::db::{AppFacts, Db, DbError, Migrated, Schema, Tls};

/// What was found, and the buckets that pending rows name.
pub(super) async fn examine(
    config: &Config,
    options: &Options,
    is_writable: bool,
) -> (Report, Vec<String>) {
    let mut report = Report::default();
    let db = match &config.database {
        // What is unwritable was reported.
        Database::Sqlite if !is_writable => return (report, Vec::new()),
        Database::Sqlite if !Db::embedded_file(&config.data_dir).exists() => {
            report.ok(
                "database.connect",
                "the embedded database is made at the first start",
            );
            return (report, Vec::new());
        }
        Database::Sqlite => Db::sqlite(&config.data_dir, options.clock.clone()).await,
        Database::Postgres { url } => {
            if let Some(protection) = Tls::of(url) {
                tls(protection, &mut report);
            }
            Db::postgres(url, options.clock.clone()).await
        }
    };
    let db = match db {
        Ok(db) => db,
        Err(error) => {
            let setting = match config.database {
                Database::Sqlite => "the embedded database in DATA_DIR",
                Database::Postgres { .. } => "DATABASE_URL",
            };
            report.fail("database.connect", format!("{setting}: {}", error.reason()));
            return (report, Vec::new());
        }
    };
    let mut buckets = Vec::new();
    if let Err(error) = look(config, options, &db, &mut report, &mut buckets).await {
        report.fail(
            "database.connect",
            format!("the database broke off: {}", error.reason()),
        );
    }
    db.close().await;
    (report, buckets)
}

fn tls(protection: Tls, report: &mut Report) {
    let id = "database.tls";
    match protection {
        Tls::Local => report.ok(id, "the way to the database does not leave this machine"),
        Tls::Verified => report.ok(
            id,
            "the way to the database is encrypted, and its certificate is checked",
        ),
        Tls::Unverified => report.warn(
            id,
            "the way to the database is encrypted, but its certificate is not checked: sslmode=verify-full&sslrootcert=<file of its authority> in DATABASE_URL",
        ),
        Tls::Optional => report.warn(
            id,
            "DATABASE_URL does not insist on encryption, so anybody on the way may read along: sslmode=require, or better verify-full with sslrootcert",
        ),
    }
}

async fn look(
    config: &Config,
    options: &Options,
    db: &Db,
    report: &mut Report,
    buckets: &mut Vec<String>,
) -> Result<(), DbError> {
    if matches!(config.database, Database::Sqlite) {
        let migrated = db.migrated().await?;
        report.ok("database.connect", "the embedded database can be opened");
        migrations(migrated, report);
        return Ok(());
    }
    let facts = db
        .app_facts(config.missing_row == MissingRow::Create)
        .await?;
    report.ok(
        "database.connect",
        format!("connected as {} {}", facts.user, facts.connection),
    );
    match facts.schema {
        Schema::Usable => {
            report.ok("database.schema", "the schema video_ingest is ours");
            migrations(db.migrated().await?, report);
        }
        Schema::Creatable => report.warn(
            "database.schema",
            "the schema video_ingest is not there yet: it is made at the first start, or by deploy/supabase/role.sql",
        ),
        Schema::NotCreatable => report.fail(
            "database.schema",
            "there is no schema video_ingest, and this role may not make it: run deploy/supabase/role.sql",
        ),
        Schema::Foreign => report.fail(
            "database.schema",
            "the schema video_ingest, or a table in it, belongs to another role: run deploy/supabase/role.sql",
        ),
    }
    app(config, &facts, report);
    let now_ms = options.clock.now_ms();
    compare_clocks(
        report,
        "database.clock",
        "the database's",
        now_ms,
        facts.now_ms,
    );
    if facts.columns.is_empty() && facts.missing_rights.is_empty() {
        *buckets = db.pending_buckets().await?;
    }
    Ok(())
}

fn migrations(Migrated { applied, known }: Migrated, report: &mut Report) {
    let id = "database.migrations";
    match applied.cmp(&known) {
        std::cmp::Ordering::Equal => report.ok(id, format!("our tables are at version {known}")),
        std::cmp::Ordering::Less => report.warn(
            id,
            format!("our tables are at version {applied}: the next start, or `video-ingest migrate`, brings them to {known}"),
        ),
        std::cmp::Ordering::Greater => report.fail(
            id,
            format!("our tables are at version {applied}, but this program knows {known}: install the newer one"),
        ),
    }
}

fn app(config: &Config, facts: &AppFacts, report: &mut Report) {
    each(
        report,
        "database.columns",
        &facts.columns,
        "lesson_assets has the columns that are written",
        "lesson_assets: {}; run deploy/supabase/columns.sql, and check that DATABASE_URL is the app's database",
    );
    if facts.columns.iter().any(|wrong| wrong.contains("no table")) {
        return;
    }
    each(
        report,
        "database.constraints",
        &facts.constraints,
        "its constraints allow what is written",
        "lesson_assets: {}; change that constraint",
    );
    each(
        report,
        "database.rights",
        &facts.missing_rights,
        "the role has the rights it needs",
        match config.missing_row {
            MissingRow::Wait => "the role lacks {}; run deploy/supabase/role.sql",
            MissingRow::Create => {
                "the role lacks {}; run deploy/supabase/role.sql and missing_row_create.sql"
            }
        },
    );
    each(
        report,
        "database.policies",
        &facts.blocked,
        "row-level security lets the role see and update videos",
        "row-level security of lesson_assets lets the role {} no row; run deploy/supabase/role.sql",
    );
    each(
        report,
        "database.exposed",
        &facts.exposed_to,
        "no role of Supabase's API reaches the schema video_ingest",
        "the schema video_ingest can be reached by {}; run deploy/supabase/role.sql",
    );
    if !facts.extra_rights.is_empty() {
        let rights = facts.extra_rights.join(", ");
        let text = format!(
            "the role {} may do more than it needs ({rights}): connect as the role of deploy/supabase/role.sql",
            facts.user
        );
        report.warn("database.extra_rights", text);
    }
    if facts.endless_statements {
        report.warn(
            "database.timeouts",
            "a statement may take for ever: alter role … set statement_timeout = '10s' (deploy/supabase/role.sql)",
        );
    }
    match facts.published {
        true => report.ok("database.publication", "Realtime sends changes of lesson_assets"),
        false if is_supabase(config) => report.fail(
            "database.publication",
            "lesson_assets is not in the publication supabase_realtime, so the app's badge does not turn green by itself; run deploy/supabase/realtime.sql",
        ),
        false => {}
    }
}

/// One line about a list that should be empty; `{}` of `wrong` is what is in it.
fn each(report: &mut Report, id: &'static str, found: &[String], well: &str, wrong: &str) {
    match found {
        [] => report.ok(id, well),
        _ => report.fail(id, wrong.replace("{}", &found.join(", "))),
    }
}
