#!/bin/bash
# check-tree.sh   What must never be in a program's dependencies.
#
# The monitor clones and goes on in Rust without an exec, which is sound only with one thread: nothing
# that starts threads may be in its tree. The engine has no async either.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
for package in podwright-monitor wright runtime; do
    found=$(cargo tree --quiet --package "$package" --edges normal --prefix none --format '{p}' |
        awk '{ print $1 }' | sort -u | grep -xE 'tokio|tonic|hyper|h2|rayon|async-std|smol|crossbeam-.*' || :)
    if [ -n "$found" ]; then
        echo "check: $package depends on" $found "and must not" >&2
        failed=1
    fi
done
exit "$failed"
