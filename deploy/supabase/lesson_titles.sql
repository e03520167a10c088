-- What: lets the service read the titles of lessons. Its status page, API and commands then show them beside
--       the lessons' ids. The service can then read the titles of all lessons.
-- Who:  the owner of the app's tables. On Supabase, this is `postgres`, the user of the SQL editor.
-- When: optional, after role.sql. Run it again whenever role.sql was run again.
--
-- To undo:
--
--     revoke select (title) on public.lessons from video_ingest;
begin;

set local lock_timeout = '5s';

grant select (title) on public.lessons to video_ingest;

commit;
