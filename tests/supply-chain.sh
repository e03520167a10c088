#!/bin/sh
# Checks licences, sources and duplicates of all dependencies by the rules of .deny.toml.
#
# Needs cargo-deny (`cargo install --locked cargo-deny`, some minutes). Security advisories are not
# checked here: their database is a git repository of its own. With access to it:
#
#     cargo deny check --config .deny.toml advisories
set -eu
cd "$(dirname "$0")/.."
exec cargo deny --locked check --config .deny.toml bans licenses sources
