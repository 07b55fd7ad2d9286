#!/bin/sh
# Debian's Prometheus and its promtool, which judge alert rules, board and
# metrics. They are unpacked, not installed: nothing starts them, and no root
# is needed. Idempotent.
set -eu
dir=$(cd "$(dirname "$0")/../.." && pwd)/.real/prometheus
if [ -x "$dir/usr/bin/promtool" ]; then
	exit 0
fi
mkdir -p "$dir"
cd "$dir"
apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }
dpkg -x prometheus_*.deb .
rm -f prometheus_*.deb
usr/bin/promtool --version
