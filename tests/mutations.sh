#!/usr/bin/env bash
# Breaks each invariant of src/lib.rs with small patches, and checks that the tests fail.
#
#     tests/mutations.sh [part of a patch's name]
#
# Each patch in tests/mutations/ names the tests that must fail. It is applied to a copy of this repository.
# Exits with 1 if these tests pass, or if a patch no longer applies or compiles. First, the same tests must
# pass without any patch. Runs one build per patch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TARGET_DIR=$PWD/target/mutations
patches=("$PWD"/tests/mutations/*"${1:-}"*.patch)
# Always the same folder, so that builds are incremental. The copies get new modification times; with the
# old ones, cargo would treat the build of the last mutation as up to date.
copy=$CARGO_TARGET_DIR/copy
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
cd "$copy"
# Inside a repository, git apply would silently ignore files outside this folder.
export GIT_CEILING_DIRECTORIES=$CARGO_TARGET_DIR

field() { sed -n "s/^$1: //p" "$2"; }
# An endless wait is a failure, too, so each run is limited to this many seconds.
readonly TEST_SECONDS_MAX=60
run() { timeout "$TEST_SECONDS_MAX" cargo test --quiet --test it -- "$@" >test.log 2>&1; }

cargo test --quiet --no-run --test it
mapfile -t filters < <(for patch in "${patches[@]}"; do field Tests "$patch"; done | sort -u)
for filter in "${filters[@]}"; do
    if ! run "$filter" || grep -q '^running 0 tests' test.log; then
        cat test.log
        echo "The tests matching '$filter' do not exist or fail without a patch. Fix the filter or the tests." >&2
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
        result='detected'
    fi
    git apply --reverse "$patch"
    [[ $result == detected ]] || survivors=$((survivors + 1))
    printf '%-46s %-34s %s\n' "$(basename "$patch" .patch)" "$filter" "$result"
done
echo "${#patches[@]} mutations, $survivors not detected"
((survivors == 0))
