-- What: makes Supabase Realtime publish changes of `lesson_assets`, so that the app updates its badge.
-- Who:  the owner of the app's tables and of the publication. On Supabase, this is `postgres`, the user of
--       the SQL editor.
-- When: once. Running it again changes nothing.
begin;

set local lock_timeout = '5s';

do $$
begin
    if not exists (select from pg_publication where pubname = 'supabase_realtime') then
        create publication supabase_realtime;
    end if;
    -- The view includes the tables of a publication FOR ALL TABLES, where ALTER PUBLICATION would fail.
    if not exists (
        select from pg_publication_tables
        where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'lesson_assets')
    then
        alter publication supabase_realtime add table public.lesson_assets;
    end if;
    -- If the publication does not include updates, the app is not notified when a video becomes ready.
    if not (select pubupdate from pg_publication where pubname = 'supabase_realtime') then
        execute (
            select format('alter publication supabase_realtime set (publish = %L)', concat_ws(', ', 'update',
                case when pubinsert then 'insert' end,
                case when pubdelete then 'delete' end,
                case when pubtruncate then 'truncate' end))
            from pg_publication where pubname = 'supabase_realtime');
    end if;
end
$$;

commit;
