-- What: adds the columns of `lesson_assets` that older databases of the app lack.
-- Who:  the owner of the app's tables. On Supabase, this is `postgres`, the user of the SQL editor.
-- When: once, before role.sql. Running it again changes nothing.
begin;

-- While ALTER TABLE waits for its lock, it blocks the app's queries. Fail after five seconds instead.
set local lock_timeout = '5s';

alter table public.lesson_assets
    add column if not exists conversation_id text,
    add column if not exists metadata jsonb;

commit;
