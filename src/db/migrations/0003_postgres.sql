-- Postgres only: each statement adds what it changed, as in `counts`.
create or replace function video_ingest.count_inserted() returns trigger language plpgsql as $$
begin
    insert into video_ingest.counts select state, count(*) from inserted group by state;
    insert into video_ingest.failures
    select code, count(*) from inserted where state = 'failed' and code is not null group by code;
    return null;
end $$;

create or replace function video_ingest.count_updated() returns trigger language plpgsql as $$
begin
    insert into video_ingest.counts
    select state, sum(n)
    from (select state, 1 as n from updated union all select state, -1 from replaced) as changes
    group by state having sum(n) <> 0;
    insert into video_ingest.failures
    select code, sum(n)
    from (select code, 1 as n from updated where state = 'failed'
        union all select code, -1 from replaced where state = 'failed') as changes
    where code is not null group by code having sum(n) <> 0;
    return null;
end $$;
