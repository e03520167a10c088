-- What: removes the service from the database: its schema with all records, its role, privileges, policies,
--       trigger and index. The app's data is kept: rows, videos, the columns of columns.sql, the
--       publication, the buckets and their read policy.
-- Who:  the user who ran role.sql.
-- When: to uninstall the service, after it was stopped.
begin;

set local lock_timeout = '5s';

-- Also drops the trigger on the app's table, whose function is in this schema.
drop schema if exists video_ingest cascade;
drop index if exists public.lesson_assets_pending_videos;

do $$
begin
    if exists (select from pg_roles where rolname = 'video_ingest') then
        -- Removes the role's privileges on the app's tables and its policies.
        drop owned by video_ingest;
        drop role video_ingest;
    end if;
end
$$;

commit;
