-- What: adds the columns of `lesson_assets` that older databases of the app lack.
-- Who:  the owner of the app's tables: on Supabase `postgres`, which is who the SQL editor runs as.
-- When: once, before role.sql. Running it again changes nothing.
begin;

-- A waiting ALTER TABLE makes the app wait too: better to give up and be run again.
set local lock_timeout = '5s';

alter table public.lesson_assets
    add column if not exists conversation_id text,
    add column if not exists metadata jsonb;

commit;
