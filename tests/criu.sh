#!/bin/sh
# criu.sh CACHE   Unpacks Debian sid's criu and checkpointctl into CACHE, with the libraries they need.
#
# Bookworm's criu (3.17) does not know the vDSO of kernels since 6.13 and fails to restore. sid's wants a
# newer C library than the machine may have, so each program is started by the loader that was unpacked
# with it (CACHE/bin/NAME), and GNU tar and gzip, which criu calls, come along for systems that have only
# busybox. It is fetched with a package index of its own, from the mirror this machine uses anyway, and
# nothing is installed. Done once; later calls find it there.
set -eu
cache=$1
[ ! -e "$cache/complete" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "criu.sh: $1" >&2
    exit 1
}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
command -v apt-get >/dev/null || fail "this machine has no apt-get"
[ -e "$keys" ] || fail "this machine has no $keys"
# shellcheck disable=SC2016  # apt's own placeholder
site=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m1 '/debian/\?$') ||
    site=http://deb.debian.org/debian
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=$keys] $site sid main" >"$work/sources.list"
# No package is known as installed, so that every library is fetched.
: >"$work/status"
own() {
    apt-get -oDir::Etc::SourceList="$work/sources.list" -oDir::Etc::SourceParts=/nonexistent \
        -oDir::State::Lists="$work/lists" -oDir::State::status="$work/status" -oDir::Cache="$work/cache" \
        -oAPT::Sandbox::User=root -oAcquire::Languages=none -oAPT::Install-Recommends=false \
        -oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -qq "$@"
}
own update >"$work/log" 2>&1 && own -y --download-only install criu checkpointctl tar gzip >>"$work/log" 2>&1 || {
    cat "$work/log" >&2
    fail "the packages could not be fetched from Debian sid"
}
rm -rf "$cache"
mkdir -p "$cache/bin"
for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$cache/root"; done
rm -rf "$cache/root/usr/share" "$cache/root/etc" "$cache"/root/usr/lib/*/gconv
loader=$(cd "$cache/root" && ls usr/lib/*/ld-linux*.so.* | head -n 1)
for program in criu checkpointctl tar gzip; do
    file=$(cd "$cache/root" && ls "usr/sbin/$program" "usr/bin/$program" 2>/dev/null | head -n 1)
    cat >"$cache/bin/$program" <<-SCRIPT
		#!/bin/sh
		root=\${0%/*}/../root
		exec "\$root/$loader" --library-path "\$root/${loader%/*}" "\$root/$file" "\$@"
	SCRIPT
    chmod 0755 "$cache/bin/$program"
done
"$cache/bin/criu" --version >"$work/version" 2>&1 || fail "the unpacked criu does not run: $(cat "$work/version")"
touch "$cache/complete"
echo "deps: criu$(sed -n 's/^Version:/ /p' "$work/version" | tr -s ' ') kept in ${cache##*/}"
