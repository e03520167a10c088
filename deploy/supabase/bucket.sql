-- What: creates a private bucket that accepts MP4 files of up to 50 MiB, or updates an existing bucket to
--       do so. Higher limits and other allowed types of an existing bucket are kept.
-- Who:  `postgres`, the user of Supabase's SQL editor.
-- When: once, and again if the service reports `bucket_missing` or `mime_not_allowed`.
--
-- In older installations of the app, the bucket's name is `lesson_assets`.
begin;

insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
select 'lesson-assets', 'lesson-assets', false, 52428800, array['video/mp4']
where not exists (select from storage.buckets where id in ('lesson-assets', 'lesson_assets'));

-- A bucket without a limit or a list of types accepts everything, so null values are kept.
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
