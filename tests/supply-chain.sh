#!/bin/sh
# Checks and lists the dependencies.
#
#     tests/supply-chain.sh        checks licenses, sources and bans of all dependencies with .deny.toml
#     tests/supply-chain.sh sbom   prints the dependencies in the binary as CycloneDX (requires jq)
#
# The first run builds cargo-deny in target/tools, which takes some minutes. Security advisories are not
# checked here, because their database is a separate git repository. To check them with access to it:
#
#     target/tools/bin/cargo-deny --config .deny.toml check advisories
set -eu
cd "$(dirname "$0")/.."

cargo_deny=0.20.2

if [ "${1-}" = sbom ]; then
    # Without the dependencies of the tests.
    cargo tree --locked --edges normal,build --prefix none --format '{p}	{l}' | sort -u | jq --raw-input --slurp '
        [split("\n")[] | capture("^(?<name>\\S+) v(?<version>\\S+)[^\t]*\t(?<license>.*?)( \\(\\*\\))?$")
            | {type: "library", name, version, purl: "pkg:cargo/\(.name)@\(.version)",
                licenses: [{expression: (.license | gsub(" */ *"; " OR "))}]}]
        | unique_by(.purl) | (map(select(.name == "video-ingest"))[0] | .type = "application") as $self
        | {bomFormat: "CycloneDX", specVersion: "1.5", version: 1, metadata: {component: $self},
            components: map(select(.name != "video-ingest"))}'
    exit
fi

tool=target/tools/bin/cargo-deny
if ! "$tool" --version 2>/dev/null | grep -qx "cargo-deny $cargo_deny"; then
    # Not optimized: this takes a third of the time to build, and the check runs only for seconds.
    cargo install --quiet --locked --debug --root target/tools "cargo-deny@$cargo_deny"
fi
exec "$tool" --locked --config .deny.toml check bans licenses sources
