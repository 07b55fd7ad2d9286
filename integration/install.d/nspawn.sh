#!/bin/sh
# Debian's systemd-nspawn, and a Debian root with systemd, D-Bus and polkit to
# boot in it: built once, into .real. Idempotent.
set -eu
dir=$(cd "$(dirname "$0")/../.." && pwd)/.real/nspawn
if ! command -v systemd-nspawn >/dev/null || ! command -v mmdebstrap >/dev/null; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd-container mmdebstrap
fi
[ ! -e "$dir/.done" ] || exit 0
rm -rf "$dir"
mkdir -p "$dir"
mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,libpam-systemd,procps,iproute2,ca-certificates,polkitd \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' bookworm "$dir/root"
touch "$dir/.done"
