-- What: creates the private bucket `lesson-assets`, which accepts MP4 files of up to 50 MiB, and an
--       identical bucket for each other name in the `storage_bucket` column of video rows. Updates the
--       existing buckets `lesson-assets` and `lesson_assets` to accept these files; higher limits and
--       additional allowed types are kept. Other existing buckets are not changed.
-- Who:  `postgres`, the user of Supabase's SQL editor.
-- When: once, and again if the service reports `bucket_missing` or `mime_not_allowed`.
--
-- If STORAGE_BUCKET has another value, replace `lesson-assets` in both places. In older installations of
-- the app, the bucket's name is `lesson_assets`.
begin;

insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
select name, name, false, 52428800, array['video/mp4']
from (
    select 'lesson-assets' as name
    union
    select storage_bucket from public.lesson_assets where kind = 'video'
) as named
-- The names that Supabase Storage accepts.
where name ~ '^[A-Za-z0-9_!.*''() &$@=;:+,?-]{1,100}$'
on conflict do nothing;

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
