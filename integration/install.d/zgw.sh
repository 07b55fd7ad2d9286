#!/usr/bin/env bash
# The Python code that checks and makes JWTs at the municipalities: what Open
# Zaak runs, two clients, and gemma-zds-client as it was in 2018. Idempotent;
# installs only into .real/zgw.
set -euo pipefail
old=gemma-zds-client==0.6.2
cd "$(dirname "$0")/../.."
dir=.real/zgw
pins=integration/install.d/zgw.txt
want="$(cat "$pins") $old"
if [ "$(cat "$dir/installed" 2>/dev/null || true)" = "$want" ]; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$dir/2018" "$old"
echo "$want" >"$dir/installed"
