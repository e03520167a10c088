-- The app's tables, as they are deployed, without users and policies. For compose.yaml and the tests:
-- where the app is, they are there.
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
