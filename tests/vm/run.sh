#!/bin/bash
# run.sh [ARGUMENT...]   Runs the test programs oci, cri and survival in a virtual machine.
#
# Boots a Debian kernel in QEMU once, without KVM, with nothing but cgroup v2, AppArmor and every
# capability, and runs the very executables the other lanes run: they are static. The arguments are
# handed to each of them. Environment: PODWRIGHT_VM_TESTS names other programs, PODWRIGHT_VM_TIMEOUT is
# in seconds.
#
# Ends with 0 also when there is no QEMU or no kernel package; it then says so and counts one skip.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
skip() {
    echo "SKIP vm: $1" | tee -a "${PODWRIGHT_TEST_SKIPS:-/dev/null}"
    # Counted as a test that passed, which the skip then takes back (tests/lanes.sh).
    echo "test result: ok. 1 passed; 0 failed; 0 ignored; the lane was skipped"
    exit 0
}
for program in qemu-system-x86_64 mkfs.ext4 depmod cpio strip; do
    command -v "$program" >/dev/null || [ -x "/sbin/$program" ] || skip "$program is not installed"
done
PATH=$PATH:/sbin:/usr/sbin
cache=$root/.vm-cache
tests/vm/kernel.sh "$cache" || skip "no Debian cloud kernel could be fetched"

programs=${PODWRIGHT_VM_TESTS:-oci cri survival}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
image=$work/image
mkdir -p "$image"/{bin,dev,etc,job/bin,job/tests,proc,root,run,sys,tmp,var/lib} "$image/usr/share"
chmod 1777 "$image/tmp"
ln -s bin "$image/sbin"
cp /bin/busybox "$image/bin/busybox"
for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$image/bin/$applet"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$image/etc/passwd"
printf 'root:x:0:\ntty:x:5:\n' >"$image/etc/group"
echo '127.0.0.1 localhost' >"$image/etc/hosts"
cp -a "$cache/modules" "$image/modules"
install -m 0755 tests/vm/guest-init.sh "$image/init"
echo "$*" >"$image/job/arguments"

# The executables, as cargo names them, without what only a debugger reads.
cargo build --quiet --workspace --bins
for program in podwright podwrightd podwright-monitor wright; do
    strip -o "$image/job/bin/$program" "target/x86_64-unknown-linux-gnu/debug/$program"
done
for program in $programs; do
    executable=$(cargo test --quiet -p podwright-tests --test "$program" --no-run --message-format=json |
        grep -F '"kind":["test"]' | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    strip -o "$image/job/tests/$program" "$executable"
done

truncate -s 3G "$work/disk"
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,nodiscard -m 0 -d "$image" "$work/disk"
rm -rf "$image"
status=0
timeout --foreground -k 5 "${PODWRIGHT_VM_TIMEOUT:-1500}" qemu-system-x86_64 -M q35,usb=off,hpet=on -accel tcg,thread=multi,tb-size=512 \
    -cpu max,la57=off -m 2048 -smp 2 -no-reboot -nodefaults -no-user-config -display none -serial stdio \
    -kernel "$cache/vmlinuz" -initrd "$cache/initrd.cpio" \
    -drive "file=$work/disk,if=none,id=d0,format=raw,cache=unsafe" -device virtio-blk-pci,drive=d0 -device virtio-rng-pci \
    -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on cgroup_no_v1=all psi=1 apparmor=1 lsm=landlock,yama,apparmor,bpf audit=0" \
    </dev/null | stdbuf -o0 tr -d '\r' | tee "$work/console" || status=$?
sed -n 's/^VM-\(SKIP .*\)/\1 (in the virtual machine)/p' "$work/console" >>"${PODWRIGHT_TEST_SKIPS:-/dev/null}"
ended=$(sed -n 's/^VM: done, status \([0-9]*\).*/\1/p' "$work/console")
if [ -z "$ended" ]; then
    echo "vm: the virtual machine did not get to its end (status $status)"
    exit 1
fi
exit "$ended"
