-- What: creates an index of the pending rows of `lesson_assets`, so that the status page does not read the
--       whole table.
-- Who:  the owner of the app's tables. On Supabase, this is `postgres`, the user of the SQL editor.
-- When: once. Running it again changes nothing. With a million rows, it takes about a second and blocks
--       writes to the table for that time. Without the index, the status page becomes slower as the
--       table grows.
--
-- The index stays small, because rows leave it when their video becomes ready or fails.
begin;

set local lock_timeout = '5s';

create index if not exists lesson_assets_pending_videos on public.lesson_assets (created_at desc, id desc)
    where kind = 'video' and storage_path is null and mime_type not like 'error:%';

commit;
