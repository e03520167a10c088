#!/bin/sh
# Installs what the tests need and runs them. On Debian or Ubuntu nothing else is necessary.
#
#     sh tests/run.sh [arguments of cargo test]
set -eu
cd "$(dirname "$0")/.."

# A C compiler for the build, git as a server of repositories, a database, its pooler, a browser, npm
# for what checks accessibility, promtool.
packages='gcc libc6-dev ca-certificates git postgresql pgbouncer chromium chromium-driver npm prometheus'

if ! command -v dpkg-query >/dev/null; then
    echo "This is neither Debian nor Ubuntu: install what these packages hold, then run cargo test:" >&2
    echo "    $packages" >&2
    exit 1
fi

missing=''
for package in $packages; do
    # It comes with Node.js in other ways, too.
    if [ "$package" = npm ] && command -v npm >/dev/null; then continue; fi
    # shellcheck disable=SC2016 # the placeholder is dpkg-query's
    status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done

if [ -n "$missing" ]; then
    echo "installing:$missing"
    if [ "$(id -u)" = 0 ]; then as_root=''; else as_root='sudo'; fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list, on purpose
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi

[ -d tests/axe/node_modules ] || npm ci --prefix tests/axe --ignore-scripts --no-audit --no-fund --silent

exec cargo test "$@"
