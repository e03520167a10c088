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
end
$$;

commit;
