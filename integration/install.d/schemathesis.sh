#!/usr/bin/env bash
# schemathesis, which makes requests from an OpenAPI document and holds the
# answers against it. Idempotent; installs only into .real/schemathesis.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=.real/schemathesis
pins=integration/install.d/schemathesis.txt
if cmp -s "$pins" "$dir/installed"; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins"
cp "$pins" "$dir/installed"
