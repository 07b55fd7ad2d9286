#!/bin/sh
# Debian's systemd-creds, which makes and reads credentials. Idempotent.
set -eu
if command -v systemd-creds >/dev/null; then
	exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd
