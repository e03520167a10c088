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
-- The script fails without changes if row-level security is off on `lesson_assets`: the role could then read
-- and change the rows of every kind.
begin;

set local lock_timeout = '5s';

do $$
begin
    if not (select relrowsecurity from pg_class where oid = 'public.lesson_assets'::regclass) then
        raise exception 'Row-level security is off on public.lesson_assets, so the role could read and change all of its rows'
            using hint = 'Create the policies that the app''s users need, run "alter table public.lesson_assets enable row level security", then run role.sql again.';
    end if;
    if not exists (select from pg_roles where rolname = 'video_ingest') then
        create role video_ingest login;
    end if;
end
$$;

-- A user who is not a superuser must be a member of a role to manage the role's objects.
grant video_ingest to current_user;

-- Each replica opens at most 11 connections, so this is enough for three replicas and one command, such as
-- `doctor`. The rest of the database's connections (60 on Supabase's smallest instances) stays available to
-- the app. Raise the limit if you run more replicas without a transaction pooler.
alter role video_ingest connection limit 40;

-- Settings of the role also apply behind a transaction pooler, where the service cannot use SET.
-- If the app's tables are not in `public`, replace the schema here and below.
alter role video_ingest set search_path = public;
alter role video_ingest set statement_timeout = '10s';
alter role video_ingest set idle_in_transaction_session_timeout = '15s';
-- The statements are short, so compiling them takes longer than running them.
alter role video_ingest set jit = off;

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

-- The role can set the path of a video only to the video's own object, so a stolen password cannot make a row
-- point to the object of another user. This is a trigger and not the policy's WITH CHECK, because a policy
-- would also reject all other updates of rows with a different path, such as those of lessons that were moved
-- to another user.
create or replace function video_ingest.refuse_storage_path() returns trigger language plpgsql as $$
begin
    raise exception 'the role video_ingest cannot set the storage_path of video % to another object', new.id
        using errcode = 'insufficient_privilege';
end
$$;

drop trigger if exists "video_ingest stores videos in their folders" on public.lesson_assets;
create trigger "video_ingest stores videos in their folders"
    before update of storage_path on public.lesson_assets for each row
    when (current_user = 'video_ingest'
          and new.storage_path is distinct from old.storage_path
          and new.storage_path is distinct from new.user_id || '/' || new.lesson_id || '/' || new.id || '.mp4')
    execute function video_ingest.refuse_storage_path();

commit;
