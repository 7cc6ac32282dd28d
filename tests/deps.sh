#!/bin/sh
# deps.sh GROUP...   Installs the Debian packages of the named groups that are missing: quietly, with
# one apt-get call, and not at all when nothing is missing. Groups: build demo test peers vm bench criu.
#
# A package that one group cannot do without is an error; the groups peers, vm, bench and criu are extras,
# so their absence is only said (the vm lane, and each test that wants one, then counts itself as skipped).
# criu is not installed but kept in .criu-cache: see tests/criu.sh.
set -eu

# A line per package: "FILE PACKAGE"; it is missing when the file is. Asking for the file rather than
# for the package also accepts what was installed by other means.
needs() {
    case $1 in
    build) cat <<-'LIST'
		/usr/bin/cc gcc
		/usr/lib/*-linux-gnu/libc.a libc6-dev
		/usr/lib/*-linux-gnu/libseccomp.a libseccomp-dev
		/usr/bin/protoc protobuf-compiler
		LIST
        ;;
    demo) cat <<-'LIST'
		/bin/busybox busybox-static
		/sbin/ip iproute2
		LIST
        ;;
    test) cat <<-'LIST'
		/bin/busybox busybox-static
		/sbin/ip iproute2
		/usr/lib/cni/bridge containernetworking-plugins
		/usr/sbin/iptables iptables
		/usr/sbin/nft nftables
		LIST
        ;;
    peers) cat <<-'LIST'
		/usr/bin/podman podman
		/usr/bin/containerd containerd
		/usr/bin/newuidmap uidmap
		LIST
        ;;
    vm) cat <<-'LIST'
		/usr/bin/qemu-system-x86_64 qemu-system-x86
		/sbin/depmod kmod
		/usr/bin/cpio cpio
		/usr/bin/xz xz-utils
		/sbin/mkfs.ext4 e2fsprogs
		/usr/bin/strip binutils
		LIST
        ;;
    bench) cat <<-'LIST'
		/usr/bin/containerd containerd
		/usr/bin/crun crun
		/usr/sbin/runc runc
		LIST
        ;;
    criu) ;;
    *) echo "deps: no group named $1" >&2; exit 2 ;;
    esac
}

case " $* " in *" criu "*) "$(dirname "$0")/criu.sh" "$(dirname "$0")/../.criu-cache" || : ;; esac

missing=
required=no
for group; do
    for package in $(needs "$group" | while read -r file package; do
        # shellcheck disable=SC2086  # the pattern is meant to expand
        [ -e "$(ls -d $file 2>/dev/null | head -n 1)" ] || echo "$package"
    done); do
        case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
        case $group in peers | vm | bench) ;; *) required=yes ;; esac
    done
done
# busybox-static takes the place of the dynamic busybox, whose file has the same name.
if [ -x /bin/busybox ] && ldd /bin/busybox >/dev/null 2>&1; then
    case " $* " in *" demo "* | *" test "*) missing="$missing busybox-static"; required=yes ;; esac
fi
[ -n "$missing" ] || exit 0

fail() {
    echo "deps: $1" >&2
    [ "$required" = no ] || exit 1
    exit 0
}
command -v apt-get >/dev/null || fail "please install what provides:$missing (this machine has no apt-get)"
[ "$(id -u)" = 0 ] || fail "please run as root: apt-get install$missing"

echo "deps: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# An unreachable source of no interest to us must not end this; the installation itself tells.
apt-get -qq update >"$log" 2>&1 || :
# shellcheck disable=SC2086  # a list of words
apt-get -qq -y --no-install-recommends install $missing >>"$log" 2>&1 || {
    cat "$log" >&2
    fail "apt-get could not install$missing"
}
