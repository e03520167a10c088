-- Embedded mode only: one writer, so the counts are updated in place.
create unique index failures_by_code on failures (code);

create trigger count_failed_inserted after insert on videos when new.state = 'failed' and new.code is not null
begin
    insert into failures values (new.code, 1) on conflict (code) do update set n = n + 1;
end;

create trigger count_failed_before after update of state, code on videos
when old.state = 'failed' and (new.state <> 'failed' or new.code is not old.code)
begin
    update failures set n = n - 1 where code = old.code;
end;

create trigger count_failed_after after update of state, code on videos
when new.state = 'failed' and new.code is not null and (old.state <> 'failed' or new.code is not old.code)
begin
    insert into failures values (new.code, 1) on conflict (code) do update set n = n + 1;
end;
