#!/usr/bin/env bash
# Ansible and its linter, for the role in deploy/ansible. Idempotent; installs
# only into .real/ansible.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=.real/ansible
pins=integration/install.d/ansible.txt
if cmp -s "$pins" "$dir/installed"; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$pins"
cp "$pins" "$dir/installed"
