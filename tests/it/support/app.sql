-- The app's tables, as they are deployed, with its policies. Run by postgres.
create table lessons (
    id          uuid primary key,
    user_id     uuid not null,
    course_id   uuid,
    title       text not null,
    source_type text,
    status      text,
    created_at  timestamptz
);

create table lesson_assets (
    id              uuid primary key,
    lesson_id       uuid not null references lessons (id) on delete cascade,
    user_id         uuid not null,
    kind            text not null check (kind in ('pdf', 'slides', 'notes', 'audio', 'image', 'video', 'other')),
    storage_bucket  text not null,
    storage_path    text,
    mime_type       text not null,
    duration_ms     int,
    created_at      timestamptz not null default now(),
    conversation_id text,
    metadata        jsonb
);

alter table lessons enable row level security;
alter table lesson_assets enable row level security;

create policy "own lessons" on lessons to authenticated
    using (user_id = auth.uid()) with check (user_id = auth.uid());
-- Without TO, as many are written: these are evaluated for every role.
create policy "own assets" on lesson_assets using (user_id = auth.uid());
create policy "assets of own lessons" on lesson_assets for select
    using (exists (select from lessons where lessons.id = lesson_id and lessons.user_id = auth.uid()));
