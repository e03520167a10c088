//! The scripts in `deploy/supabase/` grant the service exactly the rights it needs and nothing to the API,
//! and can be repeated and undone.

use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use uuid::Uuid;
use video_ingest::clock::Clock;
use video_ingest::db::{CONNECTIONS_PER_REPLICA, Db, RowOwner};
use video_ingest::domain::ids::VideoKey;

use crate::support::postgres::{Database, Postgres};

/// SQLSTATE of "permission denied", and of a row that a policy or our trigger refuses.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

const ROLE: &str = include_str!("../../deploy/supabase/role.sql");

#[tokio::test]
async fn scripts_can_be_run_again_and_undone() {
    let database = Postgres::start().create_database().await;
    let key = pending_video(&database).await;
    migrate(&database.service_url).await;
    let scripts = [
        "columns.sql",
        "role.sql",
        "missing_row_create.sql",
        "lesson_titles.sql",
        "realtime.sql",
        "bucket.sql",
        "playback.sql",
        "indexes.sql",
    ];

    for script in scripts {
        database.run_script(script);
    }
    let once = state(&database).await;
    let wider = "grant select, update on lessons, lesson_assets to video_ingest";
    database.sql(wider).await;
    for script in scripts {
        database.run_script(script);
    }
    assert_eq!(state(&database).await, once);

    // A role cannot be dropped while another database of the server refers to it.
    database.sql("drop database app_template").await;
    database.run_script("undo.sql");
    database.run_script("undo.sql");
    let left = "select string_agg(name, ' ') from (
        select rolname from pg_roles union all select nspname from pg_namespace
        union all select polname from pg_policy union all select tgname from pg_trigger
        union all select lesson_id::text from lesson_assets
    ) as everything (name) where name like '%video_ingest%' or name = '";
    let left = database.text(&format!("{left}{}'", key.lesson_id)).await;
    assert_eq!(
        left,
        Some(key.lesson_id.to_string()),
        "only the app's rows remain"
    );
}

#[tokio::test]
async fn an_older_app_database_is_refused_until_columns_sql_was_run() {
    let database = Postgres::database().await;
    database
        .sql("alter table lesson_assets drop conversation_id, drop metadata")
        .await;

    let refusal = connect(&database.service_url)
        .await
        .migrate()
        .await
        .unwrap_err();
    assert!(
        refusal.to_string().contains("deploy/supabase/columns.sql"),
        "{refusal}"
    );

    database.run_script("columns.sql");
    database.run_script("role.sql");
    migrate(&database.service_url).await;
}

#[tokio::test]
async fn replicas_that_start_together_migrate_in_turn() {
    let database = Postgres::database().await;
    let replicas = (0..8).map(|_| migrate(&database.service_url));
    futures_util::future::join_all(replicas).await;
    assert_eq!(database.log(), "", "no error, no deadlock");
}

#[tokio::test]
async fn tables_created_by_another_user_are_transferred() {
    let database = Postgres::database().await;
    migrate(&database.admin_url).await;
    database
        .sql("grant usage on schema video_ingest to anon")
        .await;
    database
        .sql("grant select on all tables in schema video_ingest to anon")
        .await;
    let count = "select count(*) from video_ingest.videos";
    assert_eq!(
        refusal(&database.service_url, count).await,
        INSUFFICIENT_PRIVILEGE
    );

    database.run_script("role.sql");
    migrate(&database.service_url).await;
    run(&database.service_url, count).await.unwrap();
    let anon = "set role anon; select count(*) from video_ingest.videos";
    assert_eq!(
        refusal(&api_url(&database), anon).await,
        INSUFFICIENT_PRIVILEGE
    );
}

#[tokio::test]
async fn no_api_role_can_read_the_servers_tables() {
    let database = Postgres::database().await;
    migrate(&database.service_url).await;
    let tables = "select tablename from pg_tables where schemaname = 'video_ingest'";
    let tables: Vec<String> = sqlx::query_scalar(tables)
        .fetch_all(&database.admin)
        .await
        .unwrap();
    assert!(tables.contains(&"videos".into()) && tables.contains(&"deliveries".into()));

    // Not even if the schema was opened to the API, as guides to custom schemas recommend.
    let open = "grant usage on schema video_ingest to anon, service_role;
        grant all on all tables in schema video_ingest to anon, service_role;
        alter default privileges for role video_ingest in schema video_ingest
            grant all on tables to anon, service_role";
    database.sql(open).await;
    database.run_script("role.sql");
    run(&database.service_url, "create table video_ingest.later ()")
        .await
        .unwrap();

    for table in tables.iter().map(String::as_str).chain(["later"]) {
        for role in ["anon", "authenticated", "service_role"] {
            let read = format!("set role {role}; select count(*) from video_ingest.{table}");
            assert_eq!(
                refusal(&api_url(&database), &read).await,
                INSUFFICIENT_PRIVILEGE,
                "{read}"
            );
            // Each of the two rights is required for reading; both are revoked.
            let rights = format!(
                "select has_schema_privilege('{role}', 'video_ingest', 'usage')
                    || ' ' || has_table_privilege('{role}', 'video_ingest.{table}', 'select')"
            );
            let rights = database.text(&rights).await;
            assert_eq!(rights.as_deref(), Some("false false"), "{role} {table}");
        }
    }
}

#[tokio::test]
async fn the_service_has_exactly_these_rights_on_the_apps_tables() {
    let database = Postgres::database().await;
    assert_eq!(
        rights(&database).await,
        "lesson_assets SELECT conversation_id, created_at, duration_ms, id, kind, lesson_id, metadata, mime_type, storage_bucket, storage_path, user_id\n\
         lesson_assets UPDATE conversation_id, duration_ms, metadata, mime_type, storage_path\n\
         lessons SELECT id, user_id"
    );
    let tables = "select string_agg(table_name, ' ') from information_schema.table_privileges
        where grantee = 'video_ingest' and table_schema <> 'video_ingest'";
    assert_eq!(database.text(tables).await, None);

    database
        .sql("create table private (id int); create schema other; create table other.t ()")
        .await;
    for statement in [
        "select title from lessons",
        "select * from lessons",
        "select from private",
        "select from other.t",
        "select from storage.buckets",
        "update lessons set user_id = user_id",
        "update lesson_assets set user_id = gen_random_uuid()",
        "update lesson_assets set kind = 'pdf'",
        "update lesson_assets set storage_bucket = 'public'",
        "delete from lesson_assets",
        "truncate lesson_assets",
        "insert into lesson_assets (id) values (gen_random_uuid())",
        "create table public.mine ()",
        "alter table lesson_assets disable row level security",
        "set role postgres",
        "create role more",
    ] {
        let refused = refusal(&database.service_url, statement).await;
        assert_eq!(refused, INSUFFICIENT_PRIVILEGE, "{statement}");
    }
}

#[tokio::test]
async fn the_service_sees_and_changes_videos_only() {
    let database = Postgres::database().await;
    let video = pending_video(&database).await;
    let notes = VideoKey {
        video_id: Uuid::new_v4(),
        ..video
    };
    database.insert_asset(notes, Uuid::new_v4(), "notes").await;
    let service = connect(&database.service_url).await;

    assert!(service.find_row(video.video_id).await.unwrap().is_some());
    assert_eq!(service.find_row(notes.video_id).await.unwrap(), None);
    let publish = format!(
        "update lesson_assets set storage_path = {FOLDER} || id || '.mp4', mime_type = 'video/mp4',
        duration_ms = 1, conversation_id = coalesce(conversation_id, 'c'), metadata = '{{}}'"
    );
    assert_eq!(run(&database.service_url, &publish).await.unwrap(), 1);
    let ready = "select string_agg(kind, ' ') from lesson_assets where storage_path is not null";
    assert_eq!(database.text(ready).await.as_deref(), Some("video"));
}

#[tokio::test]
async fn the_service_cannot_point_a_row_to_another_object() {
    let database = Postgres::database().await;
    pending_video(&database).await;
    let set_path = async |path: &str| {
        let update = format!("update lesson_assets set storage_path = {path}");
        run(&database.service_url, &update).await
    };
    let own = format!("{FOLDER} || id || '.mp4'");
    for other in [
        "'another-user/lesson/secret.mp4'".to_owned(),
        "gen_random_uuid() || '/' || lesson_id || '/' || id || '.mp4'".to_owned(),
        format!("{FOLDER} || gen_random_uuid() || '.mp4'"),
        format!("{FOLDER} || id || '.mov'"),
        format!("{FOLDER} || '../' || id || '.mp4'"),
    ] {
        let update = format!("update lesson_assets set storage_path = {other}");
        let refused = refusal(&database.service_url, &update).await;
        assert_eq!(refused, INSUFFICIENT_PRIVILEGE, "{other}");
    }
    assert_eq!(set_path(&own).await.unwrap(), 1);
    let take_away = "update lesson_assets set storage_path = null";
    let refused = refusal(&database.service_url, take_away).await;
    assert_eq!(refused, INSUFFICIENT_PRIVILEGE, "a ready video stays");

    // The app moves the lesson to another user, and stores videos elsewhere: their rows stay writable.
    for moved in ["user_id = gen_random_uuid()", "storage_path = 'old/v.mp4'"] {
        let update = format!("update lesson_assets set {moved}");
        database.sql(&update).await;
        let note = "update lesson_assets set metadata = '{}', storage_path = storage_path";
        assert_eq!(
            run(&database.service_url, note).await.unwrap(),
            1,
            "{moved}"
        );
        assert_eq!(set_path(&own).await.unwrap(), 1, "{moved}");
    }
}

#[tokio::test]
async fn role_sql_requires_row_level_security() {
    let database = Postgres::start().create_database().await;
    // A role cannot be dropped while another database of the server refers to it.
    database.sql("drop database app_template").await;
    database.run_script("undo.sql");
    database
        .sql("alter table lesson_assets disable row level security")
        .await;

    let refused = run(&database.admin_url, ROLE).await.unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("Row-level security is off"), "{refused}");
    let created = "select string_agg(name, ' ') from (
        select rolname from pg_roles union all select nspname from pg_namespace
    ) as everything (name) where name = 'video_ingest'";
    assert_eq!(database.text(created).await, None, "nothing was created");

    database
        .sql("alter table lesson_assets enable row level security")
        .await;
    run(&database.admin_url, ROLE).await.unwrap();
}

#[tokio::test]
async fn the_role_has_connections_for_three_replicas_and_a_command() {
    let database = Postgres::start().create_database().await;
    run(&database.admin_url, ROLE).await.unwrap();
    let mut replicas = Vec::new();
    for _ in 0..4 * CONNECTIONS_PER_REPLICA {
        match PgConnection::connect(&database.service_url).await {
            Ok(connection) => replicas.push(connection),
            Err(refused) => {
                let code = refused.as_database_error().and_then(|e| e.code());
                assert_eq!(code.as_deref(), Some("53300"), "{refused}");
                break;
            }
        }
    }
    let (opened, replica) = (replicas.len() as u32, CONNECTIONS_PER_REPLICA);
    assert!(opened > 3 * replica && opened < 4 * replica, "{opened}");
}

#[tokio::test]
async fn missing_rows_need_a_grant_and_belong_to_the_lessons_owner() {
    let database = Postgres::database().await;
    let known = pending_video(&database).await;
    let pushed = VideoKey {
        video_id: Uuid::new_v4(),
        ..known
    };
    let service = connect(&database.service_url).await;
    service.migrate().await.unwrap();
    let create = async |key| {
        service
            .create_row(key, RowOwner::OfLesson, "lesson-assets")
            .await
    };
    create(pushed).await.unwrap_err();

    database.run_script("missing_row_create.sql");
    create(pushed).await.unwrap();
    create(known).await.unwrap();
    let row = service.find_row(pushed.video_id).await.unwrap().unwrap();
    let lessons_row = service.find_row(known.video_id).await.unwrap().unwrap();
    assert_eq!(row.user_id, lessons_row.user_id);

    for (kind, owner) in [("notes", "user_id"), ("video", "gen_random_uuid()")] {
        let insert = format!(
            "insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
            select gen_random_uuid(), id, {owner}, '{kind}', 'lesson-assets', 'video/mp4' from lessons"
        );
        let refused = refusal(&database.service_url, &insert).await;
        assert_eq!(refused, INSUFFICIENT_PRIVILEGE, "{insert}");
    }
}

#[tokio::test]
async fn a_publication_without_updates_gets_them_and_keeps_the_rest() {
    let database = Postgres::database().await;
    let publish = "alter publication supabase_realtime set (publish = 'insert')";
    database.sql(publish).await;
    database.run_script("realtime.sql");
    let operations = "select concat_ws(' ', pubinsert, pubupdate, pubdelete, pubtruncate)
        from pg_publication where pubname = 'supabase_realtime'";
    let operations = database.text(operations).await;
    assert_eq!(operations.as_deref(), Some("t t f f"));
}

#[tokio::test]
async fn the_app_receives_our_update_through_its_publication() {
    let database = Postgres::database().await;
    database.sql("drop publication supabase_realtime").await;
    database.run_script("realtime.sql");
    let slot = &database.name;
    let key = pending_video(&database).await;
    database
        .sql(&format!(
            "select pg_create_logical_replication_slot('{slot}', 'pgoutput')"
        ))
        .await;

    let publish = format!("update lesson_assets set storage_path = {FOLDER} || id || '.mp4'");
    run(&database.service_url, &publish).await.unwrap();

    let changes = format!(
        "select data from pg_logical_slot_peek_binary_changes('{slot}', null, null,
            'proto_version', '1', 'publication_names', 'supabase_realtime')"
    );
    let changes = sqlx::query(AssertSqlSafe(changes))
        .fetch_all(&database.admin)
        .await
        .unwrap();
    // Begin, relation, update, commit: the first byte of a message is its type.
    let changes: Vec<Vec<u8>> = changes.iter().map(|row| row.get("data")).collect();
    let kinds: Vec<u8> = changes.iter().map(|message| message[0]).collect();
    assert_eq!(kinds, b"BRUC");
    assert!(String::from_utf8_lossy(&changes[2]).contains(&format!("{}.mp4", key.video_id)));
    database
        .sql(&format!("select pg_drop_replication_slot('{slot}')"))
        .await;
}

#[tokio::test]
async fn a_bucket_keeps_limits_that_are_wider_than_required() {
    let cases = [
        (None, "52428800 {video/mp4}"),
        (
            Some("1000, array['image/png']"),
            "52428800 {image/png,video/mp4}",
        ),
        (
            Some("99999999, array['video/mp4', 'image/png']"),
            "99999999 {video/mp4,image/png}",
        ),
        (Some("null, null"), "any any"),
        (Some("null, array[]::text[]"), "any {}"),
    ];
    let database = Postgres::database().await;
    for name in ["lesson-assets", "lesson_assets"] {
        for (before, after) in cases {
            database.sql("delete from storage.buckets").await;
            if let Some(before) = before {
                database
                    .sql(&format!(
                        "insert into storage.buckets values ('{name}', '{name}', true, {before})"
                    ))
                    .await;
            }
            database.run_script("bucket.sql");
            let found =
                "select string_agg(public::text || ' ' || coalesce(file_size_limit::text, 'any')
                || ' ' || coalesce(allowed_mime_types::text, 'any'), ', ') from storage.buckets";
            let name = before.map_or("lesson-assets", |_| name);
            assert_eq!(
                database.text(&format!("{found} where id = '{name}'")).await,
                Some(format!("false {after}")),
                "{before:?}"
            );
        }
    }
}

#[tokio::test]
async fn every_bucket_that_rows_name_exists_afterwards() {
    let database = Postgres::database().await;
    database
        .sql(
            "insert into storage.buckets values ('lesson_assets', 'lesson_assets', false, null, null),
                ('avatars', 'avatars', true, 1000, array['image/png'])",
        )
        .await;
    for bucket in ["lesson_assets", "other", "avatars", "no/bucket"] {
        let key = pending_video(&database).await;
        let id = key.video_id;
        let row = format!("update lesson_assets set storage_bucket = '{bucket}' where id = '{id}'");
        database.sql(&row).await;
    }
    database.run_script("bucket.sql");
    let buckets = "select string_agg(id || ' ' || public, ', ' order by id collate \"C\") from storage.buckets";
    assert_eq!(
        database.text(buckets).await.as_deref(),
        Some("avatars true, lesson-assets false, lesson_assets false, other false")
    );
}

#[tokio::test]
async fn only_the_owner_of_a_folder_reads_its_videos() {
    let database = Postgres::database().await;
    let owner = Uuid::new_v4();
    database
        .sql(&format!(
            "insert into storage.objects (bucket_id, name) values
                ('lesson-assets', '{owner}/l/v.mp4'), ('avatars', '{owner}/l/v.mp4'),
                ('lesson-assets', '{}/l/v.mp4')",
            Uuid::new_v4()
        ))
        .await;
    let seen = async |user: Uuid| {
        let mut connection = PgConnection::connect(&api_url(&database)).await.unwrap();
        let claims =
            format!("select set_config('request.jwt.claims', '{{\"sub\":\"{user}\"}}', false)");
        for statement in ["set role authenticated", claims.as_str()] {
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
                .execute(&mut connection)
                .await
                .unwrap();
        }
        let count = sqlx::query("select count(*) from storage.objects");
        let row = count.fetch_one(&mut connection).await.unwrap();
        row.get::<i64, _>(0)
    };
    let policy = "drop policy \"owners read lesson videos\" on storage.objects";
    database.sql(policy).await;
    assert_eq!(seen(owner).await, 0, "the reason for the script");
    database.run_script("playback.sql");
    assert_eq!(seen(owner).await, 1);
    assert_eq!(seen(Uuid::new_v4()).await, 0);
}

#[tokio::test]
async fn the_roles_settings_hold_behind_a_transaction_pooler() {
    let database = Postgres::database().await;
    let mut first = PgConnection::connect(&database.pooled_url()).await.unwrap();
    let mut second = PgConnection::connect(&database.pooled_url()).await.unwrap();
    let settings = "select concat_ws(' ', pg_backend_pid(), current_setting('search_path'),
        current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout'))";

    let mut seen = Vec::new();
    for client in [&mut first, &mut second] {
        let mut transaction = client.begin().await.unwrap();
        let query = sqlx::query_scalar::<_, String>(settings).persistent(false);
        seen.push(query.fetch_one(&mut *transaction).await.unwrap());
        transaction.commit().await.unwrap();
    }
    assert_eq!(seen[0], seen[1], "both clients share one server connection");
    assert!(seen[0].ends_with(" public 10s 15s"), "{}", seen[0]);
    migrate(&database.pooled_url()).await;
}

/// The folder of a video, as SQL.
const FOLDER: &str = "user_id || '/' || lesson_id || '/'";

async fn connect(url: &str) -> Db {
    Db::postgres(&SecretString::from(url), Clock::default())
        .await
        .unwrap()
}

async fn migrate(url: &str) {
    let db = connect(url).await;
    db.migrate().await.unwrap();
    db.close().await;
}

async fn pending_video(database: &Database) -> VideoKey {
    let key = VideoKey {
        lesson_id: Uuid::new_v4(),
        video_id: Uuid::new_v4(),
    };
    let owner = Uuid::new_v4();
    database.insert_lesson(key.lesson_id, owner).await;
    database.insert_asset(key, owner, "video").await;
    key
}

/// The URL with which PostgREST connects, before it sets the role of the caller's token.
fn api_url(database: &Database) -> String {
    database.server.url("authenticator", &database.name)
}

/// Runs statements and returns the number of affected rows.
async fn run(url: &str, statements: &str) -> Result<u64, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(&mut connection)
        .await;
    connection.close().await.unwrap();
    Ok(done?.rows_affected())
}

/// The SQLSTATE of a refusal.
async fn refusal(url: &str, statements: &str) -> String {
    match run(url, statements).await {
        Err(sqlx::Error::Database(e)) => e.code().unwrap().into_owned(),
        other => panic!("{statements}: {other:?}"),
    }
}

/// The rights of the service's role on columns of the app's tables.
async fn rights(database: &Database) -> String {
    let query = "select string_agg(line, chr(10) order by line) from (
            select concat_ws(' ', table_name, privilege_type,
                string_agg(column_name, ', ' order by column_name collate \"C\")) as line
            from information_schema.column_privileges
            where grantee = 'video_ingest' and table_schema <> 'video_ingest'
            group by table_name, privilege_type) as rights";
    database.text(query).await.unwrap()
}

/// Everything that the scripts set.
async fn state(database: &Database) -> [Option<String>; 6] {
    let policies =
        "select string_agg(policies::text, ' ' order by policyname) from pg_policies as policies";
    let settings = "select string_agg(rolconfig::text || rolconnlimit, '') from pg_roles
        where rolname = 'video_ingest'";
    let triggers =
        "select string_agg(pg_get_triggerdef(oid), ' ') from pg_trigger where not tgisinternal";
    let published = "select string_agg(pubname || tablename, ' ') from pg_publication_tables";
    let buckets = "select string_agg(buckets::text, ' ') from storage.buckets";
    [
        Some(rights(database).await),
        database.text(policies).await,
        database.text(settings).await,
        database.text(triggers).await,
        database.text(published).await,
        database.text(buckets).await,
    ]
}
