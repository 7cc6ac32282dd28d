#!/bin/bash
# demo.sh   A pod from a directory: starts a daemon of its own, runs a pod, shows it, leaves nothing.
#
# PODWRIGHT_BIN_DIR names the directory of the programs. Everything is below one temporary directory,
# so neither /var/lib/podwright nor /etc/podwright is touched.
set -euo pipefail
bin=$(cd "${PODWRIGHT_BIN_DIR:?}" && pwd)
PATH=$bin:$PATH
demo=$(mktemp -d /tmp/podwright-demo.XXXX)
daemon=
finish() {
    status=$?
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        podwright rm --force --all >/dev/null 2>&1 || :
        kill "$daemon" && wait "$daemon" || :
    fi
    [ "$status" -eq 0 ] || { echo "demo: failed; the daemon's log:" >&2; tail -n 40 "$demo/podwrightd.log" >&2; }
    rm -rf "$demo"
}
trap finish EXIT

bold=; plain=
[ ! -t 1 ] || { bold=$'\e[1m'; plain=$'\e[0m'; }
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
# run COMMAND...: shows the command as one would type it, then runs it.
run() {
    local word line=
    for word; do
        case $word in *[!A-Za-z0-9_./:=+-]*) word="'$word'" ;; esac
        line="$line $word"
    done
    printf '%s$%s%s\n' "$bold" "$line" "$plain"
    "$@"
}

say "A root filesystem is a directory. Here is one, made of busybox:"
root=$demo/roots/busybox
mkdir -p "$root"/{bin,dev,etc,proc,root,sys,tmp} "$demo"/{state,run,cni}
cp /bin/busybox "$root/bin/"
for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln "$root/bin/busybox" "$root/bin/$applet"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
run ls "$root"

say "The daemon: the CRI server kubelet would talk to, with a state directory of its own"
cat >"$demo/config.toml" <<T
[server]
socket = "$demo/run/podwright.sock"
[paths]
state = "$demo/state"
run = "$demo/run"
[rootfs]
roots = ["$demo/roots"]
[network]
cni_conf_dirs = ["$demo/cni"]
default = "loopback"
[cgroup]
driver = "cgroupfs"
runtime = "/${demo##*/}"
T
export PODWRIGHT_SOCKET=$demo/run/podwright.sock PODWRIGHT_LOG_DIR=$demo/log
podwrightd --config "$demo/config.toml" >"$demo/podwrightd.log" 2>&1 &
daemon=$!
podwright version --wait 20 >/dev/null
run podwright version

say "A pod of one container, its output followed, gone at its end"
run podwright run --rm --network host --name hello busybox sh -c 'echo "hello from process $$ of $(hostname), root: $(ls / | tr "\n" " ")"; id'

say "One that stays: limited, with a variable and a volume"
mkdir "$demo/volume"
run podwright run --detach --name clock --memory 64m --cpus 0.5 -e WHO=podwright -v "$demo/volume:/data" busybox \
    sh -c 'n=0; while true; do n=$((n+1)); echo "tick $n for $WHO" | tee -a /data/ticks; sleep 0.2; done'
run podwright ps
run podwright exec clock sh -c 'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true'
printf '%s$ podwright logs --follow clock | head -n 4%s\n' "$bold" "$plain"
podwright logs --follow clock | head -n 4

say "The daemon is killed (kill -9). The pod does not notice, and the next daemon finds it"
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || :
podwrightd --config "$demo/config.toml" >>"$demo/podwrightd.log" 2>&1 &
daemon=$!
podwright version --wait 20 >/dev/null
run podwright ps
printf '%s$ podwright logs --follow clock | head -n 8%s\n' "$bold" "$plain"
podwright logs --follow clock | head -n 8

say "Gone"
run podwright stop --time 1 clock
run podwright rm clock
run podwright pods
