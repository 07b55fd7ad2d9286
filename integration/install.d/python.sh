#!/bin/sh
# Debian's Python, for a plug-in command that nothing of the product is in.
# Idempotent.
set -eu
if [ -x /usr/bin/python3 ]; then
	exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-minimal
