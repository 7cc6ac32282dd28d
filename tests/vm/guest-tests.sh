#!/bin/sh
# In the guest: loads the modules, runs the test programs of /job/tests, tells how they ended, and powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
ip link set lo up
mkdir -p /run/netns
read -r up _ </proc/uptime
read -r name </proc/1/comm
echo "VM: $name on $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers), LSM $(cat /sys/kernel/security/lsm), up after ${up} s"
cd /job || exit 1
export PODWRIGHT_BIN_DIR=/job/bin PODWRIGHT_TEST_SLOWNESS=10 PODWRIGHT_TEST_SKIPS=/job/skips TMPDIR=/tmp RUST_BACKTRACE=0
export RUST_TEST_THREADS=2
: >skips
failed=0
for program in tests/*; do
    echo "VM: ${program##*/}"
    case $program in
    */oci | */cri) ./twice "$program" $(cat arguments) || failed=1 ;;
    *) "$program" $(cat arguments) || failed=1 ;;
    esac
done
while read -r line; do echo "VM-$line"; done <skips
read -r up _ </proc/uptime
echo "VM: done, status $failed, up $up s"
mount -o remount,ro / 2>/dev/null
echo o >/proc/sysrq-trigger
sleep 60
