-- The data of compose.yaml, inserted after app.sql: a lesson and a pending row. The service `github`
-- pushes the video.
insert into lessons (id, user_id, title)
values ('1e550000-0000-4000-8000-000000000001', '0e5e0000-0000-4000-8000-000000000001', 'Photosynthesis');

insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
values ('71de0000-0000-4000-8000-000000000001', '1e550000-0000-4000-8000-000000000001',
        '0e5e0000-0000-4000-8000-000000000001', 'video', 'lesson-assets', 'video/mp4');
