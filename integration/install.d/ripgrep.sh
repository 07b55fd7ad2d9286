#!/bin/sh
# Debian's ripgrep, which make bench compares the scanner with. It is unpacked,
# not installed: no root is needed. Idempotent.
set -eu
dir=$(cd "$(dirname "$0")/../.." && pwd)/.real/ripgrep
if [ -x "$dir/usr/bin/rg" ] || command -v rg >/dev/null; then
	exit 0
fi
mkdir -p "$dir"
cd "$dir"
apt-get download -qq ripgrep || { apt-get update -qq && apt-get download -qq ripgrep; }
dpkg -x ripgrep_*.deb .
rm -f ripgrep_*.deb
usr/bin/rg --version
