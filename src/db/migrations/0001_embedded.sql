-- Embedded mode only: the app's table, as the app declares it.
create table lesson_assets (
    id              text   primary key,
    lesson_id       text   not null,
    user_id         text   not null,
    kind            text   not null,
    storage_bucket  text   not null,
    storage_path    text,
    mime_type       text   not null,
    duration_ms     bigint,
    created_at      bigint not null,
    conversation_id text,
    metadata        text
);
