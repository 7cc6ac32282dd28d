#!/bin/sh
# Process 1 on the root image: a host like any with systemd, as far as containers care, then the tests.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /dev/pts /dev/shm /dev/mqueue /run/netns
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount --make-rshared /
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
for controller in cpuset cpu io memory hugetlb pids rdma misc; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done 2>/dev/null
mkdir /sys/fs/cgroup/init.scope
echo 1 >/sys/fs/cgroup/init.scope/cgroup.procs
ip link set lo up
hostname podwright-vm
ulimit -n 65536
read -r up _ </proc/uptime
echo "VM: $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers), LSM $(cat /sys/kernel/security/lsm), up after ${up} s"
cd /job || exit 1
export PODWRIGHT_BIN_DIR=/job/bin PODWRIGHT_TEST_SLOWNESS=10 PODWRIGHT_TEST_SKIPS=/job/skips TMPDIR=/tmp RUST_BACKTRACE=0
: >skips
failed=0
for program in tests/*; do
    echo "VM: ${program##*/}"
    "$program" --test-threads=2 $(cat arguments) || failed=1
done
while read -r line; do echo "VM-$line"; done <skips
read -r up _ </proc/uptime
echo "VM: done, status $failed, up $up s"
mount -o remount,ro / 2>/dev/null
echo o >/proc/sysrq-trigger
sleep 60
