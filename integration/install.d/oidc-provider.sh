#!/bin/sh
# oidc-provider, an authorization server for Node. Idempotent; installs only
# into .real/oidc-provider.
set -eu
version=9.13.3
cd "$(dirname "$0")/../.."
dir=.real/oidc-provider
if [ "$(cat "$dir/installed" 2>/dev/null || true)" = "$version" ]; then
	exit 0
fi
mkdir -p "$dir"
rm -f "$dir/installed"
npm install --prefix "$dir" --no-save --no-audit --no-fund --loglevel=error "oidc-provider@$version"
echo "$version" >"$dir/installed"
