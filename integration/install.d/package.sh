#!/bin/sh
# What the packages are looked at with: Debian's lintian, rpm and man. Their
# versions are the distribution's. Idempotent.
set -eu
if command -v lintian >/dev/null && command -v rpm >/dev/null && command -v man >/dev/null; then
	exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends lintian rpm man-db
