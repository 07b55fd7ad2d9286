#!/bin/sh
# Vault's own core as a program, from its Go module (integration/vaultcore).
# The first build takes a quarter of an hour of processor time. Idempotent;
# installs only into .real/bin.
set -eu
cd "$(dirname "$0")/../vaultcore"
bin=../../.real/bin
want=$(go version && cat go.mod go.sum ./*.go | cksum)
if [ -x "$bin/vaultcore" ] && [ "$(cat "$bin/vaultcore.installed" 2>/dev/null || true)" = "$want" ]; then
	exit 0
fi
mkdir -p "$bin"
rm -f "$bin/vaultcore.installed"
GOWORK=off go build -mod=readonly -ldflags='-s -w' -o "$bin/vaultcore" .
echo "$want" >"$bin/vaultcore.installed"
