#!/usr/bin/env bash
# Fuzzes everything that reads external data with random bytes, and detects panics, hangs and excessive memory.
#
#     tests/fuzz.sh [SECONDS_PER_TARGET] [TARGET…]     default: 60 seconds, all targets
#
# Requires a nightly toolchain and cargo-fuzz (`cargo install --locked cargo-fuzz`); the first build takes
# some minutes. Ends at the first failing input and prints its file. Move the file to
# fixtures/fuzz/<target>, where every test run replays it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SECONDS_EACH=${1:-60}
# The limits of the time per input, in seconds, and of the memory of the process, in MiB.
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
    # In addition to the inputs of the repository, those that earlier runs kept.
    found=tests/fuzz/corpus/$target
    mkdir -p "$found"
    # No sanitizer: sanitizers detect errors of unsafe code, and this crate forbids `unsafe`.
    if ! cargo +nightly fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$found" "${seeds[@]}" -- \
        -max_total_time="$SECONDS_EACH" -timeout="$INPUT_SECONDS_MAX" -rss_limit_mb="$MEMORY_MIB_MAX" \
        -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log"
        exit 1
    fi
    figure() { sed -n "s/^stat::$1: *//p" "$log"; }
    printf '%-10s %10d inputs, at most %d MiB\n' "$target" "$(figure number_of_executed_units)" "$(figure peak_rss_mb)"
done
echo "${#targets[@]} targets, $SECONDS_EACH s each: no failures"
