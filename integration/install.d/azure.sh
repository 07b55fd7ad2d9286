#!/usr/bin/env bash
# Microsoft's own Node clients for Key Vault and Entra ID, which cross-check
# our adapter. Idempotent; installs only into .real/azure.
set -euo pipefail
secrets=4.11.2
identity=4.13.1
cd "$(dirname "$0")/../.."
dir=.real/azure
if [ "$(cat "$dir/installed" 2>/dev/null || true)" = "$secrets $identity" ]; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
npm install --prefix "$dir" --no-save --no-audit --no-fund --loglevel=error "@azure/keyvault-secrets@$secrets" "@azure/identity@$identity"
echo "$secrets $identity" >"$dir/installed"
