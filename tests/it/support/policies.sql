-- The app's policies on the tables of deploy/app.sql. Run by postgres.
alter table lessons enable row level security;
alter table lesson_assets enable row level security;

create policy "own lessons" on lessons to authenticated
    using (user_id = auth.uid()) with check (user_id = auth.uid());
-- Without TO, as many are written: these are evaluated for every role.
create policy "own assets" on lesson_assets using (user_id = auth.uid());
create policy "assets of own lessons" on lesson_assets for select
    using (exists (select from lessons where lessons.id = lesson_id and lessons.user_id = auth.uid()));
