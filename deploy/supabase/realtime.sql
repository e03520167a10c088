-- What: has Supabase Realtime send the changes of `lesson_assets`, which turn the app's badge green.
-- Who:  the owner of the app's tables and of the publication: on Supabase `postgres`, which is who
--       the SQL editor runs as.
-- When: once. Running it again changes nothing.
begin;

set local lock_timeout = '5s';

do $$
begin
    if not exists (select from pg_publication where pubname = 'supabase_realtime') then
        create publication supabase_realtime;
    end if;
    -- The view also lists the tables of a publication FOR ALL TABLES, to which none can be added.
    if not exists (
        select from pg_publication_tables
        where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = 'lesson_assets')
    then
        alter publication supabase_realtime add table public.lesson_assets;
    end if;
end
$$;

commit;
