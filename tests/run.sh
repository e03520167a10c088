#!/bin/sh
# Installs the dependencies of the tests on Debian or Ubuntu and runs the tests.
#
#     sh tests/run.sh [arguments of cargo test]
set -eu
cd "$(dirname "$0")/.."

# A C compiler for the build, git for local repositories, a database and its pooler, a browser, npm for
# the accessibility checks, and promtool.
packages='gcc libc6-dev ca-certificates git postgresql pgbouncer chromium chromium-driver npm prometheus'

if ! command -v dpkg-query >/dev/null; then
    echo "This is neither Debian nor Ubuntu. Install the programs from these packages, then run cargo test:" >&2
    echo "    $packages" >&2
    exit 1
fi

missing=''
for package in $packages; do
    # npm may also come with another installation of Node.js.
    if [ "$package" = npm ] && command -v npm >/dev/null; then continue; fi
    # shellcheck disable=SC2016 # a placeholder of dpkg-query
    status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done

if [ -n "$missing" ]; then
    echo "Installing:$missing"
    if [ "$(id -u)" = 0 ]; then as_root=''; else as_root='sudo'; fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi

[ -d tests/axe/node_modules ] || npm ci --prefix tests/axe --ignore-scripts --no-audit --no-fund --silent

exec cargo test "$@"
