#!/usr/bin/env bash
# Gives everything that reads bytes of others bytes by chance, and watches for panics, hangs and memory.
#
#     tests/fuzz.sh [seconds for each target, 60] [targets, else all]
#
# Needs a nightly toolchain and cargo-fuzz (`cargo install --locked cargo-fuzz`); the first build takes
# some minutes. Ends at the first finding and names its file: that belongs into fixtures/fuzz/<target>,
# where every test run replays it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SECONDS_EACH=${1:-60}
# What one input may take, in seconds, and the process, in MiB.
readonly INPUT_SECONDS_MAX=5 MEMORY_MIB_MAX=512
targets=("${@:2}")
((${#targets[@]})) || mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir tests/fuzz)

for target in "${targets[@]}"; do
    seeds=("fixtures/fuzz/$target")
    case $target in
        mp4 | pointer) seeds+=(fixtures/videos) ;;
        push | form) seeds+=(fixtures/webhooks) ;;
        openhands) seeds+=(fixtures/openhands) ;;
    esac
    # Beside the repository's own inputs, what earlier runs found worth keeping.
    found=tests/fuzz/corpus/$target
    mkdir -p "$found"
    printf '=== %s\n' "$target"
    # No sanitizer: they look for what safe code cannot do, and this crate forbids `unsafe`.
    cargo +nightly fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$found" "${seeds[@]}" -- \
        -max_total_time="$SECONDS_EACH" -timeout="$INPUT_SECONDS_MAX" -rss_limit_mb="$MEMORY_MIB_MAX" \
        -print_final_stats=1 -verbosity=0
done
echo "${#targets[@]} targets, $SECONDS_EACH s each: nothing found"
