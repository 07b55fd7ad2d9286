#!/usr/bin/env bash
# Installs the servers that nobody here wrote (pinned, into .real), runs the
# integration suite against them, and prints what ran. Nothing may be left out:
# the rows have to be those of integration/expected.d.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .real/results
rm -f .real/results/rows.jsonl .real/results/*.txt
for step in integration/install.d/*.sh; do
	echo "== ${step##*/}"
	bash "$step"
done
status=0
# One package at a time: the servers are heavy, the machine may be small.
go test -tags real -p 1 -count 1 -timeout 20m $(go list -tags real -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./integration/... ./configs/systemd) || status=$?
go run ./integration/table || status=$?
exit "$status"
