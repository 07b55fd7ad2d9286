#!/bin/sh
# Debian's JDK, for the Java client. Idempotent; what is already there is left
# alone.
set -eu
if command -v javac >/dev/null; then
	exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openjdk-17-jdk-headless
