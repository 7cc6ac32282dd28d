#!/bin/sh
# Process 1 on the plain root image: mounts what a host has, as far as containers care, then runs the tests.
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
for controller in cpuset cpu io memory hugetlb pids rdma misc; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done 2>/dev/null
mkdir /sys/fs/cgroup/init.scope
echo 1 >/sys/fs/cgroup/init.scope/cgroup.procs
hostname podwright-vm
ulimit -n 65536
exec /job/run
