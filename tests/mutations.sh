#!/usr/bin/env bash
# Breaks each invariant of src/lib.rs on purpose, one line at a time, and shows that a test notices.
#
#     tests/mutations.sh [part of a patch's name]
#
# Each patch of tests/mutations/ is applied to a copy, never to this folder, and names the tests that
# must fail. Exits with 1 if one of them passes all the same, or if a patch no longer applies or
# compiles. Beforehand the same tests must pass without any patch. Takes a build per patch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TARGET_DIR=$PWD/target/mutations
patches=("$PWD"/tests/mutations/*"${1:-}"*.patch)
# Always the same place, so that a build can build on the last one; without the old times, by which
# cargo would take what a mutant left for up to date.
copy=$CARGO_TARGET_DIR/copy
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
cd "$copy"
# Inside a repository, git apply would pass over files that are not below this folder, without a word.
export GIT_CEILING_DIRECTORIES=$CARGO_TARGET_DIR

field() { sed -n "s/^$1: //p" "$2"; }
# A panic or a wait without end are failures too, so a mutant gets this many seconds.
readonly TEST_SECONDS_MAX=60
run() { timeout "$TEST_SECONDS_MAX" cargo test --quiet --test it -- "$@" >test.log 2>&1; }

cargo test --quiet --no-run --test it
mapfile -t filters < <(for patch in "${patches[@]}"; do field Tests "$patch"; done | sort -u)
for filter in "${filters[@]}"; do
    if ! run "$filter" || grep -q '^running 0 tests' test.log; then
        cat test.log
        echo "'$filter' must name tests, and they must pass, before anything is broken" >&2
        exit 1
    fi
done

survivors=0
printf '%-46s %-34s %s\n' patch tests result
for patch in "${patches[@]}"; do
    filter=$(field Tests "$patch")
    git apply "$patch"
    if ! cargo test --quiet --no-run --test it >build.log 2>&1; then
        cat build.log
        result='does not compile'
    elif run "$filter"; then
        result=SURVIVED
    else
        result='noticed'
    fi
    git apply --reverse "$patch"
    [[ $result == noticed ]] || survivors=$((survivors + 1))
    printf '%-46s %-34s %s\n' "$(basename "$patch" .patch)" "$filter" "$result"
done
echo "${#patches[@]} mutations, $survivors not noticed"
((survivors == 0))
