-- The app's tables, without its users: for compose.yaml only.
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

-- A video that is being generated; the service `github` pushes it.
insert into lessons (id, user_id, title)
values ('1e550000-0000-4000-8000-000000000001', '0e5e0000-0000-4000-8000-000000000001', 'Photosynthesis');

insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
values ('71de0000-0000-4000-8000-000000000001', '1e550000-0000-4000-8000-000000000001',
        '0e5e0000-0000-4000-8000-000000000001', 'video', 'lesson-assets', 'video/mp4');
