-- What: the database role `video_ingest`, with what the service needs and nothing else: its own
--       schema, and the videos (not the other rows) of `lesson_assets`.
-- Who:  the owner of the app's tables: on Supabase `postgres`, which is who the SQL editor runs as.
--       It need not be a superuser; CREATEROLE is enough.
-- When: once, after columns.sql; again whenever you want these rights restored.
--
-- Then give the role a password. psql asks for it and sends only its hash:
--
--     psql "$ADMIN_DATABASE_URL" -c '\password video_ingest'
--
-- The service's DATABASE_URL names this role; through Supabase's poolers the user is
-- `video_ingest.<project ref>`.
begin;

set local lock_timeout = '5s';

do $$
begin
    if not exists (select from pg_roles where rolname = 'video_ingest') then
        create role video_ingest login;
    end if;
end
$$;

-- Whoever runs this is no superuser: only a member of a role can manage, and look at, what it owns.
grant video_ingest to current_user;

-- These hold behind a transaction pooler too, where the service cannot SET anything itself.
-- If the app's tables are not in `public`, name their schema here and below.
alter role video_ingest set search_path = public;
alter role video_ingest set statement_timeout = '10s';
alter role video_ingest set idle_in_transaction_session_timeout = '15s';

-- The service's own schema. Not even service_role reads it: it is reached through the service only.
create schema if not exists video_ingest;
grant usage, create on schema video_ingest to video_ingest;

-- Tables made while DATABASE_URL was another user's are handed over.
do $$
declare
    found record;
begin
    for found in
        select format('%I.%I', schemaname, tablename) as name
        from pg_tables
        where schemaname = 'video_ingest' and tableowner <> 'video_ingest'
    loop
        execute format('alter table %s owner to video_ingest', found.name);
    end loop;
end
$$;

revoke all on schema video_ingest from public, anon, authenticated, service_role;
revoke all on all tables in schema video_ingest from public, anon, authenticated, service_role;
revoke all on all sequences in schema video_ingest from public, anon, authenticated, service_role;
alter default privileges for role video_ingest in schema video_ingest
    revoke all on tables from public, anon, authenticated, service_role;
alter default privileges for role video_ingest in schema video_ingest
    revoke all on sequences from public, anon, authenticated, service_role;

-- The app's tables. Revoked first, so that what an earlier version of this file granted does not stay.
grant usage on schema public to video_ingest;
revoke select, update on public.lessons, public.lesson_assets from video_ingest;
grant select (id, user_id) on public.lessons to video_ingest;
grant select (id, lesson_id, user_id, kind, storage_bucket, storage_path, mime_type, duration_ms,
              created_at, conversation_id, metadata),
      update (storage_path, mime_type, duration_ms, conversation_id, metadata)
    on public.lesson_assets to video_ingest;

-- A policy of the app's without a TO clause is evaluated for this role too. If the service reports
-- "permission denied for table …" for a table that is not named here, add `to authenticated` to it.
drop policy if exists "video_ingest reads owners" on public.lessons;
create policy "video_ingest reads owners" on public.lessons
    for select to video_ingest using (true);

drop policy if exists "video_ingest reads videos" on public.lesson_assets;
create policy "video_ingest reads videos" on public.lesson_assets
    for select to video_ingest using (kind = 'video');

drop policy if exists "video_ingest updates videos" on public.lesson_assets;
create policy "video_ingest updates videos" on public.lesson_assets
    for update to video_ingest using (kind = 'video');

commit;
