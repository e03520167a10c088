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
log=$(mktemp)
trap 'rm -f "$log"' EXIT
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
    # No sanitizer: they look for what safe code cannot do, and this crate forbids `unsafe`.
    if ! cargo +nightly fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$found" "${seeds[@]}" -- \
        -max_total_time="$SECONDS_EACH" -timeout="$INPUT_SECONDS_MAX" -rss_limit_mb="$MEMORY_MIB_MAX" \
        -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log"
        exit 1
    fi
    figure() { sed -n "s/^stat::$1: *//p" "$log"; }
    printf '%-10s %10d inputs, at most %d MiB\n' "$target" "$(figure number_of_executed_units)" "$(figure peak_rss_mb)"
done
echo "${#targets[@]} targets, $SECONDS_EACH s each: nothing found"
