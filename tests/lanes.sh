#!/bin/bash
# lanes.sh LANE...   Runs the test lanes and counts: a line per lane and a line for all of them.
#
#   unit      the crates' own tests: pure logic, and each module on this kernel
#   oci       wright on this kernel
#   cri       podwrightd on this kernel, over CRI
#   survival  daemons and monitors that are killed
#   vm        oci, cri and survival again, on a Debian kernel with nothing but cgroup v2, AppArmor and
#             every capability; then systemd, in a guest where that is process 1
#
# A test that cannot run says why (tests/support/skip.rs) and is counted as skipped, not as passed. One of oci or cri that fails is
# run once more, alone (tests/twice.sh); what passes then is told as FLAKY.
# What the tests of oci, cri and survival leave on the host is named and counts as a failure (tests/left.sh).
# LANE_ARGS is handed to every test program: LANE_ARGS=--test-threads=1, or part of a test's name.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
here=$PWD/target/lanes
mkdir -p "$here"
total_passed=0 total_failed=0 total_skipped=0
PODWRIGHT_TEST_MARK=$(printf %x $$)
export PODWRIGHT_TEST_MARK

# count LANE STATUS LOG SKIPS: adds up what the test programs printed, and prints the lane's line.
count() {
    local lane=$1 status=$2 log=$3 skips=$4 passed failed ignored skipped flaky
    read -r passed failed ignored < <(sed -n 's/.*test result: [A-Za-z]*\. \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$log" |
        awk '{ p += $1; f += $2; i += $3 } END { print p + 0, f + 0, i + 0 }')
    skipped=$(sort -u "$skips" | grep -c '^SKIP ')
    flaky=$(grep -c '^FLAKY ' "$log")
    passed=$((passed - skipped + flaky)) failed=$((failed - flaky)) skipped=$((skipped + ignored))
    # A program that did not build, or died before it could count, is one failure.
    [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
    sort -u "$skips" | grep '^SKIP ' | sed 's/^/  /'
    grep '^FLAKY ' "$log" | sed 's/^/  /'
    echo "lane $lane: $passed passed, $failed failed, $skipped skipped"
    total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed)) total_skipped=$((total_skipped + skipped))
}

# lane NAME COMMAND...: runs the command with its output shown and kept.
lane() {
    local lane=$1 log=$here/$1.log skips=$here/$1.skips status since
    shift
    : >"$skips"
    since=$(tests/left.sh)
    echo "== lane $lane"
    RUST_LIB_BACKTRACE=0 PODWRIGHT_TEST_SKIPS=$skips "$@" 2>&1 | tee "$log" | grep -Ev '^(test .* \.\.\. ok|running [0-9]+ tests?|)$'
    status=${PIPESTATUS[0]}
    tests/left.sh "$PODWRIGHT_TEST_MARK" "$since" | tee -a "$log"
    # A test that failed and was forgiven has maybe not come as far as to clean up.
    [ "${PIPESTATUS[0]}" -eq 0 ] || grep -q '^FLAKY ' "$log" || status=1
    count "$lane" "$status" "$log" "$skips"
}

for name; do
    case $name in
    unit) lane unit cargo test --quiet --no-fail-fast --workspace --exclude podwright-tests --lib --bins --tests ;;
    oci | cri)
        # shellcheck disable=SC2086  # words are meant
        lane "$name" tests/twice.sh cargo test --quiet -p podwright-tests --test "$name" -- ${LANE_ARGS:-} ;;
    survival)
        # shellcheck disable=SC2086
        lane survival cargo test --quiet -p podwright-tests --test survival -- ${LANE_ARGS:-} ;;
    vm)
        # shellcheck disable=SC2086
        lane vm tests/vm/run.sh ${LANE_ARGS:-} ;;
    *) echo "lanes.sh: no lane named $name" >&2; exit 2 ;;
    esac
done
echo "$total_passed passed, $total_failed failed, $total_skipped skipped"
[ "$total_failed" -eq 0 ]
