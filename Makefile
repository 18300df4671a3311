# One entry point for people and for CI. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
ONLY ?=
JOBS ?= 2
# JOBS test processes, a file to one of them, each with a PostgreSQL of its own (ADR 0011); 0 runs all in one process.
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Wattledger needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; a few minutes at most)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: install
install: $(STAMP) ## create .venv and install everything pinned

.PHONY: demo
demo: $(STAMP) ## simulated fleet: fill 48 h, print the bill, go on live (ARGS=--once prints and exits)
	@$(BIN)/wattledger demo $(ARGS)

.PHONY: check
check: $(STAMP) ## format, lint, types, layers, unit and property tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q -m 'not slow' tests/unit tests/property

.PHONY: test
test: $(STAMP) ## every test but the slow ones (JOBS=4: four at a time)
	$(PYTEST) -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(STAMP) ## the slow suites: long kill -9 series, the full demo twice
	$(BIN)/pytest -m slow $(ARGS)

.PHONY: test-slurm
test-slurm: $(STAMP) ## everything that a real small Slurm is asked (Debian: slurm-wlm slurmdbd munge mariadb-server bc)
	$(BIN)/pytest $(ARGS) tests/contract/test_slurm_real.py tests/contract/test_slurm_hooks_real.py tests/db/test_watch_slurm_real.py

# The same tests on other servers (tests/servers): each is fetched into a cache the first time, nothing is installed.
OTHER_SERVERS := postgres15 timescale
CONTRACT := $(shell grep -v '^\#' tests/servers/contract.txt)
EVERY_STORE_TEST := tests/db tests/e2e/test_fleet.py tests/e2e/test_books_match_truth.py
define on_other_servers
	@for server in $(OTHER_SERVERS); do \
	  tests/servers/fetch.sh $$server; \
	  WATTLEDGER_TEST_SERVER=$$server $(PYTEST) -q -m 'not slow' --junitxml=build/junit-$$server.xml $(ARGS) $(1); \
	done
endef

.PHONY: test-servers
test-servers: $(STAMP) ## what every server has to keep, on PostgreSQL 15 and on TimescaleDB
	$(call on_other_servers,$(CONTRACT))

.PHONY: test-timescale
test-timescale: $(STAMP) ## every database test and the fleets, on PostgreSQL 15 and on TimescaleDB
	$(call on_other_servers,$(EVERY_STORE_TEST))

.PHONY: real
real: $(STAMP) ## energy and bills of ../shared/data against published totals
	@$(BIN)/python -m tests.real.report

# Failing inputs go to build/fuzz, each with the command that repeats it. The decoders share SECONDS; HTTP has as long again. In the
# end the database is killed a hundred times under load (tests/e2e/test_weather_storm.py; a quarter of an hour on two busy cores).
SECONDS ?= 300
.PHONY: fuzz
fuzz: $(STAMP) ## bytes made to hurt for every decoder and over HTTP (SECONDS=300), and a hundred kills of the database
	@failed=0; $(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS) || failed=1; \
	WATTLEDGER_FUZZ_SECONDS=$(SECONDS) $(BIN)/pytest -q --timeout=0 tests/db/test_hostile_*.py || failed=1; \
	$(BIN)/pytest -q -m slow tests/e2e/test_weather_storm.py || failed=1; exit $$failed

# A minute a core for 60 mutants; all of them are some thousand. ARGS="--only money sharing", ARGS="--most 20": so many of each module.
.PHONY: mutation
mutation: $(STAMP) ## small faults put into analytics/model: do its tests notice? ONLY="a b" modules; build/mutation.json
	@POLARS_MAX_THREADS=1 $(BIN)/python -m tests.mutation --jobs $(JOBS) $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: bench
bench: $(STAMP) ## benchmarks; ONLY=name runs one; results go to build/bench.jsonl
	@$(BIN)/python -m bench $(ONLY)

.PHONY: bench-peers
bench-peers: $(STAMP) ## beside prometheus, victoria-metrics, node-exporter (installed from Debian if missing), same data, same run
	@$(BIN)/python -m bench.peers $(ONLY)

.PHONY: packs
packs: $(STAMP) ## published prices and carbon intensities from public packages: build/packs (deploy/packs/README.md)
	@PYTHON=$(BIN)/python deploy/packs/build

.PHONY: bundle
bundle: $(STAMP) ## one archive that installs server and agent without internet: build/bundle (docs/deployment.md)
	@PYTHON=$(BIN)/python deploy/bundle/build

.PHONY: format
format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: constraints
constraints: $(STAMP) ## renew constraints.txt from what is installed
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -v '@' | sort -f; } > constraints.new && mv constraints.new constraints.txt

.PHONY: clean
clean: ## remove the venv, caches and build output (never the state folder)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
