//! The database: connection, our tables, the app's tables and the privileges of our role.

use std::cmp::Ordering;

use super::{Report, Services, compare_clocks, is_supabase};
use crate::clock::Clock;
use crate::config::{Config, Database, MissingRow};
use crate::db::{AppFacts, Db, DbError, Migrated, Schema, Tls};

/// The findings, and the buckets that pending rows name.
pub(super) async fn examine(
    config: &Config,
    services: &Services,
    is_writable: bool,
) -> (Report, Vec<String>) {
    let mut report = Report::default();
    let mut buckets = Vec::new();
    let setting = match &config.database {
        // Reported by the check of DATA_DIR.
        Database::Sqlite if !is_writable => return (report, buckets),
        Database::Sqlite => "The embedded database in DATA_DIR",
        Database::Postgres { url } => {
            if let Some(protection) = Tls::of(url) {
                tls(protection, &mut report);
            }
            "The database of DATABASE_URL"
        }
    };
    let id = "database.connect";
    match &services.database {
        Ok(None) => report.ok(id, "The embedded database is created at the first start."),
        Ok(Some(db)) => {
            let result = look(config, &services.clock, db, &mut report, &mut buckets).await;
            db.close().await;
            if let Err(error) = result {
                report.fail(id, format!("{setting} failed: {}.", error.reason()));
            }
        }
        Err(error) => {
            report.fail(id, format!("{setting} is unavailable: {}.", error.reason()));
        }
    }
    (report, buckets)
}

fn tls(protection: Tls, report: &mut Report) {
    let id = "database.tls";
    match protection {
        Tls::Local => report.ok(id, "The connection to the database does not leave this machine."),
        Tls::Verified => report.ok(
            id,
            "The connection to the database is encrypted, and its certificate is verified.",
        ),
        Tls::Unverified => report.warn(
            id,
            "The connection to the database is encrypted, but its certificate is not verified. Add sslmode=verify-full&sslrootcert=<CA file> to DATABASE_URL.",
        ),
        Tls::Optional => report.warn(
            id,
            "DATABASE_URL does not require encryption, so the connection can be eavesdropped on. Add sslmode=require, or better sslmode=verify-full&sslrootcert=<CA file>.",
        ),
    }
}

async fn look(
    config: &Config,
    clock: &Clock,
    db: &Db,
    report: &mut Report,
    buckets: &mut Vec<String>,
) -> Result<(), DbError> {
    if matches!(config.database, Database::Sqlite) {
        let migrated = db.migrated().await?;
        report.ok("database.connect", "The embedded database can be opened.");
        migrations(migrated, report);
        return Ok(());
    }
    let facts = db
        .app_facts(config.missing_row == MissingRow::Create)
        .await?;
    report.ok(
        "database.connect",
        format!("Connected as {} {}.", facts.user, facts.connection),
    );
    match facts.schema {
        Schema::Usable => {
            report.ok("database.schema", "The schema video_ingest belongs to our role.");
            migrations(db.migrated().await?, report);
        }
        Schema::Creatable => report.warn(
            "database.schema",
            "The schema video_ingest does not exist yet. The first start creates it, and so does deploy/supabase/role.sql.",
        ),
        Schema::NotCreatable => report.fail(
            "database.schema",
            "The schema video_ingest does not exist, and our role may not create it. Run deploy/supabase/role.sql.",
        ),
        Schema::Foreign => report.fail(
            "database.schema",
            "The schema video_ingest, or a table in it, belongs to another role. Run deploy/supabase/role.sql.",
        ),
    }
    app(config, &facts, report);
    let now_ms = clock.now_ms();
    compare_clocks(
        report,
        "database.clock",
        "the database's",
        now_ms,
        facts.now_ms,
    );
    if facts.has_table && facts.columns.is_empty() && facts.missing_rights.is_empty() {
        *buckets = db.pending_buckets().await?;
    }
    Ok(())
}

/// The version of our own tables.
fn migrations(Migrated { applied, known }: Migrated, report: &mut Report) {
    let id = "database.migrations";
    match applied.cmp(&known) {
        Ordering::Equal => report.ok(id, format!("Our tables are at version {known}.")),
        Ordering::Less => report.warn(
            id,
            format!("Our tables are at version {applied}. The next start or `video-ingest migrate` brings them to {known}."),
        ),
        Ordering::Greater => report.fail(
            id,
            format!("Our tables are at version {applied}, but this program knows only {known}. Install the newer program."),
        ),
    }
}

/// The app's table, and what our role may do with it.
fn app(config: &Config, facts: &AppFacts, report: &mut Report) {
    if !facts.has_table {
        report.fail(
            "database.columns",
            "There is no table lesson_assets on the search_path. Check that DATABASE_URL is the app's database.",
        );
        return;
    }
    each(
        report,
        "database.columns",
        &facts.columns,
        "lesson_assets has the required columns.",
        "The columns of lesson_assets do not fit: {}. Run deploy/supabase/columns.sql.",
    );
    each(
        report,
        "database.constraints",
        &facts.constraints,
        "The constraints of lesson_assets allow our writes.",
        "A constraint of lesson_assets forbids our writes: {}. Change the constraint.",
    );
    each(
        report,
        "database.rights",
        &facts.missing_rights,
        "Our role has the required privileges.",
        match config.missing_row {
            MissingRow::Wait => "Our role lacks privileges: {}. Run deploy/supabase/role.sql.",
            MissingRow::Create => {
                "Our role lacks privileges: {}. Run deploy/supabase/role.sql and missing_row_create.sql."
            }
        },
    );
    each(
        report,
        "database.policies",
        &facts.blocked,
        "Row-level security lets our role read and update videos.",
        "Row-level security of lesson_assets hides every row from our role for: {}. Run deploy/supabase/role.sql.",
    );
    each(
        report,
        "database.exposed",
        &facts.exposed_to,
        "No role of Supabase's API can access the schema video_ingest.",
        "Roles of Supabase's API can access the schema video_ingest: {}. Run deploy/supabase/role.sql.",
    );
    if !facts.extra_rights.is_empty() {
        let rights = facts.extra_rights.join(", ");
        let text = format!(
            "The role {} has more privileges than it needs ({rights}). Connect as the role that deploy/supabase/role.sql creates.",
            facts.user
        );
        report.warn("database.extra_rights", text);
    }
    if facts.endless_statements {
        report.warn(
            "database.timeouts",
            "Statements have no timeout. Run alter role … set statement_timeout = '10s' (see deploy/supabase/role.sql).",
        );
    }
    if facts.published || is_supabase(config) {
        report.expect(
            "database.publication",
            facts.published,
            "Supabase Realtime publishes changes of lesson_assets.",
            "lesson_assets is not in the publication supabase_realtime, so the app does not show new videos until it is reloaded. Run deploy/supabase/realtime.sql.",
        );
    }
}

/// Adds `ok` if the list of problems is empty, else `failed` with the list in place of `{}`.
fn each(report: &mut Report, id: &'static str, problems: &[String], ok: &str, failed: &str) {
    let failed = failed.replace("{}", &problems.join(", "));
    report.expect(id, problems.is_empty(), ok, failed);
}
