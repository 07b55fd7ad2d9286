#!/usr/bin/env bash
# moto, a server that speaks AWS's protocols, and Amazon's own Node client for
# Secrets Manager, which cross-checks our adapter. Idempotent; installs only
# into .real/moto.
set -euo pipefail
client=3.1162.0
cd "$(dirname "$0")/../.."
dir=.real/moto
pins=integration/install.d/moto.txt
want="$(cat "$pins") $client"
if [ "$(cat "$dir/installed" 2>/dev/null || true)" = "$want" ]; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins"
npm install --prefix "$dir" --no-save --no-audit --no-fund --loglevel=error "@aws-sdk/client-secrets-manager@$client"
echo "$want" >"$dir/installed"
