-- What: creates the database role `video_ingest` with the privileges that the service needs: its own
--       schema, and the video rows of `lesson_assets`.
-- Who:  the owner of the app's tables. On Supabase, this is `postgres`, the user of the SQL editor.
--       The owner needs CREATEROLE but does not have to be a superuser.
-- When: once, after columns.sql. Run it again to restore these privileges.
--
-- Then set the role's password. psql prompts for it and sends only its hash:
--
--     psql "$OWNER_URL" -c '\password video_ingest'
--
-- Use this role in the service's DATABASE_URL. With Supabase's poolers, the user name is
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

-- A user who is not a superuser must be a member of a role to manage the role's objects.
grant video_ingest to current_user;

-- Settings of the role also apply behind a transaction pooler, where the service cannot use SET.
-- If the app's tables are not in `public`, replace the schema here and below.
alter role video_ingest set search_path = public;
alter role video_ingest set statement_timeout = '10s';
alter role video_ingest set idle_in_transaction_session_timeout = '15s';

-- The service's own schema. No API role, including service_role, has access to it.
create schema if not exists video_ingest;
grant usage, create on schema video_ingest to video_ingest;

-- Transfer tables that were created while DATABASE_URL contained another user.
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

-- The app's tables. Revoke first, to remove privileges that an earlier version of this script granted.
grant usage on schema public to video_ingest;
revoke select, update on public.lessons, public.lesson_assets from video_ingest;
grant select (id, user_id) on public.lessons to video_ingest;
grant select (id, lesson_id, user_id, kind, storage_bucket, storage_path, mime_type, duration_ms,
              created_at, conversation_id, metadata),
      update (storage_path, mime_type, duration_ms, conversation_id, metadata)
    on public.lesson_assets to video_ingest;

-- Policies of the app without a TO clause also apply to this role. If the service reports "permission
-- denied for table …" for a table that is not named here, add `to authenticated` to that policy.
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
