#!/bin/bash
# run.sh [ARGUMENT...]   Runs the test programs oci, cri and survival in one virtual machine, and systemd in another.
#
# Boots a Debian kernel in QEMU, without KVM, with nothing but cgroup v2, AppArmor and every capability, and runs the very
# executables the other lanes run: they are static. The first guest's userland is busybox, AppArmor's parser, and what the tests
# call (network plugins, nft, ps, openssl); the second has systemd as process 1. The arguments are handed to each program. Environment: PODWRIGHT_VM_TESTS names other programs,
# PODWRIGHT_VM_TIMEOUT is in seconds and for one guest.
#
# Ends with 0 also when there is no QEMU or no package; it then says so and counts one skip.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
skip() {
    echo "SKIP $1" | tee -a "${PODWRIGHT_TEST_SKIPS:-/dev/null}"
    # Counted as a test that passed, which the skip then takes back (tests/lanes.sh).
    echo "test result: ok. 1 passed; 0 failed; 0 ignored; the lane was skipped"
}
for program in qemu-system-x86_64 mkfs.ext4 depmod cpio strip; do
    command -v "$program" >/dev/null || [ -x "/sbin/$program" ] || { skip "vm: $program is not installed"; exit 0; }
done
PATH=$PATH:/sbin:/usr/sbin
cache=$root/.vm-cache
tests/vm/kernel.sh "$cache" || { skip "vm: no Debian cloud kernel could be fetched"; exit 0; }
tree=$cache/systemd/tree
tests/vm/systemd.sh "$cache/systemd" || tree=

plain= systemd=
for program in ${PODWRIGHT_VM_TESTS:-oci cri survival systemd}; do
    case $program in systemd) systemd=systemd ;; *) plain="$plain $program" ;; esac
done
if [ -n "$systemd" ] && [ -z "$tree" ]; then
    skip "vm::systemd: the packages of systemd could not be fetched"
    systemd=
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The executables, as cargo names them, without what only a debugger reads.
cargo build --quiet --workspace --bins
mkdir -p "$work"/{bin,tests}
for program in podwright podwrightd podwright-monitor wright; do
    strip -o "$work/bin/$program" "target/x86_64-unknown-linux-gnu/debug/$program"
done
for program in $plain $systemd; do
    executable=$(cargo test --quiet -p podwright-tests --test "$program" --no-run --message-format=json |
        grep -F '"kind":["test"]' | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    strip -o "$work/tests/$program" "$executable"
done

# job IMAGE PROGRAM...: what every guest has: the modules, the executables, the script that runs the tests.
job() {
    local image=$1 program
    shift
    mkdir -p "$image"/job/tests
    cp -a "$cache/modules" "$image/modules"
    cp -a "$work/bin" "$image/job/bin"
    for program; do cp "$work/tests/$program" "$image/job/tests/"; done
    install -m 0755 tests/vm/guest-tests.sh "$image/job/run"
    install -m 0755 tests/twice.sh "$image/job/twice"
    echo "$arguments" >"$image/job/arguments"
}

# take IMAGE DIRECTORY FILE...: programs out of the unpacked packages, with the loader and the libraries they name.
take() {
    local image=$1 directory=$2 file library loader=$tree/usr/lib64/ld-linux-x86-64.so.2 libraries=lib/x86_64-linux-gnu
    shift 2
    mkdir -p "$image/$directory"
    cp -L "$loader" "$image/lib64/"
    for file; do
        rm -f "$image/$directory/${file##*/}"
        cp -L "$tree/$file" "$image/$directory/"
        "$loader" --library-path "$tree/usr/$libraries" --list "$tree/$file" | awk '/ => \// { print $3 }' |
            while read -r library; do cp -Lu "$library" "$image/$libraries/"; done
    done
}

# plain_image IMAGE: busybox, the parser of AppArmor profiles, and what tests call, with what they need.
plain_image() {
    local image=$1 applet
    mkdir -p "$image"/{bin,dev,etc,proc,root,run,sys,tmp,var/lib,lib64,lib/x86_64-linux-gnu} "$image/usr/share"
    chmod 1777 "$image/tmp"
    ln -s bin "$image/sbin"
    ln -s ../bin "$image/usr/sbin"
    cp /bin/busybox "$image/bin/busybox"
    for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$image/bin/$applet"; done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$image/etc/passwd"
    printf 'root:x:0:\ntty:x:5:\n' >"$image/etc/group"
    echo '127.0.0.1 localhost' >"$image/etc/hosts"
    if [ -n "$tree" ]; then
        take "$image" bin usr/sbin/{apparmor_parser,nft,tc,xtables-nft-multi} usr/bin/{ip,ps,openssl}
        for applet in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore; do
            ln -s xtables-nft-multi "$image/bin/$applet"
        done
        take "$image" usr/lib/cni usr/lib/cni/{bandwidth,bridge,firewall,host-local,loopback,portmap,ptp,tuning}
        # Where iptables looks for its matches and targets, and openssl for its defaults.
        mkdir -p "$image/usr/lib/ssl" "$image/usr/lib/x86_64-linux-gnu"
        cp -a "$tree/usr/lib/x86_64-linux-gnu/xtables" "$image/usr/lib/x86_64-linux-gnu/"
        cp "$tree/etc/ssl/openssl.cnf" "$image/usr/lib/ssl/"
        cp -a "$tree/etc/apparmor" "$tree/etc/apparmor.d" "$image/etc/"
        cp -a "$tree/usr/share/apparmor-features" "$image/usr/share/"
    fi
    install -m 0755 tests/vm/guest-init.sh "$image/init"
}

# systemd_image IMAGE: process 1 is systemd, and the tests are a unit.
systemd_image() {
    local image=$1 units=$1/etc/systemd/system
    cp -a "$tree/." "$image/"
    mkdir -p "$image/root" "$image/var/lib"
    chmod 1777 "$image/tmp" "$image/var/tmp"
    ln -s usr/lib/systemd/systemd "$image/init"
    cp tests/vm/guest-tests.service "$units/"
    # The units as they are installed.
    mkdir -p "$image/usr/local/bin" "$image/etc/podwright"
    cp "$work"/bin/* "$image/usr/local/bin/"
    for unit in podwrightd.service podwrightd.socket; do sed 's|@PREFIX@|/usr/local|g' "manifests/$unit" >"$units/$unit"; done
}

# boot NAME PROGRAM...: makes the guest's image, runs it to its end, and passes on how its tests ended.
boot() {
    local name=$1 image=$work/image status=0 attempt ended
    shift
    mkdir "$image"
    "${name}_image" "$image"
    job "$image" "$@"
    rm -f "$work/disk"
    truncate -s 3G "$work/disk"
    mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,nodiscard -m 0 -d "$image" "$work/disk"
    rm -rf "$image"
    # An emulated kernel that patches its code while both its processors run has been seen to crash on its way up; no test had begun.
    for attempt in 1 2 3; do
        timeout --foreground -k 5 "${PODWRIGHT_VM_TIMEOUT:-3000}" qemu-system-x86_64 -M q35,usb=off,hpet=on -accel tcg,thread=multi,tb-size=512 \
            -cpu max,la57=off -m 2048 -smp 2 -no-reboot -nodefaults -no-user-config -display none -serial stdio \
            -kernel "$cache/vmlinuz" -initrd "$cache/initrd.cpio" \
            -drive "file=$work/disk,if=none,id=d0,format=raw,cache=unsafe" -device virtio-blk-pci,drive=d0 -device virtio-rng-pci \
            -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on cgroup_no_v1=all psi=1 apparmor=1 lsm=landlock,yama,apparmor,bpf audit=0 systemd.show_status=0 systemd.unit=guest-tests.service" \
            </dev/null | stdbuf -o0 tr -d '\r' | tee "$work/console" || status=$?
        ! grep -q '^VM: ' "$work/console" || break
        echo "vm: the virtual machine ($name) did not come up at attempt $attempt of 3"
    done
    sed -n 's/^VM-\(SKIP .*\)/\1 (in the virtual machine)/p' "$work/console" >>"${PODWRIGHT_TEST_SKIPS:-/dev/null}"
    ended=$(sed -n 's/^VM: done, status \([0-9]*\).*/\1/p' "$work/console")
    if [ -z "$ended" ]; then
        echo "vm: the virtual machine ($name) did not get to its end (status $status)"
        return 1
    fi
    return "$ended"
}

arguments=$*
failed=0
# shellcheck disable=SC2086  # a list of words
[ -z "$plain" ] || boot plain $plain || failed=1
[ -z "$systemd" ] || boot systemd systemd || failed=1
exit "$failed"
