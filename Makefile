# make run       a whole broker with an issuer to play with, until Ctrl-C
# make test      everything that needs nothing but Go
# make test-real the integration suite against real servers, which it installs into .real
# make surfaces  one token through every surface in every language, and what it costs
# make check     format, vet, lint, floor plan, generated files
# make package   deb, rpm, tarball, SBOM and checksums into dist/packages
# make bench     the consumer socket, the scanner and the mask beside their references

SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOLANGCI := v2.15.0
GOVULNCHECK := v1.6.0
NFPM := v2.45.2
TOOLS := $(CURDIR)/.tools
PACKAGES := ./...

.PHONY: run build test test-real surfaces check lint generate bench vuln package clean

run: build
	dist/broker demo

build:
	@mkdir -p dist
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o dist/ ./cmd/broker ./cmd/brokerd

test:
	$(GO) test -race -timeout 10m $(PACKAGES)

test-real: build
	integration/run.sh

surfaces: build
	@for step in integration/install.d/clients-*.sh; do bash $$step || exit; done
	@cd integration/clients && $(GO) test -tags real -count 1 -run '^TestSurfaces$$'

check: lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags real ./...
	$(GO) test -run 'TestFloorPlan' ./internal/floorplan
	$(GO) generate ./...
	@git diff --exit-code -- configs api packaging/man || { echo "generated files were out of date: commit the difference"; exit 1; }
	$(MAKE) vuln

lint: $(TOOLS)/golangci-lint-$(GOLANGCI)
	$< run ./...

$(TOOLS)/golangci-lint-$(GOLANGCI):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv $(TOOLS)/golangci-lint $@

$(TOOLS)/govulncheck-$(GOVULNCHECK):
	GOBIN=$(TOOLS) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK)
	mv $(TOOLS)/govulncheck $@

$(TOOLS)/nfpm-$(NFPM):
	GOBIN=$(TOOLS) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM)
	mv $(TOOLS)/nfpm $@

# VERSION=1.2.3 on the command line names another version than the commit's,
# PACKAGES_DIR another directory, ARCHES fewer architectures, of which one is this machine's.
package: $(TOOLS)/nfpm-$(NFPM)
	NFPM=$< packaging/package.sh $(or $(PACKAGES_DIR),dist/packages)

# The vulnerability database is a web service: where it is out of reach, say so
# rather than pass.
vuln: $(TOOLS)/govulncheck-$(GOVULNCHECK)
	@if curl -sSf -m 10 -o /dev/null https://vuln.go.dev/index/modules.json; then $< ./...; \
	else echo "NOT CHECKED: the vulnerability database cannot be reached from here; nothing is known about known vulnerabilities"; fi

generate:
	$(GO) generate ./...

bench: build
	integration/install.d/nginx.sh
	$(GO) run ./bench
	$(GO) test -count=1 -v -run TestCallBudget ./bench
	integration/install.d/ripgrep.sh
	SCAN_BENCH_MIB=1024 $(GO) test -count=1 -v -timeout 20m -run TestScanSpeed ./bench
	FANOUT_STREAMS=10000 $(GO) test -count=1 -v -run TestFanOut ./api
	REDACT_BENCH_MIB=2048 $(GO) test -count=1 -v -run TestRedactSpeed ./bench

clean:
	rm -rf dist .real .tools
