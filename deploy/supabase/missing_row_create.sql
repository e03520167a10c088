-- What: lets the service insert a pending row for a pushed video without one. The row's owner is the
--       owner of the lesson.
-- Who:  the owner of the app's tables. On Supabase, this is `postgres`, the user of the SQL editor.
-- When: only if the service runs with MISSING_ROW=create, after role.sql.
--
-- To undo:
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
