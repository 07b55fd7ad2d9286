#!/bin/sh
# Debian's systemd-journal-remote, which writes journals of what a test has in
# mind. It is unpacked and not installed: its service would listen. Idempotent.
set -eu
cd "$(dirname "$0")/../.."
dir=$PWD/.real/journal-remote
[ -x "$dir/lib/systemd/systemd-journal-remote" ] && exit 0
mkdir -p "$dir"
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
apt-get update -qq
(cd "$packages" && apt-get download -qq systemd-journal-remote libmicrohttpd12)
for p in "$packages"/*.deb; do
	dpkg -x "$p" "$dir"
done
