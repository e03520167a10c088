#!/bin/sh
# What this program is made of.
#
#     tests/supply-chain.sh        checks licences, sources and bans of all dependencies by .deny.toml
#     tests/supply-chain.sh sbom   prints what is in the binary, as CycloneDX (needs jq)
#
# The first time, cargo-deny is built into target/tools, which takes some minutes. Security advisories
# are not checked here: their database is a git repository of its own. With access to it:
#
#     target/tools/bin/cargo-deny --config .deny.toml check advisories
set -eu
cd "$(dirname "$0")/.."

cargo_deny=0.20.2

if [ "${1-}" = sbom ]; then
    # Dependencies of the tests are not in it.
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
    # Unoptimised: it takes a third of the time to build, and runs for seconds.
    cargo install --quiet --locked --debug --root target/tools "cargo-deny@$cargo_deny"
fi
exec "$tool" --locked --config .deny.toml check bans licenses sources
