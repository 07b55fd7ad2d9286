#!/bin/sh
# Debian's strace, which ends a process at each of its steps. Idempotent; a
# package that is already there is left alone.
set -eu
if command -v strace >/dev/null; then
	exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace
