#!/bin/sh
# kubectl.sh   Fetches the kubectl of Debian's releases into .kubectl-cache/SUITE/kubectl, quietly and once.
#
# Each suite stands for a way of speaking: bookworm's kubectl (1.20) knows SPDY only, trixie's (1.32) tries WebSocket
# first. They are unpacked, not installed; the machine's own package lists and sources are left alone. What
# cannot be had is only said: the tests that need it then count themselves as skipped.
set -eu
cd "$(dirname "$0")/.."
cache=$PWD/.kubectl-cache
mirror=http://deb.debian.org/debian

for of in kubernetes-client/bookworm kubectl/trixie; do
    package=${of%/*} suite=${of#*/}
    kubectl=$cache/$suite/kubectl
    [ ! -x "$kubectl" ] || continue
    command -v apt-get >/dev/null && [ "$(dpkg --print-architecture)" = amd64 ] || {
        echo "kubectl: $suite's cannot be fetched here (no apt-get, or another architecture)" >&2
        continue
    }
    echo "kubectl: fetching $suite's"
    work=$cache/$suite/work
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    # What is installed here is nobody's business: another vendor's kubectl would be thought newer.
    : >"$work/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
    apt() {
        # shellcheck disable=SC2086  # the options have no spaces
        (cd "$work" && apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
            -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o Dir::Cache::Archives="$work/archives" \
            -o Dir::State::Status="$work/status" -o Acquire::Languages=none -o APT::Sandbox::User=root "$@") >>"$work/log" 2>&1
    }
    if apt update && apt download "$package" && dpkg-deb -x "$work/$package"_*.deb "$work/root"; then
        mv "$work/root/usr/bin/kubectl" "$kubectl"
    else
        echo "kubectl: $suite's could not be fetched:" >&2
        tail -n 3 "$work/log" >&2
    fi
    rm -rf "$work"
done
