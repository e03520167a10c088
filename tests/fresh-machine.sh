#!/usr/bin/env bash
# Runs the documented commands on a fresh machine: a minimal Debian 12 in a folder, with the Rust toolchain
# of this machine and nothing else, and a clean clone of the last commit.
#
#     sudo tests/fresh-machine.sh [GROUP…]
#
# The commands are the code blocks after the markers `<!-- run GROUP -->` in the files of DOCUMENTS. Without
# arguments, all groups run: build (the packages that a build needs), demo, install, server (a server without
# an account, with the fake GitHub in place of GitHub) and tests. Needs root, debootstrap,
# debian-archive-keyring and iproute2. The folder is removed at the end; KEEP=1 keeps it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=tests/debian.sh
. tests/debian.sh

readonly LINES_SHOWN=12
readonly DOCUMENTS=(README.md deploy/README.md tests/README.md)
readonly GROUPS_ALL=(build demo install server tests)
# The video that the fake GitHub pushes.
readonly PUSHED=1e550000-0000-4000-8000-000000000001_71de0000-0000-4000-8000-000000000001

[[ $(id -u) == 0 ]] || { echo "Run this script as root: chroot requires it." >&2; exit 2; }

toolchain=$(rustc --print sysroot)
root=$(mktemp -d "${TMPDIR:-/var/tmp}/fresh-machine.XXXXXXXX")
log=$root.log
clean_up() {
    local status=$?
    if ((status == 0)); then
        rm -f "$log"
    else
        tail -n 40 "$log"
        echo "FAILED; the complete log is in $log"
    fi
    # Mounts and processes of the machine were in separate namespaces and have disappeared.
    [[ -n ${KEEP:-} ]] || rm -rf --one-file-system "$root"
}
trap clean_up EXIT

# The code blocks after a marker in the committed documents.
commands_of() {
    git show "${DOCUMENTS[@]/#/HEAD:}" | awk -v marker="<!-- run $1 -->" '
        $0 == marker { found = 1; next }
        found && /^```/ { if (inside) found = 0; inside = !inside; next }
        found && inside'
}

# Runs a script on the fresh machine, with UNSHARE=--net on a separate network. At the end, mounts and
# processes disappear with their namespaces.
on_fresh_machine() {
    local settings=()
    mapfile -t settings < <(debian_settings)
    # shellcheck disable=SC2016,SC2086 # expanded by the inner shell; one option or none
    unshare ${UNSHARE:-} --mount --pid --fork --kill-child bash -euc '
        root=$1 toolchain=$2 network=$3; shift 3
        mount -t proc proc "$root/proc"
        mount -t sysfs -o ro sys "$root/sys"
        mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
        mount --bind "$toolchain" "$root/opt/rust"
        mount -o remount,bind,ro "$root/opt/rust"
        [[ -z $network ]] || ip link set lo up
        exec chroot "$root" env -i "$@"
    ' bash "$root" "$toolchain" "${UNSHARE:-}" \
        HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/root/.cargo/bin:/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        "${settings[@]}" sh -euc "cd /root/video-ingest; $1"
}

# step NAME COMMAND…: runs the command with its output in the log, and prints the last lines and the time.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    # Not in a condition, which would hide failures inside a function.
    "$@" >"$log" 2>&1
    tail -n "$LINES_SHOWN" "$log"
    printf '=== passed in %d s\n' $((SECONDS - started))
}

install_machine() {
    minimal_debian "$root"
    git clone --quiet --depth 1 "file://$PWD" "$root/root/video-ingest"
    commit=$(git -C "$root/root/video-ingest" rev-parse --short HEAD)
}

# A server whose settings name a repository of the fake GitHub.
run_server() {
    local serve=$'\nvideo-ingest serve\n'
    local ready=$'\nvideo-ingest serve &\nuntil video-ingest healthcheck; do sleep 1; done\n'
    UNSHARE=--net on_fresh_machine "
        export GITHUB_API_URL=http://127.0.0.1:8081
        GITHUB_REPOSITORY=owner/video-artifacts GITHUB_WEBHOOK_SECRET=not-the-secret-of-the-server \
            video-ingest fake-github --at=127.0.0.1:8081 --deliver-to=http://127.0.0.1:8080 --video=$PUSHED &
        bash -c 'until : </dev/tcp/127.0.0.1/8081; do sleep 0.1; done' 2>/dev/null
        ${1/"$serve"/"$ready"}
        video-ingest videos list --state ready | grep -q ${PUSHED#*_}"
}

started=$SECONDS
step "a minimal Debian 12" install_machine
(($#)) || set -- "${GROUPS_ALL[@]}"
for group in "$@"; do
    commands=$(commands_of "$group")
    [[ -n $commands ]] || { echo "No document has the marker <!-- run $group -->." >&2; exit 1; }
    case $group in
        demo) step "$commands --exit" on_fresh_machine "$commands --exit" ;;
        server) step "$commands" run_server "$commands" ;;
        *) step "$commands" on_fresh_machine "$commands" ;;
    esac
done
printf '\n=== all passed in %d s at %s\n' $((SECONDS - started)) "$commit"
