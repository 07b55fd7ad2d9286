#!/usr/bin/env bash
# The HTTP and OAuth libraries that Node programs use. Idempotent; installs only
# into .real/clients-node.
set -euo pipefail
axios=1.21.1
openid=6.8.9
cd "$(dirname "$0")/../.."
dir=.real/clients-node
if [ "$(cat "$dir/installed" 2>/dev/null || true)" = "$axios $openid" ]; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
npm install --prefix "$dir" --no-save --no-audit --no-fund --loglevel=error "axios@$axios" "openid-client@$openid"
echo "$axios $openid" >"$dir/installed"
