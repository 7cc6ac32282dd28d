#!/bin/bash
# kernel.sh CACHE   Unpacks a Debian cloud kernel into CACHE: vmlinuz, version, modules/, initrd.cpio.
#
# trixie's kernel (6.12) is preferred: it has idmapped tmpfs and the newer mount calls. It is fetched
# with a package index of its own, from the mirror this machine uses anyway, and nothing is installed.
# Where that fails the kernel of the machine's own Debian serves. Done once, and again when the modules that are wanted change.
set -euo pipefail
cache=$1
# What the tests use, and what that depends on; the rest of the tree stays behind. criu asks for sockets by the *_diag modules.
wanted="virtio_pci virtio_blk virtio_rng ext4 overlay veth bridge dummy loop tun fuse nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet nft_compat xt_MASQUERADE xt_nat xt_tcpudp xt_sctp xt_multiport xt_comment xt_conntrack xt_mark xt_addrtype sch_tbf sch_ingress act_mirred cls_u32 ifb br_netfilter unix_diag tcp_diag udp_diag raw_diag netlink_diag af_packet_diag"
[ "$(cat "$cache/complete" 2>/dev/null)" != "$wanted" ] || exit 0
rm -rf "$cache"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fetch OPTION...: downloads the newest cloud kernel known to apt under these options.
fetch() {
    local package
    package=$(apt-cache "$@" depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
    [ -n "$package" ] && (cd "$work" && apt-get "$@" -qq download "$package" 2>/dev/null) && ls "$work"/linux-image-*.deb >/dev/null
}

trixie() {
    local site keys=/usr/share/keyrings/debian-archive-keyring.gpg
    site=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/\?$') || return 1
    [ -e "$keys" ] || return 1
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    echo "deb [signed-by=$keys] $site trixie main" >"$work/sources.list"
    local own=(-oDir::Etc::SourceList="$work/sources.list" -oDir::Etc::SourceParts=/nonexistent
        -oDir::State::Lists="$work/lists" -oDir::Cache="$work/cache" -oAPT::Sandbox::User=root
        -oAcquire::Languages=none -oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    apt-get "${own[@]}" -qq update && fetch "${own[@]}"
}

trixie 2>/dev/null || fetch -oAPT::Sandbox::User=root || { echo "kernel.sh: no cloud kernel package could be had" >&2; exit 1; }

dpkg -x "$work"/linux-image-*.deb "$work/x"
cp "$work"/x/boot/vmlinuz-* "$cache/vmlinuz"
for found in "$work"/x/lib/modules/* "$work"/x/usr/lib/modules/*; do [ ! -d "$found" ] || modules=$found; done
version=${modules##*/}
echo "$version" >"$cache/version"

mkdir -p "$cache/modules" "$work/initrd"/{bin,dev,proc,sys,new}
order() {
    for module in "$@"; do modprobe -d "$work/tree" -S "$version" --show-depends "$module" 2>/dev/null | awk '/^insmod/ { print $2 }'; done |
        awk '!seen[$0]++'
}
mkdir -p "$work/tree/lib/modules"
mv "$modules" "$work/tree/lib/modules/"
find "$work/tree" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P 2 xz -d
depmod -b "$work/tree" "$version"
# shellcheck disable=SC2086  # a list of words
order $wanted >"$work/order"
while read -r file; do cp "$file" "$cache/modules/"; done <"$work/order"
sed 's|.*/||' "$work/order" >"$cache/modules/order"

# The initrd holds what is needed to mount the root image: a root on an initramfs could not pivot.
cp /bin/busybox "$work/initrd/bin/"
number=10
for file in $(order virtio_pci virtio_blk ext4); do
    cp "$file" "$work/initrd/$number-${file##*/}"
    number=$((number + 1))
done
install -m 0755 "$(dirname "$0")/initrd-init.sh" "$work/initrd/init"
(cd "$work/initrd" && find . | cpio -o -H newc --quiet) >"$cache/initrd.cpio"
echo "$wanted" >"$cache/complete"
echo "vm: kernel $version, $(du -sh "$cache" | cut -f1) kept in ${cache##*/}"
