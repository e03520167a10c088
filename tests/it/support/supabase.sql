-- What Supabase puts into a project's database, as far as the app and the service meet it.
grant usage on schema public to anon, authenticated, service_role;

create schema auth;
grant usage on schema auth to postgres, anon, authenticated, service_role;
create function auth.uid() returns uuid language sql stable as $$
    select nullif(current_setting('request.jwt.claims', true)::jsonb ->> 'sub', '')::uuid
$$;

create schema storage;
grant usage on schema storage to postgres, anon, authenticated, service_role;
create table storage.buckets (
    id                 text primary key,
    name               text not null unique,
    public             boolean default false,
    file_size_limit    bigint,
    allowed_mime_types text[]
);
alter table storage.buckets enable row level security;
grant all on storage.buckets to postgres, service_role;

create table storage.objects (
    id        uuid primary key default gen_random_uuid(),
    bucket_id text,
    name      text
);
alter table storage.objects enable row level security;
grant all on storage.objects to anon, authenticated, service_role;
-- Supabase lets postgres manage the policies of this table without owning it.
alter table storage.objects owner to postgres;
create function storage.foldername(name text) returns text[] language sql immutable as $$
    select (string_to_array(name, '/'))[1 : array_length(string_to_array(name, '/'), 1) - 1]
$$;

create publication supabase_realtime;
alter publication supabase_realtime owner to postgres;

-- What postgres creates in public is open to the API's roles; row-level security has to close it.
alter default privileges for role postgres in schema public
    grant all on tables to anon, authenticated, service_role;
