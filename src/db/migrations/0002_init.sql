-- The commits that are or were the branch's head. A pushed head is awaited until GitHub's API serves it or a
-- successor, or until two minutes have passed.
create table video_ingest.heads (
    sha           text   primary key,
    parent        text,                       -- the head before it, according to the first push that named it
    first_seen_at bigint not null,            -- when a push named it, or GitHub's API served it
    settled       bigint not null default 0,  -- 1: not awaited: served, or known to be older than another head
    accepted_at   bigint,                     -- when a listing of it became the accepted one; null: never
    served_since  bigint                      -- since when it is served although a newer head is known
);
create index heads_awaited on video_ingest.heads (first_seen_at) where settled = 0;
create index heads_accepted on video_ingest.heads (accepted_at) where accepted_at is not null;
create index heads_doubted on video_ingest.heads (served_since) where served_since is not null;

-- The scan, one for all pushes that require one. Like a video, it is its own job.
create table video_ingest.scan (
    id           bigint primary key check (id = 1),
    requested    bigint not null default 0,   -- the number of requests
    observed     bigint not null default 0,   -- the value of `requested` that the last completed scan served
    requested_at bigint not null default 0,
    forced       bigint not null default 0,   -- 1: for a redelivery, so rejected blobs are requested again
    due_at       bigint,                      -- running: the end of the lease; null: not required
    ended_at     bigint not null default 0,   -- when the last one ended
    lease_token  text
);
insert into video_ingest.scan (id) values (1);
update video_ingest.scan set requested = 1, due_at = 0
    where exists (select 1 from video_ingest.deliveries where scan_due_at is not null);
drop index video_ingest.deliveries_to_scan;
alter table video_ingest.deliveries drop column scan_due_at;

alter table video_ingest.readings rename to statuses;
alter table video_ingest.statuses rename column reading to status;

-- Since when the video waits for its row, its JSON and its MP4, regardless of what failed in between.
alter table video_ingest.videos add column row_since bigint;
alter table video_ingest.videos add column json_since bigint;
alter table video_ingest.videos add column mp4_since bigint;
update video_ingest.videos set row_since = waiting_since where code = 'no_row';
update video_ingest.videos set json_since = waiting_since where code = 'metadata_missing';
update video_ingest.videos set mp4_since = waiting_since where code = 'video_missing';
alter table video_ingest.videos drop column waiting_since;
-- When the object is to be compared again, because an upload without a response may complete late.
alter table video_ingest.videos add column look_again_at bigint;
-- What the failure depended on when it occurred. If this has changed, a sweep retries the video.
alter table video_ingest.videos add column cause text;
-- 1: this server inserted the app's row.
alter table video_ingest.videos add column created_row bigint not null default 0;
-- Replaced by the table `heads`.
alter table video_ingest.videos drop column wanted;
