-- What: removes the service from the database: its role, its schema with everything recorded in it,
--       its rights, policies and index. What belongs to the app stays: its rows, its videos, the columns
--       of columns.sql, the publication and the bucket.
-- Who:  whoever ran role.sql.
-- When: to uninstall, after the service has been stopped.
begin;

set local lock_timeout = '5s';

drop schema if exists video_ingest cascade;
drop index if exists public.lesson_assets_pending_videos;

do $$
begin
    if exists (select from pg_roles where rolname = 'video_ingest') then
        -- Its rights on the app's tables and its policies.
        drop owned by video_ingest;
        drop role video_ingest;
    end if;
end
$$;

commit;
