-- What: makes Supabase request a sweep every five minutes.
-- Who:  `postgres`, the user of Supabase's SQL editor.
-- When: only if the server runs with RECONCILE_INTERVAL=0. Otherwise the server runs sweeps itself.
--       Running this script again replaces the schedule.
--
-- Before: enable pg_cron and pg_net (Database → Extensions), and store the URL and the token once:
--
--     select vault.create_secret('https://videos.example.org', 'video_ingest_url');
--     select vault.create_secret('<the server''s ADMIN_TOKEN>', 'video_ingest_admin_token');
--
-- Recent responses: select status_code, content, error_msg from net._http_response;
-- To undo:          select cron.unschedule('video-ingest-reconcile');
begin;

do $$
begin
    if (select count(*) from vault.decrypted_secrets
        where name in ('video_ingest_url', 'video_ingest_admin_token')) <> 2
    then
        raise exception 'The vault does not contain video_ingest_url and video_ingest_admin_token'
            using hint = 'Store both as described at the top of pg_cron.sql, then run it again.';
    end if;
end
$$;

-- wait=0, because pg_net waits only seconds for a response. Videos are ingested after the response. The
-- command reads the secrets each time, so that they never appear in cron.job or its log.
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
