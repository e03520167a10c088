-- Postgres only: each statement adds what it changed to the counts. Entries are added and never updated, so
-- that nobody waits for anybody; who reads them folds them, see db/stats.rs.
create function video_ingest.count_inserted() returns trigger language plpgsql as $$
begin
    insert into video_ingest.counts select state, count(*) from inserted group by state;
    return null;
end $$;

create function video_ingest.count_updated() returns trigger language plpgsql as $$
begin
    insert into video_ingest.counts
    select state, sum(n)
    from (select state, 1 as n from updated union all select state, -1 from replaced) as changes
    group by state having sum(n) <> 0;
    return null;
end $$;

create trigger count_inserted after insert on video_ingest.videos
    referencing new table as inserted
    for each statement execute function video_ingest.count_inserted();

create trigger count_updated after update on video_ingest.videos
    referencing old table as replaced new table as updated
    for each statement execute function video_ingest.count_updated();
