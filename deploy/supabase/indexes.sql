-- What: an index over the rows of `lesson_assets` whose video is still being generated, so that the
--       service's pages read only those and not the whole table.
-- Who:  the owner of the app's tables: on Supabase `postgres`, which is who the SQL editor runs as.
-- When: once. Running it again changes nothing. On a million rows it takes about a second, in which
--       nobody can write to the table. Nothing breaks without it: pages get slower with the table.
--
-- It is small: a row leaves it when its video is ready or has failed.
begin;

set local lock_timeout = '5s';

create index if not exists lesson_assets_pending_videos on public.lesson_assets (created_at desc, id desc)
    where kind = 'video' and storage_path is null and mime_type not like 'error:%';

commit;
