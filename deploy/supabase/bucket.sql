-- What: a private bucket that takes MP4 files of up to 50 MiB. Of a bucket that exists, a higher
--       limit and the other allowed types stay as they are.
-- Who:  `postgres`, which is who Supabase's SQL editor runs as.
-- When: once, and whenever the service reports `bucket_missing` or `mime_not_allowed`.
--
-- `lesson_assets` is the bucket's name in older set-ups of the app.
begin;

insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
select 'lesson-assets', 'lesson-assets', false, 52428800, array['video/mp4']
where not exists (select from storage.buckets where id in ('lesson-assets', 'lesson_assets'));

-- No limit and no list mean that nothing is refused: both stay so.
update storage.buckets
set public = false,
    file_size_limit = case when file_size_limit < 52428800 then 52428800 else file_size_limit end,
    allowed_mime_types = case
        when 'video/mp4' = any (allowed_mime_types) then allowed_mime_types
        when cardinality(allowed_mime_types) > 0 then allowed_mime_types || array['video/mp4']
        else allowed_mime_types
    end
where id in ('lesson-assets', 'lesson_assets');

commit;
