//! The database: connection, our tables, the app's tables and the privileges of our role.

use std::cmp::Ordering;

use super::{Report, compare_clocks, is_supabase};
use crate::clock::Clock;
use crate::config::{Config, Database, MissingRow, Tls};
use crate::db::{AppFacts, Db, DbError, ForeignPolicy, Migrated, PolicyEffect, Published, Schema};

/// The findings, and the buckets that pending rows name.
pub(super) async fn examine(
    config: &Config,
    clock: &Clock,
    connected: Result<Option<Db>, DbError>,
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
            "The database at DATABASE_URL"
        }
    };
    let id = "database.connect";
    match connected {
        Ok(None) => report.ok(
            id,
            "The embedded database will be created when the server first starts.",
        ),
        Ok(Some(db)) => {
            let result = look(config, clock, &db, &mut report, &mut buckets).await;
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
    if let Some(weakness) = protection.weakness() {
        report.warn(id, format!("DATABASE_URL {weakness}."));
    } else if protection == Tls::Loopback {
        report.ok(
            id,
            "The connection to the database does not leave this machine.",
        );
    } else if protection == Tls::Verified {
        report.ok(
            id,
            "The connection to the database is encrypted, and its certificate is verified.",
        );
    } else {
        report.warn(
            id,
            "The host in DATABASE_URL is in a private network, so no certificate is required. If the network is shared with others, add sslmode=verify-full&sslrootcert=<CA file>.",
        );
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
        .app_facts(
            config.missing_row == MissingRow::Create,
            &config.storage_bucket,
        )
        .await?;
    report.ok(
        "database.connect",
        format!("Connected as {} {}.", facts.user, facts.connection),
    );
    match facts.schema {
        Schema::Usable => {
            report.ok("database.schema", "The video_ingest schema belongs to the server's role.");
            migrations(db.migrated().await?, report);
        }
        Schema::Creatable => report.warn(
            "database.schema",
            "The video_ingest schema does not exist yet. The server will create it when it first starts; deploy/supabase/role.sql also creates it.",
        ),
        Schema::NotCreatable => report.fail(
            "database.schema",
            "The video_ingest schema does not exist, and the server's role is not allowed to create it. Run deploy/supabase/role.sql.",
        ),
        Schema::Foreign => report.fail(
            "database.schema",
            "The video_ingest schema, or a table in it, belongs to another role. Run deploy/supabase/role.sql.",
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
        match db.pending_buckets().await {
            Ok(found) => *buckets = found,
            // A policy that fails makes every access fail. Its own finding says more, if it was recognized.
            Err(DbError::Denied(cause)) => {
                if !report.has_failed_check("database.policies") {
                    let text = format!(
                        "A policy on lesson_assets rejects every access by the server's role: {cause}. Add `to authenticated` to the app's policies, then run deploy/supabase/role.sql."
                    );
                    report.fail("database.policies", text);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The version of our own tables.
fn migrations(Migrated { applied, known }: Migrated, report: &mut Report) {
    let id = "database.migrations";
    match applied.cmp(&known) {
        Ordering::Equal => report.ok(id, format!("The video_ingest tables are at version {known}.")),
        Ordering::Less => report.warn(
            id,
            format!("The video_ingest tables are at version {applied}. Run `video-ingest migrate` or restart the server to upgrade them to version {known}."),
        ),
        Ordering::Greater => report.fail(
            id,
            format!("The video_ingest tables are at version {applied}, but this program supports only version {known}. Install a newer version of video-ingest."),
        ),
    }
}

/// The app's table, and what our role may do with it.
fn app(config: &Config, facts: &AppFacts, report: &mut Report) {
    if !facts.has_table {
        report.fail(
            "database.columns",
            "There is no lesson_assets table on the search_path. Check that DATABASE_URL points to the app's database.",
        );
        return;
    }
    each(
        report,
        "database.columns",
        &facts.columns,
        "lesson_assets has the required columns.",
        "lesson_assets has missing or incorrect columns: {}. Run deploy/supabase/columns.sql.",
    );
    each(
        report,
        "database.constraints",
        &facts.constraints,
        "The constraints on lesson_assets allow the server's writes.",
        "A constraint on lesson_assets blocks the server's writes: {}. Change the constraint.",
    );
    each(
        report,
        "database.rights",
        &facts.missing_rights,
        "The server's role has the required privileges.",
        match config.missing_row {
            MissingRow::Wait => {
                "The server's role lacks these privileges: {}. Run deploy/supabase/role.sql."
            }
            MissingRow::Create => {
                "The server's role lacks these privileges: {}. Run deploy/supabase/role.sql and missing_row_create.sql."
            }
        },
    );
    if facts.unprotected {
        report.fail(
            "database.policies",
            "Row-level security is off on lesson_assets, so the server's role can read and change all of its rows, not only videos. Create the policies that the app's users need, enable row-level security, then run deploy/supabase/role.sql.",
        );
    } else if !facts.blocked.is_empty() || facts.foreign_policies.is_empty() {
        each(
            report,
            "database.policies",
            &facts.blocked,
            "Row-level security allows the server's role to read and update videos.",
            "Row-level security on lesson_assets hides every row from the server's role for these commands: {}. Run deploy/supabase/role.sql.",
        );
    }
    for policy in &facts.foreign_policies {
        foreign(policy, report);
    }
    each(
        report,
        "database.exposed",
        &facts.exposed_to,
        "No Supabase API role can access the video_ingest schema.",
        "These Supabase API roles can access the video_ingest schema: {}. Run deploy/supabase/role.sql.",
    );
    if !facts.extra_rights.is_empty() {
        let rights = facts.extra_rights.join(", ");
        let text = format!(
            "The role {} has more privileges than it needs ({rights}). Run deploy/supabase/role.sql, and connect as the role that it creates.",
            facts.user
        );
        report.warn("database.extra_rights", text);
    }
    if facts.endless_statements {
        report.warn(
            "database.timeouts",
            "The server's role has no statement timeout. Run `alter role … set statement_timeout = '10s'` (see deploy/supabase/role.sql).",
        );
    }
    if facts.objects_hidden {
        let text = format!(
            "No policy on storage.objects lets the app's users read the bucket {}, so they cannot create signed URLs for their videos. Run deploy/supabase/playback.sql, unless the app creates them with the service role key.",
            config.storage_bucket
        );
        report.warn("storage.playback", text);
    }
    let id = "database.publication";
    match facts.published {
        Published::Updates => report.ok(id, "Supabase Realtime publishes changes to lesson_assets."),
        Published::NoUpdates => report.fail(
            id,
            "The supabase_realtime publication contains lesson_assets but does not publish updates, so the app does not show new videos until it is reloaded. Run deploy/supabase/realtime.sql, or `alter publication supabase_realtime set (publish = 'insert, update, delete, truncate')`.",
        ),
        Published::Not if is_supabase(config) => report.fail(
            id,
            "lesson_assets is not in the supabase_realtime publication, so the app does not show new videos until it is reloaded. Run deploy/supabase/realtime.sql.",
        ),
        Published::Not => {}
    }
    let id = "database.index";
    if facts.lacks_index {
        report.warn(
            id,
            "lesson_assets has no index on its pending videos, so the status page and each sweep read the whole table. Run deploy/supabase/indexes.sql.",
        );
    } else {
        report.ok(id, "lesson_assets has an index of its pending videos.");
    }
}

/// A policy of the app that also applies to the server's role.
fn foreign(ForeignPolicy { name, effect }: &ForeignPolicy, report: &mut Report) {
    let id = "database.policies";
    let fix = format!("Run `alter policy {name} on lesson_assets to authenticated`.");
    match effect {
        PolicyEffect::Reads(table) => report.fail(
            id,
            format!("The policy {name} on lesson_assets applies to every role and reads {table}, which the server's role may not read, so every access fails. {fix}"),
        ),
        PolicyEffect::HidesAll => report.fail(
            id,
            format!("The restrictive policy {name} on lesson_assets applies to every role and requires a user of the app, so it hides every row from the server's role. {fix}"),
        ),
        PolicyEffect::MayHide => report.warn(
            id,
            format!("The restrictive policy {name} on lesson_assets also applies to the server's role and can hide rows from it. Unless this is intended, {}", fix.replacen("Run", "run", 1)),
        ),
    }
}

/// Adds `ok` if the list of problems is empty, else `failed` with the list in place of `{}`.
fn each(report: &mut Report, id: &'static str, problems: &[String], ok: &str, failed: &str) {
    let failed = failed.replace("{}", &problems.join(", "));
    report.expect(id, problems.is_empty(), ok, failed);
}
