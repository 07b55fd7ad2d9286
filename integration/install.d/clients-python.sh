#!/usr/bin/env bash
# The HTTP and OAuth libraries that Python programs use, and ruff. Idempotent;
# installs only into .real/clients-python.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=.real/clients-python
pins=integration/install.d/clients-python.txt
if cmp -s "$pins" "$dir/installed"; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins"
cp "$pins" "$dir/installed"
