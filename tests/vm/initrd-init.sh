#!/bin/busybox sh
# First process of the virtual machine: loads what the disk needs, mounts it, goes there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in /[0-9]*.ko; do $b insmod "$module"; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o rw,noatime /dev/vda /new || { echo "VM: the root image cannot be mounted"; $b poweroff -f; }
$b umount /proc
$b mount --move /dev /new/dev
exec $b switch_root /new /init
