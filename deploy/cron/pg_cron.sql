-- What: has Supabase call the server every five minutes, so that a sweep runs wherever the server is.
-- Who:  `postgres`, which is who Supabase's SQL editor runs as.
-- When: only if the server runs with RECONCILE_INTERVAL=0; else it sweeps by itself. Running it again
--       replaces the schedule.
--
-- Before: enable pg_cron and pg_net (Database → Extensions), and store address and token, once:
--
--     select vault.create_secret('https://videos.example.org', 'video_ingest_url');
--     select vault.create_secret('<the server''s ADMIN_TOKEN>', 'video_ingest_admin_token');
--
-- Answers of the last hours: select status_code, content, error_msg from net._http_response;
-- To take it back:           select cron.unschedule('video-ingest-reconcile');
begin;

do $$
begin
    if (select count(*) from vault.decrypted_secrets
        where name in ('video_ingest_url', 'video_ingest_admin_token')) <> 2
    then
        raise exception 'store video_ingest_url and video_ingest_admin_token in the vault first'
            using hint = 'The first lines of pg_cron.sql say how.';
    end if;
end
$$;

-- wait=0: pg_net gives up after seconds; what the sweep finds is ingested all the same. The secrets are
-- looked up at each call, so that neither cron.job nor its log ever holds them.
select cron.schedule('video-ingest-reconcile', '*/5 * * * *', $$
    select net.http_post(
        url := (select rtrim(decrypted_secret, '/') from vault.decrypted_secrets
                where name = 'video_ingest_url') || '/reconcile?wait=0',
        headers := jsonb_build_object('Authorization', 'Bearer ' ||
            (select decrypted_secret from vault.decrypted_secrets
             where name = 'video_ingest_admin_token')),
        timeout_milliseconds := 5000)
$$);

commit;
