#!/bin/sh
# Debian's nginx, which make bench compares with. It is unpacked, not installed:
# nothing starts it, and no root is needed. Idempotent.
set -eu
dir=$(cd "$(dirname "$0")/../.." && pwd)/.real/nginx
if [ -x "$dir/usr/sbin/nginx" ] || command -v nginx >/dev/null || [ -x /usr/sbin/nginx ]; then
	exit 0
fi
mkdir -p "$dir"
cd "$dir"
apt-get download -qq nginx || { apt-get update -qq && apt-get download -qq nginx; }
dpkg -x nginx_*.deb .
rm -f nginx_*.deb
usr/sbin/nginx -v
