-- Since when the video has its present failure. The same failure of a later attempt keeps it.
alter table video_ingest.videos add column failed_at bigint;
update video_ingest.videos set failed_at = updated_at where state = 'failed';
create index videos_failed on video_ingest.videos (code, updated_at desc, video_id desc, lesson_id desc)
    where state = 'failed';
create index videos_by_code on video_ingest.videos (code, updated_at desc, video_id desc) where code is not null;
create index videos_failed_first on video_ingest.videos (code, failed_at) where state = 'failed';
create index videos_by_commit on video_ingest.videos (commit_sha) where commit_sha is not null;
create index deliveries_by_commit on video_ingest.deliveries (after_sha);

-- How many videos failed with each code: the sum of its entries. Triggers maintain it, as they do for `counts`.
create table video_ingest.failures (
    code text   not null,
    n    bigint not null
);
insert into video_ingest.failures
    select code, count(*) from video_ingest.videos where state = 'failed' and code is not null group by code;
