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
create index lesson_assets_pending_videos on lesson_assets (created_at desc, id desc)
    where kind = 'video' and storage_path is null and mime_type not like 'error:%';

-- Embedded mode only: one writer, so the counts are updated in place.
insert into counts values ('queued', 0), ('running', 0), ('waiting', 0), ('ready', 0), ('failed', 0);

create trigger count_inserted after insert on videos begin
    update counts set n = n + 1 where state = new.state;
end;

create trigger count_updated after update of state on videos when new.state <> old.state begin
    update counts set n = n + case state when new.state then 1 else -1 end
    where state in (new.state, old.state);
end;
