-- What we know of every delivery. Never the body: it may hold anything, and the branch is the truth.
create table video_ingest.deliveries (
    guid         text   primary key,
    event        text   not null,
    before_sha   text   not null,
    after_sha    text   not null,
    received_at  bigint not null,
    scan         bigint not null,             -- 1: its file lists may be incomplete
    scan_due_at  bigint,                      -- when the tree is to be looked at for it; null: need not, or done
    status       text   not null,
    videos       text   not null,             -- JSON: [{"lesson_id","video_id"}]
    ignored      text   not null,             -- JSON: [{"path","reason"}]
    redeliveries bigint not null default 0
);
create index deliveries_newest on video_ingest.deliveries (received_at desc, guid desc);
create index deliveries_to_scan on video_ingest.deliveries (scan_due_at) where scan_due_at is not null;

-- A video is its own job: `due_at` says when somebody must look at it (running: when its lease ends).
create table video_ingest.videos (
    video_id      text   not null,
    lesson_id     text   not null,
    state         text   not null check (state in ('queued', 'running', 'waiting', 'ready', 'failed')),
    source        text   not null,            -- who asked last
    due_at        bigint,
    requested     bigint not null,            -- how often it was asked for
    observed      bigint not null default 0,  -- up to which request the branch was looked at
    requested_at  bigint not null,
    forced        bigint not null default 0,  -- 1: look again even at a rejected blob
    wanted        text   not null default '', -- the pushes to wait for: commit ids, newest first
    attempts      bigint not null default 0,
    failing_since bigint,
    waiting_since bigint,
    lease_token   text,
    mp4_sha       text,                       -- the pair of blobs last observed
    json_sha      text,
    stored_sha    text,                       -- the blob that the store holds
    commit_sha    text,
    sha256        text,
    size_bytes    bigint,
    duration_ms   bigint,
    width         bigint,
    height        bigint,
    storage_path  text,
    code          text,
    message       text,
    metadata      text,                       -- JSON, allow-listed fields
    warnings      text   not null default '[]',
    created_at    bigint not null,
    updated_at    bigint not null,
    ready_at      bigint,
    primary key (video_id, lesson_id)
);
create index videos_due on video_ingest.videos (due_at) where due_at is not null;
create index videos_newest on video_ingest.videos (updated_at desc, video_id desc);
create index videos_by_state on video_ingest.videos (state, updated_at desc, video_id desc);
create index videos_of_lesson on video_ingest.videos (lesson_id);
create index videos_oldest on video_ingest.videos (state, requested_at) where state in ('queued', 'running');

-- How many videos are in each state: the sum of its entries. Triggers keep it.
create table video_ingest.counts (
    state text   not null,
    n     bigint not null
);

-- A video's timeline.
create table video_ingest.events (
    video_id  text   not null,
    lesson_id text   not null,
    at        bigint not null,
    seq       bigint not null,                -- the order within one millisecond
    step      text   not null,
    detail    text   not null,
    ms        bigint,
    delivery  text                            -- the GUID that asked
);
create index events_of_video on video_ingest.events (video_id, lesson_id, at, seq);
create index events_by_age on video_ingest.events (at);

-- What the agent's API last said of a video that is not there yet.
create table video_ingest.readings (
    video_id        text   primary key,
    conversation_id text   not null,
    reading         text   not null,
    detail          text   not null,
    first_at        bigint not null,          -- since when it says so
    at              bigint not null
);

-- What happened, counted by the hour: pages read this instead of a million videos.
create table video_ingest.hours (
    hour   bigint not null,                   -- its beginning
    what   text   not null,                   -- 'ready', 'failed', or 'took': from the push to ready
    bucket bigint not null,                   -- 'took': how long, see db/stats.rs; else 0
    n      bigint not null,
    primary key (hour, what, bucket)
);

-- Single facts that outlive a process: cursors, the last sweep.
create table video_ingest.marks (
    name  text   primary key,
    value text   not null,
    at    bigint not null
);
