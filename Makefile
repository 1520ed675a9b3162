# Everything a contributor needs; each target works from a fresh clone with Go alone.
.DEFAULT_GOAL := build
.PHONY: build run test lint bench bench-functions faults gen clean tools

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# What `make run` runs.
SPECS    ?= examples/quickstart
# How long each benchmark of a package runs; more for the measurement of the
# whole, such as BENCHFLAGS='-rounds 5 -peer node-red'.
BENCHTIME  ?= 20ms
BENCHFLAGS ?=
# Go cannot find data races without a C compiler; a machine that has none
# still tests everything else.
RACE     := $(if $(shell command -v "$$($(GO) env CC)" 2>/dev/null),-race)
# The linter is a tool of its own in .bin: its modules stay out of go.mod.
GOLANGCI_VERSION := v2.15.0
GOLANGCI         := $(CURDIR)/.bin/golangci-lint

## build: bin/engine, static and stripped
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/engine ./cmd/engine

## run: the engine on $(SPECS)
run: build
	bin/engine run $(SPECS)

## tools: what tests of functions in other languages need, where apt-get can install it and it is not there
tools:
	@need=; \
	python3 -c 'import venv, ensurepip' 2>/dev/null || need="$$need python3 python3-venv"; \
	node -e 0 2>/dev/null || need="$$need nodejs"; \
	npm --version >/dev/null 2>&1 || need="$$need npm"; \
	test -z "$$need" || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$need; } || \
	{ echo "not installed:$$need; tests that need them are skipped, and fail where CI is set" >&2; test -z "$$CI"; }

## test: everything, the end-to-end tests included
test: tools
	@$(if $(RACE),,echo 'no C compiler: testing without -race')
	$(GO) test $(RACE) -p 2 -timeout 9m ./...

## lint: formatting, vet, module files, golangci-lint
lint: $(GOLANGCI)
	@files=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)) && test -z "$$files" || { echo "gofmt would change: $$files" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(GOLANGCI) run ./...

$(GOLANGCI):
	GOBIN=$(CURDIR)/.bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

## bench: quick benchmarks of the packages, then the whole engine against the ceiling, about ten minutes
bench: build
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -p 1 ./...
	$(GO) run ./test/bench -engine bin/engine $(BENCHFLAGS)

## bench-functions: calls of functions against the least there is, as the tables of docs/performance.md
bench-functions:
	$(GO) test -run '^$$' -bench '^BenchmarkFunctions$$' -benchtime 1x ./engine -rounds 5 $(BENCHFLAGS)

## faults: breaks the built engine in every known way, for twenty-five minutes, and writes the table of docs/reliability.md
faults: build
	$(GO) run ./test/faults -engine bin/engine -md docs/reliability.md

## gen: files made from the code; a test fails when they are out of date
gen:
	mkdir -p docs/schema docs/api
	$(GO) run ./cmd/engine schema > docs/schema/engine.schema.json
	$(GO) run ./cmd/engine schema --kind test > docs/schema/test.schema.json
	$(GO) run ./cmd/engine docs > docs/cli.md
	$(GO) test ./cmd/engine -run TestHelp -update
	cp engine/api/openapi.yaml docs/api/openapi.yaml
	$(GO) run ./sources/generic/eventing/gen -dir sources/generic/eventing -go sources/generic/eventing -python examples/generic/python
	$(GO) run ./sources/generic/eventing/gen -file trigger.proto -dir triggers/grpc/trigger -go triggers/grpc/trigger

## clean: removes what the other targets made
clean:
	rm -rf bin .bin
