#!/bin/sh
# twice.sh PROGRAM [ARGUMENT...]   Runs a test program. Of its tests, those that failed are run once more, each alone.
#
# Hundreds of tests at once on two processors, some of them emulated, are each other's weather: a test that fails in that and
# passes alone is reported as FLAKY, with all that it said, and counted, so that somebody looks for the reason; it does not stop
# everybody's work. More than five failures are no weather. Ends with 0 when every test passed, at the first try or the second.
#
# The lanes where a failure is a lost container (survival, systemd) get no second try.
log=$(mktemp) status=$(mktemp)
trap 'rm -f "$log" "$status"' EXIT
{
    "$@" 2>&1
    echo $? >"$status"
} | tee "$log"
read -r ended <"$status"
[ "$ended" -ne 0 ] || exit 0
failed=$(sed -n 's/^---- \(.*\) stdout ----$/\1/p' "$log")
count=$(echo "$failed" | wc -w)
if [ "$count" -eq 0 ] || [ "$count" -gt 5 ]; then exit "$ended"; fi
again=0
for name in $failed; do
    echo "once more, alone: $name"
    if RUST_TEST_THREADS=1 "$@" --exact "$name" >"$log" 2>&1; then
        echo "FLAKY $name: failed, and passed when it was run once more alone"
    else
        # Counted already.
        grep -v '^test result: ' "$log"
        again=1
    fi
done
exit $again
