#!/bin/bash
# shellcheck disable=SC2001,SC2012,SC2013  # names are plain
# left.sh MARK SINCE   Says what the tests that were run with PODWRIGHT_TEST_MARK=MARK have left on this host, and ends with 1 if it is anything.
# left.sh              Says what of the host's own there is to begin with, for SINCE.
#
# By the mark everything of theirs is known, so that other people's tests beside are nobody's fault: directories, cgroups, mounts,
# processes. What bears no mark is compared with SINCE: the cgroup of a daemon that was not told its own, which no test may have,
# counts; links, network namespaces and tables of rules may be somebody else's, or a kernel module's, and are only told.
own() { find /sys/fs/cgroup -maxdepth 2 -type d -name podwright 2>/dev/null; }
shared() {
    sed -n 's/^ *\([^:|]*\):.*/link \1/p' /proc/net/dev
    ls /run/netns 2>/dev/null | sed 's/^/network namespace /'
    nft list tables 2>/dev/null
    find /sys/fs/cgroup -maxdepth 2 -type d 2>/dev/null | grep -v 'podwright-\|/pw' | sed 's/^/cgroup /'
}
state() { { own | sed 's/^/own /'; shared; } | sort -u; }
if [ $# -eq 0 ]; then
    state
    exit
fi
marked() {
    # No process of this script may have the pattern itself among its arguments.
    local pattern="[p]w${1}_"
    find "${TMPDIR:-/tmp}" /tmp -maxdepth 1 -name "$pattern*" -printf 'directory %p\n' | sort -u
    find /sys/fs/cgroup -type d -name "*$pattern*" -printf 'cgroup %p\n' 2>/dev/null
    awk '{ print "mount " $5 }' /proc/self/mountinfo | grep "$pattern"
    for process in $(grep -las "$pattern" /proc/[0-9]*/cmdline); do
        echo "process ${process//[!0-9]/}: $(tr '\0' ' ' <"$process" 2>/dev/null)"
    done
}
# What cleans up after a container of somebody else's, podman's for one, is nobody's child, and may take a moment more.
for _ in {1..50}; do
    new=$(comm -13 <(sort -u <<<"$2") <(state))
    left=$(marked "$1"; grep '^own ' <<<"$new" | sed 's/^own /cgroup /')
    [ -n "$left" ] || break
    sleep 0.2
done
grep -v '^own ' <<<"$new" | sed '/^$/d; s/^/  new on this host since, of these tests or not: /'
[ -n "$left" ] || exit 0
sed 's/^/LEFT /' <<<"$left"
exit 1
