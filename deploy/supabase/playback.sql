-- What: lets each user of the app read the videos in their own folder, which `createSignedUrl` requires.
--       The first folder of a video's path is the row's `user_id`.
-- Who:  `postgres`, the user of Supabase's SQL editor.
-- When: once. Not required if the app creates signed URLs on a server with the service role key.
--
-- If rows name other buckets, add them to the list.
begin;

drop policy if exists "owners read lesson videos" on storage.objects;
create policy "owners read lesson videos" on storage.objects
    for select to authenticated
    using (
        bucket_id in ('lesson-assets', 'lesson_assets')
        and (storage.foldername(name))[1] = (select auth.uid())::text
    );

commit;
