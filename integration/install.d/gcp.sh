#!/bin/sh
# Google's own Node client for Secret Manager, at the versions of
# integration/gcp/package-lock.json. Idempotent; installs only into .real/gcp.
set -eu
cd "$(dirname "$0")/../.."
dir=.real/gcp
mkdir -p "$dir"
if cmp -s integration/gcp/package-lock.json "$dir/installed"; then
	exit 0
fi
rm -f "$dir/installed"
cp integration/gcp/package.json integration/gcp/package-lock.json "$dir/"
npm ci --prefix "$dir" --no-audit --no-fund --loglevel=error
cp "$dir/package-lock.json" "$dir/installed"
