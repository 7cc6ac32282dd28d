#!/bin/bash
# systemd.sh CACHE   Makes CACHE/tree: what guests need of this machine's Debian. One with systemd and D-Bus is all of it; the plain
# one takes single programs from it (AppArmor's parser, network plugins, nft, ps and the like).
#
# The packages are fetched and unpacked, not installed: no maintainer script runs, here or there, and what those would do
# (users, links of a merged /usr) is done below. Done once, and again when the packages that are wanted change.
set -euo pipefail
cache=$1
wanted="systemd dbus apparmor nftables iproute2 iptables containernetworking-plugins procps openssl"
[ "$(cat "$cache/complete" 2>/dev/null)" != "$wanted" ] || exit 0
rm -rf "$cache"
mkdir -p "$cache/tree"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As if nothing were installed, so that every dependency is fetched.
mkdir -p "$work/cache/archives/partial"
: >"$work/status"
# shellcheck disable=SC2086  # a list of words
apt-get -oDir::State::status="$work/status" -oDir::Cache="$work/cache" -oAPT::Sandbox::User=root -oDebug::NoLocking=1 \
    -qq -y --no-install-recommends --download-only install $wanted >/dev/null 2>"$work/log" ||
    { cat "$work/log" >&2; echo "systemd.sh: the packages could not be fetched" >&2; exit 1; }

tree=$cache/tree
mkdir -p "$tree"/usr/{bin,sbin,lib,lib64} "$tree"/{dev,etc,proc,root,run,sys,tmp,var/lib,var/log,var/tmp}
for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$tree/$directory"; done
for package in "$work"/cache/archives/*.deb; do
    # What only their maintainer scripts would use.
    case ${package##*/} in perl* | libperl* | lib*-perl_* | debconf* | adduser* | usrmerge* | dpkg_* | tar_* | passwd_*) continue ;; esac
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tree" --keep-directory-symlink --exclude './usr/share/doc' --exclude './usr/share/man' \
        --exclude './usr/share/locale' --exclude './usr/lib/x86_64-linux-gnu/gconv' --exclude './lib/udev/hwdb.d'
done
ln -sf ../lib/systemd/systemd "$tree/usr/sbin/init"

# The rest of the userland is busybox, where the packages have brought nothing better.
cp /bin/busybox "$tree/usr/bin/busybox"
for applet in $(/bin/busybox --list); do
    case $applet in busybox | init | linuxrc | halt | poweroff | reboot) continue ;; esac
    [ -e "$tree/usr/bin/$applet" ] || [ -e "$tree/usr/sbin/$applet" ] || ln -s busybox "$tree/usr/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$tree/etc/passwd"
printf 'root:x:0:\ntty:x:5:\nmessagebus:x:100:\nnogroup:x:65534:\n' >"$tree/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files\n' >"$tree/etc/nsswitch.conf"
echo '127.0.0.1 localhost' >"$tree/etc/hosts"
echo podwright-vm >"$tree/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
# Generators and services that look for hardware, users and disks of which there are none: each would be some forks, and forks are
# what an emulated processor is slow at.
rm -rf "$tree"/usr/lib/systemd/system-generators "$tree"/usr/lib/systemd/user-generators
units=$tree/etc/systemd/system
mkdir -p "$units"
for unit in systemd-sysusers systemd-firstboot systemd-update-done systemd-journal-catalog-update systemd-machine-id-commit \
    systemd-random-seed systemd-binfmt systemd-modules-load kmod-static-nodes systemd-journal-flush systemd-update-utmp \
    systemd-remount-fs systemd-pcrphase-sysinit systemd-pcrphase systemd-tmpfiles-setup-dev ldconfig apparmor; do
    ln -sf /dev/null "$units/$unit.service"
done
echo "$wanted" >"$cache/complete"
echo "vm: systemd $(sed -n 's/^Version: //p' <(dpkg-deb -f "$work"/cache/archives/systemd_*.deb)), $(du -sh "$tree" | cut -f1) kept in ${cache##*/}"
