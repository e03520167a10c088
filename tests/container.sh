#!/usr/bin/env bash
# Builds deploy/Dockerfile and checks the image: its size, the demo, a push signed by the fake GitHub and
# one sent by hand, the health check, SIGTERM, a second start. Then checks deploy/compose.yaml.
#
#     sudo tests/container.sh
#
# No image is pulled: the images that both files name are built from Debian's packages and this machine's
# Rust toolchain. The script starts a separate Docker daemon on a separate network. Requires, on Debian:
#
#     apt-get install -y docker.io docker-compose debootstrap debian-archive-keyring curl jq
#
# Runs a release build (five to fifteen minutes on two cores). KEEP=<folder> keeps the images in this folder
# for the next run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/debian.sh
. tests/debian.sh

# How much larger than its base the image may be, in bytes.
readonly IMAGE_BYTES_MAX=40000000
# The longest wait for a running container, in seconds.
readonly WAIT_MAX=60
readonly LESSON=1e550000-0000-4000-8000-000000000001 VIDEO=71de0000-0000-4000-8000-000000000001
readonly TOKEN=a-token-for-trials

[[ $(id -u) == 0 ]] || { echo "Run this script as root: the Docker daemon requires it." >&2; exit 2; }
# The images that both files name.
builder=$(sed -n 's/^ARG BUILDER=//p' deploy/Dockerfile)
base=$(sed -n 's/^ARG BASE=//p' deploy/Dockerfile)
postgres=$(sed -n 's/^ *image: \(postgres:.*\)/\1/p' deploy/compose.yaml)
toolchain=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
[[ $builder == rust:$toolchain-* ]] || { echo "deploy/Dockerfile builds with $builder, but rust-toolchain.toml selects $toolchain." >&2; exit 1; }

temp=$(mktemp -d "${TMPDIR:-/var/tmp}/container.XXXXXXXX")
data=${KEEP:-$temp/docker}
# Debian's client comes without BuildKit.
export DOCKER_HOST=unix://$temp/socket DOCKER_CONFIG=$temp DOCKER_BUILDKIT=0
log=$temp/log
daemon=
clean_up() {
    local status=$?
    if ((status != 0)); then
        echo "FAILED; end of the log of the last step:"
        tail -n 40 "$log"
    fi
    if [[ -n $daemon && -n ${KEEP:-} ]]; then
        docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes >"$log"
        docker volume ls --quiet | xargs --no-run-if-empty docker volume rm >"$log"
        docker network prune --force >"$log"
    fi
    stop_daemon
    rm -rf --one-file-system "$temp"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# step NAME COMMAND…: runs the command with its output in the log, and prints how long it took.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '=== %s\n' "$name"
    # Not in a condition, which would hide failures inside a function.
    "$@" >"$log" 2>&1
    printf '=== passed in %d s\n' $((SECONDS - started))
}

# eventually WHAT COMMAND…: tries the command until it succeeds.
eventually() {
    local what=$1 tries
    shift
    for ((tries = WAIT_MAX * 2; tries > 0; tries--)); do
        if "$@"; then return; fi
        sleep 0.5
    done
    echo "Timed out after $WAIT_MAX s, expected: $what." >&2
    return 1
}

# start_daemon [ARGUMENT…]: starts the daemon under `unshare` with these arguments, so that its mounts
# disappear with it. It requires few kernel features, so that it also runs in a sandbox.
start_daemon() {
    echo '{}' >"$temp/daemon.json"
    unshare --mount "$@" dockerd --config-file="$temp/daemon.json" --host="$DOCKER_HOST" --data-root="$data" \
        --exec-root="$temp/run" --pidfile="$temp/pid" --bridge=none --iptables=false --ip6tables=false \
        --ip-forward=false >"$temp/daemon.log" 2>&1 &
    daemon=$!
    eventually 'the Docker daemon is up' docker version >"$temp/version" 2>&1 \
        || { tail -n 20 "$temp/daemon.log" >&2; return 1; }
}

stop_daemon() {
    [[ -n $daemon ]] || return 0
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
}

# import ROOT NAME [CHANGE…]: creates an image from a folder.
import() {
    local root=$1 name=$2 changes=()
    shift 2
    for change in "$@"; do changes+=(--change "$change"); done
    tar --create --directory "$root" --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* . \
        | docker import "${changes[@]}" - "$name"
}

# Like a distroless image: its packages and its user, without a package manager or shell.
make_base() {
    local root=$temp/base deb
    mkdir -p "$root/tmp" "$root/etc/ssl/certs"
    chmod 1777 "$root/tmp"
    chroot "$temp/debian" sh -c 'cd /var/cache/apt && apt-get update -qq \
        && apt-get download -qq base-files netbase tzdata libc6 libgcc-s1 libgomp1 libstdc++6'
    for deb in "$temp"/debian/var/cache/apt/*.deb; do
        dpkg-deb --extract "$deb" "$root"
    done
    cp "$temp/debian/etc/ssl/certs/ca-certificates.crt" "$root/etc/ssl/certs/"
    echo 'nonroot:x:65532:65532::/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
    echo 'nonroot:x:65532:' >"$root/etc/group"
    import "$root" "$base"
}

# The image for the build: a C compiler and the pinned toolchain.
make_builder() {
    local settings=()
    mapfile -t settings < <(debian_settings)
    cp -a "$(rustc --print sysroot)/." "$temp/debian/opt/rust"
    rm -rf "$temp/debian/opt/rust/share/doc" "$temp"/debian/var/cache/apt/*.deb
    import "$temp/debian" "$builder" "ENV PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin" "${settings[@]/#/ENV }"
}

# Debian's Postgres, with the features of the original start script that compose.yaml uses.
make_postgres() {
    mkdir "$temp/postgres"
    cat >"$temp/postgres/start" <<'SH'
#!/bin/sh
set -eu
export PATH="/usr/lib/postgresql/15/bin:$PATH"
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
data=/var/lib/postgresql/data
install -d -o postgres -g postgres -m 700 "$data"
if [ ! -s "$data/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    chown postgres /tmp/password
    as_postgres initdb --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password -D "$data"
    echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
    as_postgres pg_ctl -w -D "$data" -o '-c listen_addresses=' start
    for script in /docker-entrypoint-initdb.d/*.sql; do
        psql -v ON_ERROR_STOP=1 -U postgres -f "$script"
    done
    as_postgres pg_ctl -w -D "$data" stop
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D "$data" -c 'listen_addresses=*'
SH
    chmod 755 "$temp/postgres/start"
    cat >"$temp/postgres/Dockerfile" <<DOCKERFILE
FROM $builder
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-15
COPY start /start
ENV PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["/start"]
DOCKERFILE
    docker build --network=host -t "$postgres" "$temp/postgres"
}

build_image() {
    docker build --network=host -f deploy/Dockerfile -t video-ingest .
    local size base_size
    size=$(docker image inspect --format '{{.Size}}' video-ingest)
    base_size=$(docker image inspect --format '{{.Size}}' "$base")
    image_bytes=$((size - base_size))
    ((image_bytes <= IMAGE_BYTES_MAX))
}

# run NAME [OPTION…] -- [ARGUMENT…]: runs the image with the recommended restrictions.
run() {
    local name=$1 options=()
    shift
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    docker run --name "$name" --read-only --cap-drop=ALL --security-opt=no-new-privileges --memory=512m \
        --pids-limit=1024 --log-opt=max-size=10m --log-opt=max-file=3 "${options[@]}" \
        --env GITHUB_REPOSITORY=acme/video-artifacts --env GITHUB_API_URL=http://127.0.0.1:8081 \
        --env GITHUB_WEBHOOK_SECRET="${secret:-a-secret-for-trials}" --env ADMIN_TOKEN="$TOKEN" video-ingest "$@"
}

state_of_container() { [[ $(docker inspect --format "{{.State.$2}}" "$1") == "$3" ]]; }

is_ready() { docker exec server video-ingest videos show --json "$VIDEO" | jq --exit-status '.state == "ready"'; }

push_is_ingested() {
    run server --detach --network=none --volume data:/data --health-interval=1s --
    eventually 'the server is healthy' state_of_container server Health.Status healthy
    run github --detach --network=container:server -- \
        fake-github --at=127.0.0.1:8081 --deliver-to=http://127.0.0.1:8080 --video="${LESSON}_$VIDEO"
    eventually 'the pushed video is ready' is_ready
}

push_by_hand_needs_the_secret() {
    local send=(webhook send --file=/webhooks/push_added.json --url=http://127.0.0.1:8080)
    local options=(--rm --network=container:server "--volume=$PWD/fixtures/webhooks:/webhooks:ro")
    run signed "${options[@]}" -- "${send[@]}"
    if secret=not-the-secret-for-trials run forged "${options[@]}" -- "${send[@]}"; then
        echo 'A wrong signature was accepted.' >&2
        return 1
    fi
}

sigterm_stops_the_server_and_the_video_stays() {
    docker stop --time=30 server
    state_of_container server ExitCode 0
    docker logs server
    docker start server
    eventually 'the video is still ready' is_ready
    docker rm --force github server
}

# Sends a request on the daemon's network, which contains only containers.
request() { nsenter --net="/proc/$daemon/ns/net" curl --silent --show-error --fail --max-time 5 "$@"; }

compose() { docker-compose --project-name video-ingest --file deploy/compose.yaml "$@"; }

compose_is_ready() {
    request --header "Authorization: Bearer $TOKEN" "http://127.0.0.1:8080/api/videos/$VIDEO" \
        | jq --exit-status '.state == "ready"'
}

compose_up_makes_a_video_ready() {
    compose config --quiet
    compose up --detach --build
    eventually "compose's video is ready" compose_is_ready
    local path
    path=$(compose exec -T postgres psql -U postgres -tAc 'select storage_path from lesson_assets')
    [[ $path == *"/$LESSON/$VIDEO.mp4" ]]
    compose down --volumes --timeout 30
}

started=$SECONDS
step 'a Docker daemon' start_daemon
# The image that is built last: it exists after a run with KEEP.
if ! docker image inspect "$postgres" >"$log" 2>&1; then
    step 'a minimal Debian 12 with a C compiler' minimal_debian "$temp/debian" gcc libc6-dev ca-certificates
    step "$base, from Debian's packages" make_base
    step "$builder, from this machine's toolchain" make_builder
    step "$postgres, from Debian's package" make_postgres
    rm -rf --one-file-system "$temp/debian" "$temp/base"
fi
step 'docker build -f deploy/Dockerfile -t video-ingest .' build_image
printf '=== %d bytes larger than its base\n' "$image_bytes"
stop_daemon
step 'the daemon again, on a separate network' start_daemon --net sh -c 'ip link set lo up && exec "$@"' sh
step 'the demo, with a read-only file system except for its volume' run demo --rm --network=none -- demo --exit
step 'a signed push to a healthy server' push_is_ingested
step 'a push sent by hand, and one with a wrong signature' push_by_hand_needs_the_secret
step 'SIGTERM, and a second start on the same volume' sigterm_stops_the_server_and_the_video_stays
step 'docker-compose up' compose_up_makes_a_video_ready
printf '=== all passed in %d s\n' $((SECONDS - started))
