#!/usr/bin/env bash
# Proves the README's first commands on a fresh machine: a minimal Debian 12 in a folder, with the Rust
# toolchain of this machine and nothing else, and a clean clone of the last commit.
#
#     sudo tests/fresh-machine.sh
#
# The commands are those of the README, by their markers: `command 0` (what a build needs), `command 1`
# (the demo, with --exit) and `command 2` (the tests). Needs root, debootstrap, debian-archive-keyring.
# How this machine reaches its package registries (proxies, certificates, cargo's and apt's settings)
# holds in there too. The folder is removed at the end; KEEP=1 keeps it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly LINES_SHOWN=12

[[ $(id -u) == 0 ]] || { echo "run me as root: a chroot needs it" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "apt-get install debootstrap debian-archive-keyring" >&2; exit 2; }

toolchain=$(rustc --print sysroot)
root=$(mktemp -d "${TMPDIR:-/var/tmp}/fresh-machine.XXXXXXXX")
log=$root.log
chmod 755 "$root"
clean_up() {
    local status=$?
    if ((status == 0)); then
        rm -f "$log"
    else
        tail -n 40 "$log"
        echo "FAILED; all of it is in $log"
    fi
    # Mounts and processes of the machine lived in namespaces of their own and are gone by now.
    [[ -n ${KEEP:-} ]] || rm -rf --one-file-system "$root"
}
trap clean_up EXIT

# The block of code after a marker of the committed README.
command_of() {
    git show HEAD:README.md | awk -v marker="<!-- $1 -->" '
        $0 == marker { found = 1; next }
        found && /^```/ { if (inside) found = 0; inside = !inside; next }
        found && inside'
}

# Runs a script on the fresh machine. The namespaces take mounts and processes with them at the end.
on_fresh_machine() {
    local settings=() name
    while IFS= read -r name; do
        settings+=("$name=${!name}")
    done < <(compgen -e | grep -iE '^(https?|all|no)_proxy$|^CARGO_(HTTP|NET|REGISTR|SOURCE|BUILD_JOBS)' || true)
    # shellcheck disable=SC2016 # expanded inside
    unshare --mount --pid --fork --kill-child bash -euc '
        root=$1 toolchain=$2; shift 2
        mount -t proc proc "$root/proc"
        mount -t sysfs -o ro sys "$root/sys"
        mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
        mount --bind "$toolchain" "$root/opt/rust"
        mount -o remount,bind,ro "$root/opt/rust"
        exec chroot "$root" env -i "$@"
    ' bash "$root" "$toolchain" \
        HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        SSL_CERT_FILE=/etc/ssl/host.crt CARGO_HTTP_CAINFO=/etc/ssl/host.crt \
        "${settings[@]}" sh -euc "cd /root/video-ingest; $1"
}

# step NAME COMMAND…: runs it with its output in the log, shows the last lines and the time.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    # Not in a condition: that would hide failures in the middle of a function.
    "$@" >"$log" 2>&1
    tail -n "$LINES_SHOWN" "$log"
    printf '=== passed in %d s\n' $((SECONDS - started))
}

install_machine() {
    local mirror=''
    if grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then
        # Files that are not there are no failure.
        mirror=$(sed -nE '/^(URIs:|deb )/ { s/^[^:]*[: ] *(\[.*\] *)?(https?:[^ ]+).*/\2/p; q }' \
            /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
    fi
    debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        bookworm "$root" ${mirror:+"$mirror"}
    apt-config dump | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/90host" || true
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir -p "$root/dev/shm" "$root/etc/ssl" "$root/opt/rust" "$root/root/.cargo"
    cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/host.crt"
    cp "${CARGO_HOME:-$HOME/.cargo}"/config.toml "$root/root/.cargo/" 2>/dev/null || true
    # As in Debian's container images: installing a service does not start it.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    git clone --quiet --depth 1 "file://$PWD" "$root/root/video-ingest"
}

started=$SECONDS
step "a minimal Debian 12" install_machine
for number in 0 1 2; do
    what=$(command_of "command $number")
    [[ -n $what ]] || { echo "README.md has no command $number" >&2; exit 1; }
    [[ $number != 1 ]] || what+=" --exit"
    step "command $number: $what" on_fresh_machine "$what"
done
printf '\n=== all passed in %d s at %s\n' $((SECONDS - started)) "$(git rev-parse --short HEAD)"
