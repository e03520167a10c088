-- The app's tables without users and policies, for compose.yaml and the tests. In production, the app
-- creates its tables itself.
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
