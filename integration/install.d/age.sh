#!/bin/sh
# Debian's age, the reference implementation's command line. Idempotent; a
# package that is already there is left alone.
set -eu
if command -v age >/dev/null && command -v age-keygen >/dev/null; then
	exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends age
