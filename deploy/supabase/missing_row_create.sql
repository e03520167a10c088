-- What: lets the service insert a pending row for a pushed video that has none, owned by the owner
--       of its lesson.
-- Who:  the owner of the app's tables: on Supabase `postgres`, which is who the SQL editor runs as.
-- When: after role.sql, only if the service runs with MISSING_ROW=create.
--
-- To take it back:
--
--     drop policy "video_ingest inserts videos" on public.lesson_assets;
--     revoke insert on public.lesson_assets from video_ingest;
begin;

set local lock_timeout = '5s';

grant insert (id, lesson_id, user_id, kind, storage_bucket, mime_type)
    on public.lesson_assets to video_ingest;

drop policy if exists "video_ingest inserts videos" on public.lesson_assets;
create policy "video_ingest inserts videos" on public.lesson_assets
    for insert to video_ingest with check (
        kind = 'video'
        and storage_path is null
        and exists (
            select from public.lessons
            where lessons.id = lesson_assets.lesson_id
              and lessons.user_id = lesson_assets.user_id));

commit;
